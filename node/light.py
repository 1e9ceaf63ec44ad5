"""What light clients are served: each block's proof of who votes after it, and proofs on the state before the last block.

Keys: ``l ‖ height`` a block's proof without the set, ``v ‖ height`` a set that first votes at this height. They are written
before the block itself, whose synced batch makes them durable too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from core.chain.light import LightBlock
from core.chain.proofs import MAX_PATH, RecordProof, SetProof, TransactionProof, prove_record, prove_set, prove_transaction
from core.chain.state import State, ValidatorSet
from core.codec import DIGEST, U64, Seq, decode, encode
from core.errors import NotFoundError, UnavailableError
from core.ids import Digest, Height, TxId, short
from node.rows import at
from node.store import ChainStore
from services.storage import KeyValueStore

__all__ = ["LightService"]

_PROOF: Final = b"l"
_SET: Final = b"v"


@dataclass(frozen=True, slots=True)
class _Row:
    set_height: Annotated[Height, U64]
    path: Annotated[tuple[Digest, ...], Seq(DIGEST, MAX_PATH)]


class LightService:
    """Beside a ChainStore, over the same key-value store."""

    def __init__(self, kv: KeyValueStore, store: ChainStore) -> None:
        self._kv = kv
        self._store = store
        self._before: State | None = None
        self._set: tuple[Height, ValidatorSet] | None = None

    def note(self, before: State) -> None:
        """``before``: the state that the next block to be stored was built on. Raises StorageError."""
        self._kv.put_batch(self.rows(before), (), sync=False)

    def rows(self, before: State) -> dict[bytes, bytes]:
        """As ``note``, for who writes the rows together with the block."""
        proof = prove_set(before)
        height = Height(before.height + 1)
        known = self._set
        puts: dict[bytes, bytes] = {}
        if known is None or known[1] != proof.next_validators:
            known = (Height(height + 1), proof.next_validators)
            puts[_SET + at(known[0])] = encode(proof.next_validators)
        puts[_PROOF + at(height)] = encode(_Row(known[0], proof.path))
        self._before, self._set = before, known
        return puts

    def block(self, height: Height) -> LightBlock:
        """Of a finalised height; 0: the last one. Raises NotFoundError."""
        height = height or self._store.state.height
        if height > self._store.state.height:
            raise NotFoundError(f"no block at height {height} here, the last one is {self._store.state.height}", height=height)
        found = self._kv.get(_PROOF + at(height))
        if found is None:
            raise NotFoundError(f"no proof of the validators after height {height} here: ask another node", height=height)
        row = decode(_Row, found)
        members = self._kv.get(_SET + at(row.set_height))
        if members is None:
            raise NotFoundError(f"the validators of height {row.set_height} are not kept here", height=row.set_height)
        header, certificate = self._store.header(height), self._store.certificate(height)
        return LightBlock(header, certificate, SetProof(decode(ValidatorSet, members), row.path))

    def record(self, table: str, key: bytes) -> tuple[Height, RecordProof]:
        """A record in the state before the last block, which that block's header commits to.

        Raises NotFoundError for an unknown table, UnavailableError before the first block since this node started.
        """
        before = self._before
        if before is None or before.height + 1 > self._store.state.height:
            raise UnavailableError("proofs are given from the next block on: try again in some seconds")
        return Height(before.height + 1), prove_record(before, table, key)

    def transaction(self, tx_id: TxId) -> tuple[Height, TransactionProof]:
        """Raises NotFoundError."""
        height = self._store.transaction_height(tx_id)
        if height is None:
            raise NotFoundError(f"transaction {short(tx_id)} is in no finalised block here", tx_id=tx_id)
        return height, prove_transaction(self._store.block(height).block.decoded_body(), tx_id)
