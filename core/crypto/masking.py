"""Secure aggregation, the arithmetic: masks that cancel in a sum, and secrets that a threshold of holders can restore.

Vectors are of integers modulo 2^64, which numpy's uint64 adds exactly. A vector plus a mask that is uniform modulo 2^64 is
itself uniform: it says nothing of the vector (one-time pad). Masks come from AES-256 in counter mode under a key that is used
for one mask only, so they are uniform to anyone without the key as far as AES is a pseudorandom function.

Real numbers travel in fixed point with FRACTION_BITS bits after the point. With |value| <= CLIP = 2^6, weights that are at
most MAX_WEIGHT = 2^26 and at most MAX_PARTICIPANTS = 2^6 terms, a sum is at most 2^6 2^24 2^26 2^6 = 2^62 in magnitude: it
never wraps, and the sum of the integers is exact.

A weighted term is not a multiple of its weight: were it one, a sum modulo a common divisor of the others' weights would be the
last one's term alone, and short steps would stand in it exactly. So a dither of less than one unit times the weight is added;
modulo every divisor of the weight it is uniform (docs/adr/0099).

Shamir's scheme (Shamir 1979) shares 32-byte secrets over the prime field of p = 2^256 + 297.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import IntEnum
from typing import Final, TypeAlias

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from core.errors import CryptoError, LimitError, MalformedError
from core.ports import Rng

__all__ = [
    "CLIP", "FRACTION_BITS", "MAX_PARTICIPANTS", "MAX_WEIGHT", "SHARE_SIZE", "Aggregation", "Residues", "from_fixed_point",
    "check_mask_key", "mask", "pair_key", "restore_secret", "share_secret", "threshold", "to_fixed_point",
]  # fmt: skip

Residues: TypeAlias = NDArray[np.uint64]

PRIME: Final = (1 << 256) + 297
SECRET_SIZE: Final = 32
SHARE_SIZE: Final = 33
FRACTION_BITS: Final = 24
CLIP_BITS: Final = 6
CLIP: Final = float(1 << CLIP_BITS)
MAX_WEIGHT: Final = 1 << 26
MAX_PARTICIPANTS: Final = 64
PAIR_LABEL: Final = b"pofl/secure-aggregation/pair/v1"
DITHER_LABEL: Final = b"pofl/secure-aggregation/dither/v1"


class Aggregation(IntEnum):
    """What a pool's manager sees of its miners' updates."""

    PLAIN = 1
    """Each of them; so it can check each, and refuse a hostile one."""
    SECURE = 2
    """Their sum only."""


def threshold(count: int) -> int:
    """Of ``count`` participants, how many must stay to the end, and must agree before anything is unmasked: two thirds.

    So a third may drop out, and 2 threshold > count + c holds for c < count / 3 who collude with the manager: no two sets of
    threshold participants have only colluders in common (Bonawitz et al. 2017, section 6.2).
    """
    return (2 * count + 2) // 3


# Shamir


def share_secret(secret: bytes, needed: int, count: int, rng: Rng) -> tuple[bytes, ...]:
    """Shares at x = 1..count of a polynomial of degree ``needed - 1`` whose value at 0 is the secret; 33 bytes each.

    Any ``needed`` of them restore the secret, fewer say nothing about it.
    """
    if len(secret) != SECRET_SIZE or not 1 <= needed <= count <= MAX_PARTICIPANTS:
        raise LimitError(
            f"a secret of {len(secret)} bytes for {needed} of {count}; 32 bytes, at most {MAX_PARTICIPANTS} holders"
        )
    # 48 bytes modulo a prime of 257 bits: uniform but for 2^-127.
    higher = [int.from_bytes(rng.bytes(48), "big") % PRIME for _ in range(needed - 1)]
    coefficients = [*higher, int.from_bytes(secret, "big")]
    shares = []
    for x in range(1, count + 1):
        value = 0
        for coefficient in coefficients:
            value = (value * x + coefficient) % PRIME
        shares.append(value.to_bytes(SHARE_SIZE, "big"))
    return tuple(shares)


def restore_secret(shares: Mapping[int, bytes]) -> bytes:
    """The secret from shares by their x, exactly as many as were needed when it was shared (Lagrange's value at 0).

    Wrong shares give another secret: compare it with what is known of it.

    Raises:
        CryptoError: the value at 0 is no 32-byte secret, so some share is wrong.
        MalformedError: a share is no element of the field.
    """
    points = {}
    for x, share in shares.items():
        value = int.from_bytes(share, "big")
        if len(share) != SHARE_SIZE or value >= PRIME or x < 1:
            raise MalformedError(f"share {x} is no element of the field")
        points[x] = value
    secret = 0
    for x, value in points.items():
        above = below = 1
        for other in points:
            if other != x:
                above = above * -other % PRIME
                below = below * (x - other) % PRIME
        secret = (secret + value * above * pow(below, -1, PRIME)) % PRIME
    if secret >> (8 * SECRET_SIZE):
        raise CryptoError("the shares do not restore a secret: at least one of them is wrong")
    return secret.to_bytes(SECRET_SIZE, "big")


# Masks


def pair_key(private_key: bytes, public_key: bytes, context: bytes) -> bytes:
    """The key of the mask that two participants share: X25519, then HKDF-SHA256 over ``context``, the same on both sides.

    Raises CryptoError for a public key of small order.
    """
    try:
        private, public = X25519PrivateKey.from_private_bytes(private_key), X25519PublicKey.from_public_bytes(public_key)
        shared = private.exchange(public)
    except ValueError as error:
        raise CryptoError(f"no common key with mask key {public_key.hex()[:16]}: {error}") from None
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=PAIR_LABEL + context).derive(shared)


def check_mask_key(public_key: bytes) -> None:
    """Raises CryptoError for a key of small order, with which nobody has a common key: one such would stop everybody."""
    pair_key(bytes(31) + b"\x40", public_key, b"")


def mask(key: bytes, count: int) -> Residues:
    """``count`` residues modulo 2^64 of AES-256 in counter mode. The key must be used for nothing else."""
    stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor().update(bytes(8 * count))
    return np.frombuffer(stream, dtype="<u8").astype(np.uint64)


# Fixed point


def to_fixed_point(values: NDArray[np.float64], weight: int, rng: Rng) -> Residues:
    """``2^24 clip(v) weight`` and a dither of at most weight / 2, modulo 2^64.

    The dither is fresh each time: nobody who guesses the vector can check the guess by it.

    Raises LimitError (weight) or MalformedError (a value is not finite).
    """
    if not 1 <= weight <= MAX_WEIGHT:
        raise LimitError(f"a weight of {weight}, must be 1 to {MAX_WEIGHT}", weight=weight)
    if not np.isfinite(values).all():
        raise MalformedError(f"{int((~np.isfinite(values)).sum())} of {values.size} values are not finite: training diverged")
    key = hashlib.sha256(DITHER_LABEL + rng.bytes(32)).digest()
    # Modulo a weight of at most 2^26, 64 bits are uniform but for 2^-38.
    dither = (mask(key, values.size) % np.uint64(weight)).view(np.int64) - np.int64(weight // 2)
    integers = np.rint(np.clip(values, -CLIP, CLIP) * float(weight << FRACTION_BITS)).astype(np.int64) + dither
    most = np.int64(weight) << np.int64(FRACTION_BITS + CLIP_BITS)
    return np.clip(integers, -most, most).view(np.uint64)


def from_fixed_point(total: Residues, weight: int) -> NDArray[np.float64]:
    """The weighted mean, from the sum of such vectors and the sum of their weights.

    Raises CryptoError when a mean is beyond CLIP, which no sum of honest vectors is: some vector or mask was wrong.
    """
    mean = total.view(np.int64).astype(np.float64) / (float(weight) * (1 << FRACTION_BITS))
    beyond = int((np.abs(mean) > CLIP).sum())
    if beyond:
        raise CryptoError(f"{beyond} of {mean.size} sums are out of range: at least one masked vector was wrong")
    return mean
