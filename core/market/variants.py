"""The two variants of a row: the row with a secret pattern added, and with it taken away (docs/adr/0108).

A pattern touches inner values only: where ``x - a`` and ``x + a`` are both values that the column really takes. At the
edges, say the black background of an image, a buyer knows the true value, and a mark there would be seen and undone.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.crypto.hashing import expand
from core.errors import MarketError
from core.ids import MILLION

__all__ = ["DEFAULT_STRENGTH", "MAX_STRENGTH", "amplitudes", "make_variants", "DOMAIN_PATTERN"]

DOMAIN_PATTERN: Final = b"pofl/marks/pattern/1"
DEFAULT_STRENGTH: Final = 125_000
"""Of a column's range, or of four standard deviations if that is less; millionths."""
MAX_STRENGTH: Final = 400_000
_BLOCK: Final = 4_096
"""Rows at a time: patterns of a large data set would fill the memory."""


def amplitudes(features: NDArray[np.int8], strength_ppm: int) -> NDArray[np.int16]:
    """How far a mark moves a value of each column, int16 [M]; 0 for columns that are constant.

    Raises:
        MarketError: a strength outside 0..MAX_STRENGTH.
    """
    if not 0 <= strength_ppm <= MAX_STRENGTH:
        raise MarketError(f"a mark strength of {strength_ppm} ppm, must be 0 to {MAX_STRENGTH}", strength_ppm=strength_ppm)
    reach = features.max(axis=0).astype(np.float64) - features.min(axis=0)
    spread = np.minimum(reach, 4.0 * features.std(axis=0, dtype=np.float64))
    found = np.rint(spread * strength_ppm / MILLION).astype(np.int16)
    return np.where((found == 0) & (reach > 0) & (strength_ppm > 0), np.int16(1), found)


def make_variants(features: NDArray[np.int8], strength_ppm: int, secret: bytes) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Variants 0 and 1 of all rows, int8 [n, M] each; ``secret``: 32 bytes of the seller, from which the patterns follow.

    Raises:
        MarketError: a strength outside 0..MAX_STRENGTH.
    """
    a = amplitudes(features, strength_ppm)
    low, high = features.min(axis=0).astype(np.int16), features.max(axis=0).astype(np.int16)
    plus, minus = np.empty_like(features), np.empty_like(features)
    for start in range(0, len(features), _BLOCK):
        x = features[start : start + _BLOCK].astype(np.int16)
        coins = expand(DOMAIN_PATTERN, -(-x.size // 8), secret, start.to_bytes(8, "big"))
        bits = np.unpackbits(np.frombuffer(coins, np.uint8))[: x.size].reshape(x.shape)
        inner = (x - a >= low) & (x + a <= high)
        move = np.where(inner, a * (1 - 2 * bits.astype(np.int16)), np.int16(0))
        plus[start : start + _BLOCK], minus[start : start + _BLOCK] = x + move, x - move
    return plus, minus
