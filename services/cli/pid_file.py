"""The file by which commands know whether `pofl testnet up`, or `pofl join`, runs from a folder, and in which process."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TextIO

from core.errors import ConfigError
from services.testnet.layout import Layout

__all__ = ["held", "running"]

PID_FILE: Final = "supervisor.pid"


@contextlib.contextmanager
def held(folder: Path, taken: str) -> Iterator[None]:
    """Lets `down` find us, and keeps a second one from starting the processes of ``folder``. Raises ConfigError: ``taken``."""
    path = folder / PID_FILE
    try:
        file = path.open("a+", encoding="ascii")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from None
    with file:
        if not _lock(file):
            raise ConfigError(taken)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def running(layout: Layout) -> int | None:
    """The process that runs the testnet. A number that an ended one left behind may be anybody's by now: the lock tells."""
    try:
        with (layout.folder / PID_FILE).open(encoding="ascii") as file:
            return None if _lock(file) else int(file.read())
    except (OSError, ValueError):
        return None


def _lock(file: TextIO) -> bool:
    """Take the file until it is closed or this process ends; whether nobody else has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
