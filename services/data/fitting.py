"""Making a recipe from rows that may be public: means, vocabularies, a projection. Who publishes a task does this once.

Nothing here has to be the same on two machines: what comes out is constants, and those are published.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from core.errors import ConfigError, LimitError, MalformedError
from services.data.descriptor import DELIMITERS, Descriptor
from services.data.limits import Lines, opened
from services.data.loading import raw_chunks
from services.data.recipe import MICRO, Column, Recipe
from services.data.tables import TableCells
from services.data.transform import MAX_PROJECTED, MAX_VALUE, Projection, Transform

__all__ = ["ColumnSummary", "fit_projection", "fit_standard", "guess_columns", "summarise", "to_toml"]

MOST_KEPT: Final = 1000
"""Different texts of a column that are counted; a column with more is no category."""


@dataclass(slots=True)
class ColumnSummary:
    """What a column of a table holds."""

    name: str
    rows: int = 0
    missing: int = 0
    numbers: int = 0
    total: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    texts: Counter[str] = field(default_factory=Counter)

    @property
    def mean(self) -> float:
        return self.total / max(1, self.numbers)

    @property
    def deviation(self) -> float:
        return math.sqrt(max(0.0, self.squares / max(1, self.numbers) - self.mean**2))

    @property
    def is_number(self) -> bool:
        return self.numbers > 0 and self.numbers + self.missing == self.rows

    def add(self, text: str, missing: frozenset[str]) -> None:
        self.rows += 1
        if text in missing:
            self.missing += 1
            return
        if len(self.texts) <= MOST_KEPT:
            self.texts[text] += 1
        try:
            value = float(text) if "_" not in text else math.nan
        except ValueError:
            return
        if math.isfinite(value):
            self.numbers += 1
            self.total += value
            self.squares += value * value
            self.low, self.high = min(self.low, value), max(self.high, value)


def summarise(d: Descriptor, missing: tuple[str, ...]) -> list[ColumnSummary]:
    """Every column of a descriptor's tables. Raises InputError naming file and line."""
    gone = frozenset({"", *missing})
    found: list[ColumnSummary] = []
    for path in d.files:
        with opened(path) as file:
            cells = TableCells(d, path, Lines(file, path))
            for row in cells:
                found = found or [ColumnSummary(name) for name in cells.names]
                for summary, text in zip(found, row, strict=True):
                    summary.add(text.strip(), gone)
    if not found:
        raise MalformedError(f"{d.files[0]}: no rows")
    return found


def guess_columns(found: list[ColumnSummary], leave_out: frozenset[str], most: int) -> tuple[Column, ...]:
    """Numbers standardised, texts of at most ``most`` different values as categories; others and constants are left out."""
    columns = []
    for c in found:
        if c.name in leave_out:
            continue
        if c.is_number and c.deviation > 0:
            fill = _short(c.mean) if c.missing else None
            columns.append(Column(c.name, center=_short(c.mean), scale=_short(c.deviation), fill=fill))
        elif not c.is_number and 2 <= len(c.texts) <= most:
            columns.append(Column(c.name, values=tuple(text for text, _ in c.texts.most_common()), other=True))
    if not columns:
        raise ConfigError("no column can be a feature: name others, or raise --categories")
    return tuple(columns)


def fit_standard(d: Descriptor) -> Recipe:
    """The recipe with mean and deviation of each feature over these rows. Raises InputError."""
    plain = replace(d.recipe, pca="", pca_size=0)
    count, total, squares = 0, np.zeros(plain.raw_width), np.zeros(plain.raw_width)
    transform = Transform(plain)
    for chunk in raw_chunks(d):
        values = transform.before_projection(chunk.raw) / MICRO
        count += len(values)
        total += values.sum(axis=0)
        squares += (values * values).sum(axis=0)
    mean = total / max(1, count)
    deviation = np.sqrt(np.maximum(squares / max(1, count) - mean**2, 0.0))
    # A feature that never changes stays what it is less its mean: 0.
    deviation[deviation < 1e-6] = 1.0
    return replace(
        plain, mean=tuple(_short(v) for v in mean), std=tuple(_short(v) for v in deviation), bound=max(plain.bound, 4.0)
    )


def fit_projection(d: Descriptor, size: int) -> tuple[Recipe, Projection]:
    """Principal components of these rows, in millionths; ``bound`` is four deviations of the first. Raises InputError."""
    plain = replace(d.recipe, pca="", pca_size=0)
    width = plain.raw_width
    if width > MAX_PROJECTED or not 1 <= size <= width:
        raise LimitError(f"{size} components of {width} values: 1 to all of at most {MAX_PROJECTED}")
    count, total, products = 0, np.zeros(width), np.zeros((width, width))
    transform = Transform(replace(plain, bound=0.0))
    for chunk in raw_chunks(d):
        values = transform.before_projection(chunk.raw) / MICRO
        count += len(values)
        total += values.sum(axis=0)
        products += values.T @ values
    mean = total / max(1, count)
    variances, axes = np.linalg.eigh(products / max(1, count) - np.outer(mean, mean))
    order = np.argsort(variances)[::-1][:size]
    matrix = axes[:, order]
    # One scale for all: their variances say how much each one tells.
    largest = math.sqrt(max(float(variances[order[0]]), 1e-12))
    scaled = np.clip(np.rint(matrix / max(largest, 1.0) * MICRO), -MICRO, MICRO).astype(np.int32)
    limited = np.clip(np.rint(mean * MICRO), -MAX_VALUE, MAX_VALUE).astype(np.int32)
    projection = Projection(limited, scaled)
    bound = _short(4 * largest / max(largest, 1.0))
    return replace(plain, pca=projection.digest.hex(), pca_size=size, bound=bound), projection


def to_toml(d: Descriptor, projection: str = "") -> str:
    """A descriptor file that `read_descriptor` reads back; paths relative to its folder where they lie in it."""
    top: dict[str, object] = {"kind": d.kind, "name": d.name, "files": [_relative(path, d.path) for path in d.files]}
    if d.labels:
        top["labels"] = [_relative(path, d.path) for path in d.labels]
    if d.kind == "npz":
        top |= {"x": d.x, "y": d.y}
    for key in ("target", "text", "key"):
        if getattr(d, key):
            top[key] = getattr(d, key)
    if d.class_files:
        top["class_files"] = True
    elif d.kind in ("csv", "text"):
        words = {sign: word for word, sign in DELIMITERS.items()}
        top |= {"header": d.header, "delimiter": words[d.delimiter], "quoted": d.quoted}
    if projection:
        top["projection"] = projection
    table = {
        name: value for name, value in asdict(d.recipe).items()
        if name in ("raw", "classes", "bound") or value not in ((), "", 0, 0.0, False, None)
    }  # fmt: skip
    return "\n".join(
        [
            *(f"{name} = {_toml(value)}" for name, value in top.items()),
            "",
            "[recipe] # public, and the same for everybody: it has a digest (`pofl data inspect`)",
            *(f"{name} = {_toml(value)}" for name, value in table.items()),
            "",
        ]
    )


def _relative(path: Path, descriptor: Path) -> str:
    folder = descriptor.resolve().parent
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        kept = {k: v for k, v in value.items() if v is not None and v is not False and v not in ((), "")}
        if "values" in kept:  # a category
            kept = {k: v for k, v in kept.items() if k not in ("center", "scale")}
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in kept.items()) + " }"
    if isinstance(value, list | tuple):
        if value and isinstance(value[0], Mapping):
            return "[\n" + "".join(f"  {_toml(item)},\n" for item in value) + "]"
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    # JSON's escapes are TOML's; JSON leaves DEL, which TOML does not allow.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def _short(value: float) -> float:
    """Six digits are enough for a mean, and can be read."""
    return float(f"{float(value):.6g}")
