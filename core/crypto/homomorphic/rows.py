"""Ciphertext halves that are combined again and again, kept as the matrix products want them.

A test set of 10,000 samples and 256 features has 12.6 million residues in each half. Cut once into two limbs of 25 bits and
laid out in blocks that fit the processor's cache, one pass over them costs a copy to float64 and a product, both in cache:
about a quarter of what cutting them on the way costs. The limbs take as much memory as the residues.

The sums are those of ``combine``: limbs of 17 and 25 bits, at most 2048 terms, exact in float64 in any order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.crypto.homomorphic.combine import LIMB_BITS, MAX_SUM, SCALAR_BITS, split_scalars
from core.crypto.homomorphic.modular import canonical
from core.crypto.homomorphic.ntt import reduce
from core.crypto.homomorphic.params import PARAMS, HeParams, Ints, Residues
from core.errors import LimitError, MalformedError

__all__ = ["Rows", "RowsBuilder"]

Floats = NDArray[np.float64]
_WIDTH = 256
"""Columns of a block: with 256 rows half a megabyte of float64."""


@dataclass(frozen=True, eq=False)
class Rows:
    """M polynomials modulo q. Shape of ``blocks``: (L, N / width, 2, M, width), the high limb first."""

    blocks: NDArray[np.int32]
    params: HeParams = PARAMS

    @property
    def count(self) -> int:
        """M."""
        return int(self.blocks.shape[3])

    def residues(self) -> Residues:
        """The polynomials again, (M, L, N): a copy."""
        whole = (self.blocks[:, :, 0].astype(np.int64) << LIMB_BITS) + self.blocks[:, :, 1]
        return np.ascontiguousarray(whole.transpose(2, 0, 1, 3)).reshape(self.count, self.params.limbs, -1).view(np.uint64)

    def combine(self, matrix: Ints) -> Residues:
        """``sum_m matrix[k, m] * row[m]``: (K, M) to (K, L, N), equal to ``combine(matrix, residues)``.

        Raises:
            MalformedError: the matrix has another width.
        """
        params = self.params
        if matrix.ndim != 2 or matrix.shape[1] != self.count or matrix.dtype != np.int64:
            raise MalformedError(f"a matrix of {matrix.shape} ({matrix.dtype}) does not go with {self.count} rows")
        weights, count, width = split_scalars(matrix, params), len(matrix), self.blocks.shape[-1]
        buffer = np.empty((self.count, width), dtype=np.float64)
        products = np.empty((2, 2 * count, params.degree), dtype=np.float64)
        out = np.empty((count, params.limbs, params.degree), dtype=np.int64)
        for limb, prime in enumerate(params.primes):
            for number, pair in enumerate(self.blocks[limb]):
                columns = slice(number * width, (number + 1) * width)
                for half in range(2):
                    np.copyto(buffer, pair[half])
                    products[half, :, columns] = weights @ buffer
            for k in range(count):
                total = _join(products[0, k], products[1, k], products[0, count + k], products[1, count + k], prime)
                out[k, limb] = canonical(total, prime)
        return out.view(np.uint64)

    def dots(self, vectors: Ints) -> Residues:
        """``sum_n vectors[k, n] * row[m]_n``, what coefficient 0 of a product with ``dot_weights`` is: (K, N) to (K, M, L).

        Raises:
            MalformedError: the vectors have another length.
        """
        params = self.params
        if vectors.ndim != 2 or vectors.shape[1] != params.degree or vectors.dtype != np.int64:
            raise MalformedError(f"vectors of {vectors.shape} ({vectors.dtype}), expected (K, {params.degree}) of int64")
        count, width = len(vectors), self.blocks.shape[-1]
        weights = np.ascontiguousarray(split_scalars(vectors, params).T).reshape(-1, width, 2 * count)
        buffer = np.empty((self.count, width), dtype=np.float64)
        out = np.zeros((params.limbs, self.count, count), dtype=np.int64)
        group = MAX_SUM // width
        for limb, prime in enumerate(params.primes):
            for first in range(0, len(weights), group):
                sums = np.zeros((2, self.count, 2 * count), dtype=np.float64)
                for number in range(first, min(first + group, len(weights))):
                    for half in range(2):
                        np.copyto(buffer, self.blocks[limb, number, half])
                        sums[half] += buffer @ weights[number]
                high, low = sums
                out[limb] += _join(high[:, :count], low[:, :count], high[:, count:], low[:, count:], prime)
            reduce(out[limb], prime)
            canonical(out[limb], prime)
        return np.ascontiguousarray(out.transpose(2, 1, 0)).view(np.uint64)


class RowsBuilder:
    """Takes polynomials one after another, so that they need not all be in memory twice."""

    def __init__(self, count: int, params: HeParams = PARAMS) -> None:
        """Raises LimitError: more than 2048, the most that one exact sum takes."""
        if not 1 <= count <= MAX_SUM:
            raise LimitError(f"{count} rows, from 1 to {MAX_SUM}")
        width = min(_WIDTH, params.degree)
        self._params, self._filled = params, 0
        self._blocks = np.empty((params.limbs, params.degree // width, 2, count, width), dtype=np.int32)

    def add(self, polynomial: Residues) -> None:
        """One polynomial (L, N), whose residues have been checked."""
        cut = polynomial.view(np.int64).reshape(self._params.limbs, -1, self._blocks.shape[-1])
        self._blocks[:, :, 0, self._filled] = cut >> LIMB_BITS
        self._blocks[:, :, 1, self._filled] = cut & ((1 << LIMB_BITS) - 1)
        self._filled += 1

    def rows(self) -> Rows:
        """All of them. Raises MalformedError: fewer were added than announced."""
        if self._filled != self._blocks.shape[3]:
            raise MalformedError(f"{self._filled} rows, {self._blocks.shape[3]} were announced")
        return Rows(self._blocks, self._params)


def _join(high_high: Floats, high_low: Floats, low_high: Floats, low_low: Floats, prime: int) -> Ints:
    """``2^42 hh + 2^17 hl + 2^25 lh + ll`` modulo p in (-p, p), for exact integers below 2^53 (scalar's half, residue's half).

    The quotient by p is below 2^46 and its float64 estimate off by less than 1/2 + 2^-6, so the true remainder is below p and
    arithmetic modulo 2^64 finds it.
    """
    quotient = high_high * (2.0 ** (SCALAR_BITS + LIMB_BITS) / prime)
    quotient += high_low * (2.0**SCALAR_BITS / prime)
    quotient += low_high * (2.0**LIMB_BITS / prime)
    quotient += low_low * (1.0 / prime)
    np.rint(quotient, out=quotient)
    total = high_high.astype(np.int64) << SCALAR_BITS
    total += low_high.astype(np.int64)
    total <<= LIMB_BITS
    total += high_low.astype(np.int64) << SCALAR_BITS
    total += low_low.astype(np.int64)
    total -= quotient.astype(np.int64) * prime
    return total
