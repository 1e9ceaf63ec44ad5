"""The scored model is exact: tables, bounds, ties, encoding."""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
import pytest

from core.chain.transaction import Activation
from core.errors import LimitError, MalformedError
from core.verification import activations
from core.verification.field import T
from core.verification.scored_model import BIAS_BOUND, ModelFamily, ModelShape, ScoredModel, predict
from tests.models import random_features, random_model


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


@pytest.mark.parametrize(
    ("weight", "bias"), [(512, 0), (-512, 0), (0, BIAS_BOUND + 1), (-(2**63), 0), (0, -(2**63))]
)
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
