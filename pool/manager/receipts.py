"""Receipts of delivered chunks: taken from members, kept on disk, put on the chain one after another.

A receipt releases its chunk's share of the price to the provider, so the pool owes it to her once a member handed it in.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Final

from core.chain.transaction import ChunkReceipt, Refusal
from core.codec import decode, encode
from core.crypto.hashing import digest
from core.errors import (
    AuthError,
    InputError,
    NotFoundError,
    PoflError,
    TransactionError,
    UnavailableError,
)
from core.ids import AccountId, Digest, Signature, short
from core.market.contract import CHUNKS
from core.market.delivery import verify_receipt
from pool.manager.archive import write_durably
from services.rpc.chain_client import ChainClient, Wallet
from services.rpc.views import TradePhase, TradeView
from services.runtime.logging import logger

__all__ = ["ReceiptDesk"]

log = logger(__name__)

DOMAIN_NAME: Final = b"pofl/pool-receipt-name/1"
MAX_KEPT: Final = 10_000
MAX_DONE: Final = 10_000
MAX_TRADES: Final = 256
"""Trades whose miners are remembered; the others are asked of the chain again."""
FINAL_SECONDS: Final = 30.0
PAUSE_SECONDS: Final = 2.0
GRACE_SECONDS: Final = 10.0
PASSING: Final = (Refusal.BAD_NONCE, Refusal.TOO_EARLY, Refusal.LIMIT)
"""Refusals that say nothing of the receipt."""


class ReceiptDesk:
    """``folder`` holds what is not on the chain yet."""

    def __init__(self, folder: Path, chain: ChainClient, wallet: Wallet, chain_id: Digest) -> None:
        self._folder = folder
        self._chain = chain
        self._wallet = wallet
        self._chain_id = chain_id
        self._trades: dict[Digest, TradeView] = {}
        self._waiting: dict[Path, ChunkReceipt] = {}
        self._done: dict[Path, None] = {}
        self._wake = asyncio.Event()
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("*.bin")):
            try:
                self._waiting[path] = decode(ChunkReceipt, path.read_bytes(), 1024)
            except (InputError, OSError) as error:
                log.warning("a kept receipt cannot be read and is left out", file=str(path), error=str(error))

    async def hand_in(self, receipt: ChunkReceipt) -> None:
        """Keep a member's receipt; it is on disk when this returns. Idempotent.

        Raises NotFoundError or AuthError (not a trade of this pool, not its miner), CryptoError, LimitError.
        """
        # Named without the signature, of which a miner can make as many as it likes for one chunk.
        unsigned = encode(replace(receipt, miner_signature=Signature(bytes(64))))
        path = self._folder / f"{digest(DOMAIN_NAME, unsigned).hex()}.bin"
        verify_receipt(self._chain_id, receipt)
        if path in self._waiting or path in self._done:
            return
        trade = await self._trade(receipt.trade_id)
        if receipt.miner not in trade.miners or receipt.chunk >= CHUNKS:
            raise AuthError(f"{short(receipt.miner)} receives no chunk {receipt.chunk} in trade {short(receipt.trade_id)}")
        if len(self._waiting) >= MAX_KEPT:
            raise UnavailableError(f"{MAX_KEPT} receipts wait for the chain already: hand it in later")
        await asyncio.to_thread(write_durably, path, encode(receipt))
        self._waiting[path] = receipt
        self._wake.set()

    async def run(self) -> None:
        """Put receipts on the chain, for ever, one after another: never more than one stands before a commit or claim.

        The provider, whom they pay, has them too and is first (docs/adr/0054): what she settled within GRACE_SECONDS costs
        this pool nothing.
        """
        while True:
            self._wake.clear()
            if not self._waiting:
                await self._wake.wait()
                await asyncio.sleep(GRACE_SECONDS)
            for path, receipt in list(self._waiting.items()):
                try:
                    await self._send(path, receipt)
                except PoflError as error:
                    log.warning("receipts wait, trying again", trade=receipt.trade_id, chunk=receipt.chunk, error=error)
                    await asyncio.sleep(PAUSE_SECONDS)
                    break

    async def _send(self, path: Path, receipt: ChunkReceipt) -> None:
        trade = await self._chain.trade(receipt.trade_id)
        if trade.phase in (TradePhase.SETTLED, TradePhase.REFUNDED) or trade.chunks_delivered >= trade.chunks_total:
            self._settle(path, receipt, "the trade is settled")
            return
        try:
            await self._wallet.send_and_wait(receipt, FINAL_SECONDS)
        except TransactionError as error:
            if error.reason in PASSING:
                raise
            self._settle(path, receipt, f"refused: {error.reason}")
        else:
            self._settle(path, receipt, "final")

    def _settle(self, path: Path, receipt: ChunkReceipt, how: str) -> None:
        log.debug("receipt settled", trade=receipt.trade_id, chunk=receipt.chunk, miner=receipt.miner, how=how)
        self._waiting.pop(path, None)
        self._done[path] = None
        # A forgotten one that is handed in again is only asked about on the chain once more.
        while len(self._done) > MAX_DONE:
            del self._done[next(iter(self._done))]
        path.unlink(missing_ok=True)

    async def _trade(self, trade_id: Digest) -> TradeView:
        known = self._trades.get(trade_id)
        if known is None:
            known = await self._chain.trade(trade_id)
            if known.pool != self._pool:
                raise NotFoundError(f"trade {short(trade_id)} is not this pool's")
            self._trades[trade_id] = known
            while len(self._trades) > MAX_TRADES:
                del self._trades[next(iter(self._trades))]
        return known

    @property
    def _pool(self) -> AccountId:
        return self._wallet.account
