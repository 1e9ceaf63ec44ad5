"""Making a recipe from rows that may be public: means, a projection. Who publishes a task does this once.

Nothing here has to be the same on two machines: what comes out is constants, and those are published.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from core.errors import LimitError
from services.data.descriptor import DELIMITERS, Descriptor
from services.data.loading import raw_chunks
from services.data.recipe import MICRO, Recipe
from services.data.survey import short_number
from services.data.transform import MAX_PROJECTED, MAX_VALUE, Projection, Transform

__all__ = ["fit_projection", "fit_standard", "to_toml"]


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
    centers, scales = (tuple(short_number(v) for v in values) for values in (mean, deviation))
    return replace(plain, mean=centers, std=scales, bound=max(plain.bound, 4.0))


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
    bound = short_number(4 * largest / max(largest, 1.0))
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
