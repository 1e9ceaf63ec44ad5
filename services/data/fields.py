"""A table of TOML or JSON, read strictly: every value has its type and range, and nothing unknown is passed over."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from core.errors import ConfigError

__all__ = ["Fields", "listed"]

MAX_TEXT: Final = 4096
MAX_ITEMS: Final = 1 << 20


def listed(names: Sequence[str], wanted: str = "", most: int = 20) -> str:
    """Names for a message: the first of them and how many more, and which is nearest to ``wanted``, whatever its case."""
    shown = ", ".join(f"{name:.40}" for name in names[:most])
    more = f", ... and {len(names) - most} more" if len(names) > most else ""
    lower = {name.casefold(): name for name in reversed(names)}
    near = difflib.get_close_matches(wanted.casefold(), lower, n=1) if wanted else []
    return f"{shown}{more}" + (f"; did you mean {lower[near[0]]!r:.60}?" if near else "")


class Fields:
    """Keys of one table. ``where`` names the file and the table, for messages. Every method raises ConfigError."""

    def __init__(self, table: object, where: str, known: Iterable[str]) -> None:
        if not isinstance(table, Mapping):
            raise ConfigError(f"{where} must be a table, got {_shown(table)}")
        names = sorted(known)
        for name in table:
            if name not in names:
                shown = str(name)[:80]
                near = difflib.get_close_matches(shown, names, n=1, cutoff=0.0)
                raise ConfigError(f"{where}: unknown key {shown!r}; did you mean {near[0]!r}?", key=shown)
        self._table = table
        self._where = where

    def has(self, name: str) -> bool:
        return name in self._table

    def raw(self, name: str) -> object:
        return self._table[name]

    def given(self) -> list[str]:
        return [str(name) for name in self._table]

    def text(self, name: str, default: str | None = None, choices: Sequence[str] = ()) -> str:
        value = self._value(name, default)
        if not isinstance(value, str) or len(value) > MAX_TEXT:
            raise self._wrong(name, "a text", value)
        if choices and value not in choices:
            raise self._wrong(name, f"one of {', '.join(choices)}", value)
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false", value)
        return value

    def whole(self, name: str, default: int | None, low: int, high: int) -> int:
        return self._whole(name, self._value(name, default), low, high)

    def number(self, name: str, default: float | None, low: float = -math.inf, high: float = math.inf) -> float:
        return self._number(name, self._value(name, default), low, high)

    def texts(self, name: str) -> tuple[str, ...]:
        items = self._items(name)
        for item in items:
            if not isinstance(item, str) or len(item) > MAX_TEXT:
                raise self._wrong(name, "a list of texts", item)
        return tuple(str(item) for item in items)

    def wholes(self, name: str, low: int, high: int) -> tuple[int, ...]:
        return tuple(self._whole(name, item, low, high) for item in self._items(name))

    def numbers(self, name: str, low: float = -math.inf, high: float = math.inf) -> tuple[float, ...]:
        """One number stands for a list of it alone."""
        value = self._table.get(name)
        items = [value] if isinstance(value, int | float) and not isinstance(value, bool) else self._items(name)
        return tuple(self._number(name, item, low, high) for item in items)

    def tables(self, name: str) -> Sequence[object]:
        return self._items(name)

    def distinct(self, name: str) -> tuple[str, ...]:
        found = self.texts(name)
        seen: set[str] = set()
        for item in found:
            if item in seen:
                raise ConfigError(f"{self._where}: {name} names {item!r:.80} twice", key=name)
            seen.add(item)
        return found

    def _value(self, name: str, default: object) -> object:
        if name not in self._table and default is None:
            raise ConfigError(f"{self._where}: {name} is not set", key=name)
        return self._table.get(name, default)

    def _items(self, name: str) -> Sequence[object]:
        value = self._table.get(name, ())
        if isinstance(value, str) or not isinstance(value, Sequence) or len(value) > MAX_ITEMS:
            raise self._wrong(name, f"a list of at most {MAX_ITEMS} values", value)
        return value

    def _whole(self, name: str, value: object, low: int, high: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._wrong(name, f"a whole number from {low} to {high}", value)
        return value

    def _number(self, name: str, value: object, low: float, high: float) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._wrong(name, "a number", value)
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        # Written so that a NaN, which compares as false, is refused as well.
        if not (low <= number <= high and abs(number) <= 1e15):
            raise self._wrong(name, f"a number from {max(low, -1e15):g} to {min(high, 1e15):g}", value)
        return number

    def _wrong(self, name: str, wanted: str, value: object) -> ConfigError:
        return ConfigError(f"{self._where}: {name} must be {wanted}, got {_shown(value)}", key=name)


def _shown(value: object) -> str:
    """As it was written, shortened. Whole numbers of thousands of digits, and tables in tables without end, have no text."""
    try:
        return repr(value)[:80]
    except (ValueError, RecursionError):
        return "a value too long to show"
