"""Work heights: who wins, and that everybody agrees, when pools, requesters and validators misbehave."""

from __future__ import annotations

import functools

import pytest

from core.chain import rules
from core.chain.block import Block, BlockKind, Header, OutcomeKind
from core.chain.state import TaskEnd
from tests.chainkit import Chain, account
from tests.consensus_sim import Answer, Link, Sim, remember_signatures

ALL = ("v0", "v1", "v2", "v3")
RANKED = ("pool2", "pool1", "pool0")
"""The claims, best first."""


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    remember_signatures(monkeypatch)


@functools.cache
def prepared() -> tuple[Chain, tuple[Block, ...]]:
    """A chain whose next height is a work height of three claims, and their work blocks."""
    chain = Chain()
    chain.to_work_height(pool0=800, pool1=900, pool2=950)
    return chain, tuple(chain.work_block(p, after_ms=0) for p in RANKED)


def at_work(
    seed: int,
    answers: dict[str, dict[str, Answer]],
    link: Link | None = None,
    gone: str = "",
    liars: frozenset[str] = frozenset(),
    offered: tuple[str, ...] = RANKED,
) -> Sim:
    chain, blocks = prepared()
    return Sim(
        seed, chain.state, chain.certificate(), chain.names, chain.state.height + 1, chain.clock + 50,
        Link() if link is None else link, liars | ({gone} if gone else set()), answers,
        [b for b, p in zip(blocks, RANKED, strict=True) if p in offered],
        cut=(lambda a, b, _: gone in (a, b)) if gone else None,
    )  # fmt: skip


def same(**answers: Answer) -> dict[str, dict[str, Answer]]:
    return {v: dict(answers) for v in ALL}


def result(sim: Sim) -> Header:
    """The header that all honest nodes finalised, checked by a node that only syncs."""
    chain, _ = prepared()
    node = next(n for n in sim.nodes.values() if sim.is_honest(n.name) and n.chain)
    block, _ = node.chain[chain.state.height + 1]
    rules.apply_block(chain.state, block)
    return block.header.decoded()


def ends(header: Header) -> list[OutcomeKind]:
    return [o.kind for o in header.outcome]


R, S, D = OutcomeKind.REFUTED, OutcomeKind.SKIPPED, OutcomeKind.DEAD


def test_the_honest_top_claim_wins_at_once() -> None:
    for seed in range(5):
        sim = at_work(seed, {})
        assert sim.run() < 1500
        assert result(sim).author_id == account("pool2")


def test_a_lie_at_the_top_is_refuted_and_the_next_claim_wins() -> None:
    sim = at_work(1, same(pool2="pool_fault"))
    sim.run()
    assert result(sim).author_id == account("pool1")


def test_one_validator_that_calls_a_lie_valid_does_not_help_it() -> None:
    sim = at_work(2, {**same(pool2="pool_fault"), "v3": {"pool2": "valid"}})
    sim.run()
    assert result(sim).author_id == account("pool1")


def test_one_validator_that_calls_the_truth_a_lie_does_not_hurt_it() -> None:
    sim = at_work(3, {"v3": {"pool2": "pool_fault"}})
    sim.run()
    assert result(sim).author_id == account("pool2")


@pytest.mark.parametrize("offered", [RANKED, ("pool1", "pool0")])
def test_a_top_claim_without_body_or_block_is_skipped(offered: tuple[str, ...]) -> None:
    sim = at_work(4, same(pool2="no body"), offered=offered)
    took = sim.run()
    assert 4_000 < took < 8_000
    assert result(sim).author_id == account("pool1")


def test_all_refuted_is_void() -> None:
    sim = at_work(5, same(pool2="pool_fault", pool1="pool_fault", pool0="pool_fault"))
    sim.run()
    header = result(sim)
    assert header.kind is BlockKind.VOID
    assert ends(header) == [R, R, R]


def test_a_requester_who_is_dead_ends_the_search() -> None:
    sim = at_work(6, same(pool2="no answer"))
    assert 8_000 < sim.run() < 12_000
    header = result(sim)
    assert ends(header) == [D]
    chain, _ = prepared()
    state = next(n.state for n in sim.nodes.values() if n.chain)
    assert chain.state.current is not None
    assert state.task(chain.state.current).ended is TaskEnd.DEAD


@pytest.mark.parametrize("seed", range(3))
def test_a_late_malformed_about_a_malicious_body_ends_as_the_pools_fault(seed: int) -> None:
    """Before, the height ended dead: the honest requester's whole bond for a pool's malformed body."""
    sim = at_work(seed, same(pool2="late malformed"))
    assert 11_400 < sim.run() < 14_000
    assert result(sim).author_id == account("pool1")


def test_a_requester_who_dies_after_the_first_refutation() -> None:
    sim = at_work(7, same(pool2="pool_fault", pool1="no answer"))
    sim.run()
    assert ends(result(sim)) == [R, D]


@pytest.mark.parametrize("seed", range(6))
def test_a_requester_who_answers_exactly_half_or_f_plus_one(seed: int) -> None:
    """Two of four: more than a third found it valid, and one of them is honest."""
    silent = ALL[seed % 2 : seed % 2 + 2]
    sim = at_work(seed, {v: {"pool2": "no answer"} for v in silent})
    sim.run()
    assert result(sim).author_id == account("pool2")


@pytest.mark.parametrize("seed", range(6))
def test_a_three_way_split_with_one_node_silent_is_skipped(seed: int) -> None:
    answers: dict[str, dict[str, Answer]] = {
        "v0": {"pool2": "valid"}, "v1": {"pool2": "pool_fault"}, "v2": {"pool2": "no answer"},
    }  # fmt: skip
    sim = at_work(seed, answers, gone="v3")
    sim.run(200_000)
    assert result(sim).author_id == account("pool1")


@pytest.mark.parametrize("seed", range(6))
def test_bodies_to_some(seed: int) -> None:
    """Half got the body: with two valid verdicts the claim is adopted; with one it may be skipped. All agree."""
    blind = ALL[: 2 + seed % 2]
    sim = at_work(seed, {v: {"pool2": "no body"} for v in blind})
    sim.run()
    assert result(sim).author_id in (account("pool2"), account("pool1"))
    if len(blind) == 2:
        assert result(sim).author_id == account("pool2")


@pytest.mark.parametrize("seed", range(10))
def test_a_bad_network_and_crashes_in_the_middle_of_a_work_height(seed: int) -> None:
    chain, _ = prepared()
    link = Link(drop=0.2, duplicate=0.1, delay_ms=800, calm_ms=chain.clock + 8_000, crash=0.05)
    sim = at_work(seed, same(pool2="pool_fault") if seed % 2 else {}, link)
    sim.run()
    if seed % 2:
        assert result(sim).author_id != account("pool2")


@pytest.mark.parametrize("seed", range(8))
def test_a_liar_among_the_validators_with_a_pool_as_accomplice(seed: int) -> None:
    """The liar calls its pool's false claim valid, hides the true one, and votes two ways."""
    chain, _ = prepared()
    liar = ALL[seed % 4]
    answers: dict[str, dict[str, Answer]] = {**same(pool2="pool_fault"), liar: {"pool2": "valid", "pool1": "pool_fault"}}
    sim = at_work(seed, answers, Link(drop=0.1, delay_ms=400, calm_ms=chain.clock + 6_000), liars=frozenset({liar}))
    sim.run()
    assert result(sim).author_id in (account("pool1"), account("pool0"))
