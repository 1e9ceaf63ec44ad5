"""Models, local training, partitions and data files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from core.errors import ConfigError, LimitError, MalformedError, NotFoundError
from pool.learning import datasets
from pool.learning.datasets import Dataset
from pool.learning.model_spec import ModelSpec, add, flatten, forward, initial_weights, score, unflatten
from pool.learning.models import build, export_weights, import_weights
from pool.learning.training import TrainingPlan, train_locally
from services.data import partition
from tests.mining_support import digits

SPECS = [
    ModelSpec(5, 3),
    ModelSpec(5, 3, (4,), "sigmoid"),
    ModelSpec(5, 3, (6, 4), "relu"),
    ModelSpec(5, 3, (4,), "identity"),
]


def some_rows(count: int = 40, features: int = 5, classes: int = 3, seed: int = 1) -> Dataset:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, features)).astype(np.float32)
    return Dataset(x, (x[:, :classes].argmax(axis=1)).astype(np.int64))


def random_weights(spec: ModelSpec, seed: int = 3) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    return unflatten(spec, np.random.default_rng(seed).normal(size=spec.parameters))


@pytest.mark.parametrize("spec", SPECS)
def test_numpy_forward_agrees_with_torch(spec: ModelSpec) -> None:
    weights, data = random_weights(spec), some_rows()
    model = build(spec)
    import_weights(model, weights)
    with torch.no_grad():
        logits = model(torch.from_numpy(data.x)).numpy()
    np.testing.assert_allclose(forward(spec, weights, data.x), logits, rtol=1e-4, atol=1e-5)
    loss = float(torch.nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(data.y)))
    mine = score(spec, weights, data.x, data.y)
    assert mine.loss == pytest.approx(loss, rel=1e-4)
    assert mine.correct == int((logits.argmax(axis=1) == data.y).sum())


@pytest.mark.parametrize("spec", SPECS)
def test_weights_come_back_as_they_went_in(spec: ModelSpec) -> None:
    weights = random_weights(spec)
    model = build(spec)
    import_weights(model, weights)
    assert [part.shape for layer in export_weights(model) for part in layer] == [
        part.shape for layer in weights for part in layer
    ]
    np.testing.assert_allclose(flatten(export_weights(model)), flatten(weights), rtol=1e-6)
    np.testing.assert_array_equal(flatten(unflatten(spec, flatten(weights))), flatten(weights))


def test_the_forward_pass_does_not_overflow() -> None:
    spec = ModelSpec(1, 2, (1,), "sigmoid")
    weights = ((np.array([[1e4]]), np.zeros(1)), (np.array([[1.0, -1.0]]), np.zeros(2)))
    assert np.isfinite(forward(spec, weights, np.array([[1.0], [-1.0]], np.float32))).all()


def test_fedsgd_is_one_step_along_the_full_gradient() -> None:
    spec, data, rate = ModelSpec(5, 3), some_rows(), 0.5
    weights = random_weights(spec)
    update = train_locally(spec, weights, data, TrainingPlan("gradient", 9, rate, 4, 0, 10.0))
    logits = forward(spec, weights, data.x)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(data)), data.y] -= 1
    np.testing.assert_allclose(update.delta[0][0], -rate * data.x.T @ p / len(data), atol=1e-6)
    np.testing.assert_allclose(update.delta[0][1], -rate * p.mean(axis=0), atol=1e-6)
    assert (update.steps, update.examples) == (1, len(data))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_steps_are_those_of_torch(optimizer: str) -> None:
    spec, data, rate = ModelSpec(5, 3, (4,), "sigmoid"), some_rows(), 0.05
    weights = random_weights(spec)
    update = train_locally(spec, weights, data, TrainingPlan(optimizer, 7, rate, len(data), 0, 60.0))
    model = build(spec)
    import_weights(model, weights)
    before = flatten(export_weights(model))
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    reference = kinds[optimizer](model.parameters(), lr=rate)
    for _ in range(7):
        reference.zero_grad()
        torch.nn.functional.cross_entropy(model(torch.from_numpy(data.x)), torch.from_numpy(data.y)).backward()  # type: ignore[no-untyped-call]
        reference.step()
    np.testing.assert_allclose(flatten(update.delta), flatten(export_weights(model)) - before, atol=2e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_training_is_seeded_and_learns(optimizer: str) -> None:
    spec, (train, practice) = ModelSpec(64, 10, (32,), "relu"), digits()
    rate = 0.2 if optimizer == "sgd" else 0.01
    weights = initial_weights(spec, 5)
    plan = TrainingPlan(optimizer, 3, rate, 32, 11, 60.0)
    first, again = (train_locally(spec, weights, train, plan) for _ in range(2))
    np.testing.assert_array_equal(flatten(first.delta), flatten(again.delta))
    other = train_locally(spec, weights, train, TrainingPlan(optimizer, 3, rate, 32, 12, 60.0))
    assert not np.array_equal(flatten(first.delta), flatten(other.delta))
    assert score(spec, add(weights, first.delta), practice.x, practice.y).correct > 0.8 * len(practice)


def test_a_budget_that_is_over_leaves_one_batch() -> None:
    update = train_locally(
        ModelSpec(5, 3), random_weights(ModelSpec(5, 3)), some_rows(), TrainingPlan("sgd", 50, 0.1, 8, 0, -1.0)
    )
    assert update.steps == 1


@pytest.mark.parametrize("parts", [1, 3, 7])
def test_partitions_use_every_row_once(parts: int) -> None:
    labels = digits()[0].y
    for split in (partition.even(labels, parts, 1), partition.dirichlet(labels, parts, 0.3, 1)):
        assert len(split) == parts
        np.testing.assert_array_equal(np.sort(np.concatenate(split)), np.arange(len(labels)))
        assert all(len(rows) for rows in split)
    sizes = [len(rows) for rows in partition.even(labels, parts, 1)]
    assert max(sizes) - min(sizes) <= 1


def test_dirichlet_skews_labels_by_alpha() -> None:
    labels = digits()[0].y

    def largest_share(alpha: float) -> float:
        parts = partition.dirichlet(labels, 4, alpha, 3)
        return float(np.mean([np.bincount(labels[rows], minlength=10).max() / len(rows) for rows in parts]))

    assert largest_share(0.1) > 0.3 > largest_share(100.0)
    again = partition.dirichlet(labels, 4, 0.1, 3)
    assert all(np.array_equal(a, b) for a, b in zip(again, partition.dirichlet(labels, 4, 0.1, 3), strict=True))


def test_impossible_partitions_are_refused() -> None:
    labels = np.zeros(3, np.int64)
    with pytest.raises(ConfigError, match="4 parts"):
        partition.even(labels, 4, 0)
    with pytest.raises(ConfigError, match="alpha"):
        partition.dirichlet(labels, 2, 0.0, 0)


def test_dirichlet_leaves_no_part_empty() -> None:
    split = partition.dirichlet(np.zeros(6, np.int64), 5, 0.01, 0)
    assert all(len(rows) for rows in split)
    assert sorted(np.concatenate(split)) == list(range(6))


def test_npz_round_trip(tmp_path: Path) -> None:
    data = some_rows()
    datasets.save_npz(tmp_path / "rows.npz", data)
    back = datasets.load_npz(tmp_path / "rows.npz", features=5, classes=3)
    np.testing.assert_array_equal(back.x, data.x)
    np.testing.assert_array_equal(back.y, data.y)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ([[1.0, np.nan], [0, 0]], [0, 1], "row 0, feature 1: nan is not a finite number"),
        ([[1e300, 0.0]], [0], r"row 0, feature 0: 1e\+300 is not a finite number of float32"),
        ([[1.0, 2.0]], [3], "row 0: label 3, labels are whole numbers from 0 to 2"),
        ([[1.0, 2.0]], [-1], "row 0: label -1"),
        ([[1.0, 2.0]], [0.5], "row 0: label 0.5, labels are whole numbers"),
        ([[1.0, 2.0]], [0, 1], "1 rows of x but 2 labels"),
        ([[1.0, 2.0, 3.0]], [0], "3 features a row, the task has 2"),
        ([1.0, 2.0], [0, 1], "shape"),
        (np.zeros((0, 2)), [], "no rows"),
        ([["a", "b"]], [0], "numbers"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, x: object, y: object, words: str) -> None:
    np.savez(tmp_path / "bad.npz", x=np.array(x), y=np.array(y))
    with pytest.raises(MalformedError, match=words) as caught:
        datasets.load_npz(tmp_path / "bad.npz", features=2, classes=3)
    assert "bad.npz" in caught.value.message


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        datasets.load_npz(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(MalformedError, match=r"text\.npz"):
        datasets.load_npz(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(2))
    with pytest.raises(MalformedError, match="no array"):
        datasets.load_npz(tmp_path / "other.npz")


def test_a_pickle_in_an_npz_is_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "pickle.npz", x=np.array([{"a": 1}], dtype=object), y=np.array([0]))
    with pytest.raises(MalformedError, match=r"pickle\.npz"):
        datasets.load_npz(tmp_path / "pickle.npz")


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ((0, 2, (), "relu"), LimitError),
        ((2, 1, (), "relu"), LimitError),
        ((2, 2, (0,), "relu"), LimitError),
        ((2, 2, (1,) * 17, "relu"), LimitError),
        ((1 << 20, 1 << 20, (), "relu"), LimitError),
        ((2, 2, (), "tanh"), ConfigError),
    ],
)
def test_impossible_models_are_refused(values: tuple[int, int, tuple[int, ...], str], error: type[Exception]) -> None:
    with pytest.raises(error):
        ModelSpec(*values)


def npy(shape: tuple[int, ...]) -> bytes:
    """A header that says ``shape``, and 64 bytes of data."""
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)


@pytest.mark.parametrize("harm", ["larger than memory", "never closed", "unknown compression", "encrypted", "broken lzma"])
def test_a_hostile_archive_is_refused_as_such(tmp_path: Path, harm: str) -> None:
    """It is a requester's practice set: an error of another kind would end the pool's process."""
    path = tmp_path / "rows.npz"
    method = zipfile.ZIP_LZMA if harm == "broken lzma" else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        shape = (1 << 45,) if harm == "larger than memory" else (8,)
        archive.writestr("x.npy", npy(shape).replace(b")}", b"((") if harm == "never closed" else npy(shape))
        archive.writestr("y.npy", npy((8,)))
    data = bytearray(path.read_bytes())
    listed = data.find(b"PK\x01\x02")
    if harm == "unknown compression":
        data[8] = data[listed + 10] = 99
    elif harm == "encrypted":
        data[6] |= 1
        data[listed + 8] |= 1
    elif harm == "broken lzma":
        data[45] ^= 0xFF
        data[50] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(MalformedError, match=r"rows\.npz: not an \.npz file of plain arrays"):
        datasets.load_npz(path)
