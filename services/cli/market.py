"""``pofl market``: the data market."""

from __future__ import annotations

import typer

from services.cli import market_reports

__all__ = ["app"]

app = typer.Typer(help="The data market: reports of leaks.", no_args_is_help=True)
market_reports.register(app)


@app.callback()
def _group() -> None:
    """The data market: reports of leaks."""
