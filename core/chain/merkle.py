"""Merkle trees as in RFC 6962, section 2.1: leaves and inner nodes are hashed under different prefixes.

``root`` is the readable reference; ``root_of_hashes`` works on leaf hashes that the caller kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from core.errors import CryptoError, LimitError
from core.ids import Digest

__all__ = [
    "EMPTY_ROOT", "leaf_hash", "node_hash", "proof", "proof_of_hashes", "root", "root_from_proof", "root_of_hashes",
    "verify_hash_proof", "verify_proof",
]  # fmt: skip

LEAF_PREFIX: Final = b"\x00"
NODE_PREFIX: Final = b"\x01"
EMPTY_ROOT: Final = Digest(hashlib.sha256(b"").digest())


def leaf_hash(leaf: bytes) -> Digest:
    """``SHA-256(0x00 ‖ leaf)``."""
    return Digest(hashlib.sha256(LEAF_PREFIX + leaf).digest())


def node_hash(left: bytes, right: bytes) -> Digest:
    """``SHA-256(0x01 ‖ left ‖ right)``."""
    return Digest(hashlib.sha256(NODE_PREFIX + left + right).digest())


def root(leaves: Sequence[bytes]) -> Digest:
    """The tree's root (RFC 6962, MTH); of no leaves: SHA-256 of nothing."""
    return root_of_hashes([leaf_hash(leaf) for leaf in leaves])


def root_of_hashes(hashes: Sequence[bytes]) -> Digest:
    """The root over leaf hashes.

    Pairing neighbours level by level, an odd last one moving up, gives the same tree as RFC 6962's split at the
    largest power of two below n.
    """
    if not hashes:
        return EMPTY_ROOT
    level = list(hashes)
    while len(level) > 1:
        above: list[bytes] = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            above.append(level[-1])
        level = above
    return Digest(level[0])


def proof(leaves: Sequence[bytes], index: int) -> tuple[Digest, ...]:
    """The audit path of leaf ``index``, lowest sibling first (RFC 6962, section 2.1.1).

    Raises:
        LimitError: there is no such leaf.
    """
    return proof_of_hashes([leaf_hash(leaf) for leaf in leaves], index)


def proof_of_hashes(hashes: Sequence[bytes], index: int) -> tuple[Digest, ...]:
    """As ``proof``, over leaf hashes."""
    if not 0 <= index < len(hashes):
        raise LimitError(f"leaf {index} asked for, the tree has {len(hashes)}", index=index, size=len(hashes))
    path: list[Digest] = []
    level = list(hashes)
    while len(level) > 1:
        sibling = index ^ 1
        if sibling < len(level):
            path.append(Digest(level[sibling]))
        above: list[bytes] = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        if len(level) % 2:
            above.append(level[-1])
        level = above
        index //= 2
    return tuple(path)


def verify_proof(root: bytes, leaf: bytes, index: int, size: int, path: Sequence[bytes]) -> None:
    """Checks that ``leaf`` is number ``index`` of the ``size`` leaves under ``root`` (RFC 9162, section 2.1.3.2).

    Raises:
        CryptoError: it is not, or the path has another length than such a proof has.
    """
    verify_hash_proof(root, leaf_hash(leaf), index, size, path)


def verify_hash_proof(root: bytes, hashed: bytes, index: int, size: int, path: Sequence[bytes]) -> None:
    """As ``verify_proof``, for a leaf hash."""
    node = root_from_proof(hashed, index, size, path)
    if node != root:
        raise CryptoError(f"Merkle proof: leaf {index} of {size} leads to {node.hex()}, not to the root {bytes(root).hex()}")


def root_from_proof(hashed: bytes, index: int, size: int, path: Sequence[bytes]) -> Digest:
    """The root that a leaf hash and its audit path lead to. Raises CryptoError if the path has another length."""
    if not 0 <= index < size:
        raise CryptoError(f"Merkle proof: leaf {index} of a tree of {size}", index=index, size=size)
    node: bytes = hashed
    position, last = index, size - 1
    for sibling in path:
        if len(sibling) != len(EMPTY_ROOT):
            raise CryptoError(f"Merkle proof: a hash of {len(sibling)} bytes, expected {len(EMPTY_ROOT)}")
        if last == 0:
            raise CryptoError(f"Merkle proof: {len(path)} hashes are too many for leaf {index} of {size}")
        if position % 2 or position == last:
            node = node_hash(sibling, node)
            while position % 2 == 0 and position:
                position //= 2
                last //= 2
        else:
            node = node_hash(node, sibling)
        position //= 2
        last //= 2
    if last:
        raise CryptoError(f"Merkle proof: {len(path)} hashes are too few for leaf {index} of {size}")
    return Digest(node)
