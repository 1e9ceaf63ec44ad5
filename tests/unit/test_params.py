"""core.params: the genesis document."""

from __future__ import annotations

import dataclasses
import json

import pytest

from core.errors import ConfigError
from core.ids import AccountId, Amount, Milliseconds, NodeId
from core.params import ChainParams, Genesis, GenesisAccount, GenesisValidator


def genesis(**params: int) -> Genesis:
    return Genesis(
        name="test",
        protocol_version=1,
        time_ms=Milliseconds(1_700_000_000_000),
        validators=tuple(GenesisValidator(NodeId(bytes([i]) * 32), 1, f"node{i}") for i in range(1, 5)),
        accounts=(GenesisAccount(AccountId(b"a" * 32), Amount(10**9), "alice"),),
        params=dataclasses.replace(ChainParams(), **params),
    )


def test_json_round_trip_keeps_the_chain_id() -> None:
    document = genesis()
    assert Genesis.from_json(document.to_json()) == document
    assert Genesis.from_json(document.to_json()).chain_id == document.chain_id


def test_every_value_is_part_of_the_chain_id() -> None:
    assert genesis().chain_id != genesis(idle_ms=10_001).chain_id
    assert genesis().chain_id != dataclasses.replace(genesis(), name="other").chain_id


@pytest.mark.parametrize(("validators", "least"), [(4, 4_125), (7, 6_250), (16, 14_875)])
def test_the_shortest_window_is_the_one_of_the_design(validators: int, least: int) -> None:
    """Design: consensus, defaults: 4.1 s at 4 validators, 6.3 s at 7, 14.9 s at 16."""
    assert ChainParams().min_window_ms(validators) == least


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"entry_ms": 1_000}, r"entry_ms is 1000 ms, but 4 validators need windows of at least 4125 ms"),
        ({"commit_ms": 5_001}, r"commit_ms - entry_ms is 1 ms"),
        ({"audit_ms": 100}, r"audit_ms is 100, but 4 validators in 2 slots of 2000 ms need at least 8000"),
        ({"delivery_ms": 10}, r"delivery_ms is 10, shorter than the longest stall"),
        ({"answer_ms": 10}, r"answer_ms is 10, shorter than the longest stall"),
        ({"initial_reputation_ppm": 120_000}, r"a new name must start below"),
        ({"max_pools": 65, "delivery_ms": 10**7}, r"max_pools is 65, must be 1 to 64"),
        ({"audit_slots": 0}, r"audit_slots is 0, must be 1"),
        ({"highs_window": 300}, r"highs_window is 300"),
        ({"min_fee": -1}, r"min_fee is -1"),
        ({"void_bond_ppm": 1_000_001}, r"void_bond_ppm is 1000001"),
        ({"burn_ppm": 600_000, "auditors_ppm": 500_000}, r"are 1100000 together: more than the reward"),
    ],
)
def test_parameters_that_cannot_work_are_named(change: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        genesis(**change).check()


def test_an_unknown_parameter_is_named() -> None:
    document = json.loads(genesis().to_json())
    document["params"]["blok_ms"] = 1
    with pytest.raises(ConfigError, match="unknown parameter 'blok_ms'"):
        Genesis.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"name": 1}', "null", '{"params": {}, "name": "x"}'])
def test_another_document_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="genesis"):
        Genesis.from_json(text)


def test_a_validator_listed_twice_is_refused() -> None:
    twice = dataclasses.replace(genesis(), validators=(genesis().validators[0],) * 2)
    with pytest.raises(ConfigError, match="a validator is listed twice"):
        twice.check()
