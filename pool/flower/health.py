"""A child that lives and does not answer is killed (docs/adr/0144): what started it then deals with a child that died."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

__all__ = ["end_if_silent"]

SLICE_S = 3.0
"""How often it is asked whether it lives, and how long one wait for its answer is."""
SILENT_SLICES = 4
"""Silent for so many waits, it is killed. Several short ones: when this process itself was held up, one ends too early."""

_log = logging.getLogger(__name__)


class Killable(Protocol):
    name: str

    def kill(self) -> None: ...


async def end_if_silent(child: Killable, ping: Callable[[], Awaitable[object]]) -> None:
    """``ping``: ends when the child has answered. Returns when the child was killed."""
    while True:
        answer = asyncio.ensure_future(ping())
        try:
            for _ in range(SILENT_SLICES):
                if (await asyncio.wait({answer}, timeout=SLICE_S))[0]:
                    break
            else:
                _log.error("the %s lives and has not answered for %g s: killing it", child.name, SILENT_SLICES * SLICE_S)
                child.kill()
                return
        finally:
            answer.cancel()
        await asyncio.sleep(SLICE_S)
