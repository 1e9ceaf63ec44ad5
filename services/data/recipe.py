"""The recipe: how a raw row becomes features. It is public, fixed, and has a digest; a task names it by that.

A recipe holds constants only (means, vocabularies, the digest of a matrix), never a rule that looks at the rows it is applied
to: so a miner with ten rows and one with ten thousand make the same features of the same row. What is done with the
constants is in `transform`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from core.crypto.hashing import digest
from core.errors import ConfigError, LimitError, MalformedError
from core.ids import Digest
from services.data.fields import Fields

__all__ = [
    "DOMAIN_RECIPE", "MAX_CLASSES", "MAX_WIDTH", "MICRO", "RAW", "Column", "Recipe", "TextRule",
    "recipe_from_bytes", "recipe_from_table",
]  # fmt: skip

DOMAIN_RECIPE: Final = b"pofl/data-recipe/1"
MICRO: Final = 1_000_000
"""Features are whole millionths until the very end."""
MAX_WIDTH: Final = 1 << 16
"""Values of a raw row, and features."""
MAX_CLASSES: Final = 65_535
MAX_RECIPE: Final = 4 << 20
LEAST_SCALE: Final = 1e-12
MAX_DIMS: Final = 8
"""Sizes of a raw row's shape: multiplying a million of them takes a machine for hours."""
RAW: Final = ("pixels", "numbers", "table", "text")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: a number, ``(value - center) / scale``, or with ``values`` a category, one feature for each."""

    name: str
    values: tuple[str, ...] = ()
    other: bool = False
    """Categories: a text that is none of ``values``, or is missing, makes all features 0; otherwise it is an error."""
    center: float = 0.0
    scale: float = 1.0
    fill: float | None = None
    """Numbers: what a missing one counts as, in the column's own unit; None makes it an error."""

    @property
    def width(self) -> int:
        return len(self.values) or 1


@dataclass(frozen=True, slots=True)
class TextRule:
    """How a text becomes counts, and those a row of length 1 (euclidean)."""

    method: str
    """``hashing``: words fall into ``size`` buckets; ``tfidf``: only ``words`` count, times ``idf_milli``."""
    size: int = 0
    words: tuple[str, ...] = ()
    idf_milli: tuple[int, ...] = ()
    """Thousandths; one for each word."""
    ngrams: tuple[int, ...] = (1, 1)
    """Least and most words in a term."""

    @property
    def width(self) -> int:
        return self.size if self.method == "hashing" else len(self.words)


@dataclass(frozen=True, slots=True)
class Recipe:
    """See docs/mining.md for each key."""

    raw: str
    classes: int
    class_names: tuple[str, ...] = ()
    """Texts that labels are written as, in the order of their numbers; empty: labels are numbers already."""
    real: bool = False
    """Regression: y is a real number; the task's cut points say what counts as right. ``classes`` is 0 then."""
    cuts: tuple[float, ...] = ()
    """Regression: the class of a target is how many cuts lie below it (docs/adr/0065)."""
    shape: tuple[int, ...] = ()
    divide: float = 1.0
    grey: bool = False
    resize: tuple[int, ...] = ()
    columns: tuple[Column, ...] = ()
    missing: tuple[str, ...] = ()
    """Texts of a table that stand for no value; the empty text always does."""
    text: TextRule | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    pca: str = ""
    """Digest (hex) of the projection; the matrix itself travels beside the recipe."""
    pca_size: int = 0
    bound: float = 0.0
    """Features beyond it are set to it; 0: none. Scored features are ``round(127 x / bound)``."""

    def __post_init__(self) -> None:
        """Raises ConfigError or LimitError, naming the key."""
        _check(self)

    @property
    def raw_width(self) -> int:
        """Features before the projection."""
        if self.raw == "table":
            return sum(column.width for column in self.columns)
        if self.raw == "text":
            assert self.text is not None
            return self.text.width
        if self.raw == "pixels":
            height, width = self.resize or self.shape[:2]
            return height * width * (1 if self.grey or len(self.shape) == 2 else self.shape[2])
        product = 1
        for size in self.shape:
            product *= size
        return product

    @property
    def features(self) -> int:
        return self.pca_size or self.raw_width

    @property
    def feature_scale_micro(self) -> int:
        """The task's scale that brings ``bound`` to 127; 0 where there is no bound."""
        return round(127 * MICRO / self.bound) if self.bound else 0

    def to_bytes(self) -> bytes:
        """Canonical JSON: sorted keys, no spaces, every key present, floats as their shortest text that reads back."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")

    @property
    def digest(self) -> Digest:
        return digest(DOMAIN_RECIPE, self.to_bytes())

    def class_name(self, label: int) -> str:
        if self.cuts:
            low, high = (f"{c:g}" for c in (self.cuts[max(0, label - 1)], self.cuts[min(label, len(self.cuts) - 1)]))
            return f"up to {high}" if not label else f"above {low}" if label == len(self.cuts) else f"{low} to {high}"
        return self.class_names[label] if self.class_names else str(label)


def recipe_from_table(table: object, where: str) -> Recipe:
    """From a descriptor's ``[recipe]``, or from canonical JSON. Raises ConfigError, LimitError."""
    f = Fields(table, where, Recipe.__dataclass_fields__)
    raw = f.text("raw", choices=RAW)
    columns = tuple(_column(item, f"{where}: columns[{index}]") for index, item in enumerate(f.tables("columns")))
    rule = _text_rule(f.raw("text"), f"{where}: text") if f.has("text") and f.raw("text") is not None else None
    cuts, class_names, real = f.numbers("cuts"), f.distinct("class_names"), f.flag("real", False)
    if real and f.has("classes") and f.raw("classes"):
        raise ConfigError(f"{where}: real targets have no classes")
    counted = len(cuts) + 1 if cuts else len(class_names)
    return Recipe(
        raw=raw, classes=0 if real else f.whole("classes", counted or None, 2, MAX_CLASSES), class_names=class_names,
        real=real, cuts=cuts,
        shape=f.wholes("shape", 1, MAX_WIDTH), divide=f.number("divide", 255.0 if raw == "pixels" else 1.0, LEAST_SCALE),
        grey=f.flag("grey", False), resize=f.wholes("resize", 1, 4096), columns=columns, missing=f.texts("missing"), text=rule,
        mean=f.numbers("mean"), std=f.numbers("std", LEAST_SCALE), pca=f.text("pca", ""),
        pca_size=f.whole("pca_size", 0, 0, MAX_WIDTH),
        bound=f.number("bound", {"pixels": 1.0, "text": 1.0, "table": 4.0}.get(raw, 0.0), 0.0, 500.0),
    )  # fmt: skip


def recipe_from_bytes(data: bytes, where: str) -> Recipe:
    """Inverse of ``to_bytes``; the bytes may come from anybody. Raises MalformedError, LimitError."""
    if len(data) > MAX_RECIPE:
        raise LimitError(f"{where}: a recipe of {len(data)} bytes, at most {MAX_RECIPE}")
    try:
        recipe = recipe_from_table(json.loads(data.decode("ascii")), where)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"{where}: the recipe is not JSON: {error}") from None
    except ConfigError as error:
        raise MalformedError(error.message) from None
    if recipe.to_bytes() != data:
        raise MalformedError(f"{where}: the recipe is not in its canonical form")
    return recipe


def _column(item: object, where: str) -> Column:
    f = Fields(item, where, Column.__dataclass_fields__)
    values = f.distinct("values")
    if not values and f.flag("other", False):
        raise ConfigError(f"{where}: other is for categories, and values is empty")
    fill = f.number("fill", None) if f.has("fill") and f.raw("fill") is not None else None
    return Column(
        f.text("name"), values, f.flag("other", False), f.number("center", 0.0), f.number("scale", 1.0, LEAST_SCALE), fill
    )


def _text_rule(item: object, where: str) -> TextRule:
    f = Fields(item, where, TextRule.__dataclass_fields__)
    method = f.text("method", choices=("hashing", "tfidf"))
    ngrams = f.wholes("ngrams", 1, 5) or (1, 1)
    words, weights = f.distinct("words"), f.wholes("idf_milli", 1, 30_000)
    size = f.whole("size", 0, 0, MAX_WIDTH)
    if len(ngrams) != 2 or ngrams[0] > ngrams[1]:
        raise ConfigError(f"{where}: ngrams must be the least and the most words of a term, got {list(ngrams)}")
    if method == "hashing" and (not size or words or weights):
        raise ConfigError(f"{where}: hashing needs size, and neither words nor idf_milli")
    if method == "tfidf" and (size or not words or len(words) != len(weights)):
        raise ConfigError(f"{where}: tfidf needs words and as many idf_milli, got {len(words)} and {len(weights)}, no size")
    return TextRule(method, size, words, weights, ngrams)


def _check(r: Recipe) -> None:
    # Before anything multiplies them: recipes come with tasks, from anybody.
    for key, sizes in (("shape", r.shape), ("resize", r.resize)):
        if len(sizes) > MAX_DIMS:
            raise LimitError(f"recipe: {key} has {len(sizes)} sizes, at most {MAX_DIMS}")
    owners: Mapping[str, tuple[str, ...]] = {
        "shape": ("pixels", "numbers"), "grey": ("pixels",), "resize": ("pixels",), "columns": ("table",),
        "missing": ("table",), "text": ("text",),
    }  # fmt: skip
    for key, kinds in owners.items():
        if getattr(r, key) and r.raw not in kinds:
            raise ConfigError(f"recipe: {key} is for {' and '.join(kinds)}, this recipe is for {r.raw}")
        if not getattr(r, key) and r.raw in kinds and key in ("shape", "columns", "text"):
            raise ConfigError(f"recipe: {key} is not set")
    if r.raw == "pixels" and (len(r.shape) not in (2, 3) or (len(r.shape) == 3 and r.shape[2] not in (1, 3))):
        raise ConfigError(f"recipe: shape must be [height, width] or [height, width, 1 or 3], got {list(r.shape)}")
    if r.grey and r.shape[2:] != (3,):
        raise ConfigError(f"recipe: grey is for pixels of three colours, shape is {list(r.shape)}")
    if r.resize and (len(r.resize) != 2 or r.resize[0] > r.shape[0] or r.resize[1] > r.shape[1]):
        raise ConfigError(f"recipe: resize must be a height and a width, at most {list(r.shape[:2])}, got {list(r.resize)}")
    for size in (r.raw_width, _product(r.shape)):
        if not size <= MAX_WIDTH:
            raise LimitError(f"recipe: a row of {size} values, at most {MAX_WIDTH}")
    names = [column.name for column in r.columns]
    if len(set(names)) != len(names):
        raise ConfigError("recipe: a column is named twice")
    for key, values in (("mean", r.mean), ("std", r.std)):
        if values and len(values) not in (1, r.raw_width):
            raise ConfigError(f"recipe: {key} has {len(values)} numbers, it must be one, or {r.raw_width}: one a feature")
    if bool(r.pca) != bool(r.pca_size) or (r.pca and (len(r.pca) != 64 or set(r.pca) - set("0123456789abcdef"))):
        raise ConfigError("recipe: pca is the digest of the projection, 64 hex digits, and pca_size its number of features")
    if sum((bool(r.class_names), bool(r.cuts), r.real)) > 1:
        raise ConfigError("recipe: class_names, cuts and real exclude one another")
    counted = len(r.cuts) + 1 if r.cuts else len(r.class_names)
    if counted and counted != r.classes:
        raise ConfigError(f"recipe: classes is {r.classes}, but {'cuts make' if r.cuts else 'class_names name'} {counted}")
    if list(r.cuts) != sorted(r.cuts):
        raise ConfigError("recipe: cuts must rise")


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
