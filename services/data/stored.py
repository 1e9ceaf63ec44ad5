"""Features in an ``.npz`` file: ``x`` (n, M) and ``y`` (n), and along with them the recipe that they were made by."""

from __future__ import annotations

import hashlib
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError, InputError, MalformedError
from services.data.arrays import finite_rows, read_npz, whole_labels
from services.data.recipe import Recipe, recipe_from_bytes
from services.data.rows import Rows
from services.data.transform import Projection, Transform
from services.runtime.durable import replaced

__all__ = ["public_arrays", "read_made_rows", "recipe_digest_in", "recipe_in", "save_rows"]

MOST_CLASSES = 65_535


def save_rows(path: Path, rows: Rows) -> None:
    """An ``.npz`` of features that any role reads without a descriptor; it carries recipe and projection along.

    A reader sees the old file or the whole new one. Raises ConfigError.
    """
    arrays: dict[str, NDArray[np.generic]] = {"x": rows.x, "y": rows.y}
    if rows.keys is not None:
        arrays["key"] = rows.keys
    arrays |= public_arrays(rows.recipe, rows.projection)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced(path) as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from None


def public_arrays(recipe: Recipe | None, projection: Projection | None) -> dict[str, NDArray[np.generic]]:
    """What a task's practice set carries besides its rows, so that whoever trains for it can make the same features."""
    made: dict[str, NDArray[np.generic]] = {}
    if recipe is not None:
        made["recipe"] = np.frombuffer(recipe.to_bytes(), dtype=np.uint8)
    if projection is not None:
        made |= {"pca_mean": projection.mean, "pca_matrix": projection.matrix}
    return made


def recipe_in(path: Path) -> tuple[Recipe, Projection | None] | None:
    """The recipe that an ``.npz`` carries, if it does. Raises MalformedError, LimitError."""
    if "recipe" not in _names(path):
        return None
    (stored,) = read_npz(path, "recipe")
    if stored.dtype != np.uint8 or stored.ndim != 1:
        raise MalformedError(f"{path}: the recipe is {stored.dtype} of shape {stored.shape}, it must be bytes")
    recipe = recipe_from_bytes(stored.tobytes(), str(path))
    if not recipe.pca:
        return recipe, None
    (mean,), (matrix,) = read_npz(path, "pca_mean"), read_npz(path, "pca_matrix")
    try:
        projection = Projection(np.asarray(mean, np.int32), np.asarray(matrix, np.int32))
        Transform(recipe, projection)
    except InputError as error:
        raise MalformedError(f"{path}: {error.message}") from None
    return recipe, projection


def recipe_digest_in(path: Path) -> bytes:
    """Digest of the recipe that an ``.npz`` carries, empty if it carries none. Raises as recipe_in."""
    carried = recipe_in(path)
    return b"" if carried is None else carried[0].digest


def read_made_rows(path: Path) -> Rows:
    """Features as they stand in the file. Raises NotFoundError, LimitError, MalformedError, naming file, row and feature."""
    x, y = read_npz(path, "x", "y")
    floats = finite_rows(path, x, np.float32)
    if not floats.size:
        raise MalformedError(f"{path}: x is empty, its shape is {x.shape}")
    carried = recipe_in(path)
    recipe, projection = carried if carried is not None else (None, None)
    most = recipe.classes if recipe is not None else MOST_CLASSES
    labels: NDArray[np.int64] | NDArray[np.float64]
    if recipe is not None and recipe.real:
        labels = y.astype(np.float64) if y.dtype.kind in "fiu" and y.shape == (len(x),) else np.array([np.nan])
        if not np.isfinite(labels).all():
            raise MalformedError(f"{path}: y must be a finite number for each of {len(x)} rows, it is {y.dtype} of {y.shape}")
    else:
        labels = whole_labels(path, y, most)
    if recipe is not None and recipe.features != floats.shape[1]:
        raise MalformedError(f"{path}: {floats.shape[1]} features, the recipe in it makes {recipe.features}")
    keys = None
    if "key" in _names(path):
        (stored,) = read_npz(path, "key")
        if stored.dtype.kind not in "Uiu" or stored.shape != labels.shape:
            raise MalformedError(f"{path}: key is {stored.dtype} of {stored.shape}; it must be a text or a number for each row")
        keys = stored.astype(np.str_)
    classes = recipe.classes if recipe is not None else max(2, int(labels.max()) + 1)
    parts = floats.astype("<f4").tobytes(), labels.astype("<f8" if labels.dtype.kind == "f" else "<i8").tobytes()
    whole = hashlib.sha256(b"".join(parts)).digest()
    return Rows(str(path), path.stem, floats, labels, classes, keys, recipe, projection, whole)


def _names(path: Path) -> set[str]:
    try:
        with ZipFile(path) as archive:
            return {name.removesuffix(".npy") for name in archive.namelist()}
    except (BadZipFile, OSError, ValueError) as error:
        raise MalformedError(f"{path}: not an .npz file: {error}") from None
