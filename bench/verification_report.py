"""What ``pofl bench verification`` does: checks what was asked for, measures every size, draws, and shows tables."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import plots
from bench.verification_growth import growth
from bench.verification_machine import Json, Progress, tell
from bench.verification_services import TOGETHER, check_size, measure
from core.errors import ConfigError
from services.cli.output import table

__all__ = ["numbers", "report", "tables"]


def numbers(option: str, text: str) -> list[int]:
    """Raises ConfigError."""
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise ConfigError(f"{option}: positive whole numbers separated by commas are needed, got {text!r}")
    return found


async def report(samples: str, layers: str, runs: int, nodes: int | None, plot: Path | None, progress: Progress = tell) -> Json:
    """One size: what bench.verification_services.measure returns. Several: all of them, and how cost grows.

    ``nodes``: how many audit one block at once; None: 16 for one size, and none in a series. ``plot``: folder for figures.

    Raises:
        ConfigError, LimitError: before anything is measured.
        UnavailableError, DeadlineError: a process did not do its part.
    """
    sizes, dims = numbers("--samples", samples), tuple(numbers("--layers", layers))
    if len(set(sizes)) < len(sizes):
        raise ConfigError(f"--samples: each size once, got {samples!r}")
    count = (TOGETHER if len(sizes) == 1 else 0) if nodes is None else nodes
    for size in sizes:
        check_size(size, dims, runs, count)
    if plot is not None:
        plots.check_folder(plot)
    # gRPC warns about certificates of this throw-away network on standard error, in between the lines of progress.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    with _ended_by_sigterm():
        results = [await measure(size, dims, runs, count, progress) for size in sorted(sizes)]
    whole: Json = results[0] if len(results) == 1 else {"layers": list(dims), "sizes": results, "growth": growth(results)}
    if plot is not None:
        whole["figures"] = [str(path) for path in plots.write_all(results, plot)]
    return whole


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends a measurement as Ctrl-C does: with its processes and its folder."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    came = asyncio.Event()

    def stop() -> None:
        came.set()
        task.cancel()

    loop.add_signal_handler(signal.SIGTERM, stop)
    try:
        yield
    except asyncio.CancelledError:
        if came.is_set():
            raise KeyboardInterrupt from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


def tables(whole: Json) -> list[object]:
    """For people."""
    shown: list[object] = [_steps(result) for result in whole.get("sizes", [whole])]
    if "growth" in whole:
        shown.append(_growth(whole["growth"]))
    if "figures" in whole:
        shown.append("Written: " + ", ".join(whole["figures"]))
    return shown


def _steps(result: Json) -> object:
    evaluation, audit, together = result["evaluation"], result["audit"], result["audit16"]
    paper, gates, tenseal = result["paper"], result["garbling"]["table_1"], result["tenseal_ckks_mm"]
    best = result["best_claim"][-1]
    rows: list[tuple[str, Json, str]] = [
        ("audit of one block, one full node", audit, "paper: {} to {} s, simulated".format(*paper["audit_seconds"])),
        ("audit again, her answer known", audit["again"], ""),
        (f"{together.get('nodes', TOGETHER)} nodes at once, all", together, together.get("note", "")),
        ("evaluation, online", evaluation["online"], "model final to N known"),
        ("evaluation, offline", evaluation["offline"], "while training runs"),
        ("encryption of the test set", result["encrypt"], "once for a task"),
        ("publishing, with encryption", result["publish"], "once for a task"),
        ("fetching and unpacking the test set", result["load"], "once for a task, each node and pool"),
        ("garble and evaluate", result["garbling"], f"{gates['all']} ANDs; paper, Table I: {gates['all_paper']} gates"),
        ("oblivious transfer", result["ot"], f"{result['ot']['transfers']} transfers"),
        ("TenSEAL's CKKS product, layer one", tenseal, f"all {tenseal['rows']} rows, {tenseal['threads']} threads"),
        ("forward pass in the clear", result["plaintext"], "numpy, float64"),
        (f"best of {best['claims']} claims", best["best"], f"paper: {paper['best_of_9364_claims_seconds']:.6f} s on an ASIC"),
    ]  # fmt: skip
    machine = result["machine"]
    aes = "" if machine["aes"]["in_use"] else ", WITHOUT AES instructions (see OPENSSL_ia32cap)"
    title = (
        f"{result['samples']} samples, {'-'.join(map(str, result['layers']))}; {machine['cores_usable']} cores "
        f"{machine['cpu']}, load {machine['load_average'][0]:.1f}{aes}, commit {machine['commit'][:9]}"
    )
    shown = [
        (name, *(_seconds(step.get(field)) for field in ("seconds", "seconds_min", "seconds_max")), *_bytes(step), note)
        for name, step, note in rows
    ]
    columns = ["step", "median s", "least", "most", "bytes to R", "bytes from R", ""]
    return table(title, columns, shown, right=[1, 2, 3, 4, 5])


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}" if value < 0.001 else f"{value:.4f}"


def _bytes(step: Json) -> Sequence[str]:
    ways = step.get("bytes")
    return [f"{ways[way]:,}" if isinstance(ways, dict) else "" for way in ("to_requester", "from_requester")]


def _growth(grown: Json) -> object:
    names = [f"{a} to {b}" for a, b in zip(grown["sizes"], grown["sizes"][1:], strict=False)]
    rows = [
        (name, *(f"{one:.2f}" for one in (*found["exponents"], found["exponent"])), f"{found['per_sample'][-1]:.3g}")
        for name, found in [*grown["quantities"].items(), ("I + I ceil(log2 I) / 2 (paper, gates)", grown["paper"])]
    ]
    columns = ["exponent of growth (1: linear)", *names, "all", "per sample, at the end"]
    return table("How cost grows", columns, rows, right=range(1, len(columns)))
