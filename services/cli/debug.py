"""``pofl debug``: what somebody who helps needs to know of a process, without anything secret."""

from __future__ import annotations

import gzip
import io
import json
import os
import platform
import re
import sys
import tarfile
import time
from collections.abc import Awaitable, Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Final

import grpc
import typer
from google.protobuf.json_format import MessageToDict
from grpc import aio
from pofl.admin.v1 import admin_pb2, admin_pb2_grpc

from core.errors import ConfigError, PoflError
from core.params import PROTOCOL_VERSION
from services.cli.connection import TlsOption, network
from services.cli.errors import runs
from services.cli.output import JsonOption, console, emit_json, plain
from services.cli.process_files import process_table
from services.rpc.admin import program_version
from services.rpc.channel import call
from services.rpc.server import is_loopback
from services.runtime.logging import without_secrets

__all__ = ["app"]

app = typer.Typer(help="Collect what a report of a fault needs.", no_args_is_help=True)

LOG_BYTES: Final = 512 * 1024
SECONDS: Final = 5.0
PACKAGES: Final = ("pofl", "grpcio", "protobuf", "cryptography", "numpy", "plyvel", "tenseal", "flwr", "torch")
MAX_SECRET_FILE: Final = 4096
MIN_TOKEN: Final = 8
"""Characters of a token that is looked for in what is written; shorter ones are words."""
_SECRET_KEY: Final = re.compile(r"secret|password|passphrase|token|seed|private", re.IGNORECASE)


@app.command()
@runs
async def dump(
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Archive to write (.tar.gz); it must not exist.")],
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", metavar="DIR", help="Folder of a process, or its data folder.")
    ] = None,
    node: Annotated[str | None, typer.Option("--node", metavar="HOST:PORT", help="A node to ask about the chain.")] = None,
    tls: TlsOption = None,
    log: Annotated[Path | None, typer.Option("--log", metavar="FILE", help="Its log, if its configuration names none.")] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Write versions, configuration, chain tip, validators, metrics and the last log lines into one archive.

    It says what could not be had, and why. No key, token or passphrase gets in: files of keys are not read but to make sure
    that none of them is in what is written.

    Example: pofl debug dump --data-dir net/node0 --out report.tar.gz

    Example: pofl debug dump --node 127.0.0.1:7000 --tls user/tls --out report.tar.gz
    """
    if data_dir is None and node is None:
        raise ConfigError("say what to look at: --data-dir DIR of a process on this machine, --node HOST:PORT, or both")
    if out.exists():
        raise ConfigError(f"{out} exists: choose another file")
    parts = _Parts()
    parts.add("versions.json", _versions())
    home = _home(data_dir) if data_dir is not None else None
    if home is not None:
        await parts.take("config.toml", lambda: _done(_config(home)))
        await parts.take("files.json", lambda: _done(_sizes(home)))
        await parts.take("log.txt", lambda: _done(_log_end(home, log)))
        admin = str(process_table(home).get("admin_listen", ""))
        if admin and not admin.endswith(":0"):
            await _ask_operator(parts, admin)
    if node is not None:
        await _ask_node(parts, node, tls)
    parts.add("missing.json", parts.missing)
    _write(out, parts.files, [] if home is None else _secrets(home))
    if as_json:
        emit_json({"file": out, "parts": sorted(parts.files), "missing": parts.missing})
        return
    console.print(f"{out}: {', '.join(sorted(parts.files))}", highlight=False)
    for name, why in parts.missing.items():
        console.print(f"without {name}: {why}", highlight=False)


class _Parts:
    """Files of the archive, and why others are not there."""

    def __init__(self) -> None:
        self.files: dict[str, str] = {}
        self.missing: dict[str, str] = {}

    def add(self, name: str, value: object) -> None:
        self.files[name] = value if isinstance(value, str) else json.dumps(plain(value), indent=1, default=str) + "\n"

    async def take(self, name: str, source: Callable[[], Awaitable[object]]) -> None:
        try:
            self.add(name, await source())
        except (PoflError, OSError, UnicodeDecodeError, grpc.RpcError) as error:
            self.missing[name] = without_secrets(getattr(error, "message", "") or str(error))


async def _done(value: object) -> object:
    return value


def _versions() -> dict[str, object]:
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "pofl": program_version(), "protocol": PROTOCOL_VERSION, "python": sys.version, "system": platform.platform(),
        "processors": os.cpu_count(), "made_ms": time.time_ns() // 1_000_000, "packages": packages,
    }  # fmt: skip


def _home(folder: Path) -> Path:
    """The folder with config.toml: the one given, or the one that the data folder lies in. Raises ConfigError."""
    for home in (folder, folder.absolute().parent):
        if (home / "config.toml").is_file():
            return home
    raise ConfigError(f"neither {folder} nor the folder around it has a config.toml: give a process's folder")


def _config(home: Path) -> str:
    """As it is written, less comments and the values of keys that may hold a secret."""
    return "\n".join(_lines(process_table(home), ())) + "\n"


def _lines(table: dict[str, Any], path: tuple[str, ...]) -> list[str]:
    lines = []
    for key, value in table.items():
        if isinstance(value, dict):
            lines += ["", f"[{'.'.join((*path, key))}]", *_lines(value, (*path, key))]
        else:
            lines.append(f"{key} = {'(secret)' if _SECRET_KEY.search(key) else json.dumps(_shown(value), default=str)}")
    return lines


def _shown(value: object) -> object:
    """Without the secrets of tables inside lists, and the passwords of addresses."""
    if isinstance(value, dict):
        return {key: "(secret)" if _SECRET_KEY.search(key) else _shown(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_shown(inner) for inner in value]
    return re.sub(r"(?<=://)[^/@]*@", "(secret)@", value) if isinstance(value, str) else value


def _sizes(home: Path) -> dict[str, object]:
    """Bytes and files of each folder of the process, and the modes of what only its owner should read."""
    found: dict[str, object] = {}
    for parent, _, names in os.walk(home):
        sizes = [(Path(parent) / name).lstat().st_size for name in names]
        found[os.path.relpath(parent, home)] = {"files": len(sizes), "bytes": sum(sizes)}
    found["modes"] = {
        os.path.relpath(path, home): oct(path.stat().st_mode & 0o777) for path in sorted(home.rglob("*.key")) if path.is_file()
    }
    return found


def _log_end(home: Path, given: Path | None) -> str:
    named = process_table(home).get("log", {}).get("file")
    choices = [given] if given is not None else [home / str(named)] if named else [home.parent / "logs" / f"{home.name}.log"]
    path = choices[0]
    assert path is not None
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - LOG_BYTES))
        text = file.read(LOG_BYTES).decode(errors="replace")
    if size > LOG_BYTES:
        text = text.partition("\n")[2]
    # A key that was begun before the part that was read has no first line here to be known by.
    return without_secrets(
        re.sub(r"\A(?s:.{0,8192}?)-----END [A-Z ]*PRIVATE KEY-----", "(private key)", text) if _is_cut(text) else text
    )


def _is_cut(text: str) -> bool:
    end, begin = text.find("-----END "), text.find("-----BEGIN ")
    return end >= 0 and (begin < 0 or end < begin)


async def _ask_operator(parts: _Parts, address: str) -> None:
    """Status and metrics of the process itself, on this machine."""
    if not is_loopback(address):
        parts.missing["status.json"] = f"admin_listen is {address}, no address of this machine"
        return
    async with aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = admin_pb2_grpc.AdminServiceStub(channel)

        async def status() -> object:
            found = await call(stub.Status, admin_pb2.StatusRequest(), SECONDS, peer=address)
            return MessageToDict(found)

        async def metrics() -> object:
            return (await call(stub.Metrics, admin_pb2.MetricsRequest(), SECONDS, peer=address)).text

        await parts.take("status.json", status)
        if "status.json" in parts.files:
            await parts.take("metrics.txt", metrics)


async def _ask_node(parts: _Parts, target: str, tls: Path | None) -> None:
    async with network(None, [target], tls) as found:
        chain = found.chain

        async def genesis() -> object:
            made = await chain.genesis()
            return {"name": made.name, "chain_id": made.chain_id, "params": plain(made.params)}

        await parts.take("tip.json", chain.tip)
        if "tip.json" in parts.files:
            await parts.take("genesis.json", genesis)
            await parts.take("validators.json", chain.validators)


def _secrets(home: Path) -> list[bytes]:
    """Content of the process's key files, in the forms in which it could come into a text, and tokens of its configuration."""
    found: list[bytes] = []
    table = process_table(home)
    named = {(home / str(name)).resolve() for name in (table.get("key"), table.get("tls", {}).get("key")) if name}
    for path in {*home.rglob("*"), *named}:
        if path.suffix in (".key", ".seed") or "secret" in path.name or path.resolve() in named:
            if not path.is_file() or path.stat().st_size > MAX_SECRET_FILE:
                continue
            data = path.read_bytes().strip()
            found += [
                data,
                *(line for line in data.split(b"\n") if len(line) >= 32 and b"-----" not in line),
                data.hex().encode(),
            ]
    return [*(secret for secret in found if len(secret) >= 16), *_hidden(table, is_secret=False)]


def _hidden(value: object, *, is_secret: bool) -> list[bytes]:
    """Texts of a configuration that are not shown, less the names of files."""
    if isinstance(value, dict):
        return [
            secret
            for key, inner in value.items()
            for secret in _hidden(inner, is_secret=is_secret or (bool(_SECRET_KEY.search(key)) and not key.endswith("file")))
        ]
    if isinstance(value, list):
        return [secret for inner in value for secret in _hidden(inner, is_secret=is_secret)]
    return [value.encode()] if is_secret and isinstance(value, str) and len(value) >= MIN_TOKEN else []


def _write(out: Path, files: dict[str, str], secrets: list[bytes]) -> None:
    """Raises ConfigError: a key of this process is in what would be written."""
    for name, text in files.items():
        if any(secret in text.encode() for secret in secrets):
            raise ConfigError(
                f"{name} would hold a private key or a token of this process: nothing was written. Look where it came from"
            )
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb") as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for name, text in sorted(files.items()):
            info = tarfile.TarInfo(f"pofl-debug/{name}")
            info.size, info.mode, info.mtime = len(text.encode()), 0o600, int(time.time())
            archive.addfile(info, io.BytesIO(text.encode()))
    try:
        with os.fdopen(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(buffer.getvalue())
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror or error}") from None
