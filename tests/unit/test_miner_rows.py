"""A miner's rows: those of one data set count once, however often they are bought."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import MalformedError
from core.ids import MILLION, TaskId
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


def test_rows_bought_for_one_task_keep_the_miner_from_no_other() -> None:
    """Ten classes' rows would be refused as labels of a task of two, and with them the whole update."""
    mine = TrainingRows(TargetRows(np.zeros((3, 2), np.float32), np.array([0.0, 1.0, 1.0])))
    mine.expect(TaskId(b"2" * 32), b"", 2)
    mine.expect(TaskId(b"a" * 32), b"", 10)
    x, _ = rows(0, 6)
    mine.add(some("one"), some("ten"), 0, x, np.arange(4, 10, dtype=np.uint8), MILLION)
    mine.add(some("two"), some("two"), 0, x, np.arange(6, dtype=np.uint8) % 2, MILLION)
    counts = {}
    for job in (b"2" * 32, b"a" * 32, b"?" * 32):
        found = mine.source(job)
        assert found is not None
        counts[job[:1]] = len(found[1])
        assert len(found[0]) == len(found[1])
    assert counts == {b"2": 9, b"a": 15, b"?": 15}
    # Of real targets nothing on the market knows.
    real = TrainingRows(TargetRows(np.zeros((3, 2), np.float32), np.array([0.5, 1.0, -1.0])))
    real.add(some("one"), some("ten"), 0, x, np.arange(4, 10, dtype=np.uint8), MILLION)
    found = real.source(b"r" * 32)
    assert found is not None
    assert len(found[1]) == 3


def test_many_rows_take_no_memory_and_time_for_each() -> None:
    """16 million is the most of a data set: a number kept for each would be a gigabyte, and seconds on the event loop."""
    mine = TrainingRows(TargetRows(np.zeros((1, 1), np.float32), np.zeros(1)))
    count = 1 << 20
    x, y = np.zeros((count, 1), np.int8), np.zeros(count, np.uint8)
    tracemalloc.start()
    mine.add(some("one"), some("root"), 0, x, y, MILLION)
    mine.add(some("two"), some("root"), count // 2, x, y, MILLION)
    mine.add(some("three"), some("root"), 3 * count, x, y, MILLION)
    mine.add(some("four"), some("root"), count, x, y, MILLION)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16 * count
    assert mine.bought == 3 * count
    found = mine.source(bytes(32))
    assert found is not None
    assert found[0].shape == (3 * count + 1, 1)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), max_size=12))
def test_each_row_counts_once_whatever_ranges_come(ranges: list[tuple[int, int]]) -> None:
    mine = TrainingRows(TargetRows(np.zeros((1, 1), np.float32), np.zeros(1)))
    for first, count in ranges:
        x = np.arange(first, first + count, dtype=np.int8)[:, None]
        mine.add(some("one"), some("root"), first, x, np.zeros(count, np.uint8), MILLION)
    found = mine.source(bytes(32))
    assert found is not None
    assert sorted(found[0][1:, 0].tolist()) == sorted({n for first, count in ranges for n in range(first, first + count)})
