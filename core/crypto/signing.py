"""Ed25519 signatures (RFC 8032) with domain separation and strict keys.

What is signed is ``length(domain) ‖ domain ‖ message`` with a one-byte length, so a signature made for one purpose
never verifies for another. ``cryptography`` signs and verifies; it refuses ``S >= L`` and compares the encoded ``R``.
libsodium, which is twice as fast, is asked first: as built today it refuses ``S >= L``, compares the encoded ``R`` too and
refuses some more (an ``R`` of small order), so what it accepts ``cryptography`` accepts; what it refuses ``cryptography``
decides. A libsodium whose equation forgives a point of small order is found when this module is loaded, and not asked.
``cryptography`` does accept public keys of small order and non-canonical ones, under which one signature fits many messages, so
keys are checked here to lie in the prime-order group, in their one canonical encoding. Every node then agrees on
every signature.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from typing import Final

import nacl.bindings
import nacl.exceptions
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from core.errors import CryptoError
from core.ids import Signature
from core.ports import Rng

__all__ = ["PUBLIC_KEY_SIZE", "SEED_SIZE", "SIGNATURE_SIZE", "KeyPair", "Remembered", "check_public_key", "sign", "verify"]

SEED_SIZE = 32
PUBLIC_KEY_SIZE = 32
SIGNATURE_SIZE = 64
MAX_DOMAIN = 255


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A signing key. ``seed`` is the 32-byte private key of RFC 8032 and is never shown by ``repr``."""

    public_key: bytes
    seed: bytes = field(repr=False)

    @classmethod
    def from_seed(cls, seed: bytes) -> KeyPair:
        """The key pair of a stored private key. Raises CryptoError unless it has 32 bytes."""
        if len(seed) != SEED_SIZE:
            raise CryptoError(f"an Ed25519 private key has {SEED_SIZE} bytes, got {len(seed)}", size=len(seed))
        return cls(Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw(), seed)

    @classmethod
    def generate(cls, rng: Rng) -> KeyPair:
        return cls.from_seed(rng.bytes(SEED_SIZE))


def sign(key: KeyPair, domain: bytes, message: bytes) -> Signature:
    """Signature of 64 bytes over ``message`` for one purpose."""
    private = Ed25519PrivateKey.from_private_bytes(key.seed)
    return Signature(private.sign(_framed(domain, message)))


def verify(public_key: bytes, domain: bytes, message: bytes, signature: bytes) -> None:
    """Raises CryptoError unless ``signature`` is the key's over ``message`` for this purpose."""
    _verify_raw(public_key, _framed(domain, message), signature)


class Remembered:
    """Good signatures, by a digest of all that was checked, so that each is checked once. Failures are not remembered.

    At least the last ``limit`` are, and at most twice as many; each costs about 100 bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._young: set[bytes] = set()
        self._old: set[bytes] = set()

    def verify(self, public_key: bytes, domain: bytes, message: bytes, signature: bytes) -> None:
        """As ``verify``."""
        framed = _framed(domain, message)
        # Only with these sizes does what is hashed say where each part ends.
        if len(public_key) != PUBLIC_KEY_SIZE or len(signature) != SIGNATURE_SIZE:
            _verify_raw(public_key, framed, signature)
        known = hashlib.sha256(b"".join((public_key, signature, framed))).digest()
        if known in self._young or known in self._old:
            return
        _verify_raw(public_key, framed, signature)
        if len(self._young) >= self._limit:
            self._old, self._young = self._young, set()
        self._young.add(known)

    def clear(self) -> None:
        self._young, self._old = set(), set()


def check_public_key(public_key: bytes) -> None:
    """Raises CryptoError unless the key is a canonical point of the prime-order group, and not its identity."""
    if len(public_key) != PUBLIC_KEY_SIZE:
        raise CryptoError(f"an Ed25519 public key has {PUBLIC_KEY_SIZE} bytes, got {len(public_key)}", size=len(public_key))
    if not _is_strict_point(bytes(public_key)):
        raise CryptoError(
            f"public key {public_key.hex()} is no canonical point of the prime-order group", public_key=public_key
        )


def _verify_raw(public_key: bytes, message: bytes, signature: bytes) -> None:
    check_public_key(public_key)
    if len(signature) != SIGNATURE_SIZE:
        raise CryptoError(f"an Ed25519 signature has {SIGNATURE_SIZE} bytes, got {len(signature)}", size=len(signature))
    if _IS_SODIUM_STRICT and _sodium_accepts(public_key, message, signature):
        return
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        raise CryptoError(
            f"the signature by key {public_key.hex()[:16]} does not verify: other key, other content or other purpose",
            public_key=public_key,
        ) from None


@functools.lru_cache(maxsize=4096)
def _is_strict_point(public_key: bytes) -> bool:
    return bool(nacl.bindings.crypto_core_ed25519_is_valid_point(public_key))


def _sodium_accepts(public_key: bytes, message: bytes, signature: bytes) -> bool:
    try:
        nacl.bindings.crypto_sign_open(bytes(signature) + message, bytes(public_key))
    except nacl.exceptions.BadSignatureError:
        return False
    return True


def _framed(domain: bytes, message: bytes) -> bytes:
    if not 1 <= len(domain) <= MAX_DOMAIN:
        raise CryptoError(f"a signature domain has 1 to {MAX_DOMAIN} bytes, got {len(domain)}", size=len(domain))
    return bytes([len(domain)]) + domain + message


_TORSION: Final = (
    bytes.fromhex("17ffad8068dc0de9935d36636f3ad1b5de6de3413b12388e453b05f2a4c1d3db"),
    b"hello",
    bytes.fromhex(
        "1c354c4c7a6de4bcb4fd275f391333dd9bf17d38b41332753f60cf56d5ef4fcc"
        "4739fc1f600b45282c8b095393545398b9b88993f10430a45d03fa33c40f2a0e"
    ),
)
"""Key, message, signature, whose R is off by a point of order 8: right for an equation multiplied by 8 only."""
_IS_SODIUM_STRICT: Final = not _sodium_accepts(*_TORSION)
