"""Marks: which of two variants of its rows a buyer holds, known to the buyer alone and bound by a commitment
(design: market, "Leaks and reputation"; docs/adr/0107).

A share's rows belong to at most MARKS groups. For each group the buyer takes one of two keys by oblivious transfer, and a
key opens one variant of each row of its group. So the seller does not know what she sold, and cannot make a copy that
convicts; the buyer committed to its choices in the trade, and cannot deny them.

The transfer is core.crypto.oblivious_transfer.base alone: the receiver speaks first, and all it says follows from one
32-byte seed. The trade records ``digest(H(seed), H(points))``. To open the marks is to show the seed: everybody computes
points and choices again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from core.crypto.circuits import Bits
from core.crypto.hashing import digest, expand
from core.crypto.oblivious_transfer.base import POINT_SIZE, ReceiverKeys, base_choose, base_finish, base_send
from core.errors import CheatingError, MarketError
from core.ids import AccountId, Digest

__all__ = [
    "Marking", "agreement", "check_sight", "choices_of", "commit", "commitment", "encrypt_row", "group_of",
    "group_keys", "least_agreeing", "mark_count", "most_buyers", "opened", "points_digest", "points_size", "seller_keys",
    "session_id",
    "BITMAP_SIZE", "DOMAIN_COMMITMENT", "LEAST_SHARE", "MARKS", "SECURITY", "SEED_SIZE",
]  # fmt: skip

MARKS: Final = 256
"""Most groups of a share."""
LEAST_MARKS: Final = 64
"""Groups of a small share, if it has the rows: fewer prove nothing once some are lost."""
LEAST_SHARE: Final = 100
"""Rows of a share of which nine tenths are surely traced (core.market.tracing.LEAST_SCORE) and proven. Miners are only names: a
pool that lists more of them than a data set has shares of this size leaks what can never be laid at its door."""
BITMAP_SIZE: Final = MARKS // 8
SEED_SIZE: Final = 32
SECURITY: Final = 40
"""A report proves a leak if its agreement has a chance of at most ``2^-SECURITY`` for a seller who knows nothing."""

DOMAIN_COMMITMENT: Final = b"pofl/marks/commitment/1"
_DOMAIN_SESSION: Final = b"pofl/marks/session/1"
_DOMAIN_SEED: Final = b"pofl/marks/seed-hash/1"
_DOMAIN_POINTS: Final = b"pofl/marks/points/1"
_DOMAIN_CHOICES: Final = b"pofl/marks/choices/1"
_DOMAIN_COINS: Final = b"pofl/marks/receiver-coins/1"
_DOMAIN_SELLER: Final = b"pofl/marks/seller-coins/1"
_DOMAIN_PAD: Final = b"pofl/marks/row-pad/1"


@dataclass(frozen=True, slots=True)
class Marking:
    """What a buyer makes from a seed for one miner's share."""

    seed: bytes = field(repr=False)
    seed_hash: Digest
    points: bytes = field(repr=False)
    """The receiver's message: ``points_size(count)`` bytes."""
    commitment: Digest
    """In the trade, on the chain."""
    keys: ReceiverKeys = field(repr=False)


class _Coins:
    """A generator whose bytes follow from a secret: what one side says can be said again."""

    def __init__(self, domain: bytes, *parts: bytes) -> None:
        self._domain, self._parts, self._counter = domain, parts, 0

    def bytes(self, count: int) -> bytes:
        self._counter += 1
        return expand(self._domain, count, self._counter.to_bytes(8, "big"), *self._parts)


def mark_count(rows: int) -> int:
    """Groups of a share of ``rows`` rows: one for three rows, at least 64 where there are that many, at most MARKS.

    The first row of a group proves, the others tell the seller whose copy she has (core.market.tracing).
    """
    return max(1, min(MARKS, max(rows // 3, min(LEAST_MARKS, rows * 3 // 4))))


def most_buyers(rows: int) -> int:
    """How many miners may share ``rows`` rows so that each has LEAST_SHARE; at least one."""
    return max(1, rows // LEAST_SHARE)


Index = TypeVar("Index", int, NDArray[np.int64])


def group_of(index: Index, count: int) -> Index:
    """The group of row number ``index`` of a share with ``count`` groups."""
    return index % count


def session_id(chain_id: Digest, provider: AccountId, pool: AccountId, data_root: Digest, miner: AccountId) -> Digest:
    return digest(_DOMAIN_SESSION, chain_id, provider, pool, data_root, miner)


def choices_of(seed: bytes, count: int) -> Bits:
    """One bit for each group, uint8 [count]."""
    return np.unpackbits(np.frombuffer(expand(_DOMAIN_CHOICES, BITMAP_SIZE, seed), np.uint8), bitorder="little")[:count]


def commit(seed: bytes, session: Digest, count: int) -> Marking:
    """The buyer's message and commitment. About 0.2 ms for each group.

    Raises:
        MarketError: a seed of another size, or a count out of range.
    """
    if len(seed) != SEED_SIZE or not 1 <= count <= MARKS:
        raise MarketError(f"marks from a seed of {len(seed)} bytes for {count} groups; {SEED_SIZE} bytes, 1 to {MARKS}")
    bits = tuple(int(bit) for bit in choices_of(seed, count))
    keys, points = base_choose(session, bits, _Coins(_DOMAIN_COINS, session, seed))
    seed_hash = digest(_DOMAIN_SEED, seed)
    return Marking(seed, seed_hash, points, commitment(seed_hash, points_digest(points)), keys)


def points_size(count: int) -> int:
    """Bytes of the buyer's message for ``count`` groups."""
    return 2 * POINT_SIZE * count


def points_digest(points: bytes) -> Digest:
    return digest(_DOMAIN_POINTS, points)


def commitment(seed_hash: bytes, points: Digest) -> Digest:
    """``points``: their digest."""
    return digest(DOMAIN_COMMITMENT, seed_hash, points)


@functools.lru_cache(maxsize=4096)
def _recomputed(seed: bytes, session: Digest, count: int) -> Digest:
    """Nodes look at an opening for the mempool, a proposal and a block: it is computed once. Also one whose points do not
    follow from the seed, which is refused and costs its sender nothing: there is one seed for each reported miner, and a
    provider has 64 of them at a time."""
    return points_digest(commit(seed, session, count).points)


def opened(committed: Digest, seed: bytes, points: Digest, session: Digest, count: int) -> int:
    """The choices that a seed opens, group g as bit g. What is not the committed seed is refused after three hashes.

    Raises:
        MarketError: not the seed that was committed to, or the committed points do not follow from it.
    """
    if commitment(digest(_DOMAIN_SEED, seed), points) != committed:
        raise MarketError(f"the seed does not open the commitment {committed.hex()}")
    if _recomputed(seed, session, count) != points:
        raise MarketError("the committed points do not follow from the seed: these marks can never be opened")
    return int.from_bytes(np.packbits(choices_of(seed, count), bitorder="little").tobytes(), "little")


# -- the transfer ------------------------------------------------------------------------------------------------------


def seller_keys(
    session: Digest, committed: Digest, seed_hash: bytes, points: bytes, count: int, secret: bytes
) -> tuple[tuple[tuple[bytes, bytes], ...], bytes]:
    """Both keys of each group, and the seller's message. The same again for the same commitment: streams may break.

    Raises:
        MarketError: the message is not the one that the trade commits to.
        CheatingError: it is, and has points outside the group.
    """
    if len(points) != points_size(count):
        raise MarketError(f"a message of {len(points)} bytes for {count} marks, must be {points_size(count)}")
    if commitment(seed_hash, points_digest(points)) != committed:
        raise MarketError(f"these marks are not the ones that the trade commits to, {committed.hex()}")
    keys, reply = base_send(session, count, points, _Coins(_DOMAIN_SELLER, secret, session, committed))
    return keys.keys, reply


def group_keys(marking: Marking, session: Digest, reply: bytes) -> tuple[bytes, ...]:
    """The buyer's key of each group, from the seller's message.

    Raises:
        CheatingError: a message of the wrong size or with points outside the group.
    """
    count = len(marking.keys.choices)
    if len(reply) != POINT_SIZE * count:
        raise CheatingError(f"the seller's message on {count} marks has {len(reply)} bytes, must have {POINT_SIZE * count}")
    return base_finish(session, marking.keys, marking.points, reply)


def encrypt_row(key: bytes, row: int, data: bytes) -> bytes:
    """``data`` xor a pad of the group's key and the row's number; again undoes it. Each pad is used for one text."""
    pad = expand(_DOMAIN_PAD, len(data), key, row.to_bytes(4, "big"))
    return (int.from_bytes(data, "big") ^ int.from_bytes(pad, "big")).to_bytes(len(data), "big")


# -- the judgement -----------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=MARKS + 1)
def least_agreeing(found: int) -> int | None:
    """The least k with ``P[Binomial(found, 1/2) >= k] <= 2^-(SECURITY + 1)``, exactly; None if not even all are enough."""
    tail, bound = 0, (1 << found) >> (SECURITY + 1)
    for k in range(found, -1, -1):
        tail += math.comb(found, k)
        if tail > bound:
            return None if k == found else k + 1
    return 0


def check_sight(found: int, seen: int, count: int) -> None:
    """What a report may say: bit g of ``found`` if group g is in the copy, bit g of ``seen`` which variant of it.

    Raises:
        MarketError: bits beyond the share's groups, variants of groups that are not there, or too few to prove anything.
    """
    if found >> count or seen & ~found:
        raise MarketError(f"a report on bits beyond the {count} marks of this share, or on marks that were not found")
    if least_agreeing(found.bit_count()) is None:
        raise MarketError(f"{found.bit_count()} marks found: even if all agreed, that would prove nothing")


def agreement(found: int, seen: int, choices: int) -> tuple[int, int, bool]:
    """``(agreeing, found, proven)`` of a checked report and opened choices.

    As few agreements as many are a proof: a leaker can turn each mark around (take away what it is off a smoothed row, and as
    much again), but so can nobody who does not hold these variants. Both ends together have a chance of ``2^-SECURITY``.
    """
    total = found.bit_count()
    agreeing = (found & ~(seen ^ choices)).bit_count()
    least = least_agreeing(total)
    return agreeing, total, least is not None and max(agreeing, total - agreeing) >= least


def bitmap(bits: Sequence[int] | Bits) -> bytes:
    """BITMAP_SIZE bytes, bit g of byte g // 8 first lowest."""
    packed = np.packbits(np.asarray(bits, np.uint8), bitorder="little").tobytes()
    return packed.ljust(BITMAP_SIZE, b"\0")
