"""The pool's books of contributions on disk: what it signed after each round, to whom it was shown, and what they answered.

A round's sheet is on the disk before any member sees it, so a pool that was killed stands by all that it ever signed. One
journal a task lies in the task's folder and goes with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeVar

from core.codec import decode_as, encode_as
from core.crypto import signing
from core.errors import CorruptError, InputError, NotFoundError, PoflError, UnavailableError
from core.ids import AccountId, Digest, TaskId, short
from core.market.contribution_books import PoolBook, RoundFacts
from core.market.contributions import (
    ENTRY,
    MAX_ENTRY,
    Entry,
    RoundSheet,
    SignedAnswer,
    SignedClosing,
    closing_digest,
    head_digest,
    receipt_of,
)
from pool.flower.jobs import RoundReport
from services.rpc.convert_mining import Assignment, MinedTask
from services.runtime.logging import logger
from services.storage.journal import Journal, read_journal

__all__ = ["JOURNAL", "Book", "Books"]

log = logger(__name__)

JOURNAL: Final = "contributions.log"
KEPT_OPEN: Final = 4
"""Books of the last tasks that still take answers."""
READERS: Final = 16
"""Who may read whole books at the same time, each one of them."""

T = TypeVar("T")
Tell = Callable[[AccountId, Assignment], None]


class Book:
    """One task's book. ``tell``: hands a member what it is shown."""

    def __init__(self, book: PoolBook, journal: Journal, tell: Tell) -> None:
        self._book, self._journal, self._tell = book, journal, tell
        self._unwritten: list[Entry] = []
        self._writing: asyncio.Task[None] | None = None
        self._failure: PoflError | None = None

    @property
    def closing(self) -> SignedClosing | None:
        return self._book.closing

    @property
    def weight_factor(self) -> int:
        """The task's, from its first round on."""
        return self._book.weight_factor

    @property
    def last_round(self) -> int:
        return self._book.last_round

    @property
    def shares(self) -> dict[AccountId, int]:
        return self._book.shares

    @property
    def last_sheet(self) -> RoundSheet | None:
        return self._book.sheets[-1] if self._book.sheets else None

    def record(self, report: RoundReport, owner: Callable[[bytes], AccountId | None]) -> None:
        """Sign a round, and show it to its members once it is on the disk. ``owner``: whose Flower key it is.

        A round that is reported again after this process was killed is in the book already, or is taken now.
        """
        if report.again and self._book.last_round >= report.number:
            return
        claims = _by_owner(report.claimed or report.accepted, owner)
        refused = _by_owner(report.refused, owner)
        facts = RoundFacts(
            report.number, report.practice_correct, report.practice_total, min(0xFFFFFFFF, round(1000 * report.seconds)),
            report.bytes_up, report.bytes_down,
        )  # fmt: skip
        sheet = self._book.add_round(facts, claims, refused)
        told = {owner(bytes.fromhex(key)): counted for key, counted in report.accepted.items()}
        if any(told.get(line.miner, 0) != line.counted for line in sheet.lines):
            log.error("the manager weighted a round other than the book counts it", number=report.number)
        self._keep(sheet)

    async def close(self) -> SignedClosing:
        """The signed sums, on the disk. Raises StorageError."""
        is_new = self._book.closing is None
        closing = self._book.close()
        if is_new:
            self._keep(closing)
        await self.settle()
        return closing

    async def answer(self, signed: SignedAnswer) -> None:
        """Raises AuthError, NotFoundError as PoolBook.add_answer; StorageError."""
        if not self._book.add_answer(signed):
            return
        answer = signed.answer
        if answer.objection:
            log.warning("a member objects", miner=answer.miner, task=answer.task_id, objection=answer.objection)
        self._keep(signed)
        await self.settle()

    def greeting(self, miner: AccountId) -> Sequence[Assignment]:
        """What a member that attends again may have missed: its newest receipt, and the closing."""
        if self._writing is not None:
            # It is told when the disk has it.
            return ()
        for sheet in reversed(self._book.sheets):
            receipt = receipt_of(sheet, miner)
            if receipt is not None:
                return (receipt,) if self._book.closing is None else (receipt, self._book.closing)
        return ()

    async def settle(self) -> None:
        """Until all is on the disk. Raises StorageError: from then on nothing more is signed."""
        while self._writing is not None:
            await asyncio.shield(self._writing)
        if self._failure is not None:
            raise self._failure

    def close_file(self) -> None:
        self._journal.close()

    def _keep(self, entry: Entry) -> None:
        self._unwritten.append(entry)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write(), name="contributions")

    async def _write(self) -> None:
        try:
            while self._unwritten:
                entries, self._unwritten = self._unwritten, []
                await asyncio.to_thread(self._journal.append, [encode_as(ENTRY, entry) for entry in entries])
                for entry in entries:
                    self._show(entry)
        except PoflError as error:
            log.error("contributions cannot be kept: members are shown no more of them", error=error)
            self._failure = error
        finally:
            self._writing = None

    def _show(self, entry: Entry) -> None:
        if isinstance(entry, RoundSheet):
            for line in entry.lines:
                receipt = receipt_of(entry, line.miner)
                assert receipt is not None
                self._tell(line.miner, receipt)
        elif isinstance(entry, SignedClosing):
            for share in entry.closing.shares:
                self._tell(share.miner, entry)


class Books:
    """All books. ``folder``: of the tasks, one folder each."""

    def __init__(
        self, folder: Path, key: signing.KeyPair, chain_id: Digest, tell: Tell, weight_factor: int, owner_cut_ppm: int
    ) -> None:
        self._folder, self._key, self._chain_id, self._tell = folder, key, chain_id, tell
        self._factor, self._cut = weight_factor, owner_cut_ppm
        self._open: dict[TaskId, Book] = {}
        self._readers: set[str] = set()
        self._summaries: dict[Path, tuple[int, MinedTask]] = {}

    async def open(self, task_id: TaskId) -> Book:
        """The task's book, begun or gone on with. Raises CorruptError or StorageError, naming the file."""
        if task_id not in self._open:
            self._open[task_id] = await asyncio.to_thread(self._load, task_id)
            for old in list(self._open)[:-KEPT_OPEN]:
                self._open.pop(old).close_file()
        return self._open[task_id]

    def greeting(self, miner: AccountId) -> Sequence[Assignment]:
        """What a member is shown when it attends."""
        return tuple(shown for book in self._open.values() for shown in book.greeting(miner))

    async def answer(self, signed: SignedAnswer) -> None:
        """A member's word. Raises NotFoundError (no such task or statement), AuthError, StorageError."""
        book = self._open.get(signed.answer.task_id)
        if book is None:
            raise NotFoundError(f"this pool takes no answers about task {short(signed.answer.task_id)} any more")
        await book.answer(signed)

    async def entries(self, task_id: TaskId | None, after: int, reader: str = "") -> AsyncGenerator[bytes, None]:
        """A task's encoded entries, by default the newest task's, without rounds up to number ``after``.

        A reader has its place until the generator is closed: close it (``aclosing``), and bound how long that may take. Raises
        NotFoundError, UnavailableError while the same reader or READERS others read.
        """
        if reader in self._readers or len(self._readers) >= READERS:
            raise UnavailableError("you read a book of this pool already, or many others do: try again soon")
        self._readers.add(reader)
        try:
            path = self._path(task_id) if task_id is not None else next(iter(self._paths()), None)
            if path is None or not path.is_file():
                raise NotFoundError("no book of that task is kept here" if task_id else "this pool has trained for no task yet")
            for record in await asyncio.to_thread(_records_after, path, after):
                yield record
        finally:
            self._readers.discard(reader)

    async def tasks(self) -> Sequence[MinedTask]:
        """Newest first."""
        return await asyncio.to_thread(self._tasks)

    def _tasks(self) -> list[MinedTask]:
        found = []
        for path in self._paths():
            try:
                size = path.stat().st_size
                known = self._summaries.get(path)
                if known is None or known[0] != size:
                    known = self._summaries[path] = (size, _summary(path))
                found.append(known[1])
            except (PoflError, OSError) as error:
                log.warning("a book of contributions cannot be read", file=str(path), error=str(error))
        self._summaries = {path: kept for path, kept in self._summaries.items() if path.exists()}
        return found

    def _path(self, task_id: TaskId) -> Path:
        return self._folder / task_id.hex() / JOURNAL

    def _paths(self) -> list[Path]:
        found = [path for path in self._folder.glob(f"*/{JOURNAL}") if path.is_file()]
        return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)

    def _load(self, task_id: TaskId) -> Book:
        journal = Journal(self._path(task_id))
        book = PoolBook(self._key, self._chain_id, task_id, self._factor, self._cut)
        try:
            book.load(_entry(record) for record in journal.found)
        except PoflError as error:
            journal.close()
            raise CorruptError(f"{journal.path} is not this pool's book: {error.message}") from None
        journal.found.clear()
        return Book(book, journal, self._tell)


def _entry(record: bytes) -> Entry:
    entry: Entry = decode_as(ENTRY, record, MAX_ENTRY)
    return entry


def _by_owner(values: Mapping[str, T], owner: Callable[[bytes], AccountId | None]) -> dict[AccountId, T]:
    found: dict[AccountId, T] = {}
    for key, value in values.items():
        account = owner(bytes.fromhex(key))
        if account is None:
            log.warning("a round counts a Flower key of nobody", key=key[:16])
        else:
            found[account] = value
    return found


def _records_after(path: Path, after: int) -> list[bytes]:
    records = read_journal(path)
    if after <= 0:
        return records
    kept, known = [], set()
    for record in records:
        entry = _entry(record)
        if isinstance(entry, RoundSheet):
            if entry.signed.head.number <= after:
                continue
            known.add(head_digest(entry.signed.head))
        elif isinstance(entry, SignedClosing):
            known.add(closing_digest(entry.closing))
        elif isinstance(entry, SignedAnswer) and entry.answer.statement not in known:
            continue
        kept.append(record)
    return kept


def _summary(path: Path) -> MinedTask:
    entries = [_entry(record) for record in read_journal(path)]
    heads = [entry.signed.head for entry in entries if isinstance(entry, RoundSheet)]
    closed = any(isinstance(entry, SignedClosing) for entry in entries)
    try:
        task_id = TaskId(bytes.fromhex(path.parent.name))
    except ValueError:
        raise InputError(f"{path.parent} is no folder of a task") from None
    return MinedTask(
        task_id, len(heads), heads[-1].total if heads else 0, closed, max((h.correct for h in heads), default=0),
        heads[-1].rows if heads else 0,
    )  # fmt: skip
