"""A task from publication to its end, and what everybody's money does meanwhile."""

from __future__ import annotations

import pytest

from core.chain import claims, rules
from core.chain.block import Outcome, OutcomeKind
from core.chain.state import Standing, TaskEnd, TaskPhase, decode_state, encode_state, genesis_state, state_root
from core.chain.transaction import EnterTask, Verdicts
from core.chain.vote import VerdictKind
from core.errors import BlockError, WrongChainError
from core.ids import Amount, Height, Milliseconds, ModelCommitment
from tests.chainkit import FUNDS, Chain, account, make_commitment, make_genesis, make_verdict, signed_verdict, some


def balance(chain: Chain, name: str) -> int:
    return chain.state.account(account(name)).balance


def test_from_publication_to_the_winner_and_the_auditors() -> None:
    chain = Chain()
    task = chain.publish()
    assert chain.state.phase(task) is TaskPhase.CURRENT
    assert chain.state.windows(task) is None
    chain.block()
    windows = chain.state.windows(task)
    assert windows is not None
    assert windows.start_ms == chain.state.tip.timestamp_ms
    chain.block(*(chain.tx(p, EnterTask(task, Amount(100_000), "a:1")) for p in ("pool0", "pool1")))
    chain.until(windows.entry_close_ms)
    models = {"pool0": "m0", "pool1": "m1"}
    chain.commit(task, **models)
    chain.claim(task, models, pool0=900, pool1=950)
    ranked = chain.state.work_claims()
    assert ranked is not None
    assert [e.pool for e in ranked] == [account("pool1"), account("pool0")]
    at_work = chain.state
    chain.apply(chain.work_block("pool1"))
    assert chain.state.phase(task) is TaskPhase.WON
    assert chain.state.task(task).winner == account("pool1")
    assert [balance(chain, f"pool1/miner{i}") for i in range(3)] == [283_334, 283_333, 283_333]
    assert chain.state.burned == 100_000

    audits = [make_verdict(at_work, ranked[0], f"v{i}", VerdictKind.VALID) for i in range(3)]
    wrong = make_verdict(at_work, ranked[0], "v3", VerdictKind.VALID, audited=b"guess")
    signed = tuple(signed_verdict(v, n) for v, n in zip([*audits, wrong], chain.names, strict=True))
    chain.block(chain.tx("v0", Verdicts(Height(at_work.tip.height + 1), some(b"z".hex()), signed), fee=0))
    assert [balance(chain, f"v{i}") for i in range(4)] == [12_500 + 7, 12_500, 12_500, 0]  # v0: fees too
    assert chain.state.burned == 112_500

    assert balance(chain, "pool1") == FUNDS - 3 - 100_000
    chain.until(chain.clock + 10_000)
    chain.block()
    assert balance(chain, "pool1") == balance(chain, "pool0") == FUNDS - 3
    assert balance(chain, "requester") == FUNDS - 1_000_000 - 1


def test_a_skipped_claim_above_the_winner_costs_a_tenth_and_a_refuted_one_all() -> None:
    chain = Chain()
    chain.to_work_height(pool0=900, pool1=950, pool2=970)
    at_work, ranked = chain.state, chain.state.work_claims()
    assert ranked is not None
    chain.apply(chain.work_block("pool0"))
    lies = tuple(signed_verdict(make_verdict(at_work, ranked[0], v, VerdictKind.POOL_FAULT), v) for v in ("v1", "v2"))
    chain.block(chain.tx("v0", Verdicts(Height(at_work.tip.height + 1), some(b"z".hex()), lies), fee=0))
    assert [e.standing for e in ranked] == [Standing.ADMITTED] * 3
    after = [chain.state.entry(e.task_id, e.pool) for e in ranked]
    assert [(e.standing, e.held) for e in after if e is not None] == [
        (Standing.REFUTED, 0), (Standing.SKIPPED, 100_000), (Standing.WON, 100_000)
    ]  # fmt: skip
    chain.until(chain.clock + 11_000)
    chain.block()
    assert [balance(chain, f"pool{i}") for i in range(3)] == [FUNDS - 3, FUNDS - 3 - 10_000, FUNDS - 3 - 100_000]


@pytest.mark.parametrize(
    ("kinds", "end", "requester_loses", "pools_lose"),
    [
        ("RS", TaskEnd.VOID_BLOCK, 0, [100_000, 10_000]),
        ("SS", TaskEnd.VOID_BLOCK, 50_000, [10_000, 10_000]),
        ("D", TaskEnd.DEAD, 1_000_000, [0, 0]),
        ("SD", TaskEnd.DEAD, 1_000_000, [10_000, 0]),
    ],
)
def test_void_blocks(kinds: str, end: TaskEnd, requester_loses: int, pools_lose: list[int]) -> None:
    chain = Chain()
    task = chain.to_work_height(pool0=900, pool1=800)
    ranked = chain.state.work_claims()
    assert ranked is not None
    names = {"R": OutcomeKind.REFUTED, "S": OutcomeKind.SKIPPED, "D": OutcomeKind.DEAD}
    outcomes = [
        Outcome(e.claim.vm.model_commitment, names[k]) for e, k in zip(ranked, kinds, strict=False) if e.claim is not None
    ]
    chain.apply(chain.void_block(outcomes))
    assert chain.state.task(task).ended is end
    chain.until(chain.clock + 11_000)
    chain.block()
    assert balance(chain, "requester") == FUNDS - 1 - requester_loses
    assert [balance(chain, f"pool{i}") for i in range(2)] == [FUNDS - 3 - x for x in pools_lose]
    assert chain.state.settling == ()


def test_no_entries_no_commits_no_claims_are_void_without_a_work_height() -> None:
    chain = Chain()
    first = chain.publish(name="none enters")
    chain.enter(first)
    assert chain.state.task(first).ended is TaskEnd.NO_ENTRIES
    second = chain.publish(name="none commits")
    chain.enter(second, "pool0")
    chain.commit(second)
    assert chain.state.task(second).ended is TaskEnd.NO_COMMITS
    assert balance(chain, "pool0") == FUNDS - 1 - 10_000
    third = chain.publish(name="none claims")
    chain.enter(third, "pool1")
    chain.commit(third, pool1="m")
    chain.claim(third, {})
    assert chain.state.task(third).ended is TaskEnd.NO_CLAIMS
    assert balance(chain, "pool1") == FUNDS - 2
    assert not rules.is_work_height(chain.state)


def test_the_highest_bonds_are_admitted_and_the_others_get_theirs_back() -> None:
    chain = Chain()
    task = chain.publish()
    chain.block()
    bonds = {"pool0": 60_000, "pool1": 50_000, "pool2": 70_000, "pool3": 60_000, "pool4": 50_000}
    chain.block(*(chain.tx(p, EnterTask(task, Amount(b), "a:1")) for p, b in bonds.items()))
    windows = chain.state.windows(task)
    assert windows is not None
    chain.until(windows.entry_close_ms)
    standing = {p: e.standing for p in bonds if (e := chain.state.entry(task, account(p))) is not None}
    assert standing["pool4"] is Standing.OUTBID
    assert [standing[f"pool{i}"] for i in range(4)] == [Standing.ADMITTED] * 4
    assert balance(chain, "pool4") == FUNDS - 1


def test_highest_reward_first_ties_to_the_earlier_and_sticky() -> None:
    chain = Chain()
    first = chain.publish(reward=1_000_000, name="first")
    second = chain.publish(reward=2_000_000, name="second", requester="other")
    third = chain.publish(reward=2_000_000, name="third")
    assert chain.state.current == first
    chain.block()
    chain.until(chain.clock + 5_000)
    chain.block()
    assert chain.state.task(first).ended is TaskEnd.NO_ENTRIES
    assert chain.state.current == second
    assert chain.state.phase(third) is TaskPhase.OPEN


def test_tasks_that_nobody_stores_and_tasks_that_wait_too_long_go_back_whole() -> None:
    chain = Chain()
    chain.block()
    from core.chain.transaction import PublishTask
    from tests.chainkit import make_spec

    payload = PublishTask(
        make_spec(chain.state.params), Amount(1000), Amount(1000), Amount(50), some("n"), Milliseconds(chain.clock + 10**9)
    )
    chain.block(chain.tx("requester", payload))
    assert balance(chain, "requester") == FUNDS - 2001
    chain.until(chain.clock + 60_000)
    chain.block()
    assert balance(chain, "requester") == FUNDS - 1
    assert chain.state.live == ()


def test_state_is_stored_and_read_back_and_its_root_covers_it() -> None:
    chain = Chain()
    roots = {state_root(chain.state)}
    chain.to_work_height(pool0=900, pool1=950)
    data = encode_state(chain.state)
    again = decode_state(data, chain.genesis)
    assert again == chain.state
    assert encode_state(again) == data
    assert state_root(again) == state_root(chain.state)
    roots.add(state_root(chain.state))
    chain.apply(chain.work_block("pool1"))
    roots.add(state_root(chain.state))
    assert len(roots) == 3
    with pytest.raises(WrongChainError, match="the genesis document is of chain"):
        decode_state(data, make_genesis(5))


def test_replaying_the_blocks_gives_the_same_root() -> None:
    chain = Chain()
    chain.to_work_height(pool0=900, pool1=950)
    chain.apply(chain.work_block("pool1"))
    state = genesis_state(chain.genesis)
    for block in chain.blocks:
        state = rules.apply_block(state, block)
    assert state_root(state) == state_root(chain.state)


def test_equal_claims_are_ordered_by_the_closing_block() -> None:
    chain = Chain()
    chain.to_work_height(pool0=900, pool1=900, pool2=900)
    ranked = chain.state.work_claims()
    assert ranked is not None
    closing = chain.state.tip.block_hash
    from core.chain.state import DOMAIN_TIE
    from core.crypto.hashing import digest

    task = chain.state.current
    assert task is not None
    made = [make_commitment(chain.state, task, f"pool{i}", f"model of pool{i}") for i in range(3)]
    ties = [digest(DOMAIN_TIE, closing, commitment) for commitment in made]
    assert [e.pool for e in ranked] == [account(f"pool{i}") for i in sorted(range(3), key=ties.__getitem__)]


def test_the_receipt_message_is_what_the_requester_signs() -> None:
    from core.codec import encode
    from core.verification.receipt import ReceiptMessage

    parts = (some("chain"), some("task"), account("pool0"), ModelCommitment(some("c")), some("circuit"), some("keys"))
    assert encode(ReceiptMessage(*parts)) == claims.receipt_message(*parts)  # type: ignore[arg-type]


def test_a_block_on_another_parent_is_refused() -> None:
    chain = Chain()
    chain.block()
    with pytest.raises(BlockError, match="the tip is"):
        rules.apply_block(chain.state, chain.blocks[0])
