"""Larger networks, partitions, and more liars."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest

from core.chain.block import Block
from core.params import ChainParams, Genesis
from tests.chainkit import GENESIS_MS, Chain, account, make_genesis
from tests.consensus_sim import Answer, Link, Sim, remember_signatures, transfers


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    remember_signatures(monkeypatch)


def params_for(validators: int) -> ChainParams:
    """The local defaults with windows that this many validators need."""
    base = ChainParams()
    least = base.min_window_ms(validators)
    audit = 2 * -(-validators // base.audit_slots) * base.session_ms
    return replace(
        base, entry_ms=least, commit_ms=4 * least, claim_ms=5 * least, settle_ms=max(least, base.settle_ms), audit_ms=audit,
    ).outlasting_stalls()  # fmt: skip


@functools.cache
def genesis_of(validators: int) -> Genesis:
    return make_genesis(validators, params_for(validators))


@functools.cache
def prepared(validators: int) -> tuple[Chain, tuple[Block, ...]]:
    chain = Chain(genesis_of(validators))
    chain.to_work_height(pool0=800, pool1=900)
    return chain, (chain.work_block("pool1", after_ms=0), chain.work_block("pool0", after_ms=0))


@pytest.mark.parametrize(("validators", "seed"), [(7, 1), (7, 2), (16, 3)])
def test_larger_networks_agree_on_a_bad_network_with_f_liars(validators: int, seed: int) -> None:
    chain = Chain(genesis_of(validators))
    liars = frozenset(chain.names[: (validators - 1) // 3])
    link = Link(drop=0.1, duplicate=0.05, delay_ms=400, calm_ms=GENESIS_MS + 5_000)
    Sim(seed, chain.state, None, chain.names, 2, GENESIS_MS + 100, link, liars, transactions=transfers(chain.state, 5)).run()


@pytest.mark.parametrize("seed", range(3))
def test_seven_validators_of_which_two_help_a_false_claim(seed: int) -> None:
    chain, blocks = prepared(7)
    liars = frozenset({f"v{seed}", f"v{seed + 3}"})
    answers: dict[str, dict[str, Answer]] = {
        n: {"pool1": "valid" if n in liars else "pool_fault", "pool0": "pool_fault" if n in liars else "valid"}
        for n in chain.names
    }
    sim = Sim(
        seed, chain.state, chain.certificate(), chain.names, chain.state.height + 1, chain.clock + 50,
        Link(drop=0.05, delay_ms=200, calm_ms=chain.clock + 4_000), liars, answers, list(blocks),
    )  # fmt: skip
    sim.run()
    final = next(n.chain[chain.state.height + 1][0] for n in sim.nodes.values() if sim.is_honest(n.name) and n.chain)
    assert final.header.decoded().author_id == account("pool0")


@pytest.mark.parametrize("seed", range(4))
def test_a_partition_into_halves_stops_the_chain_and_its_end_starts_it_again(seed: int) -> None:
    chain = Chain()
    sim = Sim(seed, chain.state, None, chain.names, 3, GENESIS_MS + 100, transactions=transfers(chain.state, 3))
    end = GENESIS_MS + 20_000
    sim.cut = lambda a, b, now: now < end and (a in ("v0", "v1")) != (b in ("v0", "v1"))
    took = sim.run()
    assert 20_000 - 100 <= took < 45_000
    assert not any(n.faults for n in sim.nodes.values())


@pytest.mark.parametrize("seed", range(4))
def test_three_of_four_go_on_while_one_is_cut_off_and_it_catches_up(seed: int) -> None:
    chain = Chain()
    sim = Sim(seed, chain.state, None, chain.names, 3, GENESIS_MS + 100, transactions=transfers(chain.state, 3))
    end = GENESIS_MS + 25_000
    sim.cut = lambda a, b, now: now < end and "v3" in (a, b)
    sim.run()
    assert sim.nodes["v3"].state.height == 3


def test_a_restart_of_everybody_at_once_in_the_middle_of_a_vote() -> None:
    chain = Chain()
    sim = Sim(5, chain.state, None, chain.names, 2, GENESIS_MS + 100, transactions=transfers(chain.state, 3))
    for at in (250, 400, 700, 1_300):
        for node in sim.nodes.values():
            sim.at(GENESIS_MS + at, lambda node=node: node.crash() if node.is_up else None)  # type: ignore[misc]
    sim.run()
    assert not any(n.faults for n in sim.nodes.values())
