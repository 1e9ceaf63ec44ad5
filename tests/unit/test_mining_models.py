"""Every kind of model: shapes, both twins, a step checked by finite differences, learning, hostile specs, half precision."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from core.errors import ConfigError, LimitError, MalformedError, PoflError
from pool.flower import client_app
from pool.flower.checks import check_update
from pool.flower.jobs import MiningJob, job_from_json, job_to_json
from pool.flower.manager import template_of
from pool.flower.wire import (
    MAX_EXPONENT,
    Instruction,
    Precision,
    Update,
    delta_from,
    delta_to_bytes,
    vector_to_bytes,
)
from pool.learning import models, training
from pool.learning.datasets import Dataset
from pool.learning.model_spec import (
    ModelSpec,
    Weights,
    add,
    flatten,
    forward,
    initial_weights,
    score_logits,
    unflatten,
)
from pool.learning.models import build, export_weights, import_weights, outputs
from pool.learning.scoring import practice_score
from pool.learning.targets import TargetRows, Targets, checked_targets
from pool.learning.training import TrainingPlan, train_locally

LINEAR = ModelSpec(4, 1, kind="regression")
KINDS = [
    ModelSpec(5, 3),
    ModelSpec(5, 3, (4,), "sigmoid"),
    LINEAR,
    ModelSpec(4, 1, (3,), "sigmoid", "regression"),
    ModelSpec(784, 10, kind="lenet"),
    ModelSpec(1024, 10, (), "sigmoid", "lenet"),
    ModelSpec(2352, 7, kind="lenet"),
    ModelSpec(3072, 10, kind="lenet"),
    ModelSpec(1024, 2, kind="alexnet"),
    ModelSpec(3072, 10, kind="alexnet"),
]


def name_of(spec: ModelSpec) -> str:
    return f"{spec.kind}-{'-'.join(map(str, spec.widths))}-{spec.features}"


def random_weights(spec: ModelSpec, seed: int = 3) -> Weights:
    return unflatten(spec, np.random.default_rng(seed).normal(size=spec.parameters) / 10)


def line(count: int = 60, seed: int = 2, shift: float = 200.0, scale: float = 50.0) -> TargetRows:
    """Targets that are a linear function of four features, far from 0."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (count, 4)).astype(np.float32)
    return TargetRows(x, shift + scale * (x @ np.array([1.0, -2.0, 0.5, 0.0])))


def images(count: int, spec: ModelSpec, seed: int = 4) -> Dataset:
    """Each class is bright in a band of its own."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, spec.classes, count)
    channels, side = spec.image
    x = rng.normal(0, 0.3, (count, channels, side, side)).astype(np.float32)
    for row, label in enumerate(y):
        band = side // spec.classes
        x[row, :, label * band : (label + 1) * band] += 1.0
    return Dataset(x.reshape(count, -1), y.astype(np.int64))


# Shapes


@pytest.mark.parametrize("spec", KINDS, ids=name_of)
def test_parameters_are_those_of_torch_and_come_back(spec: ModelSpec) -> None:
    model = build(spec)
    assert sum(p.numel() for p in model.parameters()) == spec.parameters
    weights = random_weights(spec)
    import_weights(model, weights)
    back = export_weights(model)
    assert [part.shape for layer in back for part in layer] == [part.shape for layer in weights for part in layer]
    np.testing.assert_allclose(flatten(back), flatten(weights), rtol=1e-6)
    np.testing.assert_array_equal(flatten(unflatten(spec, flatten(weights))), flatten(weights))
    rows = np.random.default_rng(1).normal(size=(3, spec.features)).astype(np.float32)
    assert outputs(spec, weights, rows).shape == (3, spec.classes)


def test_known_sizes() -> None:
    """LeNet-5's count is its paper's architecture's, AlexNet's that of the usual CIFAR variant."""
    assert ModelSpec(784, 10, kind="lenet").parameters == ModelSpec(1024, 10, kind="lenet").parameters == 61_706
    assert ModelSpec(3072, 10, kind="alexnet").parameters == 2_472_266
    assert ModelSpec(3072, 10, kind="alexnet").widths == (256, 10)
    assert ModelSpec(13, 1, kind="regression").parameters == 14


@pytest.mark.parametrize("spec", [s for s in KINDS if not s.is_convolutional], ids=name_of)
def test_dense_twins_agree(spec: ModelSpec) -> None:
    weights = random_weights(spec)
    x = np.random.default_rng(5).normal(size=(20, spec.features)).astype(np.float32)
    np.testing.assert_allclose(forward(spec, weights, x), outputs(spec, weights, x), rtol=1e-4, atol=1e-5)


def test_a_convolution_is_the_sum_over_its_window() -> None:
    """Torch's own twin for the first layer of LeNet: rows are channels by rows of pixels, kernels (out, in, k, k)."""
    spec = ModelSpec(3072, 10, (), "identity", "lenet")
    weights = random_weights(spec)
    x = np.random.default_rng(6).normal(size=(1, 3072)).astype(np.float32)
    model = build(spec)
    import_weights(model, weights)
    with torch.no_grad():
        found = model[:2](torch.from_numpy(x)).numpy()
    (W, b), image = weights[0], x.reshape(3, 32, 32).astype(np.float64)
    for channel, row, column in ((0, 0, 0), (5, 27, 3), (2, 13, 27)):
        wanted = float((W[channel] * image[:, row : row + 5, column : column + 5]).sum() + b[channel])
        assert found[0, channel, row, column] == pytest.approx(wanted, rel=1e-4, abs=1e-5)


def test_first_weights_are_seeded_and_scaled_to_the_inputs() -> None:
    spec = ModelSpec(3072, 10, kind="alexnet")
    first, again, other = (initial_weights(spec, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(flatten(first), flatten(again))
    assert not np.array_equal(flatten(first), flatten(other))
    kernel = first[1][0]
    assert float(kernel.std()) == pytest.approx(np.sqrt(2 / (64 * 25)), rel=0.02)
    assert not flatten(initial_weights(LINEAR, 1)).any()


# Training


@pytest.mark.parametrize("spec", [LINEAR, ModelSpec(4, 1, (3,), "sigmoid", "regression")], ids=name_of)
def test_a_step_of_regression_is_the_gradient_by_finite_differences(spec: ModelSpec) -> None:
    data, rate, weights = line(), 0.1, random_weights(spec)
    targets = Targets.of(data.y, ())
    update = train_locally(spec, weights, data, TrainingPlan("gradient", 1, rate, 1, 0, 60.0), targets)
    wanted, vector, step = targets.learned(data.y).astype(np.float64), flatten(weights), 1e-5

    def loss(moved: np.ndarray) -> float:
        return float(np.mean(np.square(forward(spec, unflatten(spec, moved), data.x)[:, 0] - wanted)))

    gradient = [
        (loss(vector + step * unit) - loss(vector - step * unit)) / (2 * step) for unit in np.eye(spec.parameters)
    ]  # fmt: skip
    np.testing.assert_allclose(flatten(update.delta), -rate * np.array(gradient), atol=2e-6)
    assert update.loss == pytest.approx(loss(vector), rel=1e-4)


def test_linear_regression_finds_the_line_in_the_targets_own_unit() -> None:
    data = line()
    targets = Targets.of(data.y, (150.0, 200.0, 250.0))
    weights = initial_weights(LINEAR, 0)
    before = practice_score(LINEAR, weights, data, targets)
    for _ in range(3):
        plan = TrainingPlan("sgd", 40, 0.2, 16, 7, 60.0)
        weights = add(weights, train_locally(LINEAR, weights, data, plan, targets).delta)
    W, b = targets.unscaled(weights)[0]
    np.testing.assert_allclose(W[:, 0], [50.0, -100.0, 25.0, 0.0], atol=0.1)
    assert b[0] == pytest.approx(200.0, abs=0.1)
    after = practice_score(LINEAR, weights, data, targets)
    assert after.correct >= 58 > before.correct
    assert after.loss < 1e-4 < 0.9 < before.loss


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("spec", [ModelSpec(784, 4, kind="lenet"), ModelSpec(1024, 4, kind="alexnet")], ids=name_of)
def test_convolutional_models_learn_and_are_seeded(spec: ModelSpec) -> None:
    data = images(60, spec)
    weights, plan = initial_weights(spec, 1), TrainingPlan("adam", 2, 0.002, 10, 3, 120.0)
    first, again = (train_locally(spec, weights, data, plan) for _ in range(2))
    np.testing.assert_array_equal(flatten(first.delta), flatten(again.delta))
    weights = add(weights, first.delta)
    weights = add(weights, train_locally(spec, weights, data, replace(plan, seed=4)).delta)
    assert practice_score(spec, weights, images(40, spec, 9)).correct >= 32


def test_a_batch_in_parts_makes_the_same_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full-batch gradients of large rows need not fit into memory at once."""
    spec = ModelSpec(784, 4, kind="lenet")
    data, weights = images(20, spec), random_weights(spec)
    plan = TrainingPlan("gradient", 1, 0.5, 1, 0, 60.0)
    whole = train_locally(spec, weights, data, plan)
    monkeypatch.setattr(models, "MAX_ACTIVATIONS", 3 * spec.activations)
    assert training.rows_at_once(spec) == 3
    parts = train_locally(spec, weights, data, plan)
    np.testing.assert_allclose(flatten(parts.delta), flatten(whole.delta), atol=1e-6)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
    np.testing.assert_allclose(outputs(spec, weights, data.x), outputs(spec, weights, data.x[::-1].copy())[::-1], atol=1e-5)


def test_activations_are_counted_to_the_last_one() -> None:
    for spec in KINDS:
        made = []
        model = build(spec)
        import_weights(model, random_weights(spec))
        for layer in model:
            layer.register_forward_hook(lambda _, __, out: made.append(out.numel()))  # noqa: B023
        made = []
        with torch.no_grad():
            model(torch.zeros(1, spec.features))
        assert sum(made) / 2 <= spec.activations <= 3 * sum(made) + 2 * spec.features, name_of(spec)


# Targets


def test_targets_that_cannot_be_are_refused() -> None:
    for shift, scale, cuts in ((np.nan, 1.0, ()), (0.0, 0.0, ()), (0.0, -1.0, ()), (0.0, np.inf, ()), (1e40, 1.0, ()),
                               (0.0, 1.0, (1.0, 1.0)), (0.0, 1.0, (2.0, 1.0)), (0.0, 1.0, (np.nan,))):  # fmt: skip
        with pytest.raises(ConfigError, match="of the targets"):
            Targets(shift, scale, cuts)
    assert Targets.of(np.full(3, 7.0), ()) == Targets(7.0, 1.0)


def test_real_targets_are_checked_row_by_row() -> None:
    with pytest.raises(MalformedError, match=r"rows: y\[1\] = nan"):
        checked_targets(np.zeros((2, 1)), [1.0, np.nan], name="rows")
    with pytest.raises(MalformedError, match="1 rows of x but 2"):
        checked_targets(np.zeros((1, 1)), [1.0, 2.0], name="rows")
    with pytest.raises(MalformedError, match="3 features a row, the task has 4"):
        checked_targets(np.zeros((1, 3)), [1.0], name="rows", features=4)
    assert checked_targets([[1]], np.array([3], np.int32), name="rows").y.dtype == np.float64


def test_labels_and_targets_are_not_taken_for_one_another() -> None:
    plan = TrainingPlan("sgd", 1, 0.1, 8, 0, 1.0)
    with pytest.raises(MalformedError, match="needs real targets"):
        train_locally(LINEAR, initial_weights(LINEAR, 0), Dataset(np.zeros((2, 4), np.float32), np.zeros(2, np.int64)), plan)
    with pytest.raises(MalformedError, match="needs labels"):
        train_locally(ModelSpec(4, 2), initial_weights(ModelSpec(4, 2), 0), line(), plan)
    with pytest.raises(ConfigError, match="computed by torch"):
        forward(KINDS[-1], random_weights(KINDS[-1]), np.zeros((1, 3072), np.float32))


def test_a_score_without_cuts_is_the_error_alone() -> None:
    found = practice_score(LINEAR, initial_weights(LINEAR, 0), line())
    assert (found.correct, found.total) == (0, 60)
    assert score_logits(np.array([[1.0, 0.0], [0.0, 3.0]]), np.array([0, 0])).correct == 1


# Hostile specs


HOSTILE: list[tuple[dict[str, object], type[PoflError], str]] = [
    ({"kind": "resnet"}, ConfigError, "'resnet' is none of dense"),
    ({"kind": ""}, ConfigError, "'' is none of"),
    ({"activation": "exec"}, ConfigError, "'exec' is none of"),
    ({"features": 0}, LimitError, "features = 0"),
    ({"features": 1 << 31}, LimitError, "features = 2147483648"),
    ({"hidden": ((1 << 32) - 1,)}, LimitError, "hidden = 4294967295"),
    ({"hidden": (1 << 20,) * 16}, LimitError, "parameters, at most"),
    ({"hidden": (0,)}, LimitError, "hidden = 0"),
    ({"classes": 1}, LimitError, "classes = 1"),
    ({"classes": (1 << 32) - 1}, LimitError, "classes"),
    ({"kind": "regression"}, ConfigError, "a regression has one output"),
    ({"kind": "lenet", "features": 785}, ConfigError, "lenet reads images of 784, 1024, 2352, 3072"),
    ({"kind": "alexnet", "features": 784}, ConfigError, "alexnet reads images of 1024, 3072"),
    ({"kind": "alexnet", "features": 3072, "classes": 1 << 20}, LimitError, "parameters, at most"),
    ({"kind": "lenet", "features": 784, "hidden": (5,)}, ConfigError, "its own layers"),
    ({"optimizer": "exec"}, ConfigError, "'exec' is none of gradient"),
    ({"learning_rate": float("nan")}, ConfigError, "learning_rate = nan"),
    ({"learning_rate": -1.0}, ConfigError, "learning_rate = -1"),
    ({"budget_s": float("inf")}, LimitError, "budget_s = inf"),
    ({"budget_s": float("nan")}, LimitError, "budget_s = nan"),
    ({"local_epochs": 0}, LimitError, "local_epochs = 0"),
    ({"batch": 0}, LimitError, "batch = 0"),
    ({"scale": 0.0}, ConfigError, "scale of the targets"),
    ({"shift": float("inf")}, ConfigError, "shift of the targets"),
    ({"vector": bytes(27)}, MalformedError, "27 bytes of weights"),
    ({"vector": bytes(36)}, MalformedError, "36 bytes of weights"),
]  # fmt: skip

GOOD = Instruction(bytes(32), 1, 3, 2, (), "relu", "sgd", 1, 0.1, 8, 5, 1.0, vector_to_bytes(np.zeros(8)))


@pytest.mark.parametrize(("changes", "error", "words"), HOSTILE, ids=[words for _, _, words in HOSTILE])
def test_a_hostile_instruction_is_refused_before_memory_is_taken(
    changes: dict[str, object], error: type[PoflError], words: str
) -> None:
    def no_rows(_: bytes) -> None:
        raise AssertionError("rows were asked for")

    tracemalloc.start()
    try:
        with pytest.raises(error, match=words):
            client_app.train_on(replace(GOOD, **changes), no_rows)  # type: ignore[arg-type]
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("width", [-1, -(1 << 40), 1 << 70])
def test_sizes_that_no_codec_carries_are_refused_too(width: int) -> None:
    makers: list[Callable[[], ModelSpec]] = [
        lambda: ModelSpec(width, 2), lambda: ModelSpec(2, width), lambda: ModelSpec(2, 2, (width,)),
        lambda: ModelSpec(width, 2, kind="lenet"), lambda: ModelSpec(3072, width, kind="alexnet"),
    ]  # fmt: skip
    for make in makers:
        with pytest.raises((LimitError, ConfigError)):
            make()


def test_the_miners_path_trains_every_kind() -> None:
    rows = images(12, ModelSpec(784, 4, kind="lenet"))
    instruction = replace(GOOD, features=784, classes=4, kind="lenet", budget_s=60.0, vector=b"")
    spec = ModelSpec(784, 4, kind="lenet")
    instruction = replace(instruction, vector=vector_to_bytes(flatten(initial_weights(spec, 1))))
    update = client_app.train_on(instruction, lambda _: (rows.x, rows.y))
    accepted = check_update(b"m", update, spec.parameters, 12)
    assert accepted.vector.any()
    real = line()
    instruction = replace(
        GOOD, features=4, classes=1, kind="regression", budget_s=60.0, shift=200.0, scale=60.0, precision=Precision.FLOAT16,
        vector=vector_to_bytes(np.zeros(5)),
    )  # fmt: skip
    update = client_app.train_on(instruction, lambda _: (real.x, real.y))
    assert len(update.vector) == 2 + 2 * 5
    assert check_update(b"m", update, 5, 60).vector.any()
    with pytest.raises(MalformedError, match=r"own rows: row 0: label .*, labels are whole numbers"):
        client_app.train_on(replace(GOOD, features=4, vector=vector_to_bytes(np.zeros(10))), lambda _: (real.x, real.y + 0.25))


# Half precision


def half(values: np.ndarray) -> Update:
    return Update(1, 0.5, 1, 1, Precision.FLOAT16, delta_to_bytes(values, Precision.FLOAT16))


@pytest.mark.parametrize("size", [1e-30, 1e-9, 3e-3, 1.0, 1e5, 3e37])
def test_half_precision_keeps_eleven_bits_of_steps_of_any_size(size: float) -> None:
    values = np.random.default_rng(8).normal(size=1000) * size
    values[0] = 0.0
    found = delta_from(half(values), 1000)
    np.testing.assert_allclose(found, values, rtol=2.0**-11, atol=size * 2.0**-37)
    assert found[0] == 0.0
    assert len(half(values).vector) == 2002


def test_hostile_half_floats_are_refused() -> None:
    good = half(np.ones(4))
    with pytest.raises(MalformedError, match="10 bytes of half floats, 5 parameters are 12"):
        delta_from(good, 5)
    for exponent in (MAX_EXPONENT + 1, -MAX_EXPONENT - 1, 32767):
        bad = replace(good, vector=exponent.to_bytes(2, "big", signed=True) + good.vector[2:])
        with pytest.raises(MalformedError, match=f"the exponent of half floats is {exponent}"):
            delta_from(bad, 4)
    far = replace(good, vector=(MAX_EXPONENT).to_bytes(2, "big", signed=True) + good.vector[2:])
    with pytest.raises(PoflError, match="4 of 4 values are not finite"):
        check_update(b"m", far, 4, 10)
    long = replace(good, vector=(100).to_bytes(2, "big", signed=True) + good.vector[2:])
    with pytest.raises(PoflError, match="norm inf above the ceiling"):
        check_update(b"m", long, 4, 10)
    infinite = replace(good, vector=good.vector[:2] + b"\x00\x7c" + good.vector[4:])
    with pytest.raises(PoflError, match="1 of 4 values are not finite"):
        check_update(b"m", infinite, 4, 10)
    for values in (np.array([1.0, np.nan]), np.array([np.inf, 1.0]), np.array([1e39])):
        with pytest.raises(MalformedError, match="training diverged"):
            delta_to_bytes(values, Precision.FLOAT16)


def test_nothing_is_lost_of_no_step_at_all() -> None:
    assert not delta_from(half(np.zeros(7)), 7).any()


# Jobs


def test_a_job_of_any_kind_crosses_the_process_border(tmp_path: object) -> None:
    from pathlib import Path

    plain = MiningJob(bytes(32), 3072, 10, Path("p.npz"), 1, kind="alexnet", update="float16")
    real = MiningJob(bytes(32), 4, 1, Path("p.npz"), 1, kind="regression", targets=Targets(1.5, 2.0, (1.0, 2.5)))
    for job in (plain, real):
        assert job_from_json(job_to_json(job)) == job
    assert template_of(plain).precision is Precision.FLOAT16
    assert (template_of(real).kind, template_of(real).shift, template_of(real).scale) == ("regression", 1.5, 2.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "regression"}, "a regression job needs targets"),
        ({"targets": Targets()}, "a dense job has no targets"),
        ({"update": "bfloat16"}, "'bfloat16' is none of float32, float16"),
        ({"kind": "lenet"}, "lenet reads images"),
    ],
)
def test_impossible_jobs_are_refused(changes: dict[str, object], words: str) -> None:
    from pathlib import Path

    with pytest.raises(PoflError, match=words):
        MiningJob(**{"job_id": bytes(32), "features": 4, "classes": 2, "practice": Path("p"), "deadline_ms": 1, **changes})  # type: ignore[arg-type]
