"""Proofs for who has no state: a record is in the state, or is not; a transaction is in a block (docs/light-client.md).

A header commits to the state after its parent and to its own transactions. What is proven here is true if that header is
final, which core.chain.light finds out.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Annotated, Final, TypeVar

from core.chain import merkle
from core.chain.block import MAX_TRANSACTION, Body, Header
from core.chain.state import DOMAIN_STATE, TABLES, State, ValidatorSet, state_tree
from core.chain.table import MAX_KEY, MAX_RECORD
from core.chain.transaction import SignedTransaction
from core.chain.verify import PAYOUT_LEAF, TRANSACTION_LEAF
from core.codec import DIGEST, U32, Reader, Record, Seq, Text, Var, decode, encode
from core.crypto.hashing import digest
from core.errors import CryptoError, InputError, NotFoundError
from core.ids import Digest, StateRoot, TxId, short

__all__ = [
    "MAX_PROOF", "Leaf", "RecordProof", "SetProof", "TransactionProof", "check_record", "check_set", "check_transaction",
    "prove_record", "prove_set", "prove_transaction",
]  # fmt: skip

T = TypeVar("T")

MAX_PATH: Final = 64
MAX_PROOF: Final = 2 * (MAX_KEY + MAX_RECORD) + 64 * 1024
NEXT_VALIDATORS: Final = b"next-validators/"
_NEXT_PLACE: Final = 2
_FIRST_TABLE: Final = 3
_PLACES: Final = _FIRST_TABLE + len(TABLES)
"""Leaves of a state's tree: scalars, two validator sets, and a root for each table."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf of a table: ``key ‖ record``, each with its length."""

    data: Annotated[bytes, Var(MAX_KEY + MAX_RECORD + 8)]
    index: Annotated[int, U32]
    path: Annotated[tuple[Digest, ...], Seq(DIGEST, MAX_PATH)]


@dataclass(frozen=True, slots=True)
class RecordProof:
    """One leaf: the record. None or two neighbours: there is no record under ``key``, since keys ascend."""

    table: Annotated[str, Text(32)]
    key: Annotated[bytes, Var(MAX_KEY)]
    size: Annotated[int, U32]
    """Records of the table."""
    leaves: Annotated[tuple[Leaf, ...], Seq(Record(Leaf), 2)]
    path: Annotated[tuple[Digest, ...], Seq(DIGEST, MAX_PATH)]
    """From the table's root to the state's."""


@dataclass(frozen=True, slots=True)
class SetProof:
    """Who votes at the height after that of the header whose ``parent_state_root`` this leads to."""

    next_validators: ValidatorSet
    path: Annotated[tuple[Digest, ...], Seq(DIGEST, MAX_PATH)]


@dataclass(frozen=True, slots=True)
class TransactionProof:
    transaction: Annotated[bytes, Var(MAX_TRANSACTION + 128)]
    """An encoded SignedTransaction."""
    index: Annotated[int, U32]
    size: Annotated[int, U32]
    path: Annotated[tuple[Digest, ...], Seq(DIGEST, MAX_PATH)]


# -- making ------------------------------------------------------------------------------------------------------------


def prove_record(state: State, table: str, key: bytes) -> RecordProof:
    """What the table has under ``key``, or that it has nothing. Raises NotFoundError for an unknown table."""
    names = [name for name, _ in TABLES]
    if table not in names:
        raise NotFoundError(f"no table {table!r} in the state; there are {', '.join(names)}", table=table)
    rows = getattr(state, table)
    keys = list(rows)
    place = bisect_left(keys, key)
    found = place < len(keys) and keys[place] == key
    chosen = [keys[place]] if found else keys[max(0, place - 1) : place + 1]
    leaves = tuple(Leaf(leaf, index, path) for leaf, index, _, path in map(rows.proof, chosen))
    path = state_tree(state)[1].proof(_FIRST_TABLE + names.index(table))
    return RecordProof(table, key, len(keys), leaves, path)


def prove_set(state: State) -> SetProof:
    """``state``: before the block that the proof is for."""
    return SetProof(ValidatorSet(state.next_validators), state_tree(state)[1].proof(_NEXT_PLACE))


def prove_transaction(body: Body, tx_id: TxId) -> TransactionProof:
    """Raises NotFoundError if the block does not hold the transaction."""
    leaves = [PAYOUT_LEAF + encode(p) for p in body.payouts] + [TRANSACTION_LEAF + t for t in body.transactions]
    for place, data in enumerate(body.transactions, len(body.payouts)):
        if decode(SignedTransaction, data).tx_id == tx_id:
            return TransactionProof(data, place, len(leaves), merkle.proof(leaves, place))
    raise NotFoundError(f"transaction {short(tx_id)} is not in this block", tx_id=tx_id)


# -- checking ----------------------------------------------------------------------------------------------------------


def check_record(proof: RecordProof, root: StateRoot, kind: type[T], key: bytes) -> T | None:
    """The record of ``kind`` under ``key`` in the state with this root; None if the proof shows that there is none.

    Raises:
        CryptoError: the proof is for another key or table, or does not lead to the root.
        InputError: its record does not decode.
    """
    names = [name for name, its_kind in TABLES if its_kind is kind]
    if proof.table not in names or proof.key != key:
        raise CryptoError(f"proof: of {short(proof.key)} in table {proof.table!r}, asked was for {short(key)} in {names}")
    place = [name for name, _ in TABLES].index(proof.table)
    if proof.leaves:
        table = _agreed(proof)
    elif proof.size:
        raise CryptoError(f"proof: no leaf of a table of {proof.size} records")
    else:
        table = merkle.EMPTY_ROOT
    _check_state(proof.table.encode() + b"/" + table, _FIRST_TABLE + place, proof.path, root)
    return _find(proof, kind)


def check_set(proof: SetProof, root: StateRoot) -> ValidatorSet:
    """The validators of the height after the header's. ``root``: the header's parent_state_root. Raises CryptoError."""
    _check_state(NEXT_VALIDATORS + encode(proof.next_validators), _NEXT_PLACE, proof.path, root)
    return proof.next_validators


def check_transaction(proof: TransactionProof, header: Header, tx_id: TxId) -> SignedTransaction:
    """The transaction, which is in the header's block. Raises CryptoError, InputError."""
    signed = decode(SignedTransaction, proof.transaction)
    if signed.tx_id != tx_id:
        raise CryptoError(f"proof: of transaction {short(signed.tx_id)}, asked was for {short(tx_id)}")
    leaf = TRANSACTION_LEAF + proof.transaction
    merkle.verify_proof(header.merkle_root, leaf, proof.index, proof.size, proof.path)
    return signed


def _check_state(leaf: bytes, place: int, path: tuple[Digest, ...], root: StateRoot) -> None:
    top = merkle.root_from_proof(merkle.leaf_hash(leaf), place, _PLACES, path)
    if digest(DOMAIN_STATE, top) != bytes(root):
        raise CryptoError(f"proof: it does not lead to the state root {root.hex()}")


def _agreed(proof: RecordProof) -> Digest:
    """The table's root that all leaves lead to."""
    roots = {merkle.root_from_proof(merkle.leaf_hash(x.data), x.index, proof.size, x.path) for x in proof.leaves}
    if len(roots) != 1:
        raise CryptoError("proof: its two leaves are of different tables")
    return roots.pop()


def _find(proof: RecordProof, kind: type[T]) -> T | None:
    rows = [_row(leaf) for leaf in proof.leaves]
    if len(rows) == 1 and rows[0][0] == proof.key:
        return decode(kind, rows[0][1])
    places = [leaf.index for leaf in proof.leaves]
    keys = [key for key, _ in rows]
    between = len(rows) == 2 and places[0] + 1 == places[1] and keys[0] < proof.key < keys[1]
    before = len(rows) == 1 and places == [0] and proof.key < keys[0]
    after = len(rows) == 1 and places == [proof.size - 1] and proof.key > keys[0]
    if rows and not (between or before or after):
        raise CryptoError(f"proof: its leaves do not show that {short(proof.key)} is missing")
    return None


def _row(leaf: Leaf) -> tuple[bytes, bytes]:
    reader = Reader(leaf.data)
    try:
        key, record = Var(MAX_KEY).read(reader), Var(MAX_RECORD).read(reader)
    except InputError as error:
        raise CryptoError(f"proof: a leaf that is no record: {error.message}") from None
    if reader.remaining:
        raise CryptoError("proof: bytes follow a leaf's record")
    return key, record
