"""A miner's rows: those of one data set count once, however often they are bought."""

from __future__ import annotations

import numpy as np
import pytest

from core.errors import MalformedError
from core.ids import MILLION
from pool.learning.targets import TargetRows
from pool.miner.rows import TrainingRows
from tests.chainkit import some


def rows(first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(first, first + count, dtype=np.int8)[:, None].repeat(2, 1), np.zeros(count, np.uint8)


def test_a_data_set_bought_twice_counts_once() -> None:
    mine = TrainingRows(TargetRows(np.full((3, 2), -1, np.float32), np.zeros(3)))
    mine.add(some("one"), some("root"), 10, *rows(10, 20), MILLION)
    mine.add(some("one"), some("root"), 10, *rows(10, 20), MILLION)
    # Shared by fewer this time: some of the rows are new.
    mine.add(some("two"), some("root"), 0, *rows(0, 35), MILLION)
    assert mine.bought == 35
    found = mine.source(bytes(32))
    assert found is not None
    x, y = found
    assert x.shape == (38, 2)
    assert y.shape == (38,)
    assert len({float(v) for v in x[3:, 0]}) == 35
    # The same numbers of another data set are other rows.
    mine.add(some("three"), some("other"), 0, *rows(0, 5), MILLION)
    assert mine.bought == 40


def test_rows_of_another_width_are_refused_and_change_nothing() -> None:
    mine = TrainingRows(TargetRows(np.zeros((3, 2), np.float32), np.zeros(3)))
    with pytest.raises(MalformedError, match="bought rows have 3 features, own rows 2"):
        mine.add(some("one"), some("root"), 0, np.zeros((4, 3), np.int8), np.zeros(4, np.uint8), MILLION)
    assert mine.bought == 0
    mine.add(some("one"), some("root"), 0, *rows(0, 4), MILLION)
    assert mine.bought == 4


def test_part_of_a_trade_is_of_use_and_the_rest_adds_to_it() -> None:
    mine = TrainingRows(TargetRows(np.zeros((3, 2), np.float32), np.zeros(3)))
    mine.add(some("one"), some("root"), 0, *rows(0, 4), MILLION, is_whole=False)
    assert (mine.bought, mine.has(some("one")), mine.holds) == (4, False, (some("root"),))
    mine.add(some("one"), some("root"), 0, *rows(0, 9), MILLION)
    assert (mine.bought, mine.has(some("one"))) == (9, True)
