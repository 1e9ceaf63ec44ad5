"""Files of which a reader sees the old one or the whole new one, and that are on the disk when the call returns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["replaced", "sync_folder", "write_private"]


@contextmanager
def replaced(path: Path, mode: int = 0o666, is_synced: bool = True) -> Iterator[IO[bytes]]:
    """A file to write that takes ``path``'s place once the block ends, and leaves nothing behind if it raises. Raises OSError.

    ``mode``: who may use it, as far as the umask allows. ``is_synced``: it survives a power cut, not only a killed process.
    """
    partial = path.with_name(path.name + ".part")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            if is_synced:
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    if is_synced:
        sync_folder(path.parent)


def write_private(path: Path, data: bytes) -> None:
    """``path`` holds ``data``, whole or not at all, and only its owner may read it. Raises OSError."""
    with replaced(path, 0o600) as file:
        file.write(data)


def sync_folder(folder: Path) -> None:
    """A file that was made or renamed is only certain once its folder is on the disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
