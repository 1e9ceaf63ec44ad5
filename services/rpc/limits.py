"""How much one caller may ask: calls per second and calls at once. Sizes that hold for every message are here too."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from core.errors import LimitError

__all__ = ["CHUNK", "MAX_MESSAGE", "MAX_SUBMITTED", "REQUEST_MS", "CallerLimits", "ConnectionLimits", "Limiter"]

MAX_MESSAGE = 4 * 1024 * 1024
"""Bytes of one message, whole. Anything larger is a blob."""
CHUNK = 256 * 1024
"""Bytes of blob content in one message."""
MAX_SUBMITTED = 64
"""Transactions that are handed in with one call."""


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """Limits for one caller of one server."""

    rate: float = 200.0
    """Calls per second in the long run."""
    burst: int = 400
    """Calls that may come at once after a quiet time."""
    concurrent: int = 64
    """Calls that may be open at once; a stream counts as one for as long as it lives."""


REQUEST_MS = 30_000
"""For a single request to arrive whole, 4 MiB at most, once the head of its call is there."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How long a server waits for the other side of a connection, before and between calls (docs/adr/0153)."""

    most: int = 1_000
    """Connections at once, those under a TLS handshake too. One more is closed as it comes."""
    handshake_ms: int = 10_000
    """For TLS and the first HTTP/2 frame. Nobody has shown a certificate until then."""
    ping_ms: int = 20_000
    """Silence after which a ping is sent."""
    pong_ms: int = 20_000
    """For its answer."""
    idle_ms: int = 300_000
    """Without any call, also while bytes of a frame drip in. A client of gRPC connects again by itself."""
    request_ms: int = REQUEST_MS


@dataclass(slots=True)
class _Usage:
    tokens: float
    updated: float
    running: int = 0


class Limiter:
    """Token bucket and concurrency count per caller.

    Remembers at most ``callers`` callers: the longest idle one is forgotten, which can only give it a full bucket again.
    """

    def __init__(self, limits: CallerLimits, callers: int = 1024, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._callers = callers
        self._monotonic = monotonic
        self._usage: OrderedDict[str, _Usage] = OrderedDict()

    @contextmanager
    def enter(self, caller: str) -> Iterator[None]:
        """Around one call. Raises LimitError before the call does anything."""
        usage = self._take(caller)
        usage.running += 1
        try:
            yield
        finally:
            usage.running -= 1

    def charge(self, caller: str, count: int) -> None:
        """For something that costs as much as ``count`` calls. Raises LimitError, and nothing is counted then."""
        usage = self._refilled(caller)
        if usage.tokens < count:
            raise LimitError(f"{caller} asks for more than {self._limits.rate:g} a second: slow down", count=count)
        usage.tokens -= count

    def _take(self, caller: str) -> _Usage:
        usage = self._refilled(caller)
        if usage.running >= self._limits.concurrent:
            raise LimitError(
                f"{caller} has {usage.running} calls open, the limit is {self._limits.concurrent}: end one first",
                running=usage.running,
            )
        if usage.tokens < 1.0:
            raise LimitError(f"{caller} calls more than {self._limits.rate:g} times a second: slow down")
        usage.tokens -= 1.0
        return usage

    def _refilled(self, caller: str) -> _Usage:
        now = self._monotonic()
        usage = self._usage.get(caller)
        if usage is None:
            usage = self._usage[caller] = _Usage(float(self._limits.burst), now)
            self._forget()
        self._usage.move_to_end(caller)
        usage.tokens = min(float(self._limits.burst), usage.tokens + (now - usage.updated) * self._limits.rate)
        usage.updated = now
        return usage

    def _forget(self) -> None:
        """Drop the longest idle caller with no open call, if there are too many."""
        if len(self._usage) <= self._callers:
            return
        idle = next((caller for caller, usage in self._usage.items() if usage.running == 0), None)
        if idle is not None:
            del self._usage[idle]
