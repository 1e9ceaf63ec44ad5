"""TOML of somebody else, looked at before it is parsed: what would take tomllib minutes is refused at once, in one sentence.

The parser of the standard library takes the square of the parts of a dotted key, some microseconds for each key and table, and
one Python call for each level of nesting. A descriptor needs three parts, a few levels, and as many keys as it has columns.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, Final

from core.errors import ConfigError

__all__ = ["parse_toml"]

MAX_PARTS: Final = 8
MAX_DEPTH: Final = 32
MOST: Final = {"=": 1 << 18, "[": 1 << 16, "{": 1 << 17, ",": 1 << 20}
"""Keys, tables and lists, tables in one line, values."""
NAMES: Final = {"=": "keys", "[": "tables and lists", "{": "tables in one line", ",": "values"}

_OPAQUE: Final = re.compile(
    r'"""(?:[^"\\]|\\(?:.|\Z)|"(?!""))*+(?:"{3,5}|\Z)'
    r"|'''(?:[^']|'(?!''))*+(?:'{3,5}|\Z)"
    r'|"(?:[^"\\\n]|\\(?:.|\Z))*+"?'
    r"|'[^'\n]*+'?|#[^\n]*+",
    re.DOTALL,
)
"""Texts of all four kinds, and comments. Each alternative matches once it has begun, so this never goes over a place twice."""
_DOTTED: Final = re.compile(rf"(?:\.[^.=,\[\]{{}}\n]*+){{{MAX_PARTS}}}")
_BRACKETS: Final = re.compile(r"[\[\]{}]")


def parse_toml(text: str, path: Path) -> dict[str, Any]:
    """Raises ConfigError, naming the file: no TOML, or more of it than any descriptor needs."""
    bare = _OPAQUE.sub("x", text)
    if found := _DOTTED.search(bare):
        line = _line(text, bare, found.start())
        raise ConfigError(f"{path}, line {line}: a key of more than {MAX_PARTS} parts with dots between")
    for sign, most in MOST.items():
        if (count := bare.count(sign)) > most:
            raise ConfigError(f"{path}: {count} {NAMES[sign]}, a descriptor has at most {most}")
    depth = 0
    for bracket in _BRACKETS.finditer(bare):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > MAX_DEPTH:
            line = _line(text, bare, bracket.start())
            raise ConfigError(f"{path}, line {line}: tables or lists in one another, more than {MAX_DEPTH} deep")
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error!s:.200}") from None


def _line(text: str, bare: str, at: int) -> int:
    """Of a place in ``bare``, in the text: what was taken out may have been of many lines."""
    taken = 0
    for gone in _OPAQUE.finditer(text):
        start = gone.start() - taken
        if start >= at:
            break
        taken += len(gone[0]) - 1
    return text.count("\n", 0, at + taken) + 1
