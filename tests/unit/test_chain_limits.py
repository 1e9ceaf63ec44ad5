"""What strangers can make every node keep: bounded, paid for, and never in the way of who offers more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from core.chain import rules_tasks
from core.chain.state import TaskEnd, TaskPhase, encode_state
from core.chain.transaction import EnterTask, PublishTask, Refusal, Transfer, task_id
from core.ids import Amount, Milliseconds, TaskId
from tests.chainkit import FUNDS, Chain, account, make_genesis, make_spec, some


def task(chain: Chain, name: str, reward: int) -> PublishTask:
    return PublishTask(
        make_spec(chain.state.params, name), Amount(reward), Amount(reward), Amount(reward // 20 + 1), some(name),
        Milliseconds(2**60),
    )  # fmt: skip


def test_a_reward_below_the_least_is_refused() -> None:
    chain = Chain()
    assert chain.refused(chain.tx("requester", task(chain, "a", 999))) == Refusal.OUT_OF_RANGE
    chain.block(chain.tx("requester", task(chain, "a", 1000)))


def test_many_cheap_tasks_do_not_shut_out_a_better_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules_tasks, "MAX_LIVE", 5)
    chain = Chain()
    chain.block(*(chain.tx("other", task(chain, f"cheap{i}", 1000)) for i in range(5)))
    assert chain.refused(chain.tx("requester", task(chain, "same", 1000))) == Refusal.LIMIT
    before = chain.state.account(account("other")).balance
    chain.block(chain.tx("requester", task(chain, "better", 1001)))
    assert len(chain.state.live) == 5
    gone = chain.state.task(task_id(chain.state.chain_id, account("other"), some("cheap4")))
    assert (gone.phase, gone.ended) == (TaskPhase.VOID, TaskEnd.DISPLACED)
    assert chain.state.account(account("other")).balance == before + 2000


def test_the_current_task_is_never_displaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules_tasks, "MAX_LIVE", 2)
    chain = Chain()
    current = chain.publish(reward=1000)
    chain.block(chain.tx("other", task(chain, "waits", 2000)))
    chain.block(chain.tx("other", task(chain, "better", 3000)))
    assert chain.state.current == current
    assert current in chain.state.live
    assert chain.refused(chain.tx("other", task(chain, "less", 2500))) == Refusal.LIMIT


def entering(chain: Chain, current: TaskId, pool: str, bond: int) -> EnterTask:
    return EnterTask(current, Amount(bond), "a:1")


def test_a_full_list_of_entrants_gives_way_to_a_higher_bond(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was full for good before: who filled it with cheap entries chose the field."""
    monkeypatch.setattr(rules_tasks, "MAX_ENTRANTS", 4)
    chain = Chain()
    current = chain.publish(reward=1000)
    chain.block()
    chain.block(*(chain.tx(f"pool{i}", entering(chain, current, f"pool{i}", 60)) for i in range(4)))
    assert chain.refused(chain.tx("pool4", entering(chain, current, "pool4", 60))) == Refusal.LIMIT
    chain.block(chain.tx("pool4", entering(chain, current, "pool4", 61)))
    assert chain.state.entry(current, account("pool3")) is None
    assert chain.state.account(account("pool3")).balance == FUNDS - 1
    assert [e.pool for e in chain.state.entries_of(current)] == [account(f"pool{i}") for i in (0, 1, 2, 4)]
    chain.block(chain.tx("pool3", entering(chain, current, "pool3", 62)))
    assert chain.state.entry(current, account("pool2")) is None
    windows = chain.state.windows(current)
    assert windows is not None
    chain.until(windows.entry_close_ms)
    assert {e.pool for e in chain.state.entries_of(current)} == {account(f"pool{i}") for i in (0, 1, 3, 4)}


def test_ended_tasks_are_forgotten_and_the_state_stops_growing() -> None:
    chain = Chain(make_genesis(4, replace(make_genesis().params, kept_tasks=16, pending_ms=1000)))
    sizes = []
    for number in range(60):
        chain.block(chain.tx("requester", task(chain, f"task {number:03}", 1000)), after_ms=2000)
        sizes.append(len(encode_state(chain.state)))
    assert len(chain.state.ended) == 16
    assert len(chain.state.tasks) == 16 + len(chain.state.live)
    assert max(sizes) <= sizes[20] + 64
    assert account("requester") in chain.state.accounts


def test_a_task_whose_bonds_are_locked_is_not_forgotten() -> None:
    chain = Chain(make_genesis(4, replace(make_genesis().params, kept_tasks=16, pending_ms=2500)))
    won = chain.to_work_height(pool0=900)
    chain.apply(chain.work_block("pool0"))
    for number in range(9):
        chain.block(*(chain.tx("requester", task(chain, f"{number} {i}", 1000)) for i in range(4)), after_ms=500)
    assert won in chain.state.settling
    assert chain.state.entry(won, account("pool0")) is not None
    for number in range(9, 40):
        chain.block(chain.tx("requester", task(chain, f"{number}", 1000)), after_ms=1000)
    assert won not in chain.state.tasks
    assert chain.state.entry(won, account("pool0")) is None
    assert len(chain.state.ended) == 16


def test_a_dust_account_costs_its_maker_a_fee() -> None:
    chain = Chain()
    assert chain.refused(chain.tx("other", Transfer(account("dust"), Amount(1)), fee=0)) == Refusal.FEE_TOO_LOW
