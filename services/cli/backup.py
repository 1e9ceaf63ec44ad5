"""``pofl backup`` and ``pofl restore``: the folder of one process, in one checked file.

A backup is made of a process that is stopped. Its archive is a gzipped tar: ``manifest.json`` first, with size and SHA-256 of
each file, then the files. In the archive a node's chain says of itself that this node is silent for ever; only `restore`, which
has to be told a height, replaces that. Whoever unpacks the archive by hand has a node that follows the chain and never votes
(docs/adr/0123).
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import json
import os
import shutil
import socket
import stat
import tarfile
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Final

import typer

from core.errors import ConfigError, CorruptError, LimitError, LockedError, MalformedError
from services.cli.connection import TlsOption, network
from services.cli.errors import runs
from services.cli.output import MOST_NUMBER, JsonOption, console, emit_json
from services.cli.process_files import process_table
from services.rpc.admin import program_version
from services.rpc.tls import TlsFiles, identity_of
from services.runtime.durable import sync_folder
from services.storage.silence import FOR_EVER, write_silence

__all__ = ["backup", "restore"]

FORMAT: Final = "pofl-backup-1"
MANIFEST: Final = "manifest.json"
MAX_MANIFEST: Final = 64 << 20
MAX_FILES: Final = 1_000_000
CHAIN: Final = "chain"
"""In a node's data folder."""
SKIPPED: Final = ("LOCK", "LOG", "LOG.old")
"""LevelDB makes them anew."""


@dataclass(frozen=True, slots=True)
class _Home:
    """A process's folder, from its configuration."""

    folder: Path
    role: str
    name: str
    data: Path
    keys: frozenset[Path]
    admin: str


@dataclass(frozen=True, slots=True)
class _Part:
    size: int
    digest: str
    mode: int


@dataclass(frozen=True, slots=True)
class _Head:
    """The manifest of an archive."""

    role: str
    name: str
    keys: bool
    chain: str
    """Where a node's chain lies; empty if there is none."""
    files: Mapping[str, _Part]


@runs
async def backup(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a stopped process: config.toml and what it names.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Archive to write; it must not exist.")],
    with_keys: Annotated[
        bool, typer.Option("--with-keys", help="With the account's and the certificate's private keys: keep the file as they.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a stopped process's configuration and data into one file, with a checksum of each part.

    Private keys of account and certificate are left out unless --with-keys. What a requester, provider or pool keeps in its
    data folder is secret as well: the file is readable by its owner only, keep it so.

    Example: pofl backup net/node0 --out node0.pofl-backup
    """
    home = _read_home(folder)
    count, size = write_backup(home, out, with_keys)
    if as_json:
        emit_json({"file": out, "process": home.name, "files": count, "bytes": size, "keys": with_keys})
    else:
        keys = "with private keys" if with_keys else "without private keys: keep those elsewhere"
        console.print(f"{out}: {home.role} {home.name}, {count} files, {size / 1e6:.1f} MB, {keys}", highlight=False)


@runs
async def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `pofl backup` wrote.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make; it must not exist.")],
    silent_until: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_NUMBER - 1, metavar="HEIGHT", help="A node: it does not vote up to this height."),
    ] = None,
    node: Annotated[
        list[str] | None,
        typer.Option("--node", metavar="HOST:PORT", help="A node: ask these for their height instead; the highest counts."),
    ] = None,
    tls: TlsOption = None,
    no_open_tasks: Annotated[
        bool, typer.Option("--no-open-tasks", help="A requester: none of its tasks is open on the chain.")
    ] = False,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Put a backup into a new folder, if every part of it is whole.

    A validator that forgot what it voted could vote otherwise at the same height, and lose its bond. Its votes since the
    backup are not in the file, so a node needs --silent-until, or --node to ask for the height: it votes from the one after
    on. The process that the backup is of must have ended for good before.

    Example: pofl restore node0.pofl-backup node0 --node 127.0.0.1:7000 --tls user/tls
    """
    if node and silent_until is not None:
        raise ConfigError("--node and --silent-until exclude one another")
    until = silent_until
    if node:
        until = await _highest(node, tls) + 1
    found = read_backup(file, folder, until, no_open_tasks)
    if as_json:
        emit_json({"folder": folder, "role": found.role, "name": found.name, "files": len(found.files), "silent_until": until})
        return
    console.print(f"{folder}: {found.role} {found.name}, {len(found.files)} files, all of them whole", highlight=False)
    if found.chain:
        console.print(f"it votes after height {until}, not before", highlight=False)
    if not found.keys:
        console.print("put its private keys back before it starts: they are not in the backup", highlight=False)


def write_backup(home: _Home, out: Path, with_keys: bool) -> tuple[int, int]:
    """Number of files, and bytes of the archive. Raises LockedError (it runs), ConfigError, CorruptError."""
    if out.exists():
        raise ConfigError(f"{out} exists: a backup is never overwritten, choose another file")
    with ExitStack() as stack:
        stack.enter_context(_stopped(home))
        files = sorted(_files(home, with_keys))
        try:
            staged = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".pofl-backup-", dir=out.resolve().parent)))
            chain = home.data / CHAIN
            moved: dict[Path, Path] = {}
            if chain.is_dir():
                # The store itself is left as it is: the copy is told to be silent.
                shutil.copytree(chain, staged / CHAIN, ignore=shutil.ignore_patterns(*SKIPPED))
                write_silence(staged / CHAIN, FOR_EVER)
                files = [path for path in files if not path.is_relative_to(chain)]
                moved = {chain / p.name: p for p in sorted((staged / CHAIN).iterdir()) if p.name not in SKIPPED}
            elif home.role == "node":
                raise ConfigError(f"{home.data} holds no chain yet: start the node once, or copy its configuration by hand")
            named = {_name(path, home): path for path in files} | {_name(there, home): here for there, here in moved.items()}
            head = {
                "format": FORMAT, "role": home.role, "name": home.name, "version": program_version(), "keys": with_keys,
                "made_ms": time.time_ns() // 1_000_000, "chain": _name(chain, home) if moved else "",
                "files": {name: _digest(path) for name, path in named.items()},
            }  # fmt: skip
            part = staged / "archive"
            _write(part, head, named)
            os.link(part, out)  # fails if somebody made it meanwhile
            sync_folder(out.resolve().parent)
            return len(named), out.stat().st_size
        except OSError as error:
            raise ConfigError(f"cannot back up {home.folder} to {out}: {error.strerror or error}") from None


def read_backup(file: Path, folder: Path, until: int | None, no_open_tasks: bool) -> _Head:
    """What was restored. ``folder`` is there whole or not at all.

    Raises ConfigError, MalformedError (no backup), CorruptError (a checksum does not hold), LimitError.
    """
    if folder.exists():
        raise ConfigError(f"{folder} exists: a backup is never restored over another folder; move that away first")
    try:
        folder.absolute().parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            raw = stack.enter_context(file.open("rb"))
            archive = stack.enter_context(tarfile.open(fileobj=raw, mode="r|gz"))
            members = iter(archive)
            head = _manifest(archive, next(members, None), file)
            _check_role(head, until, no_open_tasks)
            staged = Path(tempfile.mkdtemp(prefix=".pofl-restore-", dir=folder.absolute().parent))
            stack.callback(shutil.rmtree, staged, ignore_errors=True)
            _unpack(archive, members, head.files, staged, file)
            if head.chain:
                assert until is not None
                write_silence(staged / head.chain, until)
            staged.rename(folder)
            sync_folder(folder.absolute().parent)
            return head
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise CorruptError(f"{file} is no whole backup: {error}") from None
    except OSError as error:
        raise ConfigError(f"cannot restore {file} to {folder}: {error.strerror or error}") from None


def _check_role(head: _Head, until: int | None, no_open_tasks: bool) -> None:
    if head.chain and until is None:
        raise ConfigError(
            "this is a node's backup, and what it voted afterwards is not in it: a validator that votes twice at a height "
            "loses its bond. Give --node HOST:PORT of running nodes (with --tls DIR), or --silent-until: their height plus 1"
        )
    if not head.chain and until is not None:
        raise ConfigError(f"--silent-until and --node are for a node, this is the backup of a {head.role}")
    if head.role == "requester" and not no_open_tasks:
        raise ConfigError(
            "what this requester answered after the backup is not in it: asked again she would answer pools once more, which "
            "can tell them her labels. Restore it when none of its tasks is open any more (`pofl task list`), and say "
            "--no-open-tasks"
        )


async def _highest(nodes: list[str], tls: Path | None) -> int:
    """Of all of these; each of them has to answer, for one that lags would tell too low a height."""
    heights = []
    for target in nodes:
        async with network(None, [target], tls) as found:
            heights.append((await found.chain.tip()).height)
    return max(heights)


def _read_home(folder: Path) -> _Home:
    path = folder / "config.toml"
    table = process_table(folder)
    tls = table.get("tls", {})
    inside = {}
    for key, value in (("data_dir", table.get("data_dir")), ("key", table.get("key")), ("tls.key", tls.get("key"))):
        if value is None:
            continue
        found = (folder / str(value)).resolve()
        if not found.is_relative_to(folder.resolve()):
            raise ConfigError(f"{path}: {key} is {found}, outside {folder}: copy that by other means")
        inside[key] = found
    if "data_dir" not in inside:
        raise ConfigError(f"{path} names no data_dir")
    if "cert" in tls:
        role, name = _who(folder, tls, str(table.get("name", "")))
    else:  # plaintext, for experiments: only what is there tells
        role, name = "node" if (inside["data_dir"] / CHAIN).is_dir() else "", str(table.get("name", ""))
    keys = frozenset(path for key, path in inside.items() if key != "data_dir")
    return _Home(folder.resolve(), role, name, inside["data_dir"], keys, str(table.get("admin_listen", "")))


def _who(folder: Path, tls: Mapping[str, object], name: str) -> tuple[str, str]:
    """Role and name of the process, as its certificate says."""
    cert = folder / str(tls.get("cert", "tls/tls.pem"))
    try:
        found = identity_of(TlsFiles(cert, cert, cert).read()[1])
    except ConfigError as error:
        raise ConfigError(f"{cert}: {error.message}") from None
    return found.role, found.name or name


@contextmanager
def _stopped(home: _Home) -> Iterator[None]:
    """Nobody runs from this folder, and none of its stores can be opened within. Raises LockedError."""
    running = LockedError(f"{home.role} {home.name} runs from {home.folder}: stop it, a backup of what changes is not whole")
    host, _, port = home.admin.rpartition(":")
    if port.isdecimal() and int(port):
        with suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), timeout=2):
            raise running
    with ExitStack() as stack:
        for path in sorted(home.data.rglob("LOCK")):
            lock = stack.enter_context(path.open("r+b"))
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise running from None
        yield


def _files(home: _Home, with_keys: bool) -> Iterator[Path]:
    for parent, folders, names in os.walk(home.folder):
        folders.sort()
        for name in names:
            path = Path(parent) / name
            if name in SKIPPED or not stat.S_ISREG(path.lstat().st_mode):
                continue
            if not with_keys and (path in home.keys or path.suffix == ".key"):
                continue
            yield path


def _name(path: Path, home: _Home) -> str:
    return path.relative_to(home.folder).as_posix()


def _digest(path: Path) -> tuple[int, str, int]:
    """Size, SHA-256, and whether its owner may execute it (mode 0700, else 0600)."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return path.stat().st_size, found, path.stat().st_mode & 0o100


def _write(part: Path, head: Mapping[str, object], named: Mapping[str, Path]) -> None:
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1, format=tarfile.PAX_FORMAT) as archive:
            data = json.dumps(head, sort_keys=True).encode()
            archive.addfile(_info(MANIFEST, len(data)), io.BytesIO(data))
            for name, path in named.items():
                with path.open("rb") as content:
                    archive.addfile(_info(name, path.stat().st_size), content)
        file.flush()
        os.fsync(file.fileno())


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o600
    return info


def _manifest(archive: tarfile.TarFile, first: tarfile.TarInfo | None, file: Path) -> _Head:
    if first is None or first.name != MANIFEST or not first.isreg():
        raise MalformedError(f"{file} is no backup: it does not begin with {MANIFEST}")
    if first.size > MAX_MANIFEST:
        raise LimitError(f"{file}: its manifest has {first.size} bytes, at most {MAX_MANIFEST}")
    content = archive.extractfile(first)
    assert content is not None
    try:
        head = json.loads(content.read())
        if head["format"] != FORMAT:
            raise MalformedError(f"{file} has the form {head['format']!r}, this release reads {FORMAT!r}")
        files = {
            _checked(name): _Part(int(size), str(digest), int(mode)) for name, (size, digest, mode) in head["files"].items()
        }
        chain = _checked(head["chain"]) if head["chain"] else ""
        found = _Head(str(head["role"]), str(head["name"]), bool(head["keys"]), chain, files)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise MalformedError(f"{file} is no backup: its manifest cannot be read ({error})") from None
    if len(files) > MAX_FILES:
        raise LimitError(f"{file} has {len(files)} files, at most {MAX_FILES}")
    # An archive that hides its chain would be restored with the votes that it had.
    hidden = any(PurePosixPath(name).parts[-2:] == (CHAIN, "CURRENT") for name in files)
    if not found.chain and (found.role == "node" or hidden):
        raise MalformedError(f"{file} holds a node's chain that its manifest does not name")
    return found


def _checked(name: object) -> str:
    """A relative path that stays inside. Raises ValueError."""
    path = PurePosixPath(str(name))
    if path.is_absolute() or not path.parts or ".." in path.parts or str(path) != name or "\0" in str(name):
        raise ValueError(f"{name!r} is no path inside a folder")
    return str(path)


def _unpack(
    archive: tarfile.TarFile, members: Iterator[tarfile.TarInfo], files: Mapping[str, _Part], staged: Path, file: Path
) -> None:
    missing = dict(files)
    for member in members:
        part = missing.pop(member.name, None)
        if part is None or not member.isreg() or member.size != part.size:
            raise CorruptError(f"{file}: {member.name!r} is not what its manifest names")
        path = staged / member.name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = archive.extractfile(member)
        assert content is not None
        if _copy(content, path, part.mode) != part.digest:
            raise CorruptError(f"{file}: {member.name} is damaged, its checksum does not hold: nothing was restored")
    if missing:
        raise CorruptError(f"{file} was cut off: {len(missing)} files are missing, the first is {next(iter(missing))}")


def _copy(content: IO[bytes], path: Path, executable: int) -> str:
    hasher = hashlib.sha256()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700 if executable else 0o600)
    with os.fdopen(descriptor, "wb") as file:
        while chunk := content.read(1 << 20):
            hasher.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return hasher.hexdigest()
