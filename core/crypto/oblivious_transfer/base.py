"""Base oblivious transfer: the endemic protocol of Masny and Rindal (CCS 2019) on Ed25519's prime-order group.

For transfer i, with H a random oracle into the group and B its base point:

    receiver, choice c:  t random;  r_{1-c} random point;  r_c = t·B - H(i, c, r_{1-c});  sends (r_0, r_1)
    sender:              s random;  sends S = s·B;  key_b = KDF(s·(r_b + H(i, b, r_{1-b})))
    receiver:            key_c = KDF(t·S)

The KDF hashes session, i, b and all three points, so neither side can steer a key to a value of its choice. Every
point of a peer must be a canonical encoding of a point of the prime-order group other than the identity, else the
other side's secrets could be read modulo the cofactor (or be the same for everyone).

The group comes from libsodium through PyNaCl. One transfer costs about 1 ms on either side together.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import nacl.bindings as sodium
from nacl.exceptions import RuntimeError as SodiumError

from core.crypto.hashing import digest, expand
from core.errors import CheatingError
from core.ports import Rng

__all__ = ["POINT_SIZE", "ReceiverKeys", "SenderKeys", "base_choose", "base_finish", "base_send"]

POINT_SIZE = 32

_POINT_DOMAIN = b"pofl/ot/base/point/v1"
_KEY_DOMAIN = b"pofl/ot/base/key/v1"


@dataclass(frozen=True, slots=True)
class ReceiverKeys:
    """The receiver's secrets until the sender's points arrive: choice bits and scalars."""

    choices: tuple[int, ...] = field(repr=False)
    scalars: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class SenderKeys:
    """Both 32-byte keys of every transfer."""

    keys: tuple[tuple[bytes, bytes], ...] = field(repr=False)


def base_choose(session: bytes, choices: tuple[int, ...], rng: Rng) -> tuple[ReceiverKeys, bytes]:
    """The receiver's secrets, and its message: ``r_0 ‖ r_1`` per transfer."""
    scalars: list[bytes] = []
    message = bytearray()
    for index, choice in enumerate(choices):
        scalar = _scalar(rng)
        other = sodium.crypto_scalarmult_ed25519_base_noclamp(_scalar(rng))
        mine = sodium.crypto_core_ed25519_sub(
            sodium.crypto_scalarmult_ed25519_base_noclamp(scalar), _hash_to_point(session, index, choice, other)
        )
        pair = (mine, other)
        message += pair[choice] + pair[1 - choice]
        scalars.append(scalar)
    return ReceiverKeys(choices, tuple(scalars)), bytes(message)


def base_send(session: bytes, count: int, points: bytes, rng: Rng) -> tuple[SenderKeys, bytes]:
    """Both keys of every transfer, and the sender's message: ``S`` per transfer.

    ``points``: the receiver's message, ``64 * count`` bytes (checked by the caller).

    Raises:
        CheatingError: a point is no canonical point of the prime-order group, or a sum of two is the identity.
    """
    keys: list[tuple[bytes, bytes]] = []
    message = bytearray()
    for index in range(count):
        pair = _point(points, 2 * index), _point(points, 2 * index + 1)
        scalar = _scalar(rng)
        mine = sodium.crypto_scalarmult_ed25519_base_noclamp(scalar)
        made = []
        for bit in (0, 1):
            hashed = _hash_to_point(session, index, bit, pair[1 - bit])
            shared = _multiply(scalar, sodium.crypto_core_ed25519_add(pair[bit], hashed), index)
            made.append(_key(session, index, bit, mine, pair, shared))
        keys.append((made[0], made[1]))
        message += mine
    return SenderKeys(tuple(keys)), bytes(message)


def base_finish(session: bytes, mine: ReceiverKeys, sent: bytes, points: bytes) -> tuple[bytes, ...]:
    """The receiver's key per transfer, from its own message ``sent`` and the sender's ``points`` (32 bytes each).

    Raises:
        CheatingError: a point is no canonical point of the prime-order group.
    """
    keys: list[bytes] = []
    for index, (choice, scalar) in enumerate(zip(mine.choices, mine.scalars, strict=True)):
        point = _point(points, index)
        pair = _cut(sent, 2 * index), _cut(sent, 2 * index + 1)
        keys.append(_key(session, index, choice, point, pair, _multiply(scalar, point, index)))
    return tuple(keys)


def _key(session: bytes, index: int, bit: int, sender: bytes, pair: tuple[bytes, bytes], shared: bytes) -> bytes:
    return digest(_KEY_DOMAIN, session, index.to_bytes(4, "big"), bytes([bit]), sender, *pair, shared)


def _hash_to_point(session: bytes, index: int, bit: int, point: bytes) -> bytes:
    """Random oracle into the group: the sum of two Elligator images, each of which alone misses half of it."""
    uniform = expand(_POINT_DOMAIN, 64, session, index.to_bytes(4, "big"), bytes([bit]), point)
    return sodium.crypto_core_ed25519_add(
        sodium.crypto_core_ed25519_from_uniform(uniform[:32]), sodium.crypto_core_ed25519_from_uniform(uniform[32:])
    )


def _scalar(rng: Rng) -> bytes:
    """A scalar modulo the group's order; 64 bytes reduced have no bias to speak of."""
    return sodium.crypto_core_ed25519_scalar_reduce(rng.bytes(64))


def _multiply(scalar: bytes, point: bytes, index: int) -> bytes:
    try:
        return sodium.crypto_scalarmult_ed25519_noclamp(scalar, point)
    except SodiumError:
        raise CheatingError(f"base transfer {index}: the peer's points add up to the identity", index=index) from None


def _cut(points: bytes, place: int) -> bytes:
    return points[POINT_SIZE * place : POINT_SIZE * (place + 1)]


def _point(points: bytes, place: int) -> bytes:
    point = _cut(points, place)
    if not sodium.crypto_core_ed25519_is_valid_point(point):
        raise CheatingError(
            f"base point {place} ({point.hex()[:16]}) is no canonical point of the prime-order group", place=place
        )
    return point
