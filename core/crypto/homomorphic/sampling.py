"""Random polynomials from keyed streams: uniform, ternary, and centred binomial.

A stream is AES-256 in counter mode under a key that SHA-256 derives from a label, the parameters and the caller's seed or
context. What is drawn is a function of those bytes alone, the same on every machine.
"""

from __future__ import annotations

import hashlib

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from core.crypto.homomorphic.params import HeParams, Ints, Residues

__all__ = ["Stream", "binomial", "expand_uniform", "ternary", "uniform"]

LABEL_PUBLIC = b"pofl/he/public-polynomial/1"
_COIN_BITS = 21
_COIN_MASK = np.uint64((1 << _COIN_BITS) - 1)


class Stream:
    """Unbounded pseudorandom bytes from a label and a secret or public key of any length."""

    def __init__(self, label: bytes, key: bytes, index: int, params: HeParams) -> None:
        parts = [label, key, index.to_bytes(8, "big"), params.degree.to_bytes(4, "big")]
        parts += [prime.to_bytes(8, "big") for prime in params.primes]
        digest = hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).digest()
        self._encryptor = Cipher(AES256(digest), CTR(bytes(16))).encryptor()

    def bytes(self, count: int) -> NDArray[np.uint8]:
        return np.frombuffer(self._encryptor.update(bytes(count)), dtype=np.uint8)

    def words(self, count: int) -> NDArray[np.uint64]:
        return self.bytes(8 * count).view("<u8").astype(np.uint64, copy=False)


def uniform(stream: Stream, params: HeParams) -> Residues:
    """One polynomial uniform modulo q, shape (L, N).

    A candidate is the low 50 bits of a little-endian 64-bit word; limb-major, L N words first. One that is not below its
    prime (1 of 7 x 10^8) is replaced by the next words of the stream, positions in order.
    """
    words = stream.words(params.limbs * params.degree).reshape(params.limbs, params.degree)
    out = np.empty_like(words)
    for limb, prime in enumerate(params.primes):
        mask = np.uint64((1 << prime.bit_length()) - 1)
        np.bitwise_and(words[limb], mask, out=out[limb])
    for limb, prime in enumerate(params.primes):
        mask = np.uint64((1 << prime.bit_length()) - 1)
        if int(out[limb].max()) >= prime:
            for position in np.flatnonzero(out[limb] >= np.uint64(prime)):
                while int(out[limb, position]) >= prime:
                    out[limb, position] = stream.words(1)[0] & mask
    return out


def expand_uniform(params: HeParams, context: bytes, count: int, start: int = 0) -> Residues:
    """Public polynomials ``start`` to ``start + count - 1`` of a context, uniform modulo q: shape (count, L, N).

    The context names chain, task, kind and session, so that nobody chooses a ``c1`` and none is used twice.
    """
    out = np.empty((count, params.limbs, params.degree), dtype=np.uint64)
    for position in range(count):
        out[position] = uniform(Stream(LABEL_PUBLIC, context, start + position, params), params)
    return out


def binomial(stream: Stream, degree: int) -> Ints:
    """Centred binomial errors in [-21, 21], shape (N,), one 64-bit word each."""
    words = stream.words(degree)
    heads = np.bitwise_count(words & _COIN_MASK).astype(np.int64)
    tails = np.bitwise_count((words >> np.uint64(_COIN_BITS)) & _COIN_MASK).astype(np.int64)
    errors: Ints = heads - tails
    return errors


def ternary(stream: Stream, degree: int) -> Ints:
    """Uniform over {-1, 0, 1}, shape (N,): bytes below 255, modulo 3, in the order of the stream."""
    kept = np.empty(0, dtype=np.uint8)
    while kept.size < degree:
        fresh = stream.bytes(degree)
        kept = np.concatenate([kept, fresh[fresh < 255]])
    return (kept[:degree] % 3).astype(np.int64) - 1
