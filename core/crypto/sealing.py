"""Sealing a message to a public key: HPKE (RFC 9180), base mode, one message per encapsulation.

Two suites, named by the number of their KEM in IANA's registry (``Suite``):

====== ============================================= =========== ======== ====================
number KEM, KDF, AEAD                                public key  overhead secret as long as
====== ============================================= =========== ======== ====================
0x0020 X25519, HKDF-SHA256, AES-128-GCM              32 bytes    48       X25519 holds
0x647a X25519 + ML-KEM-768 (X-Wing), HKDF-SHA256,    1216 bytes  1136     X25519 or ML-KEM-768
       ChaCha20-Poly1305                                                  holds
====== ============================================= =========== ======== ====================

A sealed message is ``enc ‖ ciphertext``: the encapsulated key, the ciphertext, 16 bytes of tag. It names no suite: who
opens knows which key it was sealed to, and the suite is part of that key. HPKE mixes the suite's number into its keys, so
what was sealed in one suite never opens in another.

The library's public interface has HPKE's ``info`` but not its ``aad``. With one message per encapsulation both bind
alike, so the two are framed together into ``info`` (docs/adr/0015). Nothing here says who sealed: sign what is inside.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from core.errors import CryptoError
from core.ports import Rng

__all__ = ["KEY_SIZE", "MAX_OVERHEAD", "MAX_PUBLIC_KEY", "OVERHEAD", "SealingKeyPair", "Suite", "open_", "seal", "suite_of"]

KEY_SIZE: Final = 32
"""Bytes of a private key in every suite, and of a public key of X25519."""
OVERHEAD: Final = 48
"""Bytes that a message sealed with X25519 has more than its plaintext."""


class Suite(IntEnum):
    """Which KEM, KDF and AEAD; the number is the KEM's in IANA's registry of HPKE."""

    X25519 = 0x0020
    HYBRID = 0x647A
    """X25519 and ML-KEM-768 together (draft-ietf-hpke-pq, draft-connolly-cfrg-xwing-kem): as strong as the stronger."""

    @property
    def public_key_size(self) -> int:
        return 1216 if self is Suite.HYBRID else KEY_SIZE

    @property
    def overhead(self) -> int:
        """Bytes that a sealed message has more than its plaintext."""
        return 1136 if self is Suite.HYBRID else OVERHEAD

    @property
    def label(self) -> str:
        """As configurations name it."""
        return self.name.lower()


MAX_PUBLIC_KEY: Final = max(suite.public_key_size for suite in Suite)
MAX_OVERHEAD: Final = max(suite.overhead for suite in Suite)

_HPKE: Final = {
    Suite.X25519: hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_128_GCM),
    Suite.HYBRID: hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305),
}
_DOMAIN = b"pofl/sealing/v1"
_MLKEM_PUBLIC: Final = 1184
_MLKEM_SEED: Final = 64


def suite_of(number: int) -> Suite:
    """Raises CryptoError for a number that no suite here has."""
    try:
        return Suite(number)
    except ValueError:
        known = ", ".join(f"{suite.label} ({suite:#06x})" for suite in Suite)
        raise CryptoError(f"sealing suite {number:#06x} is unknown here; known: {known}", suite=number) from None


@dataclass(frozen=True, slots=True)
class SealingKeyPair:
    """A key pair of one suite; the private half, 32 bytes in each, is never shown by ``repr``."""

    public_key: bytes
    private_key: bytes = field(repr=False)
    suite: Suite = Suite.X25519

    @classmethod
    def from_private(cls, private_key: bytes, suite: Suite = Suite.X25519) -> SealingKeyPair:
        """The key pair of a stored private key. Raises CryptoError unless it has 32 bytes."""
        if suite is Suite.X25519:
            public = _private(private_key).public_key().public_bytes_raw()
        else:
            kem, curve = _hybrid_halves(private_key)
            public = kem.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()
        return cls(public, private_key, suite)

    @classmethod
    def generate(cls, rng: Rng, suite: Suite = Suite.X25519) -> SealingKeyPair:
        return cls.from_private(rng.bytes(KEY_SIZE), suite)


def seal(public_key: bytes, plaintext: bytes, info: bytes, aad: bytes, suite: Suite = Suite.X25519) -> bytes:
    """``plaintext`` for the holder of the private key, bound to ``info`` (the purpose) and ``aad`` (the place).

    The encapsulation's randomness comes from the operating system through the library.

    Raises:
        CryptoError: the public key has another length, is a point of small order, or no ML-KEM key.
    """
    if len(public_key) != suite.public_key_size:
        raise CryptoError(
            f"a public key of suite {suite.label} has {suite.public_key_size} bytes, got {len(public_key)}",
            size=len(public_key),
        )
    try:
        return _HPKE[suite].encrypt(plaintext, _public(public_key, suite), _info(info, aad))
    except ValueError as error:
        raise CryptoError(f"cannot seal to public key {public_key[:32].hex()}: {error}", public_key=public_key) from None


def open_(private_key: bytes, sealed: bytes, info: bytes, aad: bytes, suite: Suite = Suite.X25519) -> bytes:
    """The plaintext of ``seal``.

    Raises:
        CryptoError: other key, suite, ``info`` or ``aad``, changed or truncated bytes. It does not say which.
    """
    key = _private(private_key) if suite is Suite.X25519 else hpke.MLKEM768X25519PrivateKey(*_hybrid_halves(private_key))
    if len(sealed) < suite.overhead:
        raise CryptoError(f"a sealed message has at least {suite.overhead} bytes, got {len(sealed)}", size=len(sealed))
    try:
        return _HPKE[suite].decrypt(sealed, key, _info(info, aad))
    except (InvalidTag, ValueError):
        raise CryptoError("the sealed message does not open: other key, other purpose or changed bytes") from None


def _public(public_key: bytes, suite: Suite) -> X25519PublicKey | hpke.MLKEM768X25519PublicKey:
    """Raises ValueError for what is no key."""
    if suite is Suite.X25519:
        return X25519PublicKey.from_public_bytes(public_key)
    return hpke.MLKEM768X25519PublicKey(
        MLKEM768PublicKey.from_public_bytes(public_key[:_MLKEM_PUBLIC]),
        X25519PublicKey.from_public_bytes(public_key[_MLKEM_PUBLIC:]),
    )


def _private(private_key: bytes) -> X25519PrivateKey:
    if len(private_key) != KEY_SIZE:
        raise CryptoError(f"a private key for sealing has {KEY_SIZE} bytes, got {len(private_key)}", size=len(private_key))
    return X25519PrivateKey.from_private_bytes(private_key)


def _hybrid_halves(private_key: bytes) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
    """X-Wing, section 5.2 (expandDecapsulationKey): 32 bytes become the ML-KEM seed and the X25519 key."""
    if len(private_key) != KEY_SIZE:
        raise CryptoError(f"a private key for sealing has {KEY_SIZE} bytes, got {len(private_key)}", size=len(private_key))
    expanded = hashlib.shake_256(private_key).digest(_MLKEM_SEED + KEY_SIZE)
    return (
        MLKEM768PrivateKey.from_seed_bytes(expanded[:_MLKEM_SEED]),
        X25519PrivateKey.from_private_bytes(expanded[_MLKEM_SEED:]),
    )


def _info(info: bytes, aad: bytes) -> bytes:
    return b"".join(len(part).to_bytes(8, "big") + part for part in (_DOMAIN, info, aad))
