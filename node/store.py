"""Everything a node keeps, over a key-value store: blocks, the state after the last one, and what it voted.

Keys::

    b ‖ height            the block's bytes                c ‖ height   the certificate that finalised it
    r ‖ height            hash and state root after it     h ‖ hash     its height
    t ‖ transaction id    height of its block              w ‖ height   what is known of a work height, for `explain`
    s ‖ table ‖ 0 ‖ key   one record of the state          S            the state's scalars
    k                     own votes of the height being decided        o ‖ what   other small things of this node

A block, its certificate, its indexes and every record of the state that it changed are one synced batch: a process that
is killed at any instant opens at the last block whose batch is complete. The state root is computed anew when the store
is opened, so damage is found there and not by a vote that nobody understands (docs/adr/0045).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, get_args, get_type_hints

from core.chain.block import MAX_CLAIMS, MAX_VALIDATORS, Block, Certificate
from core.chain.state import State, Validator, decode_state, encode_state, genesis_state, state_root
from core.chain.table import Table
from core.chain.vote import SignedVerdict
from core.codec import DIGEST, U32, U64, Record, Seq, decode, encode
from core.errors import CorruptError, InputError, NotFoundError, StorageError
from core.ids import BlockHash, Digest, Height, ModelCommitment, StateRoot, TxId, short
from core.params import Genesis
from services.storage import KeyValueStore, StoreMeta

__all__ = ["AuditTime", "ChainStore", "StoredBlock", "WorkRecord", "store_meta"]

_BLOCK, _CERTIFICATE, _ROOT, _HASH, _TX, _WORK, _ROW, _OTHER = b"b", b"c", b"r", b"h", b"t", b"w", b"s", b"o"
_SCALARS, _CONSENSUS = b"S", b"k"


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
class _Root:
    block_hash: Annotated[BlockHash, DIGEST]
    state_root: Annotated[StateRoot, DIGEST]


@dataclass(frozen=True, slots=True)
class _Place:
    height: Annotated[Height, U64]


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """A finalised block."""

    block: Block
    certificate: Certificate
    state_root: StateRoot
    """After it."""


SCHEMA: Final = 1


def store_meta(genesis: Genesis, node: bytes) -> StoreMeta:
    """What a node's data folder is for."""
    return StoreMeta(SCHEMA, genesis.name, genesis.chain_id, node)


class ChainStore:
    """One node's chain. Not safe for use by two threads at a time; reads of finalised blocks may overlap a write."""

    def __init__(self, kv: KeyValueStore, genesis: Genesis) -> None:
        """Raises CorruptError if what is stored contradicts itself, WrongChainError if it is of another chain."""
        self._kv = kv
        self._tables = _tables()
        self._state = self._load(genesis)

    @property
    def state(self) -> State:
        """After the last finalised block."""
        return self._state

    # Blocks

    def block(self, key: Height | BlockHash) -> StoredBlock:
        """A finalised block by height or hash. Raises NotFoundError."""
        height = self._height(key) if isinstance(key, bytes) else key
        data = self._kv.get(_BLOCK + _at(height))
        if data is None:
            raise NotFoundError(f"no block at height {height} here, the last one is {self._state.height}", height=height)
        return StoredBlock(decode(Block, data), self.certificate(height), self._root(height).state_root)

    def raw_blocks(self, first: Height, count: int) -> Iterator[tuple[bytes, bytes]]:
        """Blocks and certificates as stored, from a height on, as far as there are any."""
        for height in range(first, min(first + count, self._state.height + 1)):
            block, certificate = self._kv.get(_BLOCK + _at(height)), self._kv.get(_CERTIFICATE + _at(height))
            if block is None or certificate is None:
                return
            yield block, certificate

    def certificate(self, height: Height) -> Certificate:
        """Raises NotFoundError."""
        data = self._kv.get(_CERTIFICATE + _at(height))
        if data is None:
            raise NotFoundError(f"no certificate of height {height} here", height=height)
        return decode(Certificate, data)

    @property
    def tip_certificate(self) -> Certificate | None:
        """Of the last block; None at height 0."""
        return None if self._state.height == 0 else self.certificate(self._state.height)

    @property
    def tip_root(self) -> StateRoot:
        """State root after the last block."""
        return state_root(self._state) if self._state.height == 0 else self._root(self._state.height).state_root

    def transaction_height(self, tx_id: TxId) -> Height | None:
        """Height of the block that holds a transaction."""
        data = self._kv.get(_TX + tx_id)
        return None if data is None else decode(_Place, data).height

    def commit(
        self,
        block: Block,
        certificate: Certificate,
        state: State,
        transactions: Sequence[TxId],
        work: WorkRecord | None = None,
    ) -> None:
        """Add the next finalised block, in one synced batch. Raises StorageError; then nothing has changed."""
        if state.height != self._state.height + 1 or state.tip.block_hash != block.block_hash:
            raise StorageError(f"block {state.height} cannot follow the stored height {self._state.height}")
        height = _at(state.height)
        root = state_root(state)
        puts: dict[bytes, bytes] = {
            _BLOCK + height: block.to_bytes(),
            _CERTIFICATE + height: encode(certificate),
            _ROOT + height: encode(_Root(block.block_hash, root)),
            _HASH + block.block_hash: encode(_Place(state.height)),
            _SCALARS: _scalars(state, self._tables),
        }
        puts |= {_TX + tx_id: encode(_Place(state.height)) for tx_id in transactions}
        if work is not None:
            puts[_WORK + height] = encode(work)
        deletes: list[bytes] = []
        for name, kind in self._tables.items():
            # Of the state at genesis nothing is stored: with the first block every record is new.
            stored = getattr(self._state, name) if self._state.height else Table(kind)
            _changes(name, stored, getattr(state, name), puts, deletes)
        self._kv.put_batch(puts, deletes)
        self._state = state

    # Own things

    def work(self, height: Height) -> WorkRecord | None:
        """What is known of a work height."""
        data = self._kv.get(_WORK + _at(height))
        return None if data is None else decode(WorkRecord, data)

    def put_work(self, height: Height, work: WorkRecord) -> None:
        self._kv.put_batch({_WORK + _at(height): encode(work)})

    @property
    def consensus(self) -> bytes | None:
        """What `put_consensus` wrote last."""
        return self._kv.get(_CONSENSUS)

    def put_consensus(self, record: bytes) -> None:
        """Own votes and locks, synced: when this returns they may be sent. Raises StorageError."""
        self._kv.put_batch({_CONSENSUS: record})

    def other(self, name: bytes) -> bytes | None:
        return self._kv.get(_OTHER + name)

    def put_other(self, name: bytes, value: bytes) -> None:
        self._kv.put_batch({_OTHER + name: value})

    def close(self) -> None:
        self._kv.close()

    # Opening

    def _load(self, genesis: Genesis) -> State:
        head = self._kv.get(_SCALARS)
        if head is None:
            return genesis_state(genesis)
        try:
            state = decode_state(head, genesis)
            state = replace(state, **{name: self._table(name, kind) for name, kind in self._tables.items()})  # type: ignore[arg-type]
        except InputError as error:
            raise CorruptError(f"the stored state cannot be read: {error.message}. {_ADVICE}") from None
        root = state_root(state)
        stored = self._root(state.height)
        if (stored.block_hash, stored.state_root) != (state.tip.block_hash, root):
            raise CorruptError(
                f"the stored state at height {state.height} has root {short(root)}, its block was stored with root "
                f"{short(stored.state_root)}. {_ADVICE}"
            )
        return state

    def _table(self, name: str, kind: type) -> Table[Any]:
        prefix = _row(name, b"")
        return Table(kind, {key[len(prefix) :]: decode(kind, value) for key, value in self._kv.iterate(prefix)})

    def _height(self, block_hash: bytes) -> Height:
        data = self._kv.get(_HASH + block_hash)
        if data is None:
            raise NotFoundError(f"no block {short(block_hash)} is final here", block_hash=block_hash)
        return decode(_Place, data).height

    def _root(self, height: Height) -> _Root:
        data = self._kv.get(_ROOT + _at(height))
        if data is None:
            raise CorruptError(f"the state root of height {height} is missing. {_ADVICE}")
        return decode(_Root, data)


_ADVICE: Final = "Move the data folder away and start again: the node fetches the chain from its peers"


def _at(height: int) -> bytes:
    return height.to_bytes(8, "big")


def _row(table: str, key: bytes) -> bytes:
    return _ROW + table.encode() + b"\x00" + key


def _tables() -> dict[str, type]:
    """The state's tables by name, with the kind of their records."""
    hints = get_type_hints(State)
    names = [field.name for field in dataclasses.fields(State)]
    found = {name: get_args(hints[name]) for name in names if getattr(hints[name], "__origin__", None) is Table}
    return {name: kinds[0] for name, kinds in found.items()}


def _scalars(state: State, tables: dict[str, type]) -> bytes:
    """The state without the records of its tables."""
    return encode_state(replace(state, **{name: Table(kind) for name, kind in tables.items()}))  # type: ignore[arg-type]


def _changes(name: str, old: Table[Any], new: Table[Any], puts: dict[bytes, bytes], deletes: list[bytes]) -> None:
    """The rows of a table that a block changed. Records are shared between versions, so identity tells."""
    if old is new:
        return
    for key, record in new.items():
        if old.get(key) is not record:
            puts[_row(name, key)] = encode(record)
    deletes.extend(_row(name, key) for key in old if key not in new)
