"""Delivery of rows to the miners of drawn trades (design: market, "A trade", step 4).

A state machine without sockets: `Deliveries.begin` decides who may have rows, `Delivery.next_chunk` and
`Delivery.take_receipt` alternate until all is delivered. The provider goes first in each chunk, so it trusts the miner for
that one chunk; it sends no other before the receipt is verified and on the disk.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final

import numpy as np

from core.chain.transaction import ChunkReceipt
from core.errors import (
    AbortError,
    AuthError,
    CheatingError,
    CryptoError,
    DeadlineError,
    LimitError,
    MarketError,
    NotFoundError,
    SequenceError,
)
from core.ids import AccountId, Digest, Milliseconds, Signature, short
from core.market import delivery, marks
from core.market.contract import CHUNKS
from core.market.delivery import DeliveryOpen, Share, SignedOpen
from core.market.rows import Sold
from core.ports import Clock
from provider.goods import Goods
from provider.ledger import SalesLedger
from provider.seller import ChainReads
from services.rpc.convert_market import SealedChunk
from services.rpc.views import TradePhase, TradeView
from services.runtime.cpu import run_cpu
from services.runtime.metrics import counter, gauge

__all__ = ["Deliveries", "Delivery"]

CHUNKS_RECEIVED = counter("provider_chunks_delivered", "Chunks of rows that a miner signed for.")
RUNNING = gauge("provider_deliveries_running", "Deliveries to miners under way.")

DRAW_WAIT: Final = 5.0
"""Seconds that a miner waits here for the draw: its node may be a block ahead of ours."""
POLL: Final = 0.2
SETTLE_MS: Final = 3_000
"""What a receipt needs to reach the chain: nothing is sent later than this before the trade's deadline."""
MAX_DELIVERIES: Final = 256
"""At once."""
DELIVERABLE: Final = (TradePhase.DELIVERY, TradePhase.SETTLED)
"""A settled trade's rows are paid for: a miner that lost them may fetch them again."""


class Deliveries:
    """All deliveries of this process."""

    def __init__(
        self, provider: AccountId, chain_id: Digest, chain: ChainReads, goods: Goods, ledger: SalesLedger,
        on_receipt: asyncio.Event, *, clock: Clock, draw_wait: float = DRAW_WAIT,
    ) -> None:  # fmt: skip
        """``on_receipt`` is set whenever a new receipt is in the ledger."""
        self._provider = provider
        self._chain_id = chain_id
        self._chain = chain
        self._goods = goods
        self._ledger = ledger
        self._on_receipt = on_receipt
        self._clock = clock
        self._draw_wait = draw_wait
        self._running: dict[tuple[Digest, AccountId], Delivery] = {}
        self._sold: dict[tuple[Digest, AccountId, Digest, Digest], tuple[Sold, bytes]] = {}

    async def begin(self, signed: SignedOpen) -> Delivery:
        """A delivery, to be used as a context manager. A newer one of the same miner and trade ends the older.

        Raises:
            AuthError: the miner did not sign, or has no rows to get in a drawn trade of this provider.
            NotFoundError: the trade was on a data set that is not here any more.
            LimitError: too many deliveries run.
            MarketError: the miner's marks are not those that the trade commits to.
            CheatingError: they are, and no honest buyer made them.
        """
        opened = signed.opened
        try:
            delivery.verify_open(signed)
        except CryptoError as error:
            raise AuthError(f"the delivery is not asked for by miner {short(opened.miner)}: {error.message}") from None
        trade = await self._drawn(opened.trade_id, opened.miner)
        data = self._goods.data
        if trade.data_root != data.root:
            raise NotFoundError(f"trade {short(opened.trade_id)} was on data set {short(trade.data_root)}, not sold here now")
        index = trade.miners.index(opened.miner)
        share = Share.of(data.root, data.rows, data.features, data.classes, len(trade.miners), index)
        start = min(opened.from_chunk, self._ledger.first_missing(opened.trade_id, opened.miner))
        place = (opened.trade_id, opened.miner)
        older = self._running.pop(place, None)
        if older is not None:
            older.is_superseded = True
        if len(self._running) >= MAX_DELIVERIES:
            raise LimitError(f"{MAX_DELIVERIES} deliveries are running: try again later")
        # What is settled is paid for, so it may be fetched at any time.
        deadline = trade.delivery_deadline_ms if trade.phase is TradePhase.DELIVERY else None
        found = self._running[place] = Delivery(self, signed, share, start, deadline)
        RUNNING.set(len(self._running))
        try:
            found.sold, found.transfer = await run_cpu(self._sell, trade, opened, share)
        except MarketError as error:
            self._end(found)
            raise MarketError(f"trade {short(opened.trade_id)}: {error.message}") from None
        except BaseException:
            self._end(found)
            raise
        return found

    def _sell(self, trade: TradeView, opened: DeliveryOpen, share: Share) -> tuple[Sold, bytes]:
        """The share's keys and the message of their transfer; the same in every stream of a miner and trade."""
        place = (opened.trade_id, opened.miner, marks.points_digest(opened.points), opened.seed_hash)
        known = self._sold.get(place)
        if known is None:
            session = marks.session_id(self._chain_id, self._provider, trade.pool, trade.data_root, opened.miner)
            committed = trade.marks[trade.miners.index(opened.miner)]
            keys, transfer = marks.seller_keys(
                session, committed, opened.seed_hash, opened.points, share.marks, self._goods.data.coins(opened.trade_id)
            )
            trace = self._goods.data.trace(opened.trade_id, opened.miner, share.count)
            known = Sold(share.first, keys, trace), transfer
            while len(self._sold) >= MAX_DELIVERIES:
                self._sold.pop(next(iter(self._sold)), None)
            self._sold[place] = known
        return known

    async def _drawn(self, trade_id: Digest, miner: AccountId) -> TradeView:
        """The trade once it is drawn. Raises AuthError unless it is a deal of ours with this miner in it."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._draw_wait
        while True:
            try:
                trade = await self._chain.trade(trade_id)
            except NotFoundError:
                if self._ledger.accepted(trade_id) is None:
                    raise AuthError(f"trade {short(trade_id)} is neither on the chain nor agreed to") from None
                phase = "not on the chain"
            else:
                if trade.provider != self._provider:
                    raise AuthError(f"trade {short(trade_id)} is with provider {short(trade.provider)}, not with this one")
                if miner not in trade.miners:
                    raise AuthError(f"miner {short(miner)} has no rows in trade {short(trade_id)}")
                if trade.phase in DELIVERABLE:
                    return trade
                phase = trade.phase.name.lower().replace("_", " ")
                if trade.phase is not TradePhase.BID:
                    raise AuthError(f"trade {short(trade_id)} is no deal: {phase}")
            if loop.time() >= end:
                raise AuthError(f"trade {short(trade_id)} is not drawn yet: {phase}")
            await asyncio.sleep(POLL)

    def _require_time(self, run: Delivery) -> None:
        now = self._clock.now_ms()
        if run.deadline_ms is not None and now + SETTLE_MS > run.deadline_ms:
            raise DeadlineError(
                f"the trade's deadline is {run.deadline_ms}, now is {now}: a receipt could not reach the chain in time",
                deadline_ms=run.deadline_ms, now_ms=now,
            )  # fmt: skip

    async def _seal(self, run: Delivery, chunk: int) -> SealedChunk:
        sealed = await run_cpu(delivery.seal_chunk, self._goods.data, run.signed.opened, run.share, chunk, run.sold)
        transfer, run.transfer = run.transfer, b""
        return SealedChunk(chunk, sealed, transfer)

    async def _keep(self, receipt: ChunkReceipt) -> None:
        # On another thread: it waits for the disk.
        await run_cpu(self._ledger.add_receipt, receipt)
        self._on_receipt.set()

    def _end(self, run: Delivery) -> None:
        place = (run.signed.opened.trade_id, run.signed.opened.miner)
        if self._running.get(place) is run:
            del self._running[place]
            RUNNING.set(len(self._running))


class Delivery:
    """One miner's chunks, one after the other."""

    def __init__(
        self, parent: Deliveries, signed: SignedOpen, share: Share, start: int, deadline_ms: Milliseconds | None
    ) -> None:
        self._parent = parent
        self.signed = signed
        self.share = share
        self.deadline_ms = deadline_ms
        self.is_superseded = False
        self.sold = Sold(share.first, (), np.zeros(0, np.uint8))
        self.transfer = b""
        """Goes with the first chunk."""
        self._next = start
        self._is_due = False
        """A receipt is."""

    def __enter__(self) -> Delivery:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._parent._end(self)

    async def next_chunk(self) -> SealedChunk | None:
        """The next chunk, or None after the last.

        Raises:
            SequenceError: the receipt of the last one is due.
            DeadlineError: the trade's deadline is too near.
            AbortError: a newer delivery took over.
        """
        self._check()
        if self._is_due:
            raise SequenceError(f"chunk {self._next} has no receipt yet; nothing more is sent before it")
        if self._next == CHUNKS:
            return None
        self._parent._require_time(self)
        part = await self._parent._seal(self, self._next)
        self._is_due = True
        return part

    async def take_receipt(self, chunk: int, signature: Signature) -> None:
        """Verify and keep the miner's receipt.

        Raises:
            SequenceError: no receipt, or another chunk's, is due.
            CheatingError: the signature is not the miner's for this chunk.
            AbortError: a newer delivery took over.
        """
        self._check()
        if not self._is_due or chunk != self._next:
            due = f"chunk {self._next}" if self._is_due else "none"
            raise SequenceError(f"a receipt for chunk {chunk} came; due is {due}", chunk=chunk)
        opened = self.signed.opened
        receipt = ChunkReceipt(opened.trade_id, chunk, opened.miner, signature)
        try:
            delivery.verify_receipt(opened.chain_id, receipt)
        except CryptoError as error:
            raise CheatingError(f"the receipt of chunk {chunk} is not miner {short(opened.miner)}'s: {error.message}") from None
        await self._parent._keep(receipt)
        CHUNKS_RECEIVED.inc()
        self._is_due = False
        self._next += 1

    def _check(self) -> None:
        if self.is_superseded:
            raise AbortError("this miner opened a newer delivery of the same trade")
