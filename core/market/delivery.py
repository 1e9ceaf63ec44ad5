"""Delivery of a drawn trade's rows: what is signed, what is sealed, and to whom each chunk belongs.

The provider goes first: it sends a chunk before it has the receipt, so it trusts the miner for that one chunk, a tenth of
the miner's share. It sends no further chunk without the receipt. The miner never trusts: it signs only what it opened,
checked against the Merkle root of the offer, and holds (design: market, "A trade", step 4).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Final

import numpy as np
from numpy.typing import NDArray

from core.chain.transaction import DOMAIN_CHUNK_RECEIPT, ChunkReceipt, chunk_receipt_message
from core.codec import DIGEST, PUBLIC_KEY, SIGNATURE, U16, Fixed, Var, decode, encode
from core.crypto import sealing, signing
from core.errors import MarketError
from core.ids import MILLION, AccountId, Digest, Signature
from core.market.contract import CHUNKS, TradeTerms
from core.market.marks import MARKS, mark_count, points_size
from core.market.rows import MAX_CHUNK_BYTES, Chunk, DataSet, Features, Held, Labels, Sold, open_chunk, share_range

__all__ = [
    "DeliveryOpen", "Share", "SignedOpen", "open_sealed", "seal_chunk", "sign_bid", "sign_open", "sign_receipt",
    "to_floats", "verify_bid", "verify_open", "verify_receipt",
    "DOMAIN_BID_SIGNATURE", "DOMAIN_DELIVERY_OPEN", "MAX_SEALED",
]  # fmt: skip

DOMAIN_BID_SIGNATURE: Final = b"pofl/bid-signature/1"
"""Under the pool's signature of the trade terms, which the provider asks for before it adds its own."""
DOMAIN_DELIVERY_OPEN: Final = b"pofl/delivery-open/1"
"""Under the miner's signature that opens a delivery."""
_INFO: Final = b"pofl/row-chunk/1"
_MAX_ENCODED: Final = MAX_CHUNK_BYTES + 4096
MAX_SEALED: Final = _MAX_ENCODED + sealing.OVERHEAD
"""Bytes of a sealed chunk: it fits one message of 4 MiB."""


@dataclass(frozen=True, slots=True)
class DeliveryOpen:
    """A miner asks for its rows. What is sealed to ``hpke_public_key`` only this miner can open.

    ``seed_hash`` and ``points`` open the trade's commitment to its marks (core.market.marks.Marking).
    """

    chain_id: Annotated[Digest, DIGEST]
    trade_id: Annotated[Digest, DIGEST]
    miner: Annotated[AccountId, PUBLIC_KEY]
    hpke_public_key: Annotated[bytes, Fixed(sealing.KEY_SIZE)]
    from_chunk: Annotated[int, U16]
    seed_hash: Annotated[Digest, DIGEST]
    points: Annotated[bytes, Var(points_size(MARKS))] = field(repr=False)


@dataclass(frozen=True, slots=True)
class SignedOpen:
    opened: DeliveryOpen
    signature: Annotated[Signature, SIGNATURE]


@dataclass(frozen=True, slots=True)
class Share:
    """One miner's part of a data set: rows ``first..first+count-1`` in CHUNKS chunks (core.market.rows.plan)."""

    data_root: Digest
    rows: int
    """n of the whole data set."""
    features: int
    classes: int
    first: int
    count: int

    @classmethod
    def of(cls, data_root: Digest, rows: int, features: int, classes: int, miners: int, miner: int) -> Share:
        """The share of miner number ``miner`` of ``miners``. Raises MarketError if there are not enough rows."""
        first, stop = share_range(rows, miners, miner)
        return cls(data_root, rows, features, classes, first, stop - first)

    @property
    def marks(self) -> int:
        """Groups of rows of this share of which the buyer takes one of two variants."""
        return mark_count(self.count)

    def range(self, chunk: int) -> tuple[int, int]:
        """``(start, stop)`` of a chunk. Raises MarketError unless ``0 <= chunk < CHUNKS``."""
        if not 0 <= chunk < CHUNKS:
            raise MarketError(f"chunk {chunk}; a share has chunks 0 to {CHUNKS - 1}", chunk=chunk)
        return self.first + self.count * chunk // CHUNKS, self.first + self.count * (chunk + 1) // CHUNKS


def sign_bid(key: signing.KeyPair, trade: TradeTerms) -> Signature:
    """The pool's signature that goes with its bid to the provider."""
    return signing.sign(key, DOMAIN_BID_SIGNATURE, encode(trade))


def verify_bid(trade: TradeTerms, signature: bytes) -> None:
    """Raises CryptoError unless the offer's pool signed these terms."""
    signing.verify(trade.offer.pool, DOMAIN_BID_SIGNATURE, encode(trade), signature)


def sign_open(key: signing.KeyPair, opened: DeliveryOpen) -> SignedOpen:
    return SignedOpen(opened, signing.sign(key, DOMAIN_DELIVERY_OPEN, encode(opened)))


def verify_open(signed: SignedOpen) -> None:
    """Raises CryptoError unless the named miner signed."""
    signing.verify(signed.opened.miner, DOMAIN_DELIVERY_OPEN, encode(signed.opened), signed.signature)


def sign_receipt(key: signing.KeyPair, chain_id: Digest, trade_id: Digest, chunk: int) -> ChunkReceipt:
    """A miner's receipt, as the chain's rule checks it. Sign only a chunk that ``open_sealed`` returned."""
    miner = AccountId(key.public_key)
    message = chunk_receipt_message(chain_id, trade_id, chunk, miner)
    return ChunkReceipt(trade_id, chunk, miner, signing.sign(key, DOMAIN_CHUNK_RECEIPT, message))


def verify_receipt(chain_id: Digest, receipt: ChunkReceipt) -> None:
    """Raises CryptoError unless the named miner signed for this chunk."""
    message = chunk_receipt_message(chain_id, receipt.trade_id, receipt.chunk, receipt.miner)
    signing.verify(receipt.miner, DOMAIN_CHUNK_RECEIPT, message, receipt.miner_signature)


def seal_chunk(data: DataSet, opened: DeliveryOpen, share: Share, chunk: int, sold: Sold) -> bytes:
    """Chunk number ``chunk`` of a share, for this miner, trade, place and choice of variants only.

    Raises:
        MarketError: there is no such chunk, or it is too large.
        CryptoError: the miner's key is no X25519 key.
    """
    plain = encode(data.chunk(*share.range(chunk), sold))
    return sealing.seal(opened.hpke_public_key, plain, _INFO, _place(opened, chunk))


def open_sealed(
    key: sealing.SealingKeyPair, opened: DeliveryOpen, share: Share, chunk: int, sealed: bytes, held: Held
) -> tuple[Features, Labels]:
    """The features [k, M] and labels [k] of a chunk, checked against the root of the share.

    Raises:
        CryptoError: it was not sealed to this key, or for another trade, miner or chunk.
        InputError: it does not decode.
        MarketError: its rows are not those that are due, or do not lead to the root.
    """
    chunk_bytes = sealing.open_(key.private_key, sealed, _INFO, _place(opened, chunk))
    start, stop = share.range(chunk)
    found = decode(Chunk, chunk_bytes, _MAX_ENCODED)
    return open_chunk(found, share.data_root, share.rows, share.features, share.classes, start, stop, held)


def to_floats(features: Features, feature_scale_micro: int) -> NDArray[np.float32]:
    """``x = int8 / scale``, float32 of the same shape: the nearest floats whose quantisation is the row again.

    Raises:
        MarketError: the scale is not positive.
    """
    if feature_scale_micro < 1:
        raise MarketError(f"a feature scale of {feature_scale_micro} millionths; it must be at least 1")
    return (features.astype(np.float64) * (MILLION / feature_scale_micro)).astype(np.float32)


def _place(opened: DeliveryOpen, chunk: int) -> bytes:
    return opened.chain_id + opened.trade_id + opened.miner + chunk.to_bytes(2, "big")
