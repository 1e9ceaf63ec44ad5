"""``pofl market``: the data market."""

from __future__ import annotations

import typer

from services.cli import market_quotes, market_reports, market_trades

__all__ = ["app"]

app = typer.Typer(help="The data market: offers, quotes, trades, reputations, reports of leaks.", no_args_is_help=True)
market_quotes.register(app)
market_trades.register(app)
market_reports.register(app)


@app.callback()
def _group() -> None:
    """The data market: offers, quotes, trades, reputations, reports of leaks."""
