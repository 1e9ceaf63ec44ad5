"""Votes, proposals and verdicts: what validators sign at a height."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Final

from core.chain.block import MAX_BODY, MAX_CLAIMS, MAX_HEADER, MAX_VALIDATORS
from core.codec import DIGEST, I32, PUBLIC_KEY, SIGNATURE, U32, U64, Enum, Record, Seq, Text, Var
from core.ids import (
    AccountId,
    BlockHash,
    Correct,
    Digest,
    Height,
    Milliseconds,
    ModelCommitment,
    NodeId,
    Signature,
    TaskId,
)

__all__ = [
    "Proposal", "SignedProposal", "SignedVerdict", "SignedVote", "Step", "Verdict", "VerdictKind", "Vote",
    "DOMAIN_PROPOSAL", "DOMAIN_TAG", "DOMAIN_VERDICT", "DOMAIN_VOTE", "DOMAIN_Z",
]  # fmt: skip

DOMAIN_VOTE: Final = b"pofl/vote/1"
DOMAIN_PROPOSAL: Final = b"pofl/proposal/1"
DOMAIN_VERDICT: Final = b"pofl/verdict/1"
DOMAIN_TAG: Final = b"pofl/verdict-tag/1"
DOMAIN_Z: Final = b"pofl/z-digest/1"


class Step(IntEnum):
    PREVOTE = 1
    PRECOMMIT = 2


@dataclass(frozen=True, slots=True)
class Vote:
    """A Tendermint prevote or precommit (arXiv 1807.04938)."""

    chain_id: Annotated[Digest, DIGEST]
    height: Annotated[Height, U64]
    round: Annotated[int, U32]
    step: Annotated[Step, Enum(Step)]
    block_hash: Annotated[BlockHash, DIGEST]
    """NIL (zeros) votes for no block."""
    time_ms: Annotated[Milliseconds, U64]
    """The voter's clock: block time is the median of the precommits'. Zero in a prevote."""
    validator: Annotated[NodeId, PUBLIC_KEY]


@dataclass(frozen=True, slots=True)
class SignedVote:
    vote: Annotated[bytes, Var(512)]
    signature: Annotated[Signature, SIGNATURE]


class VerdictKind(IntEnum):
    """What one validator found out about one claim (design: consensus, "Work height")."""

    VALID = 1
    POOL_FAULT = 2
    UNAVAILABLE = 3
    """The only kind that its signer may replace."""
    REQUESTER_FAULT = 4


@dataclass(frozen=True, slots=True)
class Verdict:
    """One validator's signed finding."""

    chain_id: Annotated[Digest, DIGEST]
    height: Annotated[Height, U64]
    task_id: Annotated[TaskId, DIGEST]
    pool: Annotated[AccountId, PUBLIC_KEY]
    model_commitment: Annotated[ModelCommitment, DIGEST]
    kind: Annotated[VerdictKind, Enum(VerdictKind)]
    correct: Annotated[Correct, U32]
    """N* of a passed audit; 0 where there was none."""
    reason: Annotated[str, Text(200)]
    tag: Annotated[Digest, DIGEST]
    """SHA-256(DOMAIN_TAG, chain, task, c_W, z_digest, validator): only who audited can make it. Zeros without an audit."""
    validator: Annotated[NodeId, PUBLIC_KEY]


@dataclass(frozen=True, slots=True)
class SignedVerdict:
    verdict: Annotated[bytes, Var(1024)]
    signature: Annotated[Signature, SIGNATURE]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A proposer's block for a round, with the verdicts that justify it (outside the block's hash)."""

    chain_id: Annotated[Digest, DIGEST]
    height: Annotated[Height, U64]
    round: Annotated[int, U32]
    valid_round: Annotated[int, I32]
    """-1 for a fresh proposal."""
    block_hash: Annotated[BlockHash, DIGEST]
    validator: Annotated[NodeId, PUBLIC_KEY]


@dataclass(frozen=True, slots=True)
class SignedProposal:
    """``proposal`` is signed; block and verdicts are checked against the block's hash and their own signatures."""

    proposal: Annotated[bytes, Var(512)]
    signature: Annotated[Signature, SIGNATURE]
    block: Annotated[bytes, Var(MAX_HEADER + MAX_BODY + 128)]
    verdicts: Annotated[tuple[SignedVerdict, ...], Seq(Record(SignedVerdict), MAX_CLAIMS * MAX_VALIDATORS)]
