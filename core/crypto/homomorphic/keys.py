"""The requester's keys. SEAL's key generator makes the secret; the public polynomial ``a`` is chosen by nobody.

``a = expand_uniform(a_context)`` with a context made of chain and task, and ``b = -a s + e``. Only ``b`` travels. A requester
who could choose ``a`` would read every multiplier (with ``a = 1``), so a PublicKey has no field for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated

import numpy as np

from core.codec import Var, decode, encode
from core.crypto.homomorphic.fourier import Product, Spectra, small_spectra, spectra
from core.crypto.homomorphic.modular import add, check_residues, negate
from core.crypto.homomorphic.params import PARAMS, HeParams, Ints, Residues
from core.crypto.homomorphic.sampling import Stream, binomial, expand_uniform
from core.crypto.homomorphic.seal import sample_secret
from core.crypto.homomorphic.wire import pack, unpack
from core.errors import MalformedError
from core.ports import Rng, SystemRng

__all__ = ["PublicKey", "SecretKey", "generate_keys", "public_key", "small_residues"]

LABEL_KEY_ERROR = b"pofl/he/key-error/1"
_CONTEXT_LIMIT = 1024


@dataclass(frozen=True, eq=False)
class PublicKey:
    """``b`` of shape (L, N), and the context from which everyone expands ``a``."""

    params: HeParams
    a_context: bytes
    b: Residues

    def __post_init__(self) -> None:
        if len(self.a_context) > _CONTEXT_LIMIT:
            raise MalformedError(f"a context of {len(self.a_context)} bytes, at most {_CONTEXT_LIMIT}")
        if self.b.ndim != 2:
            raise MalformedError(f"a public key has shape {self.b.shape}, expected (L, N)")
        check_residues(self.b, self.params)
        if not self.b.any():
            raise MalformedError("the public key is zero")

    @cached_property
    def a_spectra(self) -> Spectra:
        """Shape (L, 2, N/2)."""
        return spectra(expand_uniform(self.params, self.a_context, 1)[0], self.params)

    @cached_property
    def b_spectra(self) -> Spectra:
        """Shape (L, 2, N/2)."""
        return spectra(self.b, self.params)

    def to_bytes(self) -> bytes:
        """``b`` in wire form; the context is known to the reader."""
        return pack(self.b, self.params)

    @classmethod
    def from_bytes(cls, data: bytes, a_context: bytes, params: HeParams = PARAMS) -> PublicKey:
        """A peer's key, checked. ``a_context`` is the reader's own knowledge of chain and task, never the peer's."""
        return cls(params, a_context, unpack(data, 1, params)[0])


@dataclass(frozen=True, slots=True)
class _StoredKey:
    a_context: Annotated[bytes, Var(_CONTEXT_LIMIT)]
    secret: Annotated[bytes, Var(1 << 16)]
    b: Annotated[bytes, Var(1 << 20)]


@dataclass(frozen=True, eq=False)
class SecretKey:
    """The ternary secret ``s`` of shape (N,) with its public half. Never shown, never sent."""

    params: HeParams
    a_context: bytes
    s: Ints = field(repr=False)
    b: Residues = field(repr=False)

    @cached_property
    def s_spectra(self) -> Spectra:
        """Shape (N/2,)."""
        return small_spectra(self.s)

    def to_bytes(self) -> bytes:
        """For the requester's own disk only."""
        return encode(_StoredKey(self.a_context, (self.s + 1).astype(np.uint8).tobytes(), pack(self.b, self.params)))

    @classmethod
    def from_bytes(cls, data: bytes, params: HeParams = PARAMS) -> SecretKey:
        """Raises MalformedError or LimitError where the bytes are not what ``to_bytes`` wrote."""
        stored = decode(_StoredKey, data)
        digits = np.frombuffer(stored.secret, dtype=np.uint8)
        if digits.shape != (params.degree,) or int(digits.max()) > 2:
            raise MalformedError(f"a secret key has {params.degree} ternary digits")
        return cls(params, stored.a_context, digits.astype(np.int64) - 1, unpack(stored.b, 1, params)[0])


def small_residues(values: Ints, params: HeParams) -> Residues:
    """(..., N) of small signed integers as (..., L, N)."""
    primes = np.array(params.primes, dtype=np.int64)[:, None]
    spread = values[..., None, :]
    return (spread + primes * (spread < 0)).view(np.uint64)


def generate_keys(params: HeParams, a_context: bytes, rng: Rng | None = None) -> SecretKey:
    """A fresh key for one task: ``s`` from SEAL's key generator, ``b = -a s + e``.

    Args:
        a_context: binds chain and task; the public polynomial ``a`` is a function of it.
        rng: the coins of the error ``e``; the operating system's when left out.
    """
    seed = (rng or SystemRng()).bytes(32)
    s = sample_secret(params)
    error = binomial(Stream(LABEL_KEY_ERROR, seed, 0, params), params.degree)
    a = expand_uniform(params, a_context, 1)[0]
    product = Product(params).add(spectra(a, params), small_spectra(s)).residues()
    b = add(negate(product, params), small_residues(error, params), params)
    return SecretKey(params, a_context, s, b)


def public_key(sk: SecretKey) -> PublicKey:
    """The half that is published."""
    return PublicKey(sk.params, sk.a_context, sk.b)
