"""Light clients are served every height by a store that was imported, rebuilt or pruned, as by one that followed."""

from __future__ import annotations

import io
from typing import Any

import pytest

from core.chain.light import LightBlock, advance, trust_genesis
from core.errors import NotFoundError
from core.ids import Height
from node.archive import ArchiveReader, ArchiveWriter
from node.light import LightService
from node.maintenance import export_chain, import_chain, prune_chain, rebuild
from node.store import ChainStore
from services.storage import Memory
from tests.stored_chain import GENESIS, commit, steps

TIP = steps()[-1].height


def quiet(*_: int) -> None: ...


def followed(kv: Memory, keep: int = 0) -> ChainStore:
    """As the driver does it."""
    store = ChainStore(kv, GENESIS, keep)
    light = LightService(kv, store)
    for step in steps():
        light.note(store.state)
        commit(store, step)
    return store


def served(kv: Memory) -> list[LightBlock]:
    """After a restart."""
    light = LightService(kv, ChainStore(kv, GENESIS))
    return [light.block(Height(h)) for h in range(1, TIP + 1)]


@pytest.fixture(scope="module")
def wanted() -> list[LightBlock]:
    kv = Memory()
    followed(kv)
    return served(kv)


def test_they_are_what_a_client_can_check(wanted: list[LightBlock]) -> None:
    trusted = trust_genesis(GENESIS)
    for block in wanted:
        trusted = advance(trusted, block)
    assert trusted.height == TIP


def test_an_imported_chain(wanted: list[LightBlock]) -> None:
    old, new = Memory(), Memory()
    stream = io.BytesIO()
    writer = ArchiveWriter(stream)
    writer.head(GENESIS, Height(1))
    export_chain(followed(old), writer, Height(1), quiet)
    stream.seek(0)
    import_chain(new, ChainStore(new, GENESIS), ArchiveReader(stream), quiet)
    assert served(new) == wanted


def test_a_chain_that_is_followed_after_an_import(wanted: list[LightBlock]) -> None:
    """Rows of two writers: the second begins with its own copy of the validators."""
    half, kv, stream = Memory(), Memory(), io.BytesIO()
    part = ChainStore(half, GENESIS)
    for step in steps()[:4]:
        commit(part, step)
    writer = ArchiveWriter(stream)
    writer.head(GENESIS, Height(1))
    export_chain(part, writer, Height(1), quiet)
    stream.seek(0)
    import_chain(kv, ChainStore(kv, GENESIS), ArchiveReader(stream), quiet)
    store = ChainStore(kv, GENESIS)
    light = LightService(kv, store)
    for step in steps()[4:]:
        light.note(store.state)
        commit(store, step)
    assert served(kv) == wanted


@pytest.mark.parametrize("keep", [0, 3])
def test_a_rebuilt_chain(wanted: list[LightBlock], keep: int) -> None:
    """Of a pruned one too: its older rows cannot be made again, and are copied."""
    old, new = Memory(), Memory()
    store = followed(old, keep)
    assert (store.pruning.floor > 1) == bool(keep)
    assert rebuild(old, new, GENESIS, quiet) == (TIP, "")
    assert served(new) == wanted


def test_a_rebuilt_chain_does_not_get_back_damaged_rows(wanted: list[LightBlock]) -> None:
    """Before, what could be made again was overwritten by the old rows."""
    old, new = Memory(), Memory()
    followed(old)
    for key, _ in [*old.iterate(b"l"), *old.iterate(b"v")]:
        old.put_batch({key: b"?"})
    assert rebuild(old, new, GENESIS, quiet) == (TIP, "")
    assert served(new) == wanted


def test_a_chain_that_never_had_such_rows_gets_them(wanted: list[LightBlock]) -> None:
    old, new = Memory(), Memory()
    store = ChainStore(old, GENESIS)
    for step in steps():
        commit(store, step)
    with pytest.raises(NotFoundError):
        LightService(old, store).block(Height(1))
    rebuild(old, new, GENESIS, quiet)
    assert served(new) == wanted


def test_pruned_blocks_are_served_from_their_headers(wanted: list[LightBlock]) -> None:
    kv: Any = Memory()
    store = followed(kv)
    prune_chain(store, GENESIS, 2, quiet)
    assert store.pruning.floor == TIP - 1
    assert served(kv) == wanted
