"""What the pure library asks of the outside world, as small protocols."""

from __future__ import annotations

import secrets
from typing import Protocol

from core.ids import Milliseconds

__all__ = ["Clock", "Rng", "SystemRng"]


class Clock(Protocol):
    """Wall time in milliseconds since the Unix epoch."""

    def now_ms(self) -> Milliseconds: ...


class Rng(Protocol):
    """Secret coins. Production code passes SystemRng; tests pass a seeded twin that lives in tests/."""

    def bytes(self, count: int) -> bytes: ...


class SystemRng:
    """The operating system's generator."""

    def bytes(self, count: int) -> bytes:
        return secrets.token_bytes(count)
