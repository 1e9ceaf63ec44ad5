"""The scored model is exact: tables, bounds, ties, encoding."""

from __future__ import annotations

import decimal
import hashlib
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from bench.exactness import reference
from core.chain.block import MAX_VM_BODY
from core.chain.transaction import Activation
from core.crypto.homomorphic import PARAMS
from core.errors import CorruptError, LimitError, MalformedError
from core.verification import activations
from core.verification.field import T
from core.verification.scored_model import BIAS_BOUND, MAX_LAYERS, ModelFamily, ModelShape, ScoredModel, predict
from core.verification.task import check_spec
from tests.models import random_features, random_model
from tests.verification import make_world


@pytest.mark.parametrize("activation", list(Activation))
def test_tables_have_their_pinned_hash(activation: Activation) -> None:
    table = activations.table(activation)
    assert hashlib.sha256(table.astype("<i2").tobytes()).hexdigest() == activations.PINNED[activation]
    assert table.shape == (4096,)


def test_sigmoid_is_monotone_and_symmetric() -> None:
    table = activations.table(Activation.SIGMOID).astype(int)
    assert (np.diff(table) >= 0).all()
    assert table[2048] == 512
    assert (table[2049:] + table[2047:0:-1] - 1023 <= 0).all()
    assert table[0] == 0
    assert table[-1] == 1023


def test_the_sigmoid_is_right_to_the_last_bit() -> None:
    """Another way to the same table: powers of exp(-1/256) in fixed point with 256 bits, in integers alone."""
    one = 1 << 256
    step = term = one
    for k in range(1, 60):
        term = -term // (256 * k)
        step += term
    wanted, power = [], one
    for index in range(2049):
        # round(1023 / (1 + power)). But for index 0, a half that goes to the even 512, no value is within 2^-20 of a half,
        # so that truncated powers do.
        numerator = 2 * 1023 * one
        wanted.append((numerator + one + power) // (2 * (one + power)))
        rest = (numerator + one + power) % (2 * (one + power))
        assert index == 0 or min(rest, 2 * (one + power) - rest) > one >> 20
        power = power * step >> 256
    table = activations.table(Activation.SIGMOID).astype(int)
    assert table[2048:].tolist() == wanted[:2048]
    assert table[:2048].tolist() == [1023 - value for value in wanted[:0:-1]]


def test_tables_do_not_depend_on_the_decimal_context(monkeypatch: pytest.MonkeyPatch) -> None:
    with decimal.localcontext() as context:
        context.prec, context.rounding = 2, decimal.ROUND_UP
        activations.table.cache_clear()
        assert activations.table(Activation.SIGMOID)[0] == 0
    monkeypatch.setitem(activations.PINNED, Activation.SIGMOID, "0" * 64)
    activations.table.cache_clear()
    with pytest.raises(CorruptError, match="pinned"):
        activations.table(Activation.SIGMOID)
    activations.table.cache_clear()


@pytest.mark.parametrize("activation", list(Activation))
@pytest.mark.parametrize("depth", range(1, MAX_LAYERS + 1))
def test_every_depth_is_the_plain_computation(activation: Activation, depth: int) -> None:
    """float64 products by BLAS, against int64 sums without it; some layers one unit wide."""
    dims = (7, *[(5, 1, 12, 3)[layer % 4] for layer in range(depth - 1)], 4)
    model, features = random_model(dims, activation, depth, shift=depth), random_features(40, 7, depth)
    for found, wanted in zip(model.forward(features)[0], reference(model, features), strict=True):
        assert (found == wanted).all()


def test_a_thousand_classes() -> None:
    model, features = random_model((20, 1000), Activation.IDENTITY, 1), random_features(30, 20, 1)
    (z,), predictions = model.forward(features)
    (wanted,) = reference(model, features)
    assert (z == wanted).all()
    assert predictions.tolist() == [row.tolist().index(max(row.tolist())) for row in wanted]
    assert model.count(features, predictions) == 30


def test_a_family_whose_body_is_too_large_is_refused_at_publication() -> None:
    """Nobody could commit such a model: its body would pass the limit of ``Vm`` bodies."""
    spec = make_world((3, 2), 4).task.spec
    fits = MAX_VM_BODY // (2 * PARAMS.poly_bytes) * PARAMS.degree // 512
    wide = replace(spec, features=510, classes=2, hidden=(fits + 1,), test_blobs=spec.test_blobs)
    with pytest.raises(LimitError, match="parameters"):
        check_spec(wide)


def test_apply_shifts_arithmetically_and_clamps() -> None:
    z = np.array([-(1 << 31), -5, -4, -1, 0, 3, 4, 1 << 31], dtype=np.int64)
    assert activations.apply(Activation.IDENTITY, z, 2).tolist() == [-2048, -2, -1, -1, 0, 0, 1, 2047]


def test_forward_is_the_formula() -> None:
    model = random_model((5, 4, 3), Activation.RELU, 1)
    a = random_features(7, 5, 2)
    z1 = a.astype(int) @ model.weights[0] + model.biases[0]
    x1 = np.clip(z1 >> model.shape.shifts[0], 0, 2047)
    z2 = x1 @ model.weights[1] + model.biases[1]
    z, predictions = model.forward(a)
    assert (z[0] == z1).all()
    assert (z[1] == z2).all()
    assert (predictions == z2.argmax(axis=1)).all()


def test_ties_go_to_the_lowest_index() -> None:
    assert predict(np.array([[1, 3, 3], [2, 2, 2], [0, 0, 1]])).tolist() == [1, 0, 2]


def test_every_model_stays_within_its_bounds() -> None:
    dims = (40, 30, 20, 10)
    family = ModelFamily(dims, Activation.IDENTITY, 10)
    weights = tuple(np.full((r, c), 511, dtype=np.int64) for r, c in pairwise(dims))
    biases = tuple(np.full(c, BIAS_BOUND, dtype=np.int64) for c in dims[1:])
    model = ScoredModel(ModelShape(dims, Activation.IDENTITY, 10, (0, 0)), weights, biases)
    for a in (np.full((1, 40), 127, dtype=np.int8), np.full((1, 40), -127, dtype=np.int8)):
        for z, bound in zip(model.forward(a)[0], family.bounds(), strict=True):
            assert np.abs(z).max() <= bound < T / 2


def test_a_family_that_could_wrap_around_is_refused() -> None:
    """Attack 13. Defence: the bound in ModelFamily; without it |z| could pass t/2 and come back as another number."""
    with pytest.raises(LimitError, match="layer 2"):
        ModelFamily((64, 4000, 10), Activation.IDENTITY, 12)


@pytest.mark.parametrize(("weight", "bias"), [(512, 0), (-512, 0), (0, BIAS_BOUND + 1), (-(2**63), 0), (0, -(2**63))])
def test_out_of_range_weights_are_refused(weight: int, bias: int) -> None:
    shape = ModelShape((2, 2), Activation.IDENTITY, 10, ())
    with pytest.raises(MalformedError, match="beyond"):
        ScoredModel(shape, (np.array([[weight, 0], [0, 0]]),), (np.array([bias, 0]),))


def test_encoding_round_trips_and_is_checked() -> None:
    model = random_model((6, 5, 4, 3), Activation.SIGMOID, 3)
    values = model.encode()
    again = ScoredModel.decode(model.shape, values)
    assert (again.encode() == values).all()
    with pytest.raises(MalformedError):
        ScoredModel.decode(model.shape, values[:-1])
    values[0] = 512
    with pytest.raises(MalformedError):
        ScoredModel.decode(model.shape, values)


@pytest.mark.parametrize("shifts", [(), (1, 2), (32,)])
def test_shape_needs_one_shift_a_hidden_layer(shifts: tuple[int, ...]) -> None:
    with pytest.raises(MalformedError):
        ModelShape((4, 3, 2), Activation.RELU, 10, shifts).family()


@pytest.mark.parametrize("dims", [(4,), (4, 0), tuple([2] * 11), (4, 70000)])
def test_odd_widths_are_refused(dims: tuple[int, ...]) -> None:
    with pytest.raises(LimitError):
        ModelFamily(dims, Activation.RELU, 10)


def test_features_are_checked() -> None:
    model = random_model((3, 2), Activation.RELU, 0)
    for bad in (np.zeros((2, 4), np.int8), np.full((2, 3), -128, np.int8), np.zeros((2, 3), np.int16)):
        with pytest.raises(MalformedError):
            model.forward(bad)  # type: ignore[arg-type]
