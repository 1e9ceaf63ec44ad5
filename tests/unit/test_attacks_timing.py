"""Attack 16: time tells nothing about weights. CPU times, interleaved, medians, and bounds far from noise: what skips zeros is
several times quicker on a weight that is zero everywhere, or on a zero column of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from core.chain.transaction import Activation
from core.crypto.homomorphic import PARAMS, combine, expand_uniform
from core.crypto.homomorphic.params import Ints
from core.verification.body import make_body
from core.verification.field import T
from core.verification.forms import SampleSums, label_number
from core.verification.scored_model import ScoredModel
from tests.models import random_model
from tests.seeded import SeededRng
from tests.timing import is_same_time
from tests.verification import World, make_world

DIMS, SAMPLES = (24, 8, 3), 40


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(DIMS, SAMPLES, Activation.RELU, seed=61)


def constant_model(value: int) -> ScoredModel:
    """Every weight of layer one is ``value``."""
    model = random_model(DIMS, Activation.RELU, 6)
    weights = (np.full_like(model.weights[0], value), *model.weights[1:])
    return ScoredModel(model.shape, weights, model.biases)


def test_zero_multipliers_of_rows_take_as_long_as_others(world: World) -> None:
    """The masked rows of an evaluation and the rows of an audit's product. Fails when Rows.combine leaves zero columns out."""
    rows = world.encrypted.rows0[0]
    zeros, ones = np.zeros((8, DIMS[0]), dtype=np.int64), np.ones((8, DIMS[0]), dtype=np.int64)
    assert is_same_time(lambda: rows.combine(zeros), lambda: rows.combine(ones))
    column = ones.copy()
    column[:, : DIMS[0] * 3 // 4] = 0
    assert is_same_time(lambda: rows.combine(column), lambda: rows.combine(ones))
    residues = expand_uniform(PARAMS, b"timing", 8)
    assert is_same_time(lambda: combine(zeros[:, :8], residues), lambda: combine(ones[:, :8], residues))


def test_zero_weights_of_a_form_take_as_long_as_others(world: World) -> None:
    """The pass over A of every check, whose multipliers come from the model (pool) or from w (node); and the label part. Fails
    when zero columns are left out of SampleSums.times, or zero weights out of number."""
    samples = np.ones((3, SAMPLES), dtype=np.int64)
    sums = SampleSums(world.task, world.encrypted, samples)

    def product(columns: Ints) -> Callable[[], object]:
        return lambda: sums.times(columns)

    assert is_same_time(product(np.zeros((3, DIMS[0]), np.int64)), product(np.full((3, DIMS[0]), T - 1)))
    never, always = np.full(SAMPLES, -1), np.zeros(SAMPLES, dtype=np.int64)
    assert is_same_time(
        lambda: label_number(world.task, world.encrypted, never),
        lambda: label_number(world.task, world.encrypted, always),
    )


def test_a_model_of_zeros_is_encrypted_and_scored_in_the_time_of_another(world: World) -> None:
    """The body's encryption and her scoring of it: the pool's and the requester's own steps, which the other side can time."""
    zero, one = constant_model(0), constant_model(1)
    assert is_same_time(lambda: make_body(world.pk, zero, SeededRng(1)), lambda: make_body(world.pk, one, SeededRng(1)))
    features = world.plain.features
    assert is_same_time(
        lambda: [zero.first_layer(features) for _ in range(200)], lambda: [one.first_layer(features) for _ in range(200)]
    )
