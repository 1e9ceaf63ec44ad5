"""``pofl market report-leak``: a provider's report that a copy of its rows was found (docs/market.md)."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from core.errors import PoflError
from services.cli.connection import NetOption, newest_testnet
from services.cli.output import MOST_NUMBER, JsonOption
from services.runtime.lifecycle import exit_code
from services.runtime.logging import shown
from services.testnet.layout import load_layout

__all__ = ["register"]


def register(market: typer.Typer) -> None:
    market.command("report-leak")(report_leak)


def report_leak(
    copy: Annotated[Path, typer.Argument(metavar="COPY", help="npz file with x (n, M): the rows that were found.")],
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="The provider's TOML file; default: the testnet's.")
    ] = None,
    net: NetOption = None,
    trade: Annotated[list[str] | None, typer.Option(metavar="ID", help="Look at this trade only; repeatable.")] = None,
    since: Annotated[
        int, typer.Option(metavar="HEIGHT", help="Look for trades from this block on.", min=1, max=MOST_NUMBER)
    ] = 1,
    wait: Annotated[float, typer.Option(metavar="SECONDS", help="For the answer of the accused.", min=0)] = 0.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say whose rows they are, and send nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Find out whose rows a copy has, and report the leak on the chain. Run it where the provider's files are.

    Locks the chain's report bond: it comes back if the leak is proven or the pool stays silent, and goes to the pool if its
    marks clear it. Nothing is sent unless the copy surely is of rows that were sold.

    Example: pofl market report-leak found.npz --dry-run

    Example: pofl market report-leak found.npz --config provider/config.toml --wait 120 --json
    """
    try:
        chosen = config
        if chosen is None:
            layout = load_layout(net or newest_testnet())
            chosen = layout.folder / layout.of("provider")[0].name / "config.toml"
    except PoflError as error:
        sys.stderr.write(f"error: {shown(error)}\n")
        raise SystemExit(exit_code(error)) from None
    arguments = [str(copy), "--config", str(chosen), "--since", str(since), "--wait", str(wait)]
    arguments += [word for each in trade or () for word in ("--trade", each)]
    arguments += ["--dry-run"] * dry_run + ["--json"] * as_json
    # The provider's own module replaces this process: commands know no role's inside.
    os.execv(sys.executable, [sys.executable, "-m", "provider.report_leak", *arguments])  # noqa: S606
