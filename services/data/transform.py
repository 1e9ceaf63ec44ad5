"""From raw rows to features by a recipe: the same bits on every machine (docs/adr/0093).

Values are whole millionths (int64) between the steps. What sums (resizing, projecting, the length of a text) is done in
integers; what divides is one correctly rounded IEEE operation on each value by itself, which no library may reorder. A
feature is ``float32(millionths / 10^6)``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.crypto.hashing import digest
from core.errors import ConfigError, LimitError, MalformedError
from services.data.recipe import MICRO, Recipe

__all__ = ["DOMAIN_PCA", "MAX_VALUE", "Projection", "Transform", "resize_numerators", "to_features"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

DOMAIN_PCA: Final = b"pofl/data-projection/1"
MAX_VALUE: Final = 1 << 29
"""Millionths: values beyond +-536 are set to that, so that no sum below leaves 64 bits."""
MAX_PROJECTED: Final = 4096
"""Values of a row that a projection takes: 2^12 terms of 2^30 times 2^20 stay below 2^63."""
MAX_WEIGHT: Final = 1 << 20
GREY: Final = (299, 587, 114)
"""Thousandths of red, green and blue (ITU-R BT.601)."""


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """A public matrix: ``(row - mean) @ matrix``, int32 millionths of shapes (width) and (width, size)."""

    mean: NDArray[np.int32]
    matrix: NDArray[np.int32]

    def __post_init__(self) -> None:
        """Raises MalformedError or LimitError."""
        if self.matrix.ndim != 2 or self.mean.shape != self.matrix.shape[:1] or not self.matrix.size:
            raise MalformedError(f"a projection of shape {self.matrix.shape} with a mean of shape {self.mean.shape}")
        if self.matrix.dtype != np.int32 or self.mean.dtype != np.int32:
            raise MalformedError(f"a projection must be int32, got {self.matrix.dtype} and {self.mean.dtype}")
        if self.matrix.shape[0] > MAX_PROJECTED or self.matrix.shape[1] > self.matrix.shape[0]:
            raise LimitError(f"a projection of {self.matrix.shape}: from at most {MAX_PROJECTED} values to no more than those")
        for name, part, limit in (("entry", self.matrix, MAX_WEIGHT), ("mean", self.mean, MAX_VALUE)):
            if int(np.abs(part.astype(np.int64)).max()) > limit:
                raise LimitError(f"a projection with an {name} beyond +-{limit} millionths")

    @property
    def digest(self) -> bytes:
        parts = [np.ascontiguousarray(part, dtype="<i4").tobytes() for part in (self.mean, self.matrix)]
        width, size = self.matrix.shape
        return digest(DOMAIN_PCA, width.to_bytes(4, "big"), size.to_bytes(4, "big"), *parts)

    def apply(self, values: Ints) -> Ints:
        """(rows, width) to (rows, size), rounded half up. Exact: each float64 product sums integers below 2^53."""
        moved = values - self.mean
        matrix = self.matrix.astype(np.float64)
        high = np.asarray((moved >> 15).astype(np.float64) @ matrix).astype(np.int64)
        low = np.asarray((moved & 0x7FFF).astype(np.float64) @ matrix).astype(np.int64)
        total = (high << 15) + low
        return np.asarray((total + MICRO // 2) // MICRO, dtype=np.int64)


class Transform:
    """Applies a recipe to chunks of raw rows, and hashes what comes out.

    Raises ConfigError where the projection is not the one that the recipe names.
    """

    def __init__(self, recipe: Recipe, projection: Projection | None = None) -> None:
        if bool(recipe.pca) != (projection is not None):
            raise ConfigError(
                "the recipe names a projection, none is given" if recipe.pca else "the recipe names no projection"
            )
        if projection is not None:
            if projection.digest.hex() != recipe.pca:
                raise ConfigError(
                    f"the projection's digest is {projection.digest.hex()}, the recipe names {recipe.pca}: it is another matrix"
                )
            if projection.matrix.shape != (recipe.raw_width, recipe.pca_size):
                raise ConfigError(f"the projection is {projection.matrix.shape}, not {(recipe.raw_width, recipe.pca_size)}")
        self._recipe = recipe
        self._projection = projection
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> bytes:
        """Of the features (int32 millionths, by rows) so far: equal on all machines that read the same rows."""
        return self._hash.digest()

    def features(self, raw: NDArray[np.generic]) -> NDArray[np.float32]:
        """``raw``: uint8 pixels (rows, *shape); numbers (rows, *shape); for tables and texts float64 (rows, width)."""
        q = self.millionths(raw)
        self._hash.update(np.ascontiguousarray(q, dtype="<i4").tobytes())
        return to_features(q)

    def before_projection(self, raw: NDArray[np.generic]) -> Ints:
        """Millionths as the projection takes them; what it is fitted to."""
        r = self._recipe
        q = _pixels(r, raw) if r.raw == "pixels" else _rounded(_flat(r, raw) / r.divide)
        if r.mean or r.std:
            mean, std = (np.array(v or d) for v, d in ((r.mean, (0.0,)), (r.std, (1.0,))))
            q = _rounded((q / MICRO - mean) / std)
        return q

    def millionths(self, raw: NDArray[np.generic]) -> Ints:
        """Features times 10^6, int64 (rows, features), within +-2^29."""
        q = self.before_projection(raw)
        if self._projection is not None:
            q = np.clip(self._projection.apply(q), -MAX_VALUE, MAX_VALUE)
        if self._recipe.bound:
            limit = int(np.rint(self._recipe.bound * MICRO))
            q = np.clip(q, -limit, limit)
        return q


def to_features(millionths: Ints) -> NDArray[np.float32]:
    return np.asarray(millionths / MICRO, dtype=np.float32)


def resize_numerators(rows: Ints, height: int, width: int) -> Ints:
    """Area average of (n, h, w, c) as integers: sums over ``h w`` times the mean that each new pixel covers.

    On a grid finer by ``height`` and ``width`` the old pixel i covers ``[height i, height (i + 1))`` and the new pixel j
    ``[h j, h (j + 1))``; the weight is their overlap.
    """
    down, across = (_overlaps(old, new) for old, new in zip(rows.shape[1:3], (height, width), strict=True))
    return np.asarray(np.einsum("ah,nhwc,bw->nabc", down, rows, across, optimize=True), dtype=np.int64)


def _overlaps(old: int, new: int) -> Ints:
    starts, ends = np.arange(old) * new, (np.arange(old) + 1) * new
    left, right = np.arange(new)[:, None] * old, (np.arange(new)[:, None] + 1) * old
    return np.asarray(np.maximum(0, np.minimum(ends, right) - np.maximum(starts, left)), dtype=np.int64)


def _pixels(r: Recipe, raw: NDArray[np.generic]) -> Ints:
    """Rounded half up, in integers: ``(numerator / denominator) / divide`` in millionths."""
    rows = raw.reshape(len(raw), *r.shape[:2], -1).astype(np.int64)
    denominator = 1
    if r.grey:
        rows = (rows @ np.array(GREY, dtype=np.int64))[..., None]
        denominator *= 1000
    if r.resize:
        rows = resize_numerators(rows, *r.resize)
        denominator *= r.shape[0] * r.shape[1]
    # Colour planes, one after the other: what convolutional models take (docs/mining.md, "Models").
    flat = rows.transpose(0, 3, 1, 2).reshape(len(raw), -1)
    if r.divide == int(r.divide):
        whole = denominator * int(r.divide)
        # 255 * 1000 * 2^16 * 2 * 10^6 is below 2^63, and so is twice the denominator.
        return np.clip((flat * (2 * MICRO) + whole) // (2 * whole), -MAX_VALUE, MAX_VALUE)
    return _rounded(flat / denominator / r.divide)


def _flat(r: Recipe, raw: NDArray[np.generic]) -> Floats:
    flat = raw.reshape(len(raw), -1).astype(np.float64)
    if flat.shape[1] != r.raw_width:
        raise MalformedError(f"a row of {flat.shape[1]} values, the recipe has {r.raw_width}")
    return flat


def _rounded(values: Floats) -> Ints:
    return np.rint(np.clip(values * MICRO, -MAX_VALUE, MAX_VALUE)).astype(np.int64)
