"""Rows that a pool bought for this miner, on the disk: what was paid for is not lost with the process.

``<folder>/<pool>/<trade>.rows`` is a journal: a heading, then the chunks in order, each written before its receipt is signed,
then a mark that all receipts were handed in. A delivery that was cut off goes on behind the last chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import numpy as np

from core.codec import DIGEST, U32, U64, Var, decode, encode
from core.errors import CorruptError, MalformedError, MarketError, StorageError
from core.ids import AccountId, Digest, short
from core.market.contract import CHUNKS, MAX_FEATURES
from core.market.rows import MAX_CHUNK_BYTES, Features, Labels
from services.runtime.logging import logger
from services.storage.journal import Journal

__all__ = ["BoughtRows", "Delivery", "Heading"]

log = logger(__name__)

MOST_BYTES: Final = 1 << 30
"""Of one pool's rows that are read again at a start: they lie in memory four times as large."""


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


@dataclass(slots=True)
class Delivery:
    """One trade's rows as far as they came. ``parts``: a chunk each."""

    trade_id: Digest
    heading: Heading
    is_whole: bool = False
    parts: list[tuple[Features, Labels]] = field(default_factory=list)
    _journal: Journal | None = None

    @property
    def x(self) -> Features:
        return np.concatenate([x for x, _ in self.parts])

    @property
    def y(self) -> Labels:
        return np.concatenate([y for _, y in self.parts])

    def keep(self, x: Features, y: Labels) -> None:
        """The next chunk: on the disk when it returns. Blocks. Raises StorageFullError, StorageError."""
        assert self._journal is not None
        self._journal.append([encode(_Piece(x.tobytes(), y.tobytes()))])

    def end(self) -> None:
        """All chunks came and their receipts were handed in. Blocks. Raises as `keep`."""
        assert self._journal is not None
        if not self.is_whole:
            self._journal.append([_WHOLE])
            self.is_whole = True

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()


class BoughtRows:
    """All of them, by pool. Every call blocks on the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, pool: AccountId, trade_id: Digest, heading: Heading) -> Delivery:
        """To go on with a delivery, or to begin it; ``close`` it. Raises MarketError if the trade was of other rows."""
        path = self._folder / pool.hex() / f"{trade_id.hex()}.rows"
        try:
            journal = Journal(path)
        except CorruptError as error:
            _set_aside(path, error)
            journal = Journal(path)
        try:
            records, journal.found = journal.found, []
            if not records:
                journal.append([encode(heading)])
                return Delivery(trade_id, heading, _journal=journal)
            try:
                delivery = _delivery(path, trade_id, records)
            except CorruptError as error:
                journal.close()
                _set_aside(path, error)
                return self.open(pool, trade_id, heading)
            if delivery.heading != heading:
                raise MarketError(
                    f"trade {short(trade_id)} was for rows {delivery.heading.first} and following of data set "
                    f"{short(delivery.heading.data_root)}, now the pool names others"
                )
        except BaseException:
            journal.close()
            raise
        delivery._journal = journal
        return delivery

    def read(self, pool: AccountId) -> Iterator[Delivery]:
        """What this pool bought, newest first, not to be gone on with. What is damaged is set aside and said."""
        left = MOST_BYTES
        try:
            found = sorted((self._folder / pool.hex()).glob("*.rows"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        except OSError as error:
            raise StorageError(f"cannot read {self._folder}: {error.strerror or error}") from None
        for path in found:
            left -= path.stat().st_size
            if left < 0:
                log.warning(
                    "older bought rows are left out: all are too many to hold", folder=str(path.parent), most=MOST_BYTES
                )
                return
            try:
                trade_id = Digest(bytes.fromhex(path.stem))
                journal = Journal(path)
                journal.close()
                if journal.found:
                    yield _delivery(path, trade_id, journal.found)
            except (CorruptError, ValueError) as error:
                _set_aside(path, error)


def _delivery(path: Path, trade_id: Digest, records: list[bytes]) -> Delivery:
    """Raises CorruptError."""
    try:
        heading = decode(Heading, records[0])
        pieces = [decode(_Piece, record) for record in records[1:]]
    except MalformedError as error:
        raise CorruptError(f"{path} holds what no miner writes: {error.message}") from None
    delivery = Delivery(trade_id, heading)
    if not 1 <= heading.features <= MAX_FEATURES:
        raise CorruptError(f"{path} says rows of {heading.features} features")
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
