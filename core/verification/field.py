"""Arrays of integers modulo t: exact products, uniform values, and their 5-byte wire form.

t is a prime just below 2^33, so a product of two values does not fit 64 bits in a sum; halves of 17 bits do, in float64,
where sums of up to 2^18 products are exact whatever order the library adds them in.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from core.crypto.homomorphic.modular import mul_mod
from core.crypto.homomorphic.params import PARAMS, Ints
from core.errors import LimitError, MalformedError
from core.ports import Rng

__all__ = [
    "Floats", "Halves", "T", "VALUE_BYTES", "centred", "dot", "expand_values", "halves", "matmul", "matmul_small",
    "multiply", "pack_values", "random_values", "unpack_values",
]  # fmt: skip

Floats = NDArray[np.float64]

T = PARAMS.plain_modulus
VALUE_BYTES = 5
_HALF = 17
_CHUNK = 1 << 18


def centred(values: Ints) -> Ints:
    """Representatives in (-t/2, t/2) of values modulo t."""
    reduced: Ints = np.remainder(values, T)
    return np.asarray(reduced - T * (reduced > T // 2), dtype=np.int64)


def multiply(left: Ints, right: Ints | int) -> Ints:
    """``left * right mod t`` entry by entry, in [0, t); shapes broadcast."""
    factor = np.asarray(right, dtype=np.int64)
    return np.asarray(np.remainder(mul_mod(np.remainder(left, T), np.remainder(factor, T), T), T), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Halves:
    """A matrix modulo t, cut once for many products: ``2^17 high + low``."""

    high: Floats
    low: Floats


def halves(values: Ints) -> Halves:
    """Of int64 arrays of any values."""
    reduced = np.remainder(values, T)
    return Halves((reduced >> _HALF).astype(np.float64), (reduced & ((1 << _HALF) - 1)).astype(np.float64))


def matmul(left: Ints, right: Ints | Halves) -> Ints:
    """``left @ right mod t`` in [0, t), for int64 arrays of any values; one- or two-dimensional as in numpy."""
    inner = left.shape[-1]
    cut = right if isinstance(right, Halves) else halves(right)
    total: Ints | None = None
    for start in range(0, max(inner, 1), _CHUNK):
        rows = slice(start, start + _CHUNK)
        part = _matmul(halves(left[..., rows]), Halves(cut.high[rows], cut.low[rows]))
        total = part if total is None else np.remainder(total + part, T)
    assert total is not None
    return total


def matmul_small(left: Ints, right: Floats) -> Ints:
    """``left @ right mod t`` for values modulo t times integers below 2^17 kept as float64: half the work of matmul.

    Exact for up to 2^18 terms, because every partial sum stays below 2^53.
    """
    reduced = np.remainder(left, T)
    high = np.asarray((reduced >> _HALF).astype(np.float64) @ right).astype(np.int64)
    low = np.asarray((reduced & ((1 << _HALF) - 1)).astype(np.float64) @ right).astype(np.int64)
    return np.asarray(np.remainder((np.remainder(high, T) << _HALF) + low, T), dtype=np.int64)


def dot(left: Ints, right: Ints) -> int:
    """``Σ left_i right_i mod t`` of two vectors."""
    return int(matmul(left, right))


def _matmul(left: Halves, right: Halves) -> Ints:
    high = np.remainder(np.asarray(left.high @ right.high).astype(np.int64), T)
    middle = np.asarray(left.high @ right.low).astype(np.int64) + np.asarray(left.low @ right.high).astype(np.int64)
    low = np.asarray(left.low @ right.low).astype(np.int64)
    high = np.remainder((high << _HALF) + middle, T)
    return np.asarray(np.remainder((high << _HALF) + low, T), dtype=np.int64)


def expand_values(domain: bytes, seed: bytes, count: int) -> Ints:
    """``count`` uniform values modulo t from a seed, the same on every machine: SHAKE-256, 33 bits at a time, rejected
    when not below t."""
    state = hashlib.shake_256(len(domain).to_bytes(8, "big") + domain + seed)
    # About one draw in 10^5 is rejected; a few spare ones make a second look at the stream unlikely.
    spare = 16
    while True:
        drawn = _below_t(state.digest(8 * (count + spare)))
        if drawn.size >= count:
            return drawn[:count]
        spare *= 4


def random_values(rng: Rng, count: int) -> Ints:
    """``count`` uniform secret values modulo t."""
    found = _below_t(rng.bytes(8 * count))
    while found.size < count:
        found = np.concatenate([found, _below_t(rng.bytes(8 * (count - found.size)))])
    return found


def _below_t(data: bytes) -> Ints:
    values = (np.frombuffer(data, dtype="<u8") & np.uint64((1 << 33) - 1)).astype(np.int64)
    return values[values < T]


def pack_values(values: Ints) -> bytes:
    """Values in [0, t) as 5 bytes each, little-endian, in C order."""
    flat = np.ascontiguousarray(values, dtype="<i8").reshape(-1, 1)
    if flat.size and (int(flat.min()) < 0 or int(flat.max()) >= T):
        raise MalformedError(f"a value is outside [0, {T})")
    return np.ascontiguousarray(flat.view(np.uint8)[:, :VALUE_BYTES]).tobytes()


def unpack_values(data: bytes, shape: tuple[int, ...]) -> Ints:
    """The checked array of ``shape`` from its wire form.

    Raises:
        LimitError: more bytes than the shape takes.
        MalformedError: fewer, or a value that is not below t.
    """
    expected = prod(shape) * VALUE_BYTES
    if len(data) > expected:
        raise LimitError(f"{len(data)} bytes for {prod(shape)} values of {VALUE_BYTES}", size=len(data), limit=expected)
    if len(data) < expected:
        raise MalformedError(f"truncated: {len(data)} bytes for {prod(shape)} values of {VALUE_BYTES}", size=len(data))
    wide = np.zeros((prod(shape), 8), dtype=np.uint8)
    wide[:, :VALUE_BYTES] = np.frombuffer(data, dtype=np.uint8).reshape(-1, VALUE_BYTES)
    values = wide.view("<i8").reshape(shape).astype(np.int64)
    if values.size and int(values.max()) >= T:
        raise MalformedError(f"a value {int(values.max())} is not below {T}")
    return values
