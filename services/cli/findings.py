"""What `pofl doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: Literal["ok", "note", "bad"]
    process: str
    check: str
    text: str
    """What is the case, with values."""
    advice: str = ""
    """What to do about it."""
