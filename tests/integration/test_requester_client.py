"""services.rpc.verify_client against requesters who break off, fall silent, or send what no honest one sends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from grpc import aio
from pofl.verify.v1 import verify_pb2, verify_pb2_grpc

from core.errors import BudgetError, CheatingError, DeadlineError, NotFoundError, UnavailableError
from core.ids import NodeId
from core.ports import SystemRng
from core.verification.audit_node import AuditNode, RequesterFault, StoredNode, Valid
from core.verification.audit_requester import AnswerBook, AuditRequester, StoredRequester
from core.verification.body import commitment, make_body
from core.verification.evaluation_pool import EvaluationPool
from core.verification.evaluation_requester import EvaluationRequester
from core.verification.messages import Envelope
from core.verification.session import Session
from services.rpc import verify_client
from services.rpc.auth import Caller
from services.rpc.channel import connect
from services.rpc.convert_verify import envelope_from_proto, envelope_to_proto
from services.rpc.server import RpcServer
from services.rpc.verify_client import EvaluationClient, audit, check_stored
from tests.models import random_model
from tests.seeded import SeededRng
from tests.verification import POOL, VALIDATOR, Claims, Marks, Standing, claim_of, small_world

SERVICE = verify_pb2.DESCRIPTOR.services_by_name["VerifyService"].full_name
WORLD = small_world()
MODEL = random_model((8, 4, 3), WORLD.task.spec.activation, 1)
BODY, _ = make_body(WORLD.pk, MODEL, SeededRng("body"))
C_W = commitment(WORLD.task.chain_id, WORLD.task.task_id, POOL, BODY)
CLAIM = claim_of(WORLD, BODY, MODEL.count(WORLD.plain.features, WORLD.plain.labels))

LONG = 120.0
"""Seconds, for what takes one on a machine that does nothing else."""
Reply = Callable[[Envelope], verify_pb2.Envelope | None]


class Requester(verify_pb2_grpc.VerifyServiceServicer):
    """Honest machines behind a stream that misbehaves as the test says."""

    def __init__(self) -> None:
        self.machines: dict[bytes, Session] = {}
        self.streams = 0
        self.break_after: int | None = None
        """Replies on one stream before it breaks."""
        self.spoil: Reply = envelope_to_proto
        """What becomes of a reply; None: it is not sent."""
        self.refuse: Exception | None = None
        self.forget = False
        self.seen: list[int] = []

    def _make(self, kind: str, session: bytes) -> Session:
        w, rng, marks = WORLD, SystemRng(), Marks()
        node = NodeId(VALIDATOR.public_key)
        if kind == "Audit":
            book = AnswerBook(w.task, w.sk, w.plain, w.signer)
            return AuditRequester(w.task, session, node, w.sk, w.plain, w.signer, book, Claims(), marks, rng)
        if kind == "CheckStored":
            return StoredRequester(w.task, session, node, w.sk, w.signer, Claims(), marks, rng)
        return EvaluationRequester(w.task, session, POOL, w.sk, w.plain, w.signer, Standing(C_W), marks, rng)

    async def _serve(self, kind: str, requests: Any) -> AsyncIterator[verify_pb2.Envelope]:
        self.streams += 1
        if self.refuse is not None:
            raise self.refuse
        sent = 0
        async for request in requests:
            envelope = envelope_from_proto(request)
            self.seen.append(envelope.index)
            if self.forget and envelope.index:
                self.forget = False
                self.machines.clear()
                raise NotFoundError("begin with the first message")
            machine = self.machines.setdefault(envelope.session, self._make(kind, envelope.session))
            for reply in machine.step(envelope):
                if self.break_after is not None and sent >= self.break_after:
                    self.break_after += 1
                    raise UnavailableError("the stream broke")
                spoiled = self.spoil(reply)
                if spoiled is not None:
                    sent += 1
                    yield spoiled

    def Evaluate(self, request_iterator: Any, context: Any) -> AsyncIterator[verify_pb2.Envelope]:  # noqa: N802
        return self._serve("Evaluate", request_iterator)

    def Audit(self, request_iterator: Any, context: Any) -> AsyncIterator[verify_pb2.Envelope]:  # noqa: N802
        return self._serve("Audit", request_iterator)

    def CheckStored(self, request_iterator: Any, context: Any) -> AsyncIterator[verify_pb2.Envelope]:  # noqa: N802
        return self._serve("CheckStored", request_iterator)


class Line:
    def __init__(self, requester: Requester, channel: aio.Channel) -> None:
        self.requester, self.channel = requester, channel


@pytest.fixture
async def line(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Line]:
    monkeypatch.setattr(verify_client, "LONGEST_PAUSE", 0.05)
    requester = Requester()
    server = RpcServer("127.0.0.1:0", None, "127.0.0.1:0", role_rules={SERVICE: ["node"]})
    server.add(verify_pb2_grpc.add_VerifyServiceServicer_to_server, requester, SERVICE)
    await server.start()
    async with connect(server.address, None, expect_role=None, caller=Caller("node", "n")) as channel:
        yield Line(requester, channel)
    await server.stop(0)


def audit_machine() -> AuditNode:
    rng = SystemRng()
    return AuditNode(WORLD.task, rng.bytes(32), VALIDATOR, WORLD.pk, WORLD.encrypted, CLAIM, rng)


def evaluation() -> EvaluationPool:
    rng = SystemRng()
    return EvaluationPool(WORLD.task, rng.bytes(32), POOL, WORLD.pk, WORLD.encrypted, rng)


def stored_machine() -> StoredNode:
    rng = SystemRng()
    return StoredNode(WORLD.task, rng.bytes(32), NodeId(VALIDATOR.public_key), WORLD.pk, WORLD.encrypted, rng)


async def test_streams_that_break_after_every_reply_are_resumed(line: Line) -> None:
    line.requester.break_after = 1
    assert isinstance(await audit(line.channel, audit_machine(), LONG), Valid)
    assert line.requester.streams > 4
    line.requester.break_after = 1
    client = EvaluationClient(line.channel, evaluation())
    await client.prepare(LONG)
    line.requester.break_after = 1
    assert (await client.evaluate(MODEL, C_W, LONG)).correct == CLAIM.correct


async def test_only_what_is_needed_is_sent_again(line: Line) -> None:
    client = EvaluationClient(line.channel, evaluation())
    await client.prepare(LONG)
    line.requester.seen.clear()
    await client.evaluate(MODEL, C_W, LONG)
    assert min(line.requester.seen) > 2  # the megabytes of the offline part stay here


async def test_a_requester_who_asks_for_the_beginning_gets_it(line: Line) -> None:
    client = EvaluationClient(line.channel, evaluation())
    await client.prepare(LONG)
    line.requester.forget = True
    line.requester.seen.clear()
    # These machines draw new coins, unlike the requester's process: her other replies are a lie that is noticed.
    with pytest.raises(CheatingError, match="no honest requester"):
        await client.evaluate(MODEL, C_W, LONG)
    assert 0 in line.requester.seen


@pytest.mark.parametrize(
    "spoil",
    [
        lambda reply: verify_pb2.Envelope(session=reply.session, index=reply.index),
        lambda reply: verify_pb2.Envelope(session=bytes(32), index=reply.index, stored_opened=verify_pb2.StoredOpened()),
        lambda reply: verify_pb2.Envelope(session=reply.session, index=7, stored_opened=verify_pb2.StoredOpened()),
        lambda reply: verify_pb2.Envelope(session=reply.session, hints=verify_pb2.Hints(hints=[b"x"])),
    ],
)
async def test_what_no_honest_requester_sends_is_her_fault(line: Line, spoil: Reply) -> None:
    line.requester.spoil = spoil
    finding = await audit(line.channel, audit_machine(), LONG)
    assert isinstance(finding, RequesterFault)
    assert "no honest requester" in finding.reason
    with pytest.raises(CheatingError):
        await check_stored(line.channel, stored_machine(), LONG)


async def test_silence_ends_at_the_deadline(line: Line) -> None:
    line.requester.spoil = lambda reply: None
    finding = await audit(line.channel, audit_machine(), 0.6)
    assert isinstance(finding, RequesterFault)
    assert "did not answer within 0.6 s" in finding.reason
    with pytest.raises(DeadlineError):
        await check_stored(line.channel, stored_machine(), 0.6)


async def test_a_used_up_attempt_is_no_finding(line: Line) -> None:
    line.requester.refuse = BudgetError("used up")
    machine = audit_machine()
    with pytest.raises(BudgetError, match="used up") as caught:
        await audit(line.channel, machine, LONG)
    assert "peer" in caught.value.values
    assert machine.finding is None


async def test_who_is_not_there_is_tried_until_the_deadline() -> None:
    async with connect("127.0.0.1:1", None, expect_role=None, caller=Caller("node", "n")) as channel:
        # On a busy machine a short time is over before the first try is.
        for seconds in (0.8, 8.0, 80.0):
            finding = await audit(channel, audit_machine(), seconds)
            assert isinstance(finding, RequesterFault)
            if "cannot be reached" in finding.reason:
                break
        assert isinstance(finding, RequesterFault)
        assert "cannot be reached" in finding.reason


async def test_a_cancelled_caller_leaves_nothing_running(line: Line) -> None:
    line.requester.spoil = lambda reply: None
    task = asyncio.create_task(audit(line.channel, audit_machine(), 300.0))
    async with asyncio.timeout(LONG):
        while not line.requester.seen:  # noqa: ASYNC110 - a thread's state
            await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.wait((task,), timeout=LONG)
    assert task.cancelled()
