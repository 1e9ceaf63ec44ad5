"""Fast code equals its readable twin on whatever hypothesis finds; bytes of a peer never do harm."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from core.codec import decode, encode
from core.crypto.homomorphic import (
    PARAMS,
    HeParams,
    Ints,
    Residues,
    add,
    check_residues,
    combine,
    combine_reference,
    compose,
    dot_weights,
    multiply_poly,
    multiply_poly_reference,
    negate,
    pack,
    scale_down,
    scale_up,
    sub,
    unpack,
)
from core.crypto.homomorphic.rounding import scale_down_exact
from core.crypto.zero_check import ZeroCommitment, ZeroOpening, ZeroQuery
from core.errors import InputError

T = PARAMS.plain_modulus
SMALL = HeParams(16, T, PARAMS.primes, PARAMS.special_prime)
N, L = SMALL.degree, SMALL.limbs

scalars = st.one_of(st.integers(0, T - 1), st.sampled_from([0, 1, T // 2, T // 2 + 1, T - 1]))


def near_boundaries(value: int) -> int:
    return value % PARAMS.modulus


numbers_mod_q = st.one_of(
    st.integers(0, PARAMS.modulus - 1),
    st.builds(lambda k, d: near_boundaries((2 * k + 1) * PARAMS.modulus // (2 * T) + d), st.integers(0, T), st.integers(-3, 3)),
)


def split(values: list[int]) -> Residues:
    return np.array([[value % prime for value in values] for prime in SMALL.primes], dtype=np.uint64)


polynomials = st.lists(numbers_mod_q, min_size=N, max_size=N).map(split)
plaintexts: st.SearchStrategy[Ints] = st.lists(scalars, min_size=N, max_size=N).map(lambda v: np.array(v, dtype=np.int64))


@given(polynomials, plaintexts)
def test_product_with_a_polynomial(residues: Residues, poly: Ints) -> None:
    out = multiply_poly(residues, poly, SMALL)
    check_residues(out, SMALL)
    assert np.array_equal(out, multiply_poly_reference(residues, poly, SMALL))


@given(st.lists(polynomials, min_size=1, max_size=4), st.data())
def test_combination(parts: list[Residues], data: st.DataObject) -> None:
    residues = np.stack(parts)
    rows = data.draw(st.lists(st.lists(scalars, min_size=len(parts), max_size=len(parts)), min_size=1, max_size=3))
    matrix = np.array(rows, dtype=np.int64)
    assert np.array_equal(combine(matrix, residues, SMALL), combine_reference(matrix, residues, SMALL))


@given(polynomials)
def test_rounding(residues: Residues) -> None:
    down = scale_down(residues, SMALL)
    assert down.tolist() == [scale_down_exact(compose([int(v) for v in residues[:, i]])) for i in range(N)]


@given(plaintexts)
def test_scaling_up_and_down(plain: Ints) -> None:
    assert np.array_equal(scale_down(scale_up(plain, SMALL), SMALL), plain)


@given(polynomials, polynomials)
def test_group_laws(left: Residues, right: Residues) -> None:
    total = add(left, right, SMALL)
    check_residues(total, SMALL)
    assert np.array_equal(sub(total, right, SMALL), left)
    assert np.array_equal(sub(left, right, SMALL), add(left, negate(right, SMALL), SMALL))


@given(plaintexts, plaintexts)
def test_coefficient_zero_is_the_inner_product(message: Ints, weights: Ints) -> None:
    poly = dot_weights(weights, SMALL)
    first = int(poly[0]) * int(message[0]) - sum(int(poly[n]) * int(message[N - n]) for n in range(1, N))
    assert first % T == sum(int(w) * int(m) for w, m in zip(weights, message, strict=True)) % T


@given(st.lists(polynomials, min_size=0, max_size=3))
def test_wire_form_round_trip(parts: list[Residues]) -> None:
    residues = np.stack(parts) if parts else np.empty((0, L, N), dtype=np.uint64)
    data = pack(residues, SMALL)
    assert len(data) == len(parts) * SMALL.poly_bytes
    assert np.array_equal(unpack(data, len(parts), SMALL), residues)


@given(st.binary(max_size=2 * SMALL.poly_bytes + 1), st.integers(0, 2))
def test_any_bytes_are_refused_or_canonical(data: bytes, count: int) -> None:
    try:
        residues = unpack(data, count, SMALL)
    except InputError:
        return
    assert pack(residues, SMALL) == data


@settings(max_examples=50)
@given(st.sampled_from([ZeroQuery, ZeroCommitment, ZeroOpening]), st.binary(max_size=200))
def test_messages_of_the_zero_check(kind: type[ZeroQuery | ZeroCommitment | ZeroOpening], data: bytes) -> None:
    try:
        message = decode(kind, data)
    except InputError:
        return
    assert encode(message) == data
