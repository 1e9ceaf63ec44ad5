"""Sealing a message to a public key: HPKE (RFC 9180), base mode, one message per encapsulation.

Suite: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-128-GCM. A sealed message is ``enc ‖ ciphertext``: 32 bytes of
encapsulated key, the ciphertext, 16 bytes of tag.

The library's public interface has HPKE's ``info`` but not its ``aad``. With one message per encapsulation both bind
alike, so the two are framed together into ``info`` (docs/adr/0015). Nothing here says who sealed: sign what is inside.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from core.errors import CryptoError
from core.ports import Rng

__all__ = ["KEY_SIZE", "OVERHEAD", "SealingKeyPair", "open_", "seal"]

KEY_SIZE = 32
OVERHEAD = 48
"""Bytes that a sealed message has more than its plaintext."""

_SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_128_GCM)
_DOMAIN = b"pofl/sealing/v1"


@dataclass(frozen=True, slots=True)
class SealingKeyPair:
    """An X25519 key pair; the private half is never shown by ``repr``."""

    public_key: bytes
    private_key: bytes = field(repr=False)

    @classmethod
    def from_private(cls, private_key: bytes) -> SealingKeyPair:
        """The key pair of a stored private key. Raises CryptoError unless it has 32 bytes."""
        return cls(_private(private_key).public_key().public_bytes_raw(), private_key)

    @classmethod
    def generate(cls, rng: Rng) -> SealingKeyPair:
        return cls.from_private(rng.bytes(KEY_SIZE))


def seal(public_key: bytes, plaintext: bytes, info: bytes, aad: bytes) -> bytes:
    """``plaintext`` for the holder of the private key, bound to ``info`` (the purpose) and ``aad`` (the place).

    The encapsulation's randomness comes from the operating system through the library.

    Raises:
        CryptoError: the public key has another length, or is a point of small order.
    """
    if len(public_key) != KEY_SIZE:
        raise CryptoError(f"an X25519 public key has {KEY_SIZE} bytes, got {len(public_key)}", size=len(public_key))
    try:
        return _SUITE.encrypt(plaintext, X25519PublicKey.from_public_bytes(public_key), _info(info, aad))
    except ValueError as error:
        raise CryptoError(f"cannot seal to public key {public_key.hex()}: {error}", public_key=public_key) from None


def open_(private_key: bytes, sealed: bytes, info: bytes, aad: bytes) -> bytes:
    """The plaintext of ``seal``.

    Raises:
        CryptoError: other key, other ``info`` or ``aad``, changed or truncated bytes. It does not say which.
    """
    key = _private(private_key)
    if len(sealed) < OVERHEAD:
        raise CryptoError(f"a sealed message has at least {OVERHEAD} bytes, got {len(sealed)}", size=len(sealed))
    try:
        return _SUITE.decrypt(sealed, key, _info(info, aad))
    except (InvalidTag, ValueError):
        raise CryptoError("the sealed message does not open: other key, other purpose or changed bytes") from None


def _private(private_key: bytes) -> X25519PrivateKey:
    if len(private_key) != KEY_SIZE:
        raise CryptoError(f"an X25519 private key has {KEY_SIZE} bytes, got {len(private_key)}", size=len(private_key))
    return X25519PrivateKey.from_private_bytes(private_key)


def _info(info: bytes, aad: bytes) -> bytes:
    return b"".join(len(part).to_bytes(8, "big") + part for part in (_DOMAIN, info, aad))
