"""``pofl reproduce``: the paper's figures and tables from this system, with what follows and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from core.errors import ConfigError
from services.cli.bench import source_tree
from services.cli.errors import heeds_ctrl_c, runs
from services.cli.output import JsonOption, console, emit_json

__all__ = ["reproduce"]

MEASURED: Final = ("fig10", "fig11", "table1")
"""These are drawn together, from one measurement of `pofl bench verification`."""


@runs
async def reproduce(
    figures: Annotated[
        list[str], typer.Argument(metavar="FIGURE...", help="fig7, fig8, fig8b, map, deviations, fig10, fig11, table1, ...")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for PNG, CSV and text files.")] = Path("figures"),
    markup_high: Annotated[float, typer.Option("--markup-high", help="D_bar of Figs. 7 and 8; not in the paper.")] = 4.0,
    bid_high: Annotated[float, typer.Option("--bid-high", help="m_bar of Figs. 7 and 8; not in the paper.")] = 8.0,
    reputation: Annotated[float, typer.Option(help="r of Fig. 8, in 0..1; not in the paper.")] = 0.5,
    points: Annotated[int, typer.Option(help="Points on each curve of Figs. 7 and 8.")] = 51,
    samples: Annotated[str, typer.Option(help="Test sets measured for fig10, fig11 and table1.")] = "100,1000,10000",
    as_json: JsonOption = False,
) -> None:
    """The paper's figures and tables: PNG and CSV, and for each claim of Figs. 7 and 8 whether it follows and why.

    Figs. 7 and 8 are drawn with eq. (5) as printed, corrected, and within the game's bounds (docs/market.md). `map` is where
    the market does what section III promises, `deviations` what misreports and coalitions gain. Seconds; fig10, fig11 and
    table1 are measured with real services and take minutes.

    Example: pofl reproduce fig7 fig8 --out figures

    Example: pofl reproduce fig8b --markup-high 2 --bid-high 10 --json
    """
    with source_tree():
        from bench import figures_market
        from bench.market_figures import Setting
    known = [*figures_market.TARGETS, *(part for parts in figures_market.TARGETS.values() for part in parts), *MEASURED]
    for name in figures:
        if name not in known:
            raise ConfigError(f"there is no figure {name!r}: it must be one of {', '.join(dict.fromkeys(known))}")
    setting = Setting(markup_high, bid_high, reputation, points)
    figures_market.check_folder(out)
    found: list[dict[str, object]] = []
    if any(name in MEASURED for name in figures):
        from bench.verification_report import report

        await report(samples, "256,16,16,10", 5, None, out)
        files = sorted(path for name in MEASURED for path in out.glob(f"{name}*") if path.suffix in (".png", ".csv"))
        sentence = "fig10, fig11, table1: measured with real services on this machine (docs/bench.md says how)."
        found.append({"figure": "verification", "sentence": sentence, "files": files})
    heeds_ctrl_c()
    found += figures_market.draw([name for name in figures if name not in MEASURED], setting, out)
    if as_json:
        emit_json(found)
        return
    for one in found:
        console.print(str(one["sentence"]), highlight=False, markup=False)
        curves, written = one.get("curves", []), one["files"]
        assert isinstance(curves, list)
        assert isinstance(written, list)
        for line in curves:
            console.print(f"  {line}", highlight=False, markup=False)
        console.print(f"  wrote {', '.join(str(path) for path in written)}", highlight=False, markup=False)
