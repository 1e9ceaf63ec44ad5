"""Interoperation with SEAL on the stored vectors, in both directions; and that no byte of a peer comes near its parser."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.exactness import Case, play
from core.chain.transaction import Activation
from core.crypto.homomorphic import (
    PARAMS,
    Residues,
    SealTwin,
    combine_reference,
    decrypt,
    dot_weights,
    encrypt_public,
    measure_noise,
    multiply_poly_reference,
    public_key,
)
from core.crypto.homomorphic import seal as shim
from core.errors import CryptoError, MalformedError
from tests.homomorphic_vectors import Known, all_vectors, known, stored

T, N = PARAMS.plain_modulus, PARAMS.degree
ROOT = Path(__file__).parent.parent.parent
PRODUCT = ("core", "services", "node", "pool", "provider", "requester")


@pytest.fixture(scope="module")
def fixed() -> Known:
    return known()


@pytest.fixture(scope="module")
def twin(fixed: Known) -> SealTwin:
    return SealTwin(fixed.sk.s)


def test_the_stored_vectors(fixed: Known) -> None:
    assert all_vectors(fixed) == stored()


def test_seal_reads_every_stored_ciphertext(fixed: Known, twin: SealTwin) -> None:
    """What ours decrypt to here, they decrypt to in SEAL: rows, bodies, products, combinations, masked ones, numbers."""
    wanted = {
        "symmetric": fixed.plain,
        "public": fixed.plain,
        "combination": (fixed.matrix.astype(object) @ fixed.plain.astype(object) % T).astype(np.int64),
        "masked": (fixed.plain + fixed.share) % T,
    }
    for name, plain in wanted.items():
        c0, c1 = getattr(fixed, name)
        assert np.array_equal(decrypt(fixed.sk, c0[:2], c1[:2]), plain[:2]), name
        for row in range(2):
            assert np.array_equal(twin.decrypt(c0[row], c1[row]), plain[row]), name
    number0, number1 = fixed.number
    value = int((fixed.plain.astype(object) * np.stack([fixed.poly, fixed.poly[::-1]]).astype(object)).sum()) % T
    assert twin.decrypt(number0[0], number1[0])[0] == value == decrypt(fixed.sk, number0, number1)[0, 0]


def test_seal_and_the_slow_twins_make_the_same_products(fixed: Known, twin: SealTwin) -> None:
    c0, c1 = fixed.symmetric
    theirs = twin.multiply_plain(c0[0], c1[0], fixed.poly)
    for ours, seals, residues in zip(fixed.product, theirs, (c0, c1), strict=True):
        assert np.array_equal(ours[0], seals)
        assert np.array_equal(ours[0], multiply_poly_reference(residues[0], fixed.poly))
    for ours, residues in zip(fixed.combination, (c0, c1), strict=True):
        assert np.array_equal(ours, combine_reference(fixed.matrix, residues))
    assert np.array_equal(twin.multiply_plain(c0[0], c1[0], dot_weights(fixed.poly))[0][:, 0], _head(fixed, c0))


def _head(fixed: Known, c0: Residues) -> Residues:
    """Coefficient 0 by its definition, in integers."""
    centred = [int(w) - T if int(w) > T // 2 else int(w) for w in fixed.poly]
    sums = [sum(w * int(c) for w, c in zip(centred, c0[0, limb], strict=True)) % p for limb, p in enumerate(PARAMS.primes)]
    return np.array(sums, dtype=np.uint64)


def test_what_seal_makes_is_read_here(fixed: Known, twin: SealTwin) -> None:
    for row in range(2):
        c0, c1 = twin.encrypt(fixed.plain[row])
        assert np.array_equal(decrypt(fixed.sk, c0[None], c1[None])[0], fixed.plain[row])
        p0, p1 = twin.multiply_plain(c0, c1, fixed.poly)
        assert np.array_equal(decrypt(fixed.sk, p0[None], p1[None])[0], twin.decrypt(p0, p1))


def test_seals_noise_budget_is_ours(fixed: Known, twin: SealTwin) -> None:
    """Bits left, by SEAL's count and by our measure of the same ciphertexts, differ by less than two."""
    for c0, c1 in (fixed.symmetric, fixed.public, fixed.product):
        ours = PARAMS.noise_limit.bit_length() - measure_noise(fixed.sk, c0[:1], c1[:1]).bit_length()
        assert abs(twin.noise_budget(c0[0], c1[0]) - ours) <= 2


# Who talks to SEAL


def product_files() -> Iterator[tuple[str, ast.Module]]:
    for package in PRODUCT:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(module, name) of every import statement, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)


def test_only_key_generation_calls_the_seal_shim() -> None:
    """The product takes one thing from SEAL: a fresh secret, a function without input. Ciphertexts go to SEAL in tests and
    measurements only, and there through SealTwin, which writes the file itself around checked residues."""
    seen: dict[str, set[str]] = {}
    for file, tree in product_files():
        for module, name in imported(tree):
            if module.partition(".")[0] == "tenseal" or name == "tenseal":
                assert file == "core/crypto/homomorphic/seal.py", f"{file} imports {module}"
            bridge = module == "core.crypto.homomorphic.seal" or (module, name) == ("core.crypto.homomorphic", "seal")
            if bridge or name == "SealTwin":
                seen.setdefault(file, set()).add(name)
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert "SealTwin" not in used, file
    assert seen == {
        "core/crypto/homomorphic/__init__.py": {"SealTwin"},
        "core/crypto/homomorphic/keys.py": {"sample_secret"},
    }


def test_the_shim_loads_only_what_it_wrote() -> None:
    """In the shim itself: one place calls SEAL's loader, and its three callers hand it the result of ``_file``."""
    tree = ast.parse((ROOT / "core/crypto/homomorphic/seal.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    named = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in ("load", "_load")]
    inner = [call for call in named if isinstance(call.func, ast.Attribute) and call.func.attr == "load"]
    assert len(inner) == 1
    for call in named:
        if call is not inner[0]:
            data = call.args[1]
            assert isinstance(data, ast.Call)
            assert isinstance(data.func, ast.Name)
            assert data.func.id == "_file"
    assert len(named) == 4


def test_a_whole_claim_never_loads_anything_into_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("bytes on their way into SEAL's parser")

    monkeypatch.setattr(shim.SealTwin, "__init__", refuse)
    monkeypatch.setattr(shim.SealTwin, "_load", refuse)
    monkeypatch.setattr(shim.os, "memfd_create", refuse)
    assert play(Case(9, 0, (3, 2, 2), Activation.RELU, 10, 9, 0.5)).is_exact


def test_the_twin_checks_residues_before_it_writes_them(fixed: Known, twin: SealTwin, monkeypatch: pytest.MonkeyPatch) -> None:
    c0, c1 = (half[0] for half in fixed.symmetric)
    large = c0.copy()
    large[1, 5] = PARAMS.primes[1]
    loaded: list[object] = []
    monkeypatch.setattr(twin, "_load", lambda *arguments: loaded.append(arguments))
    for bad0, bad1 in ((large, c1), (c0, large), (c0, np.zeros_like(c1)), (c0[:, :-1], c1), (c0.astype(np.int64), c1)):
        with pytest.raises(MalformedError):
            twin.decrypt(bad0, bad1)
    assert not loaded


def test_a_file_that_seal_refuses_is_an_error_of_ours(twin: SealTwin) -> None:
    import tenseal.sealapi as seal

    with pytest.raises(CryptoError, match="SEAL refuses"):
        twin._load(seal.Ciphertext(), b"no file of SEAL")


def test_public_encryption_of_seals_plaintext_space_ends(fixed: Known, twin: SealTwin) -> None:
    """The largest and smallest plaintexts pass both ways."""
    plain = np.stack([np.zeros(N, dtype=np.int64), np.full(N, T - 1)])
    c0, c1 = encrypt_public(public_key(fixed.sk), plain, b"ends of the space")
    for row in range(2):
        assert np.array_equal(twin.decrypt(c0[row], c1[row]), plain[row])
