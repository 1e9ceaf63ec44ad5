"""What a provider must not forget: the terms it signed, and the receipts it was given. One store, written before it acts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Final, TypeVar

from core.chain.transaction import ChunkReceipt
from core.codec import DIGEST, SIGNATURE, U64, Record, decode, encode
from core.errors import CorruptError, InputError
from core.ids import AccountId, Digest, Milliseconds, Signature
from core.market.contract import CHUNKS, TradeTerms, trade_id
from services.storage.interface import KeyValueStore

__all__ = ["SCHEMA", "Accepted", "SalesLedger"]

T = TypeVar("T")
SCHEMA: Final = 1
_LAST: Final = b"a/"
"""+ pool: id of the last trade that the provider signed for a pool."""
_TRADE: Final = b"t/"
"""+ trade: terms that the provider signed."""
_RECEIPT: Final = b"r/"
"""+ trade ‖ miner ‖ chunk: a receipt."""
_UNPAID: Final = b"u/"
"""+ trade ‖ miner ‖ chunk: the same while the chain has not paid for it."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """Terms that the provider signed."""

    trade: Annotated[TradeTerms, Record(TradeTerms)]
    signature: Annotated[Signature, SIGNATURE]
    """The provider's."""

    @property
    def trade_id(self) -> Digest:
        return trade_id(self.trade)

    @property
    def expiry_ms(self) -> Milliseconds:
        return self.trade.offer.expiry_ms


@dataclass(frozen=True, slots=True)
class _Stored:
    trade_id: Annotated[Digest, DIGEST]
    chunk: Annotated[int, U64]
    miner: Annotated[AccountId, DIGEST]
    signature: Annotated[Signature, SIGNATURE]


class SalesLedger:
    """Typed records over a store. Raises CorruptError for what does not decode, and what the store raises."""

    def __init__(self, store: KeyValueStore) -> None:
        self._store = store

    def accept(self, accepted: Accepted) -> None:
        """Terms signed for the offer's pool; they are its last."""
        trade = accepted.trade_id
        self._store.put_batch({_TRADE + trade: encode(accepted), _LAST + accepted.trade.offer.pool: trade})

    def last_of(self, pool: AccountId) -> Accepted | None:
        trade = self._store.get(_LAST + pool)
        return None if trade is None else self.accepted(Digest(trade))

    def accepted(self, trade: Digest) -> Accepted | None:
        data = self._store.get(_TRADE + trade)
        return None if data is None else _read(Accepted, data)

    def add_receipt(self, receipt: ChunkReceipt) -> None:
        """Keep a verified receipt; it is unpaid until `paid`. Once more changes nothing."""
        place = _place(receipt.trade_id, receipt.miner, receipt.chunk)
        if self._store.get(_RECEIPT + place) is not None:
            return
        data = encode(_Stored(receipt.trade_id, receipt.chunk, receipt.miner, receipt.miner_signature))
        self._store.put_batch({_RECEIPT + place: data, _UNPAID + place: data})

    def first_missing(self, trade: Digest, miner: AccountId) -> int:
        """The first chunk without a receipt; CHUNKS if there is none."""
        held = (self._store.get(_RECEIPT + _place(trade, miner, chunk)) for chunk in range(CHUNKS))
        return next((chunk for chunk, data in enumerate(held) if data is None), CHUNKS)

    def unpaid(self) -> Iterator[ChunkReceipt]:
        """Receipts that still have to go on the chain, trade by trade."""
        for _, data in self._store.iterate(_UNPAID):
            stored = _read(_Stored, data)
            yield ChunkReceipt(stored.trade_id, stored.chunk, stored.miner, stored.signature)

    def paid(self, receipt: ChunkReceipt) -> None:
        """The chain has it, or never will."""
        self._store.put_batch({}, [_UNPAID + _place(receipt.trade_id, receipt.miner, receipt.chunk)])


def _place(trade: bytes, miner: bytes, chunk: int) -> bytes:
    return trade + miner + chunk.to_bytes(2, "big")


def _read(kind: type[T], data: bytes) -> T:
    try:
        return decode(kind, data)
    except InputError as error:
        raise CorruptError(f"a {kind.__name__} in the sales ledger does not decode: {error.message}") from error
