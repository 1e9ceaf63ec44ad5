"""pool.manager.members: admission, presence, assignments, contributions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from core.crypto import signing
from core.crypto.signing import KeyPair
from core.errors import AuthError, CryptoError, LimitError, MalformedError, NotFoundError, UnavailableError
from core.ids import AccountId, Digest, Milliseconds, Signature, TaskId
from pool.flower.jobs import JoinTicket
from pool.manager import members as members_module
from pool.manager.config import AdmissionConfig
from pool.manager.members import FIRST_PAUSE_MS, LAST_PAUSE_MS, SILENT_MS, SILENT_ROUNDS, Members
from services.rpc.convert_mining import (
    DOMAIN_ATTEND,
    DOMAIN_LEAVE,
    Assignment,
    FetchRows,
    Join,
    TrainOn,
    attend_message,
    leave_message,
    sign_join,
    verify_joined,
)
from tests.pool_kit import CHAIN, T0, keys

POOL, ANN, BOB = keys(3, "pool")
ACCOUNT = AccountId(POOL.public_key)


class Enrolment:
    """Remembers which Flower keys are registered, in memory."""

    def __init__(self) -> None:
        self.registered: list[bytes] = []
        self.given_up: list[bytes] = []

    async def register(self, node_public_key: bytes) -> JoinTicket:
        self.registered.append(node_public_key)
        return JoinTicket("127.0.0.1:7", b"CA", b"h" * 32, node_public_key)

    async def unregister(self, node_public_key: bytes) -> None:
        self.given_up.append(node_public_key)

    async def connected(self) -> list[bytes]:
        if self.is_down:
            raise UnavailableError("the guard is being started anew")
        return [key for key in self.registered if key not in (*self.given_up, *self.away)]

    is_down = False
    away: tuple[bytes, ...] = ()
    """Registered, and their Flower clients never came."""


class SetClock:
    def __init__(self) -> None:
        self.now = T0

    def now_ms(self) -> Milliseconds:
        return Milliseconds(self.now)


def members(admission: AdmissionConfig | None = None, clock: SetClock | None = None) -> tuple[Members, Enrolment]:
    enrolment = Enrolment()
    return Members(enrolment, POOL, CHAIN, admission or AdmissionConfig(), clock or SetClock()), enrolment


def key_of(node_key: int) -> bytes:
    return bytes([node_key]) * 33


def join(key: KeyPair, node_key: int = 1, token: bytes = b"", features: int = 64) -> Join:
    return Join(CHAIN, ACCOUNT, AccountId(key.public_key), bytes([node_key]) * 33, 100, features, token)


def presence(key: KeyPair, domain: bytes, node_key: int = 1) -> tuple[AccountId, bytes]:
    miner = AccountId(key.public_key)
    message = (attend_message if domain == DOMAIN_ATTEND else leave_message)(CHAIN, ACCOUNT, miner, bytes([node_key]) * 33)
    return miner, signing.sign(key, domain, message)


@contextlib.asynccontextmanager
async def attending(group: Members, key: KeyPair, node_key: int = 1) -> AsyncIterator[asyncio.Queue[Assignment | None]]:
    """A member online; what it is assigned, then None when its stream ends."""
    received: asyncio.Queue[Assignment | None] = asyncio.Queue()

    async def listen() -> None:
        async for assignment in group.attend(*presence(key, DOMAIN_ATTEND, node_key)):
            received.put_nowait(assignment)
        received.put_nowait(None)

    task = asyncio.create_task(listen())
    await asyncio.sleep(0)
    try:
        yield received
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)


async def test_a_join_is_answered_under_the_pools_signature() -> None:
    group, enrolment = members()
    signed = await group.join(sign_join(ANN, join(ANN)))
    verify_joined(signed)
    assert signed.joined.pool == ACCOUNT
    assert signed.joined.hpke_public_key == b"h" * 32
    assert enrolment.registered == [b"\x01" * 33]
    for changed in (
        replace(signed.joined, hpke_public_key=b"x" * 32),
        replace(signed.joined, node_public_key=b"\x02" * 33),
        replace(signed.joined, superlink_address="127.0.0.1:8"),
        replace(signed.joined, superlink_ca=b"other"),
    ):
        with pytest.raises(CryptoError):
            verify_joined(replace(signed, joined=changed))


async def test_only_the_miner_itself_can_join_and_leave() -> None:
    group, enrolment = members()
    stolen = replace(sign_join(BOB, join(BOB)), join=join(ANN))
    for bad in (stolen, replace(sign_join(ANN, join(ANN)), signature=Signature(bytes(64)))):
        with pytest.raises(AuthError, match="is not signed by"):
            await group.join(bad)
    other_pool = replace(join(ANN), pool=AccountId(BOB.public_key))
    with pytest.raises(AuthError):
        await group.join(replace(sign_join(ANN, other_pool), join=join(ANN)))
    assert enrolment.registered == []
    await group.join(sign_join(ANN, join(ANN)))
    with pytest.raises(AuthError):
        await group.leave(AccountId(ANN.public_key), presence(BOB, DOMAIN_LEAVE)[1])
    # A signature to attend is none to leave.
    with pytest.raises(AuthError):
        await group.leave(*presence(ANN, DOMAIN_ATTEND))
    await group.leave(*presence(ANN, DOMAIN_LEAVE))
    await group.leave(*presence(ANN, DOMAIN_LEAVE))
    assert group.listed() == ()


async def test_nobody_joins_under_anothers_flower_key() -> None:
    """Keys are in the receipts that all members see; whose key it is says who is paid."""
    group, enrolment = members()
    await group.join(sign_join(ANN, join(ANN)))
    with pytest.raises(AuthError, match="another member's"):
        await group.join(sign_join(BOB, join(BOB, node_key=1)))
    await group.leave(*presence(ANN, DOMAIN_LEAVE))
    with pytest.raises(AuthError, match="another member's"):
        await group.join(sign_join(BOB, join(BOB, node_key=1)))
    assert group.owner(b"\x01" * 33) == ANN.public_key
    assert enrolment.registered == [b"\x01" * 33]


async def test_nobody_crowds_out_a_members_flower_key_to_take_its_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pool.manager.members.MAX_KEYS", 4)
    group, _ = members()
    await group.join(sign_join(ANN, join(ANN)))
    for number in range(2, 10):
        await group.join(sign_join(BOB, join(BOB, number)))
    assert len(group._owners) <= 4
    assert group.owner(join(ANN).node_public_key) == ANN.public_key
    with pytest.raises(AuthError, match="another member's"):
        await group.join(sign_join(BOB, join(BOB, 1)))


async def test_a_key_that_is_not_admitted_is_not_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    group, enrolment = members()

    async def refuse(key: bytes) -> JoinTicket:
        raise MalformedError(f"{key.hex()} is no point")

    monkeypatch.setattr(enrolment, "register", refuse)
    with pytest.raises(MalformedError):
        await group.join(sign_join(ANN, join(ANN)))
    assert not group._owners


async def test_joins_of_one_account_are_limited() -> None:
    """Each costs the guard a node, and the pool a record on its disk, for ever."""
    group, enrolment = members()
    for number in range(1, 21):
        await group.join(sign_join(ANN, join(ANN, number)))
    with pytest.raises(LimitError, match="wait a minute"):
        await group.join(sign_join(ANN, join(ANN, 21)))
    await group.join(sign_join(ANN, join(ANN, 20)))
    await group.join(sign_join(BOB, join(BOB, 22)))
    assert len(set(enrolment.registered)) == 21


async def test_admission_by_token_and_by_list() -> None:
    group, _ = members(AdmissionConfig(mode="token", token="open sesame"))
    for token in (b"", b"open", b"open sesame "):
        with pytest.raises(AuthError, match="token"):
            await group.join(sign_join(ANN, join(ANN, token=token)))
    await group.join(sign_join(ANN, join(ANN, token=b"open sesame")))
    group, _ = members(AdmissionConfig(mode="allow", allow=(ANN.public_key.hex().upper(),)))
    await group.join(sign_join(ANN, join(ANN)))
    with pytest.raises(AuthError, match="list"):
        await group.join(sign_join(BOB, join(BOB)))


async def test_a_member_is_online_while_it_attends() -> None:
    group, enrolment = members()
    with pytest.raises(NotFoundError, match="join first"):
        await anext(group.attend(*presence(ANN, DOMAIN_ATTEND)))
    await group.join(sign_join(ANN, join(ANN)))
    assert group.online == ()
    async with attending(group, ANN):
        assert group.online_for(64) == (ANN.public_key,)
        assert group.online_for(32) == ()
        assert dict(group.roster(64, 50)) == {b"\x01" * 33: 150}
        with pytest.raises(AuthError, match="attends already"):
            await anext(group.attend(*presence(ANN, DOMAIN_ATTEND)))
    assert group.online == ()
    assert enrolment.given_up == [b"\x01" * 33]
    assert len(group.roster(64)) == 0


async def test_a_new_membership_ends_the_old_one_and_keeps_what_was_assigned() -> None:
    group, enrolment = members()
    miner = AccountId(ANN.public_key)
    fetch = FetchRows(
        Digest(b"d" * 32),
        Digest(b"e" * 32),
        "127.0.0.1:9",
        AccountId(b"s" * 32),
        10,
        0,
        30,
        Milliseconds(T0 + 1000),
        b"s" * 32,
    )
    train = TrainOn(TaskId(b"t" * 32), Milliseconds(T0 + 9000), 64, 10)
    await group.join(sign_join(ANN, join(ANN)))
    async with attending(group, ANN) as first:
        group.assign_rows(miner, fetch)
        group.assign_rows(miner, replace(fetch, trade_id=Digest(b"o" * 32), deadline_ms=Milliseconds(T0 - 1)))
        group.assign_training(train)
        group.credit({miner: 700})
        await asyncio.sleep(0)
        await group.join(sign_join(ANN, join(ANN, node_key=2)))
        received = [await first.get() for _ in range(4)]
        assert received[0] == fetch
        assert received[2:] == [train, None]
    assert enrolment.given_up == [b"\x01" * 33]
    async with attending(group, ANN, node_key=2) as second:
        # What is past its deadline is not told again.
        assert [await second.get(), await second.get()] == [fetch, train]
        assert second.empty()
        assert group.owner(b"\x01" * 33) == group.owner(b"\x02" * 33) == miner
        assert [m.contribution for m in group.listed()] == [700]


async def test_rows_on_their_way_count_after_joining_anew() -> None:
    """The miner was cut off between its assignment and delivery: its next update is of more examples than it joined with."""
    group, _ = members()
    miner = AccountId(ANN.public_key)
    root = Digest(b"e" * 32)
    fetch = FetchRows(
        Digest(b"d" * 32), root, "127.0.0.1:9", AccountId(b"s" * 32), 10, 0, 30, Milliseconds(T0 + 1000), b"s" * 32
    )  # fmt: skip
    await group.join(sign_join(ANN, join(ANN)))
    own = join(ANN).rows
    assert not group.has_share(miner, root)
    async with attending(group, ANN):
        group.assign_rows(miner, fetch)
        assert dict(group.roster(64, 0)) == {b"\x01" * 33: own + 30}
    await group.join(sign_join(ANN, join(ANN, node_key=2)))
    async with attending(group, ANN, node_key=2):
        assert dict(group.roster(64, 5)) == {b"\x02" * 33: own + 35}
        assert group.has_share(miner, root)


async def test_a_member_says_which_data_sets_it_has_rows_of() -> None:
    """Connections break, and both processes may have been started anew: nobody else knows what is on the miner's disk."""
    group, _ = members()
    miner, root = AccountId(ANN.public_key), Digest(b"e" * 32)
    fetch = FetchRows(
        Digest(b"d" * 32), root, "127.0.0.1:9", AccountId(b"s" * 32), 10, 0, 30, Milliseconds(T0 - 1), b"s" * 32
    )  # fmt: skip
    await group.join(sign_join(ANN, join(ANN)))
    group.assign_rows(miner, fetch)
    assert group.has_share(miner, root)
    # Its connection breaks after the delivery, then before it.
    await group.join(sign_join(ANN, replace(join(ANN, node_key=2), rows=join(ANN).rows + 30, holds=(root,))))
    assert group.has_share(miner, root)
    await group.join(sign_join(ANN, join(ANN, node_key=3)))
    assert not group.has_share(miner, root)
    started_anew, _ = members()
    await started_anew.join(sign_join(ANN, replace(join(ANN, node_key=4), holds=(Digest(b"a" * 32), root))))
    assert started_anew.has_share(miner, root)
    assert not started_anew.has_share(miner, Digest(b"b" * 32))


async def test_rows_for_those_who_never_come_back_are_forgotten() -> None:
    group, _ = members()
    fetch = FetchRows(
        Digest(b"d" * 32), Digest(b"e" * 32), "127.0.0.1:9", AccountId(b"s" * 32), 10, 0, 30, Milliseconds(T0 - 1), b"s" * 32
    )
    for number in range(100):
        group.assign_rows(AccountId(bytes([number]) * 32), fetch)
    assert len(group._fetches) == 1


async def test_waiting_for_members_ends_when_they_come() -> None:
    group, _ = members()
    waiting = asyncio.create_task(group.wait_ready(64, 2))
    await group.join(sign_join(ANN, join(ANN)))
    await group.join(sign_join(BOB, join(BOB, node_key=2)))
    async with attending(group, ANN):
        assert not waiting.done()
        async with attending(group, BOB, node_key=2):
            await asyncio.wait_for(waiting, 60)


async def test_who_attends_and_never_connects_is_not_waited_for_as_if_it_did(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its attending alone has the pool lock its bond for tasks in which no round comes about."""
    monkeypatch.setattr(members_module, "LOOK_AGAIN_S", 0.01)
    group, enrolment = members()
    enrolment.away = (key_of(2),)
    await group.join(sign_join(ANN, join(ANN)))
    await group.join(sign_join(BOB, join(BOB, node_key=2)))
    async with attending(group, ANN), attending(group, BOB, node_key=2):
        enrolment.is_down = True
        waiting = asyncio.create_task(group.wait_ready(64, 2))
        await asyncio.sleep(0.05)
        enrolment.is_down = False
        await asyncio.sleep(0.05)
        assert not waiting.done()
        assert group.missing(64, 2).endswith(", and the guard did not say in time that their Flower clients are connected")
        assert group.missing(64, 3) == "2 members with rows of 64 features attend, 3 are needed"
        await asyncio.wait_for(group.wait_ready(64, 1), 60)
        enrolment.away = ()
        await asyncio.wait_for(waiting, 60)


async def test_who_is_asked_and_sends_nothing_is_not_counted_on_until_it_answers() -> None:
    clock = SetClock()
    group, _ = members(clock=clock)
    ann, bob = AccountId(ANN.public_key), AccountId(BOB.public_key)
    await group.join(sign_join(ANN, join(ANN)))
    await group.join(sign_join(BOB, join(BOB, node_key=2)))

    def rounds(count: int, seconds: int) -> None:
        for _ in range(count):
            clock.now += 1000 * seconds
            group.note_round({key_of(1)}, {key_of(2)})

    async with attending(group, ANN), attending(group, BOB, node_key=2):
        rounds(100, 0)
        assert set(group.counted_for(64)) == {ann, bob}, "rounds of an instant are nobody's silence"
        group.note_round({key_of(1), key_of(2)}, ())
        rounds(SILENT_ROUNDS - 1, SILENT_MS // 1000)
        assert set(group.counted_for(64)) == {ann, bob}
        rounds(1, 0)
        assert group.counted_for(64) == (ann,)
        assert group.missing(64, 2).endswith("attend, 2 are needed; 1 more sent no update when they were last asked")
        assert set(group.online_for(64)) == {ann, bob}, "it is a member, and is asked on"
        assert len(group.roster(64)) == 2
        group.note_round({key_of(2)}, ())
        assert set(group.counted_for(64)) == {ann, bob}, "it answered"


async def test_silence_is_forgiven_after_a_while_and_for_longer_each_time() -> None:
    """A pool that counts on nobody enters no task, and would never hear that its members are well again."""
    clock = SetClock()
    group, _ = members(clock=clock)
    await group.join(sign_join(ANN, join(ANN)))
    async with attending(group, ANN):
        clock.now += SILENT_MS
        for _ in range(SILENT_ROUNDS):
            group.note_round((), {key_of(1)})
        pauses = []
        for _ in range(12):
            start = clock.now
            assert group.counted_for(64) == ()
            while not group.counted_for(64):
                clock.now += FIRST_PAUSE_MS
            pauses.append(clock.now - start)
            for _ in range(SILENT_ROUNDS - 1):
                group.note_round((), {key_of(1)})
            clock.now += SILENT_MS
            assert group.counted_for(64), "it has as many rounds again"
            group.note_round((), {key_of(1)})
        assert pauses[:3] == [FIRST_PAUSE_MS, 2 * FIRST_PAUSE_MS, 4 * FIRST_PAUSE_MS]
        assert pauses[-1] == LAST_PAUSE_MS
    await group.join(sign_join(ANN, join(ANN, node_key=2)))
    async with attending(group, ANN, node_key=2):
        assert len(group.counted_for(64)) == 1, "who was started anew is heard anew"
