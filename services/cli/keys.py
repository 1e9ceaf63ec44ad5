"""``pofl keys``: account keys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from core.crypto.signing import KeyPair
from core.errors import ConfigError
from core.ports import SystemRng
from services.cli import certificates
from services.cli.errors import runs
from services.cli.output import JsonOption, console, emit_json
from services.rpc.role import read_key
from services.runtime.durable import write_private
from services.runtime.key_files import MAX_KEY_FILE, is_sealed, open_seed, passphrase, seal_seed

__all__ = ["app"]

app = typer.Typer(help="Account keys and certificates.", no_args_is_help=True)
certificates.register(app)


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
async def show(file: Annotated[Path, typer.Argument(help="A key file.")], as_json: JsonOption = False) -> None:
    """The account that a key file belongs to; never the key.

    Example: pofl keys show account.key
    """
    _tell(read_key(file).public_key, file, as_json)


PassphraseOption = Annotated[
    Path | None,
    typer.Option("--passphrase-file", metavar="FILE", help="Default: POFL_PASSPHRASE_FILE, then POFL_PASSPHRASE."),
]


@app.command()
@runs
async def encrypt(
    file: Annotated[Path, typer.Argument(help="A key file.")], secret: PassphraseOption = None, as_json: JsonOption = False
) -> None:
    """Seal an account's key file under a passphrase, in its place. Processes read it with the same passphrase.

    The passphrase is in a file or in the environment, never on the command line. Without it the key is lost.

    Example: pofl keys encrypt node0/account.key --passphrase-file passphrase
    """
    word = passphrase(os.environ, secret)
    if is_sealed(_text(file)):
        raise ConfigError(f"{file} is encrypted already: decrypt it first to change the passphrase")
    key = read_key(file)
    _replace(file, seal_seed(key, word, SystemRng()))
    _tell(key.public_key, file, as_json)


@app.command()
@runs
async def decrypt(
    file: Annotated[Path, typer.Argument(help="A key file that was encrypted.")], secret: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Write the key of an encrypted file as it was before, in its place.

    Example: pofl keys decrypt node0/account.key --passphrase-file passphrase
    """
    text = _text(file)
    if not is_sealed(text):
        raise ConfigError(f"{file} is not encrypted")
    key = open_seed(text, passphrase(os.environ, secret), file)
    _replace(file, key.seed.hex() + "\n")
    _tell(key.public_key, file, as_json)


def _text(file: Path) -> str:
    try:
        with file.open(encoding="ascii", errors="replace") as opened:
            return opened.read(MAX_KEY_FILE + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the key {file}: {error.strerror or error}") from None


def _replace(file: Path, text: str) -> None:
    try:
        write_private(file, text.encode("ascii"))
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror or error}") from None


def _tell(account: bytes, file: Path, as_json: bool) -> None:
    if as_json:
        emit_json({"account": account, "file": file})
    else:
        console.print(f"account {account.hex()} ({file})")
