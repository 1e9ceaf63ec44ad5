"""``pofl chain reindex|export|import|prune``, and ``verify`` of a folder: the stored chain of a node that is stopped."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from core.errors import ConfigError
from services.cli.output import MOST_NUMBER, JsonOption
from services.runtime.lifecycle import exit_code
from services.runtime.logging import shown

__all__ = ["ConfigOption", "DataDirOption", "become", "register"]

MODULE: Final = "node.offline"

DataDirOption = Annotated[
    Path | None, typer.Option("--data-dir", metavar="DIR", help="`data_dir` of a stopped node, which holds `chain`.")
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Configuration of a stopped node, instead of --data-dir.")
]
SilentOption = Annotated[
    int | None,
    typer.Option(
        "--silent-until",
        min=1,
        max=MOST_NUMBER,
        metavar="HEIGHT",
        help="A validator that lost its votes does not vote up to here.",
    ),
]


def register(app: typer.Typer) -> None:
    app.command("reindex")(reindex)
    app.command("export")(export)
    app.command("import")(import_)
    app.command("prune")(prune)


def reindex(
    data_dir: DataDirOption = None, config: ConfigOption = None, silent_until: SilentOption = None, as_json: JsonOption = False
) -> None:
    """Build a stopped node's indexes and state again, from its blocks.

    What is damaged is left out; the node fetches it from its peers when it runs again. The old folder is replaced at once, at
    the end: free as much disk as it takes.

    Example: pofl chain reindex --data-dir node0/data
    """
    silence = [] if silent_until is None else ["--silent-until", str(silent_until)]
    become("reindex", data_dir, config, as_json, *silence)


def export(
    file: Annotated[str, typer.Argument(metavar="FILE", help="File to write; - for standard output.")],
    data_dir: DataDirOption = None, config: ConfigOption = None,
    first: Annotated[int, typer.Option("--from", min=1, max=MOST_NUMBER, metavar="HEIGHT", help="First block.")] = 1,
    append: Annotated[bool, typer.Option("--append", help="Go on with a file that is there, or that was cut off.")] = False,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Write a stopped node's blocks and certificates to a file.

    Example: pofl chain export - --data-dir node0/data | gzip > chain.pofl.gz
    """
    become("export", data_dir, config, as_json, "--from", str(first), *(["--append"] if append else []), "--", file)


def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="File to read; - for standard input.")],
    data_dir: DataDirOption = None, config: ConfigOption = None, silent_until: SilentOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Add the blocks of a file to a stopped node's chain; each is checked before it is stored.

    Example: pofl chain import chain.pofl --config node0/config.toml
    """
    silence = [] if silent_until is None else ["--silent-until", str(silent_until)]
    become("import", data_dir, config, as_json, *silence, "--", file)


def prune(
    keep: Annotated[
        int,
        typer.Option(
            "--keep", min=1, max=MOST_NUMBER, metavar="BLOCKS",
            help="How many of the last blocks stay whole; below 256, peers that lag some blocks find too few here.",
        ),
    ],
    data_dir: DataDirOption = None, config: ConfigOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Drop all but the last blocks of a stopped node; their headers and certificates stay.

    Example: pofl chain prune --keep 10000 --data-dir node0/data
    """
    become("prune", data_dir, config, as_json, "--keep", str(keep))


def become(command: str, data_dir: Path | None, config: Path | None, as_json: bool, *arguments: str) -> NoReturn:
    """The node's own program replaces this one: it knows what a node stores, and nothing it needs is imported here."""
    if (data_dir is None) == (config is None):
        error = ConfigError("give either --data-dir DIR or --config FILE of the stopped node")
        sys.stderr.write(f"error: {shown(error)}\n")
        raise SystemExit(exit_code(error))
    place = ["--data-dir", str(data_dir)] if data_dir is not None else ["--config", str(config)]
    flags = ["--json"] if as_json else []
    os.execv(sys.executable, [sys.executable, "-m", MODULE, command, *place, *flags, *arguments])  # noqa: S606
