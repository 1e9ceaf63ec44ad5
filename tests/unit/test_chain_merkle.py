"""RFC 6962 trees: published vectors, every small shape, and proofs that must not pass."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path

import pytest

from core.chain import merkle
from core.errors import CryptoError, LimitError

RFC_LEAVES = [
    bytes.fromhex(x)
    for x in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
"""The inputs of Certificate Transparency's reference tests."""


def recursive_root(leaves: list[bytes]) -> bytes:
    """MTH exactly as RFC 6962, section 2.1, prints it."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\x01" + recursive_root(leaves[:split]) + recursive_root(leaves[split:])).digest()


def test_known_roots() -> None:
    assert merkle.root([]).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert merkle.root(RFC_LEAVES[:1]).hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    assert merkle.root(RFC_LEAVES).hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


@pytest.mark.parametrize("size", range(1, 20))
def test_every_proof_of_every_small_tree(size: int) -> None:
    leaves = [bytes([i]) * (i % 3) for i in range(size)]
    root = merkle.root(leaves)
    assert root == recursive_root(leaves)
    for index, leaf in enumerate(leaves):
        path = merkle.proof(leaves, index)
        merkle.verify_proof(root, leaf, index, size, path)
        for wrong in ((index, size, path[:-1]), (index, size, (*path, root)), (index + size, size, path), (-1, size, path)):
            if wrong[2] == path and wrong[0] == index:
                continue
            with pytest.raises(CryptoError):
                merkle.verify_proof(root, leaf, *wrong)
        with pytest.raises(CryptoError, match="leads to"):
            merkle.verify_proof(root, leaf + b"x", index, size, path)


def test_a_node_is_no_leaf() -> None:
    """Without the prefixes an inner node's preimage would pass as a leaf."""
    leaves = [b"a", b"b"]
    preimage = merkle.leaf_hash(b"a") + merkle.leaf_hash(b"b")
    with pytest.raises(CryptoError):
        merkle.verify_proof(merkle.root(leaves), preimage, 0, 1, ())


def test_proof_of_a_leaf_that_is_not_there() -> None:
    with pytest.raises(LimitError, match="leaf 2 asked for"):
        merkle.proof([b"a", b"b"], 2)


@pytest.mark.shared
def test_published_inclusion_vectors(shared_data: Path) -> None:
    vectors = json.loads((shared_data / "vectors" / "rfc6962_inclusion.json").read_text())
    assert vectors
    for vector in vectors:
        path = [base64.b64decode(h) for h in vector["proof"] or []]
        root, leaf = (base64.b64decode(vector[name] or "") for name in ("root", "leafHash"))
        args = (root, leaf, vector["leafIdx"], vector["treeSize"], path)
        if vector["wantErr"]:
            with pytest.raises(CryptoError):
                merkle.verify_hash_proof(*args)
        else:
            merkle.verify_hash_proof(*args)


@pytest.mark.parametrize("size", range(20))
def test_a_tree_that_changes_is_the_tree_that_was_made_anew(size: int) -> None:
    before = merkle.Tree([merkle.leaf_hash(b"%d" % i) for i in range(size)])
    for start in range(size + 1):
        for tail in range(5):
            leaves = before.leaves()[:start] + [merkle.leaf_hash(b"new %d" % i) for i in range(tail)]
            after = before.spliced(start, leaves[start:])
            assert after.root == recursive_hashes(leaves)
            for index in range(len(leaves)):
                merkle.verify_hash_proof(after.root, leaves[index], index, len(leaves), after.proof(index))
    for places in ([0], [size - 1], [0, size // 2, size - 1]) if size else ():
        leaves = before.leaves()
        for place in places:
            leaves[place] = merkle.leaf_hash(b"other %d" % place)
        assert before.replaced({place: leaves[place] for place in places}).root == recursive_hashes(leaves)
    assert before.leaves() == [merkle.leaf_hash(b"%d" % i) for i in range(size)]


def recursive_hashes(hashes: list[bytes]) -> bytes:
    if len(hashes) < 2:
        return hashes[0] if hashes else hashlib.sha256(b"").digest()
    split = 1
    while split * 2 < len(hashes):
        split *= 2
    return hashlib.sha256(b"\x01" + recursive_hashes(hashes[:split]) + recursive_hashes(hashes[split:])).digest()
