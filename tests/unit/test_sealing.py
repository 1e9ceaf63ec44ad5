"""core.crypto.sealing: HPKE, one message per encapsulation, in both suites."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.bindings._rust import openssl
from cryptography.hazmat.primitives import hpke

from core.crypto import sealing
from core.crypto.sealing import OVERHEAD, SealingKeyPair, Suite, open_, seal, suite_of
from core.errors import CryptoError
from tests.seeded import SeededRng

BOTH = pytest.mark.parametrize("suite", Suite, ids=lambda suite: suite.label)
VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "hpke.json").read_text())


@BOTH
def test_opens_only_with_the_key_info_and_aad(seed: int, suite: Suite) -> None:
    rng = SeededRng(seed)
    key, other = SealingKeyPair.generate(rng, suite), SealingKeyPair.generate(rng, suite)
    assert len(key.public_key) == suite.public_key_size
    sealed = seal(key.public_key, b"data key", b"delivery", b"task 3", suite)
    assert len(sealed) == len(b"data key") + suite.overhead
    assert open_(key.private_key, sealed, b"delivery", b"task 3", suite) == b"data key"
    for private, text, info, aad in [
        (other.private_key, sealed, b"delivery", b"task 3"),
        (key.private_key, sealed, b"delivered", b"task 3"),
        (key.private_key, sealed, b"delivery", b"task 4"),
        (key.private_key, sealed, b"deliveryt", b"ask 3"),
        (key.private_key, sealed[:-1], b"delivery", b"task 3"),
        (key.private_key, sealed[: suite.overhead - 1], b"delivery", b"task 3"),
        (key.private_key, b"", b"delivery", b"task 3"),
        (key.private_key, bytes(32) + sealed[32:], b"delivery", b"task 3"),
        (key.private_key, sealed[:-1] + bytes([sealed[-1] ^ 1]), b"delivery", b"task 3"),
        (key.private_key, bytes([sealed[0] ^ 1]) + sealed[1:], b"delivery", b"task 3"),
        (key.private_key[1:], sealed, b"delivery", b"task 3"),
    ]:
        with pytest.raises(CryptoError):
            open_(private, text, info, aad, suite)


@BOTH
def test_two_seals_of_one_plaintext_differ(seed: int, suite: Suite) -> None:
    key = SealingKeyPair.generate(SeededRng(seed), suite)
    assert seal(key.public_key, b"x", b"", b"", suite) != seal(key.public_key, b"x", b"", b"", suite)


def test_what_one_suite_sealed_the_other_does_not_open(seed: int) -> None:
    """Also with the half of a hybrid key that is an X25519 key: dropping the other half is no way round it."""
    hybrid = SealingKeyPair.generate(SeededRng(seed), Suite.HYBRID)
    assert SealingKeyPair.from_private(hybrid.private_key).public_key != hybrid.public_key[-32:]
    half = seal(hybrid.public_key[-32:], b"x" * 2000, b"", b"")
    whole = seal(hybrid.public_key, b"x" * 2000, b"", b"", Suite.HYBRID)
    for sealed, suite in ((half, Suite.HYBRID), (whole, Suite.X25519), (whole[1088:], Suite.X25519)):
        with pytest.raises(CryptoError):
            open_(hybrid.private_key, sealed, b"", b"", suite)


@BOTH
@pytest.mark.parametrize("change", ["short", "long", "other suite", "small order"])
def test_weak_public_keys_are_refused(suite: Suite, change: str) -> None:
    good = SealingKeyPair.generate(SeededRng("weak"), suite).public_key
    other = Suite.HYBRID if suite is Suite.X25519 else Suite.X25519
    bad = {
        "short": good[:-1],
        "long": good + b"\0",
        "other suite": SealingKeyPair.generate(SeededRng("weak"), other).public_key,
        "small order": good[:-32] + bytes(32),
    }[change]
    with pytest.raises(CryptoError):
        seal(bad, b"x", b"", b"", suite)


def test_a_hybrid_key_whose_lattice_half_is_no_key_is_refused() -> None:
    good = SealingKeyPair.generate(SeededRng("weak"), Suite.HYBRID).public_key
    with pytest.raises(CryptoError, match="cannot seal"):
        seal(b"\xff" * 1184 + good[1184:], b"x", b"", b"", Suite.HYBRID)


def test_suites_have_the_registrys_numbers() -> None:
    assert [suite_of(number).label for number in (0x0020, 0x647A)] == ["x25519", "hybrid"]
    with pytest.raises(CryptoError, match=r"suite 0x0021 is unknown here; known: x25519 \(0x0020\), hybrid \(0x647a\)"):
        suite_of(0x0021)


@BOTH
def test_the_private_half_is_not_shown(seed: int, suite: Suite) -> None:
    key = SealingKeyPair.generate(SeededRng(seed), suite)
    assert repr(key.private_key) not in repr(key)


def opened(vector: dict[str, Any]) -> bytes:
    suite = suite_of(vector["kem_id"])
    # Those of the suite: what is opened below is opened as the product opens it.
    assert (vector["kdf_id"], vector["aead_id"]) == (1, 1 if suite is Suite.X25519 else 3)
    private = bytes.fromhex(vector["private_key"])
    key = (
        sealing._private(private) if suite is Suite.X25519 else hpke.MLKEM768X25519PrivateKey(*sealing._hybrid_halves(private))
    )
    return openssl.hpke._decrypt_with_aad(
        sealing._HPKE[suite], bytes.fromhex(vector["enc"] + vector["ct"]), key, bytes.fromhex(vector["info"]),
        bytes.fromhex(vector["aad"]),
    )  # fmt: skip


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["source"][:20])
def test_published_vectors(vector: dict[str, Any]) -> None:
    """RFC 9180, appendix A.1.1, and draft-ietf-hpke-pq: these very suites, key derivation included."""
    suite = suite_of(vector["kem_id"])
    pair = SealingKeyPair.from_private(bytes.fromhex(vector["private_key"]), suite)
    assert pair.public_key.hex() == vector["public_key"]
    assert opened(vector).hex() == vector["pt"]


@pytest.mark.shared
def test_the_rfc_vector_here_is_the_published_one(shared_data: Path) -> None:
    published = json.loads((shared_data / "vectors" / "rfc9180_hpke.json").read_text())
    theirs = next(v for v in published if (v["mode"], v["kem_id"], v["kdf_id"], v["aead_id"]) == (0, 32, 1, 1))
    ours = next(v for v in VECTORS if v["kem_id"] == 32)
    assert (ours["enc"], ours["info"], ours["private_key"]) == (theirs["enc"], theirs["info"], theirs["skRm"])
    assert all(ours[name] == theirs["encryptions"][0][name] for name in ("aad", "ct", "pt"))


def test_overhead_of_the_first_suite_is_what_others_count_with() -> None:
    assert Suite.X25519.overhead == OVERHEAD
