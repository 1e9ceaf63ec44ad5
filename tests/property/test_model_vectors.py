"""flatten and unflatten are inverses for every family, and no other vector is a model."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.errors import MalformedError
from pool.flower.wire import Precision, Update, delta_from, delta_to_bytes
from pool.learning.model_spec import ACTIVATIONS, IMAGES, ModelSpec, add, flatten, subtract, unflatten

widths = st.integers(1, 40)
dense = st.builds(ModelSpec, widths, st.integers(2, 40), st.lists(widths, max_size=5).map(tuple), st.sampled_from(ACTIVATIONS))
regression = st.builds(
    ModelSpec, widths, st.just(1), st.lists(widths, max_size=3).map(tuple), st.sampled_from(ACTIVATIONS), st.just("regression")
)
lenet = st.builds(
    ModelSpec, st.sampled_from(sorted(IMAGES)), st.integers(2, 40), st.just(()), st.sampled_from(ACTIVATIONS), st.just("lenet")
)
specs = st.one_of(dense, regression, lenet)


@settings(deadline=None, max_examples=50)
@given(specs, st.integers(0, 1000))
def test_a_vector_and_its_layers_are_the_same_numbers(spec: ModelSpec, seed: int) -> None:
    vector = np.random.default_rng(seed).normal(size=spec.parameters)
    weights = unflatten(spec, vector)
    assert [W.shape for W, _ in weights] == list(spec.shapes)
    assert sum(W.size + b.size for W, b in weights) == spec.parameters
    np.testing.assert_array_equal(flatten(weights), vector)
    assert all(np.shares_memory(W, vector) for W, _ in weights), "views, not copies"
    np.testing.assert_array_equal(flatten(subtract(add(weights, weights), weights)), vector + vector - vector)
    single = unflatten(spec, vector.astype(np.float32))
    assert flatten(add(single, weights)).dtype == np.float32, "a model that is kept stays as small as it was"


@settings(deadline=None, max_examples=50)
@given(specs, st.integers(-5, 5).filter(bool))
def test_another_length_is_no_model(spec: ModelSpec, off: int) -> None:
    with pytest.raises(MalformedError, match="parameters"):
        unflatten(spec, np.zeros(max(0, spec.parameters + off)) if spec.parameters + off > 0 else np.zeros(0))
    with pytest.raises(MalformedError):
        unflatten(spec, np.zeros((spec.parameters, 1)))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=50), st.sampled_from(Precision))
@example([3.401992901712019e38, -3.4028234663852886e38], Precision.FLOAT16)  # rounds up to 2^128
def test_any_step_of_finite_floats_travels(values: list[float], precision: Precision) -> None:
    delta = np.array(values, dtype=np.float64)
    update = Update(1, 0.0, 1, 1, precision, delta_to_bytes(delta, precision))
    found = delta_from(update, len(values))
    largest = float(np.abs(delta).max(initial=0.0))
    loss = 0.0 if precision is Precision.FLOAT32 else 2.0**-11
    np.testing.assert_allclose(found, delta, rtol=loss, atol=largest * 2.0**-37)


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=60), st.integers(0, 255), st.integers(0, 30))
def test_any_bytes_are_a_step_or_an_error(data: bytes, version: int, count: int) -> None:
    try:
        found = delta_from(Update(1, 0.0, 1, 1, version, data), count)
    except MalformedError:
        return
    assert found.shape == (count,)
    assert found.dtype == np.float32
