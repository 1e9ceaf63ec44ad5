"""Rows that a pool bought for this miner, on the disk: what was paid for is not lost with the process.

``<folder>/<pool>/<trade>.rows`` is a journal: a heading, then the chunks in order, each written before its receipt is signed,
then a mark that all receipts were handed in. A delivery that was cut off goes on behind the last chunk. Without a chunk
there is no file.

What all of them take is bounded: pool and provider may be one, and then rows cost them nothing. The present pool's rows are
kept, and no more are fetched where they fill the bound; those of other pools make room, oldest first.
"""

from __future__ import annotations

import contextlib
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import numpy as np

from core.codec import DIGEST, U32, U64, Var, decode, encode
from core.errors import CorruptError, LimitError, MalformedError, MarketError, PoflError, StorageError
from core.ids import AccountId, Digest, short
from core.market.contract import CHUNKS, MAX_FEATURES
from core.market.rows import MAX_CHUNK_BYTES, Features, Labels
from services.runtime.logging import logger
from services.storage.journal import Journal, read_journal

__all__ = ["BoughtRows", "Delivery", "Heading"]

log = logger(__name__)

LEAST_FILE: Final = 64 << 10
"""What a file counts for at least: many small ones are a burden too."""


@dataclass(frozen=True, slots=True)
class Heading:
    """Which rows a trade brings: ``first`` and following of a data set."""

    data_root: Annotated[Digest, DIGEST]
    first: Annotated[int, U32]
    rows: Annotated[int, U32]
    features: Annotated[int, U32]
    feature_scale_micro: Annotated[int, U64]


@dataclass(frozen=True, slots=True)
class _Piece:
    """One chunk; without rows: the mark that all is here and acknowledged."""

    x: Annotated[bytes, Var(MAX_CHUNK_BYTES)]
    """int8 [k, M]."""
    y: Annotated[bytes, Var(MAX_CHUNK_BYTES)]
    """uint8 [k]."""


_WHOLE: Final = encode(_Piece(b"", b""))
OVERHEAD: Final = 1_024
"""Bytes of a whole file beside its rows, at most."""


@dataclass(slots=True)
class Delivery:
    """One trade's rows as far as they came. ``parts``: a chunk each."""

    trade_id: Digest
    heading: Heading
    is_whole: bool = False
    parts: list[tuple[Features, Labels]] = field(default_factory=list)
    _store: BoughtRows | None = None
    _path: Path = Path()
    _journal: Journal | None = None
    _is_begun: bool = False
    """Whether the heading is in the file."""
    _is_closed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def x(self) -> Features:
        return np.concatenate([x for x, _ in self.parts])

    @property
    def y(self) -> Labels:
        return np.concatenate([y for _, y in self.parts])

    def keep(self, x: Features, y: Labels) -> None:
        """The next chunk: on the disk when it returns. Blocks. Raises StorageFullError, StorageError."""
        piece = encode(_Piece(x.tobytes(), y.tobytes()))
        assert self._store is not None
        with self._lock:
            if self._is_closed:  # the delivery ended meanwhile
                raise StorageError(f"the rows of trade {short(self.trade_id)} are not taken any more")
            self._store.make_room(self._path, len(piece))
            if self._journal is None:
                self._journal = Journal(self._path)
            self._journal.append([piece] if self._is_begun else [encode(self.heading), piece])
            self._is_begun = True

    def end(self) -> None:
        """All chunks came and their receipts were handed in. Blocks. Raises as `keep`."""
        with self._lock:
            assert self._journal is not None
            if not self.is_whole:
                self._journal.append([_WHOLE])
                self.is_whole = True

    def close(self) -> None:
        """Idempotent. Nothing is written any more when it returns."""
        with self._lock:
            self._is_closed = True
            if self._journal is not None:
                self._journal.close()
        if self._store is not None:
            self._store.release(self._path)


class BoughtRows:
    """All of them, by pool. Every call blocks on the disk; safe to use from several threads."""

    def __init__(self, folder: Path, most: int = 1 << 30) -> None:
        """``most``: bytes of all files."""
        self._folder, self._most = folder, most
        self._due: dict[Path, int] = {}
        """What deliveries that run will come to."""
        self._lock = threading.Lock()

    def open(self, pool: AccountId, trade_id: Digest, heading: Heading) -> Delivery:
        """To go on with a delivery, or to begin it; ``close`` it.

        Raises MarketError if the trade was of other rows, LimitError if there is no room for what is still to come.
        """
        path = self._folder / pool.hex() / f"{trade_id.hex()}.rows"
        self._reserve(path, heading)
        delivery = Delivery(trade_id, heading, _store=self, _path=path)
        try:
            if path.exists():
                self._go_on(delivery)
        except BaseException:
            delivery.close()
            raise
        return delivery

    def _go_on(self, delivery: Delivery) -> None:
        path = delivery._path
        try:
            journal = delivery._journal = Journal(path)
            records, journal.found = journal.found, []
            if not records:
                return
            found = _delivery(path, delivery.trade_id, records)
        except CorruptError as error:
            if delivery._journal is not None:
                delivery._journal.close()
                delivery._journal = None
            _set_aside(path, error)
            return
        if found.heading != delivery.heading:
            raise MarketError(
                f"trade {short(found.trade_id)} was for rows {found.heading.first} and following of data set "
                f"{short(found.heading.data_root)}, now pool or provider name others"
            )
        delivery.parts, delivery.is_whole, delivery._is_begun = found.parts, found.is_whole, True

    def read(self, pool: AccountId) -> Iterator[Delivery]:
        """What this pool bought, newest first, not to be gone on with. What cannot be read is left out and said."""
        left = self._most
        files = _files(self._folder / pool.hex(), "*.rows")
        for path, size, _ in sorted(files, key=lambda file: file[2], reverse=True):
            left -= size
            if left < 0:
                log.warning("older bought rows are left out: bought_mib is less than they are", folder=str(path.parent))
                return
            try:
                records = read_journal(path)
                if records:
                    yield _delivery(path, Digest(bytes.fromhex(path.stem)), records)
            except (CorruptError, ValueError) as error:
                try:
                    _set_aside(path, error)
                except StorageError as failed:
                    log.error("damaged rows stay where they are", error=failed)
            except PoflError as error:
                log.error("bought rows cannot be read", file=str(path), error=error)

    def _reserve(self, path: Path, heading: Heading) -> None:
        """Raises LimitError."""
        need = max(LEAST_FILE, heading.rows * (heading.features + 1) + OVERHEAD)
        with self._lock:
            # What is there of this trade, and what is damaged, is a part of it, or gives way.
            kept = {other: size for other, size, _ in _files(path.parent, "*.rows") if other != path}
            due = {other: size for other, size in self._due.items() if other.parent == path.parent and other != path}
            taken = sum((kept | due).values())
            if taken + need > self._most:
                raise LimitError(
                    f"{need} bytes of bought rows, {taken} are kept or on their way, at most {self._most} (bought_mib): "
                    "set it higher, or remove what you do not train on any more",
                    need=need, taken=taken, most=self._most,
                )  # fmt: skip
            self._due[path] = need

    def release(self, path: Path) -> None:
        with self._lock:
            self._due.pop(path, None)

    def make_room(self, path: Path, size: int) -> None:
        """For ``size`` more bytes in ``path``: what is damaged goes first, then what other pools bought, oldest first.

        Raises StorageError.
        """
        with self._lock:
            files = _files(self._folder, "*/*")
            taken = sum(size for _, size, _ in files)
            for other, gained, _ in sorted(files, key=lambda file: (file[0].suffix == ".rows", file[2])):
                if taken + max(size, LEAST_FILE) <= self._most:
                    return
                if other in self._due or (other.parent == path.parent and other.suffix == ".rows"):
                    continue
                log.warning("rows of before make room for new ones", file=str(other))
                try:
                    other.unlink(missing_ok=True)
                except OSError as error:
                    raise StorageError(f"cannot remove {other}: {error.strerror or error}") from None
                taken -= gained
                if all(due.parent != other.parent for due in (path, *self._due)):
                    with contextlib.suppress(OSError):  # not empty
                        other.parent.rmdir()


def _files(folder: Path, pattern: str) -> list[tuple[Path, int, int]]:
    """Each with what it counts for, in bytes, and when it was written, in ns. Raises StorageError."""
    found = []
    try:
        for path in folder.glob(pattern):
            with contextlib.suppress(FileNotFoundError):  # it went meanwhile
                status = path.stat()
                if stat.S_ISREG(status.st_mode):
                    found.append((path, max(LEAST_FILE, status.st_size), status.st_mtime_ns))
    except OSError as error:
        raise StorageError(f"cannot read {folder}: {error.strerror or error}") from None
    return found


def _delivery(path: Path, trade_id: Digest, records: list[bytes]) -> Delivery:
    """Raises CorruptError."""
    try:
        heading = decode(Heading, records[0])
        pieces = [decode(_Piece, record) for record in records[1:]]
    except MalformedError as error:
        raise CorruptError(f"{path} holds what no miner writes: {error.message}") from None
    delivery = Delivery(trade_id, heading)
    if not 1 <= heading.features <= MAX_FEATURES or heading.feature_scale_micro < 1:
        raise CorruptError(f"{path} says rows of {heading.features} features, scale {heading.feature_scale_micro}")
    for piece in pieces:
        if delivery.is_whole or len(piece.x) != len(piece.y) * heading.features:
            raise CorruptError(f"{path} holds {len(piece.x)} bytes for {len(piece.y)} rows of {heading.features} features")
        if not piece.y:
            delivery.is_whole = True
            continue
        x = np.frombuffer(piece.x, dtype=np.int8).reshape(len(piece.y), heading.features)
        delivery.parts.append((x, np.frombuffer(piece.y, dtype=np.uint8)))
    rows = sum(len(y) for _, y in delivery.parts)
    if len(delivery.parts) > CHUNKS or rows > heading.rows or (delivery.is_whole and rows != heading.rows):
        raise CorruptError(f"{path} holds {rows} rows in {len(delivery.parts)} chunks, its heading says {heading.rows}")
    return delivery


def _set_aside(path: Path, error: Exception) -> None:
    """Its bytes stay for whoever wants to look; its rows, if the trade still runs, are asked for again."""
    log.error("bought rows cannot be read again", file=str(path), error=error)
    try:
        path.replace(path.with_suffix(".damaged"))
    except OSError as failed:
        raise StorageError(f"cannot set {path} aside: {failed.strerror or failed}") from None
