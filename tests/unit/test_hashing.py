"""core.crypto.hashing: framing without ambiguity."""

from __future__ import annotations

import hashlib

import pytest

from core.crypto.hashing import Hasher, digest, expand


def test_the_framing_is_lengths_and_parts() -> None:
    framed = (2).to_bytes(8, "big") + b"do" + (1).to_bytes(8, "big") + (3).to_bytes(8, "big") + b"abc"
    assert digest(b"do", b"abc") == hashlib.sha256(framed).digest()


def test_moving_a_boundary_changes_the_digest() -> None:
    values = [
        digest(b"d", b"ab", b"c"), digest(b"d", b"a", b"bc"), digest(b"d", b"abc"), digest(b"d", b"abc", b""),
        digest(b"da", b"b", b"c"), digest(b"", b"d", b"abc"), digest(b"d"),
    ]  # fmt: skip
    assert len(set(values)) == len(values)


def test_hasher_gives_the_same_digest_as_one_call() -> None:
    hasher = Hasher(b"d", 2)
    hasher.add(b"ab")
    with pytest.raises(ValueError, match="missing"):
        hasher.digest()
    hasher.add(b"c")
    assert hasher.digest() == digest(b"d", b"ab", b"c")
    with pytest.raises(ValueError, match="more parts"):
        hasher.add(b"x")


def test_expand_separates_sizes_and_domains() -> None:
    assert len(expand(b"d", 100, b"x")) == 100
    assert expand(b"d", 64, b"x")[:32] != expand(b"d", 32, b"x")
    assert expand(b"d", 32, b"x") != expand(b"e", 32, b"x")
