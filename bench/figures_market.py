"""Draws Figures 7 and 8 and the maps of the market: PNG, the numbers as CSV, and what they show as text."""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench import market_deviations, market_maps
from bench.market_figures import FORMULAS, PANELS, Curves, Panel, Setting, evaluate, rows, verdict
from bench.market_maps import MAPS, MEANINGS, Map
from core.errors import ConfigError

__all__ = ["TARGETS", "check_folder", "draw"]

MISSING: Final = "figures need matplotlib: run `pip install 'pofl[figures]'`"
TARGETS: Final = {
    "fig7": tuple(p.name for p in PANELS if p.name.startswith("fig7")),
    "fig8": tuple(p.name for p in PANELS if p.name.startswith("fig8")),
    "map": tuple(m.name for m in MAPS),
    "deviations": ("deviations",),
}
"""What can be asked for, and what each consists of; a part can be asked for by its own name."""
HEADINGS: Final = {"printed": "as printed", "corrected": "eq. (5) corrected", "bounded": "within the bounds"}


def check_folder(folder: Path) -> None:
    """Before anything is computed: that figures can be drawn and written there. Raises ConfigError."""
    _pyplot()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".pofl-write"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"--out: {folder} cannot be written: {error.strerror}") from None


def draw(wanted: Iterable[str], setting: Setting, folder: Path) -> list[dict[str, object]]:
    """Draw what is wanted (names of TARGETS or of their parts) into a folder; what was found, with the files written."""
    names = {part for name in wanted for part in TARGETS.get(name, (name,))}
    found = [_panel(panel, setting, folder) for panel in PANELS if panel.name in names]
    found += [_map(chart, folder) for chart in MAPS if chart.name in names]
    if "deviations" in names:
        measured = market_deviations.measure()
        path = _write_csv(folder / "deviations.csv", measured)
        lines = [str(row["sentence"]) for row in measured]
        told = "deviations: what somebody gains who does not play as section III has it, with the default rule and pool."
        found.append({"figure": "deviations", "sentence": told, "curves": lines, "files": [path]})
    for one in found:
        text = folder / f"{one['figure']}.txt"
        curves = one.get("curves", [])
        assert isinstance(curves, list)
        text.write_text("\n".join([str(one["sentence"]), *map(str, curves)]) + "\n")
        files = one["files"]
        assert isinstance(files, list)
        files.append(text)
    return found


def _panel(panel: Panel, setting: Setting, folder: Path) -> dict[str, object]:
    curves = evaluate(panel, setting)
    said = verdict(panel, setting)
    table = _write_csv(folder / f"{panel.name}.csv", rows(curves))
    picture = folder / f"{panel.name}.png"
    drawing, all_axes = _pyplot().subplots(1, len(FORMULAS), figsize=(12, 4.6), layout="constrained", sharex=True)
    for axes, formula in zip(all_axes, FORMULAS, strict=True):
        _curves(axes, panel, [c for c in curves if c.formula == formula])
        axes.set_title(HEADINGS[formula], fontsize=9)
    given = f"D_bar = {setting.D_bar:g}, m_bar = {setting.m_bar:g}"
    if panel.name.startswith("fig8"):
        given += f", r = {setting.r:g}"
    number = f"Fig. {panel.name[3]}({panel.name[4]}), {given}. Paper: {panel.claim}: {said['answer']}."
    drawing.suptitle("\n".join(textwrap.wrap(f"{number} {panel.why}", 150)), fontsize=8)
    _save(drawing, picture)
    return said | {"files": [picture, table]}


def _curves(axes: Any, panel: Panel, curves: list[Curves]) -> None:
    names = ("U_pool", "U_provider") if panel.shows == "utility" else ("p",)
    for colour, curve in enumerate(curves):
        for name in names:
            label = curve.reading.name if panel.shows == "probability" else f"{name}, {curve.reading.name}"
            style = "--" if name == "U_provider" else "-"
            width = 3.0 - colour  # curves that lie on one another
            axes.plot(curve.x, curve.outcome(name), style, color=f"C{colour}", label=label, linewidth=max(1.0, width))
    if not curves:
        axes.text(0.5, 0.5, "beta eta <= 1:\nno best rule", ha="center", va="center", transform=axes.transAxes)
    if panel.shows == "probability":
        for bound in (0, 1):
            axes.axhline(bound, color="k", linewidth=0.6, linestyle=":")
    axes.set(xlabel=panel.x, ylabel=panel.shows)
    axes.grid(alpha=0.3)
    if curves:
        axes.legend(fontsize=7)


def _map(chart: Map, folder: Path) -> dict[str, object]:
    found = market_maps.classify(chart)
    table = _write_csv(folder / f"{chart.name}.csv", market_maps.rows(chart, found))
    picture = folder / f"{chart.name}.png"
    drawing, axes = _pyplot().subplots(figsize=(7.6, 4.8), layout="constrained")
    from matplotlib.colors import ListedColormap

    colours = ListedColormap(["#2a9d4a", "#e9c46a", "#f4a261", "#e76f51", "#264653", "#bbbbbb"][: len(MEANINGS)])
    shown = axes.pcolormesh(chart.x, chart.y, found, cmap=colours, vmin=-0.5, vmax=len(MEANINGS) - 0.5, shading="nearest")
    bar = drawing.colorbar(shown, ax=axes, ticks=np.arange(len(MEANINGS)))
    bar.ax.set_yticklabels(MEANINGS, fontsize=7)
    axes.plot(*chart.default, "k*", markersize=12, label="default")
    axes.set(xlabel=chart.x_name, ylabel=chart.y_name)
    axes.legend(fontsize=8)
    said = market_maps.summary(chart, found)
    axes.set_title("\n".join(textwrap.wrap(str(said["sentence"]), 100)), fontsize=8)
    _save(drawing, picture)
    return said | {"files": [picture, table]}


def _save(drawing: Any, path: Path) -> None:
    drawing.savefig(path, dpi=130)
    _pyplot().close(drawing)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise ConfigError(MISSING) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _write_csv(path: Path, table: Iterable[dict[str, object]]) -> Path:
    kept = list(table)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(kept[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
    return path
