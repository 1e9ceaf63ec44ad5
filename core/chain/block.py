"""Headers, bodies and certificates (paper, Fig. 3; design: consensus).

A header travels as the exact bytes that its author signed; its hash covers those bytes and nothing is ever re-encoded.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Final

from core.codec import DIGEST, I64, PUBLIC_KEY, SIGNATURE, U16, U32, U64, Enum, Maybe, Record, Seq, Var, decode, encode
from core.crypto.hashing import digest
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
    Signature,
    StateRoot,
    TaskId,
)

__all__ = [
    "Accuracy", "Block", "BlockKind", "Body", "Certificate", "CommitSignature", "Header", "Outcome", "OutcomeKind", "Payout",
    "Receipt", "SignedHeader", "Vm",
    "DOMAIN_BLOCK", "DOMAIN_HEADER_SIGNATURE", "DOMAIN_RECEIPT", "MAX_BODY", "MAX_HEADER", "MAX_TRANSACTION",
    "MAX_VALIDATORS", "MAX_VM_BODY", "NIL",
]  # fmt: skip

DOMAIN_BLOCK: Final = b"pofl/block/1"
DOMAIN_HEADER_SIGNATURE: Final = b"pofl/header-signature/1"
DOMAIN_RECEIPT: Final = b"pofl/receipt/1"

MAX_HEADER: Final = 4 * 1024
MAX_BODY: Final = 1024 * 1024
MAX_VM_BODY: Final = 16 * 1024 * 1024
MAX_TRANSACTION: Final = 64 * 1024
MAX_VALIDATORS: Final = 256
MAX_MINERS: Final = 1024
MAX_CLAIMS: Final = 64

NIL: Final = BlockHash(bytes(32))
"""The vote for no block."""


class BlockKind(IntEnum):
    """What finalising the block means."""

    TRANSACTION = 1
    """Authored by a validator; carries transactions only."""
    WORK = 2
    """Authored by the winning pool; all of Fig. 3's fields."""
    VOID = 3
    """Authored by a validator; ends a task that nobody won."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """``correct`` of ``total`` test rows: the paper's N of I."""

    correct: Annotated[Correct, U32]
    total: Annotated[int, U32]


@dataclass(frozen=True, slots=True)
class Receipt:
    """The requester's word that she evaluated this model for this pool and task, and which output keys she returned.

    ``signature`` is hers over core.verification.receipt's message: (chain, task, pool, c_W, circuit digest, keys digest).
    """

    output_keys_digest: Annotated[Digest, DIGEST]
    signature: Annotated[Signature, SIGNATURE]


@dataclass(frozen=True, slots=True)
class Vm:
    """What full nodes verify the accuracy with: commitments only (design: verification, section 5)."""

    model_commitment: Annotated[ModelCommitment, DIGEST]
    garbled_circuit_digest: Annotated[Digest, DIGEST]
    receipt: Receipt


class OutcomeKind(IntEnum):
    """How a claim ended that was not adopted."""

    REFUTED = 1
    SKIPPED = 2
    DEAD = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one claim, named by its model commitment."""

    model_commitment: Annotated[ModelCommitment, DIGEST]
    kind: Annotated[OutcomeKind, Enum(OutcomeKind)]


@dataclass(frozen=True, slots=True)
class Header:
    """Fig. 3's header, and what a network needs beside it."""

    version: Annotated[int, U16]
    chain_id: Annotated[Digest, DIGEST]
    """Hash of the genesis document."""
    height: Annotated[Height, U64]
    prev_hash: Annotated[BlockHash, DIGEST]
    merkle_root: Annotated[Digest, DIGEST]
    """RFC 6962 root over the payouts, then the transactions, each leaf domain-separated."""
    parent_state_root: Annotated[StateRoot, DIGEST]
    """State after the parent."""
    timestamp_ms: Annotated[Milliseconds, U64]
    """A function of the parent's certificate: authors choose no time."""
    kind: Annotated[BlockKind, Enum(BlockKind)]
    task_id: Annotated[TaskId | None, Maybe(DIGEST)]
    """Of a work or void block."""
    accuracy: Annotated[Accuracy | None, Maybe(Record(Accuracy))]
    """Of a work block."""
    vm: Annotated[Vm | None, Maybe(Record(Vm))]
    """Of a work block."""
    outcome: Annotated[tuple[Outcome, ...], Seq(Record(Outcome), MAX_CLAIMS)]
    """Of a void block: each claim in rank order, ending at the first dead one."""
    author_id: Annotated[AccountId, PUBLIC_KEY]


@dataclass(frozen=True, slots=True)
class SignedHeader:
    """The header's exact bytes and its author's signature over them."""

    header: Annotated[bytes, Var(MAX_HEADER)]
    signature: Annotated[Signature, SIGNATURE]

    @property
    def block_hash(self) -> BlockHash:
        return _hash(self.header)

    def decoded(self) -> Header:
        """The checked header. Raises MalformedError or LimitError."""
        return _header(self.header)


@dataclass(frozen=True, slots=True)
class CommitSignature:
    """One validator's precommit inside a certificate; the signed message is rebuilt from the certificate."""

    validator: Annotated[NodeId, PUBLIC_KEY]
    time_ms: Annotated[Milliseconds, U64]
    signature: Annotated[Signature, SIGNATURE]


@dataclass(frozen=True, slots=True)
class Certificate:
    """Precommits of at least 2/3 of the power for one block: what makes it final."""

    height: Annotated[Height, U64]
    round: Annotated[int, U32]
    block_hash: Annotated[BlockHash, DIGEST]
    signatures: Annotated[tuple[CommitSignature, ...], Seq(Record(CommitSignature), MAX_VALIDATORS)]
    """Ascending by validator, no validator twice."""


@dataclass(frozen=True, slots=True)
class Payout:
    """One share of a work block's reward."""

    account: Annotated[AccountId, PUBLIC_KEY]
    amount: Annotated[Amount, I64]


@dataclass(frozen=True, slots=True)
class Body:
    """What the header commits to, and the certificate of the parent (which the header does not hash)."""

    parent_certificate: Annotated[Certificate | None, Maybe(Record(Certificate))]
    """None only at height 1: the genesis document needs no certificate."""
    payouts: Annotated[tuple[Payout, ...], Seq(Record(Payout), MAX_MINERS)]
    transactions: Annotated[tuple[bytes, ...], Seq(Var(MAX_TRANSACTION + 128), 65536)]
    """Encoded SignedTransactions."""


@dataclass(frozen=True, slots=True)
class Block:
    """A signed header and its body, both as the bytes that travelled."""

    header: SignedHeader
    body: Annotated[bytes, Var(MAX_BODY)]

    @property
    def block_hash(self) -> BlockHash:
        return self.header.block_hash

    def decoded_body(self) -> Body:
        """The checked body. Raises MalformedError or LimitError."""
        return _body(self.body)

    def to_bytes(self) -> bytes:
        return encode(self)


# A block is decoded where it is checked, stored and shown: the last few are remembered. What is wrong raises each time.


@functools.lru_cache(maxsize=64)
def _hash(header: bytes) -> BlockHash:
    return BlockHash(digest(DOMAIN_BLOCK, header))


@functools.lru_cache(maxsize=64)
def _header(data: bytes) -> Header:
    return decode(Header, data, MAX_HEADER)


@functools.lru_cache(maxsize=4)
def _body(data: bytes) -> Body:
    return decode(Body, data, MAX_BODY)
