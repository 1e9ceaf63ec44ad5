"""Rows on sale: their bytes, their Merkle root, who gets which, and the check of a delivered chunk.

A row is ``salt (16 bytes) || label (1 byte) || features (int8 each, in [-127, 127])``. It is a leaf of an RFC 6962
tree. The salt hides the row behind its hash: without it, a buyer of one row could guess the others from their hashes.
Chunks are runs of neighbouring rows, so one short proof covers a whole chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from core.chain.merkle import leaf_hash, node_hash
from core.codec import DIGEST, U32, Seq, Var
from core.crypto.hashing import expand
from core.errors import MarketError
from core.ids import Digest
from core.market.contract import CHUNKS, MAX_BUYERS, MAX_CLASSES, MAX_FEATURES, MAX_ROWS

__all__ = [
    "Chunk", "DataSet", "Features", "Labels", "chunk_range", "open_chunk", "plan", "row_size", "DOMAIN_SALT",
    "MAX_CHUNK_BYTES", "SALT_SIZE",
]  # fmt: skip

DOMAIN_SALT: Final = b"pofl/row-salt/1"
SALT_SIZE: Final = 16
MAX_CHUNK_BYTES: Final = 3 << 20
"""Row bytes of one chunk: it travels sealed in one message of at most 4 MiB."""
_MAX_PROOF: Final = 64

Features: TypeAlias = NDArray[np.int8]
Labels: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows ``start..`` of the data set, and what proves them."""

    start: Annotated[int, U32]
    rows: Annotated[bytes, Var(MAX_CHUNK_BYTES)]
    """Row bytes, one after another."""
    proof: Annotated[tuple[Digest, ...], Seq(DIGEST, _MAX_PROOF)]
    """Hashes beside the run, lowest level first, left before right."""


class DataSet:
    """A provider's rows with their tree. Shuffle rows before: neighbours are sold together."""

    __slots__ = ("_levels", "_table", "classes", "features")

    def __init__(self, features: Features, labels: Labels, classes: int, salt_secret: bytes) -> None:
        """``features``: [n, M] int8; ``labels``: [n] uint8 below ``classes``; ``salt_secret``: 32 secret bytes, kept by
        the provider, from which all salts follow.

        Raises:
            MarketError: a shape, type, value or size is out of its range.
        """
        if features.ndim != 2 or features.dtype != np.int8 or labels.dtype != np.uint8:
            raise MarketError(
                f"rows are int8 [n, M] and uint8 [n], got {features.dtype} {list(features.shape)} and {labels.dtype} "
                f"{list(labels.shape)}"
            )
        count, width = features.shape
        if labels.shape != (count,):
            raise MarketError(f"{count} rows of features, labels of shape {list(labels.shape)}")
        if not (1 <= count <= MAX_ROWS and 1 <= width <= MAX_FEATURES and 1 <= classes <= MAX_CLASSES):
            raise MarketError(
                f"{count} rows of {width} features in {classes} classes; at most {MAX_ROWS}, {MAX_FEATURES} and "
                f"{MAX_CLASSES}, each at least 1",
                rows=count, features=width, classes=classes,
            )  # fmt: skip
        if len(salt_secret) != 32:
            raise MarketError(f"the salt secret has {len(salt_secret)} bytes, must have 32")
        _check_values(features, labels, classes, 0)
        salts = np.frombuffer(expand(DOMAIN_SALT, SALT_SIZE * count, salt_secret), np.uint8).reshape(count, SALT_SIZE)
        self._table = np.hstack([salts, labels[:, None], features.view(np.uint8)])
        self._levels = _levels([leaf_hash(row.tobytes()) for row in self._table])
        self.features = width
        self.classes = classes

    @property
    def rows(self) -> int:
        return len(self._table)

    @property
    def root(self) -> Digest:
        """The ``data_root`` of offers."""
        return Digest(self._levels[-1][0])

    def chunk(self, start: int, stop: int) -> Chunk:
        """Rows ``start..stop-1`` with their proof.

        Raises:
            MarketError: the run is empty, outside the data set, or too large for one chunk.
        """
        _check_run(self.rows, self.features, start, stop)
        proof: list[Digest] = []
        low, high = start, stop
        for level in self._levels[:-1]:
            if low % 2:
                proof.append(Digest(level[low - 1]))
            if high % 2 and high < len(level):
                proof.append(Digest(level[high]))
            low, high = low // 2, (high + 1) // 2
        return Chunk(start, self._table[start:stop].tobytes(), tuple(proof))


def open_chunk(
    chunk: Chunk, root: Digest, rows: int, features: int, classes: int, start: int, stop: int
) -> tuple[Features, Labels]:
    """The features [k, M] and labels [k] of rows ``start..stop-1``, checked against the root of the offer.

    Raises:
        MarketError: not the rows that were due, a proof that does not lead to the root, or a value out of range.
    """
    _check_run(rows, features, start, stop)
    size = row_size(features)
    if chunk.start != start or len(chunk.rows) != size * (stop - start):
        raise MarketError(
            f"due are rows {start}..{stop - 1} of {size} bytes; the chunk starts at {chunk.start} and has "
            f"{len(chunk.rows)} bytes, expected {size * (stop - start)}",
            start=start, stop=stop, got_start=chunk.start, got_bytes=len(chunk.rows),
        )  # fmt: skip
    hashes: list[bytes] = [leaf_hash(chunk.rows[i : i + size]) for i in range(0, len(chunk.rows), size)]
    found = _climb(hashes, start, stop, rows, chunk.proof)
    if found != root:
        raise MarketError(
            f"rows {start}..{stop - 1} lead to the root {found.hex()}, the offer says {root.hex()}; sign no receipt",
            start=start, stop=stop,
        )  # fmt: skip
    table = np.frombuffer(chunk.rows, np.uint8).reshape(stop - start, size)
    labels = table[:, SALT_SIZE].copy()
    values = table[:, SALT_SIZE + 1 :].copy().view(np.int8)
    _check_values(values, labels, classes, start)
    return values, labels


def row_size(features: int) -> int:
    """Bytes of one row."""
    return SALT_SIZE + 1 + features


def chunk_range(rows: int, miners: int, miner: int, chunk: int, chunks: int = CHUNKS) -> tuple[int, int]:
    """``(start, stop)`` of one chunk of one miner: shares differ by at most one row, and so do a miner's chunks.

    Raises:
        MarketError: an index or count is out of range, or there are not enough rows for a row in each chunk.
    """
    if not (1 <= miners <= MAX_BUYERS and chunks >= 1 and miners * chunks <= rows <= MAX_ROWS):
        raise MarketError(
            f"{rows} rows for {miners} miners in {chunks} chunks each: every chunk needs a row, and there are at most "
            f"{MAX_BUYERS} miners and {MAX_ROWS} rows",
            rows=rows, miners=miners, chunks=chunks,
        )  # fmt: skip
    if not (0 <= miner < miners and 0 <= chunk < chunks):
        raise MarketError(
            f"chunk {chunk} of miner {miner} asked for; there are {chunks} chunks and {miners} miners, counted from 0",
            miner=miner, chunk=chunk,
        )  # fmt: skip
    first, last = rows * miner // miners, rows * (miner + 1) // miners
    share = last - first
    return first + share * chunk // chunks, first + share * (chunk + 1) // chunks


def plan(rows: int, miners: int, chunks: int = CHUNKS) -> tuple[tuple[tuple[int, int], ...], ...]:
    """All chunks: ``plan(...)[miner][chunk] == (start, stop)``. Together they are ``0..rows``, in order, once.

    Raises:
        MarketError: as ``chunk_range``.
    """
    return tuple(tuple(chunk_range(rows, miners, i, j, chunks) for j in range(chunks)) for i in range(miners))


def _levels(hashes: list[Digest]) -> list[list[bytes]]:
    """All levels of the tree, leaves first; an odd last node moves up, as in core.chain.merkle.root_of_hashes."""
    levels: list[list[bytes]] = [list(hashes)]
    while len(levels[-1]) > 1:
        levels.append(_above(levels[-1]))
    return levels


def _above(level: list[bytes]) -> list[bytes]:
    above: list[bytes] = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
    return above + level[-1:] if len(level) % 2 else above


def _climb(run: list[bytes], low: int, high: int, size: int, proof: tuple[Digest, ...]) -> bytes:
    """The root that the run ``low..high-1`` of a level of ``size`` leads to."""
    steps = iter(proof)
    while size > 1:
        left = [next(steps, None)] if low % 2 else []
        right = [next(steps, None)] if high % 2 and high < size else []
        level = [node for node in (*left, *run, *right) if node is not None]
        if len(level) != len(left) + len(run) + len(right):
            raise MarketError(f"the proof of a chunk ends after {len(proof)} hashes, too early", hashes=len(proof))
        run = _above(level)
        low, high, size = low // 2, (high + 1) // 2, (size + 1) // 2
    if next(steps, None) is not None:
        raise MarketError(f"the proof of a chunk has {len(proof)} hashes, too many", hashes=len(proof))
    return run[0]


def _check_run(rows: int, features: int, start: int, stop: int) -> None:
    if not (0 <= start < stop <= rows <= MAX_ROWS and 1 <= features <= MAX_FEATURES):
        raise MarketError(
            f"rows {start}..{stop - 1} of {rows} rows with {features} features", start=start, stop=stop, rows=rows
        )
    if (stop - start) * row_size(features) > MAX_CHUNK_BYTES:
        raise MarketError(
            f"{stop - start} rows of {row_size(features)} bytes are more than a chunk's {MAX_CHUNK_BYTES}; "
            "trade with more miners or a smaller data set",
            start=start, stop=stop,
        )  # fmt: skip


def _check_values(features: Features, labels: Labels, classes: int, first: int) -> None:
    low = np.flatnonzero((features == -128).any(axis=1))
    if low.size:
        raise MarketError(f"row {first + low[0]} has a feature of -128, below -127", row=int(first + low[0]))
    wrong = np.flatnonzero(labels >= classes)
    if wrong.size:
        raise MarketError(
            f"row {first + wrong[0]} has label {labels[wrong[0]]}; there are {classes} classes",
            row=int(first + wrong[0]), label=int(labels[wrong[0]]),
        )  # fmt: skip
