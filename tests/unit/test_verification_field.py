"""Arithmetic modulo t against Python's integers, and the wire form of values."""

from __future__ import annotations

import numpy as np
import pytest

from core.errors import InputError, LimitError, MalformedError
from core.verification.field import (
    T,
    centred,
    dot,
    expand_values,
    matmul,
    matmul_small,
    multiply,
    pack_values,
    random_values,
    unpack_values,
)
from tests.seeded import SeededRng

RNG = np.random.default_rng(1)
EXTREME = np.array([0, 1, T - 1, T // 2, T // 2 + 1, 1 << 17, (1 << 17) - 1, 1 << 32], dtype=np.int64)


def test_multiply_at_the_edges() -> None:
    found = multiply(EXTREME[:, None], EXTREME[None, :])
    assert found.tolist() == [[a * b % T for b in EXTREME.tolist()] for a in EXTREME.tolist()]
    assert multiply(EXTREME, -3).tolist() == [-3 * a % T for a in EXTREME.tolist()]


@pytest.mark.parametrize("inner", [1, 7, 1000])
def test_matmul_is_exact(inner: int) -> None:
    a = RNG.integers(0, T, (3, inner))
    b = RNG.integers(-T, T, (inner, 2))
    wanted = (a.astype(object) @ b.astype(object)) % T
    assert matmul(a, b).tolist() == wanted.tolist()
    assert dot(a[0], b[:, 0]) == wanted[0, 0]


def test_matmul_of_largest_values_over_many_terms() -> None:
    """The worst case of every partial sum, and more terms than one float64 pass takes."""
    terms = (1 << 18) + 3
    ones = np.full(terms, T - 1, dtype=np.int64)
    assert dot(ones, ones) == terms % T


def test_matmul_small_agrees() -> None:
    a, b = RNG.integers(0, T, (4, 500)), RNG.integers(-127, 128, (500, 6))
    assert (matmul_small(a, b.astype(np.float64)) == matmul(a, b)).all()


def test_centred() -> None:
    assert centred(np.array([0, 1, T - 1, T // 2, T // 2 + 1, -1])).tolist() == [0, 1, -1, T // 2, -(T // 2), -1]


def test_expansion_is_pinned_and_below_t() -> None:
    values = expand_values(b"domain", b"seed", 1000)
    assert values[:3].tolist() == [5820899696, 660244998, 569515995]
    assert int(values.max()) < T
    assert (expand_values(b"domain", b"seed", 10) == values[:10]).all()
    assert (expand_values(b"other", b"seed", 10) != values[:10]).all()


def test_random_values_replace_what_is_rejected() -> None:
    class High:
        """Gives values above t first."""

        def __init__(self) -> None:
            self.calls = 0

        def bytes(self, count: int) -> bytes:
            self.calls += 1
            return b"\xff" * count if self.calls == 1 else SeededRng(1).bytes(count)

    values = random_values(High(), 5)
    assert values.shape == (5,)
    assert int(values.max()) < T


def test_packing_round_trips_and_is_checked() -> None:
    values = np.concatenate([EXTREME, RNG.integers(0, T, 92)]).reshape(10, 10)
    data = pack_values(values)
    assert len(data) == 500
    assert (unpack_values(data, (10, 10)) == values).all()
    with pytest.raises(LimitError):
        unpack_values(data + b"\x00", (10, 10))
    with pytest.raises(MalformedError, match="truncated"):
        unpack_values(data[:-1], (10, 10))
    with pytest.raises(MalformedError, match="not below"):
        unpack_values(T.to_bytes(5, "little"), (1,))
    for bad in (np.array([T]), np.array([-1])):
        with pytest.raises(InputError):
            pack_values(bad)
