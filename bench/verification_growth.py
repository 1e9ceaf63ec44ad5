"""How the cost of verification grows with the number of samples I, from measurements of several sizes.

The paper says linear for homomorphic encryption and ``I * ceil(log2 I)`` for garbling (section V-C).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final

from bench.verification_machine import Json

__all__ = ["QUANTITIES", "growth", "paper_gates"]


def _evaluation(result: Json, party: str) -> float:
    return float(sum(result["evaluation"][step][party] for step in ("offline", "online")))


QUANTITIES: Final[dict[str, Callable[[Json], float]]] = {
    "audit.seconds": lambda r: r["audit"]["seconds"],
    "audit.cpu_seconds of node and requester": lambda r: r["audit"]["cpu_seconds"] + r["audit"]["requester_cpu_seconds"],
    "audit.bytes": lambda r: sum(r["audit"]["bytes"].values()),
    "evaluation.online_seconds": lambda r: r["evaluation"]["online_seconds"],
    "evaluation.offline_seconds": lambda r: r["evaluation"]["offline_seconds"],
    "evaluation, pool, cpu_seconds": lambda r: _evaluation(r, "cpu_seconds"),
    "evaluation, requester, cpu_seconds": lambda r: _evaluation(r, "requester_cpu_seconds"),
    "evaluation.he_bytes": lambda r: sum(r["evaluation"]["he_bytes"].values()),
    "encrypt.seconds": lambda r: r["encrypt"]["seconds"],
    "encrypt.bytes": lambda r: r["encrypt"]["bytes"],
    "garbling.seconds": lambda r: r["garbling"]["seconds"],
    "garbling.and_gates": lambda r: r["garbling"]["and_gates"],
    "garbling.bytes": lambda r: sum(r["garbling"]["bytes"].values()),
    "ot.seconds": lambda r: r["ot"]["seconds"],
    "ot.bytes": lambda r: sum(r["ot"]["bytes"].values()),
    "tenseal_ckks_mm.seconds": lambda r: r["tenseal_ckks_mm"]["seconds"],
    "plaintext.seconds": lambda r: r["plaintext"]["seconds"],
}
"""Name, and where it is in a result."""


def paper_gates(samples: int) -> float:
    """Table I of the paper: ``I + I * ceil(log2 I) / 2``."""
    return samples + samples * (samples - 1).bit_length() / 2


def growth(results: Sequence[Json]) -> Json:
    """Of each quantity: the exponent between neighbouring sizes, its increase per sample, and the exponent over all sizes.

    1 is linear; less than 1 means that a fixed part counts for more. ``paper``: the same for the paper's number of gates.
    """
    ordered = sorted(results, key=lambda result: int(result["samples"]))
    sizes = [int(result["samples"]) for result in ordered]
    found = {name: _grown(sizes, [value(result) for result in ordered]) for name, value in QUANTITIES.items()}
    return {
        "sizes": sizes, "quantities": found, "paper": _grown(sizes, [paper_gates(size) for size in sizes]),
        "note": "exponents: log(value ratio) / log(size ratio); a value that grows with I * ceil(log2 I) has those of `paper`. "
        "Ciphertexts hold 8,192 samples each, so their cost grows in steps of a batch",
    }  # fmt: skip


def _grown(sizes: Sequence[int], values: Sequence[float]) -> Json:
    pairs = list(pairwise(zip(sizes, values, strict=True)))
    return {
        "values": list(values),
        "exponents": [_exponent(sizes=(a, b), values=(x, y)) for (a, x), (b, y) in pairs],
        "per_sample": [(y - x) / (b - a) for (a, x), (b, y) in pairs],
        "exponent": _exponent(sizes, values),
    }  # fmt: skip


def _exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """Slope of the least-squares line through (log size, log value)."""
    points = [(math.log(size), math.log(max(value, 1e-12))) for size, value in zip(sizes, values, strict=True)]
    middle, level = (sum(axis) / len(points) for axis in zip(*points, strict=True))
    return float(sum((x - middle) * (y - level) for x, y in points) / sum((x - middle) ** 2 for x, _ in points))
