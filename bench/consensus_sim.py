"""Many seeded runs of the consensus simulation (tests/consensus_scenarios.py), and one of them as a readable trace."""

from __future__ import annotations

import collections
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from core.chain.vote import Step
from tests.consensus_scenarios import cheap_signatures, draw, play

__all__ = ["replay", "simulate"]

SHARES = {4: 90, 7: 9, 16: 1}
"""How runs are split over the sizes of network: a run of sixteen costs as much as forty of four."""
CHUNK = 25


def sizes_of(runs: int, validators: Sequence[int]) -> dict[int, int]:
    """How many runs each size of network gets; every size at least one."""
    total = sum(SHARES.get(v, 1) for v in validators)
    found = {v: max(1, runs * SHARES.get(v, 1) // total) for v in validators}
    found[validators[0]] += max(0, runs - sum(found.values()))
    return found


def simulate(runs: int, validators: Sequence[int], seed: int, jobs: int = 1) -> dict[str, Any]:
    """Seeds ``seed`` and up, for each size of network. A failure's text ends with the command that shows it again."""
    began = time.process_time()
    chunks = [
        (size, first, min(CHUNK, seed + count - first))
        for size, count in sizes_of(runs, validators).items()
        for first in range(seed, seed + count, CHUNK)
    ]
    found: collections.Counter[str] = collections.Counter()
    failures: list[str] = []
    cpu = 0.0
    if jobs == 1:
        results = [_chunk(c) for c in chunks]
    else:
        with ProcessPoolExecutor(jobs) as pool:
            results = list(pool.map(_chunk, chunks))
    for counts, failed, spent in results:
        found.update(counts)
        failures += failed
        cpu += spent
    return {
        "runs": sum(found.values()) + len(failures), "seed": seed, "failures": failures, "cpu_seconds": round(cpu, 1),
        "own_cpu_seconds": round(time.process_time() - began, 1), "by_kind": dict(sorted(found.items())),
    }  # fmt: skip


def _chunk(what: tuple[int, int, int]) -> tuple[dict[str, int], list[str], float]:
    size, first, count = what
    began, found, failures = time.process_time(), collections.Counter[str](), list[str]()
    with cheap_signatures():
        for seed in range(first, first + count):
            try:
                found[str(play(seed, size)["label"])] += 1
            except AssertionError as error:
                failures.append(str(error))
    return dict(found), failures, time.process_time() - began


def replay(seed: int, validators: int) -> tuple[list[str], str | None]:
    """Everything that was sent and decided in one run, and the rule it broke, if any."""
    trace: list[str] = []
    run = draw(seed, validators, trace)
    sim = run.sim
    head = [f"seed {seed}: {run.label}; clocks differ by up to {2 * sim.skew_ms} ms; {sim.link}"]
    head.append(f"the network heals at {run.calm_ms - sim.start_ms} ms; votes are {' and '.join(s.name.lower() for s in Step)}")
    tricks = getattr(sim.adversary, "tricks", {})
    head += [f"liar {name}: {', '.join(sorted(done))}" for name, done in sorted(tricks.items())]
    head += [f"forgets its disk: {name}" for name in sorted(sim.forgetful)]
    for pool, supply in getattr(sim.blobs, "supplies", {}).items():
        head.append(f"claim of {pool.hex()[:8]}: {supply}")
    if sim.blobs is not None:
        head.append(f"the requester answers: {getattr(sim.blobs, 'answers', '')}")
    problem: str | None = None
    try:
        with cheap_signatures():
            run.play()
    except AssertionError as error:
        problem = str(error)
    return head + trace, problem
