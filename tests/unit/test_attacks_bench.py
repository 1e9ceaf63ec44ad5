"""`pofl bench lies` in small: every kind through the forms, some through whole sessions; and it counts what is missed."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from bench import lies
from core.crypto.homomorphic.params import Ints
from services.cli.bench import app

SOME = (
    "audit: one z of layer 2 by one", "audit: w fitted to another Z_1", "audit: 1/2 in a feature, Z rounded",
    "evaluation: rotated labels", "stored: the inverse of two", "pool: N + 1", 'audit: a false "malformed"',
)  # fmt: skip


def test_nothing_is_missed_in_a_short_run() -> None:
    """Attack 5, every kind three times through the forms, those of SOME once through the protocol."""
    found = lies.run_forms(3, 20261122)
    assert len(found) == len({tally.kind for tally in found}) > 60
    assert not sum(tally.missed for tally in found)
    assert lies.honest_refused(3) == 0
    some = lies.measure(1, 1, 20261122, SOME)
    assert {one["kind"] for one in some["kinds"] if one["depth"] == "protocol"} == set(SOME)
    assert (some["missed"], some["honest_refused"]) == (0, 0)


def test_a_fraction_in_a_weight_of_a_silent_neuron_is_not_counted_as_a_lie() -> None:
    """It changes no score and no form: with this seed such weights came up in 18 of these tries."""
    found = lies.run_forms(600, 1683640809, ["audit: 1/2 in a weight", "audit: 1/3 in a weight"])
    assert [tally.missed for tally in found] == [0, 0]


def test_a_form_without_its_parts_misses_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is counted is what the product's weights say: with the node's secret weights on the model gone, every lie about a
    later layer is missed, and the command fails."""
    true = lies.known_weights
    found = Counter[str]()

    def without_layers(*args: Any) -> tuple[Ints, int]:
        shape, coins, z, x, correct = args
        silent = tuple((np.zeros_like(s), r) for s, r in coins.layers)
        return true(shape, replace(coins, layers=silent), z, x, correct)

    monkeypatch.setattr(lies, "known_weights", without_layers)
    for tally in lies.run_forms(10, 1, ["audit: one z of layer 2 by one", "audit: one z of layer 1 by one"]):
        found[tally.kind] = tally.missed
    assert found["audit: one z of layer 1 by one"] == 0
    assert found["audit: one z of layer 2 by one"] == 10


def test_the_command_says_it_in_json_and_by_its_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.lies.measure", lambda tries, protocol_tries, seed: _result(tries, protocol_tries, seed, 0))
    done = CliRunner().invoke(app, ["lies", "--tries", "7", "--protocol-tries", "2", "--seed", "3", "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["tries"] == 9
    monkeypatch.setattr("bench.lies.measure", lambda tries, protocol_tries, seed: _result(tries, protocol_tries, seed, 1))
    for options in (["--json"], []):
        assert CliRunner().invoke(app, ["lies", *options]).exit_code == 1


def _result(tries: int, protocol_tries: int, seed: int, missed: int) -> dict[str, object]:
    one = {"kind": "a lie", "depth": "forms", "tries": tries, "missed": missed, "seconds": 0.1}
    return {"seed": seed, "kinds": [one], "tries": tries + protocol_tries, "missed": missed, "honest_refused": 0}
