"""``pofl chain reindex``: a store built anew from the blocks of one that is damaged, put in its place at once."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Final

from core.chain.messages import ConsensusRecord
from core.codec import decode
from core.errors import CorruptError, InputError
from core.ids import Height
from core.params import Genesis
from node import rows
from node.folder import DONE, ChainFolder
from node.maintenance import Progress, rebuild
from node.store import ChainStore
from services.storage import LevelDb

__all__ = ["Rebuilt", "reindex"]

RESYNC: Final = (
    "move the folder away and start again: the node fetches the chain from its peers (a validator sets silent_until first)"
)


_LOST: Final = "votes_lost"


@dataclass(frozen=True, slots=True)
class Rebuilt:
    height: Height
    """Of the store that is there now."""
    wrong: str
    """What ended the blocks; empty if all were right."""
    votes_kept: bool


def reindex(folder: ChainFolder, silent_until: Height | None, progress: Progress) -> Rebuilt:
    """Build the store again from its blocks. Killed at any instant it leaves the old one, the new one, or asks to be run again.

    ``silent_until``: where a validator whose votes cannot be read must not vote.

    Raises LockedError, CorruptError (nothing can be read, or a validator's votes cannot and ``silent_until`` is None),
    NotFoundError, WrongChainError, StorageFullError, StorageError.
    """
    folder.resume_swap()
    try:
        found = _rebuild(folder, folder.open(), True, silent_until, progress)
    except CorruptError as error:
        if _LOST in error.values:
            raise
        # LevelDB cannot open it, or a damaged part hides what is needed: its own repair leaves that part out.
        try:
            salvaged = LevelDb.salvage(folder.path, folder.salvaged, folder.meta, RESYNC)
            found = _rebuild(folder, salvaged, False, silent_until, progress)
        finally:
            shutil.rmtree(folder.salvaged, ignore_errors=True)
    folder.swap()
    return found


def _rebuild(folder: ChainFolder, old: LevelDb, is_whole: bool, silent_until: Height | None, progress: Progress) -> Rebuilt:
    """Make the new store beside the old one, and close both."""
    try:
        genesis = folder.genesis_of(old)
        new = folder.open_rebuilt(old)
        try:
            found = _build(old, new, genesis, is_whole, silent_until, progress)
        except BaseException:
            new.close()
            shutil.rmtree(folder.rebuilt, ignore_errors=True)
            raise
        new.close()
        return found
    finally:
        old.close()


def _build(
    old: LevelDb, new: LevelDb, genesis: Genesis, is_whole: bool, silent_until: Height | None, progress: Progress
) -> Rebuilt:
    height, wrong = rebuild(old, new, genesis, progress)
    store = ChainStore(new, genesis)
    votes, is_known = _votes(old) if is_whole else (None, False)
    is_validator = any(v.node_id == old.meta.node for v in store.state.validators)
    if votes is not None:
        store.put_consensus(votes)
        voted = decode(ConsensusRecord, votes).height
        if voted > height + 1:
            # Of the heights between, this node's votes are not on record any more.
            store.be_silent(voted)
    elif is_validator and silent_until is None and not is_known:
        raise CorruptError(
            "what this validator voted cannot be read any more, and a validator that votes twice at a height loses its bond: "
            "ask another node for its height (`pofl chain tip`), add 1, and give that with --silent-until; nothing was changed",
            **{_LOST: True},
        )
    if silent_until is not None:
        store.be_silent(silent_until)
    new.put_batch({DONE: b"1"})
    return Rebuilt(height, wrong, is_known)


def _votes(kv: LevelDb) -> tuple[bytes | None, bool]:
    """The record as it was written last, if there is one; and whether that is known."""
    try:
        data = kv.get(rows.CONSENSUS)
        if data is not None:
            decode(ConsensusRecord, data)
    except (CorruptError, InputError):
        return None, False
    return data, True
