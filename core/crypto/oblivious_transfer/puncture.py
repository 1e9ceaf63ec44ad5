"""All-but-one seeds: from two base transfers, four seeds of which the other side learns all except one of its choice.

A tree of two levels (Goldreich, Goldwasser, Micali). The sender's first two base keys are the inner nodes; each has
two leaves. The receiver who does not want leaf ``d = 2·d1 + d0`` takes node ``1 - d1``, hence two leaves, and of the
second base transfer the sum of the leaves with last bit ``1 - d0``, hence a third. The sender sends those sums, and a
check with which the receiver tests that all her leaves come from one tree (the punctured function with consistency
check of Roy, "SoftSpokenOT", CRYPTO 2022). A sender who cheats here guesses bits of ``d`` and is caught if one is wrong.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field

from core.crypto.hashing import digest, expand
from core.crypto.oblivious_transfer.base import SenderKeys
from core.errors import CheatingError

__all__ = ["BLOCKS", "CHECK_SIZE", "FIELD_BITS", "LEAVES", "SUMS_SIZE", "TRANSFERS", "Tree", "make_trees", "open_trees"]

FIELD_BITS = 2
"""k: bits of the choice vector per tree. Larger k sends less and hashes more; see docs/adr/0017."""
LEAVES = 1 << FIELD_BITS
BLOCKS = 64
TRANSFERS = BLOCKS * FIELD_BITS
"""Base transfers: 128, the length of the choice vector."""

_KEY = 32
SUMS_SIZE = 2 * _KEY
CHECK_SIZE = 2 * _KEY
"""Sum of the tags ‖ their digest."""

_NODE_DOMAIN = b"pofl/ot/tree/node/v1"
_LEAF_DOMAIN = b"pofl/ot/tree/leaf/v1"
_TAG_DOMAIN = b"pofl/ot/tree/tag/v1"


@dataclass(frozen=True, slots=True)
class Tree:
    """16-byte seeds of the four leaves; all zero where the leaf is unknown."""

    seeds: tuple[bytes, bytes, bytes, bytes] = field(repr=False)


def make_trees(session: bytes, base: SenderKeys) -> tuple[tuple[Tree, ...], bytes, bytes]:
    """The sender's trees, and its message: sums and checks, SUMS_SIZE and CHECK_SIZE bytes per tree."""
    trees: list[Tree] = []
    sums, checks = bytearray(), bytearray()
    for block in range(BLOCKS):
        nodes, pads = base.keys[2 * block], base.keys[2 * block + 1]
        leaves = [leaf for node in nodes for leaf in _children(session, block, node)]
        for bit in (0, 1):
            sums += _xor(leaves[bit], leaves[2 + bit], pads[bit])
        seeds, tags = _finish(session, block, leaves)
        checks += _xor(*tags) + digest(_TAG_DOMAIN, *tags)
        trees.append(Tree((seeds[0], seeds[1], seeds[2], seeds[3])))
    return tuple(trees), bytes(sums), bytes(checks)


def open_trees(
    session: bytes, points: tuple[int, ...], keys: tuple[bytes, ...], sums: bytes, checks: bytes
) -> tuple[Tree, ...]:
    """The receiver's trees, without leaf ``points[i]`` of tree i.

    ``keys``: its base keys, for the choices ``1 - d1`` and ``1 - d0`` of each tree (see ``base_choices``).

    Raises:
        CheatingError: the check fails for any tree. All are looked at first and the message names none, because which
            one fails tells something about ``points``.
    """
    trees: list[Tree] = []
    honest = True
    for block, point in enumerate(points):
        high, low = 1 - (point >> 1), 1 - (point & 1)
        leaves = [bytes(_KEY)] * LEAVES
        leaves[2 * high], leaves[2 * high + 1] = _children(session, block, keys[2 * block])
        sum_ = sums[SUMS_SIZE * block + _KEY * low :][:_KEY]
        leaves[2 * (1 - high) + low] = _xor(sum_, keys[2 * block + 1], leaves[2 * high + low])
        seeds, tags = _finish(session, block, leaves)
        check = checks[CHECK_SIZE * block : CHECK_SIZE * (block + 1)]
        tags[point] = _xor(check[:_KEY], *(tag for leaf, tag in enumerate(tags) if leaf != point))
        honest &= hmac.compare_digest(check[_KEY:], digest(_TAG_DOMAIN, *tags))
        seeds[point] = bytes(16)
        trees.append(Tree((seeds[0], seeds[1], seeds[2], seeds[3])))
    if not honest:
        raise CheatingError("the seeds of the oblivious transfer do not come from honest trees")
    return tuple(trees)


def base_choices(points: tuple[int, ...]) -> tuple[int, ...]:
    """The choice bits of the base transfers for the leaves not wanted: ``1 - d1``, ``1 - d0`` per tree."""
    return tuple(bit for point in points for bit in (1 - (point >> 1), 1 - (point & 1)))


def _children(session: bytes, block: int, node: bytes) -> tuple[bytes, bytes]:
    both = expand(_NODE_DOMAIN, 2 * _KEY, session, bytes([block]), node)
    return both[:_KEY], both[_KEY:]


def _finish(session: bytes, block: int, leaves: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Per leaf its seed and its tag."""
    made = [
        expand(_LEAF_DOMAIN, 16 + _KEY, session, bytes([block, place]), leaf) for place, leaf in enumerate(leaves)
    ]  # fmt: skip
    return [value[:16] for value in made], [value[16:] for value in made]


def _xor(*values: bytes) -> bytes:
    total = 0
    for value in values:
        total ^= int.from_bytes(value, "big")
    return total.to_bytes(len(values[0]), "big")
