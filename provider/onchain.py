"""What a provider puts on the chain: its registration, and the receipts that release its money."""

from __future__ import annotations

import asyncio
import itertools
from typing import Final, Protocol

from core.chain.transaction import ChunkReceipt, Payload, Refusal, RegisterProvider, SignedTransaction
from core.errors import DeadlineError, TransactionError, UnavailableError
from core.ids import AccountId, Height, TxId, short
from provider.goods import Goods
from provider.ledger import SalesLedger
from services.rpc.channel import backoff
from services.rpc.views import ProviderView
from services.runtime.logging import logger
from services.runtime.metrics import counter

__all__ = ["ChainAccess", "Sender", "register", "settle", "settle_once"]

log = logger(__name__)

PAID = counter("provider_chunks_paid", "Receipts that the chain paid for.")
REFUSED = counter("provider_receipts_refused", "Receipts that the chain refused for good: already paid, or too late.")

FINAL_WAIT: Final = 30.0
"""Seconds for a transaction to reach a block before it is looked at anew. A work height may be longer; then it waits on."""
BATCH: Final = 48
"""Receipts under way at once; the chain lets an account have 64."""
GATHER: Final = 0.3
RETRY: Final = 5.0

_OVER: Final = (Refusal.DUPLICATE, Refusal.WRONG_PHASE, Refusal.OUT_OF_RANGE, Refusal.BAD_RECEIPT)
"""Refusals after which the same receipt can never be paid: it was, or the deadline has passed."""


class ChainAccess(Protocol):
    """services.rpc.chain_client.ChainClient has it."""

    async def providers(self) -> tuple[ProviderView, ...]: ...
    async def wait_final(self, tx_id: TxId, timeout: float, again: SignedTransaction | None = None) -> Height: ...


class Sender(Protocol):
    """services.rpc.chain_client.Wallet has it."""

    async def send(self, payload: Payload) -> SignedTransaction: ...
    async def send_and_wait(self, payload: Payload, timeout: float) -> tuple[TxId, Height]: ...


async def register(chain: ChainAccess, wallet: Sender, account: AccountId, goods: Goods, endpoint: str) -> None:
    """Until the chain has this provider with this data set and address. Costs the fee only if it has not already.

    Raises TransactionError when the chain refuses for good, for example for want of money.
    """
    wanted = ProviderView(account, goods.data.root, goods.data.rows, endpoint)
    attempt = 0
    while True:
        try:
            known = next((p for p in await chain.providers() if p.provider == account), None)
            if known == wanted:
                log.info("registered", data_root=wanted.data_root, rows=wanted.rows, endpoint=endpoint)
                return
            payload = RegisterProvider(wanted.data_root, wanted.rows, endpoint)
            await wallet.send_and_wait(payload, FINAL_WAIT)
        except (UnavailableError, DeadlineError) as error:
            log.warning("cannot register yet, trying again", error=error.message)
        except TransactionError as error:
            if error.reason != Refusal.BAD_NONCE:
                raise
        else:
            continue
        await asyncio.sleep(backoff(attempt))
        attempt += 1


async def settle(chain: ChainAccess, wallet: Sender, ledger: SalesLedger, wake: asyncio.Event) -> None:
    """Put receipts on the chain as they come, for ever."""
    while True:
        wake.clear()
        try:
            left = await settle_once(chain, wallet, ledger)
        except (UnavailableError, DeadlineError) as error:
            log.warning("receipts wait: no node answers", error=error.message)
            left = True
        if left:
            await asyncio.sleep(RETRY)
            continue
        await wake.wait()
        await asyncio.sleep(GATHER)


async def settle_once(chain: ChainAccess, wallet: Sender, ledger: SalesLedger) -> bool:
    """One batch; whether receipts are left that have to be tried again. Raises UnavailableError, DeadlineError."""
    sent: list[tuple[ChunkReceipt, SignedTransaction]] = []
    left = False
    for receipt in itertools.islice(ledger.unpaid(), BATCH):
        try:
            sent.append((receipt, await wallet.send(receipt)))
        except TransactionError as error:
            left |= not _is_over(ledger, receipt, error)
    for receipt, transaction in sent:
        try:
            height = await chain.wait_final(transaction.tx_id, FINAL_WAIT, again=transaction)
        except TransactionError as error:
            left |= not _is_over(ledger, receipt, error)
        except DeadlineError as error:
            log.warning("a receipt is in no block yet", trade=short(receipt.trade_id), error=error.message)
            left = True
        else:
            ledger.paid(receipt)
            PAID.inc()
            log.debug("paid", trade=short(receipt.trade_id), chunk=receipt.chunk, height=height)
    return left or next(ledger.unpaid(), None) is not None


def _is_over(ledger: SalesLedger, receipt: ChunkReceipt, error: TransactionError) -> bool:
    """Whether nothing can come of this receipt any more; then it is taken off the list."""
    over = error.reason in _OVER
    if over:
        ledger.paid(receipt)
        REFUSED.inc()
    level = log.info if error.reason == Refusal.DUPLICATE else log.warning
    level("receipt refused", trade=short(receipt.trade_id), chunk=receipt.chunk, over=over, error=error.message)
    return over
