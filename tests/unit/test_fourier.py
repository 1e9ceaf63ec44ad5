"""Products by Fourier transform against the number-theoretic ones and against Python's integers."""

from __future__ import annotations

import numpy as np
import pytest

from core.crypto.homomorphic import PARAMS, Residues, add, fourier, multiply_poly, multiply_poly_reference
from core.crypto.homomorphic.fourier import MAX_TERMS, Product, small_spectra, spectra
from core.crypto.homomorphic.params import Ints
from core.errors import InternalError, LimitError, MalformedError

SEED = 20260722

PRIMES = np.array(PARAMS.primes, dtype=np.int64)[:, None]
SHAPE = (PARAMS.limbs, PARAMS.degree)


def extremes() -> list[tuple[str, Ints]]:
    """Residues whose limbs are as large as they can be, of either sign."""
    low = (1 << 24) - 1
    return [
        ("half the prime", np.broadcast_to(PRIMES // 2, SHAPE)),
        ("just beyond half the prime", np.broadcast_to(PRIMES // 2 + 1, SHAPE)),
        ("both limbs large", np.broadcast_to(np.int64(low + (low << 25)), SHAPE)),
        ("both limbs small", np.broadcast_to(PRIMES - low - (low << 25), SHAPE)),
        ("minus one", np.broadcast_to(PRIMES - 1, SHAPE)),
        ("zero", np.zeros(SHAPE, dtype=np.int64)),
    ]


def small_factors() -> list[tuple[str, Ints]]:
    sign = np.ones(PARAMS.degree, dtype=np.int64)
    alternating = sign.copy()
    alternating[1::2] = -1
    return [("ones", sign), ("minus ones", -sign), ("alternating", alternating), ("zero", 0 * sign)]


@pytest.mark.parametrize("values", [pytest.param(v, id=name) for name, v in extremes()])
@pytest.mark.parametrize("small", [pytest.param(v, id=name) for name, v in small_factors()])
def test_the_largest_products_are_exact(values: Ints, small: Ints) -> None:
    residues = np.ascontiguousarray(values).view(np.uint64)
    found = Product().add(spectra(residues), small_spectra(small)).residues()
    assert np.array_equal(found, multiply_poly(residues, small))


def test_random_products_equal_pythons_integers() -> None:
    random = np.random.default_rng(SEED)
    residues: Residues = random.integers(0, PRIMES, SHAPE).astype(np.uint64)
    small = random.integers(-1, 2, PARAMS.degree)
    found = Product().add(spectra(residues), small_spectra(small)).residues()
    assert np.array_equal(found, multiply_poly_reference(residues, small))


def test_the_largest_sums_are_exact_and_far_from_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many terms as one sum takes, all of the largest size and the same sign: a hundredth of a unit is never reached."""
    monkeypatch.setattr(fourier, "_TOLERANCE", 0.01)
    random = np.random.default_rng(SEED)
    low = (1 << 24) - 1
    large = np.full(SHAPE, low + (low << 25), dtype=np.uint64)
    product, expected = Product(), np.zeros(SHAPE, dtype=np.uint64)
    for _ in range(MAX_TERMS):
        small = random.choice(np.array([-1, 1]), PARAMS.degree)
        product.add(spectra(large), small_spectra(small))
        expected = add(expected, multiply_poly(large, small))
    assert np.array_equal(product.residues(), expected)
    with pytest.raises(LimitError, match=f"{MAX_TERMS} products"):
        product.add(spectra(large), small_spectra(small))


def test_entries_beyond_one_are_refused() -> None:
    values = np.zeros(PARAMS.degree, dtype=np.int64)
    for entry in (2, -2):
        values[7] = entry
        with pytest.raises(MalformedError, match="small ones are -1, 0 and 1"):
            small_spectra(values)


def test_an_inexact_transform_ends_in_an_error_and_not_in_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """A platform that computes in single precision: fails without the check of the distance from the integers."""
    residues: Residues = np.random.default_rng(SEED).integers(0, PRIMES, SHAPE).astype(np.uint64)
    exact = np.fft.ifft
    monkeypatch.setattr(np.fft, "ifft", lambda values: exact(values.astype(np.complex64)))
    with pytest.raises(InternalError, match="cannot be rounded exactly"):
        Product().add(spectra(residues), small_spectra(np.ones(PARAMS.degree, dtype=np.int64))).residues()
