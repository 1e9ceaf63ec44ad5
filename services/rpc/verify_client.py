"""Driving the callers' state machines of core.verification over the requester's gRPC streams.

A pool evaluates one model in two parts::

    evaluation = EvaluationClient(channel, EvaluationPool(task, session, pool, pk, test_set, rng), peer="requester0")
    await evaluation.prepare(30.0)                              # offline part, while the pool trains
    result = await evaluation.evaluate(model, c_W, 20.0)        # online part, when commits have closed

A node audits a claim and checks a pending task::

    finding = await audit(channel, AuditNode(...), 8.0)
    await check_stored(channel, StoredNode(...), 20.0)

Every function ends within its ``timeout`` (seconds). A stream that breaks is opened again and goes on with the same bytes;
the machines on both sides replay what they have seen. Machines compute in worker threads, never on the event loop.
Errors that the requester answered with have ``peer`` among their ``values``; others are our own machine's word. What fails on
our own side, a defect or no room for the work, is InternalError and never hers (docs/adr/0064).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, ParamSpec, TypeVar

from grpc import aio
from pofl.verify.v1 import verify_pb2, verify_pb2_grpc

from core.errors import (
    AbortError,
    AuthError,
    BudgetError,
    CheatingError,
    CryptoError,
    DeadlineError,
    InputError,
    InternalError,
    LimitError,
    NotFoundError,
    PoflError,
    ProtocolError,
    SequenceError,
    TurnError,
    UnavailableError,
)
from core.ids import ModelCommitment
from core.verification.audit_node import AuditNode, Finding, StoredNode
from core.verification.evaluation_pool import EvaluationPool, EvaluationResult
from core.verification.messages import Envelope
from core.verification.scored_model import ScoredModel
from core.verification.session import Session
from services.rpc.channel import backoff
from services.rpc.convert_verify import envelope_from_proto, envelope_to_proto
from services.rpc.errors import translate
from services.runtime import tracing
from services.runtime.cpu import run_cpu

__all__ = ["EvaluationClient", "audit", "check_stored"]

P = ParamSpec("P")
R = TypeVar("R")

LONGEST_PAUSE: Final = 1.0
"""Seconds between two tries at most: the windows of a task are short."""
HESITATION: Final = 0.05
"""Seconds between the first message of a stream and more that are ready: a refusal comes before megabytes are sent, and is
not lost (a stream that ends while a large message is being written fails without its status)."""
STARVED_PAUSE: Final = 0.1
"""Seconds between two tries to get a worker of this process."""
FAREWELL: Final = 1.0
"""Seconds that the requester has to end a stream that is done."""


class EvaluationClient:
    """One evaluation by a pool. The machine and this object belong together until it is over."""

    def __init__(self, channel: aio.Channel, machine: EvaluationPool, *, peer: str = "") -> None:
        """``channel``: to the requester, see services.rpc.channel.connect with ``expect_role="requester"``."""
        self._machine = machine
        self._line = _Line(verify_pb2_grpc.VerifyServiceStub(channel).Evaluate, machine, peer)
        self._asked: ModelCommitment | None = None

    async def prepare(self, timeout: float) -> None:
        """The offline part. Opening it uses up one of the pool's two batches, whatever comes of it.

        The requester answers from the close of entry on; before, this waits. After DeadlineError it may be called again.

        Raises:
            AuthError: this pool has not entered, or the certificate names no account.
            BudgetError: the batch is used up: make a machine with the spare one.
            CheatingError: a message that no honest requester sends.
            DeadlineError, SequenceError, LimitError.
        """
        if not self._line.is_open:
            self._line.add(await run_cpu(self._machine.start))
        await self._line.run(lambda: self._machine.is_prepared, timeout)

    async def evaluate(self, model: ScoredModel, commitment: ModelCommitment, timeout: float) -> EvaluationResult:
        """The online part, once ``commitment`` is on chain; waits until commits have closed. N and the header's ``vm``.

        After DeadlineError it may be called again with the same model.

        Raises:
            CheatingError without ``peer``: the requester lied about the result; the model must not be claimed.
            BudgetError: this pool has had its one evaluation.
            SequenceError: not prepared, or another model than before.
            MalformedError: a model of another family, or another commitment than the chain has.
            DeadlineError.
        """
        if self._asked is None:
            self._line.add(await run_cpu(self._machine.evaluate, model, commitment))
            self._asked = commitment
        elif self._asked != commitment:
            raise SequenceError("an evaluation is of one model; another one was sent already")
        await self._line.run(lambda: self._machine.result is not None, timeout)
        assert self._machine.result is not None
        return self._machine.result


async def audit(
    channel: aio.Channel, machine: AuditNode, timeout: float, *, peer: str = "", noticed: Callable[[], None] | None = None
) -> Finding:
    """A whole audit of one claim; ``machine.finding`` is the same. Opening it uses up one of three attempts.

    A requester who does not answer in time, answers what no honest one does, or refuses, ends as RequesterFault: between
    honest parties that does not happen. ``Undecided`` asks for the pool's opening or for another attempt. ``noticed`` is called
    after every message of hers.

    Raises:
        BudgetError: this attempt is used up: make a machine with the next one.
        AuthError: the requester does not take this node for a validator.
        TurnError: she does not see yet that this claim is the top remaining one; the attempt is not used up.
        InternalError: this node failed at its own part. Nothing is known of the requester.
    """
    line = _Line(verify_pb2_grpc.VerifyServiceStub(channel).Audit, machine, peer, noticed)
    try:
        line.add(await line.compute(time.monotonic() + timeout, machine.start))
        await line.run(lambda: machine.finding is not None, timeout)
    except (BudgetError, AuthError, TurnError):
        raise
    except (ProtocolError, InputError, DeadlineError) as error:
        if line.is_starved and isinstance(error, DeadlineError):
            raise InternalError(f"this node found too little time for its own part: {error.message}") from error
        return machine.give_up(error.message[:200])
    except PoflError:
        raise
    except Exception as error:
        raise InternalError(f"a fault of this node: {type(error).__name__}: {error}") from error
    assert machine.finding is not None
    return machine.finding


async def check_stored(channel: aio.Channel, machine: StoredNode, timeout: float, *, peer: str = "") -> None:
    """Returns when the requester has proved that every label of the pending task's test set is one-hot.

    Raises:
        CheatingError: it is not, or she lied: do not sign Stored.
        InconclusiveError: chance spoiled it: make a machine with the next attempt.
        BudgetError: this attempt is used up. AuthError: she does not take this node for a validator. DeadlineError.
        InternalError: this node failed at its own part.
    """
    line = _Line(verify_pb2_grpc.VerifyServiceStub(channel).CheckStored, machine, peer)
    line.add(await line.compute(time.monotonic() + timeout, machine.start))
    await line.run(lambda: machine.is_passed, timeout)


class _Line:
    """Everything that one machine has sent, and the streams that carry it one after another."""

    def __init__(
        self,
        method: aio.StreamStreamMultiCallable[Any, Any],
        machine: Session,
        peer: str,
        noticed: Callable[[], None] | None = None,
    ) -> None:
        self._method, self._machine, self._peer, self._noticed = method, machine, peer, noticed
        self.is_starved = False
        """Whether this process had no room for our own computations at some time."""
        self._outbox: list[Envelope] = []
        self._settled = 0
        """Below it every envelope has had all its answers."""

    @property
    def is_open(self) -> bool:
        return bool(self._outbox)

    def add(self, envelopes: Sequence[Envelope]) -> None:
        """Replays are in the outbox already and are not added twice."""
        self._outbox += [envelope for envelope in envelopes if envelope.index >= len(self._outbox)]

    async def compute(self, end: float, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Our own part, in a worker. Waits for a place while the process is busy, at most until ``end``.

        Raises InternalError for a defect of ours and where no place comes free; else what the function raises on purpose.
        """
        while True:
            try:
                return _made(await _in_worker(function, *args, **kwargs))
            except _NoPlace as refused:
                self.is_starved = True
                if time.monotonic() + STARVED_PAUSE >= end:
                    raise InternalError(f"this process is too busy for its own part: {refused}") from refused
            await asyncio.sleep(STARVED_PAUSE)

    async def run(self, is_done: Callable[[], bool], timeout: float) -> None:
        """Streams until ``is_done``. Raises DeadlineError, CheatingError for an unusable message, or what was answered."""
        end = time.monotonic() + timeout
        first, attempt = self._settled, 0
        why = "it says nothing"
        while not is_done():
            try:
                with tracing.calling(type(self._machine).__name__, self._who):
                    await self._stream(first, is_done, end)
            except DeadlineError as error:
                raise DeadlineError(f"{self._who} did not answer within {timeout:g} s: {why}") from error
            except NotFoundError:
                if first == 0:
                    raise
                # She was started anew: with all that we sent she computes the same answers again.
                first = 0
            except PoflError as error:
                if not _may_pass(error):
                    raise
                # The requester is not ready, is restarting, wants us to queue again, or fails at her own part.
                why = error.message
                delay = min(backoff(attempt), LONGEST_PAUSE)
                attempt += 1
                if time.monotonic() + delay >= end:
                    raise DeadlineError(f"{self._who} did not answer within {timeout:g} s: {why}") from error
                await asyncio.sleep(delay)
        self._settled = len(self._outbox)

    @property
    def _who(self) -> str:
        return self._peer or "the requester"

    async def _stream(self, first: int, is_done: Callable[[], bool], end: float) -> None:
        left = end - time.monotonic()
        if left <= 0:
            raise DeadlineError(f"no time is left for {self._who}")
        more = asyncio.Event()
        closed = False

        async def requests() -> AsyncIterator[verify_pb2.Envelope]:
            position = first
            while not closed:
                if position == len(self._outbox):
                    more.clear()
                    await more.wait()  # bounded by the call's own deadline, which sets it
                else:
                    yield envelope_to_proto(self._outbox[position])
                    position += 1
                    if position == first + 1 and position < len(self._outbox):
                        await asyncio.sleep(HESITATION)

        call = self._method(requests(), timeout=left, metadata=tracing.outgoing())
        try:
            with translate(self._peer):
                async for reply in call:
                    await self._take(reply, end)
                    more.set()
                    if is_done():
                        closed = True
                        await _farewell(call)
                        return
                    await self._work_ahead()
            raise UnavailableError(f"{self._who} ended the stream too early")
        finally:
            closed = True
            more.set()
            call.cancel()

    async def _take(self, reply: verify_pb2.Envelope, end: float) -> None:
        """One message of hers. Raises CheatingError where the machine cannot use it."""
        try:
            answers = await self.compute(end, _step, self._machine, reply)
        except (InputError, SequenceError, CryptoError) as error:
            raise CheatingError(f"{self._who} sent what no honest requester sends: {error.message}") from error
        self.add(answers)
        if self._noticed is not None:
            self._noticed()

    async def _work_ahead(self) -> None:
        try:
            _made(await _in_worker(self._machine.work_ahead))
        except _NoPlace:
            self.is_starved = True


def _may_pass(error: PoflError) -> bool:
    """Whether to try again. What she says of herself, an own failure or a full disk, is no fault of ours, whatever she calls
    it: she has until the deadline to mend it."""
    if isinstance(error, UnavailableError | AbortError):
        return True
    is_answer = isinstance(error, ProtocolError | InputError | AuthError | DeadlineError)
    return "peer" in error.values and not is_answer


class _NoPlace(Exception):  # noqa: N818  it never leaves this module
    """The process's own pool takes no more work."""


@dataclass(frozen=True, slots=True)
class _Raised:
    error: Exception


def _caught(function: Callable[[], R]) -> R | _Raised:
    try:
        return function()
    except Exception as error:  # noqa: BLE001  told apart by who asked
        return _Raised(error)


async def _in_worker(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | _Raised:
    """What the function returned or raised, told apart from the pool's own refusal. Raises _NoPlace."""
    try:
        return await run_cpu(_caught, functools.partial(function, *args, **kwargs))
    except (LimitError, UnavailableError) as error:
        raise _NoPlace(error.message) from error


def _made(outcome: R | _Raised) -> R:
    if not isinstance(outcome, _Raised):
        return outcome
    if isinstance(outcome.error, PoflError):
        raise outcome.error
    fault = outcome.error
    raise InternalError(f"a fault of this program: {type(fault).__name__}: {fault}") from fault


async def _farewell(call: Any) -> None:
    """Lets the requester end the stream, so that she does not take us for dead."""
    with contextlib.suppress(TimeoutError, PoflError, aio.AioRpcError):
        async with asyncio.timeout(FAREWELL):
            async for _ in call:
                pass


def _step(machine: Session, reply: verify_pb2.Envelope) -> tuple[Envelope, ...]:
    return machine.step(envelope_from_proto(reply))
