"""requester.sessions without a network: restarts in mid-session, used-up runs, places."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest

from core.chain import build
from core.chain.state import Validator
from core.chain.vote import SignedVerdict, Verdict, VerdictKind
from core.crypto.signing import KeyPair
from core.errors import (
    AuthError,
    BudgetError,
    CheatingError,
    DeadlineError,
    MalformedError,
    NotFoundError,
    SequenceError,
    TurnError,
    UnavailableError,
)
from core.ids import AccountId, Amount, Correct, Digest, Height, Milliseconds, ModelCommitment, NodeId, Signature
from core.ports import SystemRng
from core.verification import audit_requester
from core.verification.audit_node import AuditNode, StoredNode, Valid
from core.verification.body import make_body
from core.verification.evaluation_pool import EvaluationPool
from core.verification.messages import Abort, Envelope, KnowledgeOpening, KnowledgeShares, StoredOpen, ZeroQueries
from core.verification.session import Session
from core.verification.transcript import Purpose
from requester.models import TaskBooks, TaskSides, _KeptBook
from requester.sessions import SessionLimits, Sessions, _compute, _Live
from requester.standing import Follower
from requester.store import RequesterStore, SessionCoins, SessionRecord
from services.rpc.chain_client import TaskUpdate
from services.rpc.views import EntryView, TaskPhase, TaskView
from services.storage import Memory
from tests.models import random_model
from tests.seeded import SeededRng
from tests.verification import claim_of, small_world

WORLD = small_world()
TASK = WORLD.task
STRANGER = AccountId(KeyPair.generate(SeededRng("stranger")).public_key)
POOL = AccountId(KeyPair.generate(SeededRng("pool")).public_key)
NODES = [KeyPair.generate(SeededRng(f"node {i}")) for i in range(4)]
VALIDATORS = tuple(Validator(NodeId(node.public_key), 1, Amount(0), False) for node in NODES)
MODEL = random_model((8, 4, 3), TASK.spec.activation, 1)
BODY, _ = make_body(WORLD.pk, MODEL, SeededRng("body"))
CLAIM = claim_of(WORLD, BODY, MODEL.count(WORLD.plain.features, WORLD.plain.labels), POOL)
ENTRY = EntryView(POOL, Amount(1), "127.0.0.1:1", CLAIM.vm.model_commitment, Correct(CLAIM.correct), CLAIM.vm)
FAST = SessionLimits(audit_slots=1, audit_queue=1, slot_s=0.4, audit_s=120.0, silence_s=120.0, chain_s=0.1)


def view(phase: TaskPhase, entry: EntryView = ENTRY) -> TaskView:
    return TaskView(
        TASK.task_id, TASK.requester, TASK.spec, Amount(1), Amount(1), Amount(1), bytes(32), Height(1), phase,
        Milliseconds(1), entries=(entry,),
    )  # fmt: skip


class Chain:
    """A stream of updates that the test writes."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[TaskUpdate] = asyncio.Queue()
        self.height = 0

    async def watch_tasks(self) -> AsyncIterator[TaskUpdate]:
        while True:
            yield await self.queue.get()
            self.queue.task_done()

    async def become(self, *tasks: TaskView) -> None:
        self.height += 1
        self.queue.put_nowait(TaskUpdate(Height(self.height), Milliseconds(1), tasks))
        async with asyncio.timeout(60):
            await self.queue.join()


class Bench:
    """Sessions over a store that outlives them."""

    def __init__(self, kv: Memory) -> None:
        self.kv = kv
        self.chain = Chain()
        self.tasks: set[asyncio.Task[None]] = set()
        self.made: list[Sessions] = []

    def start(self, limits: SessionLimits = FAST) -> Sessions:
        """A new process, as it were."""
        store = RequesterStore(self.kv)
        follower = Follower(self.chain, TASK.chain_id, VALIDATORS)  # type: ignore[arg-type]
        for task in self.tasks:
            task.cancel()
        self.tasks = {asyncio.create_task(follower.run())}
        books = TaskBooks(TASK.chain_id, WORLD.signer, store, None)  # type: ignore[arg-type]
        book = _KeptBook(TASK, WORLD.sk, WORLD.plain, WORLD.signer, store)
        books._open[TASK.task_id] = TaskSides(TASK, WORLD.sk, WORLD.plain, book)
        self.made.append(Sessions(books, follower, store, WORLD.signer, SystemRng(), limits))
        return self.made[-1]

    def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        for sessions in self.made:
            sessions.close()


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench(Memory())
    yield made
    made.close()


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not is_so():  # noqa: ASYNC110 - what is looked at has no event
            await asyncio.sleep(0.01)


async def talk(
    sessions: Sessions,
    purpose: Purpose,
    caller: bytes,
    sent: Sequence[Envelope],
    machine: Session | None = None,
    is_done: Callable[[], bool] = lambda: False,
) -> tuple[list[Envelope], list[Envelope]]:
    """One stream: sends, lets ``machine`` answer, until both are silent. ``(all sent, all received)``."""
    outbox, replies = list(sent), []
    waiting: asyncio.Queue[Envelope | None] = asyncio.Queue()
    for envelope in outbox:
        waiting.put_nowait(envelope)
    if machine is None:
        waiting.put_nowait(None)

    async def incoming() -> AsyncIterator[Envelope]:
        while (envelope := await waiting.get()) is not None:
            yield envelope

    async for reply in sessions.serve(purpose, caller, incoming()):
        replies.append(reply)
        if machine is None:
            continue
        for answer in machine.step(reply):
            if answer.index > outbox[-1].index:
                outbox.append(answer)
                waiting.put_nowait(answer)
        if machine.is_over or is_done():
            waiting.put_nowait(None)
    return outbox, replies


def audit_machine(node: int = 0, attempt: int = 0) -> AuditNode:
    rng = SystemRng()
    return AuditNode(TASK, rng.bytes(32), NODES[node], WORLD.pk, WORLD.encrypted, CLAIM, rng, attempt)


def pool_machine(batch: int = 0, pool: AccountId = POOL) -> EvaluationPool:
    rng = SystemRng()
    return EvaluationPool(TASK, rng.bytes(32), pool, WORLD.pk, WORLD.encrypted, rng, batch)


async def test_an_audit_survives_restarts_at_every_message(bench: Bench) -> None:
    node = audit_machine()
    caller = NODES[0].public_key
    whole, replies = await audited(bench, node, caller)
    assert isinstance(node.finding, Valid)
    for count in range(1, len(whole) + 1):
        # Killed after `count` messages: everything is sent again to a new process.
        sessions = bench.start()
        await bench.chain.become(view(TaskPhase.WORK))
        _, again = await talk(sessions, Purpose.AUDIT, caller, whole[:count])
        assert again == replies[: len(again)]
    assert again == replies


async def audited(bench: Bench, node: AuditNode, caller: bytes) -> tuple[list[Envelope], list[Envelope]]:
    sessions = bench.start()
    await bench.chain.become(view(TaskPhase.WORK))
    return await talk(sessions, Purpose.AUDIT, caller, node.start(), node)


async def test_secret_coins_answer_one_message_only_also_after_a_restart(bench: Bench) -> None:
    # The same mask under two challenges would give the model away: w1 - w2 = (χ1 - χ2) W_1 r.
    node = audit_machine()
    whole, _ = await audited(bench, node, NODES[0].public_key)
    changed = next(i for i, envelope in enumerate(whole) if type(envelope.message).__name__ == "Challenges")
    challenges = whole[changed].message
    forged = replace(whole[changed], message=replace(challenges, chi=tuple(c ^ 1 for c in challenges.chi)))  # type: ignore[union-attr, call-arg]
    sessions = bench.start()
    await bench.chain.become(view(TaskPhase.WORK))
    with pytest.raises(SequenceError, match=f"another message under number {changed}, which is used"):
        await talk(sessions, Purpose.AUDIT, NODES[0].public_key, [*whole[:changed], forged])


async def test_each_attempt_is_charged_once(bench: Bench) -> None:
    for attempt in range(3):
        await audited(bench, audit_machine(attempt=attempt), NODES[0].public_key)
    with pytest.raises(BudgetError):
        await audited(bench, audit_machine(attempt=2), NODES[0].public_key)
    await audited(bench, audit_machine(node=1), NODES[1].public_key)  # others have their own


async def test_a_refused_knowledge_check_uses_the_run_up_for_ever(bench: Bench) -> None:
    sessions = bench.start()
    await bench.chain.become(view(TaskPhase.TRAINING))
    pool = pool_machine()
    outbox = list(pool.start())
    _, replies = await talk(sessions, Purpose.EVALUATION, POOL, outbox)
    honest = [answer for reply in replies for answer in pool.step(reply)]
    opening = honest[0].message
    assert isinstance(opening, KnowledgeOpening)
    _, replies = await talk(sessions, Purpose.EVALUATION, POOL, honest)
    honest += [answer for reply in replies for answer in pool.step(reply)]
    shares = honest[-1].message
    assert isinstance(shares, KnowledgeShares)
    forged = replace(honest[-1], message=KnowledgeShares(shares.g[5:] + shares.g[:5]))
    with pytest.raises(CheatingError, match="knowledge check failed"):
        await talk(sessions, Purpose.EVALUATION, POOL, [forged])
    for again in (sessions, bench.start()):
        await bench.chain.become(view(TaskPhase.TRAINING))
        with pytest.raises(SequenceError, match="the session is over"):
            await talk(again, Purpose.EVALUATION, POOL, [*outbox, *honest])


async def test_what_the_chain_does_not_allow_yet_costs_nothing(bench: Bench) -> None:
    sessions = bench.start()
    await bench.chain.become(view(TaskPhase.ENTRY))
    pool = pool_machine()
    outbox = list(pool.start())
    with pytest.raises(UnavailableError, match="entry has closed"):
        await talk(sessions, Purpose.EVALUATION, POOL, outbox)
    await bench.chain.become(view(TaskPhase.TRAINING, replace(ENTRY, correct=None)))
    await talk(sessions, Purpose.EVALUATION, POOL, outbox, pool, lambda: pool.is_prepared)
    online = list(pool.evaluate(MODEL, CLAIM.vm.model_commitment))
    with pytest.raises(UnavailableError, match="when commits have closed"):
        await talk(sessions, Purpose.EVALUATION, POOL, online)
    await bench.chain.become(view(TaskPhase.EVALUATION))
    await talk(sessions, Purpose.EVALUATION, POOL, online, pool)
    assert pool.result is not None
    assert pool.result.correct == CLAIM.correct


async def test_a_claim_is_audited_at_its_work_height_only(bench: Bench) -> None:
    for phase in (TaskPhase.EVALUATION, TaskPhase.OPEN):
        sessions = bench.start()
        await bench.chain.become(view(phase))
        with pytest.raises(UnavailableError, match="is not claimed, or claims are still open"):
            await talk(sessions, Purpose.AUDIT, NODES[0].public_key, audit_machine().start())


async def test_strangers_and_wrong_openings_are_refused(bench: Bench) -> None:
    sessions = bench.start()
    await bench.chain.become(view(TaskPhase.TRAINING))
    session = bytes(32)
    cases: list[tuple[Purpose, bytes, Envelope, type[Exception]]] = [
        (Purpose.EVALUATION, b"\x09" * 32, pool_machine().start()[0], AuthError),
        (Purpose.EVALUATION, STRANGER, pool_machine(pool=STRANGER).start()[0], AuthError),
        (Purpose.EVALUATION, POOL, Envelope(session, 0, ZeroQueries(())), SequenceError),
        (Purpose.EVALUATION, POOL, Envelope(session, 1, ZeroQueries(())), NotFoundError),
        (Purpose.EVALUATION, POOL, audit_machine().start()[0], SequenceError),
        (Purpose.AUDIT, POOL, audit_machine().start()[0], AuthError),
        (Purpose.STORED_CHECK, NODES[0].public_key, stored_opening(), SequenceError),
    ]
    for purpose, caller, envelope, error in cases:
        with pytest.raises(error, match=r"did not enter|is no validator|pending|open this kind|in memory"):
            await talk(sessions, purpose, caller, [envelope])
    other = StoredOpen(TASK.chain_id, TASK.task_id, NodeId(NODES[0].public_key), 0)
    unknown = Envelope(session, 0, replace(other, task_id=b"\x08" * 32))
    with pytest.raises(NotFoundError, match="is not an open task of this requester"):
        await talk(sessions, Purpose.STORED_CHECK, NODES[0].public_key, [unknown])


def stored_opening(node: int = 0) -> Envelope:
    rng = SystemRng()
    machine = StoredNode(TASK, rng.bytes(32), NodeId(NODES[node].public_key), WORLD.pk, WORLD.encrypted, rng)
    return machine.start()[0]


async def test_places_are_given_up_when_others_wait(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("requester.sessions.time", SimpleNamespace(monotonic=lambda: now))
    sessions = bench.start()
    await bench.chain.become(view(TaskPhase.PENDING))
    gone = asyncio.Event()

    def stream(node: int, after: Callable[[], object]) -> asyncio.Task[list[Envelope]]:
        async def incoming() -> AsyncIterator[Envelope]:
            yield stored_opening(node)
            after()
            await gone.wait()

        async def serve() -> list[Envelope]:
            caller = NODES[node].public_key
            return [reply async for reply in sessions.serve(Purpose.STORED_CHECK, caller, incoming())]

        return asyncio.create_task(serve())

    begun = asyncio.Event()
    slow = stream(0, begun.set)
    await asyncio.wait_for(begun.wait(), 60)
    again = asyncio.Event()
    second = stream(1, again.set)
    await until(lambda: sessions._audits.waiting == 1)
    with pytest.raises(UnavailableError, match="1 wait for an audit already"):
        await stream(2, lambda: None)
    assert not slow.done()
    now += 2 * FAST.slot_s
    with pytest.raises(UnavailableError, match="others wait for this place"):
        await asyncio.wait_for(slow, 60)
    await asyncio.wait_for(again.wait(), 60)
    now += 2 * FAST.slot_s
    await asyncio.sleep(FAST.slot_s)  # nobody waits for the second one's place: it keeps it
    assert not second.done()
    second.cancel()  # as when its connection breaks: the place is free at once
    await asyncio.wait((second,))
    third = stream(3, gone.set)
    async with asyncio.timeout(60):
        assert len(await third) == 1


async def test_two_streams_of_one_session_are_one_machine_whoever_crowds_it_out(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session with an open stream stays, so that no second machine answers another message with the same coins.

    Two answers to different rows would have the same γ: the knowledge check of the second is known before its rows are.
    """
    monkeypatch.setattr("requester.sessions.MAX_LIVE", 2)
    sessions = bench.start()
    await bench.chain.become(view(TaskPhase.TRAINING))
    machine = pool_machine()
    opening, base, *rows = machine.start()
    go_on, begun = asyncio.Event(), asyncio.Event()

    async def held() -> AsyncIterator[Envelope]:
        yield opening
        yield base
        begun.set()
        await go_on.wait()
        for part in rows:
            yield part

    async def serve() -> list[Envelope]:
        return [reply async for reply in sessions.serve(Purpose.EVALUATION, POOL, held())]

    first = asyncio.create_task(serve())
    await begun.wait()
    for number in range(20):
        with pytest.raises(BudgetError):
            await talk(sessions, Purpose.EVALUATION, POOL, [replace(opening, session=bytes([number]) * 32)])
    others = [replace(part, session=opening.session) for part in pool_machine().start()[2:]]
    _, answered = await talk(sessions, Purpose.EVALUATION, POOL, [opening, base, *others])
    assert [type(reply.message).__name__ for reply in answered] == ["BaseTransfer", "KnowledgeChallenge"]
    go_on.set()
    with pytest.raises(SequenceError, match="another message under number 2, which is used"):
        await first
    assert len(sessions._live) <= 2


async def test_a_session_opened_twice_at_a_time_is_one_machine(bench: Bench) -> None:
    sessions = bench.start()
    await bench.chain.become(view(TaskPhase.TRAINING))
    opening = pool_machine().start()[0]
    await asyncio.gather(*(talk(sessions, Purpose.EVALUATION, POOL, [opening]) for _ in range(4)))
    assert len(sessions._live) == 1
    (live,) = sessions._live.values()
    assert (live.users, len(live.received), len(sessions._opening)) == (0, 1, 0)


async def test_a_caller_has_few_streams_at_a_time(bench: Bench) -> None:
    sessions = bench.start()
    await bench.chain.become(view(TaskPhase.TRAINING))
    gone = asyncio.Event()
    opening = pool_machine().start()[0]

    async def incoming() -> AsyncIterator[Envelope]:
        yield opening
        await gone.wait()

    async def serve() -> None:
        async for _ in sessions.serve(Purpose.EVALUATION, POOL, incoming()):
            pass

    streams = [asyncio.create_task(serve()) for _ in range(8)]
    await until(lambda: sessions._streams[POOL] == 8)
    with pytest.raises(UnavailableError, match="8 streams of this caller are open already"):
        await serve()
    gone.set()
    await asyncio.gather(*streams)
    await serve()


async def test_one_validator_does_not_take_every_place(bench: Bench) -> None:
    """Else one that opens streams and falls silent keeps the others from their audits, and an honest requester pays."""
    sessions = bench.start(replace(FAST, audit_slots=2, audit_queue=64))
    await bench.chain.become(view(TaskPhase.PENDING))
    gone = asyncio.Event()

    openings = [stored_opening(node) for node in range(2)]

    def stream(node: int, after: Callable[[], object]) -> asyncio.Task[list[Envelope]]:
        async def incoming() -> AsyncIterator[Envelope]:
            yield openings[node]
            after()
            await gone.wait()

        async def serve() -> list[Envelope]:
            caller = NODES[node].public_key
            return [reply async for reply in sessions.serve(Purpose.STORED_CHECK, caller, incoming())]

        return asyncio.create_task(serve())

    greedy = [stream(0, lambda: None) for _ in range(7)]
    await until(lambda: sum(task.done() for task in greedy) >= 7 - 2)
    refused = [task.exception() for task in greedy if task.done()]
    assert len(refused) == 7 - 2
    assert all("2 places" in str(error) for error in refused)
    async with asyncio.timeout(60):
        assert len(await stream(1, gone.set)) == 1
    await asyncio.gather(*greedy, return_exceptions=True)


async def test_refused_openings_leave_nothing_on_disk(bench: Bench) -> None:
    """Else a pool that has entered fills the requester's disk with sessions for a batch that is used up."""
    sessions = bench.start()
    await bench.chain.become(view(TaskPhase.TRAINING))
    opening = pool_machine().start()[0]
    await talk(sessions, Purpose.EVALUATION, POOL, [opening])
    kept = list(bench.kv.iterate(b""))
    for number in range(10):
        for _ in range(2):
            with pytest.raises((BudgetError, SequenceError)):
                await talk(sessions, Purpose.EVALUATION, POOL, [replace(opening, session=bytes([number]) * 32)])
    assert list(bench.kv.iterate(b"")) == kept


async def test_a_validator_that_does_not_read_loses_its_place(bench: Bench) -> None:
    """Else two streams that nobody reads keep all places, and an honest requester is found silent by everybody else."""
    sessions = bench.start()
    await bench.chain.become(view(TaskPhase.PENDING))
    held = asyncio.Event()

    async def incoming(node: int) -> AsyncIterator[Envelope]:
        yield stored_opening(node)

    async def stuck() -> None:
        async for _ in sessions.serve(Purpose.STORED_CHECK, NODES[0].public_key, incoming(0)):
            held.set()
            await asyncio.sleep(3600)  # as in a write that flow control holds up

    task = asyncio.create_task(stuck())
    await held.wait()
    replies = sessions.serve(Purpose.STORED_CHECK, NODES[1].public_key, incoming(1))
    async with asyncio.timeout(60):
        assert len([reply async for reply in replies]) == 1
    await asyncio.wait((task,), timeout=60)
    assert task.cancelled()


async def test_a_pool_that_does_not_read_is_let_go(bench: Bench) -> None:
    sessions = bench.start(replace(FAST, silence_s=0.2))
    await bench.chain.become(view(TaskPhase.TRAINING))
    sent = pool_machine().start()

    async def incoming() -> AsyncIterator[Envelope]:
        for envelope in sent:
            yield envelope

    async def stuck() -> None:
        async for _ in sessions.serve(Purpose.EVALUATION, POOL, incoming()):
            await asyncio.sleep(3600)

    task = asyncio.create_task(stuck())
    await asyncio.wait((task,), timeout=60)
    assert task.cancelled()


async def test_a_silent_pool_is_let_go(bench: Bench) -> None:
    sessions = bench.start(replace(FAST, silence_s=0.2))
    await bench.chain.become(view(TaskPhase.TRAINING))

    async def incoming() -> AsyncIterator[Envelope]:
        yield pool_machine().start()[0]
        await asyncio.sleep(3600)

    with pytest.raises(DeadlineError, match="silent"):
        async for _ in sessions.serve(Purpose.EVALUATION, POOL, incoming()):
            pass


async def test_a_model_is_decrypted_once_for_all_validators(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = audit_requester.bodies.decrypt_body

    def counted(*args: object) -> object:
        calls.append(args)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(audit_requester.bodies, "decrypt_body", counted)
    sessions = bench.start(replace(FAST, audit_slots=4))
    await bench.chain.become(view(TaskPhase.WORK))
    machines = [audit_machine(node) for node in range(4)]
    await asyncio.gather(*(talk(sessions, Purpose.AUDIT, NODES[i].public_key, m.start(), m) for i, m in enumerate(machines)))
    assert [type(m.finding) for m in machines] == [Valid] * 4
    assert len(calls) == 1
    assert RequesterStore(bench.kv).decrypted(TASK.task_id, CLAIM.vm.model_commitment) is not None


async def test_activity_is_seen_by_who_looks_on(bench: Bench) -> None:
    sessions = bench.start()
    await bench.chain.become(view(TaskPhase.WORK))
    node = audit_machine()
    await talk(sessions, Purpose.AUDIT, NODES[0].public_key, node.start(), node)
    async for activity in sessions.activity.watch():
        assert (activity.kind, activity.step, activity.peer) == ("audit", "ZeroNumbers", NODES[0].public_key)
        break


class Moody:
    """A machine that draws coins and then refuses its first message; the second time it answers."""

    is_over = False

    def __init__(self, coins: SessionCoins, refusals: int) -> None:
        self.coins, self.refusals = coins, refusals

    def step(self, envelope: Envelope) -> tuple[Envelope, ...]:
        drawn = self.coins.bytes(32)
        if self.refusals:
            self.refusals -= 1
            raise SequenceError("not now")
        return (Envelope(envelope.session, 0, Abort(drawn.hex())),)


def test_a_refused_try_does_not_move_the_coins() -> None:
    # A new process never sees the refused try: its replies must be the same all the same.
    found = []
    for refusals in (1, 0):
        store = RequesterStore(Memory())
        record, coins = SessionRecord(1, TASK.task_id, POOL, bytes(32), b"s" * 32), SessionCoins(b"s" * 32)
        machine = Moody(coins, refusals)
        live = _Live(record, Purpose.EVALUATION, machine, coins, [], None)  # type: ignore[arg-type]
        envelope = Envelope(bytes(32), 0, Abort("x"))
        for _ in range(refusals):
            with pytest.raises(SequenceError):
                _compute(live, envelope, store)
        found.append(_compute(live, envelope, store))
    assert found[0] == found[1]


# Whose turn it is

RIVAL = AccountId(KeyPair.generate(SeededRng("rival")).public_key)
RIVAL_C_W = ModelCommitment(b"\x05" * 32)
HIGHER = EntryView(RIVAL, Amount(1), "127.0.0.1:2", RIVAL_C_W, Correct(20), replace(CLAIM.vm, model_commitment=RIVAL_C_W))


def lower_view() -> TaskView:
    """Ours is the second claim of two."""
    return replace(view(TaskPhase.WORK), entries=(HIGHER, ENTRY))


def verdict_on_rival(node: int, height: int, kind: VerdictKind = VerdictKind.POOL_FAULT) -> SignedVerdict:
    verdict = Verdict(
        TASK.chain_id, Height(height), TASK.task_id, RIVAL, RIVAL_C_W, kind, Correct(0), "", Digest(bytes(32)),
        NodeId(NODES[node].public_key),
    )  # fmt: skip
    return build.make_verdict(NODES[node], verdict)


def lower_machine(*higher: SignedVerdict, attempt: int = 0) -> AuditNode:
    rng = SystemRng()
    claim = replace(CLAIM, higher=higher)
    return AuditNode(TASK, rng.bytes(32), NODES[0], WORLD.pk, WORLD.encrypted, claim, rng, attempt)


async def test_a_lower_claim_is_refused_uncharged_until_its_turn(bench: Bench) -> None:
    """A validator that asks for a loser's audit. Before, any claim on chain was audited at the work height."""
    caller = NODES[0].public_key
    sessions = bench.start()
    await bench.chain.become(lower_view())
    height = bench.chain.height + 1
    for _ in range(5):
        with pytest.raises(TurnError, match="neither refuted nor skipped"):
            await talk(sessions, Purpose.AUDIT, caller, lower_machine().start())
    with pytest.raises(TurnError):
        await talk(sessions, Purpose.AUDIT, caller, lower_machine(verdict_on_rival(0, height)).start())
    forged = replace(verdict_on_rival(1, height), signature=Signature(bytes(64)))
    with pytest.raises(MalformedError, match="does not count"):
        await talk(sessions, Purpose.AUDIT, caller, lower_machine(forged).start())
    with pytest.raises(MalformedError, match="does not count"):
        await talk(sessions, Purpose.AUDIT, caller, lower_machine(verdict_on_rival(1, height + 1)).start())
    # All three attempts are still there.
    shown = [verdict_on_rival(n, height) for n in (0, 1)]
    for attempt in range(3):
        node = lower_machine(*shown, attempt=attempt)
        await talk(sessions, Purpose.AUDIT, caller, node.start(), node)
        assert isinstance(node.finding, Valid)
    with pytest.raises(BudgetError):
        await talk(sessions, Purpose.AUDIT, caller, lower_machine(*shown, attempt=2).start())


async def test_an_audit_of_a_lower_claim_survives_a_restart(bench: Bench) -> None:
    caller = NODES[0].public_key
    sessions = bench.start()
    await bench.chain.become(lower_view())
    height = bench.chain.height + 1
    node = lower_machine(*(verdict_on_rival(n, height) for n in (0, 1)))
    whole, replies = await talk(sessions, Purpose.AUDIT, caller, node.start(), node)
    sessions = bench.start()
    bench.chain.height -= 1
    await bench.chain.become(lower_view())
    _, again = await talk(sessions, Purpose.AUDIT, caller, whole)
    assert again == replies
