"""The requester's process over real connections: a whole evaluation, audits, refusals, and what a restart keeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from pofl.verify.v1 import verify_pb2, verify_pb2_grpc

from bench.requester_chain import key
from core.chain.transaction import Activation
from core.errors import (
    AuthError,
    BudgetError,
    DeadlineError,
    LimitError,
    MalformedError,
    NotFoundError,
    PoflError,
    SequenceError,
    TransactionError,
    UnavailableError,
)
from core.ids import AccountId, Amount, Correct, Height
from core.verification.audit_node import AuditedClaim, PoolFault, Valid
from core.verification.evaluation_pool import EvaluationResult
from core.verification.messages import Envelope
from requester import app
from requester.data import load_rows, scored_test_set
from services.rpc.convert_verify import envelope_from_proto, envelope_to_proto
from services.rpc.errors import translate
from services.rpc.task_client import RequesterClient
from services.rpc.verify_client import EvaluationClient, audit, check_stored
from services.rpc.views import TaskPhase, TaskView
from tests.requester_world import (
    Ready,
    World,
    audit_machine,
    evaluation_machine,
    make_world,
    stored_machine,
    write_rows,
)

pytestmark = pytest.mark.timeout(600)

LONG = 120.0
"""Seconds, for what takes one or two on a machine that does nothing else."""


async def refused(attempt: Callable[[float], Awaitable[object]], match: str) -> None:
    """It gives up after the time it has, and says why. On a busy machine a short time is over before there was an answer."""
    for seconds in (1.5, 10.0, LONG):
        with pytest.raises(DeadlineError) as caught:
            await attempt(seconds)
        if match in caught.value.message:
            return
    raise AssertionError(f"{match!r} was not said: {caught.value}")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    test, practice = write_rows(tmp_path)
    async with make_world(tmp_path, tasks=1, test_set=str(test), practice_set=str(practice), hidden=[4], reward=1000) as made:
        yield made


async def evaluated(world: World, task: TaskView, pool: str = "pool0") -> tuple[Ready, EvaluationResult]:
    """A pool that enters, prepares, commits and evaluates."""
    loaded = await world.load(task, "pool", pool)
    await world.enter(task, pool)
    ready = world.model(task, pool, loaded[1])
    client = EvaluationClient(world.channel("pool", pool), evaluation_machine(loaded, pool), peer="requester")
    await client.prepare(LONG)
    await world.commit(task, ready)
    return ready, await client.evaluate(ready.model, ready.c_w, LONG)


def claim_of(pool: str, ready: Ready, result: EvaluationResult, correct: int | None = None) -> AuditedClaim:
    found = result.correct if correct is None else Correct(correct)
    return AuditedClaim(AccountId(key(pool).public_key), found, result.vm, ready.body)


@pytest.mark.slow
async def test_a_whole_task(world: World) -> None:
    await world.start()
    task = await world.chain.published()
    # Pending: validators check the test set.
    loaded = await world.load(task, "node", "node1")
    await check_stored(world.channel("node", "node1"), stored_machine(loaded, "node1"), LONG)
    # A pool evaluates, N is what plain arithmetic gives.
    ready, result = await evaluated(world, task)
    plain = scored_test_set(load_rows(world.folder / "test.npz"), 3, task.spec.feature_scale_micro)
    assert result.correct == ready.model.count(plain.features, plain.labels)
    # Four validators audit at a time; she decrypts once.
    await world.claim(task, "pool0", result.correct, result.vm)
    claim = claim_of("pool0", ready, result)
    machines = [audit_machine(loaded, f"node{i}", claim) for i in range(4)]
    findings = await asyncio.gather(
        *(audit(world.channel("node", f"node{i}"), machine, LONG) for i, machine in enumerate(machines))
    )
    assert [type(finding) for finding in findings] == [Valid] * 4
    assert len({finding.z_digest for finding in findings if isinstance(finding, Valid)}) == 1
    # The model is hers when the work block is final, not before.
    owner = RequesterClient(world.channel("user", "user"))
    with pytest.raises(SequenceError, match="in phase work: its model is here when its work block is final"):
        await owner.fetch_model(task.task_id)
    await world.win(task, "pool0")
    async with asyncio.timeout(LONG):
        while not (await owner.own_tasks())[0].model_ready:  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(0.05)
    fetched = await owner.fetch_model()
    assert fetched.model.encode().tolist() == ready.model.encode().tolist()
    assert (fetched.accuracy.correct, fetched.model_commitment) == (result.correct, ready.c_w)


async def test_a_claim_that_is_too_high_is_found_out(world: World) -> None:
    await world.start()
    task = await world.chain.published()
    ready, result = await evaluated(world, task)
    await world.claim(task, "pool0", Correct(result.correct + 1), result.vm)
    loaded = await world.load(task, "node", "node1")
    machine = audit_machine(loaded, "node1", claim_of("pool0", ready, result, result.correct + 1))
    finding = await audit(world.channel("node", "node1"), machine, LONG)
    assert isinstance(finding, PoolFault)
    assert finding.correct == result.correct


async def test_budgets_are_counted_before_a_byte_leaves(world: World) -> None:
    await world.start()
    task = await world.chain.published()
    ready, _ = await evaluated(world, task)
    loaded = await world.load(task, "pool", "pool0")
    channel = world.channel("pool", "pool0")
    with pytest.raises(BudgetError):  # the first batch is used
        await EvaluationClient(channel, evaluation_machine(loaded, "pool0")).prepare(LONG)
    spare = EvaluationClient(channel, evaluation_machine(loaded, "pool0", batch=1))
    await spare.prepare(LONG)
    with pytest.raises(BudgetError):  # and so is the one evaluation
        await spare.evaluate(ready.model, ready.c_w, LONG)


@pytest.mark.slow
async def test_who_did_not_enter_or_commit_is_refused(world: World) -> None:
    await world.start()
    task = await world.chain.published()
    loaded = await world.load(task, "pool", "pool0")
    channel = world.channel("pool", "pool0")
    machine = EvaluationClient(channel, evaluation_machine(loaded, "pool0"))
    await refused(machine.prepare, "entry has closed")  # not yet
    await world.enter(task, "pool0", "pool1")
    await machine.prepare(LONG)
    with pytest.raises(AuthError, match="did not enter"):
        await EvaluationClient(world.channel("pool", "pool9"), evaluation_machine(loaded, "pool9")).prepare(LONG)
    ready = world.model(task, "pool1", loaded[1])
    await world.commit(task, ready)
    await refused(partial(machine.evaluate, ready.model, ready.c_w), "only committed ones")


async def test_who_may_call_what(world: World) -> None:
    await world.start()
    task = await world.chain.published()
    loaded = await world.load(task, "node", "node1")
    with pytest.raises(AuthError, match="it serves pool"):
        await EvaluationClient(world.channel("node", "node1"), evaluation_machine(loaded, "node1")).prepare(LONG)
    with pytest.raises(AuthError, match="is no validator"):
        await check_stored(world.channel("node", "node9"), stored_machine(loaded, "node9"), LONG)
    with pytest.raises(AuthError, match="it serves user"):
        await RequesterClient(world.channel("pool", "pool0")).own_tasks()
    await world.chain.change(task.task_id, phase=TaskPhase.OPEN)
    owner = RequesterClient(world.channel("user", "user"))
    async with asyncio.timeout(LONG):
        while (await owner.own_tasks())[0].phase is not TaskPhase.OPEN:  # noqa: ASYNC110 - until the requester has seen it
            await asyncio.sleep(0.02)
    with pytest.raises(SequenceError, match="while the task is pending"):
        await check_stored(world.channel("node", "node1"), stored_machine(loaded, "node1"), LONG)


async def converse(world: World, sent: list[Envelope], count: int, timeout: float = LONG) -> list[bytes]:
    """Sends envelopes as pool0 over a stream of its own; the first ``count`` replies as they are on the wire."""

    async def requests() -> AsyncIterator[verify_pb2.Envelope]:
        for envelope in sent:
            yield envelope_to_proto(envelope)
        await asyncio.sleep(timeout)

    stub = verify_pb2_grpc.VerifyServiceStub(world.channel("pool", "pool0"))
    call = stub.Evaluate(requests(), timeout=timeout)
    found: list[bytes] = []
    try:
        with translate("requester"):
            async for reply in call:
                found.append(reply.SerializeToString(deterministic=True))
                if len(found) == count:
                    break
    finally:
        call.cancel()
    return found


@pytest.mark.slow
async def test_a_killed_requester_replays_the_same_bytes_and_goes_on(world: World) -> None:
    await world.spawn()
    task = await world.chain.published()
    loaded = await world.load(task, "pool", "pool0")
    await world.enter(task, "pool0")
    machine = evaluation_machine(loaded, "pool0")
    outbox = list(machine.start())
    first = await converse(world, outbox, 2)  # base transfer and knowledge challenge: both depend on her secret coins
    await world.kill()
    await world.spawn()
    # Another message under a used number is refused, in the new process too.
    forged = list(evaluation_machine(loaded, "pool0").start())
    other = [outbox[0], *(Envelope(outbox[0].session, e.index, e.message) for e in forged[1:])]
    with pytest.raises(SequenceError, match="another message under number 1, which is used"):
        await converse(world, other, 2)
    assert await converse(world, outbox, 2) == first
    # And the honest one goes on where it was, through another kill between its two parts.
    answers = [a for reply in first for a in machine.step(envelope_from_proto(verify_pb2.Envelope.FromString(reply)))]
    outbox += answers
    committed = await converse(world, outbox, 3)
    outbox += machine.step(envelope_from_proto(verify_pb2.Envelope.FromString(committed[2])))
    accepted = await converse(world, outbox, 4)
    assert accepted[:3] == committed, "she opens the commitment that she made"
    machine.step(envelope_from_proto(verify_pb2.Envelope.FromString(accepted[3])))
    assert machine.is_prepared
    await world.kill()
    await world.spawn()
    ready = world.model(task, "pool0", loaded[1])
    await world.commit(task, ready)
    client = EvaluationClient(world.channel("pool", "pool0"), machine)
    client._line.add(outbox)
    client._line._settled = len(outbox)
    result = await client.evaluate(ready.model, ready.c_w, LONG)
    plain = scored_test_set(load_rows(world.folder / "test.npz"), 3, task.spec.feature_scale_micro)
    assert result.correct == ready.model.count(plain.features, plain.labels)
    assert list(world.chain.tasks) == [task.task_id]  # no second task for the same money


async def test_oversize_messages_are_refused_and_change_nothing(world: World) -> None:
    await world.start()
    task = await world.chain.published()
    loaded = await world.load(task, "pool", "pool0")
    await world.enter(task, "pool0")
    machine = evaluation_machine(loaded, "pool0")
    outbox = list(machine.start())
    stub = verify_pb2_grpc.VerifyServiceStub(world.channel("pool", "pool0"))

    async def send(*parts: verify_pb2.Envelope) -> None:
        async def requests() -> AsyncIterator[verify_pb2.Envelope]:
            for part in parts:
                yield part
            await asyncio.sleep(LONG)

        with translate("requester"):
            async for _ in stub.Evaluate(requests(), timeout=LONG):
                pass

    opening = envelope_to_proto(outbox[0])
    session = outbox[0].session
    large = verify_pb2.Envelope(session=session, index=1, part=verify_pb2.Part(count=2, data=bytes((1 << 20) + 1)))
    with pytest.raises((LimitError, MalformedError)):
        await send(opening, large)
    many = verify_pb2.Envelope(session=session, index=1, part=verify_pb2.Part(count=60, data=bytes(1 << 20)))
    with pytest.raises(LimitError, match="60 parts"):
        await send(opening, many)
    whole = verify_pb2.Envelope(session=session, index=1, part=verify_pb2.Part(count=2, data=bytes(5 << 20)))
    with pytest.raises(PoflError):  # gRPC's own limit
        await send(opening, whole)
    assert len(await converse(world, outbox, 2)) == 2


async def test_a_dead_caller_frees_its_place(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = app.session_limits
    # Nobody's whole time is over before somebody waits for its place.
    monkeypatch.setattr(app, "session_limits", lambda role: replace(limits(role), slot_s=2.0, audit_s=900.0))
    await world.start()
    task = await world.chain.published()
    loaded = await world.load(task, "node", "node1")
    # Both places are taken by validators that fall silent after opening.
    silent = []
    for name in ("node2", "node3"):
        opening = stored_machine(loaded, name).start()[0]

        async def requests(opening: Envelope = opening) -> AsyncIterator[verify_pb2.Envelope]:
            yield envelope_to_proto(opening)
            await asyncio.sleep(3 * LONG)

        call = verify_pb2_grpc.VerifyServiceStub(world.channel("node", name)).CheckStored(requests(), timeout=3 * LONG)
        await call.read()
        silent.append(call)
    # The slow ones lose their places after slot_s, long before they would leave.
    await check_stored(world.channel("node", "node1"), stored_machine(loaded, "node1"), LONG)
    with pytest.raises(UnavailableError, match="others wait"), translate("requester"):
        await silent[0].read()
    silent[1].cancel()


async def test_a_caller_who_vanishes_frees_its_place_at_once(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = app.session_limits
    # A place that is kept is kept for longer than anything here takes.
    monkeypatch.setattr(app, "session_limits", lambda role: replace(limits(role), slot_s=900.0))
    await world.start()
    task = await world.chain.published()
    loaded = await world.load(task, "node", "node1")
    for attempt in range(3):
        for name in ("node2", "node3"):
            opening = stored_machine(loaded, name, attempt).start()[0]

            async def requests(opening: Envelope = opening) -> AsyncIterator[verify_pb2.Envelope]:
                yield envelope_to_proto(opening)
                await asyncio.sleep(3 * LONG)

            call = verify_pb2_grpc.VerifyServiceStub(world.channel("node", name)).CheckStored(requests(), timeout=3 * LONG)
            await call.read()
            call.cancel()
    await check_stored(world.channel("node", "node1"), stored_machine(loaded, "node1"), LONG)
    assert "failed unexpectedly" not in caplog.text


async def test_refused_publications_leave_nothing(world: World) -> None:
    world.settings.pop("tasks")
    await world.start()
    owner = RequesterClient(world.channel("user", "user"))
    test, practice = world.folder / "test.npz", world.folder / "practice.npz"

    async def publish(path: Path = test, leak: int = 0) -> object:
        return await owner.publish("mine", path, practice, [4], Activation.RELU, Amount(1000), Amount(0), 0, leak)

    with pytest.raises(NotFoundError, match="no such file"):
        await publish(world.folder / "nothing.npz")
    with pytest.raises(MalformedError, match="leak_bits is 1, but 4 pools may learn"):
        await publish(leak=1)
    world.chain.refuse = TransactionError("no money", "insufficient-funds")
    with pytest.raises(TransactionError, match="no money"):
        await publish()
    world.chain.refuse = None
    assert await owner.own_tasks() == ()
    published = await owner.publish("mine", test, practice, [4], Activation.RELU, Amount(1000), Amount(0))
    assert published.warnings == (
        "leak_bits is 1056, a test row has 64: any one pool can reconstruct the test rows; labels leak no more than "
        "predictions say of them",
    )
    assert [task.name for task in await owner.own_tasks()] == ["mine"]
    secrets = world.folder / "data" / "secrets"
    assert [oct(path.stat().st_mode & 0o777) for path in secrets.iterdir()] == ["0o600"]


@pytest.mark.slow
async def test_tasks_follow_one_another_also_over_restarts(world: World) -> None:
    world.settings["tasks"] = 2
    await world.start()
    first = await world.chain.published()
    await world.stop()
    await world.start()
    await asyncio.sleep(0.5)
    assert len(world.chain.tasks) == 1  # the same task goes on
    loaded = await world.load(first, "node", "node1")
    await check_stored(world.channel("node", "node1"), stored_machine(loaded, "node1"), LONG)
    await world.chain.change(first.task_id, phase=TaskPhase.VOID, ended_height=Height(9))
    second = await world.chain.published(2)
    assert (second.spec.name, second.task_nonce != first.task_nonce) == ("task-2", True)
    await world.stop()
    await world.chain.change(second.task_id, phase=TaskPhase.VOID, ended_height=Height(10))
    await world.start()
    owner = RequesterClient(world.channel("user", "user"))
    async with asyncio.timeout(LONG):
        while {task.phase for task in await owner.own_tasks()} != {TaskPhase.VOID}:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.3)
    assert len(world.chain.tasks) == 2
    with pytest.raises(NotFoundError):  # an ended task is audited by nobody
        await check_stored(world.channel("node", "node1"), stored_machine(loaded, "node1", 1), LONG)


async def test_a_lost_answer_does_not_make_a_second_task(world: World) -> None:
    world.chain.lose_answers = 2
    await world.start()
    task = await world.chain.published()
    owner = RequesterClient(world.channel("user", "user"))
    async with asyncio.timeout(LONG):
        # The chain answers "duplicate" to what is handed in again, and that is as good.
        while [t.phase for t in await owner.own_tasks()] != [TaskPhase.PENDING]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    await asyncio.sleep(1.0)
    assert list(world.chain.tasks) == [task.task_id]
    loaded = await world.load(task, "node", "node1")
    await check_stored(world.channel("node", "node1"), stored_machine(loaded, "node1"), LONG)


@pytest.mark.slow
async def test_a_model_that_she_never_audited_is_fetched(world: World) -> None:
    await world.start()
    task = await world.chain.published()
    ready, result = await evaluated(world, task)
    await world.claim(task, "pool0", result.correct, result.vm)
    owner = RequesterClient(world.channel("user", "user"))
    await world.win(task, "pool0")
    await asyncio.sleep(0.3)
    assert not (await owner.own_tasks())[0].model_ready
    world.chain.bodies[ready.c_w] = ready.body[:-1] + b"?"  # another body under this name is refused
    await asyncio.sleep(0.3)
    assert not (await owner.own_tasks())[0].model_ready
    world.chain.bodies[ready.c_w] = ready.body
    async with asyncio.timeout(LONG):
        while not (await owner.own_tasks())[0].model_ready:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert (await owner.fetch_model(task.task_id)).model.encode().tolist() == ready.model.encode().tolist()
