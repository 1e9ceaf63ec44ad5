"""The chain's state: what every node computes from the genesis document and the finalised blocks.

A ``State`` is frozen; rules make new ones. Its root is an RFC 6962 tree over a leaf for the scalars and one for each
table's own root, so that a record is provable with two audit paths. Money is conserved: the balances, what is locked
and what is burned sum to the genesis supply (``total_supply``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Final

from core.chain import merkle
from core.chain.block import MAX_VALIDATORS, BlockKind, Vm
from core.chain.table import Table
from core.chain.transaction import ENDPOINT, PublishTask
from core.codec import BOOL, DIGEST, I64, PUBLIC_KEY, U16, U32, U64, Enum, Maybe, Reader, Record, Seq, Var, encode
from core.crypto.hashing import digest
from core.errors import MalformedError, NotFoundError, WrongChainError
from core.ids import (
    AccountId,
    Amount,
    BlockHash,
    Correct,
    Digest,
    Height,
    Milliseconds,
    ModelCommitment,
    NodeId,
    PartsPerMillion,
    StateRoot,
    TaskId,
    short,
)
from core.params import ChainParams, Genesis

__all__ = [
    "Account", "ClaimRecord", "Entry", "High", "Pot", "Provider", "Reputation", "Standing", "State", "Task", "TaskEnd",
    "TaskPhase", "Tip", "Trade", "TradePhase", "Validator", "Windows", "decode_state", "encode_state", "entry_key",
    "genesis_state", "state_root", "total_supply",
]  # fmt: skip

DOMAIN_TIE: Final = b"pofl/claim-tie/1"
DOMAIN_STATE: Final = b"pofl/state/1"
STATE_VERSION: Final = 1
MAX_ENTRANTS: Final = 1024
MAX_HIGHS: Final = 256


@dataclass(frozen=True, slots=True)
class Account:
    """``nonce``: that of the account's next transaction."""

    balance: Annotated[Amount, I64]
    nonce: Annotated[int, U64]


@dataclass(frozen=True, slots=True)
class Validator:
    node_id: Annotated[NodeId, PUBLIC_KEY]
    power: Annotated[int, U32]
    bond: Annotated[Amount, I64]
    """Locked by JoinValidator; validators of the genesis document have none."""
    has_equivocated: Annotated[bool, BOOL]
    """Proven on the chain: its tags are no longer paid."""


class TaskPhase(IntEnum):
    PENDING = 1
    """Until 2/3 of the validators signed Stored."""
    OPEN = 2
    CURRENT = 3
    WON = 4
    VOID = 5


class TaskEnd(IntEnum):
    """Why a task ended."""

    WON = 1
    NOT_STORED = 2
    EXPIRED = 3
    NO_ENTRIES = 4
    NO_COMMITS = 5
    NO_CLAIMS = 6
    VOID_BLOCK = 7
    """No claim was adopted."""
    DEAD = 8
    """A void block whose search ended at a claim that the requester would not let be audited."""


@dataclass(frozen=True, slots=True)
class Task:
    task_id: Annotated[TaskId, DIGEST]
    requester: Annotated[AccountId, PUBLIC_KEY]
    published: PublishTask
    height: Annotated[Height, U64]
    """Of its PublishTask, with ``index`` inside that block: ties between tasks go to the earlier."""
    index: Annotated[int, U32]
    published_ms: Annotated[Milliseconds, U64]
    phase: Annotated[TaskPhase, Enum(TaskPhase)]
    stored_by: Annotated[tuple[NodeId, ...], Seq(PUBLIC_KEY, MAX_VALIDATORS)]
    pools: Annotated[tuple[AccountId, ...], Seq(PUBLIC_KEY, MAX_ENTRANTS)]
    """Who entered, earliest first."""
    activated_height: Annotated[Height | None, Maybe(U64)]
    """Height b of the block in which it became current; ``T0 = time(b+1)``."""
    start_ms: Annotated[Milliseconds | None, Maybe(U64)]
    """T0; known from block b+1 on."""
    entry_closed: Annotated[Height | None, Maybe(U64)]
    commit_closed: Annotated[Height | None, Maybe(U64)]
    claim_closed: Annotated[Height | None, Maybe(U64)]
    """Heights of the blocks in which the windows closed."""
    closing_hash: Annotated[BlockHash | None, Maybe(DIGEST)]
    """Of the claim-closing block: breaks ties between claims."""
    locked: Annotated[Amount, I64]
    """Reward and bond, until the task ends."""
    ended: Annotated[TaskEnd | None, Maybe(Enum(TaskEnd))]
    ended_height: Annotated[Height | None, Maybe(U64)]
    settle_ms: Annotated[Milliseconds | None, Maybe(U64)]
    """Block time from which the claimants' bonds go back; None once they have."""
    winner: Annotated[AccountId | None, Maybe(PUBLIC_KEY)]

    @property
    def is_live(self) -> bool:
        return self.phase in (TaskPhase.PENDING, TaskPhase.OPEN, TaskPhase.CURRENT)

    @property
    def reward(self) -> Amount:
        return self.published.reward


@dataclass(frozen=True, slots=True)
class Windows:
    """Instants of block time; None before T0 is known."""

    start_ms: Milliseconds
    entry_close_ms: Milliseconds
    commit_close_ms: Milliseconds
    claim_close_ms: Milliseconds


class Standing(IntEnum):
    """Where a pool's entry stands."""

    OFFERED = 1
    """Entries are still open."""
    ADMITTED = 2
    OUTBID = 3
    SKIPPED = 4
    """Its claim was skipped, or ranked above the winner and not (yet) shown refuted: 10 % of the bond burns."""
    REFUTED = 5
    """The whole bond burns."""
    WON = 6
    FAULTY = 7
    """PoolFault: two work headers on one parent. The whole bond burns."""


@dataclass(frozen=True, slots=True)
class ClaimRecord:
    correct: Annotated[Correct, U32]
    vm: Vm
    height: Annotated[Height, U64]


@dataclass(frozen=True, slots=True)
class Entry:
    """One pool's part in one task: entry, commit, claim."""

    task_id: Annotated[TaskId, DIGEST]
    pool: Annotated[AccountId, PUBLIC_KEY]
    bond: Annotated[Amount, I64]
    endpoint: Annotated[str, ENDPOINT]
    height: Annotated[Height, U64]
    index: Annotated[int, U32]
    standing: Annotated[Standing, Enum(Standing)]
    held: Annotated[Amount, I64]
    """What of the bond is still locked."""
    commitment: Annotated[ModelCommitment | None, Maybe(DIGEST)]
    claim: Annotated[ClaimRecord | None, Maybe(Record(ClaimRecord))]


@dataclass(frozen=True, slots=True)
class High:
    """A settled trade's part in the recent highs."""

    pool: Annotated[AccountId, PUBLIC_KEY]
    bid: Annotated[Amount, I64]
    markup: Annotated[Amount, I64]


@dataclass(frozen=True, slots=True)
class Provider:
    data_root: Annotated[Digest, DIGEST]
    rows: Annotated[int, U32]
    endpoint: Annotated[str, ENDPOINT]
    highs: Annotated[tuple[High, ...], Seq(Record(High), MAX_HIGHS)]
    """The last settled trades, oldest first, at most one a pool."""


class TradePhase(IntEnum):
    BID = 1
    """Waits for its draw, by the next block's hash."""
    DELIVERY = 2
    SETTLED = 3
    NO_DEAL = 4
    REFUNDED = 5
    """The deadline passed before all was delivered: the rest went back."""


@dataclass(frozen=True, slots=True)
class Trade:
    provider: Annotated[AccountId, PUBLIC_KEY]
    pool: Annotated[AccountId, PUBLIC_KEY]
    data_root: Annotated[Digest, DIGEST]
    rows: Annotated[int, U32]
    miners: Annotated[tuple[AccountId, ...], Seq(PUBLIC_KEY, 1024)]
    bid: Annotated[Amount, I64]
    price: Annotated[Amount, I64]
    p_ppm: Annotated[PartsPerMillion, U32]
    reputation_ppm: Annotated[PartsPerMillion, U32]
    height: Annotated[Height, U64]
    bid_ms: Annotated[Milliseconds, U64]
    phase: Annotated[TradePhase, Enum(TradePhase)]
    draw_height: Annotated[Height | None, Maybe(U64)]
    deadline_ms: Annotated[Milliseconds | None, Maybe(U64)]
    """For delivery."""
    delivered: Annotated[bytes, Var(16 * 1024)]
    """Bit ``miner * chunks + chunk``, lowest bit of the first byte first."""
    held: Annotated[Amount, I64]
    """What of the price is still locked."""
    credit_ms: Annotated[Milliseconds | None, Maybe(U64)]
    """Block time at which the settled trade counts as clean; None when it does not or has counted."""

    @property
    def markup(self) -> Amount:
        return Amount(self.price - self.bid)


@dataclass(frozen=True, slots=True)
class Reputation:
    ppm: Annotated[PartsPerMillion, U32]


@dataclass(frozen=True, slots=True)
class LastCredit:
    """Of one pool with one provider."""

    epoch: Annotated[int, U64]


@dataclass(frozen=True, slots=True)
class Pot:
    """The auditors' share of a work block's reward, in escrow for the next block."""

    height: Annotated[Height, U64]
    task_id: Annotated[TaskId, DIGEST]
    model_commitment: Annotated[ModelCommitment, DIGEST]
    amount: Annotated[Amount, I64]


@dataclass(frozen=True, slots=True)
class Tip:
    """The block that this state is after. At height 0 its hash is the chain id."""

    height: Annotated[Height, U64]
    block_hash: Annotated[BlockHash, DIGEST]
    timestamp_ms: Annotated[Milliseconds, U64]
    kind: Annotated[BlockKind, Enum(BlockKind)]
    author: Annotated[AccountId, PUBLIC_KEY]


@dataclass(frozen=True, slots=True)
class Evidence:
    """A fault that was punished: nothing is punished twice."""

    height: Annotated[Height, U64]


@dataclass(frozen=True, slots=True)
class _Scalars:
    version: Annotated[int, U16]
    chain_id: Annotated[Digest, DIGEST]
    tip: Tip
    burned: Annotated[Amount, I64]
    current: Annotated[TaskId | None, Maybe(DIGEST)]
    pot: Annotated[Pot | None, Maybe(Record(Pot))]
    validators: Annotated[tuple[Validator, ...], Seq(Record(Validator), MAX_VALIDATORS)]
    live: Annotated[tuple[TaskId, ...], Seq(DIGEST, 1 << 20)]
    settling: Annotated[tuple[TaskId, ...], Seq(DIGEST, 1 << 20)]
    trading: Annotated[tuple[Digest, ...], Seq(DIGEST, 1 << 20)]


@dataclass(frozen=True, slots=True)
class State:
    """After block ``tip``. Iterating a table is in key order, so every rule is deterministic."""

    genesis: Genesis
    chain_id: Digest
    tip: Tip
    burned: Amount
    current: TaskId | None
    """The task being mined for: open, highest reward, earliest; sticky until won or void."""
    pot: Pot | None
    validators: tuple[Validator, ...]
    """Who votes at the next height, ascending by node id."""
    live: tuple[TaskId, ...]
    """Pending, open and current tasks, in order of publication."""
    settling: tuple[TaskId, ...]
    """Ended tasks whose claimants' bonds are still locked."""
    trading: tuple[Digest, ...]
    """Trades that wait for a draw, a delivery or a credit."""
    accounts: Table[Account]
    tasks: Table[Task]
    entries: Table[Entry]
    """By task id ‖ pool."""
    providers: Table[Provider]
    trades: Table[Trade]
    reputations: Table[Reputation]
    credits: Table[LastCredit]
    """By pool ‖ provider."""
    evidence: Table[Evidence]

    @property
    def params(self) -> ChainParams:
        return self.genesis.params

    @property
    def height(self) -> Height:
        return self.tip.height

    @property
    def total_power(self) -> int:
        return sum(v.power for v in self.validators)

    def account(self, account: bytes) -> Account:
        """An account nobody paid yet is empty."""
        return self.accounts.get(account, _EMPTY)

    def task(self, task_id: bytes) -> Task:
        """Raises NotFoundError."""
        task = self.tasks.get(task_id)
        if task is None:
            raise NotFoundError(f"no task {short(task_id)} on this chain at height {self.height}", task_id=task_id)
        return task

    @property
    def current_task(self) -> Task | None:
        return None if self.current is None else self.tasks[self.current]

    def phase(self, task_id: bytes) -> TaskPhase:
        """Raises NotFoundError."""
        return self.task(task_id).phase

    def windows(self, task_id: bytes) -> Windows | None:
        """When entry, commits and claims of a task close; None while T0 is unknown. Raises NotFoundError."""
        start = self.task(task_id).start_ms
        if start is None:
            return None
        p = self.params
        return Windows(
            start, Milliseconds(start + p.entry_ms), Milliseconds(start + p.commit_ms), Milliseconds(start + p.claim_ms)
        )

    def entry(self, task_id: bytes, pool: bytes) -> Entry | None:
        return self.entries.get(entry_key(task_id, pool))

    def entries_of(self, task_id: bytes) -> tuple[Entry, ...]:
        """A task's entries, earliest first. Raises NotFoundError."""
        return tuple(self.entries[entry_key(task_id, pool)] for pool in self.task(task_id).pools)

    def ranking(self, task_id: bytes) -> tuple[Entry, ...]:
        """The entries with a claim, best first: N descending, then ``SHA-256(closing block ‖ c_W)`` ascending.

        Before claims close there is no tie-break, and equal claims stand in order of entry. Raises NotFoundError.
        """
        closing = self.task(task_id).closing_hash
        claimed = [(e, e.claim) for e in self.entries_of(task_id) if e.claim is not None]

        def place(pair: tuple[Entry, ClaimRecord]) -> tuple[int, bytes]:
            tie = b"" if closing is None else digest(DOMAIN_TIE, closing, pair[1].vm.model_commitment)
            return -pair[1].correct, tie

        return tuple(entry for entry, _ in sorted(claimed, key=place))

    def work_claims(self) -> tuple[Entry, ...] | None:
        """The claims in rank order if the next height is a work height, else None."""
        task = self.current_task
        if task is None or task.claim_closed is None:
            return None
        return self.ranking(task.task_id)

    def reputation(self, pool: bytes) -> PartsPerMillion:
        known = self.reputations.get(pool)
        return PartsPerMillion(self.params.initial_reputation_ppm) if known is None else known.ppm


_EMPTY: Final = Account(Amount(0), 0)
_TABLES: Final[tuple[tuple[str, type], ...]] = (
    ("accounts", Account), ("tasks", Task), ("entries", Entry), ("providers", Provider), ("trades", Trade),
    ("reputations", Reputation), ("credits", LastCredit), ("evidence", Evidence),
)  # fmt: skip


def entry_key(task_id: bytes, pool: bytes) -> bytes:
    return task_id + pool


def genesis_state(genesis: Genesis) -> State:
    """The state before block 1. Raises ConfigError if the document is not usable."""
    genesis.check()
    chain_id = genesis.chain_id
    return State(
        genesis=genesis,
        chain_id=chain_id,
        tip=Tip(Height(0), BlockHash(chain_id), genesis.time_ms, BlockKind.TRANSACTION, AccountId(bytes(32))),
        burned=Amount(0),
        current=None,
        pot=None,
        validators=tuple(
            sorted(
                (Validator(v.node_id, v.power, Amount(0), False) for v in genesis.validators), key=lambda v: v.node_id
            )
        ),
        live=(),
        settling=(),
        trading=(),
        accounts=Table(Account, {a.account: Account(a.balance, 0) for a in genesis.accounts if a.balance}),
        tasks=Table(Task),
        entries=Table(Entry),
        providers=Table(Provider),
        trades=Table(Trade),
        reputations=Table(Reputation),
        credits=Table(LastCredit),
        evidence=Table(Evidence),
    )


def state_root(state: State) -> StateRoot:
    """RFC 6962 root over ``scalars`` and, for each table in the order of ``_TABLES``, ``name ‖ root``."""
    leaves = [encode(_scalars(state))]
    leaves += [name.encode() + b"/" + getattr(state, name).root for name, _ in _TABLES]
    return StateRoot(digest(DOMAIN_STATE, merkle.root(leaves)))


def encode_state(state: State) -> bytes:
    """The whole state but the genesis document, canonically."""
    out = bytearray(encode(_scalars(state)))
    for name, _ in _TABLES:
        out += getattr(state, name).to_bytes()
    return bytes(out)


def decode_state(data: bytes, genesis: Genesis) -> State:
    """The state that ``encode_state`` wrote, on the chain of ``genesis``.

    Raises:
        MalformedError, LimitError: not the canonical encoding of a state.
        WrongChainError: of another chain or another version of the state's form.
    """
    reader = Reader(data)
    scalars: _Scalars = Record(_Scalars).read(reader)
    chain_id = genesis.chain_id
    if scalars.version != STATE_VERSION or scalars.chain_id != chain_id:
        raise WrongChainError(
            f"stored state: version {scalars.version} of chain {short(scalars.chain_id)}; this software reads version "
            f"{STATE_VERSION}, and the genesis document is of chain {short(chain_id)}"
        )
    tables: dict[str, Table[object]] = {name: Table.read(kind, reader) for name, kind in _TABLES}
    if reader.remaining:
        raise MalformedError(f"{reader.remaining} bytes follow the state", extra=reader.remaining)
    return State(
        genesis=genesis,
        chain_id=chain_id,
        tip=scalars.tip,
        burned=scalars.burned,
        current=scalars.current,
        pot=scalars.pot,
        validators=scalars.validators,
        live=scalars.live,
        settling=scalars.settling,
        trading=scalars.trading,
        **tables,  # type: ignore[arg-type]
    )


def total_supply(state: State) -> Amount:
    """Balances, locked money and burned money together: the genesis supply, always."""
    return Amount(sum(_holdings(state)) + state.burned)


def _holdings(state: State) -> Iterator[int]:
    yield from (a.balance for a in state.accounts.values())
    yield from (t.locked for t in state.tasks.values())
    yield from (e.held for e in state.entries.values())
    yield from (t.held for t in state.trades.values())
    yield from (v.bond for v in state.validators)
    if state.pot is not None:
        yield state.pot.amount


def _scalars(state: State) -> _Scalars:
    return _Scalars(
        STATE_VERSION,
        state.chain_id,
        state.tip,
        state.burned,
        state.current,
        state.pot,
        state.validators,
        state.live,
        state.settling,
        state.trading,
    )

