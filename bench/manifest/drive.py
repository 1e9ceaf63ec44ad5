"""Runs a manifest: starts its network, publishes tasks, perturbs, waits until all nodes agree, fetches, judges."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, TypeVar

import numpy as np
from grpc import aio
from pofl.chain.v1 import chain_pb2 as pb
from pofl.chain.v1 import chain_pb2_grpc as rpc
from pofl.mining.v1 import mining_pb2, mining_pb2_grpc
from pofl.task.v1 import task_pb2, task_pb2_grpc

from bench.manifest.backend import Backend
from bench.manifest.facts import PHASES as PHASE_NAMES
from bench.manifest.facts import Facts, Model, Sample, fetch
from bench.manifest.invariants import judge
from bench.manifest.liars import liars_caught
from bench.manifest.model import PHASES, At, Liar, Lie, Manifest, Perturbation
from core.errors import DeadlineError, PoflError
from core.verification.model_file import load_model
from core.verification.quantise import quantise_features

__all__ = ["Outcome", "run_manifest"]

T = TypeVar("T")
POLL: Final = 0.3
CALL_SECONDS: Final = 5.0
READY_SECONDS: Final = 240.0
"""Until all nodes answer and every pool has a member: a start of torch takes long on a busy machine."""
AGREE_SECONDS: Final = 180.0
"""Until all nodes have gone on together after the last perturbation."""
PUBLISH_SECONDS: Final = 60.0
ENDED: Final = ("won", "void")


@dataclass
class Outcome:
    """What a run did. It is good if ``problems`` is empty."""

    manifest: str
    seed: int
    folder: str
    problems: list[str] = field(default_factory=list)
    timeline: list[str] = field(default_factory=list)
    height: int = 0
    work_blocks: int = 0
    void_tasks: int = 0
    ready_seconds: float = 0.0
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Seen:
    """The newest that any node has told."""

    height: int = 0
    tasks: list[tuple[bytes, str]] = field(default_factory=list)
    """In order of publication, with their phases."""
    samples: dict[tuple[str, int], Sample] = field(default_factory=dict)
    full_claims: set[bytes] = field(default_factory=set)
    """Pools that claimed in a task that has ended that they have every row right."""

    @property
    def won(self) -> int:
        return sum(phase == "won" for _, phase in self.tasks)

    @property
    def ended(self) -> int:
        return sum(phase in ENDED for _, phase in self.tasks)

    def look(self, height: int, listed: Sequence[pb.TaskView]) -> None:
        self.height = height
        self.tasks = [(t.task_id, PHASE_NAMES[t.phase]) for t in listed]
        for task in listed:
            if PHASE_NAMES[task.phase] in ENDED:
                full = {e.pool for e in task.entries if e.HasField("correct") and e.correct == task.spec.samples}
                self.full_claims |= full


async def run_manifest(manifest: Manifest, backend: Backend, say: Callable[[str], None]) -> Outcome:
    """The whole, to the end of the network. What goes wrong is a problem of the outcome, never an exception; only
    cancelling it raises."""
    run = _Run(manifest, backend, say)
    try:
        await run.all()
    except (PoflError, aio.AioRpcError, OSError, TimeoutError) as error:
        run.problem(_told(error))
    finally:
        await run.close()
    run.outcome.seconds = round(time.monotonic() - run.began, 1)
    return run.outcome


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error.details() if isinstance(error, aio.AioRpcError) else error}"


def _leaves(group: ExceptionGroup[Exception]) -> Iterator[Exception]:
    for error in group.exceptions:
        if isinstance(error, ExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


class _Run:
    def __init__(self, manifest: Manifest, backend: Backend, say: Callable[[str], None]) -> None:
        self.manifest, self.backend, self._say = manifest, backend, say
        self.outcome = Outcome(manifest.name, manifest.seed, str(backend.folder))
        self.began = time.monotonic()
        self._zero: float | None = None
        self._seen = _Seen()
        self._channels: dict[str, aio.Channel] = {}
        self._busy: dict[str, asyncio.Lock] = {}
        self._lied_at: dict[str, int] = {}
        """How many tasks had ended when it was seen that a liar had lied."""
        self._helpers: list[asyncio.Task[None]] = []

    def say(self, what: str) -> None:
        at = "start" if self._zero is None else f"{time.monotonic() - self._zero:7.1f} s"
        line = f"{at:>9}  height {self._seen.height:>3}  {what}"
        self.outcome.timeline.append(line)
        self._say(line)

    def problem(self, what: str) -> None:
        self.outcome.problems.append(what)
        self.say(f"PROBLEM: {what}")

    async def close(self) -> None:
        for helper in self._helpers:
            helper.cancel()
        await asyncio.gather(*self._helpers, return_exceptions=True)
        for channel in self._channels.values():
            await channel.close(None)
        await self.backend.close()

    # The whole

    async def all(self) -> None:
        await self.backend.start()
        for name, role in self.manifest.processes:
            if role in ("node", "pool", "requester"):
                self._channels[name] = self.backend.channel(name)
        await self._until(self._is_ready, READY_SECONDS, "every node answers and every pool has a member")
        self._zero = time.monotonic()
        self.outcome.ready_seconds = round(self._zero - self.began, 1)
        self.say("ready")
        self._helpers.append(asyncio.create_task(self._watch()))
        goal = asyncio.create_task(self._goal())
        publishing = asyncio.create_task(self._publish()) if self.backend.publishes else None
        try:
            async with asyncio.timeout(self.manifest.seconds):
                waits: set[asyncio.Task[None]] = {goal} if publishing is None else {goal, publishing}
                while not goal.done():
                    await asyncio.wait(waits, timeout=POLL, return_when=asyncio.FIRST_COMPLETED)
                    self.backend.check()
                    if publishing is not None and publishing.done():
                        publishing.result()
                await goal
        except TimeoutError:
            honest = "" if self._all_have_lied() else ", and not every liar has lied"
            blocks = f"{self._seen.won} of {self.manifest.blocks} work blocks"
            self.problem(f"after {self.manifest.seconds:g} s there are {blocks}{honest}")
        finally:
            for task in (goal, publishing):
                if task is not None:
                    task.cancel()
            await asyncio.gather(*(t for t in (goal, publishing) if t is not None), return_exceptions=True)
        await self._judge()

    async def _goal(self) -> None:
        """Until the work blocks are there, every liar has lied, and all that is done to the network is over. What cannot be
        done or undone is a problem and ends the others; what is there then is judged."""
        try:
            async with asyncio.TaskGroup() as group:
                for number, what in enumerate(self.manifest.perturbations, start=1):
                    group.create_task(self._perturb(number, what))
                if self.manifest.blocks:
                    # Both are asked each time: when a lie is first seen matters.
                    await self._when(lambda: self._all_have_lied() & (self._seen.won >= self.manifest.blocks))
                else:
                    await asyncio.sleep(self.manifest.seconds - 1.0)
        except ExceptionGroup as failed:
            for error in _leaves(failed):
                self.problem(f"perturbation failed: {_told(error)}")

    async def _perturb(self, number: int, what: Perturbation) -> None:
        await self._when(lambda: self._is_time(what.at))
        async with contextlib.AsyncExitStack() as stack:
            for name in sorted(what.who):
                await stack.enter_async_context(self._busy.setdefault(name, asyncio.Lock()))
            self.say(f"perturb {number}: {what} (due at {what.at})")
            heal = await self.backend.perturb(what)
            try:
                await asyncio.sleep(what.for_seconds)
            finally:
                # Also when time is up: what is judged is a whole network.
                await asyncio.shield(heal())
            self.say(f"perturb {number} is over")

    def _all_have_lied(self) -> bool:
        """And the tasks that they lied in have ended."""
        return all([self._has_lied(liar) for liar in self.manifest.liars])  # noqa: C419 - each of them is looked at

    def _has_lied(self, liar: Liar) -> bool:
        if liar.lie is Lie.COUNT:
            return self.backend.accounts[liar.who] in self._seen.full_claims
        if not self.backend.has_lied(liar):
            return False
        return self._seen.ended > self._lied_at.setdefault(liar.who, self._seen.ended)

    def _is_time(self, at: At) -> bool:
        assert self._zero is not None
        if at.seconds is not None:
            return time.monotonic() - self._zero >= at.seconds
        if at.height is not None:
            return self._seen.height >= at.height
        assert at.task is not None
        assert at.phase is not None
        if len(self._seen.tasks) < at.task:
            return False
        phase = self._seen.tasks[at.task - 1][1]
        # A phase that went by between two looks counts as come.
        return phase in ENDED or PHASES.index(phase) >= PHASES.index(at.phase)

    async def _judge(self) -> None:
        """Every node again with the others, then everything that is served."""
        self.say("waiting until all nodes have gone on together")
        last = self._seen.height
        await self._until(lambda: self._all_at(last + 1), AGREE_SECONDS, f"every node is at height {last + 1}")
        if any(liar.lie is Lie.LEAK for liar in self.manifest.liars):
            await self.backend.report_leaks()
        facts = await self._fetch()
        # Of the blocks that were found: one that came since then is judged by nobody.
        models = await self._models({b.task_id for b in facts.longest().blocks.values() if b.kind == "work"})
        accounts = self.backend.accounts
        lying = frozenset(accounts[liar.who] for liar in self.manifest.liars if liar.lie is Lie.COUNT)
        names = {account: name for name, account in accounts.items()}
        facts = replace(facts, models=models, samples=tuple(self._seen.samples.values()), names=names, lying_pools=lying)
        node = facts.longest()
        self.outcome.height = node.height
        self.outcome.work_blocks = sum(b.kind == "work" for b in node.blocks.values())
        self.outcome.void_tasks = sum(t.phase == "void" for t in node.tasks.values())
        for name, problems in (judge(facts) | {"liars are caught": liars_caught(self.manifest, accounts, facts)}).items():
            for problem in problems:
                self.problem(f"{name}: {problem}")
        self.say(f"judged: {len(facts.nodes)} nodes, {node.height} blocks, {self.outcome.work_blocks} of them work")

    async def _fetch(self) -> Facts:
        """The chain goes on while it is asked for: up to the last block that any of them had before the first was asked.
        The others have time to get it; who has not got it then is judged for it."""
        final = max(await self._eventually(self._heights))
        with contextlib.suppress(DeadlineError):
            await self._until(lambda: self._all_at(final), AGREE_SECONDS, f"every node is at height {final}")
        facts = await fetch({name: self._channels[name] for name in self._nodes})
        return replace(facts.up_to(final), final=final)

    # Questions

    @property
    def _nodes(self) -> list[str]:
        return [name for name, role in self.manifest.processes if role == "node"]

    def _chain(self, node: str) -> rpc.ChainServiceStub:
        return rpc.ChainServiceStub(self._channels[node])

    async def _tip(self, node: str) -> pb.GetTipResponse:
        return await self._chain(node).GetTip(pb.GetTipRequest(), timeout=CALL_SECONDS)

    async def _all_at(self, height: int) -> bool:
        return min(await self._heights()) >= height

    async def _heights(self) -> list[int]:
        return [tip.height for tip in await asyncio.gather(*(self._tip(node) for node in self._nodes))]

    async def _is_ready(self) -> bool:
        await asyncio.gather(*(self._tip(node) for node in self._nodes))
        for name, role in self.manifest.processes:
            if role == "pool":
                stub = mining_pb2_grpc.PoolServiceStub(self._channels[name])
                answer = await stub.ListMembers(mining_pb2.ListMembersRequest(), timeout=CALL_SECONDS)
                if not any(member.online for member in answer.members):
                    return False
            elif role == "requester":
                own = task_pb2_grpc.RequesterServiceStub(self._channels[name])
                await own.ListOwnTasks(task_pb2.ListOwnTasksRequest(), timeout=CALL_SECONDS)
        return True

    async def _watch(self) -> None:
        """Look at the chain, at one node after the other, so that a node that is gone does not blind us."""
        turn = 0
        said: dict[bytes, str] = {}
        while True:
            node = self._nodes[turn % len(self._nodes)]
            turn += 1
            with contextlib.suppress(aio.AioRpcError):
                tip = await self._chain(node).GetTip(pb.GetTipRequest(), timeout=1.0)
                self._seen.samples[node, tip.height] = Sample(node, tip.height, tip.supply, tip.burned)
                if tip.height >= self._seen.height:
                    listed = await self._chain(node).ListTasks(pb.ListTasksRequest(limit=1000), timeout=1.0)
                    self._seen.look(tip.height, listed.tasks)
                    for task_id, phase in self._seen.tasks:
                        if said.get(task_id) != phase:
                            said[task_id] = phase
                            self.say(f"task {len(said)} {task_id.hex()[:8]}: {phase}")
            await asyncio.sleep(POLL)

    # Tasks

    async def _publish(self) -> None:
        """One task after the other, for as long as the run goes on."""
        requester = next(name for name, role in self.manifest.processes if role == "requester")
        stub = task_pb2_grpc.RequesterServiceStub(self._channels[requester])
        test, practice, hidden = self.backend.task_files()
        number = 0
        while True:
            number += 1
            name = f"manifest-{number}"
            request = task_pb2.PublishTaskRequest(
                name=name, test_set=str(test), practice_set=str(practice), hidden=list(hidden),
                activation=pb.ACTIVATION_SIGMOID, reward=self.manifest.shape.reward,
            )  # fmt: skip
            task_id = await self._published(stub, request)
            await self._when(lambda task_id=task_id: dict(self._seen.tasks).get(task_id) in ENDED)  # type: ignore[misc]

    async def _published(self, stub: task_pb2_grpc.RequesterServiceStub, request: task_pb2.PublishTaskRequest) -> bytes:
        """Sent once; if it is not known what became of it, she is asked before it is sent again."""
        while True:
            try:
                return (await stub.PublishTask(request, timeout=PUBLISH_SECONDS)).task_id
            except aio.AioRpcError as error:
                self.say(f"publishing {request.name}: {error.code().name}")
            await asyncio.sleep(1.0)
            with contextlib.suppress(aio.AioRpcError):
                own = await stub.ListOwnTasks(task_pb2.ListOwnTasksRequest(), timeout=CALL_SECONDS)
                known = next((t.task_id for t in own.tasks if t.name == request.name), None)
                if known is not None:
                    return known

    async def _models(self, won: Iterable[bytes]) -> Mapping[bytes, Model]:
        """Of each of these tasks, what its requester was given, scored here."""
        requester = next(name for name, role in self.manifest.processes if role == "requester")
        stub = task_pb2_grpc.RequesterServiceStub(self._channels[requester])
        found: dict[bytes, Model] = {}
        for task_id in won:
            request = task_pb2.FetchModelRequest(task_id=task_id)
            answer = await self._eventually(lambda request=request: stub.FetchModel(request, timeout=CALL_SECONDS))  # type: ignore[misc]
            task = (await self._chain(self._nodes[0]).GetTask(pb.GetTaskRequest(task_id=task_id), timeout=CALL_SECONDS)).task
            correct, total = await asyncio.to_thread(self._score, answer.model, task.spec.feature_scale_micro)
            found[task_id] = Model(correct, total, answer.model_commitment)
        return found

    def _score(self, encoded: bytes, scale_micro: int) -> tuple[int, int]:
        model = load_model(encoded)
        with np.load(self.backend.test_set, allow_pickle=False) as stored:
            features = quantise_features(np.asarray(stored["x"], dtype=np.float64), scale_micro / 1_000_000)
            labels = np.asarray(stored["y"], dtype=np.int64)
        return int(model.count(features, labels)), len(labels)

    # Waiting

    async def _when(self, true: Callable[[], bool]) -> None:
        while not true():  # noqa: ASYNC110 - what is seen comes from polling too
            await asyncio.sleep(POLL / 3)

    async def _until(self, true: Callable[[], Awaitable[bool]], seconds: float, what: str) -> None:
        """Raises DeadlineError, or why a process ended."""
        end = time.monotonic() + seconds
        while True:
            with contextlib.suppress(aio.AioRpcError):
                if await true():
                    return
            self.backend.check()
            if time.monotonic() > end:
                raise DeadlineError(f"not within {seconds:g} s: {what}")
            await asyncio.sleep(POLL)

    async def _eventually(self, call: Callable[[], Awaitable[T]]) -> T:
        end = time.monotonic() + AGREE_SECONDS
        while True:
            try:
                return await call()
            except aio.AioRpcError:
                if time.monotonic() > end:
                    raise
            await asyncio.sleep(POLL)
