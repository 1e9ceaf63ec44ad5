"""The descriptor: a small TOML file beside the data that says what lies where, and holds or names the recipe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError, InputError, LimitError, NotFoundError
from services.data.arrays import read_arrays
from services.data.fields import Fields, listed
from services.data.recipe import Recipe, recipe_from_table
from services.data.toml import parse_toml
from services.data.transform import Projection

__all__ = ["KINDS", "Descriptor", "find_descriptor", "load_projection", "no_descriptor", "read_descriptor", "save_projection"]

KINDS: Final = {"npz": ("pixels", "numbers"), "idx": ("pixels",), "cifar10": ("pixels",), "csv": ("table",), "text": ("text",)}
"""Kinds of files, and the raw rows that each gives."""
NAMES: Final = ("data.toml", "descriptor.toml")
MAX_DESCRIPTOR: Final = 8 << 20
MAX_FILES: Final = 4096
MAX_PROJECTION: Final = 256 << 20
DELIMITERS: Final = {"comma": ",", "tab": "\t", "semicolon": ";", "bar": "|"}


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Where rows are. Paths are absolute."""

    path: Path
    name: str
    kind: str
    files: tuple[Path, ...]
    recipe: Recipe
    projection: Path | None = None
    labels: tuple[Path, ...] = ()
    """idx: the labels of each file."""
    x: str = "x"
    y: str = "y"
    """npz: names of the arrays."""
    key: str = ""
    """The natural key: a column's name, or an npz array's; empty: none."""
    target: str = ""
    text: str = ""
    """Tables and texts: names of columns; without a header their numbers from 0."""
    header: bool = True
    delimiter: str = ","
    quoted: bool = True
    """Cells may stand in double quotes, as in RFC 4180."""
    class_files: bool = False
    """Text: every line is an example, and file i holds those of class i."""

    def with_files(self, *files: Path) -> Descriptor:
        """The same for other rows of the same form."""
        return replace(self, files=files)


def find_descriptor(data: Path) -> Path | None:
    """The descriptor that belongs to ``data``: itself; a folder's ``data.toml`` or only one; a file's ``NAME.toml``."""
    if data.suffix == ".toml":
        return data
    if data.is_dir():
        beside = [data / name for name in NAMES]
        if not any(path.is_file() for path in beside):
            beside = found if len(found := _in_folder(data)) == 1 else []
    else:
        beside = [data.with_name(data.name + ".toml"), data.with_suffix(".toml")]
        if data.suffix == ".gz":
            beside.append(data.with_suffix("").with_suffix(".toml"))
    return next((path for path in beside if path.is_file()), None)


def no_descriptor(data: Path) -> NotFoundError:
    """That ``data`` has no descriptor, what was looked for, and what is there instead."""
    if not data.is_dir():
        return NotFoundError(
            f"{data}: no descriptor beside it: `pofl data describe` writes one, or name one with --descriptor FILE"
        )
    if found := [path.name for path in _in_folder(data)]:
        return NotFoundError(
            f"{data}: a folder of {len(found)} .toml files, none of them {' or '.join(NAMES)}: name one, as "
            f"{data / found[0]}; there are {listed(found)}"
        )
    names = sorted(path.name for path in data.iterdir())
    has = f"it holds {listed(names, most=10)}" if names else "it is empty"
    return NotFoundError(f"{data}: a folder without a descriptor (.toml), {has}: `pofl data describe` writes one")


def _in_folder(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.toml") if path.is_file())


def read_descriptor(path: Path) -> Descriptor:
    """Raises ConfigError or LimitError that names the file and the key."""
    try:
        if path.stat().st_size > MAX_DESCRIPTOR:
            raise LimitError(f"{path}: {path.stat().st_size} bytes, a descriptor has at most {MAX_DESCRIPTOR}")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the descriptor {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    table = parse_toml(text, path)
    f = Fields(table, str(path), [*(n for n in Descriptor.__dataclass_fields__ if n != "path"), "recipe"])
    if not f.has("recipe"):
        raise ConfigError(f"{path}: there is no table [recipe]: `pofl data describe` writes one")
    try:
        recipe = recipe_from_table(f.raw("recipe"), f"{path}: recipe")
    except InputError as error:
        text = error.message if str(path) in error.message else f"{path}: {error.message}"
        raise type(error)(text) from None
    kind = f.text("kind", choices=tuple(KINDS))
    files, labels = (tuple((path.parent / Path(n).expanduser()).resolve() for n in f.texts(k)) for k in ("files", "labels"))
    default = "tab" if files and files[0].name.removesuffix(".gz").endswith(".tsv") else "comma"
    projection = f.text("projection", "")
    made = Descriptor(
        path=path, name=f.text("name", path.stem), kind=kind, files=files, recipe=recipe,
        projection=(path.parent / Path(projection).expanduser()).resolve() if projection else None, labels=labels,
        x=f.text("x", "x"), y=f.text("y", "y"), key=f.text("key", ""), target=f.text("target", ""), text=f.text("text", ""),
        header=f.flag("header", True), delimiter=DELIMITERS[f.text("delimiter", default, choices=tuple(DELIMITERS))],
        quoted=f.flag("quoted", True), class_files=f.flag("class_files", False),
    )  # fmt: skip
    _check(made, f.given())
    return made


def _check(d: Descriptor, given: list[str]) -> None:
    recipe, path = d.recipe, d.path
    if recipe.raw not in KINDS[d.kind]:
        raise ConfigError(f"{path}: files of kind {d.kind} give {' or '.join(KINDS[d.kind])}, the recipe is for {recipe.raw}")
    if not 1 <= len(d.files) <= MAX_FILES:
        raise ConfigError(f"{path}: files must name 1 to {MAX_FILES} files, it names {len(d.files)}")
    if not 1 <= len(d.name) <= 64:
        raise ConfigError(f"{path}: name must have 1 to 64 characters, it has {len(d.name)}")
    if bool(recipe.pca) != (d.projection is not None):
        raise ConfigError(f"{path}: projection (a file) and recipe.pca (its digest) belong together, one of them is missing")
    uses = {
        "idx": {"labels"}, "npz": {"x", "y", "key"}, "csv": {"key", "target", "header", "delimiter", "quoted"},
        "text": {"key", "target", "text", "header", "delimiter", "quoted", "class_files"}, "cifar10": set(),
    }[d.kind]  # fmt: skip
    for key in ("labels", "x", "y", "key", "target", "text", "header", "delimiter", "quoted", "class_files"):
        if key in given and key not in uses:
            raise ConfigError(f"{path}: {key} is of no use for kind {d.kind}", key=key)
    if d.kind == "idx" and len(d.labels) != len(d.files):
        raise ConfigError(f"{path}: labels must name a file for each of the {len(d.files)} in files, it names {len(d.labels)}")
    if recipe.real and d.kind not in ("csv", "npz"):
        raise ConfigError(f"{path}: real targets come from csv and npz, not from files of kind {d.kind}")
    if d.kind == "csv" and not d.target:
        raise ConfigError(f"{path}: target is not set: the name of the column to predict")
    if d.kind == "text" and d.class_files and len(d.files) != recipe.classes:
        raise ConfigError(f"{path}: class_files needs a file for each of {recipe.classes} classes, files has {len(d.files)}")
    if d.kind == "text" and not d.class_files and not (d.text and d.target):
        raise ConfigError(f"{path}: text and target must name columns, or class_files = true with one file for each class")
    if d.kind == "cifar10" and (recipe.shape != (32, 32, 3) or recipe.classes != 10):
        raise ConfigError(f"{path}: CIFAR-10 has shape [32, 32, 3] and 10 classes")


def load_projection(path: Path) -> Projection:
    """From an ``.npz`` with ``mean`` and ``matrix``, int32 millionths. Raises InputError, naming the file."""
    try:
        found = read_arrays(path, "mean", "matrix", limit=MAX_PROJECTION)
        # Which checks the types itself.
        return Projection(*(cast("NDArray[np.int32]", found[name]) for name in ("mean", "matrix")))
    except InputError as error:
        raise type(error)(error.message if str(path) in error.message else f"{path}: {error.message}") from None


def save_projection(path: Path, projection: Projection) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, mean=projection.mean, matrix=projection.matrix)
