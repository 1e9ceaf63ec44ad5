"""node.archive: what is written is read, and nothing else is: every byte of a stream is covered by a digest."""

from __future__ import annotations

import io
import random

import pytest

from core.chain.state import genesis_state
from core.errors import BlockError, InputError, LimitError, MalformedError, NotFoundError, WrongChainError
from core.ids import Height
from node.archive import MAGIC, ArchiveReader, ArchiveWriter
from node.maintenance import export_chain, import_chain
from node.store import ChainStore
from services.storage import Memory
from tests.chainkit import make_genesis
from tests.stored_chain import GENESIS, Step, fill, steps

TIP = len(steps())


def quiet(done: int, last: int) -> None:
    """Progress that nobody sees."""


def written(first: int = 1, chosen: tuple[Step, ...] | None = None, end: int | None = TIP) -> bytes:
    out = io.BytesIO()
    writer = ArchiveWriter(out)
    writer.head(GENESIS, Height(first))
    for step in steps()[first - 1 :] if chosen is None else chosen:
        writer.block(step.block, step.certificate)
    if end is not None:
        writer.end(Height(end))
    return out.getvalue()


def load(data: bytes, store: ChainStore | None = None) -> ChainStore:
    memory = Memory()
    store = store or ChainStore(memory, GENESIS)
    import_chain(memory, store, ArchiveReader(io.BytesIO(data)), quiet)
    return store


class Dribble:
    """A pipe that gives a few bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self._source = io.BytesIO(data)

    def read(self, size: int) -> bytes:
        return self._source.read(min(size, 13))


def test_what_is_exported_is_imported() -> None:
    out = io.BytesIO()
    writer = ArchiveWriter(out)
    writer.head(GENESIS, Height(1))
    assert export_chain(fill(Memory()), writer, Height(1), quiet) == TIP
    assert out.getvalue() == written()
    reader = ArchiveReader(Dribble(out.getvalue()))
    assert (reader.genesis, reader.first) == (GENESIS, 1)
    memory = Memory()
    store = ChainStore(memory, GENESIS)
    assert import_chain(memory, store, reader, quiet).added == TIP
    assert reader.ended
    assert reader.offset < len(out.getvalue())
    assert store.state == steps()[-1].state


def test_files_of_parts_are_imported_one_after_another() -> None:
    store = load(written(1, steps()[:5], 5))
    assert store.state.height == 5
    with pytest.raises(NotFoundError, match="begins at height 8, this chain ends at 5: import what is between first"):
        load(written(8), store)
    assert load(written(4), store).state == steps()[-1].state


def test_a_stream_that_was_cut_off_is_good_up_to_its_last_whole_block() -> None:
    whole = written()
    for size in sorted({*range(0, 60, 7), *range(0, len(whole), 997), len(whole) - 1}):
        store = ChainStore(Memory(), GENESIS)
        with pytest.raises(MalformedError, match=r"cut off|is empty|bytes only"):
            load(whole[:size], store)
        assert store.state == [genesis_state(GENESIS), *(s.state for s in steps())][store.state.height]


def test_every_flipped_byte_is_found() -> None:
    rng, whole = random.Random(5), written()
    for _ in range(150):
        data = bytearray(whole)
        place = rng.randrange(len(data))
        data[place] ^= rng.randrange(1, 256)
        with pytest.raises(InputError):
            list(ArchiveReader(io.BytesIO(bytes(data))).blocks())


def test_lengths_are_checked_before_anything_is_read() -> None:
    class Endless:
        def __init__(self) -> None:
            self.given, self._head = 0, io.BytesIO(MAGIC + b"\x01\xff\xff\xff\xff")

        def read(self, size: int) -> bytes:
            piece = self._head.read(size) or bytes(size)
            self.given += len(piece)
            return piece

    source = Endless()
    with pytest.raises(LimitError, match="a frame of 4294967295 bytes"):
        ArchiveReader(source)
    assert source.given < 100


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"something else entirely", "is no file of `pofl chain export`: give one that it wrote"),
        (b"junk", "is no file of `pofl chain export`: give one that it wrote"),
        (b"", "is empty: give one that it wrote"),
        (MAGIC[:3], "has 3 bytes only: export it again, to a new file"),
        (MAGIC + b"\x01\x00", "was cut off in its head, before the first block: export it again, to a new file"),
        (MAGIC[:7] + b"\x02", "has version 2 of the format, this software reads version 1"),
        (MAGIC + b"\x02\x00\x00\x00\x00", "no frame of kind 2 can stand there"),
    ],
)
def test_what_is_no_archive_is_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(MalformedError, match=sentence):
        ArchiveReader(io.BytesIO(data))


def test_blocks_out_of_order_left_out_or_repeated_are_refused() -> None:
    s = steps()
    for chosen in ((s[1], s[0]), (s[0], s[2]), (s[0], s[0])):
        with pytest.raises(MalformedError, match=r"block \d+ stands where block \d+ should"):
            load(written(1, chosen))
    with pytest.raises(MalformedError, match="the end mark says height 9, the last block was 3"):
        load(written(1, s[:3], 9))


def test_a_block_without_its_certificate_is_not_stored() -> None:
    out, s = io.BytesIO(), steps()
    writer = ArchiveWriter(out)
    writer.head(GENESIS, Height(1))
    writer.block(s[0].block, s[0].certificate)
    forged = s[1].certificate.__class__(Height(2), 0, s[1].block.block_hash, s[1].certificate.signatures[:2])
    writer.block(s[1].block, forged)
    store = ChainStore(Memory(), GENESIS)
    with pytest.raises(BlockError, match=r"block 2: .*power 2 of 4 signed, 2/3 are needed.*imported and are kept"):
        load(out.getvalue(), store)
    assert store.state.height == 1


def test_another_chain_does_not_get_in() -> None:
    other = make_genesis(3)
    store = ChainStore(Memory(), other)
    with pytest.raises(WrongChainError, match=r"the file is of chain test .* on chain test .*: give a file of this"):
        load(written(), store)
    assert store.state.height == 0
