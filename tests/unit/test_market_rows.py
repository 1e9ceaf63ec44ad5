from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from core.chain import merkle
from core.codec import decode, encode
from core.errors import MarketError
from core.ids import Digest
from core.market import rows
from core.market.marks import encrypt_row
from core.market.rows import Chunk, DataSet, Held, Sold, chunk_range, open_chunk, plan

SECRET = b"s" * 32
FEATURES, CLASSES = 5, 3
TRACE = (np.arange(64) % 2).astype(np.uint8)
SOLD = Sold(0, ((b"a0", b"a1"), (b"b0", b"b1"), (b"c0", b"c1")), TRACE)
HELD = Held(0, (0, 1, 1), (b"a0", b"b1", b"c1"))


def a_data_set(count: int, seed: int = 1) -> DataSet:
    rng = np.random.default_rng(seed)
    values = rng.integers(-127, 128, (count, FEATURES), dtype=np.int8)
    return DataSet(values, rng.integers(0, CLASSES, count, dtype=np.uint8), CLASSES, SECRET, 0)


def opened(chunk: Chunk, data: DataSet, start: int, stop: int) -> tuple[rows.Features, rows.Labels]:
    return open_chunk(chunk, data.root, data.rows, FEATURES, CLASSES, start, stop, HELD)


@pytest.mark.parametrize("count", [*range(1, 18), 33])
def test_every_run_of_every_small_tree_opens(count: int) -> None:
    data = a_data_set(count)
    for start in range(count):
        for stop in range(start + 1, count + 1):
            chunk = data.chunk(start, stop, SOLD)
            values, labels = opened(decode(Chunk, encode(chunk)), data, start, stop)
            assert values.shape == (stop - start, FEATURES)
            assert labels.shape == (stop - start,)
            assert len(chunk.proof) <= 2 * count.bit_length()


def test_the_root_is_rfc_6962s_and_rows_come_back() -> None:
    rng = np.random.default_rng(2)
    values = rng.integers(-127, 128, (21, FEATURES), dtype=np.int8)
    labels = rng.integers(0, CLASSES, 21, dtype=np.uint8)
    data = DataSet(values, labels, CLASSES, SECRET, 0)
    whole = data.chunk(0, 21, SOLD)
    size = rows.row_size(FEATURES)
    leaves = [whole.hashes[i : i + 32] for i in range(0, len(whole.hashes), 32)]
    assert data.root == merkle.root_of_hashes(leaves)
    assert len(leaves) == 42
    assert len(whole.sealed) == 42 * size
    assert whole.proof == ()
    got_values, got_labels = opened(data.chunk(4, 11, SOLD), data, 4, 11)
    assert (got_values == values[4:11]).all()
    assert (got_labels == labels[4:11]).all()
    assert data.chunk(6, 7, SOLD).proof[0] == merkle.node_hash(leaves[14], leaves[15])


def test_salts_hide_equal_rows() -> None:
    same = DataSet(np.zeros((4, 2), np.int8), np.zeros(4, np.uint8), 2, SECRET, 0)
    other = DataSet(np.zeros((4, 2), np.int8), np.zeros(4, np.uint8), 2, b"t" * 32, 0)
    hashes = same.chunk(0, 4, SOLD).hashes
    assert len({hashes[i : i + 32] for i in range(0, len(hashes), 32)}) == 8
    assert same.root != other.root
    assert same.root == DataSet(np.zeros((4, 2), np.int8), np.zeros(4, np.uint8), 2, SECRET, 0).root


def test_a_spoiled_row_is_told_after_as_much_work_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the moment of the complaint would say which row, and so which choice, was spoiled."""
    data = a_data_set(13)
    chunk, size = data.chunk(3, 9, SOLD), rows.row_size(FEATURES)
    work: list[int] = []
    for row in (3, 8):
        tried: list[int] = []
        bad = bytearray(chunk.sealed)
        bad[(row - 3) * 2 * size : (row - 2) * 2 * size] = bytes(2 * size)

        def counted(key: bytes, number: int, plain: bytes, tried: list[int] = tried) -> bytes:
            tried.append(number)
            return encrypt_row(key, number, plain)

        monkeypatch.setattr(rows, "encrypt_row", counted)
        with pytest.raises(MarketError, match=f"row {row} is none"):
            opened(dataclasses.replace(chunk, sealed=bytes(bad)), data, 3, 9)
        work.append(len(tried))
    assert work == [6, 6]


def test_any_flipped_byte_is_found_but_of_what_was_not_chosen() -> None:
    data = a_data_set(13)
    chunk = data.chunk(3, 6, SOLD)
    size = rows.row_size(FEATURES)
    for i in range(len(chunk.hashes)):
        bad = bytearray(chunk.hashes)
        bad[i] ^= 1
        with pytest.raises(MarketError, match="sign no receipt"):
            opened(dataclasses.replace(chunk, hashes=bytes(bad)), data, 3, 6)
    for i in range(len(chunk.sealed)):
        bad = bytearray(chunk.sealed)
        bad[i] ^= 1
        broken = dataclasses.replace(chunk, sealed=bytes(bad))
        if i // size % 2 == HELD.choices[(3 + i // (2 * size)) % 3]:
            with pytest.raises(MarketError, match="none of its two variants"):
                opened(broken, data, 3, 6)
        else:
            opened(broken, data, 3, 6)
    for i in range(len(chunk.proof)):
        path = list(chunk.proof)
        path[i] = Digest(bytes(32))
        with pytest.raises(MarketError, match="sign no receipt"):
            opened(dataclasses.replace(chunk, proof=tuple(path)), data, 3, 6)


def test_a_chunk_is_refused_for_other_rows_than_due() -> None:
    data = a_data_set(20)
    chunk = data.chunk(4, 8, SOLD)
    for start, stop in ((5, 9), (4, 7), (0, 4)):
        with pytest.raises(MarketError, match="due are"):
            opened(chunk, data, start, stop)
    with pytest.raises(MarketError, match="sign no receipt"):
        opened(dataclasses.replace(chunk, start=8), data, 8, 12)
    with pytest.raises(MarketError, match=r"rows 18\.\.20"):
        opened(chunk, data, 18, 21)


def test_a_proof_of_another_length_is_refused() -> None:
    data = a_data_set(20)
    chunk = data.chunk(4, 7, SOLD)
    with pytest.raises(MarketError, match="too early"):
        opened(dataclasses.replace(chunk, proof=chunk.proof[:-1]), data, 4, 7)
    with pytest.raises(MarketError, match="too many"):
        opened(dataclasses.replace(chunk, proof=(*chunk.proof, chunk.proof[0])), data, 4, 7)


def test_committed_rows_out_of_range_are_found_by_the_buyer() -> None:
    """The seller's tree is hers to build: a right proof says nothing about the values under it."""
    size = rows.row_size(1)
    for body, reason in ((b"\x00\x80", "-128"), (b"\x03\x00", "label 3")):
        row = bytes(16) + body
        assert len(row) == size
        chunk = Chunk(0, 2 * merkle.leaf_hash(row), 2 * encrypt_row(b"k", 0, row), ())
        with pytest.raises(MarketError, match=reason):
            open_chunk(chunk, merkle.root([row, row]), 1, 1, 3, 0, 1, Held(0, (0,), (b"k",)))


@pytest.mark.parametrize(
    ("values", "labels", "reason"),
    [
        (np.zeros((3, 2), np.int16), np.zeros(3, np.uint8), "int16"),
        (np.zeros((3, 2), np.int8), np.zeros(4, np.uint8), "3 rows"),
        (np.full((3, 2), -128, np.int8), np.zeros(3, np.uint8), "-128"),
        (np.zeros((3, 2), np.int8), np.full(3, 9, np.uint8), "label 9"),
        (np.zeros((0, 2), np.int8), np.zeros(0, np.uint8), "0 rows"),
    ],
)
def test_a_data_set_that_cannot_be_sold_is_refused(values: rows.Features, labels: rows.Labels, reason: str) -> None:
    with pytest.raises(MarketError, match=reason):
        DataSet(values, labels, 3, SECRET)


@pytest.mark.parametrize(("count", "miners"), [(10, 1), (1_000, 3), (1_437, 3), (61, 6), (1_024, 7)])
def test_plan_covers_all_rows_once_and_evenly(count: int, miners: int) -> None:
    shares = plan(count, miners)
    runs = [run for share in shares for run in share]
    assert runs[0][0] == 0
    assert runs[-1][1] == count
    assert all(a[1] == b[0] for a, b in itertools.pairwise(runs))
    sizes = [share[-1][1] - share[0][0] for share in shares]
    assert max(sizes) - min(sizes) <= 1
    for share in shares:
        parts = [stop - start for start, stop in share]
        assert len(parts) == 10
        assert min(parts) >= 1
        assert max(parts) - min(parts) <= 1


def test_plan_refuses_empty_chunks_and_unknown_places() -> None:
    with pytest.raises(MarketError, match="every chunk needs a row"):
        plan(29, 3)
    with pytest.raises(MarketError, match="chunk 10 of miner 0"):
        chunk_range(100, 3, 0, 10)
    with pytest.raises(MarketError, match="0 miners"):
        chunk_range(100, 0, 0, 0)


def test_a_chunk_larger_than_the_limit_is_refused() -> None:
    with pytest.raises(MarketError, match="more than a chunk"):
        open_chunk(Chunk(0, b"", b"", ()), Digest(bytes(32)), 1 << 20, 4_096, 10, 0, 1 << 13, HELD)
