"""The voting machine, and networks of it under a seeded scheduler."""

from __future__ import annotations

import pytest

from tests.chainkit import GENESIS_MS, Chain
from tests.consensus_sim import Link, Sim, remember_signatures, transfers


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    remember_signatures(monkeypatch)


def at_genesis(seed: int, link: Link, stop: int = 2, liars: frozenset[str] = frozenset(), skew_ms: int = 0) -> Sim:
    chain = Chain()
    return Sim(
        seed, chain.state, None, chain.names, stop, GENESIS_MS + 100, link, liars, skew_ms=skew_ms,
        transactions=transfers(chain.state, 4),
    )  # fmt: skip


def test_four_nodes_agree_at_once() -> None:
    assert at_genesis(0, Link(), stop=1).run() < 1000


@pytest.mark.parametrize("batch", range(4))
def test_loss_reordering_and_duplicates(batch: int) -> None:
    for seed in range(batch * 15, batch * 15 + 15):
        at_genesis(seed, Link(drop=0.2, duplicate=0.2, delay_ms=600, calm_ms=GENESIS_MS + 10_000), skew_ms=400).run()


@pytest.mark.parametrize("batch", range(4))
def test_crashes_in_the_middle_of_actions(batch: int) -> None:
    for seed in range(1000 + batch * 15, 1000 + batch * 15 + 15):
        at_genesis(seed, Link(drop=0.05, delay_ms=300, calm_ms=GENESIS_MS + 10_000, crash=0.03)).run()


@pytest.mark.parametrize("batch", range(4))
def test_one_validator_that_tells_every_second_peer_something_else(batch: int) -> None:
    for seed in range(2000 + batch * 15, 2000 + batch * 15 + 15):
        link = Link(drop=0.1, delay_ms=500, calm_ms=GENESIS_MS + 10_000)
        at_genesis(seed, link, liars=frozenset({f"v{seed % 4}"})).run()
