"""Leak reports on the chain: who may report what, the opening of marks, silence, and what each costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from core.chain import rules, rules_leaks
from core.chain.state import LeakReport, ReportOutcome, State, TradePhase, decode_state, encode_state, report_key, state_root
from core.chain.transaction import OpenMarks, Payload, Refusal, RegisterProvider, ReportLeak
from core.errors import TransactionError
from core.ids import Amount, Digest, Milliseconds, PartsPerMillion
from core.market import bridge, contract, marks
from core.market.contract import CHUNKS, TradeTerms, trade_id
from core.market.delivery import sign_receipt
from core.market.marks import Marking
from tests.chainkit import account, key, some
from tests.market_kit import MINERS, PRIVATE, KitChain, Shop, bidding, marking_of, on_chain, seed_of, terms_for

ROWS = 900
"""300 a miner: 100 marks each."""
COUNT = 100
BOND = 5_000


class Sold:
    """A drawn trade of pool0 with three miners, and what each side may send about it."""

    def __init__(self, kit: KitChain, trade: TradeTerms) -> None:
        self.kit, self.trade, self.trade_id = kit, trade, trade_id(trade)

    @property
    def state(self) -> State:
        return self.kit.chain.state

    def choices(self, miner: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        return marks.choices_of(seed_of(MINERS[miner]), COUNT)

    def report(self, miner: int = 0, agreeing: int = COUNT, found: int = COUNT) -> ReportLeak:
        """Of ``found`` marks, the first ``agreeing`` are what the miner chose."""
        there = np.arange(COUNT) < found
        seen = np.where(np.arange(COUNT) < agreeing, self.choices(miner), 1 - self.choices(miner)) * there
        listed, shown = (marks.bitmap(bits.astype(np.uint8)) for bits in (there, seen))
        return ReportLeak(self.trade_id, MINERS[miner], listed, shown, some("copy"))

    def opening(self, miner: int = 0, seed: bytes | None = None) -> OpenMarks:
        points = marks.points_digest(self.marking(miner).points)
        return OpenMarks(self.trade_id, MINERS[miner], seed or seed_of(MINERS[miner]), points)

    def marking(self, miner: int) -> Marking:
        return marking_of(self.trade, MINERS[miner])

    def send(self, sender: str, *payloads: Payload, after_ms: int = 1000) -> None:
        self.kit.chain.block(*(self.kit.chain.tx(sender, payload) for payload in payloads), after_ms=after_ms)

    def refused(self, sender: str, payload: Payload, after_ms: int = 1000) -> str:
        before = self.state
        reason = self.kit.chain.refused(self.kit.chain.tx(sender, payload), after_ms)
        self.kit.chain.nonces.clear()
        assert state_root(self.state) == state_root(before)
        return reason

    def outcome(self, miner: int = 0) -> LeakReport:
        return self.state.reports[report_key(self.trade_id, MINERS[miner])]

    def settle(self) -> None:
        for miner in range(3):
            chunks = [sign_receipt(key(f"miner{miner}"), self.kit.chain_id, self.trade_id, c) for c in range(CHUNKS)]
            self.send("provider", *chunks)

    @property
    def reputation(self) -> int:
        return self.state.reputation(account("pool0"))


async def make_sold(deal: bool | None = True) -> Sold:
    kit = KitChain(deal=deal)
    shop = Shop(kit, rows=ROWS)
    kit.take(kit.chain.tx("provider", RegisterProvider(shop.goods.data.root, ROWS, "127.0.0.1:9")))
    accepted = await shop.seller.accept(bidding(terms_for(await shop.offer())))
    kit.take(kit.chain.tx("pool0", on_chain(accepted.trade, key("provider"), accepted.signature)))
    return Sold(kit, accepted.trade)


@pytest.fixture
async def sold() -> Sold:
    return await make_sold()


async def test_a_proven_leak_costs_reputation_and_the_credit(sold: Sold) -> None:
    sold.settle()
    before, funds = sold.reputation, sold.kit.balance("provider")
    sold.send("provider", sold.report())
    assert sold.kit.balance("provider") == funds - BOND - 1
    assert sold.outcome().outcome is ReportOutcome.OPEN
    sold.send("pool0", sold.opening())
    assert sold.outcome() == replace(sold.outcome(), outcome=ReportOutcome.LEAKED, agreeing=COUNT, held=Amount(0))
    assert sold.kit.balance("provider") == funds - 1
    assert sold.reputation == before - before * sold.state.params.leak_penalty_ppm // 10**6
    trade = sold.state.trades[sold.trade_id]
    assert (trade.is_leaked, trade.accused, trade.credit_ms) == (True, (), None)
    after = sold.reputation
    sold.send("pool0", after_ms=10 * sold.state.params.leak_window_ms)
    assert sold.reputation == after, "a leaked trade is never clean"
    assert sold.trade_id not in sold.state.trading


async def test_a_leak_makes_the_next_trade_dearer_and_less_likely(sold: Sold) -> None:
    offer, bid = sold.trade.offer, sold.trade.bid
    before = contract.terms(offer.rule, bid, offer.reputation_ppm)
    sold.send("provider", sold.report())
    sold.send("pool0", sold.opening())
    after = contract.terms(offer.rule, bid, PartsPerMillion(sold.reputation))
    assert after.p_ppm < before.p_ppm, "for the same bid"
    chosen = bridge.choose_bid(offer.rule, PRIVATE, PartsPerMillion(sold.reputation))
    assert chosen is not None
    assert chosen[1].price > before.price
    assert chosen[1].p_ppm < before.p_ppm
    shop = Shop(sold.kit, rows=ROWS)
    sold.send("pool0", after_ms=sold.state.params.draw_window_ms)
    assert (await shop.offer()).reputation_ppm == sold.reputation, "the provider reads it on the chain"


async def test_a_false_report_costs_its_sender_and_nobody_else(sold: Sold) -> None:
    sold.settle()
    before, provider, pool = sold.reputation, sold.kit.balance("provider"), sold.kit.balance("pool0")
    least = marks.least_agreeing(COUNT)
    assert least is not None
    sold.send("provider", sold.report(agreeing=least - 1))
    sold.send("pool0", sold.opening())
    assert sold.outcome().outcome is ReportOutcome.CLEARED
    assert sold.outcome().agreeing == least - 1
    assert (sold.kit.balance("provider"), sold.kit.balance("pool0")) == (provider - BOND - 1, pool + BOND - 1)
    assert sold.reputation == before
    sold.send("pool0", after_ms=10 * sold.state.params.leak_window_ms)
    assert sold.reputation > before, "the trade is clean"


async def test_one_more_agreeing_mark_is_a_proof(sold: Sold) -> None:
    least = marks.least_agreeing(COUNT)
    assert least is not None
    sold.send("provider", sold.report(agreeing=least))
    sold.send("pool0", sold.opening())
    assert sold.outcome().outcome is ReportOutcome.LEAKED


async def test_marks_turned_around_are_a_proof_too(sold: Sold) -> None:
    """A leaker who mirrors every row at a smoothed one turns all marks around: nobody else could."""
    least = marks.least_agreeing(COUNT)
    assert least is not None
    sold.send("provider", sold.report(0, agreeing=COUNT - least), sold.report(1, agreeing=COUNT - least + 1))
    sold.send("pool0", sold.opening(0), sold.opening(1))
    assert [sold.outcome(i).outcome for i in (0, 1)] == [ReportOutcome.LEAKED, ReportOutcome.CLEARED]


async def test_silence_is_taken_for_a_leak_and_late_marks_change_nothing(sold: Sold) -> None:
    before, funds = sold.reputation, sold.kit.balance("provider")
    wait = sold.state.params.answer_ms
    sold.send("provider", sold.report(agreeing=COUNT // 2))
    sold.send("pool0", after_ms=wait - 2000)
    assert sold.outcome().outcome is ReportOutcome.OPEN
    sold.send("pool0", after_ms=2000)
    assert sold.outcome().outcome is ReportOutcome.OPEN, "the first block that finds it past is a last chance"
    sold.send("pool0")
    assert sold.outcome().outcome is ReportOutcome.SILENT
    assert sold.reputation < before
    assert sold.kit.balance("provider") == funds - 1
    assert sold.refused("pool0", sold.opening()) == Refusal.WRONG_PHASE


async def test_nobody_is_silent_because_a_work_height_stalled(sold: Sold) -> None:
    """No transaction gets on the chain while a work height is decided, however long that takes."""
    sold.send("provider", sold.report(agreeing=COUNT // 2))
    before, chain = sold.reputation, sold.kit.chain
    chain.to_work_height(pool0=900)
    assert sold.state.tip.timestamp_ms < sold.outcome().deadline_ms
    chain.apply(chain.work_block("pool0", after_ms=sold.state.params.answer_ms))
    assert sold.state.tip.timestamp_ms > sold.outcome().deadline_ms
    assert sold.outcome().outcome is ReportOutcome.OPEN
    sold.send("pool0", sold.opening())
    assert sold.outcome().outcome is ReportOutcome.CLEARED
    assert sold.reputation >= before


async def test_nobody_is_silent_behind_a_block_full_of_openings(sold: Sold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules_leaks, "MAX_OPENINGS", 1)
    sold.send("provider", sold.report(0, agreeing=COUNT // 2), sold.report(1, agreeing=COUNT // 2))
    sold.send("pool0", after_ms=sold.state.params.answer_ms)
    sold.send("pool0", sold.opening(0))
    assert [sold.outcome(i).outcome for i in (0, 1)] == [ReportOutcome.CLEARED, ReportOutcome.OPEN]
    sold.send("pool0", sold.opening(1))
    assert sold.outcome(1).outcome is ReportOutcome.CLEARED


async def test_openings_made_to_order_do_not_put_off_a_silence_for_ever(sold: Sold, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leaker with a provider of its own fills every block with openings of reports on itself, for the price of their fees."""
    monkeypatch.setattr(rules_leaks, "is_full", lambda parent, state: True)
    sold.send("provider", sold.report(agreeing=COUNT // 2))
    wait = sold.state.params.answer_ms
    sold.send("pool0", after_ms=wait)
    sold.send("pool0", after_ms=rules_leaks.LONGEST_QUEUE * wait - 4000)
    assert sold.outcome().outcome is ReportOutcome.OPEN
    sold.send("pool0", after_ms=5000)
    sold.send("pool0")
    assert sold.outcome().outcome is ReportOutcome.SILENT


async def test_marks_open_once_and_a_report_is_made_once(sold: Sold) -> None:
    sold.send("provider", sold.report(agreeing=COUNT // 2))
    assert sold.refused("provider", sold.report()) == Refusal.DUPLICATE
    sold.send("pool0", sold.opening())
    assert sold.outcome().outcome is ReportOutcome.CLEARED
    assert sold.refused("pool0", sold.opening()) == Refusal.WRONG_PHASE
    # The choices are known to everybody now: nothing that agrees with them proves anything.
    assert sold.refused("provider", sold.report()) == Refusal.DUPLICATE


async def test_a_second_miner_of_a_leaked_trade_costs_nothing_more(sold: Sold) -> None:
    sold.send("provider", sold.report(0), sold.report(1))
    sold.send("pool0", sold.opening(0))
    after, funds = sold.reputation, sold.kit.balance("provider")
    sold.send("pool0", sold.opening(1))
    assert (sold.reputation, sold.kit.balance("provider")) == (after, funds + BOND)
    assert sold.outcome(1).outcome is ReportOutcome.LEAKED
    assert sold.refused("provider", sold.report(2)) == Refusal.DUPLICATE


async def test_nobody_but_the_seller_reports(sold: Sold) -> None:
    """A pool that reports itself would spend its marks on a false report before it leaks."""
    for sender in ("pool0", "pool1", "other"):
        assert sold.refused(sender, sold.report(agreeing=COUNT // 2)) == Refusal.NOT_THE_SELLER


async def test_what_cannot_be_reported(sold: Sold) -> None:
    good = sold.report()
    assert sold.refused("provider", replace(good, trade_id=some("other"))) == Refusal.UNKNOWN_TRADE
    assert sold.refused("provider", replace(good, miner=account("miner7"))) == Refusal.OUT_OF_RANGE
    beyond = marks.bitmap(np.ones(COUNT + 1, np.uint8))
    assert sold.refused("provider", replace(good, found=beyond)) == Refusal.BAD_REPORT
    assert sold.refused("provider", replace(sold.report(found=60), seen=good.found)) == Refusal.BAD_REPORT
    assert sold.refused("provider", sold.report(found=marks.SECURITY)) == Refusal.BAD_REPORT
    last = sold.state.params.delivery_ms + sold.state.params.report_window_ms
    assert sold.refused("provider", good, after_ms=last + 1000) == Refusal.EXPIRED


async def test_a_report_needs_its_bond() -> None:
    sold = await make_sold()
    chain = sold.kit.chain
    from core.chain.transaction import Transfer

    sold.send("provider", Transfer(account("other"), Amount(sold.kit.balance("provider") - BOND)))
    assert sold.refused("provider", sold.report()) == Refusal.INSUFFICIENT_FUNDS
    assert not chain.state.reports


@pytest.mark.parametrize(("deal", "reason"), [(None, Refusal.TOO_EARLY), (False, Refusal.WRONG_PHASE)])
async def test_there_is_no_leak_of_rows_that_nobody_was_sold(deal: bool | None, reason: Refusal) -> None:
    sold = await make_sold(deal)
    if deal is False:
        assert sold.state.trades[sold.trade_id].phase is TradePhase.NO_DEAL
        assert sold.refused("provider", sold.report()) == reason
        return
    state = sold.state
    tx = sold.kit.chain.tx("provider", sold.report())
    with pytest.raises(TransactionError) as caught:
        rules.check_transaction(state, tx)
    assert caught.value.reason == reason


async def test_nobody_opens_other_choices_than_were_committed(sold: Sold) -> None:
    """A buyer that denies: no other seed, no other miner's, and no other points."""
    sold.send("provider", sold.report(0), sold.report(1))
    denial = marks.commit(b"d" * 32, Digest(bytes(32)), COUNT)
    for lie in (
        sold.opening(0, seed=b"d" * 32),
        replace(sold.opening(0, seed=b"d" * 32), points=marks.points_digest(denial.points)),
        replace(sold.opening(1), miner=MINERS[0]),
        replace(sold.opening(0), points=some("points")),
    ):
        assert sold.refused("pool0", lie) == Refusal.BAD_OPENING
    assert sold.refused("pool0", sold.opening(2)) == Refusal.UNKNOWN_REPORT
    sold.send("other", sold.opening(0))  # whoever knows the seed
    assert sold.outcome(0).outcome is ReportOutcome.LEAKED


async def test_points_that_do_not_follow_from_the_seed_can_never_be_opened() -> None:
    """A buyer who commits to a transfer made otherwise, to choose again later, has nothing to show: silence."""
    kit = KitChain()
    shop = Shop(kit, rows=ROWS)
    kit.take(kit.chain.tx("provider", RegisterProvider(shop.goods.data.root, ROWS, "127.0.0.1:9")))
    honest = terms_for(await shop.offer())
    other = marking_of(honest, MINERS[1])
    seed_hash, points = marking_of(honest, MINERS[0]).seed_hash, marks.points_digest(other.points)
    forged = replace(honest, marks=(marks.commitment(seed_hash, points), *honest.marks[1:]))
    accepted = await shop.seller.accept(bidding(forged))
    kit.take(kit.chain.tx("pool0", on_chain(accepted.trade, key("provider"), accepted.signature)))
    sold = Sold(kit, accepted.trade)
    sold.send("provider", sold.report(agreeing=COUNT // 2))
    lie = OpenMarks(sold.trade_id, MINERS[0], seed_of(MINERS[0]), points)
    assert sold.refused("pool0", lie) == Refusal.BAD_OPENING


async def test_a_wrong_seed_costs_nodes_no_arithmetic(sold: Sold, monkeypatch: pytest.MonkeyPatch) -> None:
    sold.send("provider", sold.report())

    def too_dear(*_: object) -> Digest:
        raise AssertionError("computed before the seed was checked")

    monkeypatch.setattr("core.market.marks._recomputed", too_dear)
    assert sold.refused("pool0", sold.opening(seed=b"x" * 32)) == Refusal.BAD_OPENING


async def test_a_report_after_the_credit_is_as_good_and_time_wakes_the_chain(sold: Sold) -> None:
    sold.settle()
    sold.send("pool0", after_ms=2 * sold.state.params.leak_window_ms)
    sold.send("pool0")
    assert sold.trade_id not in sold.state.trading
    sold.send("provider", sold.report())
    deadline = sold.outcome().deadline_ms
    assert sold.state.trading[-1] == sold.trade_id
    assert not rules.due(sold.state, Milliseconds(sold.state.tip.timestamp_ms + 9_000), False)
    assert rules.due_ms(replace(sold.state, genesis=sold.state.genesis), False) <= deadline
    before = sold.reputation
    sold.send("pool0", after_ms=sold.state.params.answer_ms)
    assert rules.due(sold.state, Milliseconds(sold.state.tip.timestamp_ms + 9_000), False), "the next block decides it"
    sold.send("pool0")
    assert sold.reputation < before
    assert sold.trade_id not in sold.state.trading


async def test_an_open_report_holds_the_credit_back_without_making_blocks(sold: Sold) -> None:
    sold.settle()
    before = sold.reputation
    sold.send("provider", sold.report(agreeing=COUNT // 2))
    sold.send("pool0", after_ms=sold.state.params.leak_window_ms + 1000)
    assert sold.reputation == before
    tip = sold.state.tip.timestamp_ms
    assert rules.due_ms(sold.state, False) > tip + sold.state.params.tick_ms, "an overdue credit asks for no block"
    sold.send("pool0", sold.opening())
    sold.send("pool0")
    assert sold.reputation > before


async def test_a_provider_has_a_limit_of_open_reports(sold: Sold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules_leaks, "MAX_ACCUSED", 1)
    sold.send("provider", sold.report(0))
    assert sold.refused("provider", sold.report(1)) == Refusal.LIMIT


async def test_a_block_takes_few_openings_and_none_of_its_own_reports(sold: Sold, monkeypatch: pytest.MonkeyPatch) -> None:
    """They cost every node arithmetic: reports and openings of friends must not fill a block with it."""
    chain = sold.kit.chain
    both = chain.tx("provider", sold.report(0)), chain.tx("pool0", sold.opening(0))
    with pytest.raises(TransactionError, match="the next one may take it"):
        chain.block(*both)
    chain.nonces.clear()
    sold.send("provider", sold.report(0), sold.report(1), sold.report(2))
    monkeypatch.setattr(rules_leaks, "MAX_OPENINGS", 2)
    with pytest.raises(TransactionError) as caught:
        sold.send("pool0", *(sold.opening(i) for i in range(3)))
    assert caught.value.reason == Refusal.TOO_EARLY
    chain.nonces.clear()
    sold.send("pool0", sold.opening(0), sold.opening(1))
    sold.send("pool0", sold.opening(2))


async def test_every_node_has_the_same_state_after_a_report(sold: Sold) -> None:
    sold.send("provider", sold.report(0), sold.report(1))
    sold.send("pool0", sold.opening(0))
    again = decode_state(encode_state(sold.state), sold.state.genesis)
    assert state_root(again) == state_root(sold.state)
    assert again.reports[report_key(sold.trade_id, MINERS[1])].held == BOND


def test_the_group_count_follows_from_the_share() -> None:
    assert [marks.mark_count(n) for n in (1, 10, 100, 300, 767, 768, 10**6)] == [1, 7, 64, 100, 255, 256, 256]
