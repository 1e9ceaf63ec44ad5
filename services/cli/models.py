"""``pofl model``: fetch a winning model, show it, and score it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer
from numpy.typing import NDArray

from core.errors import ConfigError, InputError, PoflError
from core.verification.model_file import MAX_MODEL_FILE, TaskModel, dump_task_model, load_task_model
from core.verification.quantise import quantise_features
from core.verification.regression import buckets, cuts_from_micro
from core.verification.scored_model import ScoredModel
from services.cli.connection import NetOption, NodeOption, TlsOption, network
from services.cli.errors import runs
from services.cli.output import JsonOption, console, emit_json
from services.cli.tasks import RequesterOption, cuts_in_words, find_task_id
from services.data.arrays import read_arrays
from services.rpc.task_client import RequesterClient

__all__ = ["app", "read_model", "score_model"]

MILLION: Final = 1_000_000
DEFAULT_SCALE: Final = 127 * MILLION
MAX_DATA: Final = 2 << 30
"""Bytes of a data set unpacked."""

app = typer.Typer(help="Fetch a winning model, show it, and score it.", no_args_is_help=True)


@app.command()
@runs
async def fetch(
    out: Annotated[Path, typer.Option("--out", help="File to write; not overwritten.")],
    task: Annotated[
        str | None, typer.Option(help="Task id, or its first 8 or more hex digits; default: the newest won one.")
    ] = None,
    requester: RequesterOption = None, net: NetOption = None, node: NodeOption = None, tls: TlsOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """The model that won a task, from the requester who paid for it.

    Example: pofl model fetch --out model.pofl && pofl model score model.pofl --data test.npz
    """
    if out.exists():
        raise ConfigError(f"{out} exists: choose another file, or remove it")
    async with network(net, node, tls) as connection:
        address = connection.address("requester", requester)
        client = RequesterClient(connection.channel(address, "requester"), address)
        found = await client.fetch_model(await find_task_id(connection, task) if task else None)
        spec = (await connection.chain.task(found.task_id)).spec
    try:
        out.write_bytes(dump_task_model(TaskModel(found.model, spec.feature_scale_micro, spec.cuts_micro)))
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror or error}") from None
    if as_json:
        emit_json({
            "task_id": found.task_id, "height": found.height, "correct": found.accuracy.correct,
            "total": found.accuracy.total, "model_commitment": found.model_commitment, "file": out,
        })  # fmt: skip
    else:
        console.print(
            f"{out}: model of task {found.task_id.hex()[:8]}, block {found.height}, "
            f"{found.accuracy.correct} of {found.accuracy.total} correct by its header"
        )


@app.command()
def score(
    model: Annotated[Path, typer.Argument(help="File that `pofl model fetch` wrote.")],
    data: Annotated[Path, typer.Option("--data", help="npz with x (n, M) and y (n).")],
    feature_scale_micro: Annotated[
        int | None, typer.Option(min=1, help="int8 feature = round(x * this / 10^6). Default: the task's, from the file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """How many rows of a data set a model predicts right, in exact integers; of a regression, y in the right bucket.

    Example: pofl model score model.pofl --data test.npz
    """

    @runs
    async def run() -> None:
        stored = read_model(model)
        scale = feature_scale_micro or stored.feature_scale_micro or DEFAULT_SCALE
        correct, total = score_model(stored.model, data, scale, stored.cuts_micro)
        if as_json:
            emit_json({"correct": correct, "total": total})
        else:
            console.print(f"{correct} of {total} correct ({100 * correct / total:.2f} %)")

    run()


@app.command()
def show(
    model: Annotated[Path, typer.Argument(help="File that `pofl model fetch` wrote.")], as_json: JsonOption = False
) -> None:
    """What a model is: its layers, its features' scale and, of a regression, its buckets.

    Example: pofl model show model.pofl
    """

    @runs
    async def run() -> None:
        stored = read_model(model)
        shape = stored.model.shape
        kind = "regression" if stored.cuts_micro else "classification"
        if as_json:
            emit_json({
                "kind": kind, "dims": shape.dims, "activation": shape.activation.name.lower(),
                "weight_bits": shape.weight_bits, "parameters": stored.model.family.parameters,
                "feature_scale_micro": stored.feature_scale_micro, "cuts_micro": stored.cuts_micro,
            })  # fmt: skip
            return
        layers = "-".join(str(width) for width in shape.dims)
        console.print(f"{kind} · {layers} · {shape.activation.name.lower()} · {shape.weight_bits}-bit weights")
        console.print(f"  parameters {stored.model.family.parameters}")
        if stored.feature_scale_micro:
            console.print(f"  features   int8, round(x * {stored.feature_scale_micro / MILLION:.10g})")
        if stored.cuts_micro:
            console.print(f"  targets    real, {cuts_in_words(stored.cuts_micro)}")

    run()


def read_model(path: Path) -> TaskModel:
    """The model of a file. Raises ConfigError naming what is wrong with it."""
    try:
        with path.open("rb") as file:
            return load_task_model(file.read(MAX_MODEL_FILE + 1))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except PoflError as error:
        raise ConfigError(f"{path} is no file of `pofl model fetch`: {error.message}") from None


def score_model(model: ScoredModel, data: Path, feature_scale_micro: int, cuts_micro: tuple[int, ...] = ()) -> tuple[int, int]:
    """(correct, total) of a model on a file; with cut points, y is real. Raises ConfigError naming what is wrong with it."""
    try:
        found = read_arrays(data, "x", "y", limit=MAX_DATA)
    except InputError as error:
        raise ConfigError(error.message) from None
    rows, labels = found["x"], found["y"]
    if rows.ndim != 2 or labels.shape != (len(rows),) or not len(rows):
        raise ConfigError(f"{data}: x is {rows.shape} and y {labels.shape}, expected (n, M) and (n)")
    if rows.dtype.kind not in "fiub" or labels.dtype.kind not in "fiu":
        raise ConfigError(f"{data}: x and y must be numbers, they are {rows.dtype} and {labels.dtype}")
    x: NDArray[np.float64] = rows.astype(np.float64)
    whole: NDArray[np.float64] = labels.astype(np.float64)
    if cuts_micro:
        if not np.isfinite(x).all() or not np.isfinite(whole).all():
            raise ConfigError(f"{data}: x and y must be finite: a value is not")
        whole = buckets(whole, cuts_from_micro(cuts_micro)).astype(np.float64)
    if not np.isfinite(x).all() or not (np.abs(whole) < 2**31).all() or (whole != np.rint(whole)).any():
        raise ConfigError(f"{data}: x must be finite and y whole numbers: a value is neither")
    y: NDArray[np.int64] = whole.astype(np.int64)
    try:
        return int(model.count(quantise_features(x, feature_scale_micro / 1_000_000), y)), len(y)
    except PoflError as error:
        raise ConfigError(f"{data} does not fit the model: {error.message}") from None
