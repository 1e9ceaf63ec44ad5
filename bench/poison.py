"""What hostile miners do to a pool's model: every attack against every aggregation, with real training on the digits.

The pool's own round loop, checks, sealing and aggregation, and the miners' own training, in one process: only Flower's
transport is left out. A hostile miner does what a seeded honest one does, and then sends something else. All is seeded, so a
run gives the same numbers again.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from numpy.typing import NDArray

from core.codec import decode, encode
from core.crypto.sealing import SealingKeyPair
from core.ports import SystemRng
from pool.flower import keys
from pool.flower.client_app import train_on
from pool.flower.jobs import ALGORITHMS, MiningJob
from pool.flower.manager import load_state, round_loop, stop_when
from pool.flower.rounds import Reply, RoundLog
from pool.flower.wire import Answer, Instruction, Update, context, open_update, seal_update, vector_from_bytes, vector_to_bytes
from pool.learning.datasets import Dataset
from services.data.partition import even

__all__ = ["ALGORITHMS", "ATTACKS", "GROUPS", "Cell", "measure", "play", "tables"]

GROUPS: Final = ((4, 1), (8, 2))
"""(miners, hostile ones among them)."""
FLOORS: Final = (0.0, 0.8)
SURVIVES: Final = 0.95
"""Of the practice accuracy without any attack."""
ROUNDS: Final = {"fedsgd": 20}
DEFAULT_ROUNDS: Final = 6
RUN_ID: Final = 7
LONG_S: Final = 3_600.0
"""Of a round, a task and a miner's training: what a slow machine does not finish in time would change the figures."""

Vector: TypeAlias = NDArray[np.float64]


@dataclass
class Miner:
    """One miner. ``first``: its first answer and update, for who sends them again."""

    private: Any
    public: bytes
    rows: Dataset
    attack: str = ""
    first: tuple[Answer, Update] | None = None


@dataclass(frozen=True)
class Turn:
    """What a hostile miner knows when it answers: all that honest ones send, which is more than a real one."""

    miner: Miner
    honest: Update
    vector: Vector
    others: Sequence[Vector]
    stolen: Answer
    seal: Callable[[Update], Answer]

    def send(self, vector: Vector, **changes: Any) -> Answer:
        return self.seal(replace(self.honest, vector=vector_to_bytes(vector), **changes))


def _again(turn: Turn) -> Answer:
    assert turn.miner.first is not None
    return turn.miner.first[0]


def _stale(turn: Turn) -> Answer:
    assert turn.miner.first is not None
    return turn.seal(turn.miner.first[1])


def _a_little(turn: Turn) -> Answer:
    """Baruch et al. 2019, "A little is enough": as far from the honest mean as many of the honest ones are."""
    stack = np.stack(turn.others)
    return turn.send(stack.mean(axis=0) - 1.5 * stack.std(axis=0))


ATTACKS: Final[Mapping[str, tuple[str, Callable[[Turn], Answer]]]] = {
    "nan": ("NaN in every weight", lambda t: t.send(np.full_like(t.vector, np.nan))),
    "shape": ("one weight too many", lambda t: t.send(np.append(t.vector, 0.0))),
    "giant": ("weights of 10^9", lambda t: t.send(np.full_like(t.vector, 1e9))),
    "sign": ("own step reversed", lambda t: t.send(-t.vector)),
    "times_9": ("reversed, times 9: within the norm bound", lambda t: t.send(-9.0 * t.vector)),
    "times_10": ("reversed, times 10: at the norm bound", lambda t: t.send(-10.0 * t.vector)),
    "times_100": ("reversed, times 100", lambda t: t.send(-100.0 * t.vector)),
    "labels": ("trained on labels 9 - y", lambda t: t.send(t.vector)),
    "replay": ("its first ciphertext again", _again),
    "stale": ("its first update, sealed anew", _stale),
    "stolen": ("another miner's ciphertext", lambda t: t.stolen),
    "count": ("own step reversed, claims 10^6 times its rows", lambda t: t.send(-t.vector, examples=10**6 * t.honest.examples)),
    "little": ("a little is enough: mean - 1.5 deviations", _a_little),
}  # fmt: skip


@dataclass
class LocalFleet:
    """rounds.Fleet without a network: everyone answers at once."""

    miners: Mapping[bytes, Miner]
    sealing: SealingKeyPair
    pending: dict[str, Reply] = field(default_factory=dict)

    def online(self) -> set[bytes]:
        return set(self.miners)

    def instruct(self, blob: bytes, miners: list[bytes], round_number: int, ttl_s: float) -> dict[str, bytes]:
        order = decode(Instruction, blob)
        ids = {public: f"{round_number}/{public.hex()[:16]}" for public in miners}
        honest = {public: train_on(order, lambda _, public=public: _rows(self.miners[public])) for public in miners}  # type: ignore[misc]
        vectors = {p: vector_from_bytes(u.vector, len(u.vector) // 4) for p, u in honest.items()}
        good = [p for p in miners if not self.miners[p].attack]
        answers = {p: self._seal(p, ids[p], round_number, honest[p]) for p in good}
        for public in miners:
            miner = self.miners[public]
            if not miner.attack:
                continue

            def seal(update: Update, public: bytes = public) -> Answer:
                return self._seal(public, ids[public], round_number, update)

            if miner.first is None:
                miner.first = seal(honest[public]), honest[public]
            turn = Turn(miner, honest[public], vectors[public], [vectors[p] for p in good], answers[good[0]], seal)
            answers[public] = ATTACKS[miner.attack][1](turn)
        self.pending = {ids[p]: Reply(ids[p], encode(answer), "") for p, answer in answers.items()}
        return {ids[p]: p for p in miners}

    def collect(self, instruction_ids: set[str], hold_s: float) -> list[Reply]:
        return [self.pending.pop(i) for i in sorted(instruction_ids & set(self.pending))]

    def open(self, answer: Answer, instruction_id: str, miner: bytes, round_number: int) -> Update:
        info = context(RUN_ID, instruction_id, miner, round_number)
        return open_update(answer, self.sealing.private_key, info, miner)

    def _seal(self, public: bytes, instruction_id: str, round_number: int, update: Update) -> Answer:
        info = context(RUN_ID, instruction_id, public, round_number)
        return seal_update(update, self.sealing.public_key, info, self.miners[public].private)


def _rows(miner: Miner) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    return miner.rows.x, 9 - miner.rows.y if miner.attack == "labels" else miner.rows.y


@dataclass(frozen=True)
class Cell:
    """One run: practice rows right by the best model, which the pool commits, and by the last one, of ``total``."""

    miners: int
    hostile: int
    attack: str
    algorithm: str
    floor: float
    best: int
    last: int
    total: int
    rounds: int
    counted: int
    """Rounds, and rounds in which a hostile one was counted."""
    refused: str
    """Why the hostile ones were not counted in the last round; empty where they were."""


def play(
    data: tuple[Dataset, Dataset], algorithm: str, miners: int, hostile: int, attack: str, floor: float, seed: int = 1
) -> Cell:
    """One task: ``hostile`` of ``miners`` attack in every round."""
    train, practice = data
    rows = even(train.y, miners, seed)
    made = []
    for index, part in enumerate(rows):
        # Known keys: the order of their miners, in which sums are made, is the same in every run.
        private = ec.derive_private_key(1 + index, ec.SECP256R1())
        # The first ones: each miner has rows of its own, and the same ones in every run.
        is_hostile = index < hostile and attack
        made.append(Miner(private, keys.public_bytes_of(private), train.take(part), attack if is_hostile else ""))
    job = MiningJob(
        bytes(32), train.x.shape[1], 10, Path("unused"), int(1000 * (time.time() + LONG_S)), hidden=(16,), algorithm=algorithm,
        quorum=miners // 2, learning_rate=1.0 if algorithm == "fedsgd" else 0.3, local_epochs=2, batch=32, seed=seed,
        max_rounds=ROUNDS.get(algorithm, DEFAULT_ROUNDS), practice_floor=floor, round_timeout_s=LONG_S,
    )  # fmt: skip
    known = {miner.public: len(miner.rows) * (10**9 if miner.attack == "count" else 1) for miner in made}
    state = load_state(job, Path("there is none"), known)
    fleet = LocalFleet({m.public: m for m in made}, SealingKeyPair.generate(SystemRng()))
    logs: list[RoundLog] = []
    # Rounds that do not count are repeated; one in which nothing fits would go on until the deadline.
    patience = 3 * (job.max_rounds or 0)
    loop = round_loop(job, practice, fleet, state, lambda: set(fleet.miners), time.monotonic() + LONG_S)

    def on_round(log: RoundLog) -> None:
        logs.append(log)
        if len(logs) >= patience:
            raise _EnoughError

    with contextlib.suppress(_EnoughError):
        loop.run(stop_when(job), on_round)
    best = state.best_score.correct if state.best_score is not None else 0
    why = {log.refused[m.public] for log in logs[-1:] for m in made if m.attack and m.public in log.refused}
    bad = {m.public for m in made if m.attack}
    counted = sum(1 for log in logs if bad & set(log.accepted))
    last = logs[-1].score.correct
    return Cell(
        miners, hostile, attack, algorithm, floor, best, last, len(practice), len(logs), counted, "; ".join(sorted(why))
    )


class _EnoughError(Exception):
    """No round counted for too long."""


def digits() -> tuple[Dataset, Dataset]:
    """(training rows, practice rows) of scikit-learn's 1,797 embedded digits, pixels scaled to 0..1."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(7).permutation(len(y))
    data = Dataset((x[order] / 16).astype(np.float32), y[order].astype(np.int64))
    rows = np.arange(len(y))
    return data.take(rows[:1200]), data.take(rows[1200:])


def measure(
    attacks: Sequence[str] = tuple(ATTACKS), algorithms: Sequence[str] = ALGORITHMS, floors: Sequence[float] = FLOORS,
    groups: Sequence[tuple[int, int]] = GROUPS, seed: int = 1, say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:  # fmt: skip
    """Every cell; JSON-ready. Takes some minutes of processor time."""
    # Flower tells of each aggregation.
    logging.getLogger("flwr").setLevel(logging.ERROR)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    started, data = time.process_time(), digits()
    cells: list[Cell] = []
    honest: dict[str, int] = {}
    try:
        for miners, hostile in groups:
            for algorithm in algorithms:
                say(f"{hostile} of {miners}, {algorithm}")
                plain = play(data, algorithm, miners, 0, "", 0.8, seed)
                honest[f"{algorithm}/{miners}"] = plain.best
                for attack in attacks:
                    cell = play(data, algorithm, miners, hostile, attack, floors[0], seed)
                    cells.append(cell)
                    for floor in floors[1:]:
                        # Who never counted does not come before the practice set.
                        again = cell.counted and not cell.floor
                        cells.append(
                            play(data, algorithm, miners, hostile, attack, floor, seed) if again else replace(cell, floor=floor)
                        )
    finally:
        torch.set_num_threads(threads)
    return {
        "seed": seed, "practice_rows": len(data[1]), "honest": honest,
        "cells": [
            {
                "miners": c.miners, "hostile": c.hostile, "attack": c.attack, "algorithm": c.algorithm, "floor": c.floor,
                "best": c.best, "last": c.last, "rounds": c.rounds, "counted": c.counted, "refused": c.refused,
                "survives": c.best >= math.floor(SURVIVES * honest[f"{c.algorithm}/{c.miners}"]),
            }
            for c in cells
        ],
        "cpu_seconds": round(time.process_time() - started, 1),
    }  # fmt: skip


def tables(result: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, columns, rows): practice accuracy in percent; (in brackets) where the model did not survive."""
    found = []
    rows_total = result["practice_rows"]
    cells = {(c["miners"], c["floor"], c["attack"], c["algorithm"]): c for c in result["cells"]}
    groups = list(dict.fromkeys((c["miners"], c["hostile"], c["floor"]) for c in result["cells"]))
    attacks = list(dict.fromkeys(c["attack"] for c in result["cells"]))
    algorithms = list(dict.fromkeys(c["algorithm"] for c in result["cells"]))
    for miners, hostile, floor in groups:
        title = f"{hostile} hostile of {miners}, " + (f"practice floor {floor}" if floor else "aggregation alone")
        rows = [["nobody hostile", *(f"{100 * result['honest'][f'{a}/{miners}'] / rows_total:.0f}" for a in algorithms)]]
        for attack in attacks:
            row = [ATTACKS[attack][0]]
            for algorithm in algorithms:
                cell = cells[miners, floor, attack, algorithm]
                shown = f"{100 * cell['best'] / rows_total:.0f}"
                row.append(shown if cell["survives"] else f"({shown})")
            rows.append(row)
        found.append((title, ["attack", *algorithms], rows))
    return found
