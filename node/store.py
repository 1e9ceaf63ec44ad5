"""Everything a node keeps, over a key-value store: blocks, the state after the last one, and what it voted.

The keys are listed in node.rows. A block, its certificate, its indexes and every record of the state that it changed are one
synced batch: a process that is killed at any instant opens at the last block whose batch is complete. The state root is
computed anew when the store is opened, so damage is found there and not by a vote that nobody understands (docs/adr/0045).

With ``keep`` the bodies of older blocks are dropped in small steps, once the whole state at a later height is kept to
execute the rest from (docs/adr/0069).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from core.chain.block import Block, Certificate, SignedHeader
from core.chain.state import TABLES, State, decode_state, encode_state, genesis_state, state_root
from core.chain.table import Table
from core.codec import decode, encode
from core.errors import CorruptError, InputError, NotFoundError, PrunedError, StorageError
from core.ids import BlockHash, Height, StateRoot, TxId, short
from core.params import Genesis
from node import rows
from node.held import Held
from node.rows import AuditTime, Place, Pruning, Root, WorkRecord, advice_sentence, at
from services.storage import KeyValueStore, StoreMeta

__all__ = ["AuditTime", "ChainStore", "FinalBlock", "StoredBlock", "WorkRecord", "read_snapshot", "store_meta"]

T = TypeVar("T")

SCHEMA: Final = 1
PRUNE_STEP: Final = 64
"""Blocks that are dropped at most with each new one."""


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """A finalised block."""

    block: Block
    certificate: Certificate
    state_root: StateRoot
    """After it."""


@dataclass(frozen=True, slots=True)
class FinalBlock:
    """A finalised block to be stored."""

    block: Block
    certificate: Certificate
    state: State
    """After it."""
    transactions: Sequence[TxId]


def store_meta(genesis: Genesis, node: bytes) -> StoreMeta:
    """What a node's data folder is for."""
    return StoreMeta(SCHEMA, genesis.name, genesis.chain_id, node)


class ChainStore:
    """One node's chain. Not safe for use by two threads at a time; reads of finalised blocks may overlap a write."""

    def __init__(self, kv: KeyValueStore, genesis: Genesis, keep: int = 0) -> None:
        """``keep``: how many of the last blocks are kept whole at least; 0 keeps all.

        Raises CorruptError if what is stored contradicts itself, WrongChainError if it is of another chain.
        """
        self._kv = kv
        self._genesis = genesis
        self._keep = keep
        self._has_genesis = kv.get(rows.GENESIS) is not None
        self._state = self._load(genesis)
        self._pruning = self._read_pruning()
        self.held = Held(kv)

    @property
    def state(self) -> State:
        """After the last finalised block."""
        return self._state

    @property
    def pruning(self) -> Pruning:
        """How far old blocks are dropped."""
        return self._pruning

    # Blocks

    def block(self, key: Height | BlockHash) -> StoredBlock:
        """A finalised block by height or hash. Raises NotFoundError, PrunedError."""
        height = self._height(key) if isinstance(key, bytes) else key
        self._check_kept(height)
        data = self._kv.get(rows.BLOCK + at(height))
        if data is None:
            raise NotFoundError(f"no block at height {height} here, the last one is {self._state.height}", height=height)
        return StoredBlock(_read(Block, data, f"block {height}"), self.certificate(height), self._root(height).state_root)

    def raw_blocks(self, first: Height, count: int) -> Iterator[tuple[bytes, bytes]]:
        """Blocks and certificates as stored, from a height on, as far as there are any. Raises PrunedError."""
        self._check_kept(first)
        return self._raw_blocks(first, count)

    def headers(self, first: Height, count: int, size: int) -> Iterator[bytes]:
        """Signed headers as they travel, from a height on, as far as there are any, ``size`` bytes in all at most."""
        for height in range(first, min(first + count, self._state.height + 1)):
            data = encode(self.header(Height(height)))
            size -= len(data)
            if size < 0:
                return
            yield data

    def header(self, height: Height) -> SignedHeader:
        """Also of a pruned block. Raises NotFoundError."""
        if height >= self._pruning.floor:
            return self.block(height).block.header
        data = self._kv.get(rows.HEADER + at(height))
        if data is None:
            raise NotFoundError(f"no header of height {height} here", height=height)
        return _read(SignedHeader, data, f"header {height}")

    def certificate(self, height: Height) -> Certificate:
        """Raises NotFoundError."""
        data = self._kv.get(rows.CERTIFICATE + at(height))
        if data is None:
            raise NotFoundError(f"no certificate of height {height} here", height=height)
        return _read(Certificate, data, f"certificate {height}")

    @property
    def tip_certificate(self) -> Certificate | None:
        """Of the last block; None at height 0."""
        return None if self._state.height == 0 else self.certificate(self._state.height)

    @property
    def tip_root(self) -> StateRoot:
        """State root after the last block."""
        return state_root(self._state) if self._state.height == 0 else self._root(self._state.height).state_root

    def transaction_height(self, tx_id: TxId) -> Height | None:
        """Height of the block that holds a transaction; None if it was pruned too."""
        data = self._kv.get(rows.TX + tx_id)
        return None if data is None else _read(Place, data, "an index of transactions").height

    def commit_all(self, finals: Sequence[FinalBlock], extra: Mapping[bytes, bytes] | None = None) -> None:
        """Add blocks that others have too, in one synced batch: all of them or none (docs/adr/0086); ``extra``: rows that go
        with them. Raises StorageError; then the last of them are not here."""
        begin = 0
        for number, final in enumerate(finals, 1):
            # Pruning looks at the state after every ``keep`` blocks.
            if number == len(finals) or (self._keep and final.state.height % self._keep == 0):
                self._add(finals[begin:number], dict(extra or {}) if begin == 0 else {}, True)
                begin = number

    def commit(
        self,
        block: Block,
        certificate: Certificate,
        state: State,
        transactions: Sequence[TxId],
        work: WorkRecord | None = None,
        *,
        sync: bool = True,
    ) -> None:
        """Add the next finalised block, in one batch. Raises StorageError; then nothing has changed.

        Without ``sync`` it may be lost with those after it, until the next write that is synced: for blocks that somebody
        else has too.
        """
        puts = {} if work is None else {rows.WORK + at(state.height): encode(work)}
        self._add([FinalBlock(block, certificate, state, transactions)], puts, sync)

    def _add(self, finals: Sequence[FinalBlock], puts: dict[bytes, bytes], sync: bool) -> None:
        for height, final in enumerate(finals, self._state.height + 1):
            block, state = final.block, final.state
            if state.height != height or state.tip.block_hash != block.block_hash:
                raise StorageError(f"block {state.height} cannot follow the stored height {height - 1}")
            puts |= rows.block_rows(block, final.certificate, state, state_root(state), list(final.transactions))
        if not self._has_genesis:
            puts[rows.GENESIS] = encode(self._genesis)
        state = finals[-1].state
        deletes = self.held.decided(state.height)
        rows.changes(self._state, state, puts, deletes)
        self._kv.put_batch(puts, deletes, sync)
        self._state, self._has_genesis = state, True
        if self._keep:
            self._prune()

    # Pruning

    def prune(self, base: State) -> Iterator[Height]:
        """Drop what is before ``base``, the state after an earlier block; yields how far it is. Raises StorageError."""
        if base.height > self._pruning.base:
            old = [key for key, _ in self._kv.iterate(rows.SNAPSHOT + at(self._pruning.base))]
            pruning = Pruning(base.height, self._pruning.floor)
            self._kv.put_batch({**_snapshot(base), rows.PRUNING: encode(pruning)}, old)
            self._pruning = pruning
        while self._pruning.floor <= self._pruning.base:
            puts, deletes = self._drop()
            self._kv.put_batch(puts, deletes)
            self._pruning = decode(Pruning, puts[rows.PRUNING])
            yield self._pruning.floor

    def base_state(self) -> State:
        """The state that the blocks which are kept can be executed from. Raises CorruptError."""
        base = self._pruning.base
        if base == 0:
            return genesis_state(self._genesis)
        return read_snapshot(self._kv, base, self._genesis, self._root(base).state_root)

    def _prune(self) -> None:
        """With each block a little; nothing that is lost here is lost for good, so it is not synced."""
        height, keep, pruning = self._state.height, self._keep, self._pruning
        puts: dict[bytes, bytes] = {}
        deletes: list[bytes] = []
        if height % keep == 0:
            puts |= _snapshot(self._state)
        base = Height(max(0, (height - keep) // keep * keep))
        if base > pruning.base and self._kv.get(rows.SNAPSHOT + at(base) + bytes(4)) is not None:
            deletes += [key for key, _ in self._kv.iterate(rows.SNAPSHOT) if int.from_bytes(key[1:9], "big") < base]
            pruning = replace(pruning, base=base)
            puts[rows.PRUNING] = encode(pruning)
        if pruning.floor <= pruning.base:
            self._pruning = pruning
            more, gone = self._drop()
            puts |= more
            deletes += gone
            pruning = decode(Pruning, puts[rows.PRUNING])
        if puts or deletes:
            self._kv.put_batch(puts, deletes, sync=False)
        self._pruning = pruning

    def _drop(self) -> tuple[dict[bytes, bytes], list[bytes]]:
        """Rows that go, and those that come instead, for the next few blocks below the base."""
        end = Height(min(self._pruning.floor + PRUNE_STEP, self._pruning.base + 1))
        puts: dict[bytes, bytes] = {rows.PRUNING: encode(Pruning(self._pruning.base, end))}
        deletes: list[bytes] = []
        for height in range(self._pruning.floor, end):
            block = self.block(Height(height)).block
            puts[rows.HEADER + at(height)] = encode(block.header)
            deletes += [rows.BLOCK + at(height), rows.WORK + at(height)]
            deletes += [rows.TX + tx_id for tx_id in rows.transaction_ids(block)]
        return puts, deletes

    # Own things

    def work(self, height: Height) -> WorkRecord | None:
        """What is known of a work height."""
        data = self._kv.get(rows.WORK + at(height))
        return None if data is None else _read(WorkRecord, data, f"the work record of height {height}")

    def put_work(self, height: Height, work: WorkRecord) -> None:
        self._kv.put_batch({rows.WORK + at(height): encode(work)})

    @property
    def consensus(self) -> bytes | None:
        """What `put_consensus` wrote last."""
        return self._kv.get(rows.CONSENSUS)

    def put_consensus(self, record: bytes) -> None:
        """Own votes and locks, synced: when this returns they may be sent. Raises StorageError."""
        self._kv.put_batch({rows.CONSENSUS: record})

    @property
    def silent_until(self) -> Height:
        """What this node voted up to this height is lost: it must not vote there. 0 if nothing is lost."""
        data = self._kv.get(rows.SILENT)
        return Height(0) if data is None else _read(Place, data, "the end of the silence").height

    def other(self, name: bytes) -> bytes | None:
        return self._kv.get(rows.OTHER + name)

    def put_other(self, name: bytes, value: bytes) -> None:
        self._kv.put_batch({rows.OTHER + name: value})

    def be_silent(self, until: Height) -> None:
        """From now on `silent_until` is at least this."""
        if until > self.silent_until:
            self._kv.put_batch({rows.SILENT: encode(Place(until))})

    def sync(self) -> None:
        """What was committed without ``sync`` is on the disk when this returns. Raises StorageError."""
        self._kv.put_batch({})

    def close(self) -> None:
        self._kv.close()

    # Opening

    def _load(self, genesis: Genesis) -> State:
        head = self._kv.get(rows.SCALARS)
        if head is None:
            first = next(self._kv.iterate(rows.BLOCK), None)
            if first is not None:
                raise CorruptError(f"there are blocks, but the state after them is missing. {advice_sentence()}")
            return genesis_state(genesis)
        try:
            state = decode_state(head, genesis)
            state = replace(state, **{name: self._table(name, kind) for name, kind in TABLES})  # type: ignore[arg-type]
        except InputError as error:
            raise CorruptError(f"the stored state cannot be read: {error.message}. {advice_sentence()}") from None
        root = state_root(state)
        stored = self._root(state.height)
        if (stored.block_hash, stored.state_root) != (state.tip.block_hash, root):
            raise CorruptError(
                f"the stored state at height {state.height} has root {short(root)}, its block was stored with root "
                f"{short(stored.state_root)}. {advice_sentence()}"
            )
        return state

    def _read_pruning(self) -> Pruning:
        data = self._kv.get(rows.PRUNING)
        return Pruning(Height(0), Height(1)) if data is None else _read(Pruning, data, "the record of pruning")

    def _raw_blocks(self, first: Height, count: int) -> Iterator[tuple[bytes, bytes]]:
        for height in range(first, min(first + count, self._state.height + 1)):
            block, certificate = self._kv.get(rows.BLOCK + at(height)), self._kv.get(rows.CERTIFICATE + at(height))
            if block is None or certificate is None:
                return
            yield block, certificate

    def _table(self, name: str, kind: type) -> Table[Any]:
        prefix = rows.row(name, b"")
        return Table(kind, {key[len(prefix) :]: decode(kind, value) for key, value in self._kv.iterate(prefix)})

    def _check_kept(self, height: int) -> None:
        floor = self._pruning.floor
        if 0 < height < floor:
            raise PrunedError(
                f"block {height} was pruned here, the oldest that is kept is {floor}: ask another node",
                height=height, floor=floor,
            )  # fmt: skip

    def _height(self, block_hash: bytes) -> Height:
        data = self._kv.get(rows.HASH + block_hash)
        if data is None:
            raise NotFoundError(f"no block {short(block_hash)} is final here", block_hash=block_hash)
        return _read(Place, data, "an index of blocks").height

    def _root(self, height: Height) -> Root:
        data = self._kv.get(rows.ROOT + at(height))
        if data is None:
            raise CorruptError(f"the state root of height {height} is missing. {advice_sentence()}")
        return _read(Root, data, f"the state root of height {height}")


def read_snapshot(kv: KeyValueStore, height: Height, genesis: Genesis, root: StateRoot) -> State:
    """The whole state after a height. Raises CorruptError if it is not all here, or has another root than ``root``."""
    data = b"".join(value for _, value in kv.iterate(rows.SNAPSHOT + at(height)))
    try:
        state = decode_state(data, genesis)
    except InputError as error:
        raise CorruptError(f"the state kept for height {height} cannot be read: {error.message}. {advice_sentence()}") from None
    if state.height != height or state_root(state) != root:
        raise CorruptError(f"the state kept for height {height} is not the one after that block. {advice_sentence()}")
    return state


def _snapshot(state: State) -> dict[bytes, bytes]:
    data, size = encode_state(state), rows.SNAPSHOT_PART
    prefix = rows.SNAPSHOT + at(state.height)
    return {prefix + i.to_bytes(4, "big"): data[i * size : (i + 1) * size] for i in range(-(-len(data) // size))}


def _read(kind: type[T], data: bytes, what: str) -> T:
    """A stored record. Raises CorruptError."""
    try:
        return decode(kind, data)
    except InputError as error:
        raise CorruptError(f"{what} cannot be read: {error.message}. {advice_sentence()}") from None
