"""Every message of evaluation, audit and stored check, with its limits.

Numbers modulo t travel as 5 bytes each (core.verification.field), polynomials packed at 50 bits a residue. A message whose
encoding is longer than PART_BYTES travels as several Parts; the receiver puts them together before it looks inside. Exact
lengths follow from the task, so each machine checks them again when it unpacks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from core.chain.block import MAX_CLAIMS, MAX_VALIDATORS, Receipt
from core.chain.vote import SignedVerdict
from core.codec import BOOL, DIGEST, PUBLIC_KEY, SIGNATURE, U8, U16, U32, U64, Fixed, Maybe, Record, Seq, Text, Union, Var
from core.crypto.zero_check import MAX_RUNS, ZeroCommitment, ZeroOpening, ZeroQuery
from core.ids import AccountId, Digest, ModelCommitment, NodeId, Signature, TaskId
from core.verification.receipt import SignedAnswer

__all__ = [
    "Abort", "AuditAnswer", "AuditOpen", "BaseTransfer", "BatchAccepted", "BodyWanted", "Challenges", "Envelope",
    "EvaluationOpen", "GarbledLabels", "Hints", "KnowledgeChallenge", "KnowledgeCommitment", "KnowledgeOpening",
    "KnowledgeShares", "LayerValues", "MaskedModel", "MaskedProducts", "MaskedRows", "Message", "ModelBody", "OutputKeys",
    "Part", "RunSeeds", "StoredOpen", "StoredOpened", "TransferRequest", "ZeroCommitments", "ZeroNumbers", "ZeroOpenings",
    "ZeroQueries", "EXTRA_ROWS", "MAX_HIGHER", "MAX_LOGICAL", "MESSAGE", "PART_BYTES", "SESSION_BYTES",
]  # fmt: skip

PART_BYTES: Final = 1 << 20
MAX_PARTS: Final = 1024
MAX_LOGICAL: Final = 512 << 20
"""No message of any task is longer. What a session accepts follows from its task and is far less."""
SESSION_BYTES: Final = 32
EXTRA_ROWS: Final = 2
"""Rows of the knowledge check: a lie passes with t^-2."""
MAX_HIGHER: Final = MAX_CLAIMS * MAX_VALIDATORS // 8
"""Verdicts in one opening. More claims than that are never refuted: those of two thirds of the validators are enough each."""
_BIG = Var(MAX_LOGICAL)
_POLY = Var(1 << 20)


@dataclass(frozen=True, slots=True)
class Part:
    """Piece ``index`` of ``count`` of one message's encoding."""

    index: Annotated[int, U16]
    count: Annotated[int, U16]
    data: Annotated[bytes, Var(PART_BYTES)]


@dataclass(frozen=True, slots=True)
class Abort:
    """The sender ends the session."""

    reason: Annotated[str, Text(200)]


# Evaluation, pool to requester and back, in the order in which they are sent.


@dataclass(frozen=True, slots=True)
class EvaluationOpen:
    """P: opens the offline part. ``batch``: 0, or 1 for the spare."""

    chain_id: Annotated[Digest, DIGEST]
    task_id: Annotated[TaskId, DIGEST]
    pool: Annotated[AccountId, PUBLIC_KEY]
    batch: Annotated[int, U8]


@dataclass(frozen=True, slots=True)
class BaseTransfer:
    """R, P: base oblivious transfers, in the roles of core.crypto.oblivious_transfer."""

    data: Annotated[bytes, Var(1 << 20)]


@dataclass(frozen=True, slots=True)
class MaskedRows:
    """P: ``H A^T`` and two extra rows, masked; (K + 2) x B ciphertexts, all ``c0``, then all ``c1``."""

    ciphertexts: Annotated[bytes, _BIG]


@dataclass(frozen=True, slots=True)
class KnowledgeChallenge:
    """R: ``γ``, 2 x K values. Once for one batch."""

    gamma: Annotated[bytes, _BIG]


@dataclass(frozen=True, slots=True)
class KnowledgeOpening:
    """P: ``h = Σ γ_k H_k + H'`` (2 x M)."""

    h: Annotated[bytes, _BIG]


@dataclass(frozen=True, slots=True)
class KnowledgeCommitment:
    """R: a salted hash of what ``g`` has to be, before she sees it (docs/adr/0067)."""

    commitment: Annotated[Digest, DIGEST]


@dataclass(frozen=True, slots=True)
class KnowledgeShares:
    """P: ``g = Σ γ_k m_k + m'`` (2 x I)."""

    g: Annotated[bytes, _BIG]


@dataclass(frozen=True, slots=True)
class BatchAccepted:
    """R: the pool knows what it asks to decrypt, and she knew what it would say; ``D`` is ready, for one use."""

    salt: Annotated[bytes, Fixed(32)]


@dataclass(frozen=True, slots=True)
class MaskedModel:
    """P: ``E = W_1^T - H`` (K x M), and the commitment that the chain holds."""

    model_commitment: Annotated[ModelCommitment, DIGEST]
    e: Annotated[bytes, _BIG]


@dataclass(frozen=True, slots=True)
class TransferRequest:
    """R: ``V = E A^T + D`` (K x I), and her choices for the oblivious transfer of her labels' keys. Once."""

    v: Annotated[bytes, _BIG]
    choices: Annotated[bytes, _BIG]


@dataclass(frozen=True, slots=True)
class GarbledLabels:
    """P: the garbled comparison circuit and the transferred keys."""

    circuit: Annotated[bytes, _BIG]
    transfer: Annotated[bytes, _BIG]


@dataclass(frozen=True, slots=True)
class OutputKeys:
    """R: the keys of the circuit's outputs, 16 bytes each, and her receipt."""

    keys: Annotated[bytes, Var(16 * 32)]
    receipt: Receipt


# The zero check, in all three protocols.


@dataclass(frozen=True, slots=True)
class ZeroQueries:
    """V: one masked number a run."""

    queries: Annotated[tuple[ZeroQuery, ...], Seq(Record(ZeroQuery), MAX_RUNS)]


@dataclass(frozen=True, slots=True)
class ZeroCommitments:
    """R."""

    commitments: Annotated[tuple[ZeroCommitment, ...], Seq(Record(ZeroCommitment), MAX_RUNS)]


@dataclass(frozen=True, slots=True)
class ZeroNumbers:
    """V: ``μ`` of each run."""

    numbers: Annotated[tuple[int, ...], Seq(U64, MAX_RUNS)]


@dataclass(frozen=True, slots=True)
class ZeroOpenings:
    """R: the opening of each run that is equal, nothing for the others; signed over the transcript up to here."""

    openings: Annotated[tuple[ZeroOpening | None, ...], Seq(Maybe(Record(ZeroOpening)), MAX_RUNS)]
    signature: Annotated[Signature, SIGNATURE]


# Audit, node to requester and back.


@dataclass(frozen=True, slots=True)
class AuditOpen:
    """F: ``attempt`` 0, or 1 or 2 for a retry."""

    chain_id: Annotated[Digest, DIGEST]
    task_id: Annotated[TaskId, DIGEST]
    pool: Annotated[AccountId, PUBLIC_KEY]
    model_commitment: Annotated[ModelCommitment, DIGEST]
    validator: Annotated[NodeId, PUBLIC_KEY]
    attempt: Annotated[int, U8]
    higher: Annotated[tuple[SignedVerdict, ...], Seq(Record(SignedVerdict), MAX_HIGHER)] = ()
    """Verdicts that refute or skip every higher claim (docs/adr/0063): the requester audits the top remaining one only."""


@dataclass(frozen=True, slots=True)
class BodyWanted:
    """R: whether she still needs the body behind ``c_W``."""

    wanted: Annotated[bool, BOOL]


@dataclass(frozen=True, slots=True)
class ModelBody:
    """F: the body (core.verification.body), empty where it was not wanted."""

    body: Annotated[bytes, _BIG]


@dataclass(frozen=True, slots=True)
class AuditAnswer:
    """R: her one answer about this model."""

    answer: SignedAnswer


@dataclass(frozen=True, slots=True)
class LayerValues:
    """R: ``Z_l``, I x d_l values modulo t, for layer 1 … L in order."""

    layer: Annotated[int, U8]
    z: Annotated[bytes, _BIG]


@dataclass(frozen=True, slots=True)
class RunSeeds:
    """F: the seed of each run's ``s`` and ``r``."""

    seeds: Annotated[tuple[bytes, ...], Seq(Fixed(32), MAX_RUNS)]


@dataclass(frozen=True, slots=True)
class Hints:
    """R: ``c0`` of one ciphertext a run: mask ``m`` (M values), then ``T = <m, u>``."""

    hints: Annotated[tuple[bytes, ...], Seq(_POLY, MAX_RUNS)]


@dataclass(frozen=True, slots=True)
class Challenges:
    """F: ``χ`` of each run. Once for one hint."""

    chi: Annotated[tuple[int, ...], Seq(U64, MAX_RUNS)]


@dataclass(frozen=True, slots=True)
class MaskedProducts:
    """R: ``w = χ W_1 r + m`` of each run, runs x M values."""

    w: Annotated[bytes, _BIG]


# Stored check, validator to requester.


@dataclass(frozen=True, slots=True)
class StoredOpen:
    """F: ``attempt`` 0, 1 or 2."""

    chain_id: Annotated[Digest, DIGEST]
    task_id: Annotated[TaskId, DIGEST]
    validator: Annotated[NodeId, PUBLIC_KEY]
    attempt: Annotated[int, U8]


@dataclass(frozen=True, slots=True)
class StoredOpened:
    """R: charged, go on."""


Message = (
    Part | Abort
    | EvaluationOpen | BaseTransfer | MaskedRows | KnowledgeChallenge | KnowledgeOpening
    | KnowledgeCommitment | KnowledgeShares | BatchAccepted
    | MaskedModel | TransferRequest | GarbledLabels | OutputKeys
    | ZeroQueries | ZeroCommitments | ZeroNumbers | ZeroOpenings
    | AuditOpen | BodyWanted | ModelBody | AuditAnswer | LayerValues | RunSeeds | Hints | Challenges | MaskedProducts
    | StoredOpen | StoredOpened
)  # fmt: skip

MESSAGE: Final = Union(
    {
        1: Part, 2: Abort,
        10: EvaluationOpen, 11: BaseTransfer, 12: MaskedRows, 13: KnowledgeChallenge, 14: KnowledgeOpening, 15: BatchAccepted,
        16: MaskedModel, 17: TransferRequest, 18: GarbledLabels, 19: OutputKeys, 20: KnowledgeCommitment, 21: KnowledgeShares,
        30: ZeroQueries, 31: ZeroCommitments, 32: ZeroNumbers, 33: ZeroOpenings,
        40: AuditOpen, 41: BodyWanted, 42: ModelBody, 43: AuditAnswer, 44: LayerValues, 45: RunSeeds, 46: Hints, 47: Challenges,
        48: MaskedProducts,
        60: StoredOpen, 61: StoredOpened,
    }
)  # fmt: skip
"""Tags are part of the canonical encoding that the transcript hashes; the wire uses the same numbers."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message of a session, with the sender's own running number from 0."""

    session: Annotated[bytes, Fixed(SESSION_BYTES)]
    index: Annotated[int, U32]
    message: Annotated[Message, MESSAGE]
