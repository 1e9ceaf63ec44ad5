"""The arithmetic of the extension: columns of bits, the correlation over GF(4), the check, the transpose.

Notation of Roy, "SoftSpokenOT" (CRYPTO 2022), for q = 4, the repetition code and 64 trees. With leaf streams r_x,

    receiver:  u_i = Σ_x r_x          v_i = Σ_x x·r_x
    sender:    w_i = Σ_x (Δ_i - x)·r_x = v_i + Δ_i·u_i      (the leaf it does not know has factor 0)

all sums are XOR; x and Δ_i are pairs of bits, and so v_i, w_i are two columns: column 2i is the low bit, 2i+1 the high
one. A correction c_i = u_i ⊕ u turns every u_i into the receiver's u: w_i ⊕ Δ_i·c_i = v_i ⊕ Δ_i·u.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.crypto import prg
from core.crypto.circuits import Bits
from core.crypto.oblivious_transfer.messages import CHECK_ROWS
from core.crypto.oblivious_transfer.puncture import LEAVES, Tree

__all__ = ["Columns", "leaf_streams", "pack", "receiver_columns", "rows_of", "sender_columns", "universal_hash"]

Columns = NDArray[np.uint64]
"""Shape (..., words): bits of one column, 64 to a word, first row in the lowest bit."""

_CHECK_WORDS = CHECK_ROWS // 64


def pack(bits: Bits) -> Columns:
    """Bits (a multiple of 64) as words."""
    return np.packbits(bits, bitorder="little").view(np.dtype("<u8"))


def leaf_streams(trees: tuple[Tree, ...], size: int, batch: int) -> Columns:
    """(trees, 4, size / 8): the leaves' AES streams. The one of an unknown leaf means nothing and is not used."""
    raw = b"".join(prg.stream(seed, size, batch) for tree in trees for seed in tree.seeds)
    return np.frombuffer(raw, np.dtype("<u8")).reshape(len(trees), LEAVES, -1)


def receiver_columns(streams: Columns) -> tuple[Columns, Columns]:
    """u (trees, words) and v (2 * trees, words)."""
    low, high = streams[:, 1] ^ streams[:, 3], streams[:, 2] ^ streams[:, 3]
    u = streams[:, 0] ^ streams[:, 1] ^ high
    return u, np.stack([low, high], axis=1).reshape(-1, streams.shape[2])


def sender_columns(streams: Columns, points: tuple[int, ...], corrections: Columns) -> Columns:
    """w ⊕ Δ·c (2 * trees, words)."""
    delta = np.array(points)
    # Leaf x has factor Δ ⊕ x; sorted by factor, the unknown leaf comes first and is not used.
    by_factor = streams[np.arange(len(delta))[:, None], delta[:, None] ^ np.arange(LEAVES)]
    low, high = by_factor[:, 1] ^ by_factor[:, 3], by_factor[:, 2] ^ by_factor[:, 3]
    low = low ^ (_mask(delta & 1) & corrections)
    high = high ^ (_mask(delta >> 1) & corrections)
    return np.stack([low, high], axis=1).reshape(-1, streams.shape[2])


def universal_hash(columns: Columns, challenge: bytes) -> NDArray[np.uint8]:
    """Every column times a random binary matrix of CHECK_ROWS rows: uint8 (columns, 16).

    The last CHECK_ROWS bits of a column are random, meet the identity in the matrix, and hide the rest. Two columns
    that differ have the same hash with probability 2^-128 over the challenge.
    """
    body = np.ascontiguousarray(columns[:, :-_CHECK_WORDS])
    count, words = body.shape
    matrix = np.frombuffer(prg.stream(challenge, 8 * words * CHECK_ROWS), np.dtype("<u8")).reshape(CHECK_ROWS, words)
    sums = np.empty((CHECK_ROWS, count), np.dtype("<u8"))
    products = np.empty_like(body)
    for row in range(CHECK_ROWS):
        np.bitwise_and(body, matrix[row], out=products)
        np.bitwise_xor.reduce(products, axis=1, out=sums[row])
    parities = (np.bitwise_count(sums) & 1).T
    return np.packbits(parities, axis=1, bitorder="little") ^ prg.as_bytes(columns[:, -_CHECK_WORDS:])


def rows_of(columns: Columns, count: int) -> prg.Labels:
    """The first ``count`` rows of 128 columns, as labels (count, 2): bit j of a label is column j."""
    bits = np.unpackbits(columns.view(np.uint8), axis=1, count=count, bitorder="little")
    return prg.as_labels(np.packbits(np.ascontiguousarray(bits.T), axis=1, bitorder="little"))


def _mask(bits: NDArray[np.int64]) -> Columns:
    return np.negative(bits.astype(np.uint64))[:, None]
