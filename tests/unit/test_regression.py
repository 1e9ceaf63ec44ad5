"""Regression is an argmax: the bucket of a real output, exactly for integer weights and cuts, nearly for float ones."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.exactness import reference
from core.chain.transaction import Activation
from core.errors import InputError, LimitError
from core.verification.audit_node import Valid
from core.verification.quantise import float_forward, quantise_features
from core.verification.regression import bucket_columns, buckets, quantile_cuts, quantise_regression
from core.verification.scored_model import BIAS_BOUND, predict
from core.verification.test_set import TestSet
from tests.verification import claim_of, make_audit, make_evaluation, make_world

numbers = st.integers(-(1 << 24), 1 << 24)


@given(st.lists(numbers, min_size=1, max_size=30), st.lists(numbers, min_size=1, max_size=30), st.integers(-200, 200))
def test_the_argmax_is_the_bucket(outputs: list[int], cuts: list[int], weight: int) -> None:
    """For every integer output and every cut, also repeated ones, and outputs right on a cut."""
    ordered = np.sort(np.array(cuts, dtype=np.int64))
    values = np.array([*outputs, *cuts, *(cut + 1 for cut in cuts)], dtype=np.int64)
    weights, biases = bucket_columns(np.array([1, weight]), ordered)
    x = np.stack([values, np.zeros_like(values)], axis=1)
    wanted = [sum(int(cut) < int(value) for cut in ordered) for value in values]
    assert predict(x @ weights + biases).tolist() == wanted == buckets(values, ordered).tolist()
    assert np.abs(weights).max() <= (len(cuts) + 1) // 2 * max(1, abs(weight))


def test_a_value_on_a_cut_is_in_the_lower_bucket() -> None:
    weights, biases = bucket_columns(np.array([1]), np.array([-5, 0, 7]))
    found = predict(np.array([[-6], [-5], [-4], [0], [1], [7], [8]]) @ weights + biases)
    assert found.tolist() == [0, 0, 1, 1, 2, 2, 3]


@given(
    features=st.integers(1, 12), classes=st.integers(2, 20), bits=st.integers(6, 12), seed=st.integers(0, 10_000),
    offset=st.floats(-1e6, 1e6), spread=st.sampled_from([1e-6, 1.0, 1e6]),
)  # fmt: skip
def test_any_linear_model_fits_and_is_its_bucket(
    features: int, classes: int, bits: int, seed: int, offset: float, spread: float
) -> None:
    """The scored model is exactly the bucket of one integer output; which one, its outermost columns tell."""
    random = np.random.default_rng(seed)
    w, x = random.normal(0, spread, (features, 1)), random.uniform(-1, 1, (40, features))
    z = x @ w[:, 0] + offset
    cuts = np.sort(random.choice(z, classes - 1)) if classes <= 40 else z
    model, report = quantise_regression([(w, np.array([offset]))], cuts, Activation.RELU, 127.0, bits, x, z)
    a = quantise_features(x, 127.0)
    matrix, bias = model.weights[0], model.biases[0]
    w_int = matrix[:, 1] - matrix[:, 0]
    cuts_int = bias[:-1] - bias[1:]
    assert (np.diff(cuts_int) >= 0).all()
    assert (model.forward(a)[1] == buckets(a.astype(np.int64) @ w_int, cuts_int)).all()
    assert report.scored_correct == int((model.forward(a)[1] == buckets(z, cuts)).sum())
    assert report.float_correct == 40
    assert np.abs(bias).max() <= BIAS_BOUND


@pytest.mark.parametrize("classes", [2, 3, 5, 10])
def test_real_targets_lose_less_than_a_point(classes: int) -> None:
    """Ridge regression on scikit-learn's diabetes progression (442 rows; one row is 0.23 points)."""
    datasets = pytest.importorskip("sklearn.datasets")
    data = datasets.load_diabetes()
    x, y = data.data / np.abs(data.data).max(), data.target
    design = np.hstack([x, np.ones((len(x), 1))])
    solution = np.linalg.solve(design.T @ design + 1e-3 * np.eye(11), design.T @ y)
    net = [(solution[:10, None], solution[10:])]
    model, report = quantise_regression(net, quantile_cuts(y, classes), Activation.RELU, 127.0, 10, x, y)
    assert model.shape.dims == (10, classes)
    assert report.same_predictions >= 0.97 * report.rows
    assert report.loss_points is not None
    assert report.loss_points < 1.0


@pytest.mark.shared
def test_parkinsons_scores(shared_data: Path) -> None:
    """UPDRS from voice measures: 3,871 rows of 16 features, four buckets; linear regression loses less than 0.5 points."""
    with (shared_data / "federated" / "parkinsons_telemonitoring.csv").open() as file:
        rows = list(csv.reader(file))
    table = np.array([[float(value) for value in row] for row in rows[1:]])
    y, x = table[:, 5], table[:, 6:]
    x = (x - x.mean(axis=0)) / x.std(axis=0) / 4
    design = np.hstack([x, np.ones((len(x), 1))])
    solution = np.linalg.solve(design.T @ design + 1.0 * np.eye(design.shape[1]), design.T @ y)
    net = [(solution[:-1, None], solution[-1:])]
    _, report = quantise_regression(net, quantile_cuts(y, 4), Activation.RELU, 127.0, 10, np.clip(x, -1, 1), y)
    assert report.loss_points is not None
    assert abs(report.loss_points) < 0.5, report


@pytest.mark.parametrize("activation", list(Activation))
def test_networks_with_one_output(activation: Activation) -> None:
    random = np.random.default_rng(3)
    net = [(random.normal(0, 0.4, (8, 12)), random.normal(0, 0.1, 12)), (random.normal(0, 1, (12, 1)), np.array([0.3]))]
    x = random.uniform(-1, 1, (800, 8))
    z = float_forward(net, activation, x)[:, 0]
    model, report = quantise_regression(net, quantile_cuts(z, 6), activation, 127.0, 10, x, z)
    assert model.shape.dims == (8, 12, 6)
    assert report.float_correct == 800
    assert report.scored_correct is not None
    assert report.scored_correct >= 750, report
    a = quantise_features(x, 127.0)
    assert all((z == w).all() for z, w in zip(model.forward(a)[0], reference(model, a), strict=True))


def test_a_regression_is_evaluated_and_audited_like_any_model() -> None:
    """The protocol does not know that it is one: N of pool and node is the number of targets in the right bucket."""
    random = np.random.default_rng(11)
    x = random.uniform(-1, 1, (60, 5))
    w = random.normal(0, 1, (5, 1))
    y = x @ w[:, 0] + 0.2 + random.normal(0, 0.3, 60)
    cuts = quantile_cuts(y, 4)
    model, report = quantise_regression([(w, np.array([0.2]))], cuts, Activation.RELU, 127.0, 10, x, y)
    plain = TestSet(quantise_features(x, 127.0), buckets(y, cuts), 4)
    world = make_world((5, 4), 60, Activation.RELU, seed=21, plain=plain)
    run = make_evaluation(world, model)
    run.offline()
    result = run.online()
    assert result.correct == report.scored_correct
    finding = make_audit(world, replace(claim_of(world, run.body, result.correct), vm=result.vm)).run()
    assert isinstance(finding, Valid)
    assert finding.correct == report.scored_correct
    assert 20 < finding.correct < 60


def test_quantile_cuts_split_evenly_or_say_why_not() -> None:
    targets = np.arange(100.0)
    assert np.bincount(buckets(targets, quantile_cuts(targets, 4))).tolist() == [25, 25, 25, 25]
    for classes, bad in [(1, targets), (4, np.ones(10)), (3, np.zeros(0)), (2, np.array([1.0, np.nan]))]:
        with pytest.raises(InputError):
            quantile_cuts(bad, classes)


NET = [(np.ones((2, 1)), np.zeros(1))]
X = np.zeros((3, 2))


@pytest.mark.parametrize(
    ("net", "cuts", "targets"),
    [
        (NET, [], None),
        (NET, [2.0, 1.0], None),
        (NET, [np.nan], None),
        (NET, [[1.0]], None),
        ([(np.ones((2, 2)), np.zeros(2))], [1.0], None),
        (NET, [1.0], np.zeros(2)),
        ([(np.full((2, 1), np.inf), np.zeros(1))], [1.0], None),
    ],
)
def test_unusable_regressions_are_refused(
    net: list[tuple[np.ndarray, np.ndarray]], cuts: list[float], targets: np.ndarray | None
) -> None:
    with pytest.raises(InputError):
        quantise_regression(net, np.array(cuts), Activation.RELU, 1.0, 10, X, targets)


def test_more_buckets_than_the_bits_hold_are_refused() -> None:
    quantise_regression(NET, np.arange(14.0), Activation.RELU, 1.0, 4, X)
    with pytest.raises(LimitError, match="16 buckets"):
        quantise_regression(NET, np.arange(15.0), Activation.RELU, 1.0, 4, X)
    with pytest.raises(InputError, match="rise"):
        bucket_columns(np.array([1]), np.array([2, 1]))
