"""Runs a testnet until a number of work blocks are final, and checks what it did.

Everything is learnt over gRPC, as any user would; nothing is read from the processes' folders but the requester's test
set, to score the models she was given.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar

import numpy as np

from core.chain.block import BlockKind
from core.chain.transaction import Activation, TaskSpec
from core.errors import DeadlineError, NotFoundError, PoflError, UnavailableError
from core.ids import Amount, Height, TaskId, TxId, short
from core.verification.quantise import quantise_features
from core.verification.regression import buckets, cuts_from_micro
from core.verification.scored_model import ScoredModel
from services.rpc.task_client import Published
from services.rpc.views import BlockView, TaskPhase
from services.testnet.control import Control
from services.testnet.layout import Layout, Member
from services.testnet.supervisor import ProcessSpec, Supervisor
from services.testnet.watch import POLL, Clients, Observer, connected, watch_node, watch_others, watch_pool, watch_requester

__all__ = ["Report", "Script", "WorkBlock", "run_testnet"]

T = TypeVar("T")
MEMBERS_TIMEOUT: Final = 60.0
MAX_TASKS: Final = 1000
AGREE_TIMEOUT: Final = 20.0
"""Seconds that the slowest node has to reach the last work block."""


@dataclass(frozen=True, slots=True)
class WorkBlock:
    """One block that a pool won."""

    height: int
    block_hash: str
    state_root: str
    task_id: str
    pool: str
    correct: int
    total: int
    model_correct: int | None
    """Of the fetched model, on the testnet's test set; None where the requester was away, or is somebody else."""
    audit_ms: float
    """Median over the nodes' own audits."""
    vm_bytes: int
    reward: int
    seconds: float
    """Since the testnet was started."""


@dataclass(slots=True)
class Report:
    """What a run did. It is good if ``problems`` is empty."""

    folder: str
    blocks: list[WorkBlock] = field(default_factory=list)
    height: int = 0
    ready_seconds: float = 0.0
    first_block_seconds: float = 0.0
    seconds: float = 0.0
    void_tasks: int = 0
    supply: int = 0
    burned: int = 0
    problems: list[str] = field(default_factory=list)


class Script(Protocol):
    """What a measurement does to a testnet besides letting it run."""

    def process(self, member: Member) -> ProcessSpec:
        """What is started for a member."""

    async def before_task(self, number: int, supervisor: Supervisor, clients: Clients) -> None:
        """Before task ``number``, from 1, is published."""

    async def at_end(self, clients: Clients) -> None:
        """When all blocks are there and everything still runs."""


async def run_testnet(layout: Layout, blocks: int, observer: Observer, timeout: float, script: Script | None = None) -> Report:
    """Start every process, wait until ``blocks`` work blocks are final, check them, stop everything.

    A ``script`` acts between the tasks. With ``blocks`` 0 it runs until it is cancelled. Raises PoflError when a process
    ends by itself, DeadlineError after ``timeout`` seconds.
    """
    started = time.monotonic()
    report = Report(str(layout.folder))
    async with (
        Supervisor() as supervisor,
        Control(supervisor).serving(layout.folder) as control,
        connected(layout) as clients,
        _Watchers() as watchers,
    ):
        assert supervisor.failed is not None
        for member in layout.of("node"):
            watchers.add(watch_node(member, clients.nodes[member.name], observer))
        for name, pool in clients.pools.items():
            watchers.add(watch_pool(name, pool, observer))
        watchers.add(watch_others(layout, clients, observer))
        watchers.add(watch_requester(layout.of("requester")[0].name, clients, layout, observer))
        work = _mine(layout, blocks, supervisor, watchers, clients, observer, report, started, script, control)
        try:
            async with asyncio.timeout(timeout if blocks else None):
                await _first(work, supervisor.failed)
        except TimeoutError:
            raise DeadlineError(
                f"after {timeout:.0f} s only {len(report.blocks)} of {blocks} work blocks are final; the logs are in "
                f"{layout.folder / 'logs'}",
                folder=str(layout.folder),
            ) from None
        try:
            supervisor.check()
        except PoflError as error:
            raise PoflError(
                f"{error.message}\nall processes were stopped; to go on: pofl testnet up --dir {layout.folder}"
            ) from None
        if script is not None:
            await script.at_end(clients)
        await _check(layout, clients, report, control)
    report.seconds = time.monotonic() - started
    return report


async def _mine(
    layout: Layout,
    blocks: int,
    supervisor: Supervisor,
    watchers: _Watchers,
    clients: Clients,
    observer: Observer,
    report: Report,
    started: float,
    script: Script | None,
    control: Control,
) -> None:
    """Start the processes, publish a task, then follow every block; ends with the last work block that was asked for."""

    for member in layout.members:
        observer.state(member.name, member.role, "not started")

    async def start(*roles: str) -> None:
        for member in layout.members:
            if member.role in roles:
                await supervisor.start((script or layout).process(member))
                observer.state(member.name, member.role, "starting")

    await start("node")
    await _when_ready(clients, control)
    # A testnet that was stopped goes on where it was: its old blocks are none of this run's.
    before = (await clients.chain.tip()).height
    report.ready_seconds = time.monotonic() - started
    observer.say(f"{len(clients.nodes)} nodes answer")
    await start("pool", "miner", "requester", "provider", "platform")
    own: set[TaskId] = set()
    if not layout.shape.tasks:
        publisher = watchers.add(_publish(layout, supervisor, clients, observer, own, script, control))
        publisher.add_done_callback(lambda ended: _pass_on(ended, supervisor))
    async for view in clients.chain.watch_blocks(Height(before + 1)):
        report.height = view.header.height
        observer.say(_line(layout, view))
        if view.header.kind is not BlockKind.WORK:
            continue
        is_own = bool(layout.shape.tasks) or view.header.task_id in own
        block = await _work_block(layout, clients, view, time.monotonic() - started, is_own, control)
        if not report.blocks:
            report.first_block_seconds = block.seconds
        report.blocks.append(block)
        if blocks and len(report.blocks) >= blocks:
            return


async def _work_block(
    layout: Layout, clients: Clients, view: BlockView, seconds: float, is_own: bool, control: Control
) -> WorkBlock:
    header = view.header
    assert header.task_id is not None
    assert header.accuracy is not None
    task_id, height = header.task_id, header.height
    fetched = None
    if is_own:
        fetch = functools.partial(clients.requester.fetch_model, task_id)
        fetched = await _unless_away(control, layout.of("requester")[0].name, fetch)
    model = None if fetched is None else fetched.model
    audits: list[int] = []
    vm_bytes = 0
    for name, node in clients.nodes.items():
        explanation = await _unless_away(control, name, functools.partial(node.explain, height))
        if explanation is None:
            continue
        audits += [v.audit_ms for v in explanation.verdicts if v.audit_ms and v.pool == header.author_id]
        vm_bytes = max(vm_bytes, explanation.vm_bytes)
    task = await clients.chain.task(header.task_id)
    return WorkBlock(
        height=header.height,
        block_hash=view.block_hash.hex(),
        state_root=view.state_root.hex(),
        task_id=header.task_id.hex(),
        pool=layout.name_of(header.author_id),
        correct=header.accuracy.correct,
        total=header.accuracy.total,
        model_correct=None if model is None else _score(layout, model, task.spec),
        audit_ms=statistics.median(audits) if audits else 0.0,
        vm_bytes=vm_bytes,
        reward=task.reward,
        seconds=seconds,
    )


async def _check(layout: Layout, clients: Clients, report: Report, control: Control) -> None:
    """What makes the run good: the same blocks and states everywhere, and models that score what the headers say."""
    for block in report.blocks:
        if block.model_correct not in (None, block.correct):
            report.problems.append(
                f"block {block.height} says {block.correct} of {block.total}, its model scores {block.model_correct}"
            )
        for name, node in clients.nodes.items():
            try:
                found = await _unless_away(control, name, functools.partial(node.block, Height(block.height)))
            except PoflError as error:
                report.problems.append(f"{name} does not have block {block.height}: {error.message}")
                continue
            if found is not None and (found.block_hash.hex(), found.state_root.hex()) != (block.block_hash, block.state_root):
                report.problems.append(
                    f"{name} has another block {block.height}: {short(found.block_hash)} with state {short(found.state_root)}"
                )
    tip = await clients.chain.tip()
    report.supply, report.burned = tip.supply, tip.burned
    # Not the void blocks: a task that no pool committed to ends without one.
    report.void_tasks = len(await clients.chain.tasks([TaskPhase.VOID], MAX_TASKS))
    genesis_supply = sum(a.balance for a in layout.genesis.accounts)
    if tip.supply != genesis_supply - tip.burned:
        report.problems.append(f"the supply is {tip.supply}, it should be {genesis_supply} - {tip.burned} burned")


def _score(layout: Layout, model: ScoredModel, spec: TaskSpec) -> int:
    with np.load(layout.data("test"), allow_pickle=False) as stored:
        features = quantise_features(np.asarray(stored["x"], dtype=np.float64), spec.feature_scale_micro / 1_000_000)
        y = np.asarray(stored["y"])
        if spec.cuts_micro:
            y = buckets(y.astype(np.float64), cuts_from_micro(spec.cuts_micro))
        return int(model.count(features, y.astype(np.int64)))


async def _unless_away(control: Control, name: str, call: Callable[[], Awaitable[T]], timeout: float | None = None) -> T | None:
    """A process's answer, which is not None, once there is one: what is final on one node takes a moment to be so on another.
    None if somebody wishes it away before it has answered. ``timeout``: seconds, AGREE_TIMEOUT where left out; who was just
    brought back has the time of a start.
    """
    end = time.monotonic() + (AGREE_TIMEOUT if timeout is None else timeout)
    while not control.is_away(name):
        try:
            return await call()
        except PoflError:
            is_late = time.monotonic() >= end and control.since_back(name) >= MEMBERS_TIMEOUT
            if is_late and not control.is_away(name):
                raise
        await asyncio.sleep(POLL)
    return None


async def _once_back(control: Control, name: str, call: Callable[[], Awaitable[T]], timeout: float) -> T:
    """The same, but who is away is waited for. ``timeout``: seconds from when nobody wishes it away."""
    while True:
        await control.until_back(name)
        answer = await _unless_away(control, name, call, timeout)
        if answer is not None:
            return answer


async def _when_ready(clients: Clients, control: Control) -> None:
    for name, node in clients.nodes.items():
        while not control.is_away(name):
            try:
                await node.tip()
                break
            except (UnavailableError, DeadlineError):
                await asyncio.sleep(POLL / 2)


async def _publish(
    layout: Layout, supervisor: Supervisor, clients: Clients, observer: Observer, own: set[TaskId], script: Script | None,
    control: Control,
) -> None:  # fmt: skip
    """One task after the other, as the requester's owner would; the first once every pool has a member.

    A task that nobody can enter yet would be void.
    """
    await _when_manned(clients, time.monotonic() + MEMBERS_TIMEOUT)
    observer.say("every pool has a member")
    requester = layout.of("requester")[0].name
    # A testnet that goes on begins its tasks' names again.
    known = await _once_back(control, requester, clients.requester.own_tasks, MEMBERS_TIMEOUT)
    old = frozenset(task.task_id for task in known)
    for number in itertools.count(1):
        if script is not None:
            await script.before_task(number, supervisor, clients)
        publication = _Publication(layout, clients, f"{layout.subject.name}-{number}", old)
        published = await _once_back(control, requester, publication.attempt, MEMBERS_TIMEOUT)
        own.add(published.task_id)
        if number == 1:
            for warning in published.warnings:
                observer.say(f"warning: {warning}")
        seen = False
        async for update in clients.chain.watch_tasks():
            is_live = published.task_id in {task.task_id for task in update.tasks}
            # The node that answers here may be a block behind the one that published; a task may end before we look.
            if not is_live and (seen or await _has_ended(clients, published.task_id)):
                break
            seen = seen or is_live


@dataclass(slots=True)
class _Publication:
    """One task to be published, once, whatever happens to the requester meanwhile. ``old``: her tasks of earlier runs."""

    layout: Layout
    clients: Clients
    name: str
    old: frozenset[TaskId]
    attempts: int = 0

    async def attempt(self) -> Published:
        """Raises what the requester answers, UnavailableError while she hands in what she kept of an earlier attempt."""
        self.attempts += 1
        kept = [] if self.attempts == 1 else await self.clients.requester.own_tasks()
        for task in kept:
            if task.name == self.name and task.task_id not in self.old:
                if task.phase is None:
                    raise UnavailableError(f"{self.name} is not final yet", peer="the requester")
                return Published(task.task_id, TxId(bytes(32)), 0, ())
        data, shape = self.layout.data, self.layout.shape
        return await self.clients.requester.publish(
            self.name, data("test").resolve(), data("practice").resolve(), self.layout.subject.hidden, Activation.SIGMOID,
            Amount(shape.reward), Amount(shape.reward),
        )  # fmt: skip


async def _has_ended(clients: Clients, task_id: TaskId) -> bool:
    try:
        return (await clients.chain.task(task_id)).phase.is_ended
    except NotFoundError:
        return False


def _pass_on(ended: asyncio.Task[None], supervisor: Supervisor) -> None:
    """Publishing that fails ends the run: nothing would be mined any more."""
    failed = supervisor.failed
    if not ended.cancelled() and ended.exception() is not None and failed is not None and not failed.done():
        failed.set_result(f"publishing a task failed: {str(ended.exception()) or repr(ended.exception())}")


async def _when_manned(clients: Clients, end: float) -> None:
    """Until every pool has a member online, or ``end``: a pool without members only misses the first task."""
    for pool in clients.pools.values():
        while time.monotonic() < end:
            try:
                if any(member.is_online for member in await pool.members()):
                    break
            except (UnavailableError, DeadlineError):
                pass
            await asyncio.sleep(POLL / 2)


async def _first(work: Coroutine[Any, Any, None], failed: asyncio.Future[str]) -> None:
    """``work`` to its end, or until a process has ended by itself."""
    task = asyncio.ensure_future(work)
    waits: set[asyncio.Future[Any]] = {task, failed}
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        task.cancel()


class _Watchers:
    """Background tasks of a run; they end with it."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> _Watchers:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def add(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self._tasks.append(asyncio.create_task(work))
        return self._tasks[-1]


def _line(layout: Layout, view: BlockView) -> str:
    header = view.header
    who = layout.name_of(header.author_id)
    if header.kind is BlockKind.WORK and header.accuracy is not None:
        return f"block {header.height}: work by {who}, {header.accuracy.correct} of {header.accuracy.total} correct"
    if header.kind is BlockKind.VOID:
        ends = ", ".join(o.kind.name.lower() for o in header.outcome)
        return f"block {header.height}: void, no claim was adopted ({ends})"
    kinds = Counter(t.kind for t in view.transactions)
    listed = ", ".join(kind if count == 1 else f"{count} {kind}" for kind, count in kinds.items())
    return f"block {header.height}: {listed or 'empty'}"
