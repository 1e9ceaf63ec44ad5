"""``pofl data describe``: a first descriptor, with constants taken from rows that may be public."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from core.errors import ConfigError, MalformedError
from services.cli.errors import runs
from services.cli.output import console
from services.data.arrays import read_npz
from services.data.descriptor import KINDS, Descriptor, read_descriptor, save_projection
from services.data.fields import listed
from services.data.fitting import fit_projection, fit_standard, to_toml
from services.data.idx import read_idx
from services.data.recipe import Recipe, TextRule
from services.data.survey import MOST_KEPT, Survey, choose_columns, survey, suspicions
from services.data.tables import read_texts
from services.data.texts import terms_of

__all__ = ["OutOption", "describe", "refuse_existing"]

OutOption = Annotated[Path, typer.Option("--out", metavar="PATH", help="Where to write; nothing is overwritten.")]
MISSING = "?,nan,NaN,NA"
"""Of a table. pandas and R write the last three."""


@runs
async def describe(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Data files; for idx images and labels in turn.")],
    out: OutOption,
    kind: Annotated[str, typer.Option(help=f"{', '.join(KINDS)}; default: text with --text, else by the name.")] = "",
    target: Annotated[str, typer.Option(help="csv, text: the column to predict; without a header 0 is the first.")] = "",
    text: Annotated[str, typer.Option(help="The column with the text: makes it --kind text.")] = "",
    key: Annotated[str, typer.Option(help="csv, text, npz: the natural key, for example the patient.")] = "",
    cuts: Annotated[str, typer.Option(help="csv: the target is a number, its class a range between cuts: 10,20.5.")] = "",
    real: Annotated[bool, typer.Option("--real", help="csv, npz: the target stays a number; the task gives buckets.")] = False,
    missing: Annotated[str, typer.Option(help='csv: texts that mean no value, between commas; "" always does.')] = MISSING,
    leave_out: Annotated[str, typer.Option("--without", help="csv: columns to leave out, between commas.")] = "",
    categories: Annotated[int, typer.Option(min=2, help="csv: a text column with more values is left out.")] = 12,
    header: Annotated[
        bool, typer.Option("--header/--no-header", help="csv, text: the first line names columns; else 0, 1, ...")
    ] = True,
    quoted: Annotated[
        bool, typer.Option("--quoted/--not-quoted", help="csv, text: whether quotes enclose cells, or are characters.")
    ] = True,
    words: Annotated[int, typer.Option(min=1, max=4096, help="text: size of the vocabulary.")] = 256,
    hashing: Annotated[bool, typer.Option("--hashing", help="text: hash words into so many buckets; no vocabulary.")] = False,
    x: Annotated[str, typer.Option(help="npz: name of the array with rows.")] = "x",
    y: Annotated[str, typer.Option(help="npz: name of the array with labels.")] = "y",
    resize: Annotated[str, typer.Option(help="Images: new height and width, like 16x16; each pixel an area average.")] = "",
    grey: Annotated[bool, typer.Option("--grey", help="Images: one value a pixel instead of three colours.")] = False,
    standardise: Annotated[bool, typer.Option("--standardise", help="Each feature less its mean, over its deviation.")] = False,
    pca: Annotated[int, typer.Option(min=0, help="So many principal components, in a matrix beside the descriptor.")] = 0,
) -> None:
    """Write a descriptor for data files, with constants (means, vocabulary, projection) taken from these rows.

    FILE... are files of one kind; of idx, images and labels in turn.

    The constants become public with the task: describe rows that may be known, such as the practice set.

    All members of a pool and the requester then use this one recipe, with other `files`.

    Example: pofl data describe train-images-idx3-ubyte.gz train-labels-idx1-ubyte.gz --resize 16x16 --out mnist.toml

    Example: pofl data describe practice.csv --target readmitted --key patient_nbr --without encounter_id --out visits.toml

    Example: pofl data describe sms.tsv --no-header --not-quoted --target 0 --text 1 --out sms.toml
    """
    refuse_existing(out)
    paths = tuple(path.resolve() for path in files)
    kind = kind or ("text" if text else _kind_of(paths[0]))
    if kind not in KINDS:
        raise ConfigError(f"--kind is {kind!r}: it must be one of {', '.join(KINDS)}")
    if text and kind != "text":
        raise ConfigError(f"--text is for --kind text, not for {kind}")
    made = Descriptor(
        path=out, name=out.stem[:64], kind=kind, files=paths, recipe=Recipe(raw="numbers", classes=2, shape=(1,)), key=key,
        target=target, text=text, header=header, quoted=quoted, x=x, y=y,
        delimiter="\t" if paths[0].name.removesuffix(".gz").endswith(".tsv") else ",",
    )  # fmt: skip
    notes: list[str] = []
    if kind == "csv":
        found = survey(made, _names(missing))
        _check_columns(found, made, _names(leave_out))
        recipe, left_out = _table_recipe(found, made, cuts, real, _names(missing), _names(leave_out), categories)
        made = replace(made, recipe=recipe)
        notes = [f"left out: {', '.join(left_out)}"] if left_out else []
        notes += [f"warning: {said}" for said in suspicions(found, recipe.columns, target)]
    elif kind == "text":
        made = replace(made, recipe=_text_recipe(made, words, hashing))
    else:
        made = _array_recipe(made, resize, grey, real)
    projection_name = ""
    if standardise:
        made = replace(made, recipe=fit_standard(made))
    if pca:
        recipe, projection = fit_projection(made, pca)
        projection_name = f"{out.stem}.pca.npz"
        refuse_existing(out.with_name(projection_name))
        save_projection(out.with_name(projection_name), projection)
        made = replace(made, recipe=recipe)
    _write(out, to_toml(made, projection_name))
    recipe = read_descriptor(out).recipe
    console.print(f"{out}: {recipe.features} features, {recipe.classes or 'real'} classes, recipe {recipe.digest.hex()[:16]}")
    for note in notes:
        console.print(note, highlight=False, markup=False)
    console.print(f"read it, correct it, then: pofl data inspect {out}", highlight=False)


def _check_columns(found: Survey, made: Descriptor, leave_out: Sequence[str]) -> None:
    """Every column that was named is there, with what its part needs. Raises ConfigError, MalformedError."""
    names = found.names
    named = [("--target", made.target), *([("--text", made.text)] if made.kind == "text" else []), ("--key", made.key)]
    for option, name in named:
        if name not in names and (name or option != "--key"):
            of = " (without a header: their numbers)" if not made.header else ""
            told = f"is {name!r}: it " if name else ""
            raise ConfigError(f"{option} {told}must be one of the columns{of} {listed(names, name)}")
    for name in leave_out:
        if name not in names:
            raise ConfigError(f"--without names {name!r}, there is no such column in {listed(names, name)}")
    if made.key and made.key == made.target:
        raise ConfigError(f"--key and --target are the same column, {made.key}")
    if (target := found.column(made.target)).missing:
        raise MalformedError(
            f"{target.first_missing}, column {made.target!r}: no value, in {target.missing} rows: rows without a target teach "
            "nothing, take them out; or, if it is one, name with --missing only what means none"
        )


def _table_recipe(
    found: Survey, made: Descriptor, cuts: str, real: bool, missing: tuple[str, ...], leave_out: tuple[str, ...],
    categories: int,
) -> tuple[Recipe, tuple[str, ...]]:  # fmt: skip
    """The recipe, and which columns were left out and why."""
    y = found.column(made.target)
    limits = _numbers(cuts)
    if (real or limits) and y.odd:
        raise MalformedError(f"--{'real' if real else 'cuts'}: column {made.target!r}: {y.odd_in_words}")
    if real or limits:
        y.check_size("Correct it, or take the row out")
    columns, left_out = choose_columns(found, frozenset({made.target, made.key, *leave_out}), categories)
    if real or limits:
        classes = len(limits) + 1 if limits else 0
        made_recipe = Recipe("table", classes, cuts=limits, real=real, columns=columns, missing=missing, bound=4.0)
        return made_recipe, left_out
    names = tuple(sorted(y.texts, key=lambda name: (_as_number(name), name)))
    _check_classes(made.target, len(names))
    return Recipe(raw="table", classes=len(names), class_names=names, columns=columns, missing=missing, bound=4.0), left_out


def _check_classes(target: str, count: int) -> None:
    if not 2 <= count <= 256:
        shown = count if count <= MOST_KEPT else f"more than {MOST_KEPT}"
        raise ConfigError(f"{target} has {shown} different values: 2 to 256 are classes; --cuts or --real for a number")


def _text_recipe(made: Descriptor, words: int, hashing: bool) -> Recipe:
    found = survey(made, ())
    _check_columns(found, made, ())
    labels = found.column(made.target).texts
    _check_classes(made.target, len(labels))
    rule = TextRule("hashing", size=words)
    plain = Recipe(raw="text", classes=len(labels), class_names=tuple(sorted(labels)), text=rule, bound=1.0)
    if hashing:
        return plain
    texts = [text for chunk in read_texts(replace(made, recipe=plain)) for text in chunk.texts]
    return replace(plain, text=terms_of(texts, words, (1, 1)))


def _array_recipe(made: Descriptor, resize: str, grey: bool, real: bool) -> Descriptor:
    sizes = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", resize)
    smaller = tuple(int(size) for size in sizes.groups()) if sizes else ()
    if resize and not smaller:
        raise ConfigError(f"--resize is {resize!r}: it must be height x width, like 16x16")
    if made.kind == "cifar10":
        recipe = Recipe(raw="pixels", classes=10, shape=(32, 32, 3), divide=255.0, grey=grey, resize=smaller, bound=1.0)
        return replace(made, recipe=recipe)
    if made.kind == "idx":
        if len(made.files) % 2:
            raise ConfigError("idx: name images and labels in turn, an even number of files")
        made = replace(made, files=made.files[::2], labels=made.files[1::2])
        labels = np.concatenate([read_idx(path, 1) for path in made.labels])
        shape = read_idx(made.files[0], 3).shape[1:]
        recipe = Recipe(
            raw="pixels", classes=max(2, int(labels.max()) + 1), shape=shape, divide=255.0, resize=smaller, bound=1.0
        )
        return replace(made, recipe=recipe)
    rows, y = read_npz(made.files[0], made.x, made.y)
    is_pixels = rows.dtype == np.uint8 and rows.ndim in (3, 4) and not real
    if real:
        return replace(made, recipe=Recipe(raw="numbers", classes=0, real=True, shape=rows.shape[1:]))
    if y.dtype.kind not in "iu" or not len(y):
        raise ConfigError(f"{made.files[0]}: {made.y} is {y.dtype}: labels are whole numbers; --real for targets")
    classes = max(2, int(y.max()) + 1)
    if is_pixels:
        recipe = Recipe(raw="pixels", classes=classes, shape=rows.shape[1:], divide=255.0, grey=grey, resize=smaller, bound=1.0)
    else:
        recipe = Recipe(raw="numbers", classes=classes, shape=rows.shape[1:])
    return replace(made, recipe=recipe)


def _kind_of(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    for ending, kind in ((".npz", "npz"), (".csv", "csv"), (".tsv", "csv"), ("ubyte", "idx"), (".bin", "cifar10")):
        if name.endswith(ending):
            return kind
    if name.startswith(("data_batch", "test_batch")):
        return "cifar10"
    raise ConfigError(f"{path}: its name does not say what it is: give --kind, one of {', '.join(KINDS)}")


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in _names(text))
    except ValueError:
        raise ConfigError(f"--cuts is {text!r}: it must be numbers between commas") from None


def _as_number(text: str) -> float:
    return float(text) if text.replace(".", "", 1).isdecimal() else float("inf")


def refuse_existing(path: Path) -> None:
    """Raises ConfigError."""
    if path.exists():
        raise ConfigError(f"{path} exists: choose another place, or remove it")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from None
