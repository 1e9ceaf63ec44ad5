"""From a path to rows that can be learnt from: find the descriptor, read, check, transform.

Rows in, labelled float32 features out, and the digest of the recipe they were made by. An ``.npz`` file with ``x`` (n, M) and
``y`` (n) and no descriptor beside it is taken as it is: its features are made already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError, MalformedError, NotFoundError
from services.data.arrays import read_npz, whole_labels
from services.data.cifar import read_cifar10
from services.data.descriptor import Descriptor, find_descriptor, load_projection, no_descriptor, read_descriptor
from services.data.idx import read_idx
from services.data.limits import MAX_KEY, check_size
from services.data.rows import Rows
from services.data.stored import read_made_rows
from services.data.tables import label_of, read_tables, read_texts, rows_at_a_time
from services.data.texts import TextCounter
from services.data.transform import Transform

__all__ = ["RawChunk", "is_described", "load_rows", "open_descriptor", "raw_chunks", "rows_of"]


Labels: TypeAlias = NDArray[np.int64] | NDArray[np.float64]


@dataclass(slots=True)
class RawChunk:
    """Raw rows with their labels, and keys if there are any."""

    raw: NDArray[np.generic]
    labels: Labels
    keys: NDArray[np.str_] | None = None


@dataclass(slots=True)
class _Parts:
    x: list[NDArray[np.float32]] = field(default_factory=list)
    y: list[Labels] = field(default_factory=list)
    keys: list[NDArray[np.str_]] = field(default_factory=list)


def is_described(path: Path) -> bool:
    """Whether a path is more than an ``.npz`` with features: it is, or has, a descriptor, or is a folder, which needs one."""
    return path.is_dir() or find_descriptor(path) is not None


def open_descriptor(path: Path, descriptor: Path | None = None) -> Descriptor:
    """The descriptor for ``path``; where that is a data file, for this file alone.

    Raises:
        NotFoundError: no such file, or no descriptor for it.
        ConfigError, LimitError: the descriptor is wrong.
    """
    if not path.exists():
        raise NotFoundError(f"{path}: no such file or folder")
    found = descriptor or find_descriptor(path)
    if found is None:
        raise no_descriptor(path)
    made, file = read_descriptor(found), path.resolve()
    if path.suffix == ".toml" or path.is_dir():
        return made
    if made.class_files or (made.kind == "idx" and file not in made.files):
        raise ConfigError(f"{found} does not name {path}: its files belong together, so name it in files")
    labels = (made.labels[made.files.index(file)],) if made.kind == "idx" else ()
    return replace(made, files=(file,), labels=labels)


def load_rows(path: Path, descriptor: Path | None = None) -> Rows:
    """All rows of a data set, checked.

    Raises InputError (NotFoundError, ConfigError, LimitError, MalformedError): one sentence with the file, and the row or the
    line and column at fault.
    """
    if descriptor is None and path.is_file() and path.suffix == ".npz" and not is_described(path):
        return read_made_rows(path)
    return rows_of(open_descriptor(path, descriptor))


def rows_of(d: Descriptor) -> Rows:
    """The rows of a descriptor. Raises InputError."""
    projection = load_projection(d.projection) if d.projection is not None else None
    try:
        transform = Transform(d.recipe, projection)
    except ConfigError as error:
        raise ConfigError(f"{d.path}: {error.message}") from None
    parts, total, longest = _Parts(), 0, 0
    for chunk in raw_chunks(d):
        total += len(chunk.labels)
        if chunk.keys is not None:
            # All keys have the room of the longest.
            longest = max(longest, chunk.keys.dtype.itemsize)
        check_size(d.files[0], total, 4 * d.recipe.features + longest)
        parts.x.append(transform.features(chunk.raw))
        parts.y.append(chunk.labels)
        if chunk.keys is not None:
            parts.keys.append(chunk.keys)
    if not total:
        raise MalformedError(f"{d.files[0]}: no rows: an empty data set teaches nothing")
    y = _as_labels(np.concatenate(parts.y), d.recipe.real)
    whole = hashlib.sha256(transform.digest + y.astype("<f8" if d.recipe.real else "<i8").tobytes()).digest()
    return Rows(
        str(d.path), d.name, np.concatenate(parts.x), y, d.recipe.classes, np.concatenate(parts.keys) if parts.keys else None,
        d.recipe, projection, whole,
    )  # fmt: skip


def raw_chunks(d: Descriptor) -> Iterator[RawChunk]:
    """The descriptor's raw rows, checked, some thousands at a time. Raises InputError."""
    if d.kind in ("csv", "text"):
        counter = TextCounter(d.recipe.text) if d.recipe.text is not None else None
        for part in read_texts(d) if counter is not None else read_tables(d):
            values = part.matrix(d.recipe.raw_width) if counter is None else counter.rows(part.texts)
            yield RawChunk(values, _as_labels(part.labels, d.recipe.real), np.array(part.keys) if part.keys else None)
        return
    for index, path in enumerate(d.files):
        raw: NDArray[np.generic]
        labels: Labels
        keys: NDArray[np.str_] | None = None
        if d.kind == "cifar10":
            raw, labels = read_cifar10(path)
        elif d.kind == "idx":
            raw, labels = read_idx(path, 3), _idx_labels(d, index)
        else:
            raw, *rest = read_npz(path, d.x, d.y, *([d.key] if d.key else []))
            labels = _labels(path, d, rest[0])
            keys = _keys(path, d, rest[1]) if d.key else None
        _check_raw(path, d, raw, labels)
        step = rows_at_a_time(d.recipe)
        for start in range(0, len(raw), step):
            stop = start + step
            yield RawChunk(raw[start:stop], labels[start:stop], None if keys is None else keys[start:stop])


def _as_labels(values: Sequence[float] | NDArray[np.generic], real: bool) -> Labels:
    return np.array(values, dtype=np.float64) if real else np.array(values, dtype=np.int64)


def _check_raw(path: Path, d: Descriptor, raw: NDArray[np.generic], labels: Labels) -> None:
    if raw.shape[1:] != d.recipe.shape:
        raise MalformedError(f"{path}: rows of shape {list(raw.shape[1:])}, the recipe has {list(d.recipe.shape)}")
    if len(raw) != len(labels):
        raise MalformedError(f"{path}: {len(raw)} rows and {len(labels)} labels")
    if d.recipe.raw == "pixels" and raw.dtype != np.uint8:
        raise MalformedError(f'{path}: pixels are bytes (uint8), these rows are {raw.dtype}: raw = "numbers" takes them')
    if d.recipe.raw == "numbers":
        if raw.dtype.kind not in "fiub":
            raise MalformedError(f"{path}: rows of {raw.dtype}, they must be numbers")
        if raw.dtype.kind == "f" and (bad := ~np.isfinite(raw)).any():
            row, *column = map(int, np.argwhere(bad)[0])
            raise MalformedError(f"{path}: row {row}, value {column}: {raw[(row, *column)]} is not a finite number", row=row)


def _idx_labels(d: Descriptor, index: int) -> NDArray[np.int64]:
    return whole_labels(d.labels[index], read_idx(d.labels[index], 1), d.recipe.classes)


def _labels(path: Path, d: Descriptor, y: NDArray[np.generic]) -> Labels:
    """Numbers of classes; names are looked up, and regression targets stay, or fall between the cuts."""
    if y.ndim != 1:
        raise MalformedError(f"{path}: {d.y} must be of shape (rows), it is {y.shape}")
    if y.dtype.kind == "U" or ((d.recipe.cuts or d.recipe.real) and y.dtype.kind in "fiu"):
        found = np.empty(len(y))
        for row, value in enumerate(y.tolist()):
            try:
                found[row] = label_of(d.recipe, str(value))
            except MalformedError as error:
                raise MalformedError(f"{path}: row {row}: {error.message}", row=row) from None
        return _as_labels(found, d.recipe.real)
    return whole_labels(path, y, d.recipe.classes)


def _keys(path: Path, d: Descriptor, stored: NDArray[np.generic]) -> NDArray[np.str_]:
    if stored.dtype.kind not in "Uiu" or stored.ndim != 1:
        raise MalformedError(f"{path}: {d.key} must be texts or whole numbers, one a row; it is {stored.dtype} {stored.shape}")
    keys = stored.astype(np.str_)
    if keys.dtype.itemsize > 4 * MAX_KEY:
        raise MalformedError(f"{path}: {d.key} holds keys of {keys.dtype.itemsize // 4} characters, at most {MAX_KEY}")
    return keys
