"""``pofl model``: fetch a winning model, and score it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer
from numpy.typing import NDArray

from core.errors import ConfigError, InputError, PoflError
from core.verification.model_file import MAX_MODEL_FILE, dump_model, load_model
from core.verification.quantise import quantise_features
from core.verification.scored_model import ScoredModel
from services.cli.connection import NetOption, NodeOption, TlsOption, network
from services.cli.errors import runs
from services.cli.output import JsonOption, console, emit_json
from services.cli.tasks import RequesterOption, find_task_id
from services.rpc.task_client import RequesterClient
from services.runtime.npz import UNREADABLE, check_archive

__all__ = ["app", "score_model"]

MAX_DATA: Final = 2 << 30
"""Bytes of a data set unpacked."""

app = typer.Typer(help="Fetch a winning model, and score it.", no_args_is_help=True)


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
    try:
        out.write_bytes(dump_model(found.model))
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
    feature_scale_micro: Annotated[int, typer.Option(min=1, help="int8 feature = round(x * this / 10^6).")] = 127_000_000,
    as_json: JsonOption = False,
) -> None:
    """How many rows of a data set a model predicts right, in exact integers.

    Example: pofl model score model.pofl --data test.npz
    """

    @runs
    async def run() -> None:
        try:
            with model.open("rb") as file:
                loaded = load_model(file.read(MAX_MODEL_FILE + 1))
        except OSError as error:
            raise ConfigError(f"cannot read {model}: {error.strerror or error}") from None
        except PoflError as error:
            raise ConfigError(f"{model} is no file of `pofl model fetch`: {error.message}") from None
        correct, total = score_model(loaded, data, feature_scale_micro)
        if as_json:
            emit_json({"correct": correct, "total": total})
        else:
            console.print(f"{correct} of {total} correct ({100 * correct / total:.2f} %)")

    run()


def score_model(model: ScoredModel, data: Path, feature_scale_micro: int) -> tuple[int, int]:
    """(correct, total) of a model on a file. Raises ConfigError naming what is wrong with the file."""
    try:
        check_archive(data, MAX_DATA)
        with np.load(data, allow_pickle=False) as stored:
            missing = {"x", "y"} - set(stored.files)
            if missing:
                raise ConfigError(f"{data} has no array {min(missing)!r}: an npz with x (n, M) and y (n) is needed")
            rows, labels = stored["x"], stored["y"]
    except InputError as error:
        raise ConfigError(error.message) from None
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.strerror:
            raise ConfigError(f"cannot read {data}: {error.strerror}") from None
        # numpy's own sentence speaks of pickles, which are never read here
        raise ConfigError(f"{data} is no npz of plain arrays: one with x (n, M) and y (n) is needed") from None
    if rows.ndim != 2 or labels.shape != (len(rows),) or not len(rows):
        raise ConfigError(f"{data}: x is {rows.shape} and y {labels.shape}, expected (n, M) and (n)")
    if rows.dtype.kind not in "fiub" or labels.dtype.kind not in "fiu":
        raise ConfigError(f"{data}: x and y must be numbers, they are {rows.dtype} and {labels.dtype}")
    x: NDArray[np.float64] = rows.astype(np.float64)
    whole: NDArray[np.float64] = labels.astype(np.float64)
    if not np.isfinite(x).all() or not (np.abs(whole) < 2**31).all() or (whole != np.rint(whole)).any():
        raise ConfigError(f"{data}: x must be finite and y whole numbers: a value is neither")
    y: NDArray[np.int64] = whole.astype(np.int64)
    try:
        return int(model.count(quantise_features(x, feature_scale_micro / 1_000_000), y)), len(y)
    except PoflError as error:
        raise ConfigError(f"{data} does not fit the model: {error.message}") from None
