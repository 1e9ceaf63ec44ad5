"""Where a node's store keeps what: keys, and the records that are its own.

Keys::

    b ‖ height            the block's bytes                c ‖ height   the certificate that finalised it
    r ‖ height            hash and state root after it     h ‖ hash     its height
    t ‖ transaction id    height of its block              w ‖ height   what is known of a work height, for `explain`
    s ‖ table ‖ 0 ‖ key   one record of the state          S            the state's scalars
    g                     the genesis document             k            own votes of the height being decided
    p ‖ height            the header of a pruned block     P            how far the store is pruned
    B ‖ height ‖ number   a part of the whole state there  o ‖ what     other small things of this node
    q                     until where this node is silent  x, y ‖ ...   work blocks and bodies (node.held)

``b``, ``c``, ``g``, ``p``, ``B`` and ``P`` are what was agreed on; ``h``, ``r``, ``t``, ``s`` and ``S`` follow from them
and can be built again; the others are this node's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final

from core.chain.block import MAX_CLAIMS, MAX_VALIDATORS, Block, Certificate
from core.chain.state import TABLES, State, Validator, encode_scalars
from core.chain.table import Table
from core.chain.transaction import SignedTransaction
from core.chain.vote import SignedVerdict
from core.codec import DIGEST, U32, U64, Record, Seq, encode
from core.ids import BlockHash, Digest, Height, ModelCommitment, StateRoot, TxId

__all__ = [
    "ADVICE", "AuditTime", "Place", "Pruning", "Root", "WorkRecord", "advice_sentence", "at", "block_rows", "changes", "row",
    "transaction_ids", "without_advice",
]  # fmt: skip

BLOCK, CERTIFICATE, ROOT, HASH, TX, WORK, ROW, OTHER, HEADER, SNAPSHOT = (
    b"b", b"c", b"r", b"h", b"t", b"w", b"s", b"o", b"p", b"B"
)  # fmt: skip
SCALARS, CONSENSUS, GENESIS, PRUNING, SILENT = b"S", b"k", b"g", b"P", b"q"
SNAPSHOT_PART: Final = 1 << 20
ADVICE: Final = (
    "run `pofl chain reindex`, or move the folder away and start again: the node fetches the chain from its peers (a validator "
    "sets silent_until first)"
)


@dataclass(frozen=True, slots=True)
class AuditTime:
    """How long this node's own audit of a claim took."""

    model_commitment: Annotated[ModelCommitment, DIGEST]
    milliseconds: Annotated[int, U32]


@dataclass(frozen=True, slots=True)
class WorkRecord:
    """What this node knows of a work height, for `explain` and for the Verdicts transaction after it."""

    z_digest: Annotated[Digest, DIGEST]
    """Of this node's audit of the winner; zeros without one."""
    verdicts: Annotated[tuple[SignedVerdict, ...], Seq(Record(SignedVerdict), 4 * MAX_CLAIMS * MAX_VALIDATORS)]
    audits: Annotated[tuple[AuditTime, ...], Seq(Record(AuditTime), MAX_CLAIMS)]
    validators: Annotated[tuple[Validator, ...], Seq(Record(Validator), MAX_VALIDATORS)]
    """Of that height."""


@dataclass(frozen=True, slots=True)
class Root:
    block_hash: Annotated[BlockHash, DIGEST]
    state_root: Annotated[StateRoot, DIGEST]


@dataclass(frozen=True, slots=True)
class Place:
    height: Annotated[Height, U64]


@dataclass(frozen=True, slots=True)
class Pruning:
    """``floor <= base + 1``: dropping goes on in small steps after the base was set."""

    base: Annotated[Height, U64]
    """The whole state after this block is kept, so that later blocks can be executed again; 0: from genesis."""
    floor: Annotated[Height, U64]
    """The oldest block that is kept whole."""


def advice_sentence() -> str:
    """``ADVICE`` after a full stop."""
    return ADVICE[0].upper() + ADVICE[1:]


def without_advice(message: str) -> str:
    """What a message says of damage, for whoever follows the advice already."""
    return message.removesuffix(f": {ADVICE}").removesuffix(f". {advice_sentence()}")


def at(height: int) -> bytes:
    return height.to_bytes(8, "big")


def row(table: str, key: bytes) -> bytes:
    return ROW + table.encode() + b"\x00" + key


def block_rows(
    block: Block, certificate: Certificate, state: State, root: StateRoot, transactions: list[TxId]
) -> dict[bytes, bytes]:
    """A block, what makes it final, and its indexes. ``state`` and ``root``: after it."""
    height = at(state.height)
    rows = {
        BLOCK + height: block.to_bytes(),
        CERTIFICATE + height: encode(certificate),
        ROOT + height: encode(Root(block.block_hash, root)),
        HASH + block.block_hash: encode(Place(state.height)),
        SCALARS: encode_scalars(state),
    }
    return rows | {TX + tx_id: encode(Place(state.height)) for tx_id in transactions}


def transaction_ids(block: Block) -> list[TxId]:
    """Of the block's transactions, in order. Raises MalformedError, LimitError."""
    return [SignedTransaction.from_bytes(data).tx_id for data in block.decoded_body().transactions]


def changes(old: State, new: State, puts: dict[bytes, bytes], deletes: list[bytes]) -> None:
    """The rows of the tables in which two states differ. Records are shared between versions, so identity tells."""
    for name, kind in TABLES:
        # Of the state at genesis nothing is stored: with the first block every record is new.
        before: Table[Any] = getattr(old, name) if old.height else Table(kind)
        after: Table[Any] = getattr(new, name)
        if before is after:
            continue
        for key in after.changed(before):
            record = after.get(key)
            if record is None:
                deletes.append(row(name, key))
            else:
                puts[row(name, key)] = encode(record)
