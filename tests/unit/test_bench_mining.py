"""What ``pofl bench`` needs, and the arithmetic of ``pofl bench mining``."""

from __future__ import annotations

import pytest

from core.errors import ConfigError
from services.cli.bench import source_tree


@pytest.mark.parametrize("name", ["bench", "bench.mining", "tests.node_world"])
def test_without_the_source_tree_it_says_where_to_run(name: str) -> None:
    with pytest.raises(ConfigError, match="not installed: run `pofl bench` in the source tree"), source_tree():
        raise ModuleNotFoundError(name=name)


@pytest.mark.parametrize("name", [None, "benchmark", "matplotlib"])
def test_another_missing_module_is_not_hidden(name: str | None) -> None:
    with pytest.raises(ModuleNotFoundError), source_tree():
        raise ModuleNotFoundError(name=name)
