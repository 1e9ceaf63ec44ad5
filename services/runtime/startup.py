"""What a process does before anything else: load its modules, and tie its life to the one that started it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Final

__all__ = ["PARENT", "allow_files", "end_with_parent", "loading"]

PARENT: Final = "POFL_PARENT"
"""Environment variable: number of the process with which this one ends."""
PR_SET_PDEATHSIG: Final = 1


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Within it Ctrl-C ends the process at once, by the signal itself: there is nothing to undo, and no traceback to read.

    ::

        with loading():
            from node.app import main
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread may say what a signal does
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def end_with_parent(env: Mapping[str, str]) -> None:
    """Have the system send SIGTERM when the process that ``POFL_PARENT`` names ends, even by SIGKILL. Linux only.

    A testnet whose supervisor was killed would otherwise run on, with nobody who could stop it.
    """
    parent = env.get(PARENT, "")
    if not parent.isdecimal() or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):  # it ended before we asked
        os.kill(os.getpid(), signal.SIGTERM)


def allow_files() -> int:
    """Let this process open as many files as its user may; that number.

    Connections are files, and so are the store's tables: with the usual soft limit of 1,024 a thousand connections would keep
    a node from opening its own data.
    """
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (OSError, ValueError):
        return soft
    return most
