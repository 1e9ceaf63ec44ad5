"""Quantisation keeps the accuracy and says what it lost."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from core.chain.transaction import Activation
from core.errors import InputError
from core.verification.quantise import float_forward, quantise, quantise_features
from core.verification.scored_model import MAX_LAYERS

ACTIVATIONS = list(Activation)


def layers(dims: tuple[int, ...], seed: int, spread: float = 1.0) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [(rng.normal(0, spread / np.sqrt(r), (r, c)), rng.normal(0, 0.1, c)) for r, c in pairwise(dims)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("spread", [0.3, 1.0, 8.0])
def test_predictions_survive(activation: Activation, spread: float) -> None:
    """Random networks have small margins, so this is harder than a trained one: under 3 % of predictions change."""
    net = layers((64, 16, 10), 5, spread)
    x = np.random.default_rng(6).uniform(0, 1, (2000, 64))
    model, report = quantise(net, activation, 127.0, 10, x)
    exact = float_forward(net, activation, x).argmax(axis=1)
    same = int((model.forward(quantise_features(x, 127.0))[1] == exact).sum())
    assert report.same_predictions == same
    assert same >= 1940, same
    assert report.loss_points is None


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("depth", range(1, MAX_LAYERS + 1))
def test_every_depth_is_quantised(activation: Activation, depth: int) -> None:
    """Rounding adds up with depth; random networks of nine layers keep nine of ten predictions, of three 97 %."""
    net = layers((24, *[16] * (depth - 1), 5), 50 + depth, 2.0)
    x = np.random.default_rng(6).uniform(-1, 1, (1000, 24))
    model, report = quantise(net, activation, 127.0, 10, x)
    assert model.layers == depth
    assert len(model.shape.shifts) == depth - 1
    assert report.same_predictions >= (970 if depth <= 3 else 900), report
    assert report.clipped_weights == report.clipped_biases == 0


def test_softmax_regression_loses_nothing_at_twelve_bits() -> None:
    net = layers((30, 7), 4, 3.0)
    x = np.rint(np.random.default_rng(8).uniform(-127, 127, (3000, 30)))
    y = float_forward(net, Activation.RELU, x).argmax(axis=1)
    _, report = quantise(net, Activation.RELU, 1.0, 12, x, y)
    assert report.float_correct == 3000
    assert report.loss_samples is not None
    assert report.loss_points == 100.0 * report.loss_samples / 3000
    assert 0 <= report.loss_samples <= 15


def test_torchs_layers_are_taken_transposed() -> None:
    """``Linear.weight`` is (outputs, inputs), so its transpose goes in, as a view."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(3)
    net = torch.nn.Sequential(torch.nn.Linear(12, 9), torch.nn.Sigmoid(), torch.nn.Linear(9, 4))
    found = [(one.weight.detach().numpy().T, one.bias.detach().numpy()) for one in (net[0], net[2])]
    x = np.random.default_rng(2).uniform(0, 1, (500, 12)).astype(np.float32)
    wanted = net(torch.from_numpy(x)).argmax(dim=1).numpy()
    model, report = quantise(found, Activation.SIGMOID, 127.0, 10, x, wanted)
    assert report.float_correct == 500
    assert int((model.forward(quantise_features(x, 127.0))[1] == wanted).sum()) == report.scored_correct >= 485


def test_digits_lose_less_than_half_a_point() -> None:
    """A ridge classifier on scikit-learn's digits: the scored model loses less than 0.5 points."""
    datasets = pytest.importorskip("sklearn.datasets")
    data = datasets.load_digits()
    x, y = data.data / 16.0, data.target.astype(np.int64)
    design = np.hstack([x, np.ones((len(x), 1))])
    solution = np.linalg.solve(design.T @ design + 0.1 * np.eye(65), design.T @ np.eye(10)[y])
    model, report = quantise([(solution[:64], solution[64])], Activation.SIGMOID, 127.0, 10, x, y)
    assert report.loss_points is not None
    assert abs(report.loss_points) < 0.5
    assert report.scored_correct == model.count(quantise_features(x, 127.0), y)


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
@pytest.mark.parametrize(("activation", "name"), [(Activation.SIGMOID, "logistic"), (Activation.RELU, "relu")])
def test_trained_networks_lose_less_than_half_a_point(activation: Activation, name: str) -> None:
    """64-16-16-10 on held-out digits (599 rows; one is 0.17 points)."""
    datasets = pytest.importorskip("sklearn.datasets")
    networks = pytest.importorskip("sklearn.neural_network")
    data = datasets.load_digits()
    x, y = data.data / 16.0, data.target.astype(np.int64)
    held = np.arange(len(y)) % 3 == 0
    made = networks.MLPClassifier((16, 16), activation=name, max_iter=60, learning_rate_init=0.01, random_state=1)
    made.fit(x[~held], y[~held])
    net = list(zip(made.coefs_, made.intercepts_, strict=True))
    _, report = quantise(net, activation, 127.0, 10, x[held], y[held])
    assert report.rows == 599
    assert report.float_correct is not None
    assert report.float_correct > 520
    assert report.loss_points is not None
    assert abs(report.loss_points) < 0.5, report


def test_features_round_and_clamp() -> None:
    assert quantise_features(np.array([[0.5, -3.0, 3.0, 0.004]]), 100.0).tolist() == [[50, -127, 127, 0]]


def test_weights_that_do_not_fit_are_counted() -> None:
    net = [(np.full((2, 2), 500.0), np.zeros(2)), (np.ones((2, 2)), np.zeros(2))]
    _, report = quantise(net, Activation.SIGMOID, 1.0, 10, np.zeros((1, 2)))
    assert report.clipped_weights == 4


def test_a_large_last_bias_keeps_its_bound() -> None:
    model, _ = quantise([(np.full((2, 2), 1e-9), np.array([5.0, -5.0]))], Activation.RELU, 1.0, 10, np.zeros((1, 2)))
    assert model.forward(np.zeros((1, 2), np.int8))[1].tolist() == [0]


@pytest.mark.parametrize(
    "bad",
    [
        [(np.full((2, 2), np.nan), np.zeros(2))],
        [(np.ones((3, 2)), np.zeros(2))],
        [(np.ones((2, 2)), np.zeros(3))],
        [],
        [(np.ones((2, 0)), np.zeros(0))],
        [(np.ones((2, 2)), np.full(2, np.inf))],
    ],
)
def test_unusable_networks_are_refused(bad: list[tuple[np.ndarray, np.ndarray]]) -> None:
    with pytest.raises(InputError):
        quantise(bad, Activation.RELU, 1.0, 10, np.zeros((1, 2)))


@pytest.mark.parametrize("scale", [0.0, -1.0, np.inf, np.nan])
def test_unusable_scales_and_rows_are_refused(scale: float) -> None:
    net = [(np.ones((2, 2)), np.zeros(2))]
    with pytest.raises(InputError, match="scale"):
        quantise(net, Activation.RELU, scale, 10, np.zeros((1, 2)))
    for rows in (np.zeros((0, 2)), np.zeros(2), np.full((1, 2), np.nan)):
        with pytest.raises(InputError):
            quantise(net, Activation.RELU, 1.0, 10, rows)


def test_a_bias_beyond_its_bound_is_clipped_and_counted() -> None:
    net = [(np.full((1, 1), 1e-3), np.array([1e9])), (np.ones((1, 2)), np.zeros(2))]
    _, report = quantise(net, Activation.SIGMOID, 127.0, 10, np.zeros((1, 1)))
    assert report.clipped_biases == 1
