"""``pofl model``: fetch a winning model, and score it."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from core.errors import ConfigError, PoflError
from core.verification.model_file import MAX_MODEL_FILE, dump_model, load_model
from core.verification.quantise import quantise_features
from core.verification.scored_model import ScoredModel
from services.cli.connection import NetOption, NodeOption, TlsOption, network
from services.cli.errors import runs
from services.cli.output import JsonOption, console, emit_json
from services.cli.tasks import RequesterOption, parse_task_id
from services.rpc.task_client import RequesterClient

__all__ = ["app", "score_model"]

app = typer.Typer(help="Fetch a winning model, and score it.", no_args_is_help=True)


@app.command()
@runs
async def fetch(
    out: Annotated[Path, typer.Option("--out", help="File to write; not overwritten.")],
    task: Annotated[str | None, typer.Option(help="Task id; default: the newest won one.")] = None,
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
        found = await client.fetch_model(parse_task_id(task) if task else None)
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
        with np.load(data, allow_pickle=False) as stored:
            missing = {"x", "y"} - set(stored.files)
            if missing:
                raise ConfigError(f"{data} has no array {min(missing)!r}: an npz with x (n, M) and y (n) is needed")
            x: NDArray[np.float64] = np.asarray(stored["x"], dtype=np.float64)
            y: NDArray[np.int64] = np.asarray(stored["y"]).astype(np.int64)
    except AttributeError:  # a single array, not an archive
        raise ConfigError(f"{data} is no npz: an npz with x (n, M) and y (n) is needed") from None
    except OSError as error:
        raise ConfigError(f"cannot read {data}: {error.strerror or error}") from None
    except (ValueError, EOFError, zipfile.BadZipFile):  # numpy's own sentence speaks of pickles, which are never read here
        raise ConfigError(f"{data} is no npz of plain arrays: one with x (n, M) and y (n) is needed") from None
    if x.ndim != 2 or y.shape != (len(x),) or not len(x):
        raise ConfigError(f"{data}: x is {x.shape} and y {y.shape}, expected (n, M) and (n)")
    try:
        return int(model.count(quantise_features(x, feature_scale_micro / 1_000_000), y)), len(y)
    except PoflError as error:
        raise ConfigError(f"{data} does not fit the model: {error.message}") from None
