"""Transactions: what changes the state between blocks (design: consensus, "State and transactions")."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from typing import Annotated, Final

from core.chain.block import MAX_CLAIMS, MAX_TRANSACTION, MAX_VALIDATORS, SignedHeader, Vm
from core.chain.vote import SignedVerdict, SignedVote
from core.codec import (
    DIGEST,
    I64,
    PUBLIC_KEY,
    SIGNATURE,
    U8,
    U16,
    U32,
    U64,
    Enum,
    Fixed,
    Record,
    Seq,
    Text,
    Union,
    Var,
    decode,
    encode,
    encode_as,
)
from core.crypto.hashing import digest
from core.endpoint import Endpoint
from core.ids import AccountId, Amount, Correct, Digest, Height, Milliseconds, ModelCommitment, NodeId, Signature, TaskId, TxId

__all__ = [
    "Activation", "Approval", "Bid", "ChunkReceipt", "Claim", "Commit", "EnterTask", "Equivocation", "JoinValidator",
    "LeaveValidator", "OpenMarks", "Payload", "PoolFault", "PublishTask", "Refusal", "RegisterProvider", "ReportLeak",
    "ScheduleUpgrade",
    "SignedTransaction", "Stored", "TaskSpec", "Transaction", "Transfer", "VerdictEquivocation", "Verdicts",
    "DOMAIN_APPROVAL", "DOMAIN_CHUNK_RECEIPT", "DOMAIN_TASK", "DOMAIN_TRANSACTION", "DOMAIN_TRANSACTION_SIGNATURE",
    "PAYLOAD", "approval_message",
]  # fmt: skip

DOMAIN_TRANSACTION: Final = b"pofl/transaction/1"
DOMAIN_TRANSACTION_SIGNATURE: Final = b"pofl/transaction-signature/1"
DOMAIN_CHUNK_RECEIPT: Final = b"pofl/chunk-receipt/1"
DOMAIN_TASK: Final = b"pofl/task/1"
DOMAIN_APPROVAL: Final = b"pofl/approval/1"

MAX_SIGNED: Final = 4 + MAX_TRANSACTION + SIGNATURE.size
"""Bytes of a signed transaction."""
MAX_SMALL: Final = 2048
"""Bytes of a transaction that is remembered."""
MAX_CUTS: Final = 510
"""A task lists at most 512 blobs, one a feature and one a class."""
MAX_CUT: Final = 1 << 50
"""Magnitude of a cut point in millionths: divided by a million, no two of them are the same float64."""
BITMAP = Fixed(32)
ENDPOINT = Endpoint()
"""host:port, no scheme."""


class Refusal(StrEnum):
    """Why a transaction is refused: stable words for programs."""

    MALFORMED = "malformed"
    WRONG_CHAIN = "wrong-chain"
    BAD_SIGNATURE = "bad-signature"
    BAD_NONCE = "bad-nonce"
    FEE_TOO_LOW = "fee-too-low"
    INSUFFICIENT_FUNDS = "insufficient-funds"
    UNKNOWN_TASK = "unknown-task"
    TOO_EARLY = "too-early"
    """The window is not open yet: the same transaction may be good later."""
    WRONG_PHASE = "wrong-phase"
    """The window is closed for good."""
    NOT_ENTERED = "not-entered"
    NOT_COMMITTED = "not-committed"
    DUPLICATE = "duplicate"
    BAD_RECEIPT = "bad-receipt"
    OUT_OF_RANGE = "out-of-range"
    NOT_A_VALIDATOR = "not-a-validator"
    UNKNOWN_PROVIDER = "unknown-provider"
    BAD_OFFER = "bad-offer"
    BAD_BID = "bad-bid"
    UNKNOWN_TRADE = "unknown-trade"
    NOT_THE_SELLER = "not-the-seller"
    BAD_REPORT = "bad-report"
    UNKNOWN_REPORT = "unknown-report"
    BAD_OPENING = "bad-opening"
    EXPIRED = "expired"
    BAD_EVIDENCE = "bad-evidence"
    LIMIT = "limit"
    NOT_APPROVED = "not-approved"
    """Signatures of 2/3 of the validators' power are missing."""


class Activation(IntEnum):
    """Activation of the hidden layers of the scored model; the last layer has none (argmax)."""

    IDENTITY = 0
    SIGMOID = 1
    RELU = 2


@dataclass(frozen=True, slots=True)
class Transfer:
    to: Annotated[AccountId, PUBLIC_KEY]
    amount: Annotated[Amount, I64]


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """What the pools learn for: the model family and the committed, encrypted test set."""

    name: Annotated[str, Text(64)]
    features: Annotated[int, U32]
    """M."""
    classes: Annotated[int, U16]
    """C."""
    samples: Annotated[int, U32]
    """I: rows of the secret test set."""
    hidden: Annotated[tuple[int, ...], Seq(U16, 8)]
    """Widths of the hidden layers; empty for softmax regression."""
    activation: Annotated[Activation, Enum(Activation)]
    weight_bits: Annotated[int, U8]
    """b_w of the scored integer model."""
    feature_scale_micro: Annotated[int, U64]
    """Public scale: int8 feature = round(float * scale), clamped to [-127, 127]; in millionths."""
    test_root: Annotated[Digest, DIGEST]
    """RFC 6962 root over the digests of the encrypted test set's blobs (features, then labels)."""
    test_blobs: Annotated[tuple[Digest, ...], Seq(DIGEST, 512)]
    """Blob digests in order; test_root is over them."""
    public_key_blob: Annotated[Digest, DIGEST]
    """Blob with the requester's BFV public key (b only; a is public randomness of chain and task)."""
    practice_blob: Annotated[Digest, DIGEST]
    """Blob with the public practice set."""
    endpoint: Annotated[str, ENDPOINT]
    """Where the requester serves evaluations, audits and blobs."""
    leak_bits: Annotated[int, U32]
    """Declared bound on what the pools together may learn of one test row (design: verification, section 8)."""
    cuts_micro: Annotated[tuple[int, ...], Seq(I64, MAX_CUTS)] = ()
    """Of a regression: the C - 1 values between the buckets that real targets are counted by, rising, in millionths of the
    targets' unit (docs/adr/0065, 0090). Empty: the classes are labels."""


@dataclass(frozen=True, slots=True)
class PublishTask:
    spec: TaskSpec
    reward: Annotated[Amount, I64]
    bond: Annotated[Amount, I64]
    min_pool_bond: Annotated[Amount, I64]
    task_nonce: Annotated[bytes, DIGEST]
    """Chosen by the requester before she encrypts: it makes the task id, which the encryption's public randomness uses."""
    expires_ms: Annotated[Milliseconds, U64]


@dataclass(frozen=True, slots=True)
class Stored:
    """A validator has every blob under the task's test root and the stored check passed."""

    task_id: Annotated[TaskId, DIGEST]


@dataclass(frozen=True, slots=True)
class EnterTask:
    task_id: Annotated[TaskId, DIGEST]
    bond: Annotated[Amount, I64]
    endpoint: Annotated[str, ENDPOINT]
    """Where the pool serves its work block and Vm body."""


@dataclass(frozen=True, slots=True)
class Commit:
    task_id: Annotated[TaskId, DIGEST]
    model_commitment: Annotated[ModelCommitment, DIGEST]


@dataclass(frozen=True, slots=True)
class Claim:
    task_id: Annotated[TaskId, DIGEST]
    correct: Annotated[Correct, U32]
    vm: Vm
    body_digest: Annotated[Digest, DIGEST]
    """SHA-256 of the body: with it ``c_W`` is seen to be of this pool, and a copied one is refused (docs/adr/0081)."""


@dataclass(frozen=True, slots=True)
class RegisterProvider:
    """A provider pays to be known; her data sets are offered under this root."""

    data_root: Annotated[Digest, DIGEST]
    rows: Annotated[int, U32]
    endpoint: Annotated[str, ENDPOINT]


@dataclass(frozen=True, slots=True)
class Bid:
    """The pool's bid under a provider's signed offer. Locks ``m + D_s`` until the draw."""

    offer: Annotated[bytes, Var(2048)]
    """Encoded core.market.contract.Offer."""
    offer_signature: Annotated[Signature, SIGNATURE]
    """The provider's, over the offer."""
    bid: Annotated[Amount, I64]
    """m."""
    p_ppm: Annotated[int, U32]
    """The trading probability of eq. (2); nodes recompute it."""
    miners: Annotated[tuple[AccountId, ...], Seq(PUBLIC_KEY, 1024)]
    """Who is to receive rows, in order: shares are even (core.market.rows.plan)."""
    marks: Annotated[tuple[Digest, ...], Seq(DIGEST, 1024)]
    """Of each miner, the commitment to its choices of variants (core.market.marks)."""
    provider_signature: Annotated[Signature, SIGNATURE]
    """The provider's, over (offer, bid, p_ppm, miners, marks): both sides sign."""


@dataclass(frozen=True, slots=True)
class ChunkReceipt:
    """A miner's signed word that a chunk arrived and matched the root; releases that chunk's share of the price."""

    trade_id: Annotated[Digest, DIGEST]
    chunk: Annotated[int, U16]
    miner: Annotated[AccountId, PUBLIC_KEY]
    miner_signature: Annotated[Signature, SIGNATURE]


@dataclass(frozen=True, slots=True)
class ReportLeak:
    """The seller of a trade found a copy of a miner's rows, and says which variants it has. Locks ``report_bond``."""

    trade_id: Annotated[Digest, DIGEST]
    miner: Annotated[AccountId, PUBLIC_KEY]
    found: Annotated[bytes, BITMAP]
    """Bit g: group g of the share is in the copy (core.market.marks.bitmap)."""
    seen: Annotated[bytes, BITMAP]
    """Bit g: which choice the copy shows; 0 where nothing was found."""
    copy: Annotated[Digest, DIGEST]
    """SHA-256 of the copy as it was found: for people, nodes do not ask for it."""


@dataclass(frozen=True, slots=True)
class OpenMarks:
    """The answer to a report: the seed of the accused miner's choices. Anybody who knows it may send it."""

    trade_id: Annotated[Digest, DIGEST]
    miner: Annotated[AccountId, PUBLIC_KEY]
    seed: Annotated[bytes, Fixed(32)]
    points: Annotated[Digest, DIGEST]
    """Of the message that the miner sent: with it a wrong seed is refused before any arithmetic."""


@dataclass(frozen=True, slots=True)
class Verdicts:
    """First transaction of the block after a work or void block: pays the signers with right tags."""

    height: Annotated[Height, U64]
    z_digest: Annotated[Digest, DIGEST]
    verdicts: Annotated[tuple[SignedVerdict, ...], Seq(Record(SignedVerdict), MAX_CLAIMS * MAX_VALIDATORS)]
    """On the winner, and on higher claims: what refutes those burns their bonds."""


@dataclass(frozen=True, slots=True)
class PoolFault:
    """Two work headers of one pool on one parent: its bond burns."""

    first: SignedHeader
    second: SignedHeader


@dataclass(frozen=True, slots=True)
class Equivocation:
    """Two signed votes of one validator that no honest validator signs both of."""

    first: SignedVote
    second: SignedVote


@dataclass(frozen=True, slots=True)
class VerdictEquivocation:
    """Two differing verdicts of one validator on one claim, neither of them ``unavailable``."""

    first: SignedVerdict
    second: SignedVerdict


@dataclass(frozen=True, slots=True)
class Approval:
    """A validator's signature under DOMAIN_APPROVAL over ``approval_message``."""

    validator: Annotated[NodeId, PUBLIC_KEY]
    signature: Annotated[Signature, SIGNATURE]


APPROVALS = Seq(Record(Approval), MAX_VALIDATORS)
"""Ascending by validator, each once; 2/3 of the power of the block's height."""


@dataclass(frozen=True, slots=True)
class JoinValidator:
    """The sender becomes a validator two heights after the block, if 2/3 of the power agree. Locks ``bond``."""

    validator: Annotated[NodeId, PUBLIC_KEY]
    """The sender: named here so that approvals are for nobody else."""
    power: Annotated[int, U32]
    bond: Annotated[Amount, I64]
    endpoint: Annotated[str, ENDPOINT]
    nonce: Annotated[int, U64]
    """Of the transaction that carries this: an approval is good for one joining."""
    expires_height: Annotated[Height, U64]
    """Of the last block that may take it."""
    approvals: Annotated[tuple[Approval, ...], APPROVALS]


@dataclass(frozen=True, slots=True)
class LeaveValidator:
    """Ends a membership two heights after the block, if 2/3 of the power agree: the member's own wish, or theirs."""

    validator: Annotated[NodeId, PUBLIC_KEY]
    since_height: Annotated[Height, U64]
    """When the membership began: an approval is good for one leaving."""
    reason: Annotated[str, Text(200)]
    expires_height: Annotated[Height, U64]
    approvals: Annotated[tuple[Approval, ...], APPROVALS]


@dataclass(frozen=True, slots=True)
class ScheduleUpgrade:
    """2/3 of the power agree that the next protocol version holds from ``height`` on."""

    version: Annotated[int, U16]
    height: Annotated[Height, U64]
    expires_height: Annotated[Height, U64]
    """Of the last block that may take this."""
    approvals: Annotated[tuple[Approval, ...], APPROVALS]


Payload = (
    Transfer | PublishTask | Stored | EnterTask | Commit | Claim | RegisterProvider | Bid | ChunkReceipt
    | ReportLeak | OpenMarks | Verdicts | PoolFault | Equivocation | JoinValidator | LeaveValidator
    | VerdictEquivocation | ScheduleUpgrade
)  # fmt: skip

PAYLOAD: Final = Union(
    {
        1: Transfer, 2: PublishTask, 3: Stored, 4: EnterTask, 5: Commit, 6: Claim, 7: RegisterProvider, 8: Bid,
        9: ChunkReceipt, 10: ReportLeak, 11: OpenMarks, 12: Verdicts, 13: PoolFault, 14: Equivocation,
        15: JoinValidator, 16: LeaveValidator, 17: VerdictEquivocation, 18: ScheduleUpgrade,
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Transaction:
    chain_id: Annotated[Digest, DIGEST]
    sender: Annotated[AccountId, PUBLIC_KEY]
    nonce: Annotated[int, U64]
    fee: Annotated[Amount, I64]
    """To the author of the block that carries it."""
    payload: Annotated[Payload, PAYLOAD]


@dataclass(frozen=True, slots=True)
class SignedTransaction:
    """The transaction's exact bytes and its sender's signature over them."""

    transaction: Annotated[bytes, Var(MAX_TRANSACTION)]
    signature: Annotated[Signature, SIGNATURE]

    @property
    def tx_id(self) -> TxId:
        return TxId(digest(DOMAIN_TRANSACTION, self.transaction))

    def to_bytes(self) -> bytes:
        """``encode(self)``, at a fifth of its cost: a node does it several times for each transaction."""
        if len(self.signature) != SIGNATURE.size or len(self.transaction) > MAX_TRANSACTION:
            return encode(self)
        return len(self.transaction).to_bytes(4, "big") + self.transaction + self.signature

    @classmethod
    def from_bytes(cls, data: bytes) -> SignedTransaction:
        """``decode(SignedTransaction, data, MAX_SIGNED)``, as cheaply. Raises MalformedError, LimitError."""
        size = len(data) - SIGNATURE.size
        if not 4 <= size <= 4 + MAX_TRANSACTION or int.from_bytes(data[:4], "big") != size - 4:
            return decode(cls, data, MAX_SIGNED)
        return cls(data[4:size], Signature(data[size:]))

    def decoded(self) -> Transaction:
        """The checked transaction. Raises MalformedError or LimitError."""
        data = self.transaction
        return _small(data) if len(data) <= MAX_SMALL else decode(Transaction, data, MAX_TRANSACTION)


@functools.lru_cache(maxsize=2048)
def _small(data: bytes) -> Transaction:
    """A transaction is looked at for the mempool, each block built and each block applied: it is decoded once."""
    return decode(Transaction, data, MAX_TRANSACTION)


def task_id(chain_id: Digest, requester: AccountId, task_nonce: bytes) -> TaskId:
    """``SHA-256(domain, chain, requester, nonce)``: known before the task is published."""
    return TaskId(digest(DOMAIN_TASK, chain_id, requester, task_nonce))


def approval_message(chain_id: Digest, payload: JoinValidator | LeaveValidator | ScheduleUpgrade) -> bytes:
    """What validators sign under DOMAIN_APPROVAL: the chain and the payload without approvals."""
    return chain_id + encode_as(PAYLOAD, replace(payload, approvals=()))


def chunk_receipt_message(chain_id: Digest, trade_id: Digest, chunk: int, miner: AccountId) -> bytes:
    """What a miner signs under DOMAIN_CHUNK_RECEIPT when a chunk arrived and matched the data set's root."""
    return chain_id + trade_id + chunk.to_bytes(2, "big") + miner
