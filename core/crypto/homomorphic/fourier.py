"""Exact products of residues with small polynomials by a floating-point Fourier transform.

Most products of the protocol have one small factor: the ternary secret of an encryption, the ternary key of a decryption, the
zeros and ones that choose a label. For those a complex transform of length N/2 in numpy's compiled library takes a thirtieth
of what the number-theoretic transform (core.crypto.homomorphic.ntt) takes in numpy.

``R[X]/(X^N + 1)`` is ``C[X]/(X^(N/2) - i)`` by ``X^(N/2) = i``: coefficient n + N/2 becomes the imaginary part of
coefficient n, and after the substitution ``X -> ζ X`` with ``ζ = exp(iπ/N)`` products there are cyclic.

The results are integers, rounded, and the same on every machine. Residues are cut into centred limbs of 25 bits, so for a
factor of entries at most ``b`` the norms of both are at most ``2^6.5 b`` and ``2^30.5``. With ε = 2^-53, three transforms with
roots right to ε cost ``155 ε`` of their product (C. Percival, Rapid multiplication modulo the sum and difference of highly
composite numbers, Math. Comp. 72, 2003, theorem 5.1, n = 12); three times ``ζ^n``, of which numpy's ``exp`` of a rounded
argument is right to 3 ε, cost another ``3 (√5 + 3) ε < 16 ε``. So the error of one product is below
``2^37 b 171 ε < 2^-8.5 b``, of a sum of ``MAX_TERMS`` with its additions below 2^-3.8, a seventh of what rounding takes.
``Product.residues`` checks the distance from the integers all the same: a platform whose transform is worse than the theorem
ends in an error and not in a wrong verdict.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.crypto.homomorphic.params import PARAMS, HeParams, Ints, Residues
from core.errors import InternalError, LimitError, MalformedError

__all__ = ["MAX_TERMS", "Product", "Spectra", "small_spectra", "spectra"]

Spectra = NDArray[np.complex128]
"""Of residues: shape (..., L, 2, N/2), the low limb first. Of small polynomials: (..., N/2)."""

MAX_TERMS: Final = 25
"""Products of entries at most 1 in one sum."""
_LIMB_BITS: Final = 25
_LARGEST_DEGREE: Final = 8192
_TOLERANCE: Final = 0.125


@cache
def _twist(degree: int) -> Spectra:
    """``ζ^n`` for n < N/2."""
    if degree & (degree - 1) or not 4 <= degree <= _LARGEST_DEGREE:
        raise ValueError(f"degree {degree}: a power of two from 4 to {_LARGEST_DEGREE} is needed")
    twist: Spectra = np.exp(1j * np.pi * np.arange(degree // 2) / degree)
    twist.setflags(write=False)
    return twist


def _transform(values: NDArray[np.float64]) -> Spectra:
    """(..., N) to (..., N/2)."""
    half = values.shape[-1] // 2
    folded = np.empty((*values.shape[:-1], half), dtype=np.complex128)
    folded.real, folded.imag = values[..., :half], values[..., half:]
    folded *= _twist(values.shape[-1])
    return np.fft.fft(folded, out=folded)


def spectra(residues: Residues, params: HeParams = PARAMS) -> Spectra:
    """(..., L, N) residues, each below its prime, to (..., L, 2, N/2)."""
    signed = residues.view(np.int64)
    out = np.empty((*signed.shape[:-1], 2, signed.shape[-1]), dtype=np.float64)
    half = 1 << (_LIMB_BITS - 1)
    for limb, prime in enumerate(params.primes):
        centred = signed[..., limb, :] - prime * (signed[..., limb, :] > prime // 2)
        low = ((centred + half) & (2 * half - 1)) - half
        out[..., limb, 0, :] = low
        out[..., limb, 1, :] = (centred - low) >> _LIMB_BITS
    return _transform(out)


def small_spectra(values: Ints) -> Spectra:
    """(..., N) integers in {-1, 0, 1} to (..., N/2).

    Raises:
        MalformedError: an entry beyond 1, for which the bound on the error was not made.
    """
    if values.size and not -1 <= int(values.min()) <= int(values.max()) <= 1:
        raise MalformedError(f"entries from {int(values.min())} to {int(values.max())}, small ones are -1, 0 and 1")
    return _transform(values.astype(np.float64))


class Product:
    """A sum of products while it is being built."""

    def __init__(self, params: HeParams = PARAMS) -> None:
        self._params, self._terms = params, 0
        self._sum = np.zeros((params.limbs, 2, params.degree // 2), dtype=np.complex128)

    def add(self, residues: Spectra, small: Spectra) -> Product:
        """Adds ``residues * small``: (L, 2, N/2) and (N/2,). Raises LimitError after MAX_TERMS terms."""
        if self._terms == MAX_TERMS:
            raise LimitError(f"{MAX_TERMS} products in one sum are the most that is exact")
        self._terms += 1
        self._sum += residues * small
        return self

    def residues(self) -> Residues:
        """The sum modulo each prime, (L, N).

        Raises:
            InternalError: the transform of this platform is not exact enough to round. Nobody else is to blame for that.
        """
        params = self._params
        twisted = np.fft.ifft(self._sum) * np.conj(_twist(params.degree))
        values = np.concatenate([twisted.real, twisted.imag], axis=-1)
        whole = np.rint(values)
        values -= whole
        off = float(max(values.max(), -values.min()))
        if not off < _TOLERANCE:
            raise InternalError(f"this platform's Fourier transform is off by {off:.3g}: products cannot be rounded exactly")
        # |whole| < 2^43: the high limb's remainder times 2^25 is below 2^63.
        out = whole.astype(np.int64)
        total = np.empty((params.limbs, params.degree), dtype=np.int64)
        for limb, prime in enumerate(params.primes):
            low, high = out[limb]
            np.remainder(_shift(high, prime) + low, prime, out=total[limb])
        return total.view(np.uint64)


def _shift(high: Ints, prime: int) -> Ints:
    """``2^25 high`` modulo p within p of zero, for |high| < 2^43."""
    quotient = np.rint(high.astype(np.float64) * (2.0**_LIMB_BITS / prime)).astype(np.int64)
    shifted: Ints = (high << _LIMB_BITS) - quotient * prime
    return shifted
