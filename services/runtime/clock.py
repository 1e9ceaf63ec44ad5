"""The machine's clock, as core.ports.Clock."""

from __future__ import annotations

import time

from core.ids import Milliseconds

__all__ = ["SystemClock"]


class SystemClock:
    """Wall time of this machine."""

    def now_ms(self) -> Milliseconds:
        return Milliseconds(time.time_ns() // 1_000_000)
