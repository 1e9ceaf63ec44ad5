"""Figures 10(a), 10(b), 11(a) and 11(b) of the paper, drawn from this system's measurements: PNG, and the numbers as CSV.

The paper gives numbers only in its text: the audit of 10,000 samples (1.65 to 1.7 s) and the best of 9,364 claims (60
microseconds). They are drawn; of its other curves only the shape is stated, and the shape is written above the figure.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.verification_growth import paper_gates
from bench.verification_machine import Json
from core.errors import ConfigError

__all__ = ["check_folder", "write_all"]

MISSING: Final = "figures need matplotlib: run `pip install 'pofl[figures]'`, or leave --plot out"
Rows = list[dict[str, object]]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: its table, and which columns are curves."""

    name: str
    title: str
    x: str
    y: str
    table: Callable[[Sequence[Json]], Rows]
    draw: Callable[[Any, Rows, Sequence[Json]], None]


def check_folder(folder: Path) -> None:
    """Before anything is measured: that figures can be drawn and written there. Raises ConfigError."""
    _pyplot()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".pofl-write"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"--plot: {folder} cannot be written: {error.strerror}") from None


def write_all(results: Sequence[Json], folder: Path) -> list[Path]:
    """Every figure as PNG and CSV, and Table I as CSV; the files written. Raises ConfigError without matplotlib."""
    pyplot = _pyplot()
    ordered = sorted(results, key=lambda result: int(result["samples"]))
    written = []
    for figure in FIGURES:
        rows = figure.table(ordered)
        written.append(_write_csv(folder / f"{figure.name}.csv", rows))
        drawing, axes = pyplot.subplots(figsize=(6.4, 4.4), layout="constrained")
        axes.set(xlabel=figure.x, ylabel=figure.y)
        figure.draw(axes, rows, ordered)
        axes.set_title(figure.title, fontsize=9)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
        path = folder / f"{figure.name}.png"
        drawing.savefig(path, dpi=150)
        pyplot.close(drawing)
        written.append(path)
    written.append(_write_csv(folder / "table1.csv", _gates(ordered)))
    return written


def _pyplot() -> Any:
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise ConfigError(MISSING) from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _write_csv(path: Path, rows: Rows) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def _communication(results: Sequence[Json]) -> Rows:
    return [
        {
            "samples": r["samples"],
            **{f"he_{way}_bytes": r["evaluation"]["he_bytes"][way] for way in WAYS},
            **{f"ot_{way}_bytes": r["ot"]["bytes"][way] + r["ot"]["setup"]["bytes"][way] for way in WAYS},
            **{f"gc_{way}_bytes": r["garbling"]["bytes"][way] for way in WAYS},
            **{f"evaluation_wire_{way}_bytes": _both(r, way) for way in WAYS},
        }
        for r in results
    ]


def _both(result: Json, way: str) -> int:
    """Of a whole evaluation, as the system counted it on the connection."""
    return int(sum(result["evaluation"][step]["wire_bytes"][way] for step in ("offline", "online")))


def _computation(results: Sequence[Json]) -> Rows:
    rows: Rows = []
    for r in results:
        evaluation, circuit, ot = r["evaluation"], r["garbling"], r["ot"]
        whole = {
            name: sum(evaluation[step][field] for step in ("offline", "online"))
            for name, field in (("pool", "cpu_seconds"), ("requester", "requester_cpu_seconds"))
        }
        garble, evaluate = circuit["garble"]["cpu_seconds"], circuit["evaluate"]["cpu_seconds"]
        rows.append(
            {
                "samples": r["samples"],
                "he_pool_cpu_seconds": max(0.0, whole["pool"] - garble - ot["pool_cpu_seconds"]),
                "he_requester_cpu_seconds": max(0.0, whole["requester"] - evaluate - ot["requester_cpu_seconds"]),
                "gc_cpu_seconds": garble + evaluate,
                "ot_cpu_seconds": ot["pool_cpu_seconds"] + ot["requester_cpu_seconds"],
                "encrypt_once_for_a_task_cpu_seconds": r["encrypt"]["cpu_seconds"],
                "evaluation_online_seconds": evaluation["online_seconds"],
                "evaluation_offline_seconds": evaluation["offline_seconds"],
                "tenseal_ckks_mm_seconds": r["tenseal_ckks_mm"]["seconds"],
            }
        )
    return rows


def _best(results: Sequence[Json]) -> Rows:
    return [
        {"claims": one["claims"], "best_seconds": one["best"]["seconds"], "sort_seconds": one["sort"]["seconds"]}
        for one in results[-1]["best_claim"]
    ]


def _audits(results: Sequence[Json]) -> Rows:
    return [
        {
            "samples": r["samples"], "run": number + 1, "audit_seconds": seconds, "median_seconds": r["audit"]["seconds"],
            "node_cpu_seconds": r["audit"]["cpu_seconds"], "requester_cpu_seconds": r["audit"]["requester_cpu_seconds"],
            "together_seconds": r["audit16"]["seconds"],
        }
        for r in results
        for number, seconds in enumerate(r["audit"]["all_seconds"])
    ]  # fmt: skip


def _gates(results: Sequence[Json]) -> Rows:
    return [{"samples": r["samples"], **{k: v for k, v in r["garbling"]["table_1"].items() if k != "note"}} for r in results]


def _curves(columns: dict[str, str], scale: float = 1.0, x: str = "samples") -> Callable[[Any, Rows, Sequence[Json]], None]:
    def draw(axes: Any, rows: Rows, results: Sequence[Json]) -> None:
        for column, label in columns.items():
            axes.plot([row[x] for row in rows], [float(str(row[column])) / scale for row in rows], marker="o", label=label)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)

    return draw


def _draw_communication(axes: Any, rows: Rows, results: Sequence[Json]) -> None:
    sums: Rows = [
        {
            "samples": row["samples"],
            **{name: sum(int(str(row[f"{name}_{way}_bytes"])) for way in WAYS) for name in ("he", "gc", "ot")},
        }
        for row in rows
    ]
    _curves({"he": "HE, both ways", "ot": "OT, both ways", "gc": "garbled circuit, both ways"}, 1e6)(axes, sums, results)
    top, gates = sums[-1], [paper_gates(int(str(row["samples"]))) for row in rows]
    shape = [float(str(top["ot"])) * gate / gates[-1] / 1e6 for gate in gates]
    axes.plot([row["samples"] for row in rows], shape, "k:", label="shape of I + I ceil(log2 I) / 2, to the last OT point")


def _draw_audits(axes: Any, rows: Rows, results: Sequence[Json]) -> None:
    low, high = results[-1]["paper"]["audit_seconds"]
    told = f"paper: 10,000 samples, {low} to {high} s (simulated)"
    if len(results) == 1:
        axes.axhspan(low, high, color="tab:red", alpha=0.5, label=told)
        axes.plot([row["run"] for row in rows], [row["audit_seconds"] for row in rows], "o", label="this system, one node")
        axes.set_xlabel(f"model audited, of {results[0]['samples']:,} samples")
        axes.set_xlim(0, len(rows) + 1)
    else:
        axes.vlines(10_000, low, high, color="tab:red", linewidth=8, label=told)
        axes.plot([row["samples"] for row in rows], [row["audit_seconds"] for row in rows], ".", label="each audit")
        medians = [(r["samples"], r["audit"]["seconds"]) for r in results]
        axes.plot(*zip(*medians, strict=True), marker="o", label="this system, one node, median")
        axes.set_xlim(left=0)
    axes.set_ylim(0, max(1.9, 1.1 * max(float(str(row["audit_seconds"])) for row in rows)))


def _draw_best(axes: Any, rows: Rows, results: Sequence[Json]) -> None:
    columns = {"best_seconds": "greatest of n counts, numpy", "sort_seconds": "n counts sorted, numpy"}
    _curves(columns, 1e-6, "claims")(axes, rows, results)
    axes.plot(
        [9364],
        [1e6 * results[-1]["paper"]["best_of_9364_claims_seconds"]],
        "r*",
        markersize=12,
        label="paper: at most 60 µs for 9,364 (sorted, ASIC)",
    )


WAYS: Final = ("to_requester", "from_requester")
FIGURES: Final = (
    Figure(
        "fig10a", "Fig. 10(a): communication of one evaluation, pool and requester\n"
        "paper: HE almost linear; OT with the number of gates, I ceil(log2 I)",
        "data quantity (samples)", "MB", _communication, _draw_communication,
    ),
    Figure(
        "fig10b", "Fig. 10(b): computation of one evaluation\n"
        "paper: HE linear, the pool's share the steeper; GC with the number of gates, I ceil(log2 I)",
        "data quantity (samples)", "processor seconds", _computation,
        _curves({
            "he_pool_cpu_seconds": "HE, pool", "he_requester_cpu_seconds": "HE, requester",
            "gc_cpu_seconds": "GC: garble and evaluate", "ot_cpu_seconds": "OT",
        }),
    ),
    Figure("fig11a", "Fig. 11(a): the best of n claims", "claims", "microseconds", _best, _draw_best),
    Figure(
        "fig11b", "Fig. 11(b): a full node verifies the claimed accuracy of one model", "data quantity (samples)", "seconds",
        _audits, _draw_audits,
    ),
)  # fmt: skip
