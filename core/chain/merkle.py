"""Merkle trees as in RFC 6962, section 2.1: leaves and inner nodes are hashed under different prefixes.

``Tree`` keeps every node; the functions before it are for who needs one root or one path.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Final

from core.errors import CryptoError, LimitError
from core.ids import Digest

__all__ = [
    "EMPTY_ROOT", "Tree", "leaf_hash", "node_hash", "proof", "proof_of_hashes", "root", "root_from_proof", "root_of_hashes",
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
    """The root over leaf hashes."""
    return Tree(hashes).root


def proof(leaves: Sequence[bytes], index: int) -> tuple[Digest, ...]:
    """The audit path of leaf ``index``, lowest sibling first (RFC 6962, section 2.1.1).

    Raises:
        LimitError: there is no such leaf.
    """
    return proof_of_hashes([leaf_hash(leaf) for leaf in leaves], index)


def proof_of_hashes(hashes: Sequence[bytes], index: int) -> tuple[Digest, ...]:
    """As ``proof``, over leaf hashes."""
    return Tree(hashes).proof(index)


class Tree:
    """A tree with all its nodes: a changed leaf costs its path, an audit path nothing but reading it.

    Pairing neighbours level by level, an odd last one moving up, gives the same tree as RFC 6962's split at the
    largest power of two below n. It never changes; ``replaced`` and ``spliced`` give new trees.
    """

    __slots__ = ("_levels",)

    def __init__(self, hashes: Sequence[bytes]) -> None:
        """``hashes``: of the leaves."""
        self._levels = [list(hashes)]
        self._finish(0)

    def __len__(self) -> int:
        return len(self._levels[0])

    @property
    def root(self) -> Digest:
        top = self._levels[-1]
        return Digest(top[0]) if top else EMPTY_ROOT

    def leaves(self, start: int = 0) -> list[bytes]:
        """Hashes of the leaves from ``start`` on."""
        return self._levels[0][start:]

    def proof(self, index: int) -> tuple[Digest, ...]:
        """The audit path of leaf ``index``. Raises LimitError."""
        if not 0 <= index < len(self):
            raise LimitError(f"leaf {index} asked for, the tree has {len(self)}", index=index, size=len(self))
        places = ((level, (index >> depth) ^ 1) for depth, level in enumerate(self._levels))
        return tuple(Digest(level[sibling]) for level, sibling in places if sibling < len(level))

    def replaced(self, hashes: Mapping[int, bytes]) -> Tree:
        """The tree with other leaves at these places."""
        tree = self._copy()
        for index, hashed in hashes.items():
            tree._levels[0][index] = hashed
        places = set(hashes)
        for below, above in itertools.pairwise(tree._levels):
            places = {place // 2 for place in places}
            for place in places:
                pair = below[2 * place : 2 * place + 2]
                above[place] = node_hash(*pair) if len(pair) == 2 else pair[0]
        return tree

    def spliced(self, start: int, hashes: Sequence[bytes]) -> Tree:
        """The tree whose leaves from ``start`` on are these: what is left of them keeps its nodes."""
        tree = self._copy()
        tree._levels[0][start:] = hashes
        tree._finish(start)
        return tree

    def _copy(self) -> Tree:
        tree: Tree = Tree.__new__(Tree)
        tree._levels = [list(level) for level in self._levels]
        return tree

    def _finish(self, start: int) -> None:
        """Makes all inner nodes above the leaves from ``start`` on, level by level; an odd last one moves up."""
        depth = 0
        while len(below := self._levels[depth]) > 1:
            depth, start = depth + 1, start // 2
            if depth == len(self._levels):
                self._levels.append([])
            above = self._levels[depth]
            del above[start:]
            above += [node_hash(below[i], below[i + 1]) for i in range(2 * start, len(below) - 1, 2)]
            if len(below) % 2:
                above.append(below[-1])
        del self._levels[depth + 1 :]


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
