"""The folder of a node's chain: opening it, and putting a rebuilt one in its place.

A rebuilt store is made beside the old one and takes its name by two renames. Killed between them, ``chain`` is missing while
the other two are there: neither a node nor a command may then begin a new chain in its place.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from core.codec import decode
from core.errors import ConfigError, CorruptError, InputError, NotFoundError, StorageError, WrongChainError
from core.params import Genesis
from node import rows
from node.store import store_meta
from services.runtime.durable import sync_folder
from services.storage import LevelDb, StoreMeta

__all__ = ["ChainFolder", "open_chain_folder"]

DONE: Final = rows.OTHER + b"rebuilt"
"""In a rebuilt store that has everything."""


def open_chain_folder(data_dir: Path, genesis: Genesis, node: bytes) -> LevelDb:
    """A node's chain, made if there is none. Raises what LevelDb does, CorruptError also after a cut reindex."""
    return ChainFolder(data_dir, genesis, node).open()


@dataclass(frozen=True)
class ChainFolder:
    """Where a node keeps its chain. Without ``genesis`` and ``node`` only what the folder says of itself is known."""

    data_dir: Path
    genesis: Genesis | None = None
    node: bytes | None = None

    @property
    def meta(self) -> StoreMeta | None:
        """What the folder should say of itself, as far as that is known."""
        return None if self.genesis is None or self.node is None else store_meta(self.genesis, self.node)

    @property
    def path(self) -> Path:
        return self.data_dir / "chain"

    @property
    def rebuilt(self) -> Path:
        return self.data_dir / "chain.reindex-new"

    @property
    def replaced(self) -> Path:
        return self.data_dir / "chain.reindex-old"

    @property
    def salvaged(self) -> Path:
        return self.data_dir / "chain.reindex-copy"

    def open(self) -> LevelDb:
        """Raises LockedError, WrongChainError, CorruptError, NotFoundError, StorageFullError, ConfigError."""
        if self.data_dir.exists() and not self.data_dir.is_dir():
            raise ConfigError(f"{self.data_dir} is a file and no folder: give the data_dir of a node that ran")
        if not self.path.exists() and self.replaced.exists():
            raise CorruptError(f"a reindex of {self.path} was cut short: run `pofl chain reindex` again")
        return self._open(self.path)

    def open_rebuilt(self, like: LevelDb) -> LevelDb:
        """An empty store for the same node as ``like``."""
        shutil.rmtree(self.rebuilt, ignore_errors=True)
        return LevelDb(self.rebuilt, like.meta, rows.ADVICE)

    def genesis_of(self, kv: LevelDb) -> Genesis:
        """The genesis document: as given, else as stored. Raises NotFoundError, CorruptError, WrongChainError."""
        genesis = self.genesis
        if genesis is None:
            data = kv.get(rows.GENESIS)
            if data is None:
                raise NotFoundError(f"{kv.folder} does not hold its genesis document: give the node's --config FILE")
            try:
                genesis = decode(Genesis, data)
            except InputError as error:
                raise CorruptError(
                    f"the genesis document in {kv.folder} is damaged, or of another release ({error.message}): give the node's "
                    "--config FILE"
                ) from None
        if genesis.chain_id != kv.meta.genesis_hash:
            raise WrongChainError(
                f"{kv.folder} is of chain {kv.meta.genesis_hash.hex()[:8]}, the genesis document is of "
                f"{genesis.chain_id.hex()[:8]}: give the configuration that the folder was made with"
            )
        return genesis

    def resume_swap(self) -> bool:
        """After a kill between the two renames: whether the rebuilt store took its place. Raises StorageError."""
        if self.path.exists() or not self.replaced.exists():
            return False
        try:
            if self._is_done():
                self.rebuilt.rename(self.path)
                self._clean()
                return True
            self.replaced.rename(self.path)
        except OSError as error:
            raise StorageError(f"cannot rename in {self.data_dir}: {error.strerror or error}") from error
        return False

    def swap(self) -> None:
        """Put the rebuilt store, which is closed and whole, in the place of the old one. Raises StorageError."""
        try:
            shutil.rmtree(self.replaced, ignore_errors=True)
            self.path.rename(self.replaced)
            self.rebuilt.rename(self.path)
            sync_folder(self.data_dir)
        except OSError as error:
            raise StorageError(f"cannot rename in {self.data_dir}: {error.strerror or error}") from error
        self._clean()

    def _open(self, path: Path) -> LevelDb:
        return LevelDb(path, self.meta, rows.ADVICE)

    def _is_done(self) -> bool:
        if not self.rebuilt.exists():
            return False
        try:
            kv = self._open(self.rebuilt)
        except (StorageError, NotFoundError):
            return False
        try:
            return kv.get(DONE) is not None
        finally:
            kv.close()

    def _clean(self) -> None:
        for path in (self.replaced, self.salvaged):
            shutil.rmtree(path, ignore_errors=True)
