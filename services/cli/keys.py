"""``pofl keys``: account keys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from core.crypto.signing import KeyPair
from core.errors import ConfigError
from core.ports import SystemRng
from services.cli.errors import runs
from services.cli.output import JsonOption, console, emit_json
from services.rpc.role import read_key

__all__ = ["app"]

app = typer.Typer(help="Make and show account keys.", no_args_is_help=True)


@app.command()
@runs
async def new(
    out: Annotated[Path, typer.Argument(help="File to write, readable by its owner only.")], as_json: JsonOption = False
) -> None:
    """Make a new Ed25519 account key.

    Example: pofl keys new account.key
    """
    key = KeyPair.generate(SystemRng())
    try:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(f"{out} exists: a key is never overwritten, choose another file") from None
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror or error}") from None
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(key.seed.hex() + "\n")
    _tell(key.public_key, out, as_json)


@app.command()
@runs
async def show(
    file: Annotated[Path, typer.Argument(help="A key file.")], as_json: JsonOption = False
) -> None:
    """The account that a key file belongs to; never the key.

    Example: pofl keys show account.key
    """
    _tell(read_key(file).public_key, file, as_json)


def _tell(account: bytes, file: Path, as_json: bool) -> None:
    if as_json:
        emit_json({"account": account, "file": file})
    else:
        console.print(f"account {account.hex()} ({file})")
