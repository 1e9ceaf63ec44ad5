"""Linear combinations of ciphertexts as one exact matrix product (Bae, Cheon, Hanrot, Park, Stehle, CRYPTO 2024).

Scalars of 33 bits are split into two centred limbs of 17 bits, residues into two limbs of 25 bits. A sum of 2048 products of
limbs stays below 2^52, so that float64 BLAS computes it exactly, whatever the order of summation, the number of threads
or the use of fused operations. What a weight is makes no difference to the time it takes: zero is a weight like another.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from core.crypto.homomorphic.modular import canonical, centre, mul_const, mul_mod
from core.crypto.homomorphic.ntt import from_ntt, reduce, to_ntt
from core.crypto.homomorphic.params import PARAMS, HeParams, Ints, Residues
from core.errors import LimitError, MalformedError

__all__ = [
    "combine",
    "combine_reference",
    "dot_weights",
    "linear_form",
    "linear_forms",
    "multiply_poly",
    "multiply_poly_reference",
    "reverse",
    "split_scalars",
]

Floats = NDArray[np.float64]
SCALAR_BITS, LIMB_BITS = 17, 25
MAX_SUM = 2048
"""Products of a scalar's half and a residue's limb that one float64 sum holds exactly."""
_COLUMNS = 512
_UNREDUCED = 4
"""Products of up to p/2 + 1 each that are added up before a reduction."""


def combine(matrix: Ints, residues: Residues, params: HeParams = PARAMS) -> Residues:
    """``sum_m matrix[k, m] * residues[m]``: (K, M) and (M, L, N) to (K, L, N).

    The matrix is taken modulo t and centred, so that the noise grows as ``params.noise_after_products`` says.

    Raises:
        MalformedError: the shapes do not match.
    """
    _check_shapes(matrix, residues, params)
    weights = split_scalars(matrix, params)
    count, terms = matrix.shape
    out = np.zeros((count, params.limbs, params.degree), dtype=np.int64)
    for top in range(0, terms, MAX_SUM):
        rows = slice(top, min(top + MAX_SUM, terms))
        part = np.ascontiguousarray(weights[:, rows])
        limbs = np.empty((part.shape[1], 2 * min(_COLUMNS, params.degree)), dtype=np.float64)
        for limb, prime in enumerate(params.primes):
            for left in range(0, params.degree, _COLUMNS):
                columns = slice(left, min(left + _COLUMNS, params.degree))
                out[:, limb, columns] += _block(part, residues[rows, limb, columns], limbs, prime)
    for limb, prime in enumerate(params.primes):
        reduce(out[:, limb], prime)
        canonical(out[:, limb], prime)
    return out.view(np.uint64)


def _block(weights: Floats, block: Residues, limbs: Floats, prime: int) -> Ints:
    """One product of (2K, M) with (M, width), modulo p in (-p, p)."""
    width = block.shape[1]
    np.copyto(limbs[:, :width], block >> np.uint64(LIMB_BITS), casting="unsafe")
    np.copyto(limbs[:, width : 2 * width], block & np.uint64((1 << LIMB_BITS) - 1), casting="unsafe")
    product = (weights @ limbs[:, : 2 * width]).astype(np.int64)
    count = weights.shape[0] // 2
    high, low = product[:count], product[count:]
    total = mul_const(high[:, :width], 1 << LIMB_BITS, prime) + high[:, width:]
    total = mul_const(total, 1 << SCALAR_BITS, prime) + low[:, width:]
    total += mul_const(low[:, :width], 1 << LIMB_BITS, prime)
    reduce(total, prime)
    return total


def split_scalars(scalars: Ints, params: HeParams) -> Floats:
    """(K, n) of any integers, centred modulo t, to halves (2K, n): all high ones, then all low ones."""
    signed = centre(scalars, params.plain_modulus)
    low = ((signed + (1 << (SCALAR_BITS - 1))) & ((1 << SCALAR_BITS) - 1)) - (1 << (SCALAR_BITS - 1))
    return np.concatenate([(signed - low) >> SCALAR_BITS, low]).astype(np.float64)


def combine_reference(matrix: Ints, residues: Residues, params: HeParams = PARAMS) -> Residues:
    """The readable twin of ``combine``, in Python integers."""
    _check_shapes(matrix, residues, params)
    scalars = centre(matrix, params.plain_modulus).astype(object)
    out = np.empty((matrix.shape[0], params.limbs, params.degree), dtype=np.uint64)
    for limb, prime in enumerate(params.primes):
        out[:, limb] = (scalars @ residues[:, limb].astype(object) % prime).astype(np.uint64)
    return out


def _check_shapes(matrix: Ints, residues: Residues, params: HeParams) -> None:
    expected = (matrix.shape[-1], params.limbs, params.degree)
    if matrix.ndim != 2 or matrix.dtype != np.int64 or residues.shape != expected or residues.dtype != np.uint64:
        raise MalformedError(
            f"a matrix of {matrix.shape} ({matrix.dtype}) does not go with residues of {residues.shape} ({residues.dtype})"
        )
    if matrix.shape[-1] > 1 << 20:
        raise LimitError(f"{matrix.shape[-1]} terms, at most {1 << 20}")


def dot_weights(weights: Ints, params: HeParams = PARAMS) -> Ints:
    """``w(X^-1) mod X^N + 1``: (..., N) of any integers to (..., N) in [0, t).

    Coefficient 0 of ``m * dot_weights(w)`` is ``sum_n w_n m_n``.
    """
    out: Ints = np.remainder(reverse(np.remainder(weights, params.plain_modulus)), params.plain_modulus)
    return out


def multiply_poly(residues: Residues, poly: Ints, params: HeParams = PARAMS) -> Residues:
    """``residues * poly`` modulo X^N + 1 and each prime: (..., L, N) and (..., N), leading axes broadcast.

    The polynomial is taken modulo t and centred. A zero polynomial is a polynomial like another.
    """
    if residues.shape[-2:] != (params.limbs, params.degree) or poly.shape[-1:] != (params.degree,):
        raise MalformedError(f"residues of {residues.shape} do not go with a polynomial of {poly.shape}")
    lead = np.broadcast_shapes(residues.shape[:-2], poly.shape[:-1])
    shape = (params.limbs, params.degree)
    left = to_ntt(np.ascontiguousarray(residues).reshape(-1, *shape), params).reshape(*residues.shape[:-2], *shape)
    centred = centre(poly, params.plain_modulus).reshape(-1, params.degree)
    right = to_ntt(centred, params).reshape(*poly.shape[:-1], *shape)
    product = multiply_ntt(left, right, params)
    return from_ntt(product.reshape(-1, *shape), params).reshape(*lead, *shape)


def linear_form(c0: Residues, c1: Residues, weights: Ints, params: HeParams = PARAMS) -> tuple[Residues, Residues]:
    """One number out of M ciphertexts: ``sum_m sum_n weights[m, n] coefficient[m, n]`` (design: verification, section 4).

    Args:
        c0, c1: shape (M, L, N).
        weights: shape (M, N), any integers; taken modulo t.

    Returns:
        Coefficient 0 of c0's half, shape (L,), and all of c1's half, shape (L, N), of
        ``sum_m ct_m * dot_weights(weights_m)``. The other coefficients of c0's half are never needed.
    """
    heads, tails = linear_forms(c0, c1, weights[None], params)
    return heads[0], tails[0]


def linear_forms(c0: Residues, c1: Residues, weights: Ints, params: HeParams = PARAMS) -> tuple[Residues, Residues]:
    """R forms over the same M ciphertexts, each ``c1`` transformed once: weights (R, M, N) to (R, L) and (R, L, N)."""
    if c0.shape != c1.shape or c0.ndim != 3 or weights.shape[1:] != (c0.shape[0], params.degree):
        raise MalformedError(f"ciphertexts of {c0.shape} and {c1.shape} do not go with weights of {weights.shape}")
    runs = weights.shape[0]
    heads = np.zeros((runs, params.limbs), dtype=np.int64)
    total = np.zeros((runs, params.limbs, params.degree), dtype=np.int64)
    for i in range(c0.shape[0]):
        transformed = to_ntt(c1[i : i + 1], params)
        for run in range(runs):
            centred = centre(weights[run, i], params.plain_modulus)
            for limb, prime in enumerate(params.primes):
                products = mul_mod(c0[i, limb].view(np.int64), centred, prime)
                heads[run, limb] = (int(heads[run, limb]) + int(products.sum())) % prime
            poly = to_ntt(reverse(centred)[None], params)
            total[run] += multiply_ntt(transformed, poly, params)[0]
        if i % _UNREDUCED == _UNREDUCED - 1:
            _reduce_limbs(total, params)
    _reduce_limbs(total, params)
    return heads.view(np.uint64), from_ntt(total, params)


def reverse(weights: Ints) -> Ints:
    """``w(X^-1)``, because ``X^-n = -X^(N-n)``."""
    out = np.empty_like(weights)
    out[..., 0] = weights[..., 0]
    out[..., 1:] = -weights[..., :0:-1]
    return out


def _reduce_limbs(values: Ints, params: HeParams) -> None:
    for limb, prime in enumerate(params.primes):
        reduce(values[:, limb], prime)


def multiply_ntt(left: Ints, right: Ints, params: HeParams) -> Ints:
    """Entrywise product of two transforms (..., L, N), entries in (-p, p)."""
    out = np.empty(np.broadcast_shapes(left.shape, right.shape), dtype=np.int64)
    for limb, prime in enumerate(params.primes):
        a, b = left[..., limb, :], right[..., limb, :]
        ratio = a.astype(np.float64) * b.astype(np.float64) * (1.0 / prime)
        out[..., limb, :] = a * b - np.rint(ratio).astype(np.int64) * np.int64(prime)
    return out


def multiply_poly_reference(residues: Residues, poly: Ints, params: HeParams = PARAMS) -> Residues:
    """The twin of ``multiply_poly`` for one ciphertext (L, N) and one polynomial (N,), by Kronecker substitution."""
    bits = 2 * 50 + params.degree.bit_length() + 1
    size = (bits + 7) // 8
    centred = centre(poly, params.plain_modulus)
    out = np.empty_like(residues)
    for limb, prime in enumerate(params.primes):
        factor = _to_big(np.remainder(centred, prime).tolist(), size)
        product = _to_big(residues[limb].tolist(), size) * factor
        digits = product.to_bytes(2 * size * params.degree, "little")
        values = [int.from_bytes(digits[i * size : (i + 1) * size], "little") for i in range(2 * params.degree)]
        folded = [(low - high) % prime for low, high in zip(values[: params.degree], values[params.degree :], strict=True)]
        out[limb] = np.array(folded, dtype=np.uint64)
    return out


def _to_big(values: list[int], size: int) -> int:
    return int.from_bytes(b"".join(value.to_bytes(size, "little") for value in values), "little")
