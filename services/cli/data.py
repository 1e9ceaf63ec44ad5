"""``pofl data``: look at data, describe them, turn them into features, and split them among miners."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer

from core.errors import ConfigError, MalformedError
from services.cli.errors import runs
from services.cli.output import JsonOption, console, emit_json, table
from services.data.arrays import read_npz
from services.data.descriptor import KINDS, Descriptor, read_descriptor, save_projection
from services.data.fitting import ColumnSummary, fit_projection, fit_standard, guess_columns, summarise, to_toml
from services.data.idx import read_idx
from services.data.loading import load_rows, open_descriptor
from services.data.partition import split
from services.data.recipe import Column, Recipe, TextRule
from services.data.rows import Rows
from services.data.stored import recipe_in, save_rows
from services.data.tables import read_texts
from services.data.texts import terms_of

__all__ = ["app"]

app = typer.Typer(
    help="Look at data, describe them, turn them into features, and split them among miners.\n\n"
    "A descriptor (TOML) says where rows lie and how they become features: its recipe. Everybody who works on a task uses the "
    "same recipe, so that all make the same features, to the last bit. `pofl data describe` writes a first one.",
    no_args_is_help=True,
)

MOST_SHOWN: Final = 12
SHARES: Final = "share{}.npz"

DataArgument = Annotated[Path, typer.Argument(metavar="DATA", help="A descriptor (.toml), a folder or file with one, an .npz.")]
DescriptorOption = Annotated[
    Path | None, typer.Option("--descriptor", metavar="FILE", help="Descriptor of DATA, where it does not lie beside it.")
]
OutOption = Annotated[Path, typer.Option("--out", metavar="PATH", help="Where to write; nothing is overwritten.")]


@app.command()
@runs
async def inspect(data: DataArgument, descriptor: DescriptorOption = None, as_json: JsonOption = False) -> None:
    """Read a data set as a miner would, and say what is in it: rows, features, classes, digests.

    DATA is a descriptor (.toml), a folder or file with one beside it, or an .npz with features x and labels y.

    A file that cannot be used ends in one sentence with the file, the row or line and the column at fault.

    Two members whose `recipe` is equal make the same features; `rows` is equal if they read the same rows.

    Example: pofl data inspect mnist.toml
    """
    rows = load_rows(data, descriptor)
    recipe = rows.recipe
    counts = [] if rows.y.dtype.kind == "f" else np.bincount(rows.y.astype(np.int64), minlength=rows.classes).tolist()
    names = [recipe.class_name(label) if recipe is not None else str(label) for label in range(len(counts))]
    if as_json:
        emit_json({
            "name": rows.name, "rows": len(rows), "features": rows.features, "classes": rows.classes,
            "class_counts": dict(zip(names, counts, strict=True)), "low": float(rows.x.min()), "high": float(rows.x.max()),
            "keys": 0 if rows.keys is None else len(np.unique(rows.keys)), "recipe": recipe.digest if recipe else b"",
            "rows_digest": rows.digest, "feature_scale_micro": recipe.feature_scale_micro if recipe else 0,
        })  # fmt: skip
        return
    console.print(f"{rows.source}: {len(rows)} rows of {rows.features} features", highlight=False)
    facts = [("features", f"from {rows.x.min():.4g} to {rows.x.max():.4g}, {_constant(rows)} of them the same in every row")]
    if recipe is not None:
        facts.append(("recipe", recipe.digest.hex()))
        if recipe.feature_scale_micro:
            facts.append(("scored", f"as int8, round(x * {recipe.feature_scale_micro / 1e6:g})"))
    else:
        facts.append(("recipe", "none: the features are taken as they are"))
    facts.append(("rows", rows.digest.hex()))
    if rows.keys is not None:
        facts.append(("keys", f"{len(np.unique(rows.keys))} different: `pofl data partition --by key` keeps each whole"))
    if rows.y.dtype.kind == "f":
        facts.append(("targets", f"real, from {rows.y.min():g} to {rows.y.max():g}, mean {rows.y.mean():g}"))
    for name, fact in facts:
        console.print(f"  {name:<9}{fact}", highlight=False, markup=False)
    if counts:
        listed = [(label, names[label], count, f"{100 * count / len(rows):.1f} %") for label, count in enumerate(counts)]
        console.print(table("classes", ["label", "class", "rows", "share"], listed[:50], right=[0, 2, 3]))
    if rows.features + max(2, rows.classes) > MOST_ROWS:
        console.print(
            f"warning: {rows.features} features and {rows.classes} classes: a task has at most {MOST_ROWS} of both together; "
            "resize, or let --pca make fewer", highlight=False,
        )  # fmt: skip


MOST_ROWS: Final = 512
"""Of the encrypted test set, features and classes (core.verification.task)."""


@app.command()
@runs
async def describe(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Data files; for idx images and labels in turn.")],
    out: OutOption,
    kind: Annotated[str, typer.Option(help=f"{', '.join(KINDS)}; default: by the file's name.")] = "",
    target: Annotated[str, typer.Option(help="csv, text: the column to predict.")] = "",
    text: Annotated[str, typer.Option(help="text: the column with the text.")] = "",
    key: Annotated[str, typer.Option(help="csv, text, npz: the natural key, for example the patient.")] = "",
    cuts: Annotated[str, typer.Option(help="csv: the target is a number, its class a range between cuts: 10,20.5.")] = "",
    real: Annotated[bool, typer.Option("--real", help="csv, npz: the target stays a number; the task gives buckets.")] = False,
    missing: Annotated[str, typer.Option(help="csv: texts that mean no value, between commas.")] = "?",
    leave_out: Annotated[str, typer.Option("--without", help="csv: columns to leave out, between commas.")] = "",
    categories: Annotated[int, typer.Option(min=2, help="csv: a text column with more values is left out.")] = 12,
    header: Annotated[bool, typer.Option("--header/--no-header", help="csv, text: the first line names columns.")] = True,
    quoted: Annotated[bool, typer.Option("--quoted/--not-quoted", help="csv, text: whether cells may stand in quotes.")] = True,
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

    Example: pofl data describe visits.csv.gz --target readmitted --key patient_nbr --out visits.toml
    """
    _refuse_existing(out)
    paths = tuple(path.resolve() for path in files)
    kind = kind or _kind_of(paths[0])
    if kind not in KINDS:
        raise ConfigError(f"--kind is {kind!r}: it must be one of {', '.join(KINDS)}")
    made = Descriptor(
        path=out, name=out.stem[:64], kind=kind, files=paths, recipe=Recipe(raw="numbers", classes=2, shape=(1,)), key=key,
        target=target, text=text, header=header, quoted=quoted, x=x, y=y,
        delimiter="\t" if paths[0].name.removesuffix(".gz").endswith(".tsv") else ",",
    )  # fmt: skip
    if kind == "csv":
        found = summarise(made, _names(missing))
        if target not in [c.name for c in found]:
            raise ConfigError(f"--target must be one of {', '.join(c.name for c in found)[:400]}")
        recipe = _table_recipe(found, target, key, cuts, real, _names(missing), _names(leave_out), categories)
        made = replace(made, recipe=recipe)
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
        _refuse_existing(out.with_name(projection_name))
        save_projection(out.with_name(projection_name), projection)
        made = replace(made, recipe=recipe)
    _write(out, to_toml(made, projection_name))
    recipe = read_descriptor(out).recipe
    console.print(f"{out}: {recipe.features} features, {recipe.classes or 'real'} classes, recipe {recipe.digest.hex()[:16]}")
    console.print(f"read it, correct it, then: pofl data inspect {out}", highlight=False)


@app.command()
@runs
async def convert(
    data: DataArgument, out: OutOption, descriptor: DescriptorOption = None,
    rows: Annotated[int, typer.Option(min=0, help="So many rows, drawn by the seed; 0: all.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw.")] = 1,
) -> None:  # fmt: skip
    """Turn raw data into one .npz of features, x and y, which every role reads without a descriptor.

    DATA is a descriptor (.toml), or a folder or file with one beside it. The .npz carries the recipe along.

    Example: pofl data convert mnist.toml --out features.npz
    """
    _refuse_existing(out)
    made = load_rows(data, descriptor)
    if rows > len(made):
        raise ConfigError(f"--rows is {rows}, {data} has {len(made)}")
    if rows:
        made = made.take(np.sort(np.random.default_rng(seed).permutation(len(made))[:rows]).astype(np.int64))
    save_rows(out, made)
    console.print(f"{out}: {len(made)} rows of {made.features} features", highlight=False)


@app.command()
@runs
async def partition(
    data: DataArgument, out: OutOption,
    parts: Annotated[int, typer.Option(min=1, max=10_000, help="Number of shares.")],
    by: Annotated[str, typer.Option(help="even; dirichlet:ALPHA (label skew, more the smaller); key: whole keys.")] = "even",
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same shares.")] = 1,
    descriptor: DescriptorOption = None, as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Split data among miners, one .npz of features for each, and show who got what.

    DATA is a descriptor (.toml), a folder or file with one beside it, or an .npz with features x and labels y.

    Example: pofl data partition parkinsons.toml --parts 6 --by key --out shares
    """
    made = load_rows(data, descriptor)
    shares = split(by, made.y, made.keys, parts, seed)
    targets = [out / SHARES.format(index) for index in range(parts)]
    for path in targets:
        _refuse_existing(path)
    for path, chosen in zip(targets, shares, strict=True):
        save_rows(path, made.take(chosen))
    lines = [_share_line(made, path, chosen) for path, chosen in zip(targets, shares, strict=True)]
    if as_json:
        emit_json([dict(zip(("file", "rows", "keys", "classes"), line, strict=True)) for line in lines])
        return
    columns = ["file", "rows", "keys", "rows of each class" if made.classes else "targets"]
    console.print(table(f"{data} by {by}", columns, lines, right=[1, 2]))


@app.command()
@runs
async def recipe(
    data: Annotated[Path, typer.Argument(metavar="FILE", help="A descriptor, or an .npz that carries a recipe.")],
    as_json: JsonOption = False,
) -> None:
    """Show the recipe that a descriptor has, or that a task's practice set carries: how its features are made.

    Example: pofl data recipe practice.npz
    """
    if data.suffix == ".npz":
        carried = recipe_in(data)
        if carried is None:
            raise MalformedError(f"{data} carries no recipe: its features were made by a rule that it does not tell")
        found = carried[0]
    else:
        found = open_descriptor(data).recipe
    if as_json:
        emit_json({"digest": found.digest, "recipe": found.to_bytes().decode("ascii")})
        return
    console.print(f"recipe {found.digest.hex()}", highlight=False)
    shown = to_toml(Descriptor(path=data, name="recipe", kind="npz", files=(), recipe=found))
    console.print(shown[shown.index("[recipe]") :].rstrip(), highlight=False, markup=False)


def _table_recipe(
    found: list[ColumnSummary], target: str, key: str, cuts: str, real: bool, missing: tuple[str, ...],
    leave_out: tuple[str, ...], categories: int,
) -> Recipe:  # fmt: skip
    unknown = set(leave_out) - {c.name for c in found}
    if unknown:
        raise ConfigError(f"--without names {min(unknown)!r}, there is no such column")
    columns: tuple[Column, ...] = guess_columns(found, frozenset({target, key, *leave_out}), categories)
    y = next(c for c in found if c.name == target)
    if real or cuts:
        limits = _numbers(cuts)
        return Recipe(
            raw="table", classes=len(limits) + 1 if limits else 0, cuts=limits, real=real, columns=columns, missing=missing,
            bound=4.0,
        )  # fmt: skip
    names = sorted(y.texts, key=lambda name: (_as_number(name), name))
    if not 2 <= len(names) <= 256:
        raise ConfigError(f"{target} has {len(names)} different values: 2 to 256 are classes; --cuts or --real for a number")
    return Recipe(raw="table", classes=len(names), class_names=tuple(names), columns=columns, missing=missing, bound=4.0)


def _text_recipe(made: Descriptor, words: int, hashing: bool) -> Recipe:
    if not made.text or not made.target:
        raise ConfigError("--text and --target must name columns; without a header they are numbers from 0")
    labels: Counter[str] = Counter()
    for summary in summarise(made, ()):
        if summary.name == made.target:
            labels = summary.texts
    if not 2 <= len(labels) <= 256:
        raise ConfigError(f"{made.target} has {len(labels)} different values: 2 to 256 are classes")
    rule = TextRule("hashing", size=words)
    plain = Recipe(raw="text", classes=len(labels), class_names=tuple(sorted(labels)), text=rule, bound=1.0)
    if hashing:
        return plain
    texts = [text for chunk in read_texts(replace(made, recipe=plain)) for text in chunk.texts]
    return replace(plain, text=terms_of(texts, words, (1, 1)))


def _array_recipe(made: Descriptor, resize: str, grey: bool, real: bool) -> Descriptor:
    smaller = tuple(int(size) for size in resize.split("x")) if resize.replace("x", "", 1).isdecimal() else ()
    if resize and len(smaller) != 2:
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


def _share_line(made: Rows, path: Path, chosen: np.ndarray[tuple[int], np.dtype[np.int64]]) -> tuple[object, ...]:
    y = made.y[chosen]
    if made.y.dtype.kind == "f":
        told = f"{y.min():g} to {y.max():g}"
    else:
        counts = np.bincount(y.astype(np.int64), minlength=made.classes).tolist()
        told = " ".join(map(str, counts[:MOST_SHOWN])) + (" …" if len(counts) > MOST_SHOWN else "")
    return path.name, len(chosen), "-" if made.keys is None else len(np.unique(made.keys[chosen])), told


def _constant(rows: Rows) -> int:
    return int((rows.x == rows.x[0]).all(axis=0).sum())


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in _names(text))
    except ValueError:
        raise ConfigError(f"--cuts is {text!r}: it must be numbers between commas") from None


def _as_number(text: str) -> float:
    return float(text) if text.replace(".", "", 1).isdecimal() else float("inf")


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise ConfigError(f"{path} exists: choose another place, or remove it")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from None
