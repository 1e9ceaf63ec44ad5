"""The pool's marks: seeds of its miners' choices of variants, kept on disk, and shown when a leak is reported.

Whoever does not show them in time is taken for a leaker, so a seed is on disk before the bid that commits to it is sent,
and stays until reports on its trade are no longer taken (docs/market.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Protocol

from core.chain.transaction import OpenMarks, Payload, Refusal, ReportLeak, SignedTransaction
from core.codec import DIGEST, PUBLIC_KEY, Fixed, Record, Seq, decode, encode
from core.errors import InputError, NotFoundError, PoflError, StorageError, TransactionError
from core.ids import AccountId, Digest, Height, TxId, short
from core.market import marks
from core.market.contract import MAX_BUYERS
from core.market.rows import share_marks
from core.ports import Clock
from pool.manager.archive import write_durably
from services.rpc.chain_client import ChainClient
from services.rpc.views import BlockView, ReportOutcome, TradePhase, TradeView
from services.runtime.logging import logger

__all__ = ["MarksDesk"]

log = logger(__name__)

FINAL_SECONDS: Final = 30.0
RETRY_SECONDS: Final = 2.0
MAX_FILE: Final = 64 * MAX_BUYERS + 1024
FORGET_MS: Final = 24 * 3_600_000
"""On top of the window for reports: what a trade that no node knows is kept."""


class Sender(Protocol):
    """services.rpc.chain_client.Wallet has it."""

    async def send_and_wait(self, payload: Payload, timeout: float) -> tuple[TxId, Height]: ...


@dataclass(frozen=True, slots=True)
class _Seed:
    miner: Annotated[AccountId, PUBLIC_KEY]
    seed: Annotated[bytes, Fixed(marks.SEED_SIZE)] = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Kept:
    trade_id: Annotated[Digest, DIGEST]
    seeds: Annotated[tuple[_Seed, ...], Seq(Record(_Seed), MAX_BUYERS)]


class MarksDesk:
    """``folder`` has one file for each trade."""

    def __init__(
        self, folder: Path, chain: ChainClient, wallet: Sender, chain_id: Digest, clock: Clock, window_ms: int
    ) -> None:
        self._folder = folder
        self._chain = chain
        self._wallet = wallet
        self._clock = clock
        self._chain_id = chain_id
        self._window_ms = window_ms
        self._kept: dict[Digest, _Kept] = {}
        self._answering: dict[tuple[Digest, AccountId], asyncio.Task[None]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("*.bin")):
            try:
                kept = decode(_Kept, path.read_bytes(), MAX_FILE)
            except (InputError, OSError) as error:
                raise StorageError(f"the marks in {path} cannot be read: restore the file, {error}") from None
            self._kept[kept.trade_id] = kept

    def keep(self, trade_id: Digest, miners: tuple[AccountId, ...], seeds: tuple[bytes, ...]) -> None:
        """On disk when it returns."""
        kept = _Kept(trade_id, tuple(_Seed(miner, seed) for miner, seed in zip(miners, seeds, strict=True)))
        write_durably(self._path(trade_id), encode(kept))
        self._kept[trade_id] = kept

    def seeds(self, trade_id: Digest) -> Mapping[AccountId, bytes]:
        """By miner. Raises NotFoundError for a trade that this pool did not bid in."""
        kept = self._kept.get(trade_id)
        if kept is None:
            raise NotFoundError(f"no marks are kept for trade {short(trade_id)}", trade_id=trade_id)
        return {each.miner: each.seed for each in kept.seeds}

    async def run(self) -> None:
        """Answer reports, for ever: those that are open now, then each as its block comes."""
        while True:
            try:
                following = Height((await self._chain.tip()).height + 1)
                await self._look_at_all()
                break
            except PoflError as error:
                log.warning("cannot see whether leaks are reported, trying again", error=error)
                await asyncio.sleep(RETRY_SECONDS)
        try:
            async for view in self._chain.watch_blocks(following):
                for payload in reports(view):
                    self._answer_soon(payload.trade_id, payload.miner)
        finally:
            for task in self._answering.values():
                task.cancel()

    async def _look_at_all(self) -> None:
        """Open reports from before this process started; trades that nobody can report any more are forgotten."""
        for trade_id in list(self._kept):
            try:
                trade = await self._chain.trade(trade_id)
            except NotFoundError:
                written_ms = self._path(trade_id).stat().st_mtime * 1000
                # Not sooner: the node that was asked may be far behind.
                if self._clock.now_ms() > written_ms + self._window_ms + FORGET_MS:
                    self._forget(trade_id)
                continue
            last_ms = None if trade.delivery_deadline_ms is None else trade.delivery_deadline_ms + self._window_ms
            if trade.phase is TradePhase.NO_DEAL or (last_ms is not None and self._clock.now_ms() > last_ms):
                self._forget(trade_id)
                continue
            for report in trade.reports:
                if report.outcome is ReportOutcome.OPEN:
                    self._answer_soon(trade_id, report.miner)

    def _answer_soon(self, trade_id: Digest, miner: AccountId) -> None:
        if trade_id in self._kept and (trade_id, miner) not in self._answering:
            self._answering[trade_id, miner] = asyncio.create_task(self._answer(trade_id, miner))

    async def _answer(self, trade_id: Digest, miner: AccountId) -> None:
        """Until the report is no longer open."""
        log.warning("a leak is reported: opening the marks", trade=short(trade_id), miner=short(miner))
        payload: OpenMarks | None = None
        while True:
            try:
                trade = await self._chain.trade(trade_id)
                outcome = next((r.outcome for r in trade.reports if r.miner == miner), None)
                if outcome is not ReportOutcome.OPEN:
                    ended = "none" if outcome is None else outcome.name.lower()
                    log.info("leak report ended", trade=short(trade_id), outcome=ended)
                    return
                if payload is None:
                    payload = await asyncio.to_thread(self._opening, trade, miner)
                await self._wallet.send_and_wait(payload, FINAL_SECONDS)
            except TransactionError as error:
                if error.reason == Refusal.BAD_OPENING:
                    log.error("the kept seed does not open the marks", trade=short(trade_id), error=error)
                    return
                log.warning("the marks are not open yet, trying again", trade=short(trade_id), error=error)
            except PoflError as error:
                log.warning("the marks are not open yet, trying again", trade=short(trade_id), error=error)
            await asyncio.sleep(RETRY_SECONDS)

    def _opening(self, trade: TradeView, miner: AccountId) -> OpenMarks:
        seed = self.seeds(trade.trade_id)[miner]
        count = share_marks(trade.rows, len(trade.miners), trade.miners.index(miner))
        session = marks.session_id(self._chain_id, trade.provider, trade.pool, trade.data_root, miner)
        return OpenMarks(trade.trade_id, miner, seed, marks.points_digest(marks.commit(seed, session, count).points))

    def _path(self, trade_id: Digest) -> Path:
        return self._folder / f"{trade_id.hex()}.bin"

    def _forget(self, trade_id: Digest) -> None:
        self._kept.pop(trade_id, None)
        self._path(trade_id).unlink(missing_ok=True)


def reports(view: BlockView) -> list[ReportLeak]:
    """The leak reports of a block."""
    payloads = (decode(SignedTransaction, data).decoded().payload for data in view.block.decoded_body().transactions)
    return [payload for payload in payloads if isinstance(payload, ReportLeak)]
