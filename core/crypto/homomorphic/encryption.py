"""Encrypt, mask, decrypt. Ciphertexts decrypt in SEAL, and SEAL's decrypt here (core.crypto.homomorphic.seal is the twin).

The fast path of decryption is numpy; the bridge to SEAL costs a file and a call for each coefficient. Both are exact and
tested to be equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from core.crypto.homomorphic.fourier import Product, small_spectra, spectra
from core.crypto.homomorphic.keys import PublicKey, SecretKey, small_residues
from core.crypto.homomorphic.modular import add, check_plain, check_residues, sub
from core.crypto.homomorphic.params import PARAMS, HeParams, Ints, Residues
from core.crypto.homomorphic.rounding import compose, scale_down, scale_up
from core.crypto.homomorphic.sampling import Stream, binomial, expand_uniform, ternary, uniform
from core.errors import MalformedError
from core.ports import Rng

__all__ = [
    "NumberMask", "add_plain", "decrypt", "encrypt_public", "encrypt_symmetric", "mask_for_decryption", "measure_noise",
    "number_mask", "rerandomise",
]  # fmt: skip

LABEL_SYMMETRIC = b"pofl/he/symmetric-error/1"
LABEL_PUBLIC_ENCRYPTION = b"pofl/he/public-encryption/1"
LABEL_MASK = b"pofl/he/decryption-mask/1"


def encrypt_symmetric(sk: SecretKey, context: bytes, plain: Ints, rng: Rng, start: int = 0) -> Residues:
    """``c0 = round(q m / t) + e - c1 s`` with the public ``c1 = expand_uniform(context)``: (count, N) to (count, L, N).

    Only ``c0`` travels. One context is used for one set of plaintexts, ever: a second set under the same ``c1`` would reveal
    the differences. Noise: ``params.noise_fresh``.

    Raises:
        MalformedError: a coefficient outside [0, t), or another shape.
    """
    params = sk.params
    check_plain(plain, params)
    seed = rng.bytes(32)
    out = np.empty((plain.shape[0], params.limbs, params.degree), dtype=np.uint64)
    for i in range(plain.shape[0]):
        c1 = expand_uniform(params, context, 1, start + i)
        product = Product(params).add(spectra(c1[0], params), sk.s_spectra).residues()
        error = binomial(Stream(LABEL_SYMMETRIC, seed, i, params), params.degree)
        body = add(scale_up(plain[i], params), small_residues(error, params), params)
        out[i] = sub(body, product, params)
    return out


def encrypt_public(pk: PublicKey, plain: Ints, seed: bytes) -> tuple[Residues, Residues]:
    """``c0 = b u + e0 + round(q m / t)``, ``c1 = a u + e1``: (count, N) to two arrays (count, L, N).

    A function of its arguments bit for bit, so that whoever has seed and plaintexts can check a ciphertext by making it again.
    Noise: ``params.noise_fresh_public``.

    Raises:
        MalformedError: a coefficient outside [0, t), another shape, or a seed of fewer than 16 bytes.
    """
    params = pk.params
    check_plain(plain, params)
    if len(seed) < 16:
        raise MalformedError(f"a seed of {len(seed)} bytes, at least 16")
    c0 = np.empty((plain.shape[0], params.limbs, params.degree), dtype=np.uint64)
    c1 = np.empty_like(c0)
    for i in range(plain.shape[0]):
        stream = Stream(LABEL_PUBLIC_ENCRYPTION, seed, i, params)
        bu, c1[i] = _zero(pk, stream)
        error = small_residues(binomial(stream, params.degree), params)
        c0[i] = add(add(bu, error, params), scale_up(plain[i], params), params)
    return c0, c1


def _zero(pk: PublicKey, stream: Stream) -> tuple[Residues, Residues]:
    """``(b u, a u + e1)``, each (L, N); the error of the first half is the caller's affair."""
    params = pk.params
    u = small_spectra(ternary(stream, params.degree))
    e1 = small_residues(binomial(stream, params.degree), params)
    bu = Product(params).add(pk.b_spectra, u).residues()
    au = Product(params).add(pk.a_spectra, u).residues()
    return bu, add(au, e1, params)


def rerandomise(pk: PublicKey, c0: Residues, c1: Residues, rng: Rng) -> tuple[Residues, Residues, Residues]:
    """Masking of what goes to the holder of the key: (count, L, N) twice to ``(c0', c1', mask)``.

    ``c1' = c1 + a u + e1``, ``c0' = c0 + b u + mask``, with fresh ``u, e1`` and a mask uniform modulo q on every coefficient.
    ``c0'`` is then uniform whatever noise its maker planted, and ``c1'`` hides the combination by RLWE.
    """
    params = pk.params
    check_residues(c0, params)
    check_residues(c1, params)
    seed = rng.bytes(32)
    masks = np.empty_like(c0)
    out0, out1 = np.empty_like(c0), np.empty_like(c1)
    for i in range(c0.shape[0]):
        stream = Stream(LABEL_MASK, seed, i, params)
        bu, zero1 = _zero(pk, stream)
        masks[i] = uniform(stream, params)
        out0[i] = add(add(c0[i], bu, params), masks[i], params)
        out1[i] = add(c1[i], zero1, params)
    return out0, out1, masks


@dataclass(frozen=True, eq=False)
class NumberMask:
    """What hides one number from the holder of the key, for one use: as ``rerandomise``, of which only coefficient 0 of
    ``c0`` travels."""

    head: Residues
    """``(b u)_0 + mask``, shape (L,)."""
    tail: Residues
    """``a u + e1``, shape (L, N)."""
    mask: Residues
    """Uniform modulo q, shape (L,)."""


def number_mask(pk: PublicKey, rng: Rng) -> NumberMask:
    """Fresh ``u, e1`` and mask. It depends on nothing but the key, so it may be drawn before the number is known."""
    params = pk.params
    stream = Stream(LABEL_MASK, rng.bytes(32), 0, params)
    u = ternary(stream, params.degree)
    e1 = small_residues(binomial(stream, params.degree), params)
    au = Product(params).add(pk.a_spectra, small_spectra(u)).residues()
    mask = np.ascontiguousarray(uniform(stream, params)[:, 0])
    bu = np.array([product_head(limb, u) % prime for limb, prime in zip(pk.b, params.primes, strict=True)], dtype=np.uint64)
    head = add(bu[:, None], mask[:, None], params)[:, 0]
    return NumberMask(head, add(au, e1, params), mask)


def product_head(values: Residues, small: Ints) -> int:
    """Coefficient 0 of the product of (N,) residues and (N,) ternary integers: ``v_0 s_0 - sum_{n>0} v_n s_(N-n)``.

    Both halves of 25 bits stay far below 2^63.
    """
    folded = np.concatenate([small[:1], -small[:0:-1]])
    signed = values.view(np.int64)
    return (int((signed >> 25) @ folded) << 25) + int((signed & ((1 << 25) - 1)) @ folded)


def mask_for_decryption(pk: PublicKey, c0: Residues, c1: Residues, rng: Rng) -> tuple[Residues, Residues, Ints]:
    """Hide ``count`` plaintexts from the one who decrypts (design: verification, section 2).

    Returns ``(c0', c1', share)`` with ``share = round(t mask / q) mod t`` of shape (count, N), exactly, such that

        decrypt(c0', c1') = plaintext + share  (mod t).

    It is off by one where ``t mask / q`` lies within ``t noise / q`` of a rounding boundary: for a noise of 2^40 with a chance
    of about 2^-75 for each coefficient, for 2^90 of 2^-26.
    """
    out0, out1, masks = rerandomise(pk, c0, c1, rng)
    return out0, out1, scale_down(masks, pk.params)


def add_plain(c0: Residues, plain: Ints, params: HeParams = PARAMS) -> Residues:
    """``c0 + round(q m / t)``: adds plaintexts (..., N) in [0, t) to ciphertexts (..., L, N)."""
    check_plain(plain, params)
    return add(c0, scale_up(plain, params), params)


def _phase(sk: SecretKey, c0: Residues, c1: Residues) -> Residues:
    """``c0 + c1 s`` of shape (count, L, N)."""
    params = sk.params
    check_residues(c0, params)
    check_residues(c1, params)
    if c0.shape != c1.shape or c0.ndim != 3:
        raise MalformedError(f"ciphertext halves of shape {c0.shape} and {c1.shape}, expected (count, L, N) twice")
    if not c1.any(axis=(1, 2)).all():
        raise MalformedError("c1 is zero: a ciphertext that hides nothing")
    out = np.empty_like(c0)
    for i in range(c0.shape[0]):
        out[i] = Product(params).add(spectra(c1[i], params), sk.s_spectra).residues()
    return add(out, c0, params)


def decrypt(sk: SecretKey, c0: Residues, c1: Residues) -> Ints:
    """``round(t (c0 + c1 s) / q) mod t``: two arrays (count, L, N) to (count, N).

    Raises:
        MalformedError: a residue not below its prime, another shape, or a ``c1`` of zero.
    """
    return scale_down(_phase(sk, c0, c1), sk.params)


def measure_noise(sk: SecretKey, c0: Residues, c1: Residues) -> int:
    """The largest ``|c0 + c1 s - round(q m / t)|`` over all coefficients, ``m`` being what decrypts. For tests."""
    params = sk.params
    phase = _phase(sk, c0, c1)
    rest = sub(phase, scale_up(scale_down(phase, params), params), params)
    q = params.modulus
    values = (compose(column, params) for column in rest.swapaxes(1, 2).reshape(-1, params.limbs).tolist())
    return max(min(value, q - value) for value in values)
