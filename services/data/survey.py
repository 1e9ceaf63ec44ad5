"""What the columns of a table hold, which of them can be features, and of the others why not.

Whoever publishes a task looks at rows that may be public once; what follows is constants of a recipe.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from core.errors import ConfigError, MalformedError
from services.data.descriptor import Descriptor
from services.data.limits import Lines, opened
from services.data.recipe import Column
from services.data.tables import TableCells, number_in

__all__ = ["MOST_KEPT", "ColumnSummary", "Survey", "choose_columns", "short_number", "suspicions", "survey"]

MOST_KEPT: Final = 1000
"""Different texts of a column that are counted; a column with more is no category."""
MOST_DISTINCT: Final = 1 << 16
"""Whole numbers of a column that the others are compared with: who repeats none of so many is taken to repeat none."""
MOST_NUMBER: Final = 1e30
"""Size of a number. Nothing that is measured is larger; what is marks a missing value or is a mistake, and hides the others."""
FEW: Final = 0.01
"""Share of a column's cells that may be no numbers for them to be taken for mistakes in a column of numbers."""
LEAST_NUMBERS: Final = 10
MOST_WORDS: Final = 5
"""Different texts among a column's numbers, of which the first is shown; with more it is a column of texts."""
CLOSE: Final = 0.01
"""Deviations that a rounded mean may be off."""
LEAST_ROWS: Final = 30
"""Of fewer rows, an age may be different in each."""
SAME: Final = 0.9
"""Correlation beyond which a column is taken for the target in other words."""


@dataclass(slots=True)
class Pairs:
    """Sums over rows in which a column and the target both are numbers, less the first of each."""

    count: int = 0
    first: tuple[float, float] = (0.0, 0.0)
    sums: list[float] = field(default_factory=lambda: [0.0] * 5)

    def add(self, value: float, target: float) -> None:
        if not self.count:
            self.first = (value, target)
        self.count += 1
        a, b = value - self.first[0], target - self.first[1]
        for index, term in enumerate((a, b, a * a, b * b, a * b)):
            self.sums[index] += term

    @property
    def correlation(self) -> float:
        """Pearson's, 0 where one of both never changes."""
        a, b, aa, bb, ab = (total / max(1, self.count) for total in self.sums)
        spread = (aa - a * a) * (bb - b * b)
        return (ab - a * b) / math.sqrt(spread) if spread > 0 and math.isfinite(spread) else 0.0


@dataclass(slots=True)
class ColumnSummary:
    """What a column of a table holds."""

    name: str
    rows: int = 0
    missing: int = 0
    first_missing: str = ""
    """Where, in words; empty: nowhere."""
    numbers: int = 0
    mean: float = 0.0
    spread: float = 0.0
    """Sum of squared differences from the mean."""
    low: float = math.inf
    high: float = -math.inf
    texts: Counter[str] = field(default_factory=Counter)
    odd: int = 0
    """Cells that are neither missing nor numbers."""
    first_odd: tuple[Path, int, str] | None = None
    """File, line and text of the first of them."""
    first_huge: tuple[Path, int, str] | None = None
    """The first number beyond MOST_NUMBER. Such have no part in mean and deviation."""
    distinct: set[float] | None = field(default_factory=set)
    """Numbers so far; None since one came twice, or was not whole, or a cell was none."""
    pairs: Pairs = field(default_factory=Pairs)

    @property
    def deviation(self) -> float:
        return math.sqrt(self.spread / max(1, self.numbers))

    @property
    def is_number(self) -> bool:
        return self.numbers > 0 and not self.odd

    @property
    def has_slips(self) -> bool:
        """Nearly all cells are numbers, and the few others must be mistakes, or mean no value."""
        return 0 < self.odd <= max(1.0, FEW * self.numbers) and self.numbers >= LEAST_NUMBERS

    @property
    def is_identifier(self) -> bool:
        """Whole numbers, another one in every row. (Measurements differ from row to row too, and are not whole.)"""
        return self.is_number and self.distinct is not None and self.rows == self.numbers >= LEAST_ROWS

    @property
    def odd_in_words(self) -> str:
        assert self.first_odd is not None
        _, line, text = self.first_odd
        return f"line {line}: {text!r:.40} is not a number, {self.numbers} other cells are"

    def check_size(self, way_out: str) -> None:
        """Raises MalformedError for a number that is too large to be one, with what can be done about it."""
        if self.first_huge is not None:
            path, line, text = self.first_huge
            place = f"{path}: line {line}, column {self.name!r}"
            raise MalformedError(f"{place}: {text!r:.40} is beyond {MOST_NUMBER:g}, more than a measurement can be. {way_out}")

    def add(self, text: str, missing: frozenset[str], path: Path, line: int) -> float | None:
        """The cell's number, if it is one."""
        self.rows += 1
        if text in missing:
            self.missing += 1
            self.distinct = None
            self.first_missing = self.first_missing or f"{path}: line {line}"
            return None
        if len(self.texts) <= MOST_KEPT:
            self.texts[text] += 1
        value = number_in(text)
        if value is None:
            self.odd += 1
            self.distinct = None
            self.first_odd = self.first_odd or (path, line, text)
            return None
        self.numbers += 1
        if abs(value) > MOST_NUMBER:
            self.first_huge = self.first_huge or (path, line, text)
            return None
        # Welford's: a mean of squares less the square of the mean loses all digits where the mean is large.
        off = value - self.mean
        self.mean += off / self.numbers
        self.spread += off * (value - self.mean)
        self.low, self.high = min(self.low, value), max(self.high, value)
        if self.distinct is not None:
            if value in self.distinct or not value.is_integer():
                self.distinct = None
            elif len(self.distinct) < MOST_DISTINCT:
                self.distinct.add(value)
        return value


@dataclass(frozen=True, slots=True)
class Survey:
    """The columns of a table, in their order."""

    columns: tuple[ColumnSummary, ...]

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    def column(self, name: str) -> ColumnSummary:
        return next(column for column in self.columns if column.name == name)


def survey(d: Descriptor, missing: Sequence[str]) -> Survey:
    """Every column of a descriptor's tables. Raises InputError naming file and line."""
    gone = frozenset({"", *missing})
    found: list[ColumnSummary] = []
    codes: dict[str, float] = {}
    target = -1
    for path in d.files:
        with opened(path) as file:
            lines = Lines(file, path)
            cells = TableCells(d, path, lines)
            for row in cells:
                if not found:
                    found = [ColumnSummary(name) for name in cells.names]
                    target = cells.names.index(d.target) if d.target in cells.names else -1
                elif cells.names != [summary.name for summary in found]:
                    raise MalformedError(f"{path}: its columns are other ones than those of {d.files[0]}")
                values = [s.add(text.strip(), gone, path, lines.number) for s, text in zip(found, row, strict=True)]
                if target >= 0 and (label := row[target].strip()) not in gone:
                    # Names of classes count as they come: with two of them that is as good as any numbers.
                    y = values[target]
                    y = y if y is not None else codes.setdefault(label, float(len(codes)))
                    for summary, value in zip(found, values, strict=True):
                        if value is not None:
                            summary.pairs.add(value, y)
    if not found:
        raise MalformedError(f"{d.files[0]}: no rows")
    return Survey(tuple(found))


def choose_columns(found: Survey, without: frozenset[str], most: int) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    """The features, and what else was left out and why. Numbers are standardised, texts of at most ``most`` different
    values are categories.

    Raises ConfigError: no column is left; or MalformedError: a few cells of a column of numbers are none, or too large.
    """
    columns, left_out, slips = [], [], []
    for c in found.columns:
        if c.name in without:
            continue
        if c.has_slips:
            slips.append(c)
            continue
        if c.is_number:
            c.check_size(f"Correct it; or, where it means no value, name it with --missing; or --without {c.name}")
        if c.is_number and c.deviation > 0:
            center = _center(c)
            fill = center if c.missing else None
            columns.append(Column(c.name, center=center, scale=short_number(c.deviation), fill=fill))
        elif not c.is_number and 2 <= len(c.texts) <= most:
            columns.append(Column(c.name, values=tuple(text for text, _ in c.texts.most_common()), other=True))
        else:
            left_out.append(f"{c.name} ({_why(c, most)})")
    if slips:
        raise MalformedError(_slips_in_words(slips))
    if not columns:
        raise ConfigError(f"no column can be a feature: {', '.join(left_out) or 'all are named already'}")
    return tuple(columns), tuple(left_out)


def suspicions(found: Survey, columns: Sequence[Column], target: str) -> list[str]:
    """Features that are probably none: what looks like an identifier, or like the target."""
    said = []
    for c in (found.column(column.name) for column in columns):
        if c.is_identifier:
            said.append(f"{c.name} has as many values as rows, {c.rows}: an identifier? --without {c.name} leaves it out")
        if abs(c.pairs.correlation) > SAME and c.pairs.count > 2:
            said.append(
                f"{c.name} nearly equals the target {target}, their correlation is {c.pairs.correlation:.3f}: "
                f"would it be known before? --without {c.name} leaves it out"
            )
    return said


def short_number(value: float) -> float:
    """Six digits are enough for a mean, and can be read."""
    return float(f"{float(value):.6g}")


def _center(c: ColumnSummary) -> float:
    """A short mean, or the whole one where six digits are coarser than the numbers differ, as they do in times."""
    short = short_number(c.mean)
    return short if abs(short - c.mean) <= CLOSE * c.deviation else c.mean


def _why(c: ColumnSummary, most: int) -> str:
    if not c.texts:
        return "no value"
    if len(c.texts) == 1 or c.is_number:
        return "one value"
    if c.numbers >= c.odd and sum(number_in(text) is None for text in c.texts) <= MOST_WORDS:
        return c.odd_in_words
    different = f"more than {MOST_KEPT}" if len(c.texts) > MOST_KEPT else str(len(c.texts))
    return f"{different} values, more than --categories {most}"


def _slips_in_words(slips: Sequence[ColumnSummary]) -> str:
    first = slips[0]
    assert first.first_odd is not None
    path, line, text = first.first_odd
    rest = f"; so it is in {', '.join(f'{c.name} ({c.odd_in_words})' for c in slips[1:6])}" if slips[1:] else ""
    return (
        f"{path}: line {line}, column {first.name!r}: {text!r:.40} is not a number, {first.numbers} other cells are{rest}. "
        f"Correct it; or, where such texts mean no value, name them with --missing; or --without {first.name}"
    )
