"""Secure aggregation, the arithmetic: masks that cancel in a sum, and secrets that a threshold of holders can restore."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Aggregation"]


class Aggregation(IntEnum):
    """What a pool's manager sees of its miners' updates."""

    PLAIN = 1
    """Each of them; so it can check each, and refuse a hostile one."""
    SECURE = 2
    """Their sum only."""
