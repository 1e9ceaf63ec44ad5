"""Sessions with pools and validators: who gets a place, how long, and how one goes on after a break or a restart.

A session is a machine of core.verification with coins of its own. What it received is on disk, as digests, before its replies
leave; so the same messages bring the same replies from a new stream or a new process, and another message under a used number
is refused in both (docs/adr/0050). Validators' audits take one of ``slots`` places; a place is given up when the caller is
silent, or too slow while others wait (docs/adr/0051).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Final
from weakref import WeakValueDictionary

from core.codec import encode_as
from core.crypto.signing import KeyPair
from core.errors import (
    AuthError,
    DeadlineError,
    MalformedError,
    NotFoundError,
    PoflError,
    SequenceError,
    UnavailableError,
)
from core.ids import AccountId, NodeId, TaskId
from core.ports import Rng
from core.verification.audit_requester import AuditRequester, StoredRequester
from core.verification.evaluation_requester import EvaluationRequester
from core.verification.messages import MESSAGE, AuditOpen, Envelope, EvaluationOpen, StoredOpen
from core.verification.session import Session
from core.verification.transcript import Purpose
from requester.activity import ActivityLog
from requester.models import TaskBooks, TaskSides
from requester.standing import Follower, TaskStanding
from requester.store import RequesterStore, SessionCoins, SessionRecord
from services.rpc.task_client import Activity
from services.rpc.views import TaskPhase
from services.runtime.cpu import CpuPool
from services.runtime.logging import claim_id, logger
from services.runtime.metrics import counter, gauge, histogram

__all__ = ["SessionLimits", "Sessions"]

log = logger(__name__)

STREAMS = gauge("requester_streams", "Open streams of pools and validators.")
WAITING = gauge("requester_audits_waiting", "Audits and stored checks that wait for a place.")
SESSIONS = counter("requester_sessions", "Sessions that ended, by kind and end.", ("kind", "end"))
SECONDS = histogram("requester_session_seconds", "A session, from its first message to its last, by kind.", ("kind",))

MAX_LIVE: Final = 128
"""Sessions in memory; the longest unused one is dropped, and comes back by replay. One with a stream or a step stays."""
MAX_STREAMS: Final = 8
"""Open streams of one caller, and sessions without a stream that are kept in memory for it."""
PLACES_EACH: Final = 2
"""Places for audits that one caller may have or wait for: with more, one validator could keep all others out."""
KINDS: Final = {Purpose.EVALUATION: "evaluation", Purpose.AUDIT: "audit", Purpose.STORED_CHECK: "stored-check"}
_OPENINGS: Final = {EvaluationOpen: Purpose.EVALUATION, AuditOpen: Purpose.AUDIT, StoredOpen: Purpose.STORED_CHECK}


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """Seconds, and places."""

    audit_slots: int = 2
    audit_queue: int = 64
    evaluation_slots: int = 2
    slot_s: float = 2.0
    """What an audit has its place for while others wait."""
    audit_s: float = 8.0
    """What a stream of an audit or stored check may take in all."""
    silence_s: float = 30.0
    """Longest silence of a pool on an open stream."""
    chain_s: float = 1.0
    """How long a message that the chain does not allow yet is kept, before the caller is told to come again."""


class _Places:
    """A number of places and a bounded queue for them, first come first served."""

    def __init__(self, places: int, queue: int) -> None:
        self._semaphore = asyncio.Semaphore(places)
        self._queue = queue
        self._callers: Counter[bytes] = Counter()
        self.waiting = 0

    @contextlib.asynccontextmanager
    async def take(self, caller: bytes, timeout: float) -> AsyncIterator[None]:
        """Raises UnavailableError: the queue is full, the wait was too long, or ``caller`` has PLACES_EACH."""
        if self._callers[caller] >= PLACES_EACH:
            raise UnavailableError(f"this caller has or waits for {PLACES_EACH} places for audits already")
        self._callers[caller] += 1
        try:
            async with self._take(timeout):
                yield
        finally:
            self._callers[caller] -= 1
            if not self._callers[caller]:
                del self._callers[caller]

    @contextlib.asynccontextmanager
    async def _take(self, timeout: float) -> AsyncIterator[None]:
        if self.waiting >= self._queue and self._semaphore.locked():
            raise UnavailableError(f"{self.waiting} wait for an audit already: try again in a moment")
        self.waiting += 1
        WAITING.inc()
        try:
            async with asyncio.timeout(timeout):
                await self._semaphore.acquire()
        except TimeoutError:
            raise UnavailableError(f"no place for an audit within {timeout:g} s: try again") from None
        finally:
            self.waiting -= 1
            WAITING.dec()
        try:
            yield
        finally:
            self._semaphore.release()


class _Marks:
    """core.verification's OneUse for one session: marks belong to sessions, so that a replay finds its own again."""

    def __init__(self, store: RequesterStore, session: bytes) -> None:
        self._store, self._session = store, session

    def mark(self, key: bytes) -> None:
        self._store.mark(key, self._session)


@dataclass(slots=True, eq=False)
class _Live:
    """A session in memory."""

    record: SessionRecord
    purpose: Purpose
    machine: Session
    coins: SessionCoins
    received: list[bytes]
    standing: TaskStanding
    pool: bytes | None = None
    """Whose claim it is about; None for a stored check."""
    users: int = 0
    """Open streams and steps under way. While there are any, no second machine may be made of this session."""
    began: float = field(default_factory=time.monotonic)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Sessions:
    """Serves all sessions of this requester."""

    def __init__(
        self,
        books: TaskBooks,
        follower: Follower,
        store: RequesterStore,
        key: KeyPair,
        rng: Rng,
        limits: SessionLimits,
    ) -> None:
        self._books, self._follower, self._store, self._key, self._rng = books, follower, store, key, rng
        self._limits = limits
        self._live: OrderedDict[tuple[bytes, bytes], _Live] = OrderedDict()
        self._streams: Counter[bytes] = Counter()
        self._opening: WeakValueDictionary[tuple[bytes, bytes], asyncio.Lock] = WeakValueDictionary()
        self._audits = _Places(limits.audit_slots, limits.audit_queue)
        self._cpu = CpuPool(limits.audit_slots + limits.evaluation_slots, queue=4 * MAX_LIVE)
        self._evaluating = asyncio.Semaphore(limits.evaluation_slots)
        self._steps: set[asyncio.Task[tuple[Envelope, ...]]] = set()
        self.activity = ActivityLog(MAX_LIVE)

    def close(self) -> None:
        self._cpu.close()

    def forget(self, task_id: TaskId) -> None:
        """The task has ended: its sessions are over."""
        for name in [name for name, live in self._live.items() if live.record.task_id == task_id]:
            del self._live[name]

    async def serve(self, purpose: Purpose, caller: bytes, incoming: AsyncIterator[Envelope]) -> AsyncIterator[Envelope]:
        """One stream of ``caller``, whose certificate has been checked: replies to what comes in, until it ends.

        Raises:
            NotFoundError: a session that is not in memory was not begun with its first message.
            UnavailableError: not yet, or no place; nothing is lost. DeadlineError: the caller is silent.
            What core.verification's machines raise.
        """
        limits = self._limits
        first = await _next(incoming, limits.slot_s)
        if first is None:
            return
        async with self._stream(caller), self._attached(purpose, caller, first) as live, self._places(purpose, caller):
            started = time.monotonic()
            end = started + limits.audit_s
            envelope: Envelope | None = first
            while envelope is not None:
                replies = await self._answer(live, envelope)
                async with self._given(purpose, started, end):
                    for reply in replies:
                        yield reply
                if purpose is Purpose.EVALUATION:
                    envelope = await _next(incoming, limits.silence_s)
                else:
                    envelope = await self._next_of_audit(incoming, started, end)

    def _places(self, purpose: Purpose, caller: bytes) -> contextlib.AbstractAsyncContextManager[None]:
        if purpose is Purpose.EVALUATION:
            return contextlib.nullcontext()
        return self._audits.take(caller, self._limits.audit_s)

    @contextlib.asynccontextmanager
    async def _stream(self, caller: bytes) -> AsyncIterator[None]:
        """Raises UnavailableError: this caller has MAX_STREAMS."""
        if self._streams[caller] >= MAX_STREAMS:
            raise UnavailableError(f"{MAX_STREAMS} streams of this caller are open already")
        self._streams[caller] += 1
        STREAMS.inc()
        try:
            yield
        finally:
            STREAMS.dec()
            self._streams[caller] -= 1
            if not self._streams[caller]:
                del self._streams[caller]

    @contextlib.asynccontextmanager
    async def _given(self, purpose: Purpose, started: float, end: float) -> AsyncIterator[None]:
        """Around replies: while the caller does not read them, gRPC holds us up. Who takes too long loses its stream as one
        that is silent does; it cannot be told why, and may open it again."""
        reader = asyncio.current_task()
        assert reader is not None
        if purpose is Purpose.EVALUATION:
            started, end = math.inf, time.monotonic() + self._limits.silence_s

        async def watch() -> None:
            while True:
                await asyncio.sleep(self._limits.slot_s / 8)
                if self._is_late(started, end):
                    break
            log.info("a caller does not read its replies", kind=KINDS[purpose])
            reader.cancel()

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()

    def _is_late(self, started: float, end: float) -> bool:
        now = time.monotonic()
        return now >= end or (self._audits.waiting > 0 and now - started > self._limits.slot_s)

    async def _next_of_audit(self, incoming: AsyncIterator[Envelope], started: float, end: float) -> Envelope | None:
        """The next message; the place is kept for ``slot_s``, and longer as long as nobody waits for it."""
        waiting = asyncio.ensure_future(_anext(incoming))
        try:
            while True:
                done, _ = await asyncio.wait((waiting,), timeout=self._limits.slot_s / 8)
                if done:
                    return waiting.result()
                now = time.monotonic()
                if now >= end:
                    raise DeadlineError(f"the caller was silent; a stream may take {self._limits.audit_s:g} s")
                if self._audits.waiting and now - started > self._limits.slot_s:
                    raise UnavailableError("others wait for this place: open the stream again to go on")
        finally:
            if not waiting.done():
                waiting.cancel()
                await asyncio.wait((waiting,))

    # Opening

    @contextlib.asynccontextmanager
    async def _attached(self, purpose: Purpose, caller: bytes, first: Envelope) -> AsyncIterator[_Live]:
        live = await self._attach(purpose, caller, first)
        try:
            yield live
        finally:
            live.users -= 1

    async def _attach(self, purpose: Purpose, caller: bytes, first: Envelope) -> _Live:
        """The one machine of this session, with one more user."""
        name = (caller, first.session)
        live = self._live.get(name)
        if live is None:
            if first.index != 0:
                raise NotFoundError(f"session {first.session.hex()[:16]} is not in memory: begin with its first message")
            opening = first.message
            if not isinstance(opening, EvaluationOpen | AuditOpen | StoredOpen) or _OPENINGS[type(opening)] is not purpose:
                raise SequenceError(f"{type(opening).__name__} does not open this kind of session")
            sides = await self._sides(opening.task_id)
            standing = TaskStanding(self._follower, opening.task_id)
            await self._admit(purpose, caller, standing)
            # One at a time: a machine made while another of the same session lives could answer what that one has answered.
            async with self._opening.setdefault(name, asyncio.Lock()):
                live = self._live.get(name)
                if live is None:
                    live = await self._cpu.run(self._make, purpose, caller, first.session, sides, standing)
                    if isinstance(opening, AuditOpen):
                        live.pool = opening.pool
                    elif purpose is Purpose.EVALUATION:
                        live.pool = caller
                    self._live[name] = live
        if live.purpose is not purpose:
            raise SequenceError(f"session {first.session.hex()[:16]} is of another kind")
        self._live.move_to_end(name)
        live.users += 1
        self._trim(caller)
        return live

    async def _sides(self, task_id: TaskId) -> TaskSides:
        """Raises NotFoundError for a task that is not this requester's, or has ended."""
        sides = self._books.find(task_id)
        if sides is None:
            raise NotFoundError(f"task {task_id.hex()[:16]} is not an open task of this requester", task_id=task_id)
        # The caller may have seen the block before we did.
        if not await self._follower.wait(lambda: self._follower.task(task_id) is not None, self._limits.chain_s):
            raise UnavailableError(f"task {task_id.hex()[:16]} is not on chain as far as this requester sees")
        return sides

    async def _admit(self, purpose: Purpose, caller: bytes, standing: TaskStanding) -> None:
        """What can be refused before a machine is made, and before the budget is touched."""
        if purpose is Purpose.EVALUATION:
            if standing.is_outsider(AccountId(caller)):
                raise AuthError(f"pool {caller.hex()[:16]} did not enter this task; entry has closed")
            return
        if not standing.is_validator(NodeId(caller)):
            raise AuthError(f"{caller.hex()[:16]} is no validator")
        if purpose is Purpose.STORED_CHECK and standing.phase is not TaskPhase.PENDING:
            raise SequenceError("the stored check is made while the task is pending; it is not any more")

    def _make(self, purpose: Purpose, caller: bytes, session: bytes, sides: TaskSides, standing: TaskStanding) -> _Live:
        record = self._store.session(purpose, sides.task.task_id, caller, session, self._rng)
        if record.failure:
            raise SequenceError(f"the session is over: {record.failure}")
        coins, marks = SessionCoins(record.seed), _Marks(self._store, caller + session)
        task, sk, plain, key = sides.task, sides.sk, sides.test_set, self._key
        machine: Session
        match purpose:
            case Purpose.EVALUATION:
                machine = EvaluationRequester(task, session, AccountId(caller), sk, plain, key, standing, marks, coins)
            case Purpose.AUDIT:
                machine = AuditRequester(task, session, NodeId(caller), sk, plain, key, sides.book, standing, marks, coins)
            case Purpose.STORED_CHECK:
                machine = StoredRequester(task, session, NodeId(caller), sk, key, standing, marks, coins)
        return _Live(record, purpose, machine, coins, self._store.received(record), standing)

    def _trim(self, caller: bytes) -> None:
        """Drops the longest unused sessions: first of this caller, who may have many, then of all."""
        idle = [name for name, live in self._live.items() if not live.users]
        own = [name for name in idle if name[0] == caller]
        for name in own[: max(0, len(own) - MAX_STREAMS)]:
            del self._live[name]
        for name in idle:
            if len(self._live) > MAX_LIVE:
                self._live.pop(name, None)

    # Steps

    async def _answer(self, live: _Live, envelope: Envelope) -> tuple[Envelope, ...]:
        """The replies to one message; one that the chain does not allow yet waits a moment for the next block."""
        deadline = time.monotonic() + self._limits.chain_s
        while True:
            version = self._follower.version
            try:
                replies = await self._step(live, envelope)
            except UnavailableError:
                left = deadline - time.monotonic()
                if left <= 0 or not await self._follower.wait(_moved(self._follower, version), left):
                    raise
            else:
                self._report(live, type(envelope.message).__name__)
                return replies

    async def _step(self, live: _Live, envelope: Envelope) -> tuple[Envelope, ...]:
        # A caller who goes away does not interrupt a step: what was received and what was answered stay in line.
        live.users += 1
        step = asyncio.create_task(self._locked_step(live, envelope))
        self._steps.add(step)

        def is_done(task: asyncio.Task[tuple[Envelope, ...]]) -> None:
            live.users -= 1
            self._steps.discard(task)
            if not task.cancelled():
                task.exception()

        step.add_done_callback(is_done)
        return await asyncio.shield(step)

    async def _locked_step(self, live: _Live, envelope: Envelope) -> tuple[Envelope, ...]:
        async with live.lock:
            if live.purpose is Purpose.EVALUATION:
                async with self._evaluating:
                    return await self._cpu.run(_compute, live, envelope, self._store)
            return await self._cpu.run(_compute, live, envelope, self._store)

    def _report(self, live: _Live, step: str) -> None:
        spent = int(1000 * (time.monotonic() - live.began))
        record = live.record
        self.activity.add(record.key, Activity(KINDS[live.purpose], record.task_id, record.caller, step, spent))
        if live.machine.is_over:
            SESSIONS.labels(KINDS[live.purpose], "complete").inc()
            SECONDS.labels(KINDS[live.purpose]).observe(spent / 1000)
            about = {} if live.pool is None else {"claim": claim_id(record.task_id, live.pool)}
            task, peer = record.task_id.hex()[:8], record.caller.hex()[:8]
            log.info(f"{KINDS[live.purpose]} complete", **about, task=task, peer=peer, ms=spent)


def _compute(live: _Live, envelope: Envelope, store: RequesterStore) -> tuple[Envelope, ...]:
    """In a worker thread, one at a time for a session."""
    found = hashlib.sha256(encode_as(MESSAGE, envelope.message)).digest()
    if envelope.index < len(live.received) and live.received[envelope.index] != found:
        raise SequenceError(f"another message under number {envelope.index}, which is used", index=envelope.index)
    was_over = live.machine.is_over
    live.coins.at(envelope.index)
    try:
        replies = live.machine.step(envelope)
    except PoflError as error:
        if live.machine.is_over and not was_over:
            SESSIONS.labels(KINDS[live.purpose], "failed").inc()
            failure = error.message.encode()[:290].decode(errors="ignore") or "it failed"
            live.record = replace(live.record, failure=failure)
            if live.received:
                # One that was refused at its opening is refused again by the mark: kept, it would let a caller fill the disk.
                store.end_session(live.record)
        raise
    if envelope.index >= len(live.received):
        store.add_received(live.record, envelope.index, found)
        live.received.append(found)
    return replies


def _moved(follower: Follower, version: int) -> Callable[[], bool]:
    return lambda: follower.version > version


async def _anext(incoming: AsyncIterator[Envelope]) -> Envelope | None:
    return await anext(incoming, None)


async def _next(incoming: AsyncIterator[Envelope], timeout: float) -> Envelope | None:
    """The next message, None at the end of the stream. Raises DeadlineError."""
    try:
        async with asyncio.timeout(timeout):
            return await anext(incoming, None)
    except TimeoutError:
        raise DeadlineError(f"the caller was silent for {timeout:g} s") from None
    except (ValueError, TypeError) as error:
        raise MalformedError(f"a message does not decode: {error}") from error
