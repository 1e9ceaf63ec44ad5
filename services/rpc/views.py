"""What a full node tells its clients about the chain, as plain typed values.

The node makes these from its state; services.rpc.convert_chain turns them into protobuf and back; every role that follows
the chain reads them through services.rpc.chain_client.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from core.chain.block import Block, Certificate, Header, Payout, Vm
from core.chain.transaction import TaskSpec
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
    TxId,
)

__all__ = [
    "ClaimView", "ClaimsView", "ValidatorView",
    "AccountView", "BlockView", "EntryView", "Explanation", "LeakReportView", "MarketView", "ProviderView",
    "ReportOutcome", "TaskPhase", "TaskView", "Tip", "TradePhase", "TradeView",
    "TransactionStatus", "TransactionView", "TxStatus", "VerdictView", "WorkView",
]  # fmt: skip


class TaskPhase(IntEnum):
    """A task's life (design: consensus); the numbers are those of chain.proto."""

    PENDING = 1
    OPEN = 2
    ENTRY = 3
    TRAINING = 4
    EVALUATION = 5
    WORK = 6
    WON = 7
    VOID = 8

    @property
    def is_current(self) -> bool:
        return TaskPhase.ENTRY <= self <= TaskPhase.WORK

    @property
    def is_ended(self) -> bool:
        return self >= TaskPhase.WON


class TradePhase(IntEnum):
    BID = 1
    DELIVERY = 2
    SETTLED = 3
    NO_DEAL = 4
    REFUNDED = 5


class TxStatus(IntEnum):
    PENDING = 1
    FINAL = 2
    REFUSED = 3
    UNKNOWN = 4


@dataclass(frozen=True, slots=True)
class Tip:
    """The last finalised block of a node."""

    height: Height
    block_hash: BlockHash
    state_root: StateRoot
    certificate: Certificate | None
    """None at height 0."""
    next_time_ms: Milliseconds
    """Timestamp of a block built on this certificate."""
    current_task: TaskId | None
    work_height: bool
    supply: Amount
    burned: Amount
    peers: int
    mempool: int
    protocol_version: int
    """Of the next height: what a block built on this tip names."""


@dataclass(frozen=True, slots=True)
class TransactionView:
    tx_id: TxId
    sender: AccountId
    nonce: int
    fee: Amount
    kind: str
    details_json: str
    encoded: bytes


@dataclass(frozen=True, slots=True)
class BlockView:
    block: Block
    header: Header
    payouts: tuple[Payout, ...]
    transactions: tuple[TransactionView, ...]
    certificate: Certificate
    """The one that finalised this block."""
    state_root: StateRoot
    """After this block."""

    @property
    def block_hash(self) -> BlockHash:
        return self.block.block_hash


@dataclass(frozen=True, slots=True)
class EntryView:
    """One pool in one task."""

    pool: AccountId
    bond: Amount
    endpoint: str
    model_commitment: ModelCommitment | None = None
    correct: Correct | None = None
    vm: Vm | None = None


@dataclass(frozen=True, slots=True)
class TaskView:
    task_id: TaskId
    requester: AccountId
    spec: TaskSpec
    reward: Amount
    bond: Amount
    min_pool_bond: Amount
    task_nonce: bytes
    published_height: Height
    phase: TaskPhase
    expires_ms: Milliseconds
    stored_by: tuple[NodeId, ...] = ()
    start_ms: Milliseconds | None = None
    """T0; None until the block after the task became current."""
    entry_close_ms: Milliseconds | None = None
    commit_close_ms: Milliseconds | None = None
    claim_close_ms: Milliseconds | None = None
    entries: tuple[EntryView, ...] = ()
    """In rank order once claims are closed."""
    ended_height: Height | None = None
    winner: AccountId | None = None


@dataclass(frozen=True, slots=True)
class AccountView:
    balance: Amount
    next_nonce: int
    reputation_ppm: PartsPerMillion
    name: str
    height: Height


@dataclass(frozen=True, slots=True)
class TransactionStatus:
    status: TxStatus
    height: Height | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ProviderView:
    provider: AccountId
    data_root: Digest
    rows: int
    endpoint: str


class ReportOutcome(IntEnum):
    """What became of a leak report (core.chain.records.ReportOutcome)."""

    OPEN = 1
    LEAKED = 2
    SILENT = 3
    CLEARED = 4


@dataclass(frozen=True, slots=True)
class LeakReportView:
    """A report on one miner of a trade."""

    miner: AccountId
    outcome: ReportOutcome
    found: int
    """Marks in the copy."""
    agreeing: int
    copy: Digest
    height: Height
    deadline_ms: Milliseconds


@dataclass(frozen=True, slots=True)
class TradeView:
    trade_id: Digest
    provider: AccountId
    pool: AccountId
    data_root: Digest
    bid: Amount
    markup: Amount
    p_ppm: PartsPerMillion
    reputation_ppm: PartsPerMillion
    phase: TradePhase
    bid_height: Height
    draw_height: Height | None
    miners: tuple[AccountId, ...]
    chunks_total: int
    chunks_delivered: int
    delivery_deadline_ms: Milliseconds | None
    rows: int = 0
    marks: tuple[Digest, ...] = ()
    """Commitments to the miners' choices of variants, in their order."""
    reports: tuple[LeakReportView, ...] = ()
    is_leaked: bool = False


@dataclass(frozen=True, slots=True)
class ClaimView:
    task_id: TaskId
    pool: AccountId
    correct: Correct
    vm: Vm


@dataclass(frozen=True, slots=True)
class ClaimsView:
    """All claims of one block."""

    height: Height
    block_time_ms: Milliseconds
    claims: tuple[ClaimView, ...]


@dataclass(frozen=True, slots=True)
class ValidatorView:
    node_id: NodeId
    power: int
    """At the next height; 0: not then."""
    next_power: int
    """At the height after it."""
    bond: Amount
    endpoint: str
    since_height: Height
    release_ms: Milliseconds | None
    """It left: block time at which the bond goes back."""
    has_equivocated: bool
    name: str


@dataclass(frozen=True, slots=True)
class MarketView:
    height: Height
    bid_high: Amount
    markup_high: Amount
    pool_reputation_ppm: PartsPerMillion


@dataclass(frozen=True, slots=True)
class VerdictView:
    validator: NodeId
    pool: AccountId
    model_commitment: ModelCommitment
    kind: str
    correct: Correct
    reason: str
    audit_ms: int


@dataclass(frozen=True, slots=True)
class TranscriptView:
    """What a node tells of a transcript that it keeps."""

    digest: Digest
    validator: NodeId
    purpose: str
    task_id: TaskId
    model_commitment: ModelCommitment | None
    size: int
    head: Digest
    result: str


@dataclass(frozen=True, slots=True)
class Explanation:
    block: BlockView
    task: TaskView | None
    verdicts: tuple[VerdictView, ...] = ()
    lines: tuple[str, ...] = ()
    vm_bytes: int = 0
    """Size of the winner's Vm body; 0 where this node does not have it."""
    transcripts: tuple[TranscriptView, ...] = ()
    """Of this node's own audits and stored check."""
    contradictions: tuple[tuple[bytes, bytes], ...] = ()
    """Pairs of encoded SignedAnswers of the requester about one claim."""
    took_part: bool = False
    """Whether the node took part in deciding the height; else it knows no verdicts."""


@dataclass(frozen=True, slots=True)
class WorkView:
    """What a node knows of the height being decided."""

    height: Height
    work_height: bool
    task_id: TaskId | None
    top_remaining: ModelCommitment | None
    verdicts: tuple[bytes, ...] = field(default=())
    """Encoded SignedVerdicts."""
