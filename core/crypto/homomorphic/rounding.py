"""Exact passage between Z_t and Z_q: round(q m / t) and round(t x / q), on residues.

With ``x = sum_i y_i q/p_i - k q`` and ``y_i = x_i (q/p_i)^-1 mod p_i``, modulo t

    round(t x / q) = round(sum_i t y_i / p_i),

so each limb gives an exact integer part and an exact remainder; only the sum of L fractions is taken in float64. Where that
sum is closer to a half than float64 can tell, the coefficient is done again in integers.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from core.crypto.homomorphic.modular import canonical, mul_const
from core.crypto.homomorphic.params import PARAMS, HeParams, Ints, Residues

__all__ = ["compose", "scale_down", "scale_down_exact", "scale_up"]

_DOUBT = 2.0**-40
"""The sum of three float64 fractions is off by less than 2^-50."""


def scale_up(plain: Ints, params: HeParams = PARAMS) -> Residues:
    """``round(q m / t)`` modulo each prime: (..., N) in [0, t) to (..., L, N)."""
    t = params.plain_modulus
    delta, rest = divmod(params.modulus, t)
    # round(rest m / t): the product may exceed 64 bits, its difference to quotient t does not.
    quotient = np.floor(plain.astype(np.float64) * (rest / t) + 0.5).astype(np.int64)
    remainder = (plain.view(np.uint64) * np.uint64(rest) + np.uint64(t // 2) - quotient.view(np.uint64) * np.uint64(t)).view(
        np.int64
    )
    quotient -= remainder < 0
    quotient += remainder >= t
    out = np.empty((*plain.shape[:-1], params.limbs, params.degree), dtype=np.int64)
    for limb, prime in enumerate(params.primes):
        factor = delta % prime
        factor = factor - prime if factor > prime // 2 else factor
        value = canonical(mul_const(plain, factor, prime), prime) + quotient
        out[..., limb, :] = value - prime * (value >= prime)
    return out.view(np.uint64)


@cache
def _crt_inverses(params: HeParams) -> tuple[int, ...]:
    return tuple(pow(params.modulus // prime, -1, prime) for prime in params.primes)


def scale_down(values: Residues, params: HeParams = PARAMS) -> Ints:
    """``round(t x / q) mod t``: (..., L, N) to (..., N) in [0, t). There are no ties, since q is odd."""
    t = params.plain_modulus
    signed = values.view(np.int64)
    shape = (*values.shape[:-2], values.shape[-1])
    whole = np.zeros(shape, dtype=np.int64)
    fraction = np.zeros(shape, dtype=np.float64)
    for limb, (prime, factor) in enumerate(zip(params.primes, _crt_inverses(params), strict=True)):
        centred = factor - prime if factor > prime // 2 else factor
        y = canonical(mul_const(signed[..., limb, :], centred, prime), prime)
        quotient = np.floor(y.astype(np.float64) * (t / prime)).astype(np.int64)
        remainder = (y.view(np.uint64) * np.uint64(t) - quotient.view(np.uint64) * np.uint64(prime)).view(np.int64)
        low, high = remainder < 0, remainder >= prime
        quotient += high.astype(np.int64) - low
        remainder += prime * (low.astype(np.int64) - high)
        whole += quotient
        fraction += remainder / prime
    nearest = np.floor(fraction + 0.5)
    whole += nearest.astype(np.int64)
    result = np.remainder(whole, t)
    doubtful = np.abs(np.abs(fraction - nearest) - 0.5) < _DOUBT
    for position in zip(*np.nonzero(doubtful), strict=True):
        limbs = values[(*position[:-1], slice(None), position[-1])]
        result[position] = scale_down_exact(compose([int(limb) for limb in limbs], params), params)
    return result


def scale_down_exact(value: int, params: HeParams = PARAMS) -> int:
    """``round(t x / q) mod t`` of one integer."""
    q, t = params.modulus, params.plain_modulus
    return (2 * t * value + q) // (2 * q) % t


def compose(limbs: list[int], params: HeParams = PARAMS) -> int:
    """The integer in [0, q) with these residues (Chinese remainders)."""
    q = params.modulus
    total = 0
    for limb, prime, factor in zip(limbs, params.primes, _crt_inverses(params), strict=True):
        total += limb * factor % prime * (q // prime)
    return total % q
