"""``pofl data``: look at data, describe them, turn them into features, and split them among miners."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer

from core.errors import ConfigError, MalformedError
from services.cli.describe import OutOption, describe, refuse_existing
from services.cli.errors import runs
from services.cli.output import JsonOption, console, emit_json, table
from services.data.descriptor import Descriptor
from services.data.fitting import to_toml
from services.data.likeness import check_alike, thin_classes
from services.data.loading import load_rows, open_descriptor
from services.data.partition import split
from services.data.rows import Rows
from services.data.stored import recipe_in, save_rows

__all__ = ["app"]

app = typer.Typer(
    help="Look at data, describe them, turn them into features, and split them among miners.\n\n"
    "A descriptor (TOML) says where rows lie and how they become features: its recipe. Everybody who works on a task uses the "
    "same recipe, so that all make the same features, to the last bit. `pofl data describe` writes a first one.",
    no_args_is_help=True,
)

app.command()(describe)

MOST_SHOWN: Final = 12
SHARES: Final = "share{}.npz"

DataArgument = Annotated[Path, typer.Argument(metavar="DATA", help="A descriptor (.toml), a folder or file with one, an .npz.")]
DescriptorOption = Annotated[
    Path | None, typer.Option("--descriptor", metavar="FILE", help="Descriptor of DATA, where it does not lie beside it.")
]


@app.command()
@runs
async def inspect(
    data: DataArgument, descriptor: DescriptorOption = None,
    like: Annotated[
        Path | None, typer.Option("--like", metavar="FILE", help="A task's practice set: check that these rows fit it.")
    ] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Read a data set as a miner would, and say what is in it: rows, features, classes, digests.

    DATA is a descriptor (.toml), a folder or file with one beside it, or an .npz with features x and labels y.

    A file that cannot be used ends in one sentence with the file, the row or line and the column at fault.

    Two members whose `recipe` is equal make the same features; `rows` is equal if they read the same rows.

    With --like, rows of another recipe, width or kind of labels than the practice set's are an error: a pool of that task
    could not use them.

    Example: pofl data inspect mnist.toml

    Example: pofl data inspect mine.toml --like practice.npz
    """
    rows = load_rows(data, descriptor)
    doubts = check_alike(rows, load_rows(like)) if like is not None else []
    warnings = list(doubts)
    recipe = rows.recipe
    counts = [] if rows.y.dtype.kind == "f" else np.bincount(rows.y.astype(np.int64), minlength=rows.classes).tolist()
    names = [recipe.class_name(label) if recipe is not None else str(label) for label in range(len(counts))]
    if rows.features + max(2, rows.classes) > MOST_ROWS:
        warnings.append(
            f"{rows.features} features and {rows.classes} classes: a task has at most {MOST_ROWS} of both together; "
            "resize, or let --pca make fewer"
        )
    if thin := thin_classes(counts, names):
        warnings.append(thin)
    if as_json:
        emit_json({
            "name": rows.name, "rows": len(rows), "features": rows.features, "classes": rows.classes,
            "class_counts": dict(zip(names, counts, strict=True)), "low": float(rows.x.min()), "high": float(rows.x.max()),
            "keys": 0 if rows.keys is None else len(np.unique(rows.keys)), "recipe": recipe.digest if recipe else b"",
            "rows_digest": rows.digest, "feature_scale_micro": recipe.feature_scale_micro if recipe else 0,
            "warnings": warnings,
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
    for warning in warnings:
        console.print(f"warning: {warning}", highlight=False, markup=False)
    if like is not None:
        console.print(f"these rows fit {like}" + (", as far as can be told" if doubts else ""), highlight=False, markup=False)


MOST_ROWS: Final = 512
"""Of the encrypted test set, features and classes (core.verification.task)."""


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
    refuse_existing(out)
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
        refuse_existing(path)
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
