"""A regression task on its way: files, cut points, the chain's rules, what pools and users make of it."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.chain.rules_tasks import publish
from core.chain.transaction import MAX_CUT, MAX_CUTS, Activation, PublishTask, Refusal, TaskSpec
from core.codec import decode, encode
from core.errors import ConfigError, InputError, LimitError, MalformedError, TransactionError
from core.ids import Amount, Milliseconds
from core.verification.model_file import MAX_MODEL_FILE, TaskModel, dump_model, dump_task_model, load_task_model
from core.verification.quantise import quantise_features
from core.verification.regression import (
    buckets,
    check_buckets,
    cuts_from_micro,
    cuts_to_micro,
    quantise_regression,
)
from core.verification.scored_model import ModelFamily
from core.verification.task import check_spec
from pool.learning.targets import TargetRows, Targets, load_targets
from pool.manager.config import PoolConfig
from pool.miner.rows import TrainingRows
from requester.targets import load_real_rows, read_task_rows
from services.cli.models import score_model
from services.cli.tasks import _cuts, cuts_in_words
from services.rpc.convert_chain import spec_from_proto, spec_to_proto
from services.runtime import config
from tests.chainkit import Chain, make_spec
from tests.verification import small_world

X = np.array([[0.0, 0.5], [1.0, -1.0], [0.25, 2.0], [0.5, 0.5]])
Y = np.array([10.5, -3.0, 7.0, 99.0])


def write(folder: Path, name: str = "rows.npz", **arrays: Any) -> Path:
    path = folder / name
    np.savez(path, allow_pickle=True, **arrays)
    return path


# Cut points


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-MAX_CUT, MAX_CUT), min_size=1, max_size=MAX_CUTS, unique=True).map(sorted))
def test_cut_points_come_back_from_their_floats(cuts: list[int]) -> None:
    """Everybody compares targets with the same floats, and no two cut points are the same one."""
    floats = cuts_from_micro(cuts)
    assert (np.diff(floats) > 0).all()
    assert list(cuts_to_micro(floats)) == cuts


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=8))
def test_any_numbers_are_cut_points_or_an_error(values: list[float]) -> None:
    try:
        micro = cuts_to_micro(np.array(values, dtype=np.float64))
    except InputError:
        return
    assert len(micro) == len(values)
    assert all(b > a for a, b in pairwise(micro))
    np.testing.assert_allclose(cuts_from_micro(micro), values, rtol=1e-15, atol=6e-7)


def test_more_buckets_than_the_weights_hold_are_refused() -> None:
    assert check_buckets(ModelFamily((4, 3), Activation.RELU, 10)) == 511
    assert check_buckets(ModelFamily((4, 510), Activation.RELU, 10)) == 2
    with pytest.raises(LimitError, match="9 buckets need weights of more than 3 bits"):
        check_buckets(ModelFamily((4, 9), Activation.RELU, 3))


# On chain


def spec_with(chain: Chain, **changes: Any) -> TaskSpec:
    return replace(make_spec(chain.state.params), **changes)


def publication(chain: Chain, spec: TaskSpec) -> PublishTask:
    return PublishTask(spec, Amount(1_000_000), Amount(1_000_000), Amount(50_000), b"n" * 32, Milliseconds(chain.clock + 10**9))


GOOD = tuple(range(-4_000_000, 5_000_000, 1_000_000))


def test_a_regression_task_is_published_and_its_bytes_are_its_own() -> None:
    chain = Chain()
    spec = spec_with(chain, cuts_micro=GOOD)
    chain.block(chain.tx("requester", publication(chain, spec)))
    (task_id,) = chain.state.live
    assert chain.state.tasks[task_id].published.spec.cuts_micro == GOOD
    assert decode(TaskSpec, encode(spec)) == spec
    assert spec_from_proto(spec_to_proto(spec)) == spec
    assert encode(spec) != encode(replace(spec, cuts_micro=()))


@pytest.mark.parametrize(
    ("cuts", "words"),
    [
        (GOOD[:-1], "8 cut points for 10 classes, must be one fewer than classes, or none"),
        ((*GOOD, 9_000_000), "10 cut points for 10 classes"),
        ((*GOOD[:-1], GOOD[-2]), "its cut points do not rise"),
        (tuple(reversed(GOOD)), "its cut points do not rise"),
        ((*GOOD[:-1], MAX_CUT + 1), f"a cut point is beyond {MAX_CUT} millionths"),
        ((-MAX_CUT - 1, *GOOD[1:]), f"a cut point is beyond {MAX_CUT} millionths"),
    ],
)
def test_malformed_cut_points_are_refused_by_every_node(cuts: tuple[int, ...], words: str) -> None:
    chain = Chain()
    payload = publication(chain, spec_with(chain, cuts_micro=cuts))
    signed = chain.tx("requester", payload)
    assert chain.refused(signed) == Refusal.OUT_OF_RANGE
    with pytest.raises(TransactionError, match=words):
        publish(chain.state, signed.decoded(), payload, 0, Milliseconds(chain.clock))


def test_cut_points_that_no_record_holds_never_become_a_task() -> None:
    spec = spec_with(Chain(), cuts_micro=tuple(range(MAX_CUTS + 1)))
    with pytest.raises(LimitError, match=r"TaskSpec\.cuts_micro: 511 items, at most 510"):
        encode(spec)
    with pytest.raises(LimitError):
        spec_from_proto(spec_to_proto(spec))
    with pytest.raises(LimitError, match="does not fit 64 signed bits"):
        encode(replace(spec, cuts_micro=(1 << 63,)))


def test_validators_refuse_to_store_what_cannot_be_scored() -> None:
    world = small_world()
    spec = replace(world.task.spec, cuts_micro=(1, 2))
    check_spec(spec)
    # Three buckets leave two-bit weights, which are -1, 0 and 1, no room for more than one of them.
    check_spec(replace(spec, weight_bits=2))
    wide = replace(spec, classes=9, cuts_micro=tuple(range(8)), weight_bits=3)
    with pytest.raises(LimitError, match="9 buckets need weights of more than 3 bits"):
        check_spec(wide)


# The requester's files


def test_targets_become_buckets_and_the_practice_set_keeps_them_real(tmp_path: Path) -> None:
    test, practice = write(tmp_path, "t.npz", x=X, y=Y), write(tmp_path, "p.npz", x=X, y=Y - 1)
    rows = read_task_rows(test, practice, (0, 7_000_000, 50_000_000))
    assert (rows.classes, rows.cuts_micro) == (4, (0, 7_000_000, 50_000_000))
    assert rows.test.y.tolist() == [2, 0, 1, 3], "a target on a cut is in the lower bucket"
    with np.load(io.BytesIO(rows.blob), allow_pickle=False) as blob:
        np.testing.assert_array_equal(blob["y"], Y - 1)
        assert blob["x"].dtype == np.float32
    assert not rows.warnings()
    (tmp_path / "blob.npz").write_bytes(rows.blob)
    np.testing.assert_array_equal(load_targets(tmp_path / "blob.npz", features=2).y, Y - 1)


def test_cut_points_are_found_in_the_practice_set_and_never_in_the_test_set(tmp_path: Path) -> None:
    practice = write(tmp_path, "p.npz", x=np.zeros((100, 2)), y=np.arange(100) / 10)
    found = [read_task_rows(write(tmp_path, f"{i}.npz", x=X, y=Y * i), practice, (), 4).cuts_micro for i in (1, 1000)]
    assert found[0] == found[1] == (2_475_000, 4_950_000, 7_425_000)


def test_labels_stay_as_they_were(tmp_path: Path) -> None:
    path = write(tmp_path, x=X, y=np.array([0, 1, 2, 1]))
    rows = read_task_rows(path, path)
    assert (rows.classes, rows.cuts_micro, rows.test.y.tolist()) == (3, (), [0, 1, 2, 1])


@pytest.mark.parametrize(
    ("test_y", "cuts", "count", "words"),
    [
        (Y, (1, 1), 0, "must rise by a millionth"),
        (Y, (2, 1), 0, "must rise by a millionth"),
        (Y, (MAX_CUT * 2,), 0, "must be finite and within"),
        (Y, (1,), 3, "not both"),
        (Y, (), 1, "1 buckets, must be 2 to 511"),
        (Y, (), 600, "600 buckets, must be 2 to 511"),
        (Y, (), 5, "rows.npz: the targets have too few different values for 5 buckets"),
        (np.array([1, np.nan, 2, 3]), (1,), 0, "row 1: target nan is not a number within"),
        (np.array([1, 1e18, 2, 3]), (1,), 0, "row 1: target 1e+18 is not a number within"),
        (Y[:3], (1,), 0, "y must be a number for each of 4 rows"),
        (Y.astype(str), (1,), 0, "y must be a number for each of 4 rows"),
    ],
)
def test_bad_targets_end_in_a_sentence(
    tmp_path: Path, test_y: np.ndarray, cuts: tuple[int, ...], count: int, words: str
) -> None:
    practice, test = write(tmp_path, x=X, y=Y), write(tmp_path, "t.npz", x=X, y=test_y)
    with pytest.raises(InputError) as caught:
        read_task_rows(test, practice, cuts, count)
    assert words in caught.value.message


def test_bad_files_end_in_a_sentence(tmp_path: Path) -> None:
    for arrays, words in (
        ({"x": X}, "no array 'y'"), ({"x": X[0], "y": Y}, "x must be numbers of shape"),
        ({"x": np.full((4, 2), np.inf), "y": Y}, "not a finite number"),
        ({"x": X, "y": np.array([{}] * 4)}, "not an .npz file of plain"),
    ):  # fmt: skip
        with pytest.raises(MalformedError, match=words):
            load_real_rows(write(tmp_path, **arrays))
    with pytest.raises(MalformedError, match="1 features a row"):
        read_task_rows(write(tmp_path, x=X, y=Y), write(tmp_path, "p.npz", x=X[:, :1], y=Y), (1,))


def test_the_owner_is_told_of_buckets_that_say_little(tmp_path: Path) -> None:
    path = write(tmp_path, x=X, y=Y)
    assert read_task_rows(path, path, (20_000_000, 30_000_000)).warnings() == (
        "no test row is in 1 of 3 buckets: 1",
        "3 of 4 test rows are in bucket 0: a model that always names it is right as often; other cut points say more",
    )


# The pool and its miners


def test_what_a_pool_trains_is_scored_by_buckets() -> None:
    """The network learns standardised targets; the integers that are scored find the buckets of the real ones."""
    rng = np.random.default_rng(5)
    x = rng.uniform(-1, 1, (400, 6)).astype(np.float32)
    rows = TargetRows(x, 1000.0 + 300.0 * (x @ rng.normal(size=6)))
    cuts = cuts_to_micro(np.quantile(rows.y, [0.25, 0.5, 0.75]))
    targets = Targets.of(rows.y, tuple(cuts_from_micro(cuts).tolist()))
    solution, *_ = np.linalg.lstsq(np.c_[x, np.ones(400)], targets.learned(rows.y), rcond=None)
    layers = targets.unscaled(((solution[:6, None].astype(np.float64), solution[6:].astype(np.float64)),))
    model, report = quantise_regression(layers, cuts_from_micro(cuts), Activation.RELU, 127.0, 10, x.astype(np.float64), rows.y)
    assert report.float_correct == 400
    labels = buckets(rows.y, cuts_from_micro(cuts))
    assert model.count(quantise_features(x.astype(np.float64), 127.0), labels) == report.scored_correct >= 385


def test_a_pool_refuses_convolutional_models_for_the_chain_in_its_config(tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    common = """name = "p"\nkey = "k"\nlisten = "127.0.0.1:1"\nfleet_listen = "127.0.0.1:2"\ndata_dir = "d"
[tls]\ninsecure_loopback = true\n[chain]\ngenesis = "g"\n[training]\n"""
    path.write_text(common + 'model = "lenet"\n')
    with pytest.raises(ConfigError, match=r"training\.model is lenet, but a task on chain is won by dense models only"):
        config.load(PoolConfig, path, {})
    path.write_text(common + 'update = "float64"\n')
    with pytest.raises(ConfigError, match="float16"):
        config.load(PoolConfig, path, {})
    path.write_text(common + 'update = "float16"\n')
    assert config.load(PoolConfig, path, {}).training.update == "float16"


def test_a_miners_rows_may_have_classes_or_real_targets(tmp_path: Path) -> None:
    real = TrainingRows.load(write(tmp_path, x=X, y=Y))
    assert real.kind == "real targets -3 to 99"
    labelled = TrainingRows.load(write(tmp_path, x=X, y=np.array([0, 2, 1, 1])))
    assert (labelled.kind, labelled.own, labelled.features) == ("classes 0 to 2", 4, 2)


# What users see


def test_a_model_file_says_how_its_task_counts(tmp_path: Path) -> None:
    x = np.linspace(-1, 1, 9)[:, None]
    made = quantise_regression([(np.array([[100.0]]), np.zeros(1))], np.array([-40.0, 40.0]), Activation.RELU, 127.0, 10, x)[0]
    stored = TaskModel(made, 127_000_000, (-40_000_000, 40_000_000))
    again = load_task_model(dump_task_model(stored))
    assert (again.cuts_micro, again.feature_scale_micro) == (stored.cuts_micro, 127_000_000)
    assert dump_task_model(again) == dump_task_model(stored)
    assert len(dump_task_model(stored)) < MAX_MODEL_FILE
    old = load_task_model(dump_model(made))
    assert (old.cuts_micro, old.feature_scale_micro) == ((), 0)
    path = write(tmp_path, x=x, y=100 * x[:, 0] - 0.25)
    assert score_model(made, path, 127_000_000, again.cuts_micro) == (9, 9)
    with pytest.raises(ConfigError, match="y whole numbers"):
        score_model(made, path, 127_000_000)
    for cuts in ((1,), (2, 1), (1, 1), (1, 2, 3)):
        with pytest.raises(MalformedError, match="a model of 3 buckets has 2 rising cut points"):
            TaskModel(made, 1, cuts)
    data = dump_task_model(stored)
    for bad in (data[:-1], data + b"\0", b"x" + data[1:], b"", data[:30]):
        with pytest.raises(MalformedError):
            load_task_model(bad)


def test_pofl_model_shows_a_regression(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.unit.test_cli import pofl

    x = np.linspace(-1, 1, 9)[:, None]
    made = quantise_regression([(np.array([[100.0]]), np.zeros(1))], np.array([-50.0, 50.5]), Activation.RELU, 127.0, 10, x)[0]
    path = tmp_path / "model.pofl"
    path.write_bytes(dump_task_model(TaskModel(made, 127_000_000, (-50_000_000, 50_500_000))))
    assert pofl(monkeypatch, "model", "show", str(path)) == 0
    shown = capsys.readouterr().out
    assert "regression · 1-3" in shown
    assert "right in one of 3 buckets, cut at -50, 50.5" in shown
    assert pofl(monkeypatch, "model", "show", str(path), "--json") == 0
    assert json.loads(capsys.readouterr().out)["cuts_micro"] == [-50_000_000, 50_500_000]
    data = write(tmp_path, x=x, y=100 * x[:, 0])
    assert pofl(monkeypatch, "model", "score", str(path), "--data", str(data)) == 0
    assert "9 of 9 correct" in capsys.readouterr().out


def test_cut_points_on_the_command_line() -> None:
    assert _cuts("") == ()
    assert _cuts("1, 2.5,3") == (1_000_000, 2_500_000, 3_000_000)
    for text, words in (("1,x", "numbers between"), ("2,1", "must rise"), ("nan", "must be finite"), ("1,1", "must rise")):
        with pytest.raises(ConfigError, match=words):
            _cuts(text)
    assert cuts_in_words(tuple(range(0, 20_000_000, 1_000_000))).endswith("cut at 0, 1, 2, 3, 4, 5, …, 15, 16, 17, 18, 19")
