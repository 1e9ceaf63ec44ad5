"""What ``pofl bench`` needs, and the arithmetic of ``pofl bench mining``."""

from __future__ import annotations

import pytest

from bench.mining import model_of, plan_of, whole
from bench.mining_world import CLASSES, FEATURES
from core.errors import ConfigError
from pool.learning.model_spec import ModelSpec
from services.cli.bench import source_tree


@pytest.mark.parametrize("name", ["bench", "bench.mining", "tests.node_world"])
def test_without_the_source_tree_it_says_where_to_run(name: str) -> None:
    with pytest.raises(ConfigError, match="not installed: run `pofl bench` in the source tree"), source_tree():
        raise ModuleNotFoundError(name=name)


@pytest.mark.parametrize("name", [None, "benchmark", "matplotlib"])
def test_another_missing_module_is_not_hidden(name: str | None) -> None:
    with pytest.raises(ModuleNotFoundError), source_tree():
        raise ModuleNotFoundError(name=name)


def test_large_models_are_measured_with_fewer_miners() -> None:
    plan = plan_of([2, 4, 8, 16], [60_000_000, 100_000, 10_000_000])
    small = [(100_000, 2), (100_000, 4), (100_000, 8), (100_000, 16)]
    assert plan == [*small, (10_000_000, 2), (10_000_000, 4), (60_000_000, 2)]
    assert plan_of([16], [60_000_000]) == [(60_000_000, 16)]


@pytest.mark.parametrize(("miners", "sizes"), [([0], [100_000]), ([65], [100_000]), ([2], [10]), ([2], [500_000_000])])
def test_numbers_out_of_range_are_refused(miners: list[int], sizes: list[int]) -> None:
    with pytest.raises(ConfigError, match="--miners are 1 to 64"):
        plan_of(miners, sizes)


@pytest.mark.parametrize("text", ["", "two", "2,", "2.5"])
def test_a_list_is_numbers_between_commas(text: str) -> None:
    with pytest.raises(ConfigError, match="--miners"):
        whole(text, "--miners")


@pytest.mark.parametrize("size", [4_000, 100_000, 10_000_000, 60_000_000])
def test_a_model_has_about_the_size_asked_for(size: int) -> None:
    assert abs(4 * ModelSpec(FEATURES, CLASSES, model_of(size)).parameters / size - 1) < 0.15
