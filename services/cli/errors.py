"""How the command line ends: one sentence on standard error and a documented exit code, never a traceback."""

from __future__ import annotations

import asyncio
import functools
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from core.errors import PoflError
from services.runtime.lifecycle import exit_code

__all__ = ["heeds_ctrl_c", "runs"]

P = ParamSpec("P")
R = TypeVar("R")


def runs(command: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, R]:
    """A command written as a coroutine, run to its end, with errors of the tree as one sentence."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return asyncio.run(command(*args, **kwargs))
        except PoflError as error:
            sys.stderr.write(f"error: {error.message}\n")
            raise SystemExit(exit_code(error)) from None
        except KeyboardInterrupt:
            raise SystemExit(130) from None

    return wrapper


def heeds_ctrl_c() -> None:
    """Before a command computes without awaiting anything: asyncio would let the first Ctrl-C wait for the next await."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
