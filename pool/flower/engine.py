"""Flower inside a pool, as the pool's service process sees it. Imports neither flwr nor torch.

    engine = MiningEngine(folder, "0.0.0.0:9092", "pool-1:9092", (cert, key, ca))
    await engine.start()
    ticket = await engine.register(node_public_key)     # goes back to the miner in the answer to its Join
    result = await engine.mine(job, members, on_round)  # one manager process; never later than job.deadline_ms
    await engine.stop()

Any one process may be killed: a miner, and rounds go on; the manager, and it is started anew from its last round; the
guard, and it is started anew on its ports with the same members, and one round is lost. A guard that lives and does not
answer is killed first. When this process dies, guard and manager see their pipes close and end.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from core.crypto.masking import Aggregation
from core.crypto.sealing import SealingKeyPair, Suite
from core.errors import ConfigError, DeadlineError, MalformedError, PoflError, StorageError, UnavailableError
from core.ports import SystemRng
from pool.flower.children import Child, flower_environment
from pool.flower.health import end_if_silent
from pool.flower.jobs import (
    JoinTicket,
    MiningJob,
    MiningResult,
    RoundReport,
    answer_limit,
    job_to_json,
    load_weights,
    score_from_json,
)
from pool.flower.keys import node_public_pem

__all__ = ["JoinTicket", "MiningEngine", "MiningJob", "MiningResult", "RoundReport"]

START_DEADLINE_S = 150.0
REQUEST_DEADLINE_S = 15.0
STOP_GRACE_S = 5.0
MARGIN_S = 0.3
"""A manager stops this long before the deadline; the service has the rest to read the result."""
PARAMETERS_A_SECOND = 30e6
"""How fast a model is read back: large ones need a longer margin."""
KEPT_RUNS = 8
"""Folders of runs that stay on disk: one may be resumed, the others tell what happened."""
MAX_STARTS = 5
"""Managers started for one task before it is given up."""

_log = logging.getLogger(__name__)


class MiningEngine:
    """``tls``: paths of the fleet listener's certificate, its key, and the CA that miners shall trust (PEM).

    ``suite``: how updates are sealed. ``aggregation``: whether a manager sees each of them.
    """

    def __init__(
        self,
        folder: Path,
        fleet_listen: str,
        fleet_advertise: str,
        tls: tuple[Path, Path, Path],
        python: str = sys.executable,
        suite: Suite = Suite.X25519,
        aggregation: Aggregation = Aggregation.PLAIN,
    ) -> None:
        self._folder = folder
        self._host, self._port = _address(fleet_listen, "fleet_listen")
        self._advertise_host, self._advertise_port = _address(fleet_advertise, "fleet_advertise")
        if self._advertise_host in ("0.0.0.0", "::"):  # noqa: S104  # refused, not bound
            raise ConfigError(f"fleet_advertise = {fleet_advertise}: miners cannot dial a wildcard address")
        self._cert, self._key, self._ca = tls
        self._python = python
        self._sealing = SealingKeyPair.generate(SystemRng(), suite)
        self._aggregation = aggregation
        self._loopback_port = 0
        self._guard: Child | None = None
        self._watch: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._stopping = False
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._nodes: dict[bytes, int] = {}
        self._managers: set[Child] = set()
        self._spare: Child | None = None
        self._background: set[asyncio.Task[None]] = set()

    @property
    def hpke_public_key(self) -> bytes:
        """What updates are sealed to. New with every engine; the Join answer signs it."""
        return self._sealing.public_key

    @property
    def superlink_address(self) -> str:
        host = f"[{self._advertise_host}]" if ":" in self._advertise_host else self._advertise_host
        return f"{host}:{self._advertise_port or self._port}"

    async def start(self) -> None:
        """Start the guard and wait until it listens. Raises UnavailableError or DeadlineError."""
        for path in (self._cert, self._key, self._ca):
            if not path.is_file():
                raise ConfigError(f"{path}: no such file; the fleet listener needs certificate, key and CA")
        shutil.rmtree(self._folder / "guard", ignore_errors=True)
        (self._folder / "guard").mkdir(parents=True)
        (self._folder / "runs").mkdir(exist_ok=True)
        self._stopping = False
        await self._start_guard()
        await self._make_spare()
        self._watch = asyncio.create_task(self._keep_guard(), name="flower-guard")

    async def register(self, node_public_key: bytes) -> JoinTicket:
        """Admit a miner's fresh node key (33 bytes, compressed P-256). Idempotent.

        Raises MalformedError for a bad key, UnavailableError for one that was deregistered or when the guard is down.
        """
        node_public_pem(node_public_key)
        answer = await self._ask("register", key=node_public_key.hex())
        self._nodes[node_public_key] = answer["node_id"]
        return JoinTicket(
            self.superlink_address, self._ca.read_bytes(), self._sealing.public_key, node_public_key,
            self._sealing.suite, self._aggregation,
        )  # fmt: skip

    async def unregister(self, node_public_key: bytes) -> None:
        """End a miner's membership; Flower never accepts this key again. Idempotent."""
        self._nodes.pop(node_public_key, None)
        await self._ask("unregister", key=node_public_key.hex())

    async def connected(self) -> frozenset[bytes]:
        """Node keys whose Flower client is there now. Raises UnavailableError when the guard is down."""
        online = set((await self._ask("online"))["nodes"])
        return frozenset(key for key, node_id in self._nodes.items() if node_id in online)

    async def mine(self, job: MiningJob, miners: Collection[bytes], on_round: Callable[[RoundReport], None]) -> MiningResult:
        """Train until the deadline or a reason of the job to stop, and return the best model.

        Goes on from the last round of a run of the same job that a killed process left behind; the report of that round, which
        may not have been read, comes again and says so. ``contributions`` are of the rounds reported here.

        ``miners``: registered node keys; may be changed by the caller while this runs, and is read again each round.
        A mapping gives each miner's registered number of examples, which bounds what it may claim; otherwise its first
        answer does. ``on_round`` is called on the event loop, once a round.

        Raises DeadlineError when no round was accepted in time, or managers keep failing before one was.
        """
        if not job.practice.is_file():
            raise ConfigError(f"{job.practice}: no such file; the practice set must exist before mining")
        folder = await asyncio.to_thread(_run_folder, self._folder / "runs", job)
        margin = margin_s(job)
        reports: list[RoundReport] = []
        note = "the deadline had passed"
        _catch_up(job, folder / "state.npz", reports, on_round, again=True)
        try:
            async with asyncio.timeout(max(0.0, job.deadline_ms / 1000 - time.time() - margin / 3)):
                for _ in range(MAX_STARTS):
                    try:
                        note = await self._manage(job, miners, folder, reports, on_round)
                    except UnavailableError as error:
                        # A guard that is down for longer than a request costs a start, not the rounds that are on the disk.
                        note = error.message
                    if not note:
                        break
                    _catch_up(job, folder / "state.npz", reports, on_round)
                    _log.warning("task %s: the manager ended (%s); starting another", job.job_id.hex()[:8], note)
        except TimeoutError:
            note = note or "the deadline came"
            _catch_up(job, folder / "state.npz", reports, on_round)
        result = _result(job, folder / "state.npz", reports)
        if result is None:
            raise DeadlineError(
                f"task {job.job_id.hex()[:8]}: no round was accepted ({len(reports)} tried, {len(miners)} miners, "
                f"quorum {job.quorum}; {note or _why(reports)})",
                rounds=len(reports),
            )
        return result

    async def stop(self) -> None:
        """End the guard and all managers. No process is left."""
        self._stopping = True
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        guard, self._guard = self._guard, None
        self._fail_requests("the engine stops")
        # Whoever waits for a guard learns that there is none.
        self._ready.set()
        # Not cancelled: one of them may be starting a process, which must be known to be ended.
        await asyncio.gather(*self._background, return_exceptions=True)
        self._ready.clear()
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.kill()
        children = [*self._managers, *(child for child in (guard, spare) if child is not None)]
        await asyncio.gather(*(child.stop(STOP_GRACE_S) for child in children))

    async def _manage(
        self,
        job: MiningJob,
        miners: Collection[bytes],
        folder: Path,
        reports: list[RoundReport],
        on_round: Callable[[RoundReport], None],
    ) -> str:
        """Run one manager to its end. Empty when it finished the job, else why not."""
        # However long a guard takes to come back: that is no start of a manager, of which a task has a few.
        await self._ready.wait()
        run = await self._ask("start_run", size_limit=answer_limit(job, self._aggregation))
        manager: Child | None = None
        try:
            members, registered = self._members(miners), _registered(miners)
            manager = await self._take_manager()
            manager.send(
                {
                    "job": job_to_json(job),
                    "state": str(folder / "state.npz"),
                    "members": members,
                    "registered": registered,
                    "address": f"127.0.0.1:{self._loopback_port}",
                    "run_id": run["run_id"],
                    "token": run["token"],
                    "margin_s": margin_s(job),
                    "hpke_private_key": self._sealing.private_key.hex(),
                    "hpke_suite": self._sealing.suite,
                    "aggregation": self._aggregation,
                }
            )
            self._managers.add(manager)
            return await self._follow(manager, (members, registered), miners, reports, on_round)
        finally:
            if manager is not None:
                # The job is over or failed: what the manager has is on disk already.
                manager.kill()
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    # At the deadline the result is due, and a killed process takes its time to be gone.
                    self._later(self._bury(manager))
                else:
                    await self._bury(manager)
            # Not awaited: the result is due now, and a guard that is down has nothing to clean up.
            self._later(self._ask("stop_run", run_id=run["run_id"]))
            self._later(self._make_spare())

    async def _bury(self, manager: Child) -> None:
        await manager.stop(STOP_GRACE_S)
        self._managers.discard(manager)

    async def _take_manager(self) -> Child:
        """The spare manager, or a new one. Its imports take seconds that a task's deadline need not pay for."""
        spare, self._spare = self._spare, None
        if spare is not None:
            if spare.is_running:
                return spare
            await spare.stop(STOP_GRACE_S)
        environment = flower_environment(self._folder / "home")
        return await Child.start(self._python, "pool.flower.manager", environment, self._folder / "manager.log")

    async def _make_spare(self) -> None:
        if self._spare is None and not self._stopping:
            self._spare = await self._take_manager()

    async def _follow(
        self,
        manager: Child,
        told: tuple[dict[str, int], dict[str, int]],
        miners: Collection[bytes],
        reports: list[RoundReport],
        on_round: Callable[[RoundReport], None],
    ) -> str:
        reading: asyncio.Task[dict[str, Any] | None] | None = None
        try:
            while True:
                reading = reading or asyncio.create_task(manager.read())
                done, _ = await asyncio.wait({reading}, timeout=0.5)
                current = self._members(miners), _registered(miners)
                if current != told:
                    told = current
                    manager.send({"members": told[0], "registered": told[1]})
                if not done:
                    continue
                event, reading = reading.result(), None
                if event is None:
                    await manager.wait()
                    return manager.end_note()
                if event.get("event") == "round":
                    report = RoundReport(**event["report"])
                    reports.append(report)
                    on_round(report)
                elif event.get("event") == "done":
                    return ""
                else:
                    return str(event.get("error", event))
        except (MalformedError, TypeError, KeyError) as error:
            return f"bad progress line: {error}"
        finally:
            if reading is not None:
                reading.cancel()
                with contextlib.suppress(asyncio.CancelledError, MalformedError):
                    await reading

    def _later(self, request: Coroutine[Any, Any, object]) -> None:
        async def run() -> None:
            with contextlib.suppress(PoflError):
                await request

        task = asyncio.create_task(run())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _members(self, miners: Collection[bytes]) -> dict[str, int]:
        return {key.hex(): self._nodes[key] for key in list(miners) if key in self._nodes}

    async def _ask(self, operation: str, **values: object) -> dict[str, Any]:
        """One request to the guard. Waits for a guard that is being started anew."""
        try:
            async with asyncio.timeout(REQUEST_DEADLINE_S):
                await self._ready.wait()
                guard = self._guard
                if guard is None:
                    raise UnavailableError("the engine is not started")
                number = next(self._numbers)
                future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
                self._answers[number] = future
                try:
                    guard.send({"id": number, "op": operation, **values})
                    answer = await future
                finally:
                    self._answers.pop(number, None)
        except TimeoutError:
            raise UnavailableError(f"the guard did not answer {operation!r} in {REQUEST_DEADLINE_S:g} s") from None
        if "error" in answer:
            raise UnavailableError(f"the guard refused {operation!r}: {answer['error']}")
        return answer

    async def _start_guard(self) -> None:
        folder = self._folder / "guard"
        settings = {
            "fleet_host": self._host, "fleet_port": self._port, "loopback_port": self._loopback_port,
            "cert": str(self._cert), "key": str(self._key), "members": [key.hex() for key in self._nodes],
        }  # fmt: skip
        environment = flower_environment(self._folder / "home")
        guard = await Child.start(self._python, "pool.flower.guard", environment, folder / "guard.log")
        guard.send(settings)
        try:
            async with asyncio.timeout(START_DEADLINE_S):
                first = await guard.read()
        except MalformedError as error:
            guard.kill()
            await guard.stop(STOP_GRACE_S)
            raise UnavailableError(f"the guard did not start: {error.message}") from None
        except TimeoutError:
            guard.kill()
            await guard.stop(STOP_GRACE_S)
            raise DeadlineError(f"the guard did not listen within {START_DEADLINE_S:g} s") from None
        except asyncio.CancelledError:
            guard.kill()
            await guard.stop(STOP_GRACE_S)
            raise
        if first is None or not first.get("ready"):
            await guard.stop(STOP_GRACE_S)
            reason = first.get("error") if first else guard.end_note()
            raise UnavailableError(f"the guard did not start: {reason}")
        # The same ports again after a restart: miners and a running manager find it where it was.
        self._port, self._loopback_port = first["fleet_port"], first["loopback_port"]
        self._nodes = {bytes.fromhex(key): node_id for key, node_id in first["members"].items()}
        self._guard = guard
        self._ready.set()

    async def _keep_guard(self) -> None:
        delay = 0.2
        while not self._stopping:
            guard = self._guard
            if guard is not None:
                health = asyncio.create_task(end_if_silent(guard, partial(self._ping, guard)), name="flower-guard-health")
                try:
                    while (answer := await guard.read()) is not None:
                        future = self._answers.get(answer.get("id", 0))
                        if future is not None and not future.done():
                            future.set_result(answer)
                except MalformedError as error:
                    _log.error("the guard speaks nonsense: %s", error)
                finally:
                    health.cancel()
                self._ready.clear()
                self._guard = None
                guard.kill()
                await guard.stop(STOP_GRACE_S)
                self._fail_requests("the guard ended")
                _log.warning("the guard ended: %s; starting it anew", guard.end_note())
            try:
                await self._start_guard()
                delay = 0.2
            except (UnavailableError, DeadlineError) as error:
                _log.error("%s; next try in %.1f s", error, delay)
                await asyncio.sleep(delay)
                delay = min(2 * delay, 10.0)

    async def _ping(self, guard: Child) -> None:
        """Ends when its listeners have had a turn."""
        number, alive = next(self._numbers), asyncio.get_running_loop().create_future()
        self._answers[number] = alive
        try:
            guard.send({"id": number, "op": "ping"})
            await alive
        finally:
            self._answers.pop(number, None)

    def _fail_requests(self, reason: str) -> None:
        for future in self._answers.values():
            if not future.done():
                future.set_result({"error": reason})


def margin_s(job: MiningJob) -> float:
    """Seconds before the deadline at which the manager stops, so that the result is read in time."""
    return MARGIN_S + job.spec.parameters / PARAMETERS_A_SECOND


def _run_folder(runs: Path, job: MiningJob) -> Path:
    """The job's own folder. What a killed pool left there is gone on with, if it is of the same job; of all others only the
    newest stay. Raises StorageError."""
    folder, settings = runs / job.job_id.hex(), json.dumps({**job_to_json(job), "deadline_ms": 0})
    try:
        known = (folder / "job.json").read_text()
    except (OSError, ValueError):
        known = ""
    try:
        if known != settings:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            (folder / "job.json").write_text(settings)
        os.utime(folder)
        others = sorted((p for p in runs.iterdir() if p != folder), key=lambda p: p.stat().st_mtime)
    except OSError as error:
        raise StorageError(f"cannot use {folder}: {error.strerror or error}") from error
    for old in others[: max(0, len(others) - KEPT_RUNS + 1)]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _catch_up(
    job: MiningJob, path: Path, reports: list[RoundReport], on_round: Callable[[RoundReport], None], again: bool = False
) -> None:
    """Deliver the report that was saved with the state, if a kill came before it was read: what counts in the model is paid."""
    if not path.exists():
        return
    _, meta = load_weights(path, job.spec, ())
    saved = meta.get("report")
    if saved is None or any(known.number == saved["number"] for known in reports):
        return
    report = RoundReport(**saved | {"again": again})
    reports.append(report)
    on_round(report)


def _address(value: str, name: str) -> tuple[str, int]:
    host, _, port = value.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{name} = {value!r}, expected host:port")
    return host.strip("[]"), int(port)


def _registered(miners: Collection[bytes]) -> dict[str, int]:
    return {key.hex(): int(count) for key, count in miners.items()} if isinstance(miners, Mapping) else {}


def _why(reports: list[RoundReport]) -> str:
    reasons = {reason for report in reports for reason in report.refused.values()}
    return f"refused: {'; '.join(sorted(reasons)[:5])}" if reasons else "no miner was online"


def _result(job: MiningJob, path: Path, reports: list[RoundReport]) -> MiningResult | None:
    if not path.exists():
        return None
    models, meta = load_weights(path, job.spec, ("best",))
    best = score_from_json(meta["best_score"])
    if best is None:
        return None
    contributions: dict[str, int] = {}
    for report in reports:
        for miner, examples in report.accepted.items():
            contributions[miner] = contributions.get(miner, 0) + examples
    return MiningResult(models["best"], meta["accepted_rounds"], contributions, best.correct, best.total, tuple(reports))
