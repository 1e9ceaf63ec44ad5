"""Rows of text files: CSV and TSV with named columns, and plain texts, one a line (all also as .gz)."""

from __future__ import annotations

import csv
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.errors import LimitError, MalformedError
from services.data.descriptor import Descriptor
from services.data.fields import listed
from services.data.limits import MAX_CELL, MAX_KEY, MAX_LINE, MAX_ROWS, Lines, opened
from services.data.recipe import Column, Recipe

__all__ = ["CHUNK", "TableCells", "TableChunk", "label_of", "number_in", "read_tables", "read_texts", "rows_at_a_time"]

CHUNK: Final = 2048
"""Rows that are turned into features at a time, at most."""
CHUNK_VALUES: Final = 1 << 22
MAX_COLUMNS: Final = 1 << 16
PLAIN_QUOTES: Final = "if quotes are plain characters here: --not-quoted, or quoted = false in the descriptor"


@dataclass(slots=True)
class TableChunk:
    """Some rows. ``values``: float64 by rows, for tables; ``texts``: for texts."""

    values: array[float] = field(default_factory=lambda: array("d"))
    texts: list[str] = field(default_factory=list)
    labels: list[float] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    def matrix(self, width: int) -> NDArray[np.float64]:
        return np.frombuffer(self.values, dtype=np.float64).reshape(-1, width) if self.values else np.zeros((0, width))


def read_tables(d: Descriptor) -> Iterator[TableChunk]:
    """Chunks of CSV rows. Raises InputError naming file, line and column."""
    return _chunks(d, _TableRows)


def read_texts(d: Descriptor) -> Iterator[TableChunk]:
    """Chunks of texts. Raises InputError naming file, line and column."""
    if not d.class_files:
        return _chunks(d, _TextRows)
    return _lines_of_classes(d)


def rows_at_a_time(recipe: Recipe) -> int:
    """So that a chunk has some megabytes, however wide its rows are."""
    return max(1, min(CHUNK, CHUNK_VALUES // max(recipe.raw_width, math.prod(recipe.shape))))


def label_of(recipe: Recipe, text: str) -> float:
    """The class that a cell says, or the real target. Raises MalformedError."""
    if recipe.real:
        return _number(text)
    if recipe.class_names:
        try:
            return recipe.class_names.index(text)
        except ValueError:
            names = listed(recipe.class_names, most=10)
            raise MalformedError(f"{text!r:.60} is none of the classes {names}") from None
    if recipe.cuts:
        # The number of cuts below the target: docs/adr/0065.
        return int(np.searchsorted(np.array(recipe.cuts), _number(text), side="left"))
    value = _number(text)
    if value != math.floor(value) or not 0 <= value < recipe.classes:
        raise MalformedError(f"{text!r:.60} is no class: they are 0 to {recipe.classes - 1}")
    return int(value)


class TableCells:
    """The cells of one file, row by row, all rows as wide as the first one. Raises MalformedError, LimitError."""

    def __init__(self, d: Descriptor, path: Path, lines: Lines) -> None:
        self._d, self._path, self._lines = d, path, lines
        self.names: list[str] = []
        self._begun, self._size = 1, 0
        """Line that the row begins with, and its characters so far."""

    def __iter__(self) -> Iterator[list[str]]:
        rows = iter(self._split())
        first = next(rows, None)
        if first is None:
            raise MalformedError(f"{self._path}: the file is empty")
        if len(first) > MAX_COLUMNS:
            raise LimitError(f"{self._path}: {len(first)} columns, at most {MAX_COLUMNS}")
        self.names = [cell.strip() for cell in first] if self._d.header else [str(index) for index in range(len(first))]
        if len(set(self.names)) != len(self.names):
            seen: set[str] = set()
            twice = next(name for name in self.names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise MalformedError(f"{self._path}: line 1 names the column {twice!r} twice")
        if not self._d.header:
            yield first
        for row in rows:
            if not row:  # an empty line
                continue
            if self._size > MAX_CELL and (long := [index for index, cell in enumerate(row) if len(cell) > MAX_CELL]):
                name = self.names[long[0]] if long[0] < len(self.names) else str(long[0])
                raise self._too_long(f"the cell in column {name!r:.60}", MAX_CELL)
            if len(row) != len(self.names):
                raise MalformedError(
                    f"{self._path}: line {self._lines.number} has {len(row)} cells, line 1 has {len(self.names)}",
                    line=self._lines.number,
                )  # fmt: skip
            yield row

    def column(self, name: str, what: str) -> int:
        """Raises MalformedError with the columns that there are."""
        if name not in self.names:
            raise MalformedError(f"{self._path}: no column {name!r} ({what}); it has {listed(self.names, name)}")
        return self.names.index(name)

    def _split(self) -> Iterator[list[str]]:
        if not self._d.quoted:
            for line in self._lines:
                self._begun, self._size = self._lines.number, len(line)
                yield line.split(self._d.delimiter) if line else []
            return
        reader = csv.reader(self._counted(), delimiter=self._d.delimiter, strict=True)
        while True:
            self._begun, self._size = self._lines.number + 1, 0
            try:
                row = next(reader, None)
            except csv.Error as error:
                if "field larger" in str(error):
                    raise self._too_long("a cell", MAX_CELL) from None
                raise MalformedError(
                    f"{self._path}: line {self._lines.number}: {error}; {PLAIN_QUOTES}", line=self._lines.number
                ) from None
            if row is None:
                return
            yield row

    def _counted(self) -> Iterator[str]:
        """Lines for the reader, which joins as many as a quote spans."""
        for line in self._lines:
            self._size += len(line) + 1
            if self._size > MAX_LINE:
                raise self._too_long("the row that begins here", MAX_LINE)
            yield line + "\n"

    def _too_long(self, what: str, most: int) -> LimitError:
        return LimitError(
            f"{self._path}: line {self._begun}: {what} has more than {most} characters: is a quote missing?", line=self._begun
        )


class _TableRows:
    def __init__(self, d: Descriptor, cells: TableCells) -> None:
        self._missing = frozenset({"", *d.recipe.missing})
        self._target = cells.column(d.target, "target")
        self._key, self._key_name = cells.column(d.key, "key") if d.key else -1, d.key or ""
        self._columns = [(cells.column(c.name, "recipe"), c, {v: i for i, v in enumerate(c.values)}) for c in d.recipe.columns]
        self._recipe = d.recipe
        taken = {d.target, d.key} & {c.name for c in d.recipe.columns}
        if taken:
            raise MalformedError(f"the column {min(taken)!r} is the target or the key, and a feature of the recipe too")

    def add(self, row: list[str], chunk: TableChunk) -> None:
        """Raises _CellError."""
        for index, column, places in self._columns:
            try:
                chunk.values.extend(self._cell(row[index].strip(), column, places))
            except MalformedError as error:
                raise _CellError(column.name, error.message) from None
        try:
            chunk.labels.append(label_of(self._recipe, row[self._target].strip()))
        except MalformedError as error:
            raise _CellError("", error.message) from None
        if self._key >= 0:
            chunk.keys.append(_key_of(row[self._key], self._key_name))

    def _cell(self, text: str, column: Column, places: dict[str, int]) -> tuple[float, ...]:
        if column.values:
            place = places.get(text)
            if place is None and not column.other:
                what = "a value is missing" if text in self._missing else f"{text!r:.60} is none of its values"
                raise MalformedError(f"{what}, and other is not set")
            return tuple(float(i == place) for i in range(len(column.values)))
        if text in self._missing:
            if column.fill is None:
                raise MalformedError("a value is missing, and fill is not set")
            value = column.fill
        else:
            value = _number(text)
        # Two IEEE operations on one value: the same everywhere.
        return ((value - column.center) / column.scale,)


class _TextRows:
    def __init__(self, d: Descriptor, cells: TableCells) -> None:
        self._target, self._text = cells.column(d.target, "target"), cells.column(d.text, "text")
        self._key, self._key_name = cells.column(d.key, "key") if d.key else -1, d.key or ""
        self._recipe = d.recipe

    def add(self, row: list[str], chunk: TableChunk) -> None:
        try:
            chunk.labels.append(label_of(self._recipe, row[self._target].strip()))
        except MalformedError as error:
            raise _CellError("", error.message) from None
        chunk.texts.append(row[self._text])
        if self._key >= 0:
            chunk.keys.append(_key_of(row[self._key], self._key_name))


def _key_of(cell: str, column: str) -> str:
    key = cell.strip()
    if len(key) > MAX_KEY:
        # An array of texts has the room of its longest for each of them.
        raise _CellError(column, f"a key of {len(key)} characters, at most {MAX_KEY}")
    return key


class _CellError(Exception):
    """A cell that cannot be used; without a column it is the target's."""

    def __init__(self, column: str, message: str) -> None:
        super().__init__(message)
        self.column = column
        self.message = message


def _chunks(d: Descriptor, kind: type[_TableRows] | type[_TextRows]) -> Iterator[TableChunk]:
    chunk, total, most = TableChunk(), 0, rows_at_a_time(d.recipe)
    for path in d.files:
        with opened(path) as file:
            lines = Lines(file, path)
            cells, maker = TableCells(d, path, lines), None
            for row in cells:
                if maker is None:
                    try:
                        maker = kind(d, cells)
                    except MalformedError as error:
                        text = error.message if str(path) in error.message else f"{path}: {error.message}"
                        raise MalformedError(text) from None
                try:
                    maker.add(row, chunk)
                except _CellError as error:
                    column = error.column or d.target
                    raise MalformedError(
                        f"{path}: line {lines.number}, column {column!r}: {error.message}", line=lines.number, column=column
                    ) from None
                total += 1
                if total > MAX_ROWS:
                    raise LimitError(f"{path}: more than {MAX_ROWS} rows")
                if len(chunk.labels) >= most:
                    yield chunk
                    chunk = TableChunk()
    if chunk.labels:
        yield chunk


def _lines_of_classes(d: Descriptor) -> Iterator[TableChunk]:
    total, most = 0, rows_at_a_time(d.recipe)
    for label, path in enumerate(d.files):
        chunk = TableChunk()
        with opened(path) as file:
            for line in Lines(file, path):
                if not line.strip():
                    continue
                chunk.texts.append(line)
                chunk.labels.append(label)
                total += 1
                if total > MAX_ROWS:
                    raise LimitError(f"{path}: more than {MAX_ROWS} rows")
                if len(chunk.labels) >= most:
                    yield chunk
                    chunk = TableChunk()
        if chunk.labels:
            yield chunk


def number_in(text: str) -> float | None:
    """The finite decimal number that a cell holds, if it holds one."""
    try:
        # float() also takes underscores, "nan" and "infinity".
        value = float(text) if "_" not in text else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _number(text: str) -> float:
    """Raises MalformedError for what is no finite decimal number."""
    value = number_in(text)
    if value is None:
        raise MalformedError(f"{text!r:.60} is not a finite number")
    return value
