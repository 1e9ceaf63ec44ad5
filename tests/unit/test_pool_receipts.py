"""pool.manager.receipts and pool.manager.follower, against a chain in memory."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from nacl.bindings import crypto_scalarmult_ed25519_base_noclamp

from core.chain.transaction import DOMAIN_CHUNK_RECEIPT, ChunkReceipt, Payload, Refusal, chunk_receipt_message
from core.crypto import signing
from core.errors import AuthError, CryptoError, NotFoundError, TransactionError, UnavailableError
from core.ids import AccountId, Amount, Digest, Height, Milliseconds, PartsPerMillion, Signature, TaskId, TxId
from core.market.delivery import sign_receipt, verify_receipt
from pool.manager import follower as following
from pool.manager import receipts as desk_module
from pool.manager.board import Board, TaskFeed
from pool.manager.follower import Follower
from pool.manager.receipts import ReceiptDesk
from services.rpc.chain_client import TaskUpdate
from services.rpc.views import TaskPhase, TaskView, TradePhase, TradeView
from tests.pool_kit import CHAIN, TASK, keys, task

POOL, ANN, BOB, EVE = keys(4, "receipts")
TRADE = Digest(b"d" * 32)


def trade(pool: bytes = POOL.public_key, phase: TradePhase = TradePhase.DELIVERY, delivered: int = 0) -> TradeView:
    return TradeView(
        TRADE, AccountId(b"s" * 32), AccountId(pool), Digest(b"e" * 32), Amount(1), Amount(1), PartsPerMillion(1),
        PartsPerMillion(1), phase, Height(1), Height(2), (AccountId(ANN.public_key), AccountId(BOB.public_key)), 20,
        delivered, Milliseconds(1),
    )  # fmt: skip


class Chain:
    """Takes receipts once each, and says what a test tells it of the trade."""

    def __init__(self) -> None:
        self.view = trade()
        self.sent: list[Payload] = []
        self.failures: list[Exception] = []
        self.account = AccountId(POOL.public_key)

    async def trade(self, trade_id: Digest) -> TradeView:
        if trade_id != TRADE:
            raise NotFoundError("no such trade")
        return self.view

    async def send_and_wait(self, payload: Payload, timeout: float) -> tuple[TxId, Height]:
        if self.failures:
            raise self.failures.pop(0)
        if payload in self.sent:
            raise TransactionError("released", Refusal.DUPLICATE)
        self.sent.append(payload)
        return TxId(bytes(32)), Height(3)


def desk(folder: Path, chain: Any) -> ReceiptDesk:
    return ReceiptDesk(folder, chain, chain, CHAIN)


def kept(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_module, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(desk_module, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(following, "POLL_SECONDS", 0.0)


async def settle(subject: ReceiptDesk, folder: Path) -> None:
    """Run until nothing is left on disk."""
    running = asyncio.create_task(subject.run())
    async with asyncio.timeout(60):
        while kept(folder):  # noqa: ASYNC110 - a folder has no event
            await asyncio.sleep(0.01)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def test_receipts_are_kept_until_they_are_on_chain(tmp_path: Path) -> None:
    chain = Chain()
    receipts = [sign_receipt(key, CHAIN, TRADE, chunk) for key in (ANN, BOB) for chunk in range(3)]
    subject = desk(tmp_path, chain)
    for receipt in (*receipts, *receipts):
        await subject.hand_in(receipt)
    assert len(kept(tmp_path)) == 6
    # Killed here: another process goes on. One is refused as paid already, one meets a node that is down.
    chain.sent.append(receipts[0])
    chain.failures = [UnavailableError("down"), TransactionError("again", Refusal.BAD_NONCE)]
    again = desk(tmp_path, chain)
    await settle(again, tmp_path)
    assert len(chain.sent) == 6
    assert set(chain.sent) == set(receipts)
    await again.hand_in(receipts[0])
    assert not kept(tmp_path)


async def test_what_is_settled_is_forgotten_in_time_and_is_settled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desk_module, "MAX_DONE", 2)
    monkeypatch.setattr(desk_module, "MAX_TRADES", 0)
    chain = Chain()
    subject = desk(tmp_path, chain)
    receipts = [sign_receipt(ANN, CHAIN, TRADE, chunk) for chunk in range(5)]
    for receipt in receipts:
        await subject.hand_in(receipt)
    await settle(subject, tmp_path)
    assert len(subject._done) == 2
    assert subject._trades == {}
    await subject.hand_in(receipts[0])
    await settle(subject, tmp_path)
    assert chain.sent == receipts, "the chain has it: nothing is sent twice"


async def test_what_the_provider_settled_is_not_sent(tmp_path: Path) -> None:
    for view in (trade(phase=TradePhase.SETTLED), trade(phase=TradePhase.REFUNDED), trade(delivered=20)):
        chain = Chain()
        subject = desk(tmp_path, chain)
        await subject.hand_in(sign_receipt(ANN, CHAIN, TRADE, 1))
        chain.view = view
        await settle(subject, tmp_path)
        assert chain.sent == []


async def test_receipts_that_release_nothing_are_refused(tmp_path: Path) -> None:
    chain = Chain()
    subject = desk(tmp_path, chain)
    good = sign_receipt(ANN, CHAIN, TRADE, 1)
    bad: list[tuple[ChunkReceipt, type[Exception]]] = [
        (replace(good, chunk=2), CryptoError),
        (replace(good, miner=AccountId(BOB.public_key)), CryptoError),
        (sign_receipt(ANN, Digest(b"x" * 32), TRADE, 1), CryptoError),
        (sign_receipt(EVE, CHAIN, TRADE, 1), AuthError),
        (sign_receipt(ANN, CHAIN, TRADE, 10), AuthError),
        (sign_receipt(ANN, CHAIN, Digest(b"o" * 32), 1), NotFoundError),
    ]
    for receipt, error in bad:
        with pytest.raises(error):
            await subject.hand_in(receipt)
    chain.view = trade(pool=EVE.public_key)
    with pytest.raises(NotFoundError, match="not this pool's"):
        await desk(tmp_path, chain).hand_in(good)
    assert not kept(tmp_path)
    (tmp_path / "torn.bin").write_bytes(b"\x00")
    desk(tmp_path, chain)


class Tasks:
    """A chain whose tasks change as a test says."""

    def __init__(self) -> None:
        self.updates: asyncio.Queue[TaskUpdate] = asyncio.Queue()
        self.ends: list[TaskView | Exception] = []

    def show(self, *views: TaskView) -> None:
        self.updates.put_nowait(TaskUpdate(Height(1), Milliseconds(1), views))

    async def watch_tasks(self) -> AsyncIterator[TaskUpdate]:
        while True:
            yield await self.updates.get()

    async def task(self, task_id: TaskId) -> TaskView:
        answer = self.ends.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_each_current_task_has_one_season_up_to_its_end() -> None:
    chain: Any = Tasks()
    began: list[TaskFeed] = []
    ended: list[TaskPhase] = []

    async def play(feed: TaskFeed) -> None:
        began.append(feed)
        ended.append((await feed.until(lambda v: v.phase.is_ended)).phase)
        raise UnavailableError("one task's trouble does not touch the next")

    running = asyncio.create_task(Follower(chain, Board(), play).run())
    second = replace(task(TaskPhase.OPEN), task_id=TaskId(b"2" * 32))
    chain.ends = [UnavailableError("down"), task(TaskPhase.WORK), task(TaskPhase.WON)]
    chain.show(task(TaskPhase.ENTRY), second)
    chain.show(task(TaskPhase.TRAINING), second)
    chain.show(second)
    async with asyncio.timeout(60):
        while not ended:  # noqa: ASYNC110 - the season is what is waited for
            await asyncio.sleep(0.01)
    assert ended == [TaskPhase.WON]
    assert [feed.view.task_id for feed in began] == [TASK]
    chain.ends = [replace(second, phase=TaskPhase.VOID)]
    chain.show(replace(second, phase=TaskPhase.ENTRY))
    chain.show()
    async with asyncio.timeout(60):
        while len(ended) < 2:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.01)
    assert ended == [TaskPhase.WON, TaskPhase.VOID]
    assert not running.done()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def test_another_signature_under_one_chunk_is_the_same_receipt(tmp_path: Path) -> None:
    """Whoever has the key can sign one message in endless ways, and so fill the desk that is for all members."""
    subject = desk(tmp_path, Chain())
    await subject.hand_in(sign_receipt(ANN, CHAIN, TRADE, 1))
    for nonce in range(1, 4):
        other = _signed_again(ANN, nonce)
        verify_receipt(CHAIN, other)
        await subject.hand_in(other)
    assert len(kept(tmp_path)) == 1


def _signed_again(key: signing.KeyPair, nonce: int) -> ChunkReceipt:
    """Ed25519 by RFC 8032, section 5.1.6, but with a nonce of the signer's own choice."""
    receipt = sign_receipt(key, CHAIN, TRADE, 1)
    message = chunk_receipt_message(CHAIN, TRADE, 1, receipt.miner)
    framed = bytes([len(DOMAIN_CHUNK_RECEIPT)]) + DOMAIN_CHUNK_RECEIPT + message
    digest = bytearray(hashlib.sha512(key.seed).digest()[:32])
    digest[0] &= 248
    digest[31] = digest[31] & 127 | 64
    order = 2**252 + 27742317777372353535851937790883648493
    point = crypto_scalarmult_ed25519_base_noclamp(nonce.to_bytes(32, "little"))
    challenge = int.from_bytes(hashlib.sha512(point + key.public_key + framed).digest(), "little")
    scalar = (nonce + challenge * int.from_bytes(digest, "little")) % order
    return replace(receipt, miner_signature=Signature(point + scalar.to_bytes(32, "little")))
