"""Which transactions wait, in what order, and when they go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from core.chain import build, mempool, merkle, rules
from core.chain.mempool import Mempool, Waiting
from core.chain.state import State
from core.chain.transaction import EnterTask, PublishTask, Refusal, SignedTransaction, Stored, Transaction, Transfer
from core.errors import TransactionError
from core.ids import AccountId, Amount, Milliseconds, TaskId
from node.pending import Pending
from services.runtime.clock import SystemClock
from tests.chainkit import Chain, account, key, make_spec, some

NOW = Milliseconds(5)


def pay(chain: Chain, nonce: int, fee: int = 1, sender: str = "other", amount: int = 5) -> SignedTransaction:
    return chain.tx(sender, Transfer(account("x"), Amount(amount)), fee=fee, nonce=nonce)


def filled(chain: Chain, *transactions: SignedTransaction) -> Mempool:
    pool = Mempool()
    for tx in transactions:
        pool = mempool.add(pool, chain.state, tx, NOW)
    return pool


def refused(pool: Mempool, chain: Chain, tx: SignedTransaction) -> str:
    with pytest.raises(TransactionError) as caught:
        mempool.add(pool, chain.state, tx, NOW)
    return caught.value.reason


def test_in_order_of_nonces_without_gaps_and_best_fees_first() -> None:
    chain = Chain()
    late, first, gap = pay(chain, 1), pay(chain, 0), pay(chain, 3)
    rich = pay(chain, 0, fee=9, sender="pool0")
    pool = filled(chain, late, first, gap, rich)
    assert mempool.candidates(pool, chain.state) == (rich, first, late)
    assert mempool.next_nonce(pool, chain.state, account("other")) == 2
    built = build.build_transaction_block(chain.state, key("v0"), None, mempool.candidates(pool, chain.state))
    assert built.dropped == ()
    chain.apply(built.block)
    after, dropped = mempool.after_block(pool, chain.state, NOW)
    assert [w.signed for w in after.waiting.values()] == [gap]
    assert dropped == ()
    assert not mempool.has_candidates(after, chain.state)
    assert after.size == len(gap.transaction)


def test_the_same_again_changes_nothing_and_more_pay_replaces() -> None:
    chain = Chain()
    tx = pay(chain, 0)
    pool = filled(chain, tx)
    assert mempool.add(pool, chain.state, tx, NOW) is pool
    assert refused(pool, chain, pay(chain, 0, amount=6)) == Refusal.FEE_TOO_LOW
    better = pay(chain, 0, fee=2, amount=6)
    pool = mempool.add(pool, chain.state, better, NOW)
    assert mempool.candidates(pool, chain.state) == (better,)
    assert better.tx_id in pool
    assert pool.get(tx.tx_id) is None


def test_too_early_waits_and_too_late_goes() -> None:
    chain = Chain()
    task = chain.publish()
    enter = chain.tx("pool0", EnterTask(task, Amount(100_000), "a:1"))
    pool = filled(chain, enter)
    assert not mempool.has_candidates(pool, chain.state)
    chain.block()
    pool, _ = mempool.after_block(pool, chain.state, NOW)
    assert mempool.candidates(pool, chain.state) == (enter,)
    windows = chain.state.windows(task)
    assert windows is not None
    chain.until(windows.entry_close_ms)
    pool, dropped = mempool.after_block(pool, chain.state, NOW)
    assert len(pool) == 0
    assert dropped[0][0] == enter.tx_id
    assert "is over" in dropped[0][1]


def test_who_waits_too_early_is_looked_at_once_a_block_and_not_with_each_that_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain()
    task = chain.publish()
    early = [chain.tx(pool, EnterTask(task, Amount(100_000), "a:1")) for pool in ("pool0", "pool1", "pool2")]
    pending = Pending(SystemClock(), 1_000)
    looks = 0
    check = rules.check_transaction

    def counted(state: State, signed: SignedTransaction) -> Transaction:
        nonlocal looks
        looks += 1
        return check(state, signed)

    monkeypatch.setattr(rules, "check_transaction", counted)
    for signed in early:
        assert pending.add(chain.state, signed)
        assert not pending.is_due(chain.state)
    # The first is looked at when it comes and with all that wait; each later one when it comes, and as the only new one.
    assert looks == 2 * len(early)
    assert pending.add(chain.state, pay(chain, 1))
    assert not pending.is_due(chain.state)
    assert pending.add(chain.state, pay(chain, 0))
    assert pending.is_due(chain.state)
    chain.block()
    assert pending.is_due(chain.state)


def test_limits_and_expiry() -> None:
    chain = Chain()
    pool = filled(chain, *(pay(chain, n) for n in range(rules.MAX_NONCE_AHEAD)))
    assert refused(pool, chain, pay(chain, rules.MAX_NONCE_AHEAD)) == Refusal.BAD_NONCE
    assert refused(pool, chain, pay(chain, 0, amount=10**9, fee=5)) == Refusal.INSUFFICIENT_FUNDS
    after, dropped = mempool.after_block(pool, chain.state, Milliseconds(NOW + mempool.EXPIRY_MS + 1))
    assert len(after) == 0
    assert len(dropped) == rules.MAX_NONCE_AHEAD


def test_who_has_no_money_cannot_fill_the_mempool() -> None:
    """A gap in the nonces hides whether a transaction would apply; it must at least be paid for."""
    chain = Chain()
    assert refused(Mempool(), chain, pay(chain, 1, sender="nobody")) == Refusal.INSUFFICIENT_FUNDS
    free = chain.tx("nobody", Stored(TaskId(bytes(32))), fee=0, nonce=1)
    assert refused(Mempool(), chain, free) == Refusal.INSUFFICIENT_FUNDS
    filled(chain, chain.tx("v0", Stored(TaskId(bytes(32))), fee=0, nonce=1), pay(chain, 1))


def test_a_fee_that_only_its_own_author_could_pay_is_refused() -> None:
    """It would make a block due that then is empty, again and again."""
    chain = Chain()
    balance = chain.state.account(account("other")).balance
    assert refused(Mempool(), chain, pay(chain, 0, fee=9, amount=balance - 5)) == Refusal.INSUFFICIENT_FUNDS


def test_a_full_mempool_gives_way_to_better_fees_and_to_the_duties_of_validators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mempool, "MAX_WAITING", 3)
    chain = Chain()
    task = chain.publish()
    pool = filled(chain, *(pay(chain, n, fee=2) for n in range(3)))
    assert refused(pool, chain, pay(chain, 0, fee=2, sender="pool0")) == Refusal.LIMIT
    pool = mempool.add(pool, chain.state, pay(chain, 0, fee=3, sender="pool0"), NOW)
    assert sorted(n for who, n in pool.waiting if who == account("other")) == [0, 1]
    duty = chain.tx("v3", Stored(task), fee=0, nonce=1)
    pool = mempool.add(pool, chain.state, duty, NOW)
    assert sorted(n for who, n in pool.waiting if who == account("other")) == [0]
    assert pool.get(duty.tx_id) == duty
    assert pool.size == sum(w.size for w in pool.waiting.values())


def test_who_pays_too_little_for_a_full_mempool_costs_no_look_at_it_and_no_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused for nothing, so it must cost nearly nothing."""
    monkeypatch.setattr(mempool, "MAX_WAITING", 3)
    chain = Chain()
    pool = filled(chain, *(pay(chain, n, fee=2) for n in range(3)))
    looked: list[int] = []
    really = mempool._least

    def least(waiting: Mapping[tuple[AccountId, int], Waiting], state: State) -> Waiting | None:
        looked.append(len(waiting))
        return really(waiting, state)

    monkeypatch.setattr(mempool, "_least", least)
    monkeypatch.setattr(rules, "check_transaction", lambda *_: pytest.fail("its signature was looked at"))
    for nonce in range(20):
        assert refused(pool, chain, pay(chain, nonce, fee=2, sender="pool0")) == Refusal.LIMIT
    assert looked == [3]
    monkeypatch.undo()
    monkeypatch.setattr(mempool, "MAX_WAITING", 3)
    # In the place of its own predecessor it needs no room.
    replaced = mempool.add(pool, chain.state, pay(chain, 0, fee=3, amount=6), NOW)
    assert len(replaced) == 3
    assert replaced != pool


def test_a_replacement_pays_a_tenth_more() -> None:
    chain = Chain()
    pool = filled(chain, pay(chain, 0, fee=100))
    assert refused(pool, chain, pay(chain, 0, fee=109, amount=6)) == Refusal.FEE_TOO_LOW
    better = pay(chain, 0, fee=110, amount=6)
    assert mempool.candidates(mempool.add(pool, chain.state, better, NOW), chain.state) == (better,)


def test_long_transactions_pay_for_their_length_and_wait_by_what_they_pay_for_it() -> None:
    chain = Chain()
    spec = make_spec(chain.state.params)
    blobs = tuple(some(str(i)) for i in range(200))
    long = replace(spec, test_blobs=blobs, test_root=merkle.root(blobs))
    task = PublishTask(long, Amount(1000), Amount(1000), Amount(50), some("n"), Milliseconds(2**60))
    assert refused(Mempool(), chain, chain.tx("requester", task, fee=6, nonce=0)) == Refusal.FEE_TOO_LOW
    paid = chain.tx("requester", task, fee=8, nonce=0)
    pool = filled(chain, paid, pay(chain, 0, fee=3))
    assert mempool.candidates(pool, chain.state)[-1] == paid
