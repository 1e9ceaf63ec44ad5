"""core.crypto.sealing: HPKE, one message per encapsulation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.bindings._rust import openssl
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from core.crypto import sealing
from core.crypto.sealing import OVERHEAD, SealingKeyPair, open_, seal
from core.errors import CryptoError
from tests.seeded import SeededRng


def test_opens_only_with_the_key_info_and_aad(seed: int) -> None:
    rng = SeededRng(seed)
    key, other = SealingKeyPair.generate(rng), SealingKeyPair.generate(rng)
    sealed = seal(key.public_key, b"data key", b"delivery", b"task 3")
    assert len(sealed) == len(b"data key") + OVERHEAD
    assert open_(key.private_key, sealed, b"delivery", b"task 3") == b"data key"
    for private, text, info, aad in [
        (other.private_key, sealed, b"delivery", b"task 3"),
        (key.private_key, sealed, b"delivered", b"task 3"),
        (key.private_key, sealed, b"delivery", b"task 4"),
        (key.private_key, sealed, b"deliveryt", b"ask 3"),
        (key.private_key, sealed[:-1], b"delivery", b"task 3"),
        (key.private_key, sealed[:47], b"delivery", b"task 3"),
        (key.private_key, b"", b"delivery", b"task 3"),
        (key.private_key, bytes(32) + sealed[32:], b"delivery", b"task 3"),
        (key.private_key, sealed[:-1] + bytes([sealed[-1] ^ 1]), b"delivery", b"task 3"),
        (key.private_key[1:], sealed, b"delivery", b"task 3"),
    ]:
        with pytest.raises(CryptoError):
            open_(private, text, info, aad)


def test_two_seals_of_one_plaintext_differ(seed: int) -> None:
    key = SealingKeyPair.generate(SeededRng(seed))
    assert seal(key.public_key, b"x", b"", b"") != seal(key.public_key, b"x", b"", b"")


@pytest.mark.parametrize("public_key", [bytes(32), (1).to_bytes(32, "little"), b"short", bytes(33)])
def test_weak_public_keys_are_refused(public_key: bytes) -> None:
    with pytest.raises(CryptoError):
        seal(public_key, b"x", b"", b"")


def test_the_private_half_is_not_shown(seed: int) -> None:
    key = SealingKeyPair.generate(SeededRng(seed))
    assert repr(key.private_key) not in repr(key)


@pytest.mark.shared
def test_the_library_gives_the_rfc_vector(shared_data: Path) -> None:
    """RFC 9180, appendix A.1.1: the suite used here, sequence number 0."""
    vectors = json.loads((shared_data / "vectors" / "rfc9180_hpke.json").read_text())
    vector = next(v for v in vectors if (v["mode"], v["kem_id"], v["kdf_id"], v["aead_id"]) == (0, 32, 1, 1))
    first = vector["encryptions"][0]
    plaintext = openssl.hpke._decrypt_with_aad(
        sealing._SUITE,
        bytes.fromhex(vector["enc"] + first["ct"]),
        X25519PrivateKey.from_private_bytes(bytes.fromhex(vector["skRm"])),
        bytes.fromhex(vector["info"]),
        bytes.fromhex(first["aad"]),
    )
    assert plaintext == bytes.fromhex(first["pt"])
