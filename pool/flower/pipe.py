"""A child's side of children.Child: JSON lines, settings and requests on standard input, answers on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

__all__ = ["read_settings", "say"]


def read_settings() -> dict[str, Any] | None:
    """The first line; None when the parent closed the pipe before it sent one."""
    line = sys.stdin.readline()
    if not line:
        return None
    settings: dict[str, Any] = json.loads(line)
    return settings


def say(message: Mapping[str, object]) -> None:
    """One line, at once. Not for two threads at a time."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()
