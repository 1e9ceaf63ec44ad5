"""Trades on the chain: registration, bids, the draw, delivery receipts, deadlines, credits (design: market, "A trade").

The arithmetic of the reverse game is core.market's; here it is bound to the state: money is locked, reputations and
recent highs are the parent state's, and the draw is the hash of the next transaction block after the bid's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from core.chain import rules_leaks
from core.chain.block import BlockKind
from core.chain.ledger import burn, credit, debit, part
from core.chain.state import High, LastCredit, Provider, Reputation, State, Trade, TradePhase, report_key
from core.chain.transaction import (
    DOMAIN_CHUNK_RECEIPT,
    Bid,
    ChunkReceipt,
    Refusal,
    RegisterProvider,
    Transaction,
    chunk_receipt_message,
)
from core.codec import encode
from core.crypto import signing
from core.errors import CryptoError, InputError, MarketError, TransactionError
from core.ids import AccountId, Amount, BlockHash, Digest, Height, Milliseconds, PartsPerMillion, short
from core.market import contract, draw, reputation, rows
from core.params import ChainParams

__all__ = ["bid", "chunk_receipt", "highs", "next_instant", "register", "run_trades"]

EPOCH_TRADES_MS: Final = 60_000
"""Least length of an epoch of clean-trade credit: a pool gets one for each."""
MAX_OPEN: Final = 256
"""Trades of one provider that wait for a draw, a delivery or a credit: every bid looks at all that are open, and each provider
paid to be one. She signs each of hers, so nobody else can use them up."""


def highs(state: State, provider: AccountId) -> tuple[Amount, Amount] | None:
    """``(D_bar, m_bar)`` of a provider: second highest of her recent settled trades, one a pool; the highest of one trade;
    None if nothing was settled yet. Her offers may name higher ones, no lower. In the bounds of a rule (contract.with_highs):
    after trades without a markup an offer could not name them otherwise."""
    known = state.providers.get(provider)
    if known is None or not known.highs:
        return None
    place = min(1, len(known.highs) - 1)
    markups = sorted((h.markup for h in known.highs), reverse=True)
    bids = sorted((h.bid for h in known.highs), reverse=True)
    return _in_rule(markups[place]), _in_rule(bids[place])


def _in_rule(high: Amount) -> Amount:
    return Amount(max(1, min(high, contract.MAX_RULE_AMOUNT)))


# -- transactions ------------------------------------------------------------------------------------------------------


def register(state: State, tx: Transaction, payload: RegisterProvider) -> State:
    """RegisterProvider: the fee burns; again for another data set. Raises TransactionError."""
    if not 1 <= payload.rows <= contract.MAX_ROWS:
        raise TransactionError(f"{payload.rows} rows, must be 1 to {contract.MAX_ROWS}", Refusal.OUT_OF_RANGE)
    state = burn(debit(state, tx.sender, state.params.provider_fee), state.params.provider_fee)
    known = state.providers.get(tx.sender)
    provider = Provider(payload.data_root, payload.rows, payload.endpoint, () if known is None else known.highs)
    return replace(state, providers=state.providers.put(tx.sender, provider))


def bid(state: State, parent: State, tx: Transaction, payload: Bid, time_ms: Milliseconds) -> State:
    """Bid: both sides signed; price, probability and highs are recomputed; the price is locked until the draw.

    ``parent`` is the state before the block: reputation and highs are read there, so that the order of transactions
    inside a block changes no terms.

    Raises:
        TransactionError: names what does not agree.
    """
    try:
        offer = contract.decode_offer(payload.offer)
        signing.verify(offer.provider, contract.DOMAIN_OFFER, payload.offer, payload.offer_signature)
    except (InputError, MarketError, CryptoError) as error:
        raise TransactionError(f"offer: {error.message}", Refusal.BAD_OFFER) from None
    provider = state.providers.get(offer.provider)
    if provider is None:
        raise TransactionError(f"{short(offer.provider)} is no registered provider", Refusal.UNKNOWN_PROVIDER)
    stated, least = (offer.rule.D_bar, offer.rule.m_bar), highs(parent, offer.provider) or (0, 0)
    for ok, reason, problem in (
        (offer.chain_id == state.chain_id, Refusal.WRONG_CHAIN, f"it is for chain {short(offer.chain_id)}"),
        (offer.pool == tx.sender, Refusal.BAD_OFFER, f"it is for pool {short(offer.pool)}, not {short(tx.sender)}"),
        (offer.expiry_ms >= time_ms, Refusal.EXPIRED, f"it expired at {offer.expiry_ms}, block time is {time_ms}"),
        (
            (offer.data_root, offer.rows) == (provider.data_root, provider.rows),
            Refusal.BAD_OFFER,
            "its data set is not the registered one",
        ),
        (
            offer.reputation_ppm == parent.reputation(tx.sender),
            Refusal.BAD_OFFER,
            f"it says reputation {offer.reputation_ppm} ppm, the chain {parent.reputation(tx.sender)}: ask for a new one",
        ),
        (
            stated[0] >= least[0] and stated[1] >= least[1],
            Refusal.BAD_OFFER,
            f"it says D_bar, m_bar = {stated}, the chain {least}, and none may be below: ask for a new one",
        ),
    ):
        if not ok:
            raise TransactionError(f"offer: {problem}", reason)
    trade = contract.TradeTerms(offer, payload.bid, PartsPerMillion(payload.p_ppm), payload.miners, payload.marks)
    try:
        terms = contract.check_trade(trade)
        signing.verify(offer.provider, contract.DOMAIN_TRADE_SIGNATURE, encode(trade), payload.provider_signature)
    except (MarketError, CryptoError) as error:
        raise TransactionError(f"bid: {error.message}", Refusal.BAD_BID) from None
    trade_id = contract.trade_id(trade)
    open_trades = 0
    for known_id in state.trading:
        known = state.trades[known_id]
        open_trades += known.provider == offer.provider
        same = (known.pool, known.provider, known.data_root) == (tx.sender, offer.provider, offer.data_root)
        if known_id == trade_id or (same and time_ms < known.bid_ms + state.params.draw_window_ms):
            raise TransactionError(
                f"pool {short(tx.sender)} bid for this data set at {known.bid_ms}; one bid in {state.params.draw_window_ms} ms",
                Refusal.DUPLICATE,
            )
    if open_trades >= MAX_OPEN:
        raise TransactionError(
            f"provider {short(offer.provider)} has {open_trades} trades open, the most there may be", Refusal.LIMIT
        )
    if trade_id in state.trades:
        raise TransactionError(f"trade {short(trade_id)} was drawn already", Refusal.DUPLICATE)
    state = debit(state, tx.sender, terms.price)
    record = Trade(
        offer.provider, tx.sender, offer.data_root, offer.rows, payload.miners, payload.bid, terms.price, terms.p_ppm,
        offer.reputation_ppm, Height(state.height + 1), time_ms, TradePhase.BID, None, None,
        bytes(-(-len(payload.miners) * contract.CHUNKS // 8)), terms.price, None, payload.marks, (), False,
    )  # fmt: skip
    return replace(_put(state, trade_id, record), trading=(*state.trading, trade_id))


def chunk_receipt(state: State, payload: ChunkReceipt, time_ms: Milliseconds) -> State:
    """ChunkReceipt: a miner's word releases its chunk's part of the price, of which a share burns; that of its first chunk was
    released by the draw. Raises TransactionError."""
    trade = state.trades.get(payload.trade_id)
    if trade is None:
        raise TransactionError(f"trade {short(payload.trade_id)} is not on this chain", Refusal.UNKNOWN_TRADE)
    if trade.phase is not TradePhase.DELIVERY:
        early = trade.phase is TradePhase.BID
        raise TransactionError(
            f"trade {short(payload.trade_id)} is in phase {trade.phase.name.lower()}",
            Refusal.TOO_EARLY if early else Refusal.WRONG_PHASE,
        )
    if payload.miner not in trade.miners or payload.chunk >= contract.CHUNKS:
        raise TransactionError(
            f"trade {short(payload.trade_id)} has no chunk {payload.chunk} for miner {short(payload.miner)}",
            Refusal.OUT_OF_RANGE,
        )
    message = chunk_receipt_message(state.chain_id, payload.trade_id, payload.chunk, payload.miner)
    try:
        signing.verify(payload.miner, DOMAIN_CHUNK_RECEIPT, message, payload.miner_signature)
    except CryptoError as error:
        raise TransactionError(f"chunk receipt: {error.message}", Refusal.BAD_RECEIPT) from None
    miner = trade.miners.index(payload.miner)
    bit = miner * contract.CHUNKS + payload.chunk
    if trade.delivered[bit // 8] >> (bit % 8) & 1:
        raise TransactionError(f"chunk {payload.chunk} of {short(payload.miner)} is released", Refusal.DUPLICATE)
    amount = rows.chunk_amount(trade.price, trade.rows, len(trade.miners), miner, payload.chunk) if payload.chunk else Amount(0)
    delivered = bytearray(trade.delivered)
    delivered[bit // 8] |= 1 << (bit % 8)
    state, trade = _pay(state, replace(trade, delivered=bytes(delivered)), amount)
    if delivered_count(trade) == len(trade.miners) * contract.CHUNKS:
        state, trade = _settle(state, trade, time_ms)
    return _put(state, payload.trade_id, trade)


def _pay(state: State, trade: Trade, amount: Amount) -> tuple[State, Trade]:
    burned = part(amount, state.params.market_burn_ppm)
    state = burn(credit(state, trade.provider, amount - burned), burned)
    return state, replace(trade, held=Amount(trade.held - amount))


def delivered_count(trade: Trade) -> int:
    return sum(byte.bit_count() for byte in trade.delivered)


def _settle(state: State, trade: Trade, time_ms: Milliseconds) -> tuple[State, Trade]:
    provider = state.providers[trade.provider]
    others = tuple(h for h in provider.highs if h.pool != trade.pool)
    kept = (*others, High(trade.pool, trade.bid, trade.markup))[-state.params.highs_window :]
    state = replace(state, providers=state.providers.put(trade.provider, replace(provider, highs=kept)))
    credit_ms = None if trade.is_leaked else Milliseconds(time_ms + state.params.leak_window_ms)
    return state, replace(trade, phase=TradePhase.SETTLED, credit_ms=credit_ms)


# -- what time does ----------------------------------------------------------------------------------------------------


def run_trades(
    state: State, parent: State, kind: BlockKind, height: Height, block_hash: BlockHash, time_ms: Milliseconds
) -> State:
    """Draws bids of earlier blocks by this block's hash, refunds what was not delivered in time, credits clean trades.

    A deadline that somebody must meet by a transaction ends in the second transaction block in a row that finds it past: a
    work height may have kept all transactions waiting, and what waited comes first. Silence about marks does not end while
    blocks are full of openings; a delivery does, because receipts have no such limit.
    """
    is_heard = kind is parent.tip.kind is BlockKind.TRANSACTION
    heard_ms = parent.tip.timestamp_ms if is_heard else Milliseconds(0)
    # Openings can be made to order: they put off a silence for a while only (docs/adr/0141).
    queue_ms = rules_leaks.LONGEST_QUEUE * state.params.answer_ms if rules_leaks.is_full(parent, state) else 0
    silent_ms = Milliseconds(max(0, heard_ms - queue_ms))
    for trade_id in state.trading:
        state = rules_leaks.end_silence(state, trade_id, silent_ms)
        trade = state.trades[trade_id]
        if trade.phase is TradePhase.BID:
            # Not by the hash of its own block, which bidder and proposer can choose among many; nor of a work block, whose
            # author is a pool and divides the payouts as it likes: it would draw its own bid until it is a deal.
            if trade.height == height or kind is not BlockKind.TRANSACTION:
                continue
            state = _draw(state, trade_id, trade, height, block_hash, time_ms)
        elif trade.phase is TradePhase.DELIVERY and trade.deadline_ms is not None and heard_ms >= trade.deadline_ms:
            state = credit(state, trade.pool, trade.held)
            state = _put(state, trade_id, replace(trade, phase=TradePhase.REFUNDED, held=Amount(0)))
        elif trade.credit_ms is not None and time_ms >= trade.credit_ms and not trade.accused:
            state = _credit_clean(state, trade, time_ms)
            state = _put(state, trade_id, replace(trade, credit_ms=None))
    waiting = tuple(i for i in state.trading if _is_waiting(state.trades[i], time_ms, state.params))
    return state if waiting == state.trading else replace(state, trading=waiting)


def _draw(state: State, trade_id: Digest, trade: Trade, height: Height, block_hash: BlockHash, time_ms: Milliseconds) -> State:
    if draw.is_deal(block_hash, trade_id, trade.p_ppm):
        deadline = Milliseconds(time_ms + state.params.delivery_ms)
        # A seller sends the first chunk of each share before she has any receipt: not for nothing (docs/adr/0142).
        state, trade = _pay(state, trade, rows.advance(trade.price, trade.rows, len(trade.miners)))
        return _put(state, trade_id, replace(trade, phase=TradePhase.DELIVERY, draw_height=height, deadline_ms=deadline))
    state = credit(state, trade.pool, trade.held)
    return _put(state, trade_id, replace(trade, phase=TradePhase.NO_DEAL, draw_height=height, held=Amount(0)))


def _credit_clean(state: State, trade: Trade, time_ms: Milliseconds) -> State:
    """A pool earns one whole clean trade an epoch at most, by what its trades burned: providers are cheap, and a price that
    comes back to its payer shows nothing (docs/adr/0139). An epoch is the leak window, at least a minute."""
    params = state.params
    epoch = time_ms // max(EPOCH_TRADES_MS, params.leak_window_ms)
    last = state.credits.get(trade.pool)
    counted = last.burned if last is not None and last.epoch == epoch else Amount(0)
    burned = part(trade.price, params.market_burn_ppm)
    share = reputation.counted_share(burned, counted, Amount(params.clean_trade_burn))
    better = reputation.after_clean_trade(rules_leaks.reputation_rule(params), state.reputation(trade.pool), share)
    return replace(
        state,
        reputations=state.reputations.put(trade.pool, Reputation(better)),
        credits=state.credits.put(trade.pool, LastCredit(epoch, Amount(counted + burned))),
    )


def _is_waiting(trade: Trade, time_ms: Milliseconds, params: ChainParams) -> bool:
    """Still has something to come, or still forbids another bid."""
    return (
        trade.phase in (TradePhase.BID, TradePhase.DELIVERY)
        or trade.credit_ms is not None
        or bool(trade.accused)
        or time_ms < trade.bid_ms + params.draw_window_ms
    )


def next_instant(state: State, trade_id: Digest) -> int | None:
    """Block time at which time changes something about a trade; 0: the next block does."""
    trade = state.trades[trade_id]
    if trade.phase is TradePhase.BID:
        return 0
    instants: list[int | None] = [trade.deadline_ms if trade.phase is TradePhase.DELIVERY else None]
    instants += [state.reports[report_key(trade_id, miner)].deadline_ms for miner in trade.accused]
    # A credit waits for the answers to all reports.
    instants += [] if trade.accused else [trade.credit_ms]
    return min((instant for instant in instants if instant is not None), default=None)


def _put(state: State, trade_id: Digest, trade: Trade) -> State:
    return replace(state, trades=state.trades.put(trade_id, trade))
