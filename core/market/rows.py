"""Rows on sale: their bytes, their Merkle root, who gets which, and the check of a delivered chunk.

A row has two variants (core.market.variants), and a buyer gets one of them (core.market.marks). Each is ``salt (16 bytes)
|| label (1 byte) || features (int8 each, in [-127, 127])``, and leaves 2 i and 2 i + 1 of an RFC 6962 tree are those of row
i. The salt hides a row behind its hash: without it, a buyer of one could guess the others from their hashes.
Chunks are runs of neighbouring rows, so one short proof covers a whole chunk. A chunk has both variants of each row, each
under the key of one choice, and the hashes of both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from core.chain.merkle import leaf_hash, node_hash
from core.codec import DIGEST, U32, Seq, Var
from core.crypto.hashing import expand
from core.errors import MarketError
from core.ids import AccountId, Amount, Digest
from core.market.contract import CHUNKS, MAX_BUYERS, MAX_CLASSES, MAX_FEATURES, MAX_ROWS, range_amount
from core.market.marks import encrypt_row, group_of, mark_count
from core.market.variants import DEFAULT_STRENGTH, make_variants

__all__ = [
    "Chunk", "DataSet", "Features", "Held", "Labels", "Sold", "advance", "chunk_amount", "chunk_range", "open_chunk", "plan",
    "row_size", "share_marks", "share_range",
    "DOMAIN_SALT", "DOMAIN_TRACE", "DOMAIN_TRANSFER", "MAX_CHUNK_BYTES", "SALT_SIZE",
]  # fmt: skip

DOMAIN_SALT: Final = b"pofl/row-salt/1"
DOMAIN_TRACE: Final = b"pofl/marks/trace/1"
DOMAIN_TRANSFER: Final = b"pofl/marks/transfer-secret/1"
SALT_SIZE: Final = 16
MAX_CHUNK_BYTES: Final = 3_750_000
"""Hashes and encrypted rows of one chunk: it travels sealed in one message of at most 4 MiB."""
_MAX_PROOF: Final = 64

Features: TypeAlias = NDArray[np.int8]
Labels: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows ``start..`` of the data set, and what proves them."""

    start: Annotated[int, U32]
    hashes: Annotated[bytes, Var(MAX_CHUNK_BYTES)]
    """Leaf hashes of both variants of each row, 64 bytes a row."""
    sealed: Annotated[bytes, Var(MAX_CHUNK_BYTES)]
    """Of each row two encrypted variants, ``2 * row_size`` bytes: under the key of choice 0, then of choice 1."""
    proof: Annotated[tuple[Digest, ...], Seq(DIGEST, _MAX_PROOF)]
    """Hashes beside the run of rows, lowest level first, left before right."""


@dataclass(frozen=True, slots=True)
class Sold:
    """The seller's side of one share's marks."""

    first: int
    """The share's first row in the data set."""
    keys: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    """Of each group, those of choices 0 and 1 (core.market.marks.seller_keys)."""
    trace: NDArray[np.uint8] = field(repr=False)
    """One bit a row of the share: choice c opens variant ``c ^ trace`` (DataSet.trace)."""


@dataclass(frozen=True, slots=True)
class Held:
    """The buyer's side of the same."""

    first: int
    choices: tuple[int, ...] = field(repr=False)
    keys: tuple[bytes, ...] = field(repr=False)
    """Of each group, the chosen one (core.market.marks.group_keys)."""


class DataSet:
    """A provider's rows with their tree. Shuffle rows before: neighbours are sold together."""

    __slots__ = ("_levels", "_secret", "_tables", "classes", "features", "labels")

    def __init__(
        self, features: Features, labels: Labels, classes: int, salt_secret: bytes, strength_ppm: int = DEFAULT_STRENGTH
    ) -> None:
        """``features``: [n, M] int8; ``labels``: [n] uint8 below ``classes``; ``salt_secret``: 32 secret bytes, kept by
        the provider, from which salts and marks follow; ``strength_ppm``: of the marks (core.market.variants), 0 for none.

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
        salts = np.frombuffer(expand(DOMAIN_SALT, 2 * SALT_SIZE * count, salt_secret), np.uint8)
        self._tables = tuple(
            np.hstack([salt, labels[:, None], variant.view(np.uint8)])
            for salt, variant in zip(
                salts.reshape(2, count, SALT_SIZE), make_variants(features, strength_ppm, salt_secret), strict=True
            )
        )
        pairs = zip(*self._tables, strict=True)
        self._levels = _levels([leaf_hash(row.tobytes()) for pair in pairs for row in pair])
        self._secret = salt_secret
        self.features = width
        self.classes = classes
        self.labels = labels

    @property
    def rows(self) -> int:
        return len(self._tables[0])

    @property
    def root(self) -> Digest:
        """The ``data_root`` of offers."""
        return Digest(self._levels[-1][0])

    def variant(self, which: int) -> Features:
        """Variant 0 or 1 of all rows, int8 [n, M]."""
        return self._tables[which][:, SALT_SIZE + 1 :].view(np.int8)

    def trace(self, trade_id: Digest, miner: AccountId, count: int) -> NDArray[np.uint8]:
        """The seller's own secret bits of a share of ``count`` rows, uint8 [count]: by them she knows a copy again."""
        coins = expand(DOMAIN_TRACE, -(-count // 8), self._secret, trade_id, miner)
        return np.unpackbits(np.frombuffer(coins, np.uint8))[:count]

    def coins(self, trade_id: Digest) -> bytes:
        """32 secret bytes for the transfers of a trade (core.market.marks.seller_keys)."""
        return expand(DOMAIN_TRANSFER, 32, self._secret, trade_id)

    def chunk(self, start: int, stop: int, sold: Sold) -> Chunk:
        """Rows ``start..stop-1`` of the share that begins at ``sold.first``, with their proof.

        Raises:
            MarketError: the run is empty, outside the data set, or too large for one chunk.
        """
        _check_run(self.rows, self.features, start, stop)
        proof: list[Digest] = []
        low, high = start, stop
        for level in self._levels[1:-1]:
            if low % 2:
                proof.append(Digest(level[low - 1]))
            if high % 2 and high < len(level):
                proof.append(Digest(level[high]))
            low, high = low // 2, (high + 1) // 2
        sealed = bytearray()
        for row in range(start, stop):
            keys = sold.keys[group_of(row - sold.first, len(sold.keys))]
            for choice, key in enumerate(keys):
                variant = self._tables[choice ^ int(sold.trace[row - sold.first])][row].tobytes()
                sealed += encrypt_row(key, row, variant)
        return Chunk(start, b"".join(self._levels[0][2 * start : 2 * stop]), bytes(sealed), tuple(proof))


def open_chunk(
    chunk: Chunk, root: Digest, rows: int, features: int, classes: int, start: int, stop: int, held: Held
) -> tuple[Features, Labels]:
    """The features [k, M] and labels [k] of rows ``start..stop-1``, checked against the root of the offer.

    Which of a row's two leaves a choice opens is the seller's to say: that tells her nothing, because she knows what she
    put there. That it opens one of them, every buyer checks.

    Raises:
        MarketError: not the rows that were due, a proof that does not lead to the root, a row that is none of the two
            variants that the root commits to, or a value out of range.
    """
    _check_run(rows, features, start, stop)
    count, size = stop - start, row_size(features)
    if (chunk.start, len(chunk.hashes), len(chunk.sealed)) != (start, 64 * count, 2 * size * count):
        raise MarketError(
            f"due are {count} rows of {size} bytes from {start}; the chunk starts at {chunk.start} and has "
            f"{len(chunk.hashes)} bytes of hashes and {len(chunk.sealed)} of rows, expected {64 * count} and "
            f"{2 * size * count}",
            start=start, stop=stop, got_start=chunk.start, got_bytes=len(chunk.sealed),
        )  # fmt: skip
    leaves: list[bytes] = [chunk.hashes[i : i + 32] for i in range(0, len(chunk.hashes), 32)]
    found = _climb(_above(leaves), start, stop, rows, chunk.proof)
    if found != root:
        raise MarketError(
            f"rows {start}..{stop - 1} lead to the root {found.hex()}, the offer says {root.hex()}; sign no receipt",
            start=start, stop=stop,
        )  # fmt: skip
    plain, spoiled = bytearray(), list[int]()
    # All rows before any complaint: when it comes must not tell which row, and so which choice, was spoiled.
    for place in range(count):
        row = start + place
        group = group_of(row - held.first, len(held.keys))
        offset = size * (2 * place + held.choices[group])
        data = encrypt_row(held.keys[group], row, chunk.sealed[offset : offset + size])
        if leaf_hash(data) not in leaves[2 * place : 2 * place + 2]:
            spoiled.append(row)
        plain += data
    if spoiled:
        raise MarketError(f"row {spoiled[0]} is none of its two variants under the root; sign no receipt", row=spoiled[0])
    table = np.frombuffer(bytes(plain), np.uint8).reshape(count, size)
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


def share_range(rows: int, miners: int, miner: int) -> tuple[int, int]:
    """``(start, stop)`` of all chunks of one miner together. Raises MarketError as ``chunk_range``."""
    return chunk_range(rows, miners, miner, 0)[0], chunk_range(rows, miners, miner, CHUNKS - 1)[1]


def chunk_amount(price: Amount, rows: int, miners: int, miner: int, chunk: int) -> Amount:
    """The part of a trade's price that a chunk is worth; all chunks sum to the price. Raises MarketError as ``chunk_range``."""
    return range_amount(price, rows, *chunk_range(rows, miners, miner, chunk))


def advance(price: Amount, rows: int, miners: int) -> Amount:
    """What the draw of a deal pays: the first chunk of each share, which goes out before any receipt (docs/adr/0142)."""
    return Amount(sum(chunk_amount(price, rows, miners, miner, 0) for miner in range(miners)))


def share_marks(rows: int, miners: int, miner: int) -> int:
    """Into how many groups of rows a miner's share falls, of each of which it takes one of two variants. Raises MarketError."""
    start, stop = share_range(rows, miners, miner)
    return mark_count(stop - start)


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
    if (stop - start) * (2 * row_size(features) + 64) > MAX_CHUNK_BYTES:
        raise MarketError(
            f"{stop - start} rows of {row_size(features)} bytes in two variants are more than a chunk's {MAX_CHUNK_BYTES} "
            "bytes; trade with more miners or a smaller data set",
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
