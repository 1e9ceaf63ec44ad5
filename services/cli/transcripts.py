"""``pofl chain transcript`` and ``pofl explain --transcripts``: what audits leave behind, for people who were not there."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final

import typer

from core.errors import (
    ConfigError,
    CryptoError,
    DeadlineError,
    InputError,
    MalformedError,
    NotFoundError,
    StorageFullError,
    UnavailableError,
    WrongChainError,
)
from core.ids import Height
from core.params import Genesis
from core.verification.audit_evidence import AuditRecord, read_record
from core.verification.receipt import AnswerKind
from core.verification.transcript import MAX_TRANSCRIPT, Purpose
from services.cli.connection import Connection
from services.cli.errors import runs
from services.cli.output import JsonOption, console, emit_json
from services.rpc.chain_client import ChainClient
from services.runtime.logging import shown
from services.testnet.layout import load_layout

__all__ = ["register", "transcript", "write_all"]

MAX_FILE: Final = MAX_TRANSCRIPT + 128


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(transcript)


async def write_all(connection: Connection, height: Height, folder: Path) -> list[Path]:
    """Of every node that answers; one that does not is told of and passed over. Raises ConfigError, StorageFullError."""
    written = []
    for target in connection.nodes:
        chain = ChainClient([(target, connection.channel(target, "node"))])
        try:
            for number, view in enumerate((await chain.explain(height)).transcripts):
                data = await chain.transcript(view.digest)
                name = f"{height}-{connection.name_of(view.validator)}-{view.purpose}-{number}.transcript"
                written.append(_write(folder / name, data))
        except (UnavailableError, DeadlineError, NotFoundError) as error:
            sys.stderr.write(f"no transcripts of {target}: {shown(error)}\n")
    return written


def _write(path: Path, data: bytes) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StorageFullError(f"no space left for {path}: free some") from None
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from None
    return path


@runs
async def transcript(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files that `pofl explain --transcripts` wrote.")],
    net: Annotated[Path | None, typer.Option("--net", metavar="DIR", help="Folder of a testnet to compare with.")] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Check transcripts of audits offline, and say in plain words what each proves.

    Checks the validator's signature, the running hash, the requester's signed answer and her openings of the zero check, which
    are signed over the running hash. With --net also that the chain is this one and the signer one of its first validators.
    Exits with 5 at the first file that does not hold (2 if it is no transcript at all).

    Example: pofl chain transcript proofs/*.transcript
    """
    layout = load_layout(net) if net is not None else None
    for path in files:
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE + 1)
        except OSError as error:
            raise NotFoundError(f"cannot read {path}: {error.strerror or error}") from None
        try:
            record = read_record(data)
        except CryptoError as error:
            raise CryptoError(f"{path}: {error.message}") from None
        except InputError as error:
            raise MalformedError(
                f"{path} is no good transcript ({error.message}): write it again with `pofl explain HEIGHT --transcripts DIR`"
            ) from None
        if layout is not None:
            _check_origin(path, record, layout.genesis)
        if as_json:
            emit_json(record)
            continue
        name = layout.name_of if layout is not None else (lambda account: account.hex()[:8])
        console.print(f"{path}: holds")
        for line in _in_words(record, name, is_known=layout is not None):
            console.print(f"  {line}")


def _check_origin(path: Path, record: AuditRecord, genesis: Genesis) -> None:
    if record.chain_id != genesis.chain_id:
        raise WrongChainError(f"{path}: a transcript of chain {record.chain_id.hex()}, this is {genesis.chain_id.hex()}")
    if not any(v.node_id == record.validator for v in genesis.validators):
        raise CryptoError(f"{path}: signed by {record.validator.hex()}, which is no validator of the genesis document")


def _in_words(record: AuditRecord, name: Callable[[bytes], str], is_known: bool) -> list[str]:
    what = "an audit" if record.purpose is Purpose.AUDIT else "the check of a task's encrypted labels"
    lines = [
        f"{what} by validator {name(record.validator)}",
        f"requester {name(record.requester)}, key {record.requester.hex()}: that she is this task's, the chain says",
        f"chain {record.chain_id.hex()[:16]}" + ("" if is_known else " (not compared with a network: give --net DIR)"),
        f"task {record.task_id.hex()}",
    ]
    if record.pool is not None and record.model_commitment is not None:
        lines.append(f"claim of pool {name(record.pool)}, model c_W {record.model_commitment.hex()}")
    own = record.messages - record.received
    lines.append(
        f"{record.messages} messages, {own} by the validator and {record.received} by the requester, {record.size} bytes; "
        f"running hash {record.head.hex()}"
    )
    if record.answer is not None:
        answer = record.answer.answer
        said = f"{answer.correct} correct" if answer.kind is AnswerKind.SCORED else "that the body is malformed"
        lines.append(f"the requester signed: {said}")
    if record.is_proved:
        lines.append("the requester signed openings of every run of the zero check over this running hash: it passed")
    else:
        lines.append("no passed zero check is in it: the result is the validator's own word")
    lines.append(f"the validator's result: {record.result}")
    return lines
