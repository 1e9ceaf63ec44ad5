"""A seeded, deliberately predictable twin of core.ports.SystemRng, for tests only."""

from __future__ import annotations

import hashlib


class SeededRng:
    def __init__(self, seed: int | str) -> None:
        self._key = str(seed).encode()
        self._counter = 0

    def bytes(self, count: int) -> bytes:
        out = hashlib.shake_256(self._key + self._counter.to_bytes(8, "big")).digest(count)
        self._counter += 1
        return out
