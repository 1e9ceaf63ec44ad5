"""The draw of a trade: the chain's, not the traders' (design: market, "A trade", step 3)."""

from __future__ import annotations

import hashlib

from core.errors import MarketError
from core.ids import MILLION, BlockHash, Digest, PartsPerMillion

__all__ = ["is_deal", "lot"]


def lot(block_hash_after_bid: BlockHash, bid_id: Digest) -> int:
    """``floor(int(SHA-256(hash of the block after the bid || bid id)) * 10^6 / 2^256)``: uniform on ``0..10^6-1``.

    Both inputs are domain-separated hashes of fixed length, so their concatenation has one reading. Neither trader
    knows the block hash when she signs the bid. The block's proposer does, before it is out: a validator that trades can try
    other orders and choices of transactions in the blocks that it proposes until the lot is to its liking (docs/market.md).

    Raises:
        MarketError: an input is not 32 bytes.
    """
    if len(block_hash_after_bid) != 32 or len(bid_id) != 32:
        raise MarketError(
            f"a draw needs two 32-byte hashes, got {len(block_hash_after_bid)} and {len(bid_id)} bytes",
            block_hash=len(block_hash_after_bid), bid_id=len(bid_id),
        )  # fmt: skip
    value = int.from_bytes(hashlib.sha256(block_hash_after_bid + bid_id).digest(), "big")
    return value * MILLION >> 256


def is_deal(block_hash_after_bid: BlockHash, bid_id: Digest, p_ppm: PartsPerMillion) -> bool:
    """True with probability ``p`` over the block hash; always for ``p_ppm = 10^6``, never for 0.

    Raises:
        MarketError: ``p_ppm`` is not in ``0..10^6``, or a hash is not 32 bytes.
    """
    if not 0 <= p_ppm <= MILLION:
        raise MarketError(f"the probability {p_ppm} is not in 0..{MILLION} ppm", p_ppm=p_ppm)
    return lot(block_hash_after_bid, bid_id) < p_ppm
