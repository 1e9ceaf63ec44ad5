"""The miner's books of its contributions: what its pool signed for it, kept on disk, and the word that it gives on each.

``<folder>/<pool>/<task>.log`` is a journal of receipts, closings and the miner's own answers; ``<task>.sent`` of what it sent
(sent.py). What proves that a pool has two faces is kept beside them, in ``proof-*.log``. Nothing here needs the pool to be
honest, or to be there.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final, Protocol

from core.codec import decode_as, encode_as
from core.crypto import signing
from core.errors import CheatingError, CryptoError, InputError, NotFoundError, PoflError, StorageError
from core.ids import AccountId, Digest, TaskId, short
from core.market.contribution_books import MinerBook
from core.market.contributions import ENTRY, MAX_ENTRY, Entry, RoundReceipt, RoundSheet, SignedAnswer, SignedClosing
from pool.miner.sent import KEPT_FILES, KEPT_OPEN, SentRounds, make_room
from services.runtime.logging import logger
from services.storage.journal import Journal

__all__ = ["ContributionDesk", "PoolBooks"]

log = logger(__name__)

FETCH_SECONDS: Final = 10.0


class PoolBooks(Protocol):
    """The pool as far as its books go; services.rpc.mining_client.PoolClient has it."""

    async def countersign(self, answer: SignedAnswer) -> None: ...
    async def contributions(self, task_id: TaskId | None = None, after: int = 0) -> tuple[Entry, ...]: ...


class _Open:
    def __init__(self, book: MinerBook, journal: Journal) -> None:
        self.book, self.journal = book, journal
        self.held: set[bytes] = set(journal.found)
        journal.found.clear()

    def keep(self, *entries: Entry) -> None:
        """Blocks. What is held already is not written twice."""
        records = [encode_as(ENTRY, entry) for entry in entries]
        fresh = [record for record in records if record not in self.held]
        if fresh:
            self.journal.append(fresh)
            self.held.update(fresh)


class ContributionDesk:
    """One miner's books."""

    def __init__(self, folder: Path, key: signing.KeyPair, chain_id: Digest) -> None:
        self._folder, self._key, self._chain_id = folder, key, chain_id
        self._open: dict[tuple[AccountId, TaskId], _Open] = {}
        self._sent = SentRounds(folder)
        self._turn = asyncio.Lock()

    def note_sent(self, pool: AccountId, task_id: bytes, round_number: int, examples: int) -> None:
        """This miner is about to answer. Called on the training thread.

        Raises StorageError when it cannot be kept; then nothing may be sent, for nobody could object to what comes of it.
        """
        try:
            self._sent.note(pool, TaskId(task_id), round_number, examples)
        except PoflError as error:
            log.error("no answer: what is sent must be on the disk first", task=task_id, round=round_number, error=error)
            # Not the path, which is nobody's business at the pool.
            raise StorageError("this miner cannot write down what it sends") from None

    async def take(self, pool: AccountId, shown: RoundReceipt | SignedClosing, client: PoolBooks) -> None:
        """Check, keep, answer. What is wrong is logged with its reason; a miner goes on training.

        One after another: the answer to a closing is for all receipts before it.
        """
        async with self._turn:
            task_id = shown.closing.task_id if isinstance(shown, SignedClosing) else shown.signed.head.task_id
            try:
                kept = await asyncio.to_thread(self._get, pool, task_id)
                for round_number, examples in (await asyncio.to_thread(self._sent.rounds, pool, task_id)).items():
                    kept.book.note_sent(round_number, examples)
                answer = await self._answer(kept, shown, client)
                await asyncio.to_thread(kept.keep, shown, answer)
                await client.countersign(answer)
            except CheatingError as error:
                proof = await asyncio.to_thread(self._keep_proof, pool, task_id, shown)
                log.error("the pool contradicts what it signed before", task=task_id, proof=str(proof), error=error)
            except (CryptoError, InputError) as error:
                log.warning("what the pool shows of contributions is not taken", task=task_id, error=error)
            except PoflError as error:
                log.warning("an answer about contributions did not reach the pool", task=task_id, error=error)
            else:
                if answer.answer.objection:
                    log.warning("objected to the pool's count", task=task_id, objection=answer.answer.objection)
                elif isinstance(shown, SignedClosing):
                    log.info("contributions agreed", task=task_id, examples=answer.answer.counted)

    async def _answer(self, kept: _Open, shown: RoundReceipt | SignedClosing, client: PoolBooks) -> SignedAnswer:
        if isinstance(shown, RoundReceipt):
            if shown.line.reason:
                log.warning("not counted", round=shown.signed.head.round, reason=shown.line.reason)
            return kept.book.receive(shown)
        answer = kept.book.receive_closing(shown)
        if not kept.book.missing:
            return answer
        # Rounds while this miner was away, or too busy to be told: from the pool's public book.
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                for entry in await client.contributions(shown.closing.task_id, min(kept.book.missing) - 1):
                    if isinstance(entry, RoundSheet):
                        receipt = kept.book.receive_sheet(entry)
                        if receipt is not None:
                            await asyncio.to_thread(kept.keep, receipt)
        except (TimeoutError, NotFoundError) as error:
            log.warning("the pool does not show its book", task=shown.closing.task_id, error=str(error))
        return kept.book.receive_closing(shown)

    def _get(self, pool: AccountId, task_id: TaskId) -> _Open:
        kept = self._open.get((pool, task_id))
        if kept is None:
            path = self._folder / pool.hex() / f"{task_id.hex()}.log"
            make_room(path)
            journal = Journal(path)
            book = MinerBook(self._key, self._chain_id, pool, task_id)
            for round_number, examples in self._sent.rounds(pool, task_id).items():
                book.note_sent(round_number, examples)
            for record in journal.found:
                entry = decode_as(ENTRY, record, MAX_ENTRY)
                if isinstance(entry, RoundReceipt):
                    book.receive(entry)
                elif isinstance(entry, SignedClosing):
                    book.receive_closing(entry)
                elif isinstance(entry, SignedAnswer) and entry.answer.objection:
                    book.objections.append(entry.answer.objection)
            kept = self._open[pool, task_id] = _Open(book, journal)
            for old in list(self._open)[:-KEPT_OPEN]:
                self._open.pop(old).journal.close()
        return kept

    def _keep_proof(self, pool: AccountId, task_id: TaskId, shown: Entry) -> Path:
        path = self._folder / pool.hex() / f"proof-{short(task_id)}.log"
        journal = Journal(path)
        try:
            record = encode_as(ENTRY, shown)
            if record not in journal.found and len(journal.found) < KEPT_FILES:
                journal.append([record])
        finally:
            journal.close()
        return path
