"""``pofl bench mining``: what a federated round costs, with real processes, beside the same training in one process.

Guard, manager and miners are the pool's own processes and speak TLS on loopback (mining_world.py). Miners train on rows drawn
at random, the same for each size of model; every round waits for all of them.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

import psutil

from bench.mining_world import CLASSES, FEATURES, embedded, stock_rounds, write_rows
from bench.verification_machine import Json, machine
from core.errors import ConfigError

__all__ = ["measure", "model_of", "numbers", "plan_of", "tables", "whole"]

SMALL: Final = 1_000_000
"""Bytes up to which a model is measured with every number of miners."""
LARGE: Final = 30_000_000
"""Bytes from which two miners are enough."""
MINER_MEMORY: Final = 450 << 20
"""A miner's process with a small model, bytes; a large model takes several times its size in each process more."""


def numbers(text: str, option: str) -> list[float]:
    """Of a list separated by commas. Raises ConfigError."""
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option}: numbers separated by commas, got {text!r}") from None


def whole(text: str, option: str) -> list[int]:
    """The same of whole numbers."""
    found = numbers(text, option)
    if not all(one.is_integer() for one in found):
        raise ConfigError(f"{option}: whole numbers separated by commas, got {text!r}")
    return [int(one) for one in found]


def model_of(size: int) -> tuple[int, ...]:
    """Widths of the hidden layers of a model of about ``size`` bytes in float32."""
    return (max(1, round((size / 4 - CLASSES) / (FEATURES + 1 + CLASSES))),)


def plan_of(miners: Sequence[int], sizes: Sequence[int]) -> list[tuple[int, int]]:
    """(bytes, miners) of each measurement, large models with fewer miners. Raises ConfigError for numbers out of range."""
    if min(miners) < 1 or max(miners) > 64 or min(sizes) < 4_000 or max(sizes) > 400_000_000:
        raise ConfigError("--miners are 1 to 64 and --sizes 0.004 to 400 (MB)")
    found = []
    for size in sorted(set(sizes)):
        most = max(miners) if size <= SMALL else 4 if size < LARGE else 2
        few = [count for count in sorted(set(miners)) if count <= most] or [min(miners)]
        found += [(size, count) for count in few]
    return found


async def measure(miners: Sequence[int], sizes: Sequence[int], rounds: int, rows: int, stock: bool) -> Json:
    """All figures. ``sizes``: of models, bytes. ``rows``: of each miner. Raises ConfigError, PoflError of the engine."""
    left_out: list[Json] = []
    plan = []
    free = psutil.virtual_memory().available
    for size, count in plan_of(miners, sizes):
        if count * (MINER_MEMORY + 10 * size) + 20 * size <= free:
            plan.append((size, count))
        else:
            left_out.append({"model_bytes": size, "miners": count, "why": f"only {free >> 20} MB of memory are free"})
    if not plan:
        raise ConfigError(
            f"nothing of it fits into the {free >> 20} MB of memory that are free: fewer --miners, smaller --sizes"
        )
    with tempfile.TemporaryDirectory(prefix="pofl-bench-") as name:
        folder = Path(name)
        files = await asyncio.to_thread(write_rows, folder, max(count for _, count in plan), rows)
        sized = [(model_of(size), count) for size, count in plan]
        measured, deadline = await embedded(folder, files, sized, rounds)
        stocks: list[Json] = []
        if stock:
            hidden, few = sized[0][0], [count for widths, count in sized if widths == sized[0][0] and count <= 4]
            stocks = [
                await stock_rounds(folder / f"stock{count}", files[:count], hidden, rounds) for count in few or [sized[0][1]]
            ]
    return {
        "round": {"seconds": _by_size(measured, "round", "seconds")},
        "overhead": {"ratio": _by_size(measured, "overhead", "ratio")},
        "deadline": deadline, "measured": measured, "stock": stocks, "left_out": left_out, "rows_per_miner": rows,
        "machine": machine(), "versions": {one: version(one) for one in ("flwr", "torch")},
    }  # fmt: skip


def _by_size(measured: Sequence[Json], *path: str) -> Json:
    """Size of the model -> number of miners -> the one figure."""
    found: Json = {}
    for one in measured:
        found.setdefault(str(one["model_bytes"]), {})[str(one["miners"])] = one[path[0]][path[1]]
    return found


def tables(result: Json) -> list[tuple[str, ...]]:
    """A row a measurement: model, miners, seconds and CPU seconds a round, times one process, MB sent, MB of a miner."""
    rows: list[tuple[str, ...]] = []
    for one in result["measured"]:
        sent, cpu = one["bytes"]["up"] + one["bytes"]["down"], sum(one["round"]["cpu_seconds"].values())
        rows.append((
            f"{one['model_bytes'] / 1e6:.1f}", str(one["miners"]), f"{one['round']['seconds']:.3f}", f"{cpu:.3f}",
            f"{one['overhead']['ratio']:.2f}", f"{sent / 1e6:.1f}", f"{one['peak_memory']['miner'] / 1e6:.0f}",
        ))  # fmt: skip
    return rows + [
        (
            f"{one['model_bytes'] / 1e6:.1f}", f"{one['miners']} stock", f"{one['round']['seconds']:.3f}", "",
            "", "", f"{one['peak_memory'].get('flwr-clientapp', 0) / 1e6:.0f}",
        ) for one in result["stock"]
    ]  # fmt: skip
