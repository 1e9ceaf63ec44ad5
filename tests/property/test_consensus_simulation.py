"""Five hundred networks drawn from seeds, judged by tests/consensus_monitor.py. `pofl bench consensus-sim` runs more."""

from __future__ import annotations

import pytest

from bench.consensus_sim import replay, simulate, sizes_of
from tests.consensus_scenarios import cheap_signatures, draw, play


@pytest.mark.slow
@pytest.mark.parametrize("batch", range(32))
def test_networks_of_four_with_faults_and_liars(batch: int) -> None:
    with cheap_signatures():
        for seed in range(batch * 15, batch * 15 + 15):
            play(seed, 4)


@pytest.mark.slow
@pytest.mark.parametrize(("validators", "first", "count"), [(7, 0, 10), (7, 10, 9), (16, 0, 1)])
def test_larger_networks_with_faults_and_liars(validators: int, first: int, count: int) -> None:
    with cheap_signatures():
        for seed in range(first, first + count):
            play(seed, validators)


def test_a_seed_gives_the_same_run_again() -> None:
    with cheap_signatures():
        assert [play(seed, 4) for seed in range(3)] == [play(seed, 4) for seed in range(3)]


def test_a_failure_names_its_seed_and_the_command_that_shows_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.chain.consensus.WorkHeight.is_ripe", lambda *_: False)
    failures = simulate(40, [4], 0)["failures"]
    assert failures
    assert "pofl bench consensus-sim --replay" in failures[0]


def test_a_replay_tells_who_sent_what_when() -> None:
    seed = next(s for s in range(20) if draw(s, 4).sim.adversary is not None)
    trace, problem = replay(seed, 4)
    assert problem is None
    text = "\n".join(trace)
    assert f"seed {seed}: 4 validators" in text
    assert "liar v" in text
    assert "prevote" in text
    assert "finalises" in text


def test_every_size_gets_runs() -> None:
    assert sizes_of(10_000, [4, 7, 16]) == {4: 9_000, 7: 900, 16: 100}
    assert sizes_of(1, [4, 7, 16]) == {4: 1, 7: 1, 16: 1}
