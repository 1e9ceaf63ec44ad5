"""The mark in a node's store up to which height it must not vote, for who handles a store without running a node."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from services.storage.leveldb import LevelDb

__all__ = ["FOR_EVER", "SILENT", "read_silence", "write_silence"]

SILENT: Final = b"q"
"""node.rows.SILENT: the height, eight bytes big-endian."""
FOR_EVER: Final = (1 << 63) - 1


def read_silence(folder: Path) -> int:
    """Raises what opening the store raises."""
    store = LevelDb(folder, None)
    try:
        return int.from_bytes(store.get(SILENT) or b"", "big")
    finally:
        store.close()


def write_silence(folder: Path, until: int) -> None:
    """The node does not vote at ``until`` or below; what was there before is replaced. Raises what opening the store raises."""
    store = LevelDb(folder, None)
    try:
        store.put_batch({SILENT: until.to_bytes(8, "big")})
    finally:
        store.close()
