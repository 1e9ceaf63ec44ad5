"""Attacks 9, 14 and 15 where the requester keeps sessions: crashes at every write, races for a budget, 16 audits at once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import replace

import numpy as np
import pytest

from core.crypto.homomorphic import PARAMS, decrypt, expand_uniform, unpack
from core.crypto.signing import KeyPair
from core.errors import AuthError, BudgetError, PoflError, SequenceError, StorageError
from core.ids import NodeId
from core.ports import SystemRng
from core.verification.audit_node import Valid
from core.verification.audit_requester import hint_session, run_coins
from core.verification.field import T, matmul, multiply, unpack_values
from core.verification.messages import (
    AuditOpen,
    Challenges,
    Envelope,
    Hints,
    MaskedProducts,
    RunSeeds,
    ZeroCommitments,
    ZeroQueries,
)
from core.verification.task import PublicKind
from core.verification.transcript import Purpose
from services.rpc.views import TaskPhase
from services.storage import Memory
from tests.seeded import SeededRng
from tests.unit import test_requester_sessions as base

WIDE = replace(base.FAST, audit_slots=4, audit_queue=64, slot_s=60.0, audit_s=60.0, silence_s=60.0)


class SlowMemory(Memory):
    """Answers late about marks, as a disk may: whoever looks and then writes is overtaken."""

    def get(self, key: bytes) -> bytes | None:
        found = super().get(key)
        if key.startswith(b"m"):
            time.sleep(0.02)
        return found


class Crashing(Memory):
    """Fails at one write, before or after it is on disk, and at every one after that."""

    def __init__(self, at: int, is_written: bool) -> None:
        super().__init__()
        self.left, self.is_written = at, is_written

    def put_batch(self, puts: Mapping[bytes, bytes], deletes: Iterable[bytes] = (), sync: bool = True) -> None:
        self.left -= 1
        if self.left > 0 or (self.left == 0 and self.is_written):
            super().put_batch(puts, deletes, sync)
        if self.left <= 0:
            raise StorageError("the disk is gone")


@pytest.fixture
async def bench() -> AsyncIterator[base.Bench]:
    made = base.Bench(SlowMemory())
    yield made
    made.close()


async def opened(bench: base.Bench, phase: TaskPhase) -> base.Sessions:
    sessions = bench.start(WIDE)
    await bench.chain.become(base.view(phase))
    return sessions


async def outcome(sessions: base.Sessions, purpose: Purpose, caller: bytes, sent: list[Envelope]) -> str:
    """What one stream came to: the kinds of its replies, or the error."""
    try:
        _, replies = await base.talk(sessions, purpose, caller, sent)
    except PoflError as error:
        return type(error).__name__
    return ",".join(type(reply.message).__name__ for reply in replies) or "taken"


async def test_sessions_that_race_for_one_attempt_are_one(bench: base.Bench) -> None:
    """Attack 14. Eight sessions of one validator for the same attempt, at once; of one pool for the same batch; all three
    protocols' counters. Fails without the lock in RequesterStore.mark: several find the mark free."""
    node = base.NODES[0].public_key
    sessions = await opened(bench, TaskPhase.WORK)
    audits = [list(base.audit_machine().start()) for _ in range(2)]
    found = await asyncio.gather(*(outcome(sessions, Purpose.AUDIT, node, sent) for sent in audits))
    assert sorted(found) == ["BodyWanted", "BudgetError"]
    sessions = await opened(bench, TaskPhase.TRAINING)
    batches = [list(base.pool_machine().start()[:1]) for _ in range(8)]
    found = await asyncio.gather(*(outcome(sessions, Purpose.EVALUATION, base.POOL, sent) for sent in batches))
    assert sorted(found) == ["BudgetError"] * 7 + ["taken"]
    sessions = await opened(bench, TaskPhase.PENDING)
    checks = [[base.stored_opening()] for _ in range(2)]
    found = await asyncio.gather(*(outcome(sessions, Purpose.STORED_CHECK, node, sent) for sent in checks))
    assert sorted(found) == ["BudgetError", "StoredOpened"]


async def test_more_identities_are_worth_no_more_runs(bench: base.Bench) -> None:
    """Attack 14. Keys that are no validators and pools that did not enter get nothing, nobody opens in another's name, and no
    refused opening is charged to the one who is named. Fails without the checks of caller and standing."""
    sessions = await opened(bench, TaskPhase.WORK)
    (opening,) = base.audit_machine().start()
    for number in range(20):
        stranger = KeyPair.generate(SeededRng(f"sybil {number}")).public_key
        assert await outcome(sessions, Purpose.AUDIT, stranger, [opening]) == "AuthError"
    assert isinstance(opening.message, AuditOpen)
    for other in base.NODES[1:]:  # validators, in the name of the first
        with pytest.raises(AuthError):
            await base.talk(sessions, Purpose.AUDIT, other.public_key, [opening])
    assert not [key for key, _ in bench.kv.iterate(b"m")]
    assert await outcome(sessions, Purpose.AUDIT, base.NODES[0].public_key, [opening]) == "BodyWanted"
    sessions = await opened(bench, TaskPhase.TRAINING)
    for number in range(20):
        stranger = KeyPair.generate(SeededRng(f"sybil {number}")).public_key
        sent = list(base.pool_machine(pool=base.AccountId(stranger)).start()[:1])
        assert await outcome(sessions, Purpose.EVALUATION, stranger, sent) == "AuthError"


async def test_a_budget_survives_restarts(bench: base.Bench) -> None:
    """Attack 14: a caller who makes the requester restart starts no new count. Fails when marks are kept in memory."""
    node = base.NODES[0].public_key
    for attempt in range(3):
        sessions = await opened(bench, TaskPhase.WORK)
        assert await outcome(sessions, Purpose.AUDIT, node, list(base.audit_machine(attempt=attempt).start())) == "BodyWanted"
    for attempt in (0, 1, 2, 3):
        sessions = await opened(bench, TaskPhase.WORK)
        with pytest.raises((BudgetError, PoflError)):
            await base.talk(sessions, Purpose.AUDIT, node, list(base.audit_machine(attempt=attempt).start()))


@pytest.mark.parametrize("is_written", [False, True], ids=["before the write", "after the write"])
async def test_a_crash_between_use_and_mark_gives_no_second_answer(is_written: bool) -> None:
    """Attack 9. The requester dies at its n-th write, for every n; a node then sends other challenges for the same hints. It
    never holds the products of both. Fails when the digest of a message is stored after its replies left."""
    node = base.audit_machine()
    calm = base.Bench(Memory())
    caller = base.NODES[0].public_key
    whole, _ = await base.audited(calm, node, caller)
    count = next(i for i, envelope in enumerate(whole) if isinstance(envelope.message, Challenges)) + 1
    message = whole[count - 1].message
    assert isinstance(message, Challenges)
    forged = [*whole[: count - 1], replace(whole[count - 1], message=Challenges(tuple(c ^ 1 for c in message.chi)))]
    crashed = 0
    for at in range(1, 12):
        kv = Crashing(at, is_written)
        bench = base.Bench(kv)
        answers = [await products(bench, caller, whole[:count])]
        crashed += kv.left <= 0
        kv.left = 1 << 30
        answers.append(await products(bench, caller, forged))
        assert None in answers, f"both answered after a crash at write {at}"
    assert crashed >= 4
    for task in calm.tasks:
        task.cancel()


async def products(bench: base.Bench, caller: bytes, sent: list[Envelope]) -> bytes | None:
    """The products that this stream showed, if any."""
    sessions = bench.start(WIDE)
    await bench.chain.become(base.view(TaskPhase.WORK))
    shown: list[bytes] = []

    async def incoming() -> AsyncIterator[Envelope]:
        for envelope in sent:
            yield envelope

    with contextlib.suppress(PoflError):
        async for reply in sessions.serve(Purpose.AUDIT, caller, incoming()):
            shown += [reply.message.w] if isinstance(reply.message, MaskedProducts) else []
    for task in bench.tasks:
        task.cancel()
    return shown[0] if shown else None


async def test_no_message_is_answered_in_two_ways_after_a_restart(bench: base.Bench) -> None:
    """Attack 9, a session resumed with another message, at every message of an audit. Fails without the stored digests."""
    node, caller = base.audit_machine(), base.NODES[0].public_key
    whole, _ = await base.audited(bench, node, caller)
    for index in range(1, len(whole)):
        message = whole[index - 1].message
        sessions = await opened(bench, TaskPhase.WORK)
        changed = replace(whole[index], message=message)
        with pytest.raises(SequenceError, match=f"another message under number {index}, which is used"):
            await base.talk(sessions, Purpose.AUDIT, caller, [*whole[:index], changed])


async def test_sixteen_audits_at_once_share_nothing(bench: base.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack 15. Sixteen validators audit one claim at the same time. All find it valid; no seed, challenge, query, hint,
    mask, product or commitment appears twice, and each hint's mask is the one in its own product. Fails when session coins are
    drawn from one seed, and when a node's coins are."""
    nodes = [KeyPair.generate(SeededRng(f"one of 16: {number}")) for number in range(16)]
    monkeypatch.setattr(base, "NODES", nodes)
    known = tuple(replace(base.VALIDATORS[0], node_id=NodeId(one.public_key)) for one in nodes)
    monkeypatch.setattr(base, "VALIDATORS", known)
    sessions = await opened(bench, TaskPhase.WORK)
    machines = [base.audit_machine(node=number) for number in range(16)]
    keys = [node.public_key for node in base.NODES]
    talks = await asyncio.gather(
        *(base.talk(sessions, Purpose.AUDIT, key, one.start(), one) for key, one in zip(keys, machines, strict=True))
    )
    assert all(isinstance(machine.finding, Valid) for machine in machines)
    seen: dict[str, list[object]] = {}
    for machine, (sent, received) in zip(machines, talks, strict=True):
        hints: tuple[bytes, ...] = ()
        seeds: tuple[bytes, ...] = ()
        chi: tuple[int, ...] = ()
        for envelope in (*sent, *received):
            match envelope.message:
                case RunSeeds():
                    seeds = envelope.message.seeds
                case Challenges():
                    chi = envelope.message.chi
                case Hints():
                    hints = envelope.message.hints
                case ZeroQueries():
                    seen.setdefault("x0", []).extend(query.x0 for query in envelope.message.queries)
                    seen.setdefault("x1", []).extend(query.x1 for query in envelope.message.queries)
                case ZeroCommitments():
                    seen.setdefault("commitments", []).extend(one.digest for one in envelope.message.commitments)
                case MaskedProducts():
                    products = unpack_values(envelope.message.w, (3, base.TASK.features))
        seen.setdefault("seeds", []).extend(seeds)
        seen.setdefault("challenges", []).extend(chi)
        seen.setdefault("products", []).extend(row.tobytes() for row in products)
        session = hint_session(machine._open, machine.session)
        for run in range(3):
            c1 = expand_uniform(PARAMS, base.TASK.public(PublicKind.HINT, run, session), 1)
            mask = decrypt(base.WORLD.sk, unpack(hints[run], 1), c1)[0, : base.TASK.features]
            seen.setdefault("masks", []).append(mask.tobytes())
            _, r = run_coins(seeds[run], base.TASK.samples, base.TASK.first_width)
            expected = np.remainder(multiply(matmul(base.MODEL.weights[0], r), chi[run]) + mask, T)
            assert (products[run] == expected).all()
    assert {name: len(set(values)) for name, values in seen.items()} == dict.fromkeys(seen, 48)


def test_coins_of_sessions_come_from_the_operating_system() -> None:
    """Attack 15: two sessions of one requester start from seeds of their own."""
    store = base.RequesterStore(Memory())
    records = [store.session(Purpose.AUDIT, base.TASK.task_id, bytes(32), bytes([n]) * 32, SystemRng()) for n in range(16)]
    assert len({record.seed for record in records}) == 16
    assert all(NodeId(record.caller) == bytes(32) for record in records)
