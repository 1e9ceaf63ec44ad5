"""``pofl pool``: what an operator of a pool does beside running it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from services.cli import pool_books
from services.cli.output import JsonOption

__all__ = ["app"]

app = typer.Typer(help="Around a mining pool.", no_args_is_help=True)
pool_books.register(app)


@app.callback()
def _group() -> None:
    """Around a mining pool."""


@app.command("flower-app")
def flower_app(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write; must be new or empty.")],
    as_json: JsonOption = False,
) -> None:
    """Write the Flower app that mines on a SuperLink and SuperNodes of your own, for `flwr run`.

    Example: pofl pool flower-app --out mining && flwr run mining
    """
    # As in `pofl run`: nothing of a role is imported here.
    words = [sys.executable, "-m", "pool.flower.stock", str(out), *(["--json"] if as_json else [])]
    os.execv(sys.executable, words)  # noqa: S606
