"""The manager process: one task, one Flower run, rounds until the deadline.

Settings come as the first JSON line on standard input (they hold the run's token and the HPKE private key, which so
never touch a disk or a command line); later lines replace the list of members; when the pipe closes it ends. Each
round is one JSON line on standard output. After each round the state is written to disk, so that a manager started
anew goes on from there, and the service has the best model even if this process is killed.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http

from core.codec import decode
from core.crypto.masking import Aggregation
from core.crypto.sealing import SealingKeyPair, Suite, suite_of
from core.errors import PoflError
from pool.flower.aggregation import aggregate
from pool.flower.grid import PoolGrid
from pool.flower.jobs import (
    MiningJob,
    RoundReport,
    answer_limit,
    job_from_json,
    load_weights,
    save_weights,
    score_from_json,
    score_to_json,
)
from pool.flower.pipe import read_settings, say
from pool.flower.rounds import Fleet, LoopState, Reply, RoundLog, RoundLoop, Rules, StopWhen
from pool.flower.secure import SecureFleet, SecureLoop
from pool.flower.wire import Answer, Instruction, Precision, Update, context, open_bytes
from pool.learning.datasets import Dataset, load_npz
from pool.learning.model_spec import initial_weights
from pool.learning.scoring import practice_score
from pool.learning.targets import TargetRows, Targets, load_targets

__all__ = [
    "load_practice",
    "load_state",
    "count_start",
    "main",
    "report_of",
    "round_loop",
    "save_state",
    "stop_when",
    "template_of",
]

STATE_MODELS = ("weights", "best")


class Roster:
    """Members of the pool for this task: node id <-> node public key. Replaced from the pipe's thread.

    ``registered``: node public key -> number of examples it may claim.
    """

    def __init__(self, members: Mapping[str, int], registered: Mapping[str, int]) -> None:
        self.registered: dict[bytes, int] = {}
        self.replace(members, registered)

    def replace(self, members: Mapping[str, int], registered: Mapping[str, int]) -> None:
        self.registered.update({bytes.fromhex(key): count for key, count in registered.items()})
        by_node = {node_id: bytes.fromhex(key) for key, node_id in members.items()}
        self._both = (by_node, {key: node_id for node_id, key in by_node.items()})

    @property
    def key_of(self) -> Mapping[int, bytes]:
        return self._both[0]

    @property
    def node_of(self) -> Mapping[bytes, int]:
        return self._both[1]


class FlowerFleet:
    """rounds.Fleet over Flower. Node ids stay inside: a dead node's error reply carries the SuperLink's own id."""

    def __init__(self, grid: PoolGrid, roster: Roster, key: SealingKeyPair) -> None:
        self._grid, self._roster, self._key = grid, roster, key

    def online(self) -> set[bytes]:
        known = self._roster.key_of
        return {known[node_id] for node_id in self._grid.online() if node_id in known}

    def instruct(self, blob: bytes, miners: list[bytes], round_number: int, ttl_s: float) -> dict[str, bytes]:
        nodes = self._roster.node_of
        wanted = {nodes[miner]: miner for miner in miners if miner in nodes}
        sent = self._grid.instruct(blob, list(wanted), round_number, ttl_s)
        return {instruction_id: wanted[node_id] for instruction_id, node_id in sent.items()}

    def collect(self, instruction_ids: set[str], hold_s: float) -> list[Reply]:
        return [Reply(c.instruction_id, c.blob, c.error) for c in self._grid.collect(instruction_ids, hold_s)]

    def open(self, answer: Answer, instruction_id: str, miner: bytes, round_number: int) -> Update:
        return decode(Update, self.open_bytes(answer, instruction_id, miner, round_number))

    @property
    def run_id(self) -> int:
        return self._grid.run_id

    def open_bytes(self, answer: Answer, instruction_id: str, miner: bytes, round_number: int) -> bytes:
        """What a miner sealed as its answer to this instruction. Raises CryptoError."""
        info = context(self._grid.run_id, instruction_id, miner, round_number)
        return open_bytes(answer, self._key.private_key, info, miner, self._key.suite)


def template_of(job: MiningJob) -> Instruction:
    optimizer = "gradient" if job.algorithm == "fedsgd" else job.optimizer
    targets = job.targets or Targets()
    return Instruction(
        job.job_id, 0, job.features, job.classes, job.hidden, job.activation, optimizer, job.local_epochs,
        job.learning_rate, job.batch, job.seed, 0.0, b"", job.kind, targets.shift, targets.scale,
        Precision[job.update.upper()],
    )  # fmt: skip


def rules_of(job: MiningJob) -> Rules:
    return Rules(
        template_of(job), job.round_timeout_s, job.quorum, weight_factor=job.weight_factor, practice_floor=job.practice_floor
    )


def load_practice(job: MiningJob) -> Dataset | TargetRows:
    """The job's practice rows. Raises NotFoundError, LimitError or MalformedError, naming the file."""
    if job.targets is not None:
        return load_targets(job.practice, features=job.features)
    return load_npz(job.practice, features=job.features, classes=job.classes)


def round_loop(
    job: MiningJob,
    practice: Dataset | TargetRows,
    fleet: Fleet,
    state: LoopState,
    members: Callable[[], set[bytes]],
    deadline: float,
) -> RoundLoop:
    """The loop of a job over any fleet. ``deadline``: on the clock of time.monotonic."""
    return RoundLoop(
        job.spec,
        rules_of(job),
        fleet,
        state,
        members=members,
        evaluate=lambda weights: practice_score(job.spec, weights, practice, job.targets),
        aggregate=lambda number, updates: aggregate(job.algorithm, number, updates),
        now=time.monotonic,
        pause=time.sleep,
        deadline=deadline,
        fallback=None if job.practice_floor == 0 or job.algorithm == "median" else partial(aggregate, "median"),
    )


def secure_loop(
    job: MiningJob,
    practice: Dataset | TargetRows,
    fleet: SecureFleet,
    state: LoopState,
    members: Callable[[], set[bytes]],
    deadline: float,
    suite: Suite,
) -> SecureLoop:
    """The same for a manager that shall see sums only."""
    return SecureLoop(
        job.spec,
        rules_of(job),
        fleet,
        state,
        suite,
        members=members,
        evaluate=lambda weights: practice_score(job.spec, weights, practice, job.targets),
        now=time.monotonic,
        pause=time.sleep,
        deadline=deadline,
    )


def stop_when(job: MiningJob) -> StopWhen:
    return StopWhen(job.target_correct, job.patience, job.max_rounds)


def load_state(job: MiningJob, path: Path, registered: dict[bytes, int]) -> LoopState:
    if not path.exists():
        first = initial_weights(job.spec, job.seed)
        return LoopState(0, first, first, registered=registered)
    models, meta = load_weights(path, job.spec, STATE_MODELS)
    return LoopState(
        meta["round"], models["weights"], models["best"], score_from_json(meta["best_score"]), meta["since_best"],
        meta["accepted_rounds"], registered,
    )  # fmt: skip


def save_state(path: Path, state: LoopState, report: RoundReport | None = None) -> None:
    """State and report in one file: after a kill the round is in the model and reported, or in neither."""
    meta = {
        "report": None if report is None else asdict(report),
        "round": state.round,
        "best_score": score_to_json(state.best_score),
        "since_best": state.since_best,
        "accepted_rounds": state.accepted_rounds,
    }
    save_weights(path, {"weights": state.weights, "best": state.best}, meta)


def count_start(path: Path) -> int:
    """How many managers began this job before; this one is on the disk when it returns. Raises OSError.

    The numbers of rounds move on by that: each of those may have begun the round after the last saved one.
    """
    with path.open("ab") as file:
        before = file.tell()
        file.write(b".")
        file.flush()
        os.fsync(file.fileno())
    return before


def report_of(log: RoundLog) -> RoundReport:
    return RoundReport(
        log.number, round(log.seconds, 4), log.participants,
        {miner.hex(): examples for miner, examples in log.accepted.items()},
        {miner.hex(): reason for miner, reason in log.refused.items()},
        log.score.correct, log.score.total, log.score.loss, log.bytes_up, log.bytes_down,
        {miner.hex(): examples for miner, examples in log.claimed.items()}, silent=sorted(m.hex() for m in log.silent),
        heard=sorted(m.hex() for m in log.heard),
    )  # fmt: skip


def _watch_pipe(roster: Roster) -> None:
    for line in sys.stdin:
        message = json.loads(line)
        roster.replace(message["members"], message["registered"])
    # The service is gone: nobody reads the results, and the state on disk is complete.
    os._exit(3)


def _mine(settings: Mapping[str, Any]) -> None:
    job = job_from_json(settings["job"])
    path = Path(settings["state"])
    roster = Roster(settings["members"], settings["registered"])
    practice = load_practice(job)
    state = load_state(job, path, roster.registered)
    # A round that a killed manager began is never counted again under its number: its miners keep what they sent in it.
    state.round += count_start(path.with_name("starts"))
    threading.Thread(target=_watch_pipe, args=(roster,), name="pipe", daemon=True).start()
    aggregation = Aggregation(settings["aggregation"])
    grid = PoolGrid(settings["address"], settings["token"], settings["run_id"], size_limit=answer_limit(job, aggregation))
    beat = HeartbeatSender(make_task_heartbeat_fn_http(grid._runtime_client))
    beat.start()
    left = job.deadline_ms / 1000 - time.time() - settings["margin_s"]
    key = SealingKeyPair.from_private(bytes.fromhex(settings["hpke_private_key"]), suite_of(settings["hpke_suite"]))
    fleet = FlowerFleet(grid, roster, key)
    deadline = time.monotonic() + left
    if aggregation is Aggregation.SECURE:
        loop: RoundLoop = secure_loop(job, practice, fleet, state, lambda: set(roster.node_of), deadline, key.suite)
    else:
        loop = round_loop(job, practice, fleet, state, lambda: set(roster.node_of), deadline)

    def on_round(log: RoundLog) -> None:
        report = report_of(log)
        save_state(path, state, report)
        say({"event": "round", "report": asdict(report)})

    loop.run(stop_when(job), on_round)
    grid.close()


def main() -> None:
    """Entry point of ``python -m pool.flower.manager``."""
    settings = read_settings()
    if settings is None:
        return
    try:
        _mine(settings)
    except PoflError as error:
        say({"event": "failed", "error": error.message})
        _leave(1)
    say({"event": "done"})
    _leave(0)


def _leave(status: int) -> None:
    # The heartbeat and pipe threads block in reads; everything worth keeping is on disk and flushed.
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
