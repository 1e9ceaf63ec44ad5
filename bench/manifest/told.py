"""In how many tasks a lying process lies: what a manifest tells it, and what it remembers when it is started again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

__all__ = ["LIE", "LIES_MOST", "LIES_TOLD", "may_lie"]

LIE: Final = "LIE"
"""Environment: which of its lies."""
LIES_TOLD: Final = "LIES_TOLD"
"""Environment: the file with the tasks that it lied in."""
LIES_MOST: Final = "LIES_MOST"
"""Environment: in so many tasks it lies, then it is honest; 0: in all."""


def may_lie(task_id: bytes) -> bool:
    """Whether this is one of the tasks to lie in; then it is written down."""
    path, most = Path(os.environ[LIES_TOLD]), int(os.environ.get(LIES_MOST, "0"))
    told = path.read_text(encoding="ascii").split() if path.exists() else []
    if task_id.hex() in told:
        return True
    if most and len(told) >= most:
        return False
    path.write_text("\n".join([*told, task_id.hex()]) + "\n", encoding="ascii")
    return True
