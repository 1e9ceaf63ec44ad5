"""core.crypto.signing: Ed25519, strict, with domains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.crypto import signing
from core.crypto.signing import KeyPair, sign, verify
from core.errors import CryptoError
from tests.seeded import SeededRng

# The eight points of small order, and encodings of y >= p (RFC 8032, section 5.1.3).
SMALL_ORDER = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
]
NON_CANONICAL = [
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "0100000000000000000000000000000000000000000000000000000000000080",
]


def test_a_signature_verifies_only_for_its_key_domain_and_message(seed: int) -> None:
    rng = SeededRng(seed)
    key, other = KeyPair.generate(rng), KeyPair.generate(rng)
    signature = sign(key, b"vote", b"block 7")
    verify(key.public_key, b"vote", b"block 7", signature)
    for public, domain, message, bad in [
        (other.public_key, b"vote", b"block 7", signature),
        (key.public_key, b"proposal", b"block 7", signature),
        (key.public_key, b"vote", b"block 8", signature),
        (key.public_key, b"voteb", b"lock 7", signature),
        (key.public_key, b"vote", b"block 7", signature[:63]),
        (key.public_key, b"vote", b"block 7", bytes(64)),
        (key.public_key[:31], b"vote", b"block 7", signature),
    ]:
        with pytest.raises(CryptoError):
            verify(public, domain, message, bad)


def test_the_private_half_is_not_shown(seed: int) -> None:
    key = KeyPair.generate(SeededRng(seed))
    assert key.seed.hex() not in repr(key)
    assert repr(key.seed) not in repr(key)


@pytest.mark.parametrize("domain", [b"", b"x" * 256])
def test_a_domain_is_neither_empty_nor_long(domain: bytes, seed: int) -> None:
    with pytest.raises(CryptoError, match="1 to 255"):
        sign(KeyPair.generate(SeededRng(seed)), domain, b"")


def test_a_private_key_has_32_bytes() -> None:
    with pytest.raises(CryptoError, match="32 bytes, got 31"):
        KeyPair.from_seed(bytes(31))


@pytest.mark.parametrize("public_key", SMALL_ORDER + NON_CANONICAL)
def test_weak_keys_are_refused(public_key: str) -> None:
    """Under the identity as key, (R, S) = (identity, 0) fits every message. Fails without check_public_key."""
    forged = bytes.fromhex(SMALL_ORDER[0]) + bytes(32)
    with pytest.raises(CryptoError, match="prime-order group"):
        verify(bytes.fromhex(public_key), b"vote", b"anything", forged)


def test_s_is_reduced(seed: int) -> None:
    key = KeyPair.generate(SeededRng(seed))
    signature = sign(key, b"d", b"m")
    order = 2**252 + 27742317777372353535851937790883648493
    s = int.from_bytes(signature[32:], "little") + order
    with pytest.raises(CryptoError):
        verify(key.public_key, b"d", b"m", signature[:32] + s.to_bytes(32, "little"))


@pytest.mark.shared
def test_wycheproof_vectors(shared_data: Path) -> None:
    groups = json.loads((shared_data / "vectors" / "wycheproof_ed25519_test.json").read_text())["testGroups"]
    count = 0
    for group in groups:
        public_key = bytes.fromhex(group["publicKey"]["pk"])
        for case in group["tests"]:
            message, signature = bytes.fromhex(case["msg"]), bytes.fromhex(case["sig"])
            count += 1
            if case["result"] == "valid":
                signing._verify_raw(public_key, message, signature)
            else:
                with pytest.raises(CryptoError):
                    signing._verify_raw(public_key, message, signature)
    assert count == 75


def test_both_libraries_refuse_what_only_an_equation_times_eight_accepts() -> None:
    key, message, signature = signing._TORSION
    assert signing._IS_SODIUM_STRICT
    with pytest.raises(CryptoError):
        signing._verify_raw(key, message, signature)


def test_without_the_fast_library_the_other_one_decides(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    key = KeyPair.generate(SeededRng(seed))
    signature = sign(key, b"vote", b"block 7")
    monkeypatch.setattr(signing, "_IS_SODIUM_STRICT", False)
    verify(key.public_key, b"vote", b"block 7", signature)
    with pytest.raises(CryptoError):
        verify(key.public_key, b"vote", b"block 8", signature)


def test_a_remembered_signature_is_checked_once_and_answers_for_nothing_else(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    checked: list[bytes] = []
    really = signing._verify_raw

    def verify_raw(public_key: bytes, message: bytes, signature: bytes) -> None:
        checked.append(message)
        really(public_key, message, signature)

    monkeypatch.setattr(signing, "_verify_raw", verify_raw)
    known = signing.Remembered(4)
    key, other = (KeyPair.generate(SeededRng(seed + n)) for n in range(2))
    good = sign(key, b"vote", b"block 7")
    for _ in range(3):
        known.verify(key.public_key, b"vote", b"block 7", good)
    assert len(checked) == 1
    # Every part counts, and where one ends and the next begins.
    for public_key, domain, message, signature in (
        (other.public_key, b"vote", b"block 7", good),
        (key.public_key, b"vot", b"eblock 7", good),
        (key.public_key, b"vote", b"block 8", good),
        (key.public_key, b"vote", b"block 7", good[:-1] + bytes([good[-1] ^ 1])),
        (key.public_key + good[:1], b"vote", b"block 7", good[1:]),
        (key.public_key[:-1], b"vote", b"block 7", key.public_key[-1:] + good),
    ):
        for _ in range(2):
            with pytest.raises(CryptoError):
                known.verify(public_key, domain, message, signature)
    for number in range(100):
        message = number.to_bytes(2, "big")
        known.verify(key.public_key, b"vote", message, sign(key, b"vote", message))
        assert len(known._young) + len(known._old) <= 8
    checked.clear()
    for number in range(96, 100):
        message = number.to_bytes(2, "big")
        known.verify(key.public_key, b"vote", message, sign(key, b"vote", message))
    assert not checked
