"""A small part of `pofl bench poison`, with real training: each defence, with a threshold that fails when it is taken out.

Docs/mining.md has the whole table.
"""

from __future__ import annotations

import logging
import re

import pytest

from bench.poison import Cell, digits, play, tables
from pool.learning.datasets import Dataset

pytestmark = pytest.mark.slow

GOOD, RUINED = 0.8, 0.6


@pytest.fixture(scope="module")
def data() -> tuple[Dataset, Dataset]:
    logging.getLogger("flwr").setLevel(logging.ERROR)
    return digits()


def accuracy(cell: Cell) -> float:
    return cell.best / cell.total


def test_without_hostile_miners_it_learns(data: tuple[Dataset, Dataset]) -> None:
    assert accuracy(play(data, "fedavg", 4, 0, "", 0.8)) > GOOD


def test_the_practice_floor_is_what_saves_the_mean(data: tuple[Dataset, Dataset]) -> None:
    """One of four sends nine times its step backwards, which no check of a single update finds."""
    with_floor, without = (play(data, "fedavg", 4, 1, "times_9", floor) for floor in (0.8, 0.0))
    assert accuracy(with_floor) > GOOD
    assert accuracy(without) < RUINED
    assert with_floor.counted == 0, "left out for harm, or for its norm once honest steps are short"
    assert without.counted == without.rounds


@pytest.mark.parametrize("attack", ["", "times_9", "count"])
def test_shortened_steps_are_what_lets_gradients_learn_under_the_floor(data: tuple[Dataset, Dataset], attack: str) -> None:
    """The paper's batch gradients, with a step that is too long now and then: the floor alone ends at 65, 0 and 27 %."""
    assert accuracy(play(data, "fedsgd", 4, 1, attack, 0.8)) > GOOD


@pytest.mark.parametrize("algorithm", ["median", "trimmed_mean", "multikrum"])
def test_robust_rules_need_no_floor(data: tuple[Dataset, Dataset], algorithm: str) -> None:
    cell = play(data, algorithm, 4, 1, "times_9", 0.0)
    assert accuracy(cell) > GOOD, cell


def test_the_median_is_tried_where_a_heavy_liar_holds_the_mean_still(data: tuple[Dataset, Dataset]) -> None:
    """It claims the cap's full weight and goes backwards by little: no step is harm, and the mean learns nothing."""
    with_fallback, without = (play(data, "fedavg", 4, 1, "count", floor) for floor in (0.8, 0.0))
    assert accuracy(with_fallback) > GOOD
    assert accuracy(without) < RUINED


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        ("nan", "not finite"),
        ("shape", "bytes of weights"),
        ("giant", "ceiling"),
        ("times_100", "times the median"),
        ("replay", "does not open|not by node key"),
        ("stolen", "not by node key"),
    ],
)
def test_what_is_refused_alone_never_counts(data: tuple[Dataset, Dataset], attack: str, said: str) -> None:
    cell = play(data, "fedavg", 4, 1, attack, 0.0)
    assert accuracy(cell) > GOOD
    assert re.search(said, cell.refused), cell.refused
    assert cell.counted <= (1 if attack == "replay" else 0)


def test_tables_of_cells() -> None:
    cells = [
        {"miners": 4, "hostile": 1, "attack": "nan", "algorithm": a, "floor": 0.8, "best": b, "survives": b > 50}
        for a, b in (("fedavg", 90), ("krum", 20))
    ]
    result = {"practice_rows": 100, "honest": {"fedavg/4": 91, "krum/4": 88}, "cells": cells}
    assert tables(result) == [
        (
            "1 hostile of 4, practice floor 0.8", ["attack", "fedavg", "krum"],
            [["nobody hostile", "91", "88"], ["NaN in every weight", "90", "(20)"]],
        )
    ]  # fmt: skip
