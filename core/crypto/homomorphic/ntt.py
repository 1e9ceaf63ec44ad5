"""Negacyclic number-theoretic transform modulo primes of at most 50 bits, in numpy.

Cooley-Tukey butterflies with psi merged into the roots (Longa, Naehrig 2016), in the constant geometry of Pease: every stage
takes the two halves of the array and interleaves the results, so that numpy's inner loop is always N/2 long. psi is the least
primitive 2N-th root of unity and the result stands in bit-reversed order, both as in SEAL.

Values are kept in a lazy range. With |v| <= B p and centred roots, a product is at most (1/2 + B/8) p: half a unit of the
quotient, and the float64 error of its estimate. One stage leads from B to (9 B + 4)/8, and float64 holds integers up to 8 p
exactly. The comments below follow B.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from core.crypto.homomorphic.params import HeParams, Ints, Residues

__all__ = ["NttTable", "forward", "from_ntt", "inverse", "reduce", "table", "to_ntt"]

Floats = NDArray[np.float64]
_CHUNK = 1
"""Polynomials that are transformed together: their working set stays in the processor's cache."""
_ROW = 512
"""Least length of a row of roots, so that inner loops are long while the tables stay small."""
_LAZY_STAGES = 6
"""From B = 1 six stages lead to B = 6.1, from B = 1/2 seven to 6.2."""


@dataclass(frozen=True, slots=True)
class NttTable:
    """Roots of one prime, one row for each stage: as integers, and divided by the prime."""

    prime: int
    degree: int
    roots: tuple[tuple[Ints, Floats], ...]
    inverse_roots: tuple[tuple[Ints, Floats], ...]


@cache
def table(prime: int, degree: int) -> NttTable:
    """The roots for one prime, ``prime = 1 mod 2 degree``, degree a power of two of at least 4 and at most 2^13."""
    bits = degree.bit_length() - 1
    if degree != 1 << bits or not 2 <= bits <= 13 or prime % (2 * degree) != 1 or prime.bit_length() > 50:
        raise ValueError(f"no transform of length {degree} modulo {prime}")
    psi = _least_root(prime, 2 * degree)
    scale = pow(degree, -1, prime)
    roots, inverse_roots = [], []
    for stage in range(bits):
        blocks = 1 << stage
        powers = [pow(psi, _reverse(blocks + i, bits), prime) for i in range(blocks)]
        inverses = [pow(w, -1, prime) for w in powers]
        if stage == 0:
            inverses = [w * scale % prime for w in inverses]  # 1/N of the lower half; the upper half gets it alone
        roots.append(_row(powers, degree, prime))
        inverse_roots.append(_row(inverses, degree, prime))
    inverse_roots.append(_row([scale], degree, prime))
    return NttTable(prime, degree, tuple(roots), tuple(inverse_roots))


def _row(powers: list[int], degree: int, prime: int) -> tuple[Ints, Floats]:
    """Position j m + i of a half belongs to block i of m: the powers repeat with period m, and a row holds a few periods."""
    centred = np.array([w - prime if w > prime // 2 else w for w in powers], dtype=np.int64)
    tiled = np.tile(centred, max(1, min(_ROW, degree // 2) // len(powers)))
    return tiled, tiled.astype(np.float64) / prime


def _reverse(value: int, bits: int) -> int:
    return int(format(value, f"0{bits}b")[::-1], 2)


def _least_root(prime: int, order: int) -> int:
    """The least primitive ``order``-th root of unity, as SEAL chooses it."""
    base = next(
        root for g in range(2, prime) if pow(root := pow(g, (prime - 1) // order, prime), order // 2, prime) == prime - 1
    )
    square, best, current = base * base % prime, base, base
    for _ in range(order // 2):
        best = min(best, current)
        current = current * square % prime
    return best


def reduce(values: Ints, prime: int) -> None:
    """To [-p/2 - 1, p/2 + 1] in place, for |values| < 2^53."""
    quotient = values.astype(np.float64)
    quotient *= 1.0 / prime
    np.rint(quotient, out=quotient)
    whole = quotient.astype(np.int64)
    whole *= prime
    values -= whole


class _Scratch:
    """Buffers of one transform, so that no stage allocates."""

    def __init__(self, count: int, half: int) -> None:
        self.ratio = np.empty((count, half), dtype=np.float64)
        self.whole = np.empty((count, half), dtype=np.int64)
        self.rooted = np.empty((count, half), dtype=np.int64)
        self.product = np.empty((count, half), dtype=np.int64)

    def times(self, values: Ints, root: tuple[Ints, Floats], prime: int, out: Ints) -> None:
        """``values * root`` modulo p, at most (1/2 + B/8) p. ``out`` may be ``values``."""
        np.copyto(self.ratio, values)
        shape = (values.shape[0], -1, root[0].size)
        rows = self.ratio.reshape(shape)
        rows *= root[1]
        np.rint(self.ratio, out=self.ratio)
        np.copyto(self.whole, self.ratio, casting="unsafe")
        self.whole *= prime
        np.multiply(values.reshape(shape), root[0], out=self.rooted.reshape(shape))
        np.subtract(self.rooted, self.whole, out=out)


def forward(values: Ints, roots: NttTable) -> Ints:
    """Transform (count, N), entries in [-p, p], to entries within p/2 + 1, bit-reversed order. Returns a new array."""
    prime, half = roots.prime, roots.degree // 2
    source, target = values.copy(), np.empty_like(values)
    scratch = _Scratch(values.shape[0], half)
    for stage, root in enumerate(roots.roots):
        if stage == _LAZY_STAGES:
            reduce(source, prime)
        upper = source[:, :half]
        scratch.times(source[:, half:], root, prime, scratch.product)
        np.add(upper, scratch.product, out=target[:, 0::2])
        np.subtract(upper, scratch.product, out=target[:, 1::2])
        source, target = target, source
    reduce(source, prime)
    return source


def inverse(values: Ints, roots: NttTable) -> Ints:
    """Undo ``forward``: (count, N) with entries in [-p, p] to residues in [0, p). Returns a new array.

    A stage doubles the sums: after two of them, B = 4, the sums are reduced; products are at most (1/2 + 4/8) p.
    """
    prime, half = roots.prime, roots.degree // 2
    source, target = values.copy(), np.empty_like(values)
    scratch = _Scratch(values.shape[0], half)
    stages = len(roots.roots)
    for stage in reversed(range(stages)):
        upper, lower = source[:, 0::2], source[:, 1::2]
        np.add(upper, lower, out=target[:, :half])
        np.subtract(upper, lower, out=scratch.product)
        scratch.times(scratch.product, roots.inverse_roots[stage], prime, target[:, half:])
        if stage == 0:
            scratch.times(target[:, :half], roots.inverse_roots[stages], prime, target[:, :half])
        elif (stages - stage) % 2 == 0:
            reduce(target[:, :half], prime)
        source, target = target, source
    source += (source >> 63) & prime
    source -= prime
    source += (source >> 63) & prime
    return source


def to_ntt(values: Ints | Residues, params: HeParams) -> Ints:
    """(count, L, N) residues, or (count, N) small integers common to all limbs, to the transform (count, L, N)."""
    signed = values.view(np.int64)
    out = np.empty((signed.shape[0], params.limbs, params.degree), dtype=np.int64)
    for limb, prime in enumerate(params.primes):
        roots = table(prime, params.degree)
        for start in range(0, signed.shape[0], _CHUNK):
            part = signed[start : start + _CHUNK]
            out[start : start + _CHUNK, limb] = forward(part if part.ndim == 2 else part[:, limb], roots)
    return out


def from_ntt(values: Ints, params: HeParams) -> Residues:
    """(count, L, N) transform to residues."""
    out = np.empty(values.shape, dtype=np.int64)
    for limb, prime in enumerate(params.primes):
        roots = table(prime, params.degree)
        for start in range(0, values.shape[0], _CHUNK):
            out[start : start + _CHUNK, limb] = inverse(values[start : start + _CHUNK, limb], roots)
    return out.view(np.uint64)
