"""Negacyclic number-theoretic transform modulo primes of 50 bits, in numpy.

Merged Cooley-Tukey butterflies (Longa, Naehrig 2016) with SEAL's roots: psi is the least primitive 2N-th root of unity, and
powers stand in bit-reversed order. After half of the stages the array is transposed, so that the inner loop stays long;
the transform is left in that order, since only products of entries follow. ``SEAL_ORDER`` tells how to read it as SEAL does.

Values are kept in a lazy range. With entries |v| <= B p and centred roots, one butterfly gives at most (B + 1/2 + B/8) p, and
float64 holds integers up to 8 p exactly; the comments below follow B.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from core.crypto.homomorphic.params import HeParams, Ints, Residues

__all__ = ["NttTable", "forward", "from_ntt", "inverse", "seal_order", "table", "to_ntt"]

Floats = NDArray[np.float64]
_CHUNK = 4
"""Polynomials that are transformed together: their working set stays in the processor's cache."""


@dataclass(frozen=True, slots=True)
class NttTable:
    """Roots of one prime, shaped for each stage."""

    prime: int
    degree: int
    rows: int
    roots: tuple[tuple[Ints, Floats], ...]
    inverse_roots: tuple[tuple[Ints, Floats], ...]
    scale: int


@cache
def table(prime: int, degree: int) -> NttTable:
    """The roots for one prime, ``prime = 1 mod 2 degree``, degree a power of two of at least 4."""
    bits = degree.bit_length() - 1
    if degree != 1 << bits or bits < 2 or prime % (2 * degree) != 1 or prime.bit_length() > 50:
        raise ValueError(f"no transform of length {degree} modulo {prime}")
    psi = _least_root(prime, 2 * degree)
    rows = 1 << (bits // 2)
    roots, inverse_roots = [], []
    for stage in range(bits):
        blocks = 1 << stage
        powers = [pow(psi, _reverse(blocks + i, bits), prime) for i in range(blocks)]
        roots.append(_shape(powers, blocks, rows, prime))
        inverse_roots.append(_shape([pow(w, -1, prime) for w in powers], blocks, rows, prime))
    scale = pow(degree, -1, prime)
    return NttTable(prime, degree, rows, tuple(roots), tuple(inverse_roots), scale - prime if scale > prime // 2 else scale)


def _shape(powers: list[int], blocks: int, rows: int, prime: int) -> tuple[Ints, Floats]:
    """Before the transposition (blocks, 1); after it (blocks / rows, 1, rows)."""
    centred = np.array([w - prime if w > prime // 2 else w for w in powers], dtype=np.int64)
    early = blocks < rows
    shaped = centred[:, None] if early else np.ascontiguousarray(centred.reshape(rows, blocks // rows).T[:, None, :])
    return shaped, shaped.astype(np.float64) / prime


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


def seal_order(degree: int) -> NDArray[np.intp]:
    """``ours[..., seal_order(N)]`` is in SEAL's order."""
    bits = degree.bit_length() - 1
    rows = 1 << (bits // 2)
    return np.arange(degree).reshape(degree // rows, rows).T.reshape(-1)


def _reduce(values: Ints, prime: int) -> None:
    """To [-p/2, p/2], up to a unit, in place; |values| < 2^53."""
    quotient = np.rint(values.astype(np.float64) * (1.0 / prime)).astype(np.int64)
    quotient *= prime
    values -= quotient


def _times(values: Ints, root: tuple[Ints, Floats], prime: int) -> Ints:
    ratio = values.astype(np.float64)
    ratio *= root[1]
    np.rint(ratio, out=ratio)
    quotient = ratio.astype(np.int64)
    quotient *= prime
    product: Ints = values * root[0]
    product -= quotient
    return product


def forward(values: Ints, roots: NttTable) -> Ints:
    """Transform (count, N), entries in [-p, p], to entries in (-p, p), in this module's order. Returns a new array."""
    prime, rows, degree = roots.prime, roots.rows, roots.degree
    count = values.shape[0]
    work = values.copy()
    _reduce(work, prime)  # B = 1/2
    stages = len(roots.roots)
    split = rows.bit_length() - 1
    for stage in range(split):  # at most 6 stages to B = 5.2
        blocks = work.reshape(count, 1 << stage, 2, -1)
        _cooley_tukey(blocks[:, :, 0], blocks[:, :, 1], roots.roots[stage], prime)
    columns = np.ascontiguousarray(work.reshape(count, rows, degree // rows).swapaxes(1, 2))
    _reduce(columns, prime)
    for stage in range(split, stages):  # at most 7 stages to B = 6.3
        blocks = columns.reshape(count, 1 << (stage - split), 2, -1, rows)
        _cooley_tukey(blocks[:, :, 0], blocks[:, :, 1], roots.roots[stage], prime)
    _reduce(columns, prime)
    return columns.reshape(count, degree)


def _cooley_tukey(upper: Ints, lower: Ints, root: tuple[Ints, Floats], prime: int) -> None:
    product = _times(lower, root, prime)
    np.subtract(upper, product, out=lower)
    upper += product


def inverse(values: Ints, roots: NttTable) -> Ints:
    """Undo ``forward``: (count, N) with entries in (-p, p) to residues in [0, p). Returns a new array."""
    prime, rows, degree = roots.prime, roots.rows, roots.degree
    count = values.shape[0]
    columns = values.copy()
    stages = len(roots.roots)
    split = rows.bit_length() - 1
    since = 0
    for stage in reversed(range(split, stages)):
        blocks = columns.reshape(count, 1 << (stage - split), 2, -1, rows)
        since = _gentleman_sande(blocks[:, :, 0], blocks[:, :, 1], roots.inverse_roots[stage], prime, since)
    work = np.ascontiguousarray(columns.reshape(count, degree // rows, rows).swapaxes(1, 2))
    for stage in reversed(range(split)):
        blocks = work.reshape(count, 1 << stage, 2, -1)
        since = _gentleman_sande(blocks[:, :, 0], blocks[:, :, 1], roots.inverse_roots[stage], prime, since)
    work = work.reshape(count, degree)
    _reduce(work, prime)
    factor = np.array(roots.scale, dtype=np.int64)
    result = _times(work, (factor, factor.astype(np.float64) / prime), prime)
    result += prime * (result < 0)
    result -= prime * (result >= prime)
    return result


def _gentleman_sande(upper: Ints, lower: Ints, root: tuple[Ints, Floats], prime: int, since: int) -> int:
    """Sums double B: from B = 1, two stages lead to sums of 4 p, reduced here, and to products of at most (1/2 + 4/8) p."""
    difference = upper - lower
    upper += lower
    lower[...] = _times(difference, root, prime)
    if since == 1:
        _reduce(upper, prime)
        return 0
    return 1


def to_ntt(values: NDArray[np.int64] | Residues, params: HeParams) -> Ints:
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
