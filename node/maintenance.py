"""What is done to a stored chain while its node is stopped: verify, reindex, export, import, prune (docs/operations.md).

Nothing here trusts what is stored: blocks are executed again, from the genesis document or from the state that pruning kept,
and every certificate is checked against the validators of its height.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

from core.chain import rules
from core.chain import verify as checks
from core.chain.block import Block, Certificate, SignedHeader
from core.chain.messages import ConsensusRecord
from core.chain.state import State, decode_state, encode_scalars, genesis_state, state_root
from core.codec import decode, encode
from core.errors import BlockError, ChainError, CorruptError, InputError, NotFoundError, StorageError, WrongChainError
from core.ids import BlockHash, Height, StateRoot, TxId, short
from core.params import Genesis
from node import rows
from node.archive import ArchiveReader, ArchiveWriter
from node.catch_up import CatchUp, final_state
from node.light import LightService
from node.rows import Pruning, Root, WorkRecord, advice_sentence, at, transaction_ids, without_advice
from node.store import ChainStore, read_snapshot
from services.storage import KeyValueStore

__all__ = ["Imported", "Verified", "export_chain", "import_chain", "prune_chain", "rebuild", "verify_chain"]

T = TypeVar("T")

SYNC_EVERY: Final = 64
"""Blocks between two synced writes where somebody else has the blocks too."""

Progress = Callable[[int, int], None]
"""Called with the height that is done and the last one."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found to be right."""

    height: Height
    executed: int
    """Blocks executed again."""
    pruned: int
    """Older blocks of which only headers are here: their links were checked."""
    state_root: StateRoot
    voted: Height
    """The height of the last votes, 0 without any. It may lie beyond the next height after a `reindex`."""


# -- verify ------------------------------------------------------------------------------------------------------------


def verify_chain(kv: KeyValueStore, genesis: Genesis, progress: Progress) -> Verified:
    """Check everything that is stored.

    Raises:
        CorruptError: what is stored contradicts itself; the message says at which height, and what to do.
        BlockError: a block or certificate breaks a rule of the chain.
    """
    tip = _tip(kv, genesis)
    pruning = _pruning(kv)
    origin = genesis_state(genesis)
    before = Root(BlockHash(origin.tip.block_hash), state_root(origin))
    for height in range(1, pruning.base + 1):
        before = _check_pruned(kv, genesis, Height(height), before, whole=height >= pruning.floor)
        progress(height, tip)
    state = origin
    if pruning.base:
        state = read_snapshot(kv, pruning.base, genesis, before.state_root)
        if state.tip.block_hash != before.block_hash:
            raise _damaged(pruning.base, f"the kept state is after block {short(state.tip.block_hash)}")
    transactions = sum(len(_block(kv, Height(h)).decoded_body().transactions) for h in range(pruning.floor, pruning.base + 1))
    for height in range(pruning.base + 1, tip + 1):
        state, ids = _check_block(kv, genesis, state)
        transactions += len(ids)
        progress(height, tip)
    _check_counts(kv, tip, pruning, transactions)
    store = ChainStore(kv, genesis)
    root = state_root(state)
    stored = state_root(store.state)
    if stored != root:
        raise _damaged(tip, f"the stored tables have root {short(stored)}, executing the blocks gives {short(root)}")
    voted = _check_own(kv, genesis, tip, store.silent_until)
    return Verified(tip, tip - pruning.base, pruning.floor - 1, root, voted)


def _check_pruned(kv: KeyValueStore, genesis: Genesis, height: Height, before: Root, whole: bool) -> Root:
    """Links and signature of a block that cannot be executed any more. Whose votes made it final is not kept."""
    if whole:
        block = _block(kv, height)
        signed = block.header
        _rule(height, lambda: checks.check_body(signed.decoded(), block.decoded_body()))
    else:
        signed = _get(kv, SignedHeader, rows.HEADER, height, "header")
    header = _rule(height, lambda: checks.check_header_signature(signed))
    if (header.height, header.prev_hash, header.chain_id) != (height, before.block_hash, genesis.chain_id):
        raise BlockError(f"block {height} does not follow the one before: its parent is {short(header.prev_hash)}. {_BROKEN}")
    if header.parent_state_root != before.state_root:
        parent = short(header.parent_state_root)
        raise _damaged(height, f"its parent's state root is {parent}, stored is {short(before.state_root)}")
    certificate = _get(kv, Certificate, rows.CERTIFICATE, height, "certificate")
    if (certificate.height, certificate.block_hash) != (height, signed.block_hash):
        raise _damaged(height, f"its certificate is for block {short(certificate.block_hash)}")
    return _check_indexes(kv, height, signed.block_hash, None)


def _check_block(kv: KeyValueStore, genesis: Genesis, state: State) -> tuple[State, list[TxId]]:
    """Everything about the block after ``state``; the state after it."""
    height = Height(state.height + 1)
    block = _block(kv, height)
    certificate = _get(kv, Certificate, rows.CERTIFICATE, height, "certificate")
    after = _rule(height, lambda: final_state(state, block, certificate))
    root = state_root(after)
    _check_indexes(kv, height, block.block_hash, root)
    ids = transaction_ids(block)
    for tx_id in ids:
        if kv.get(rows.TX + tx_id) != encode(rows.Place(height)):
            raise _damaged(height, f"the index does not lead to its transaction {short(tx_id)}")
    if kv.get(rows.SNAPSHOT + at(height) + bytes(4)) is not None:
        read_snapshot(kv, height, genesis, root)
    return after, ids


def _check_indexes(kv: KeyValueStore, height: Height, block_hash: BlockHash, root: StateRoot | None) -> Root:
    stored = _get(kv, Root, rows.ROOT, height, "state root")
    if stored.block_hash != block_hash or (root is not None and stored.state_root != root):
        wanted = "" if root is None else f" and state root {short(root)}"
        raise _damaged(
            height, f"stored are block {short(stored.block_hash)} and state root {short(stored.state_root)}, "
            f"it is block {short(block_hash)}{wanted}",
        )  # fmt: skip
    if kv.get(rows.HASH + block_hash) != encode(rows.Place(height)):
        raise _damaged(height, "the index of blocks does not lead to it")
    return stored


def _check_counts(kv: KeyValueStore, tip: Height, pruning: Pruning, transactions: int) -> None:
    """Rows that no block explains. Reading them all also checks LevelDB's checksums of everything."""
    kept = tip - pruning.floor + 1
    wanted = {
        rows.BLOCK: kept, rows.CERTIFICATE: tip, rows.ROOT: tip, rows.HASH: tip, rows.HEADER: tip - kept, rows.TX: transactions,
    }  # fmt: skip
    found = dict.fromkeys(wanted, 0)
    for key, _ in kv.iterate():
        if key[:1] in found:
            found[key[:1]] += 1
    for prefix, count in wanted.items():
        if found[prefix] != count:
            raise _damaged(tip, f"{found[prefix]} rows of kind {prefix.decode()!r} are stored, the blocks need {count}")


def _check_own(kv: KeyValueStore, genesis: Genesis, tip: Height, silent_until: Height) -> Height:
    """The height of the last votes. They may be ahead of the blocks only where the node is silent up to there."""
    voted = Height(0)
    try:
        data = kv.get(rows.CONSENSUS)
        if data is not None:
            record = decode(ConsensusRecord, data)
            voted = record.height
            if record.chain_id != genesis.chain_id:
                raise _damaged(tip, f"the votes are of height {voted} of chain {short(record.chain_id)}")
            if voted > tip + 1 and silent_until < voted:
                raise _damaged(tip, f"the votes are of height {voted}, the blocks before it are not here")
        for key, value in kv.iterate(rows.WORK):
            decode(WorkRecord, value)
            if not 0 < int.from_bytes(key[1:], "big") <= tip:
                raise _damaged(tip, f"there is a work record of height {int.from_bytes(key[1:], 'big')}")
    except InputError as error:
        raise _damaged(tip, f"a record of this node cannot be read: {error.message}") from None
    return voted


# -- reindex -----------------------------------------------------------------------------------------------------------


def rebuild(old: KeyValueStore, new: KeyValueStore, genesis: Genesis, progress: Progress) -> tuple[Height, str]:
    """Build in ``new``, which is empty, everything that follows from the blocks of ``old``, and copy what does not.

    Every block is checked as if a peer had sent it. Returns the last height that is right, and what was wrong after it (empty
    if nothing was). The votes are the caller's to copy.

    Raises CorruptError if not even the kept state of a pruned store can be read, StorageError.
    """
    pruning, tip = _pruning(old), _tip(old, genesis)
    if pruning.base:
        _copy_pruned(old, new, genesis, pruning)
    store = ChainStore(new, genesis)
    light = LightService(new, store)
    wrong = ""
    while store.state.height < tip:
        height = Height(store.state.height + 1)
        try:
            block = _block(old, height)
            certificate = _get(old, Certificate, rows.CERTIFICATE, height, "certificate")
            after = _rule(height, functools.partial(final_state, store.state, block, certificate))
            work = _work(old, height)
        except (CorruptError, ChainError) as error:
            wrong = without_advice(error.message)
            break
        light.note(store.state)
        store.commit(block, certificate, after, transaction_ids(block), work, sync=False)
        progress(height, tip)
    for prefix in range(1, 256):
        if bytes([prefix]) in _MADE:
            continue
        for key, value in _readable(old, bytes([prefix])):
            # What light clients are served of these blocks was made again just now; of pruned ones it is copied.
            if new.get(key) is None:
                new.put_batch({key: value}, sync=False)
    new.put_batch({})
    return store.state.height, wrong


_MADE: Final = (
    rows.BLOCK, rows.CERTIFICATE, rows.ROOT, rows.HASH, rows.TX, rows.WORK, rows.ROW, rows.SCALARS, rows.GENESIS,
    rows.CONSENSUS, rows.HEADER, rows.PRUNING, rows.SNAPSHOT,
)  # fmt: skip
"""Kinds of rows that are made again or checked; what other parts of a node keep is copied as far as it can be read."""


def _copy_pruned(old: KeyValueStore, new: KeyValueStore, genesis: Genesis, pruning: Pruning) -> None:
    """What of a pruned store cannot be made again, after checking it."""
    origin = genesis_state(genesis)
    before = Root(BlockHash(origin.tip.block_hash), state_root(origin))
    puts: dict[bytes, bytes] = {}
    for number in range(1, pruning.base + 1):
        height = Height(number)
        before = _check_pruned(old, genesis, height, before, whole=number >= pruning.floor)
        kinds = [rows.CERTIFICATE, rows.ROOT, rows.BLOCK if number >= pruning.floor else rows.HEADER]
        for key in [kind + at(number) for kind in kinds]:
            value = old.get(key)
            assert value is not None
            puts[key] = value
        puts[rows.HASH + before.block_hash] = encode(rows.Place(height))
        if number >= pruning.floor:
            puts |= {rows.TX + tx_id: encode(rows.Place(height)) for tx_id in transaction_ids(_block(old, height))}
            work = _work(old, height)
            if work is not None:
                puts[rows.WORK + at(number)] = encode(work)
        if number % SYNC_EVERY == 0:
            new.put_batch(puts, sync=False)
            puts = {}
    state = read_snapshot(old, pruning.base, genesis, before.state_root)
    puts |= dict(old.iterate(rows.SNAPSHOT + at(pruning.base)))
    puts |= {rows.PRUNING: encode(pruning), rows.SCALARS: encode_scalars(state), rows.GENESIS: encode(genesis)}
    rows.changes(genesis_state(genesis), state, puts, [])
    new.put_batch(puts)


def _work(kv: KeyValueStore, height: Height) -> WorkRecord | None:
    """What this node knew of a work height; without it the chain is whole."""
    try:
        data = kv.get(rows.WORK + at(height))
        return None if data is None else decode(WorkRecord, data)
    except (CorruptError, InputError):
        return None


def _readable(kv: KeyValueStore, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    try:
        yield from kv.iterate(prefix)
    except CorruptError:
        return


# -- export and import -------------------------------------------------------------------------------------------------


def export_chain(store: ChainStore, writer: ArchiveWriter, first: Height, progress: Progress) -> Height:
    """Write the blocks from ``first`` on; the last height. Raises PrunedError, CorruptError, and what the sink raises."""
    tip = store.state.height
    for number in range(first, tip + 1):
        stored = store.block(Height(number))
        writer.block(stored.block, stored.certificate)
        progress(number, tip)
    writer.end(tip)
    return tip


@dataclass(frozen=True, slots=True)
class Imported:
    height: Height
    """Of the chain now."""
    added: int
    known: int
    """Blocks that were here already."""


def import_chain(kv: KeyValueStore, store: ChainStore, reader: ArchiveReader, progress: Progress) -> Imported:
    """Add the blocks of a stream that ``store``, over ``kv``, has not. Each is checked as if a peer had sent it, then stored.

    What was right is kept whatever comes after it. Raises NotFoundError (the stream begins later than this chain ends),
    BlockError, WrongChainError, MalformedError, LimitError, StorageError.
    """
    ours, theirs = store.state.genesis, reader.genesis
    if theirs.chain_id != ours.chain_id:
        raise WrongChainError(
            f"the file is of chain {theirs.name} {theirs.chain_id.hex()}, this node is on chain {ours.name} "
            f"{ours.chain_id.hex()}: give a file of this chain"
        )
    if reader.first > store.state.height + 1:
        raise NotFoundError(
            f"the file begins at height {reader.first}, this chain ends at {store.state.height}: import what is between first",
            first=reader.first, height=store.state.height,
        )  # fmt: skip
    new = CatchUp(store, LightService(kv, store))
    try:
        added, known = _add_blocks(new, store, reader, progress)
    finally:
        new.write()
    return Imported(store.state.height, added, known)


def _add_blocks(new: CatchUp, store: ChainStore, reader: ArchiveReader, progress: Progress) -> tuple[int, int]:
    """How many blocks were added, and how many were here already."""
    added = known = 0
    here = store.state.height
    for found in reader.blocks():
        height = found.certificate.height
        if height <= here:
            mine = store.header(height).block_hash
            if mine != found.block.block_hash:
                raise BlockError(
                    f"block {height} of the file is {short(found.block.block_hash)}, here it is {short(mine)}: two final "
                    "blocks of one height mean that more than a third of the validators cheated; keep both files as evidence"
                )
            known += 1
        else:
            _rule(height, functools.partial(new.add, found.block, found.certificate), _KEPT)
            added += 1
        progress(height, 0)
    return added, known


# -- prune -------------------------------------------------------------------------------------------------------------


def prune_chain(store: ChainStore, genesis: Genesis, keep: int, progress: Progress) -> Pruning:
    """Drop all but the last ``keep`` blocks. Killed at any instant it goes on when it is called again."""
    target = Height(max(0, store.state.height - keep))
    state = store.base_state()
    while state.height < target:
        stored = store.block(Height(state.height + 1))
        state = _rule(Height(state.height + 1), functools.partial(rules.apply_block, state, stored.block))
        progress(state.height, target)
    for _ in store.prune(state):
        pass
    return store.pruning


# -- shared ------------------------------------------------------------------------------------------------------------


_BROKEN: Final = (
    "This is no damage of the disk: these blocks were made by other rules or other keys. Compare the release and the genesis "
    "file with those of other nodes"
)
_KEPT: Final = "The blocks before it were imported and are kept"


def _rule(height: Height, check: Callable[[], T], advice: str = _BROKEN) -> T:
    try:
        return check()
    except ChainError as error:
        kind = WrongChainError if isinstance(error, WrongChainError) else BlockError
        raise kind(f"block {height}: {error.message}. {advice}", height=height) from error


def _damaged(height: int, what: str) -> CorruptError:
    return CorruptError(f"height {height} is damaged: {what}. {advice_sentence()}", height=height)


def _block(kv: KeyValueStore, height: Height) -> Block:
    return _get(kv, Block, rows.BLOCK, height, "block")


def _get(kv: KeyValueStore, kind: type[T], prefix: bytes, height: Height, what: str) -> T:
    try:
        data = kv.get(prefix + at(height))
        if data is None:
            raise _damaged(height, f"its {what} is missing")
        return decode(kind, data)
    except InputError as error:
        raise _damaged(height, f"its {what} cannot be read: {error.message}") from None
    except StorageError as error:
        if isinstance(error, CorruptError) and "height" not in error.values:
            raise CorruptError(f"height {height}: {error.message}", height=height) from error
        raise


def _tip(kv: KeyValueStore, genesis: Genesis) -> Height:
    """The last height of which there is something: as the state says, or as far as there are blocks."""
    tip = _pruning(kv).floor - 1
    try:
        head = kv.get(rows.SCALARS)
        tip = max(tip, 0 if head is None else decode_state(head, genesis).height)
    except (CorruptError, InputError):
        pass
    step = 1 << 32
    while step:
        while _is_there(kv, tip + step):
            tip += step
        step //= 2
    return Height(tip)


def _is_there(kv: KeyValueStore, height: int) -> bool:
    try:
        return kv.get(rows.BLOCK + at(height)) is not None
    except CorruptError:
        # With the state's own word for the height this is not asked; without it less is found, never too much.
        return False


def _pruning(kv: KeyValueStore) -> Pruning:
    data = kv.get(rows.PRUNING)
    try:
        return Pruning(Height(0), Height(1)) if data is None else decode(Pruning, data)
    except InputError as error:
        raise _damaged(0, f"the record of pruning cannot be read: {error.message}") from None
