"""The pool's members: admission, presence, assignments, contributions.

A member is online while it attends. When its stream ends its Flower key is given up, and it joins again with a fresh one.
A member that is asked and sends no update stays one, and is asked again; the pool does not count on it for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, ItemsView, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from core.crypto import signing
from core.errors import AuthError, CryptoError, LimitError, NotFoundError, PoflError, UnavailableError
from core.ids import AccountId, Digest, short
from core.ports import Clock
from pool.flower.jobs import JoinTicket
from pool.manager.admission import Admission
from pool.manager.config import AdmissionConfig
from services.rpc.convert_mining import (
    DOMAIN_ATTEND,
    DOMAIN_LEAVE,
    Assignment,
    FetchRows,
    Joined,
    Member,
    SignedJoin,
    SignedJoined,
    TrainOn,
    attend_message,
    leave_message,
    sign_joined,
    verify_join,
)
from services.runtime.logging import logger
from services.runtime.metrics import gauge

__all__ = ["Enrolment", "Members", "Roster"]

log = logger(__name__)

ONLINE = gauge("pool_members_online", "Members that attend.")

MAX_MEMBERS: Final = 1_000
MAX_WAITING: Final = 64
"""Assignments that wait for one member."""
MOST_IDLE_MS: Final = 180_000
"""A member that joined loads its libraries, then attends. One that has not by then may lose its place."""
MOST_JOINS: Final = 20
JOINS_MS: Final = 60_000
"""So many fresh keys of one account in this time: a miner that finds its pool started anew needs one, or a few."""
SILENT_ROUNDS: Final = 3
SILENT_MS: Final = 60_000
"""Who sent no update in so many rounds in which it was asked, one after the other, and for so long, is not counted on."""
FIRST_PAUSE_MS: Final = 600_000
LAST_PAUSE_MS: Final = 86_400_000
"""How long: then it is given another try, for else nothing might ever be asked of it. Each time twice as long."""
LOOK_AGAIN_S: Final = 0.5
MAX_KEYS: Final = 16_384
"""Flower keys whose owner is remembered, oldest first."""


class Enrolment(Protocol):
    """What admits Flower keys; pool.flower.engine.MiningEngine has it."""

    async def register(self, node_public_key: bytes) -> JoinTicket: ...
    async def unregister(self, node_public_key: bytes) -> None: ...
    async def connected(self) -> Collection[bytes]: ...


@dataclass(slots=True)
class _Member:
    miner: AccountId
    node_key: bytes
    rows: int
    features: int
    joined_ms: int
    bought: int = 0
    """Rows assigned to it since it joined, and those of before that it is told again."""
    data_sets: set[Digest] = field(default_factory=set)
    """Roots of those of which it said, as it joined, that it has rows, and of those that it was assigned a share of."""
    contribution: int = 0
    is_online: bool = False
    is_over: bool = False
    heard_ms: int = 0
    """When it came to attend, or last sent an update."""
    silent_rounds: int = 0
    pauses: int = 0
    paused_until_ms: int = 0
    """Until then it is not counted on."""
    queue: asyncio.Queue[Assignment | None] = field(default_factory=lambda: asyncio.Queue(MAX_WAITING))
    """None is the end."""


class Members:
    """All members, by account."""

    def __init__(
        self,
        enrolment: Enrolment,
        key: signing.KeyPair,
        chain_id: Digest,
        admission: AdmissionConfig,
        clock: Clock,
        owners: Mapping[bytes, AccountId] | None = None,
        remember: Callable[[bytes, AccountId], None] = lambda _, __: None,
    ) -> None:
        """``owners``: of Flower keys, as a former process told ``remember``, which may block. Pay follows them."""
        self._enrolment = enrolment
        self._key = key
        self._chain_id = chain_id
        self._admission = Admission(admission, clock)
        self._clock = clock
        self._members: dict[AccountId, _Member] = {}
        self._owners: dict[bytes, AccountId] = dict(owners or {})
        self._remember = remember
        self._joins: dict[AccountId, list[int]] = {}
        """When an account joined under fresh keys, in the last JOINS_MS."""
        self.greeting: Callable[[AccountId], Sequence[Assignment]] = lambda _: ()
        """What a member is told first when it attends."""
        self._fetches: dict[AccountId, list[FetchRows]] = {}
        self._training: TrainOn | None = None
        self._changed = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()

    @property
    def pool(self) -> AccountId:
        return AccountId(self._key.public_key)

    # What members call

    async def join(self, signed: SignedJoin, caller: str = "") -> SignedJoined:
        """Admit a miner under a fresh Flower key; a former membership of the account ends. ``caller``: whose connection it is.

        Raises AuthError (signature, admission, a key used before), LimitError (full, or refused too often), MalformedError or
        UnavailableError (its Flower key).
        """
        self._admission.listen(caller)
        try:
            self._check_join(signed)
        except PoflError as error:
            self._admission.note(caller, error)
            raise
        join = signed.join
        if join.node_public_key not in self._owners:
            self._note_join(join.miner)
        ticket = await self._enrolment.register(join.node_public_key)
        if self._owners.setdefault(join.node_public_key, join.miner) != join.miner:
            raise AuthError(f"the Flower key of {short(join.miner)} became another member's meanwhile: join with a fresh one")
        await asyncio.to_thread(self._remember, join.node_public_key, join.miner)
        former = self._members.get(join.miner)
        # Told again as it comes to attend: an update with these rows says more examples than it joined with.
        waiting = [fetch for fetch in self._fetches.get(join.miner, []) if fetch.deadline_ms > self._clock.now_ms()]
        member = self._members[join.miner] = _Member(
            join.miner, join.node_public_key, join.rows, join.features, self._clock.now_ms(),
            bought=sum(fetch.rows for fetch in waiting), data_sets={fetch.data_root for fetch in waiting} | set(join.holds),
        )  # fmt: skip
        if former is not None and former.node_key != join.node_public_key:
            member.contribution = former.contribution
            self._end(former)
        if len(self._owners) > MAX_KEYS:
            del self._owners[self._least_needed_key()]
        log.info("member joined", miner=join.miner, rows=join.rows, features=join.features, members=len(self._members))
        return sign_joined(
            self._key,
            Joined(
                self._chain_id, self.pool, join.miner, join.node_public_key, ticket.superlink_address, ticket.ca_pem,
                ticket.hpke_public_key, ticket.suite, ticket.aggregation,
            ),
        )  # fmt: skip

    def _check_join(self, signed: SignedJoin) -> None:
        join = signed.join
        try:
            verify_join(signed)
        except CryptoError as error:
            raise AuthError(f"the request to join is not signed by {short(join.miner)}: {error.message}") from None
        self._admission.check(join.miner, join.token)
        # Members learn one another's keys from secure sums: joining under another's key would be taking its pay.
        owner, present = self._owners.get(join.node_public_key), self._members.get(join.miner)
        if owner is not None and owner != join.miner:
            raise AuthError(f"the Flower key of {short(join.miner)} is another member's: join with a fresh one")
        # The same request once more is answered once more; any other use of a key that was used is refused.
        if owner is not None and (present is None or present.node_key != join.node_public_key):
            raise AuthError(f"{short(join.miner)} joined under this Flower key before: join with a fresh one")
        if present is None and len(self._members) >= MAX_MEMBERS:
            self._end_idle()
            if len(self._members) >= MAX_MEMBERS:
                raise LimitError(f"this pool has {MAX_MEMBERS} members, the most it takes", members=MAX_MEMBERS)

    def _note_join(self, miner: AccountId) -> None:
        """Raises LimitError for too many fresh keys: each costs the guard a node and this pool a record on the disk."""
        since = self._clock.now_ms() - JOINS_MS
        if len(self._joins) > MAX_MEMBERS:
            self._joins = {known: times for known, times in self._joins.items() if times[-1] > since}
        recent = [at for at in self._joins.get(miner, []) if at > since]
        if len(recent) >= MOST_JOINS:
            raise LimitError(f"{short(miner)} joined {MOST_JOINS} times within {JOINS_MS // 1000} s: wait a minute")
        self._joins[miner] = [*recent, self._clock.now_ms()]

    def _end_idle(self) -> None:
        """Places are for who attends: a membership that nobody came to attend ends when its place is wanted."""
        since = self._clock.now_ms() - MOST_IDLE_MS
        for member in [m for m in self._members.values() if not m.is_online and m.joined_ms < since]:
            self._end(member)

    async def attend(self, miner: AccountId, signature: bytes) -> AsyncIterator[Assignment]:
        """Assignments for as long as the member stays. Raises NotFoundError (join first), AuthError."""
        member = self._member(miner, DOMAIN_ATTEND, signature)
        if member.is_online:
            raise AuthError(f"{short(miner)} attends already: join again with a fresh key")
        member.is_online = True
        member.heard_ms = self._clock.now_ms()
        self._note_change()
        log.info("member online", miner=miner, online=len(self.online))
        now = self._clock.now_ms()
        for fetch in self._fetches.get(miner, []):
            if fetch.deadline_ms > now:
                _put(member, fetch)
        if self._training is not None and self._training.deadline_ms > now:
            _put(member, self._training)
        for shown in self.greeting(miner):
            _put(member, shown)
        try:
            while (assignment := await member.queue.get()) is not None:
                yield assignment
        finally:
            self._end(member)

    async def leave(self, miner: AccountId, signature: bytes) -> None:
        """End a membership; nothing happens if there is none. Raises AuthError."""
        if miner in self._members:
            self._end(self._member(miner, DOMAIN_LEAVE, signature))

    # What the pool asks

    @property
    def online(self) -> Sequence[AccountId]:
        return tuple(m.miner for m in self._members.values() if m.is_online)

    def online_for(self, features: int) -> Sequence[AccountId]:
        """Members online whose own rows have this many features, in the order of their accounts."""
        return tuple(sorted(m.miner for m in self._members.values() if m.is_online and m.features == features))

    def counted_for(self, features: int) -> Sequence[AccountId]:
        """Those of them that a task can be entered with: without who was asked and sent nothing for too long."""
        now = self._clock.now_ms()
        return tuple(miner for miner in self.online_for(features) if self._members[miner].paused_until_ms <= now)

    async def wait_ready(self, features: int, count: int) -> None:
        """Until that many members that count are online, with their Flower clients."""
        while True:
            changed, counted = self._changed, self.counted_for(features)
            if len(counted) >= count:
                # A guard that is being started anew has nobody connected, and soon has.
                with contextlib.suppress(UnavailableError):
                    connected = await self._enrolment.connected()
                    if sum(m.node_key in connected for miner in counted if (m := self._members.get(miner))) >= count:
                        return
            # Clients that connect and pauses that end tell nobody.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), LOOK_AGAIN_S)

    def missing(self, features: int, count: int) -> str:
        """What `wait_ready` waits for, in words."""
        ready, online = len(self.counted_for(features)), len(self.online_for(features))
        said = f"{ready} members with rows of {features} features attend, {count} are needed"
        if ready >= count:
            return f"{said}, and the guard did not say in time that their Flower clients are connected"
        return said + (f"; {online - ready} more sent no update when they were last asked" if online > ready else "")

    def note_round(self, heard: Collection[bytes], silent: Collection[bytes]) -> None:
        """Who sent a usable update in a round of training, and who was asked and sent none, by Flower keys."""
        now = self._clock.now_ms()
        for member in self._members.values():
            if member.node_key in heard:
                member.heard_ms, member.silent_rounds, member.pauses, member.paused_until_ms = now, 0, 0, 0
            elif member.node_key in silent and member.is_online and now >= member.paused_until_ms:
                member.silent_rounds += 1
                # A pause that ended is another try, and one late round is not the end of it.
                since = max(member.heard_ms, member.paused_until_ms)
                if member.silent_rounds >= SILENT_ROUNDS and now - since >= SILENT_MS:
                    self._pause(member, now)

    def _pause(self, member: _Member, now: int) -> None:
        pause = min(LAST_PAUSE_MS, FIRST_PAUSE_MS << min(member.pauses, 16))
        member.pauses, member.paused_until_ms = member.pauses + 1, now + pause
        log.warning(
            "a member is asked and sends nothing: tasks are not entered for it", miner=member.miner,
            rounds=member.silent_rounds, minutes=pause // 60_000,
        )  # fmt: skip
        member.silent_rounds = 0

    def roster(self, features: int, allowance: int = 0) -> Roster:
        """A live view of Flower keys for the engine. ``allowance``: rows that a member may get while it trains."""
        return Roster(self._members, features, allowance)

    def owner(self, node_key: bytes) -> AccountId | None:
        """Whose key this is, or was."""
        return self._owners.get(node_key)

    def assign_training(self, train: TrainOn) -> None:
        self._training = train
        for member in self._members.values():
            if member.is_online:
                _put(member, train)

    def assign_rows(self, miner: AccountId, fetch: FetchRows) -> None:
        """Rows for a member; told again if it joins anew before the deadline."""
        now = self._clock.now_ms()
        # Of everybody: who never comes back would be remembered for ever.
        for known, fetches in list(self._fetches.items()):
            self._fetches[known] = [f for f in fetches if f.deadline_ms > now]
            if not self._fetches[known]:
                del self._fetches[known]
        self._fetches[miner] = [*self._fetches.get(miner, []), fetch][-MAX_WAITING:]
        member = self._members.get(miner)
        if member is not None:
            member.bought += fetch.rows
            member.data_sets.add(fetch.data_root)
            if member.is_online:
                _put(member, fetch)

    def has_share(self, miner: AccountId, data_root: Digest) -> bool:
        """Whether this member has rows of this data set, by its own word, or is about to get them."""
        member = self._members.get(miner)
        return member is not None and data_root in member.data_sets

    def show(self, miner: AccountId, shown: Assignment) -> None:
        """Something that a member can also ask for later: left out if it is away or takes its assignments slowly."""
        member = self._members.get(miner)
        if member is not None and member.is_online and member.queue.qsize() < MAX_WAITING // 2:
            _put(member, shown)

    def credit(self, contributions: Mapping[AccountId, int]) -> None:
        """What each member contributed to the last task."""
        for member in self._members.values():
            member.contribution = contributions.get(member.miner, 0)

    def listed(self) -> tuple[Member, ...]:
        return tuple(
            Member(m.miner, m.rows + m.bought, m.contribution, m.is_online)
            for m in sorted(self._members.values(), key=lambda m: m.miner)
        )

    # Inside

    def _member(self, miner: AccountId, domain: bytes, signature: bytes) -> _Member:
        member = self._members.get(miner)
        if member is None:
            raise NotFoundError(f"{short(miner)} is no member of this pool: join first")
        message = attend_message if domain == DOMAIN_ATTEND else leave_message
        try:
            signing.verify(miner, domain, message(self._chain_id, self.pool, miner, member.node_key), signature)
        except CryptoError as error:
            raise AuthError(f"{short(miner)} did not sign for its present membership: {error.message}") from None
        return member

    def _end(self, member: _Member) -> None:
        if member.is_over:
            return
        member.is_over = True
        was_online, member.is_online = member.is_online, False
        if member.queue.full():
            member.queue.get_nowait()
        member.queue.put_nowait(None)
        if self._members.get(member.miner) is member:
            del self._members[member.miner]
        if was_online:
            log.info("member offline", miner=member.miner, online=len(self.online))
        self._note_change()
        task = asyncio.create_task(self._give_up(member.node_key))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _give_up(self, node_key: bytes) -> None:
        try:
            await self._enrolment.unregister(node_key)
        except PoflError as error:
            log.info("a former member's key is still registered", error=error)

    def _least_needed_key(self) -> bytes:
        """The oldest key of nobody who is a member, else of the member with the most keys: many joins cost only oneself."""
        gone = next((key for key, miner in self._owners.items() if miner not in self._members), None)
        if gone is not None:
            return gone
        most, _ = Counter(self._owners.values()).most_common(1)[0]
        return next(key for key, miner in self._owners.items() if miner == most)

    def _note_change(self) -> None:
        ONLINE.set(len(self.online))
        self._changed.set()
        self._changed = asyncio.Event()


class Roster(Mapping[bytes, int]):
    """Flower keys of members online, each with the most examples that it may say it trained on."""

    def __init__(self, members: Mapping[AccountId, _Member], features: int, allowance: int) -> None:
        self._members = members
        self._features = features
        self._allowance = allowance

    def __iter__(self) -> Iterator[bytes]:
        return iter([m.node_key for m in self._present()])

    def __len__(self) -> int:
        return len(self._present())

    def __getitem__(self, node_key: bytes) -> int:
        for member in self._present():
            if member.node_key == node_key:
                return self._most(member)
        raise KeyError(node_key)

    def items(self) -> ItemsView[bytes, int]:
        """As they are now, in one pass: by ``__getitem__`` it would be one for each."""
        return {m.node_key: self._most(m) for m in self._present()}.items()

    def _most(self, member: _Member) -> int:
        return member.rows + member.bought + self._allowance

    def _present(self) -> list[_Member]:
        return [m for m in self._members.values() if m.is_online and m.features == self._features]


def _put(member: _Member, assignment: Assignment) -> None:
    if member.queue.full():
        log.warning("a member does not take its assignments", miner=member.miner, waiting=member.queue.qsize())
        return
    member.queue.put_nowait(assignment)
