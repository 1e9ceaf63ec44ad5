"""Exact arithmetic modulo primes of at most 50 bits, on arrays of 64-bit integers.

The product of two residues does not fit 64 bits. The quotient by p is estimated in float64, and ``a b - quotient p`` is
then computed modulo 2^64, where it is exact because the true remainder is small. The estimate is off by less than one,
whatever the rounding, so the results are the same on every machine.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.crypto.homomorphic.params import PARAMS, HeParams, Ints, Residues
from core.errors import MalformedError

__all__ = [
    "add", "sub", "negate", "check_residues", "check_plain", "centre", "canonical", "mul_const", "mul_mod", "primes_column",
]  # fmt: skip


def primes_column(params: HeParams) -> Ints:
    """The primes as shape (L, 1), to go with arrays of shape (..., L, N)."""
    return np.array(params.primes, dtype=np.int64)[:, None]


def check_residues(array: Residues, params: HeParams = PARAMS) -> None:
    """Require shape (..., L, N), type uint64, and every entry less than its prime.

    Raises:
        MalformedError: naming the first limb with a residue out of range.
    """
    if array.dtype != np.uint64 or array.shape[-2:] != (params.limbs, params.degree):
        raise MalformedError(
            f"residues have shape {array.shape} of {array.dtype}, expected (..., {params.limbs}, {params.degree}) of uint64"
        )
    for limb, prime in enumerate(params.primes):
        part = array[..., limb, :]
        if part.size and int(part.max()) >= prime:
            raise MalformedError(f"a residue {int(part.max())} is not below its prime {prime}", limb=limb)


def check_plain(plain: Ints, params: HeParams = PARAMS) -> None:
    """Require shape (..., N) of int64 in [0, t).

    Raises:
        MalformedError
    """
    if plain.dtype != np.int64 or plain.shape[-1:] != (params.degree,):
        raise MalformedError(f"plaintexts have shape {plain.shape} of {plain.dtype}, expected (..., {params.degree}) of int64")
    if plain.size and (int(plain.min()) < 0 or int(plain.max()) >= params.plain_modulus):
        raise MalformedError(f"a plaintext coefficient is outside [0, {params.plain_modulus})")


def add(left: Residues, right: Residues, params: HeParams = PARAMS) -> Residues:
    """``left + right`` modulo each prime; shapes broadcast."""
    total = left.astype(np.int64) + right.view(np.int64)
    total -= primes_column(params)
    total += (total >> 63) & primes_column(params)
    return total.view(np.uint64)


def sub(left: Residues, right: Residues, params: HeParams = PARAMS) -> Residues:
    """``left - right`` modulo each prime; shapes broadcast."""
    total = left.astype(np.int64) - right.view(np.int64)
    total += (total >> 63) & primes_column(params)
    return total.view(np.uint64)


def negate(value: Residues, params: HeParams = PARAMS) -> Residues:
    """``-value`` modulo each prime."""
    return sub(np.zeros_like(value), value, params)


def centre(values: Ints, modulus: int) -> Ints:
    """Representatives in [-m/2, m/2] of integers of any sign below 2^62, for odd m of at least 2^20."""
    quotient = np.rint(values.astype(np.float64) * (1.0 / modulus)).astype(np.int64)
    centred: Ints = values - quotient * modulus
    centred -= modulus * (centred > modulus // 2)
    centred += modulus * (centred < -(modulus // 2))
    return centred


def canonical(values: Ints, prime: int) -> Ints:
    """[0, p) from (-p, p), in place."""
    values += (values >> 63) & prime
    return values


def mul_const(values: Ints, factor: int, prime: int) -> Ints:
    """``values * factor`` modulo p in (-p, p), for |values| < 2^53 and |factor| <= p/2."""
    quotient = np.rint(values.astype(np.float64) * (factor / prime)).astype(np.int64)
    return values * np.int64(factor) - quotient * np.int64(prime)


def mul_mod(left: Ints, right: Ints, prime: int) -> Ints:
    """``left * right`` modulo p in (-p, p), for |left| <= p and |right| <= p."""
    ratio: NDArray[np.float64] = left.astype(np.float64) * right.astype(np.float64) * (1.0 / prime)
    quotient = np.rint(ratio).astype(np.int64)
    return left * right - quotient * np.int64(prime)
