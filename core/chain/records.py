"""The records of the chain's state: accounts, tasks, entries, trades (design: consensus, "State and transactions")."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Final

from core.chain.block import MAX_VALIDATORS, BlockKind, Vm
from core.chain.transaction import ENDPOINT, PublishTask
from core.codec import BOOL, DIGEST, I64, PUBLIC_KEY, U16, U32, U64, Enum, Fixed, Maybe, Record, Seq, Text, Var
from core.endpoint import MAX_ENDPOINT
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
    TaskId,
)

__all__ = [
    "MAX_ENDED", "MAX_ENTRANTS", "MAX_LIVE", "Account", "ClaimRecord", "Entry", "Evidence", "High", "LastCredit",
    "LeakReport", "Membership", "Pot", "Provider", "ReportOutcome", "Reputation", "Standing", "Task", "TaskEnd", "TaskPhase",
    "Tip", "Trade", "TradePhase", "Validator", "ValidatorSet", "Windows", "Upgrade",
]  # fmt: skip

MAX_ENTRANTS: Final = 1024
MAX_LIVE: Final = 1024
"""Unfinished tasks."""
MAX_ENDED: Final = 65_536
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
    """Locked by JoinValidator (the money is its Membership's); validators of the genesis document have none."""
    has_equivocated: Annotated[bool, BOOL]
    """Proven on the chain: its tags are no longer paid."""


@dataclass(frozen=True, slots=True)
class ValidatorSet:
    """Who votes, from the height of its key on until the next row's; ascending by node id."""

    validators: Annotated[tuple[Validator, ...], Seq(Record(Validator), MAX_VALIDATORS)]


@dataclass(frozen=True, slots=True)
class Upgrade:
    """Agreed by 2/3 of the validators' power, and not in force yet."""

    version: Annotated[int, U16]
    height: Annotated[Height, U64]
    """Its first block."""


@dataclass(frozen=True, slots=True)
class Membership:
    """A validator, or one that left and whose bond evidence can still burn."""

    since_height: Annotated[Height, U64]
    """The first height it votes at; 1 for those of the genesis document."""
    bond: Annotated[Amount, I64]
    endpoint: Annotated[str, Text(MAX_ENDPOINT)]
    """Empty for those of the genesis document, which does not say."""
    release_ms: Annotated[Milliseconds | None, Maybe(U64)]
    """It left: block time from which the bond goes back."""


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
    DISPLACED = 9
    """There were too many unfinished tasks, and one with a higher reward came."""


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
    marks: Annotated[tuple[Digest, ...], Seq(DIGEST, 1024)]
    """Commitments to the miners' choices of variants, in their order."""
    accused: Annotated[tuple[AccountId, ...], Seq(PUBLIC_KEY, 1024)]
    """Miners whose marks are due, in order of the reports."""
    is_leaked: Annotated[bool, BOOL]
    """A leak was proven, and has cost its pool reputation."""

    @property
    def markup(self) -> Amount:
        return Amount(self.price - self.bid)


class ReportOutcome(IntEnum):
    OPEN = 1
    """The marks are due until ``deadline_ms``."""
    LEAKED = 2
    """The opened marks agree with the copy."""
    SILENT = 3
    """They were not opened in time: the pool answers for its miner."""
    CLEARED = 4
    """They do not agree: the bond went to the pool."""


@dataclass(frozen=True, slots=True)
class LeakReport:
    """One for each miner of a trade, ever: opened marks are known to everybody."""

    found: Annotated[bytes, Fixed(32)]
    seen: Annotated[bytes, Fixed(32)]
    copy: Annotated[Digest, DIGEST]
    height: Annotated[Height, U64]
    """Of its block."""
    deadline_ms: Annotated[Milliseconds, U64]
    held: Annotated[Amount, I64]
    """What of the bond is still locked."""
    outcome: Annotated[ReportOutcome, Enum(ReportOutcome)]
    agreeing: Annotated[int, U16]
    """Of the found groups, those whose opened choice is the copy's; 0 while unknown."""


@dataclass(frozen=True, slots=True)
class Reputation:
    ppm: Annotated[PartsPerMillion, U32]


@dataclass(frozen=True, slots=True)
class LastCredit:
    """Of one pool with all providers."""

    epoch: Annotated[int, U64]
    burned: Annotated[Amount, I64]
    """By its clean trades of that epoch."""


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
