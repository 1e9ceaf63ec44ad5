"""Leaks on the chain: a report, the opening of marks or silence, and what either costs (design: market, "Leaks and
reputation"; docs/market.md).

A report says which variants a found copy has, before anybody but the buyer knows which ones the buyer chose. Nodes never
see the copy: that so many choices were guessed is the proof. One report for each miner of a trade, because an opening
tells everybody the choices.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from core.chain.ledger import credit, debit
from core.chain.state import LeakReport, ReportOutcome, Reputation, State, Trade, TradePhase, report_key
from core.chain.transaction import OpenMarks, Refusal, ReportLeak, Transaction
from core.errors import MarketError, TransactionError
from core.ids import AccountId, Amount, Digest, Height, Milliseconds, PartsPerMillion, short
from core.market import marks, reputation, rows
from core.params import ChainParams

__all__ = ["end_silence", "groups_of", "is_full", "open_marks", "report_leak", "reputation_rule"]

MAX_ACCUSED: Final = 64
"""Reports of one provider that wait for an answer: every block looks at them."""
MAX_OPENINGS: Final = 8
"""In one block: each is half a tenth of a second of every node's processor."""
LONGEST_QUEUE: Final = 4
"""Times ``answer_ms``: for how long blocks full of other openings put off the end of a silence."""
_DELIVERED: Final = (TradePhase.DELIVERY, TradePhase.SETTLED, TradePhase.REFUNDED)


def reputation_rule(params: ChainParams) -> reputation.ReputationRule:
    return reputation.ReputationRule(
        PartsPerMillion(params.initial_reputation_ppm),
        PartsPerMillion(params.leak_penalty_ppm),
        PartsPerMillion(params.clean_trade_ppm),
        Milliseconds(params.leak_window_ms),
    )


def groups_of(trade: Trade, miner: AccountId) -> int:
    """Into how many groups a miner's share of a trade falls."""
    return rows.share_marks(trade.rows, len(trade.miners), trade.miners.index(miner))


def report_leak(state: State, tx: Transaction, payload: ReportLeak, height: Height, time_ms: Milliseconds) -> State:
    """ReportLeak: locks the bond; the marks are due within ``answer_ms``.

    Raises:
        TransactionError: names what does not hold. Nothing is locked.
    """
    where = f"report on miner {short(payload.miner)} in trade {short(payload.trade_id)}"
    trade = state.trades.get(payload.trade_id)
    if trade is None:
        raise TransactionError(f"{where}: it is not on this chain", Refusal.UNKNOWN_TRADE)
    if tx.sender != trade.provider:
        # Anybody else's would spend the marks of a leaker, at a price that the leaker gets back.
        raise TransactionError(f"{where}: only its seller {short(trade.provider)} reports", Refusal.NOT_THE_SELLER)
    if payload.miner not in trade.miners:
        raise TransactionError(f"{where}: it has no such miner", Refusal.OUT_OF_RANGE)
    if trade.phase not in _DELIVERED or trade.deadline_ms is None:
        early = trade.phase is TradePhase.BID
        raise TransactionError(
            f"{where}: nothing was delivered, it is in phase {trade.phase.name.lower()}",
            Refusal.TOO_EARLY if early else Refusal.WRONG_PHASE,
        )
    last_ms = trade.deadline_ms + state.params.report_window_ms
    if time_ms > last_ms:
        raise TransactionError(f"{where}: reports were taken until {last_ms}, block time is {time_ms}", Refusal.EXPIRED)
    key = report_key(payload.trade_id, payload.miner)
    if trade.is_leaked or key in state.reports:
        raise TransactionError(f"{where}: a leak is proven, or this miner was reported before", Refusal.DUPLICATE)
    waiting = sum(len(t.accused) for t in (state.trades[i] for i in state.trading) if t.provider == tx.sender)
    if waiting >= MAX_ACCUSED:
        raise TransactionError(f"{where}: {waiting} reports of this provider wait for their answers", Refusal.LIMIT)
    found, seen = int.from_bytes(payload.found, "little"), int.from_bytes(payload.seen, "little")
    try:
        marks.check_sight(found, seen, groups_of(trade, payload.miner))
    except MarketError as error:
        raise TransactionError(f"{where}: {error.message}", Refusal.BAD_REPORT) from None
    bond = Amount(state.params.report_bond)
    state = debit(state, tx.sender, bond)
    report = LeakReport(
        payload.found, payload.seen, payload.copy, height, Milliseconds(time_ms + state.params.answer_ms), bond,
        ReportOutcome.OPEN, 0,
    )  # fmt: skip
    trading = state.trading if payload.trade_id in state.trading else (*state.trading, payload.trade_id)
    accused = replace(trade, accused=(*trade.accused, payload.miner))
    return replace(
        state,
        reports=state.reports.put(key, report),
        trades=state.trades.put(payload.trade_id, accused),
        trading=trading,
    )


def open_marks(state: State, parent: State, payload: OpenMarks) -> State:
    """OpenMarks: whoever shows the seed ends the report; agreement decides. Good until silence is taken for a leak.

    Costs 60 ms for 256 marks, and only for the right seed: a wrong one is refused after three hashes. So a block takes
    MAX_OPENINGS at most; ``parent`` is the state before it.

    Raises:
        TransactionError: no such report, it is decided, not the committed seed, or (TOO_EARLY) not in this block any more.
    """
    where = f"marks of miner {short(payload.miner)} in trade {short(payload.trade_id)}"
    key = report_key(payload.trade_id, payload.miner)
    report = state.reports.get(key)
    if report is None:
        raise TransactionError(f"{where}: nobody reported it", Refusal.UNKNOWN_REPORT)
    if report.outcome is not ReportOutcome.OPEN:
        raise TransactionError(f"{where}: the report is decided, {report.outcome.name.lower()}", Refusal.WRONG_PHASE)
    if key not in parent.reports or is_full(parent, state):
        raise TransactionError(
            f"{where}: reported in this block, or {MAX_OPENINGS} others are opened in it: the next one may take it",
            Refusal.TOO_EARLY,
        )
    trade = state.trades[payload.trade_id]
    committed = trade.marks[trade.miners.index(payload.miner)]
    session = marks.session_id(state.chain_id, trade.provider, trade.pool, trade.data_root, payload.miner)
    try:
        choices = marks.opened(committed, payload.seed, payload.points, session, groups_of(trade, payload.miner))
    except MarketError as error:
        raise TransactionError(f"{where}: {error.message}", Refusal.BAD_OPENING) from None
    found, seen = int.from_bytes(report.found, "little"), int.from_bytes(report.seen, "little")
    agreeing, _, proven = marks.agreement(found, seen, choices)
    outcome = ReportOutcome.LEAKED if proven else ReportOutcome.CLEARED
    return _conclude(state, payload.trade_id, payload.miner, replace(report, outcome=outcome, agreeing=agreeing))


def is_full(parent: State, state: State) -> bool:
    """Whether MAX_OPENINGS were opened since ``parent``: others may still wait."""
    due = (report_key(trade_id, miner) for trade_id in parent.trading for miner in parent.trades[trade_id].accused)
    return sum(state.reports[key].outcome is not ReportOutcome.OPEN for key in due) >= MAX_OPENINGS


def end_silence(state: State, trade_id: Digest, heard_ms: Milliseconds) -> State:
    """Reports whose deadline was past at ``heard_ms``, when all transactions had their chance: who does not open is guilty."""
    for miner in state.trades[trade_id].accused:
        report = state.reports[report_key(trade_id, miner)]
        if heard_ms >= report.deadline_ms:
            state = _conclude(state, trade_id, miner, replace(report, outcome=ReportOutcome.SILENT))
    return state


def _conclude(state: State, trade_id: Digest, miner: AccountId, report: LeakReport) -> State:
    """The bond goes back, or to the accused; a leak costs the pool reputation once a trade, and the trade's credit."""
    trade = state.trades[trade_id]
    trade = replace(trade, accused=tuple(other for other in trade.accused if other != miner))
    cleared = report.outcome is ReportOutcome.CLEARED
    state = credit(state, trade.pool if cleared else trade.provider, report.held)
    if not cleared and not trade.is_leaked:
        worse = reputation.after_leak(reputation_rule(state.params), state.reputation(trade.pool))
        state = replace(state, reputations=state.reputations.put(trade.pool, Reputation(worse)))
        trade = replace(trade, is_leaked=True, credit_ms=None)
    return replace(
        state,
        reports=state.reports.put(report_key(trade_id, miner), replace(report, held=Amount(0))),
        trades=state.trades.put(trade_id, trade),
    )
