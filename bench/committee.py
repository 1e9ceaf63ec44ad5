"""Verifier committees by sortition: how large, for which share of dishonest nodes (docs/consensus.md, "Past one machine").

``python -m bench.committee [--json] [--nodes N] [--simulate TRIALS]`` prints the tables of that page. The tails are exact: sums
of hypergeometric terms in integers. ``--simulate`` adds a seeded Monte Carlo of the drawing itself (every node has a ticket,
the lowest ones are the committee) for the cases that it can see.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Final

import numpy as np

__all__ = [
    "RULES", "Rule", "Sample", "Smallest", "Tail", "failure", "least_dishonest", "log2", "main", "simulate", "smallest",
    "table_of_sizes", "table_of_tails",
]  # fmt: skip

NODES: Final = 10_000
SHARES: Final = (Fraction(10, 100), Fraction(15, 100), Fraction(20, 100), Fraction(25, 100), Fraction(30, 100))
SIZES: Final = (64, 128, 256, 512, 1024, 2048)
HEIGHTS_A_YEAR: Final = 525_600
"""One work height a minute."""
TARGET: Final = Fraction(1, 1_000_000)
"""Failures a year that a recommended size may have, in expectation."""
AUDIT_CPU: Final = (Fraction(3, 10), Fraction(6, 10))
"""Processor seconds that one audit costs the requester, low and high."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A committee of c fails when its dishonest members reach ``share`` of it."""

    name: str
    share: Fraction


RULES: Final = (Rule("1/3", Fraction(1, 3)), Rule("1/2", Fraction(1, 2)))
"""1/3: the thresholds of a work height as they are. 1/2: adopt and refute by a majority of the committee."""


@dataclass(frozen=True, slots=True)
class Tail:
    """Failure of one committee size, for every rule."""

    nodes: int
    dishonest: int
    size: int
    log2_failure: dict[str, float | None]
    """None where it cannot fail."""


@dataclass(frozen=True, slots=True)
class Smallest:
    """The least size that meets TARGET, what it leaves, and what it costs the requester a work height."""

    nodes: int
    dishonest: int
    rule: str
    size: int | None
    log2_failure: float | None
    a_year: float | None
    cpu_seconds: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Sample:
    """A Monte Carlo run beside the exact value."""

    nodes: int
    dishonest: int
    size: int
    rule: str
    trials: int
    failures: int
    exact: float


def least_dishonest(size: int, share: Fraction) -> int:
    """The least number of dishonest members with which a committee of ``size`` fails: ``ceil(size * share)``."""
    return math.ceil(size * share)


def failure(nodes: int, dishonest: int, size: int, share: Fraction) -> Fraction:
    """``P[X >= ceil(share * size)]`` for X hypergeometric: ``size`` drawn without replacement, ``dishonest`` of ``nodes``."""
    if not 0 <= dishonest <= nodes or not 1 <= size <= nodes:
        raise ValueError(f"a committee of {size} of {nodes} nodes, {dishonest} of them dishonest")
    first = max(least_dishonest(size, share), size - (nodes - dishonest))
    last = min(size, dishonest)
    if first > last:
        return Fraction(0)
    term = math.comb(dishonest, first) * math.comb(nodes - dishonest, size - first)
    total = term
    for x in range(first, last):
        # C(D, x+1) C(N-D, c-x-1) from C(D, x) C(N-D, c-x): a division without rest.
        term = term * (dishonest - x) * (size - x) // ((x + 1) * (nodes - dishonest - size + x + 1))
        total += term
    return Fraction(total, math.comb(nodes, size))


def log2(value: Fraction) -> float:
    """Base-2 logarithm, also of what no float can hold; minus infinity of zero."""
    if value == 0:
        return -math.inf
    shift = value.numerator.bit_length() - value.denominator.bit_length()
    scaled = Fraction(value.numerator, value.denominator << shift) if shift >= 0 else value * (1 << -shift)
    return math.log2(float(scaled)) + shift


def smallest(nodes: int, dishonest: int, rule: Rule, a_height: Fraction) -> int | None:
    """The least committee whose failure is at most ``a_height``; None if only all nodes would do.

    The failure is not monotone in the size (c = 3k fails with k, and so does c = 3k - 1), so the search runs over one residue
    class in which it is: sizes that are ``1 mod 1/share``, where one more than a multiple costs the adversary one more member.
    """
    step = rule.share.denominator
    low, high = 0, (nodes - 1) // step
    if failure(nodes, dishonest, high * step + 1, rule.share) > a_height:
        return None
    while low < high:
        middle = (low + high) // 2
        if failure(nodes, dishonest, middle * step + 1, rule.share) <= a_height:
            high = middle
        else:
            low = middle + 1
    return low * step + 1


def table_of_tails(nodes: int = NODES) -> list[Tail]:
    """Failure probability a height, for each share of dishonest nodes and each size."""
    return [
        Tail(nodes, bad, size, {rule.name: _exponent(failure(nodes, bad, size, rule.share)) for rule in RULES})
        for bad in (int(nodes * share) for share in SHARES)
        for size in SIZES
        if size <= nodes
    ]


def table_of_sizes(nodes: int = NODES) -> list[Smallest]:
    """The sizes to use."""
    found = []
    for bad in (int(nodes * share) for share in SHARES):
        for rule in RULES:
            size = smallest(nodes, bad, rule, TARGET / HEIGHTS_A_YEAR)
            if size is None:
                found.append(Smallest(nodes, bad, rule.name, None, None, None, None))
                continue
            chance = failure(nodes, bad, size, rule.share)
            cpu = (float(size * AUDIT_CPU[0]), float(size * AUDIT_CPU[1]))
            found.append(Smallest(nodes, bad, rule.name, size, _exponent(chance), float(chance * HEIGHTS_A_YEAR), cpu))
    return found


def simulate(nodes: int, dishonest: int, size: int, rule: Rule, trials: int, seed: int = 1) -> Sample:
    """Draws ``trials`` committees: uniform tickets, the ``size`` lowest are in; nodes below ``dishonest`` are dishonest."""
    random = np.random.default_rng(seed)
    least = least_dishonest(size, rule.share)
    failures = 0
    for _ in range(trials):
        chosen = np.argpartition(random.random(nodes), size - 1)[:size]
        failures += int(np.count_nonzero(chosen < dishonest) >= least)
    return Sample(nodes, dishonest, size, rule.name, trials, failures, float(failure(nodes, dishonest, size, rule.share)))


def _exponent(chance: Fraction) -> float | None:
    return None if chance == 0 else log2(chance)


def _power(exponent: float | None) -> str:
    return "0" if exponent is None else f"2^{exponent:.1f}"


def tails_markdown(tails: Iterable[Tail]) -> str:
    """A row for each share, a column for each size: failure under 1/3, then under 1/2."""
    rows = list(tails)
    sizes = sorted({t.size for t in rows})
    lines = ["| dishonest | rule | " + " | ".join(f"c = {size}" for size in sizes) + " |", "|---|---|" + "---|" * len(sizes)]
    for bad in sorted({t.dishonest for t in rows}):
        cells = {t.size: t.log2_failure for t in rows if t.dishonest == bad}
        share = f"{100 * bad / rows[0].nodes:g} %"
        for rule in RULES:
            values = " | ".join(_power(cells[size][rule.name]) for size in sizes)
            lines.append(f"| {share} | {rule.name} | {values} |")
    return "\n".join(lines)


def sizes_markdown(sizes: Iterable[Smallest]) -> str:
    lines = [
        "| dishonest | rule | committee | failure a height | failures a year | requester, CPU s a work height |",
        "|---|---|---|---|---|---|",
    ]
    for s in sizes:
        share = f"{100 * s.dishonest / s.nodes:g} %"
        if s.size is None or s.a_year is None or s.cpu_seconds is None:
            lines.append(f"| {share} | {s.rule} | all | - | - | - |")
        else:
            low, high = s.cpu_seconds
            lines.append(
                f"| {share} | {s.rule} | {s.size} | {_power(s.log2_failure)} | {s.a_year:.1e} | {low:.0f} to {high:.0f} |"
            )
    return "\n".join(lines)


def samples_markdown(samples: Iterable[Sample]) -> str:
    lines = ["| dishonest | rule | committee | trials | seen | exact |", "|---|---|---|---|---|---|"]
    for s in samples:
        share = f"{100 * s.dishonest / s.nodes:g} %"
        lines.append(f"| {share} | {s.rule} | {s.size} | {s.trials} | {s.failures / s.trials:.4f} | {s.exact:.4f} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.committee", description=__doc__)
    parser.add_argument("--json", action="store_true", help="the same numbers as JSON")
    parser.add_argument("--nodes", type=int, default=NODES, help="nodes to draw from (default %(default)s)")
    parser.add_argument("--simulate", type=int, default=0, metavar="TRIALS", help="add a Monte Carlo of that many draws a case")
    asked = parser.parse_args(arguments)
    if asked.nodes < 2:
        parser.error(f"--nodes is {asked.nodes}: at least 2 are needed")
    if asked.simulate < 0:
        parser.error(f"--simulate is {asked.simulate}: a number of draws, or 0 for none")
    tails, sizes = table_of_tails(asked.nodes), table_of_sizes(asked.nodes)
    samples = [
        simulate(asked.nodes, t.dishonest, t.size, rule, asked.simulate)
        for t in tails
        for rule in RULES
        if asked.simulate and (t.log2_failure[rule.name] or -math.inf) > -10
    ]
    if asked.json:
        rows = {
            "tails": [asdict(row) for row in tails],
            "sizes": [asdict(row) for row in sizes],
            "samples": [asdict(row) for row in samples],
        }
        print(json.dumps(rows, indent=2))
        return
    print(tails_markdown(tails), sizes_markdown(sizes), sep="\n\n")
    if samples:
        print("", samples_markdown(samples), sep="\n")


if __name__ == "__main__":
    main()
