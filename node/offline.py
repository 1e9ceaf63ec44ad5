"""``python -m node.offline``: a stopped node's chain, checked, rebuilt, written out, read in, or pruned.

``pofl chain verify|reindex|export|import|prune`` run this.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import IO, Final

from services.runtime.startup import loading

with loading():
    from core.errors import ConfigError, InputError, MalformedError, PoflError, StorageError, StorageFullError, WrongChainError
    from core.ids import Height
    from core.params import Genesis
    from node.archive import ArchiveReader, ArchiveWriter
    from node.config import NodeConfig
    from node.folder import ChainFolder
    from node.maintenance import export_chain, import_chain, prune_chain, verify_chain
    from node.reindex import reindex
    from node.store import ChainStore
    from services.rpc.role import read_genesis, read_key
    from services.runtime import config
    from services.runtime.lifecycle import exit_code
    from services.runtime.logging import shown
    from services.storage import LevelDb

__all__ = ["main"]

LINE_SECONDS: Final = 5.0
REDRAW_SECONDS: Final = 0.2


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit codes are those of every role (services.runtime.lifecycle)."""
    try:
        given = _parser().parse_args(arguments)
        found = _COMMANDS[given.command](given, _folder(given))
    except PoflError as error:
        sys.stderr.write(f"error: {shown(error)}\n")
        return exit_code(error)
    except BrokenPipeError:
        # Whoever read the pipe is gone: nothing is wrong here.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.stderr.write("error: the reader of the pipe is gone\n")
        return 3
    except KeyboardInterrupt:
        return 130
    sentence, values = found
    # What is exported may go to standard output.
    out = sys.stderr if given.command == "export" and given.file == "-" else sys.stdout
    out.write((json.dumps(values, indent=2) if given.json else sentence) + "\n")
    return 0


Outcome = tuple[str, Mapping[str, object]]


def _verify(given: argparse.Namespace, folder: ChainFolder) -> Outcome:
    with _opened(folder) as (kv, genesis), _progress("verify", given) as progress:
        found = verify_chain(kv, genesis, progress)
    pruned = f", the headers of {found.pruned} pruned blocks before them" if found.pruned else ""
    sentence = (
        f"height {found.height}: {found.executed} blocks were executed again{pruned}; blocks, certificates, indexes and the "
        f"state with root {found.state_root.hex()} hold"
    )
    if found.voted > found.height + 1:
        sentence += (
            f". The votes are of height {found.voted}: start the node, it fetches the blocks up to there from its peers and "
            "votes after it. Do not move the folder away: the votes would be lost"
        )
    return sentence, {**asdict(found), "state_root": found.state_root.hex()}


def _reindex(given: argparse.Namespace, folder: ChainFolder) -> Outcome:
    with _progress("reindex", given) as progress:
        found = reindex(folder, given.silent_until, progress)
    rest = ""
    if found.wrong:
        rest = f". What follows is damaged ({found.wrong}): start the node, it fetches the rest from its peers"
        rest += ". Do not move the folder away: its votes would be lost" if found.votes_kept else ""
    return f"height {found.height}: indexes and state are built again{rest}", asdict(found)


def _export(given: argparse.Namespace, folder: ChainFolder) -> Outcome:
    with _opened(folder) as (kv, genesis), _progress("export", given) as progress:
        store = ChainStore(kv, genesis)
        first = Height(given.first)
        if not 1 <= first <= store.state.height + 1:
            raise ConfigError(f"--from is {first}, this chain has blocks 1 to {store.state.height}")
        if given.file == "-":
            writer = ArchiveWriter(sys.stdout.buffer)
            writer.head(genesis, first)
            last = export_chain(store, writer, first, progress)
            sys.stdout.buffer.flush()
        else:
            with _archive(Path(given.file), store, genesis, first, given.append) as (writer, first):
                last = export_chain(store, writer, first, progress)
    said = f"blocks {first} to {last} are in {given.file}"
    if last < first:
        said = f"{given.file} has all blocks up to {last} already" if given.append else f"no block to write: the last is {last}"
    return said, {"first": first, "last": last, "file": given.file}


def _import(given: argparse.Namespace, folder: ChainFolder) -> Outcome:
    name = "standard input" if given.file == "-" else given.file
    with _input(given.file) as source, _progress("import", given) as progress:
        reader = ArchiveReader(source, name)
        with _opened(folder) as (kv, genesis):
            store = ChainStore(kv, genesis)
            if given.silent_until is not None:
                store.be_silent(given.silent_until)
            found = import_chain(kv, store, reader, progress)
    return f"height {found.height}: {found.added} blocks were added, {found.known} were here already", asdict(found)


def _prune(given: argparse.Namespace, folder: ChainFolder) -> Outcome:
    with _opened(folder) as (kv, genesis), _progress("prune", given) as progress:
        store = ChainStore(kv, genesis)
        found = prune_chain(store, genesis, given.keep, progress)
        kv.compact()
        height = store.state.height
    return f"height {height}: the oldest block that is kept whole is {found.floor}", {"height": height, **asdict(found)}


_COMMANDS: Final = {"verify": _verify, "reindex": _reindex, "export": _export, "import": _import, "prune": _prune}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m node.offline", description=__doc__.split("\n", 1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in _COMMANDS:
        command = commands.add_parser(name)
        where = command.add_mutually_exclusive_group(required=True)
        where.add_argument("--data-dir", type=Path, metavar="DIR")
        where.add_argument("--config", type=Path, metavar="FILE")
        command.add_argument("--json", action="store_true")
        if name in ("export", "import"):
            command.add_argument("file", metavar="FILE")
        if name == "export":
            command.add_argument("--from", dest="first", type=int, default=1)
            command.add_argument("--append", action="store_true")
        if name in ("import", "reindex"):
            command.add_argument("--silent-until", type=int)
        if name == "prune":
            command.add_argument("--keep", type=int, required=True)
    return parser


def _folder(given: argparse.Namespace) -> ChainFolder:
    if given.config is None:
        return ChainFolder(given.data_dir)
    cfg = config.load(NodeConfig, given.config, os.environ)
    return ChainFolder(cfg.data_dir, read_genesis(cfg.chain.genesis), read_key(cfg.key).public_key)


@contextmanager
def _opened(folder: ChainFolder) -> Iterator[tuple[LevelDb, Genesis]]:
    kv = folder.open()
    try:
        yield kv, folder.genesis_of(kv)
    finally:
        kv.close()


@contextmanager
def _archive(
    path: Path, store: ChainStore, genesis: Genesis, first: Height, append: bool
) -> Iterator[tuple[ArchiveWriter, Height]]:
    """Where to write, and from which height on. A new file appears whole or not at all; one that is gone on with grows in its
    place, and is good up to its last whole block whenever this is cut short."""
    try:
        if append:
            with path.open("r+b") as file:
                yield _go_on(file, path, store, genesis)
                _flush(file)
            return
        if path.is_dir():
            raise ConfigError(f"{path} is a folder: give a file in it")
        if path.exists():
            raise ConfigError(f"{path} exists: choose another file, or go on with it by --append")
        part = path.with_name(path.name + ".part")
        with part.open("wb") as file:
            writer = ArchiveWriter(file)
            writer.head(genesis, first)
            yield writer, first
            _flush(file)
        part.replace(path)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise StorageFullError(f"no space left for {path}: free some, then go on with --append") from error
        if error.errno == errno.EIO:
            raise StorageError(f"cannot write {path}: {error.strerror}") from error
        hint = ": leave out --append for a new file" if append and error.errno == errno.ENOENT else ""
        raise ConfigError(f"cannot write {path}: {error.strerror or error}{hint}") from error


def _go_on(file: IO[bytes], path: Path, store: ChainStore, genesis: Genesis) -> tuple[ArchiveWriter, Height]:
    reader = ArchiveReader(file, str(path))
    if reader.genesis.chain_id != genesis.chain_id:
        raise WrongChainError(f"{path} is of chain {reader.genesis.name} {reader.genesis.chain_id.hex()}: choose another file")
    last = None
    try:
        for found in reader.blocks():
            last = found.block.block_hash
    except (MalformedError, InputError):
        # What follows the last whole block is written again.
        pass
    height = Height(reader.following - 1)
    if height > store.state.height:
        raise ConfigError(f"{path} ends at height {height}, this chain at {store.state.height}: there is nothing to add")
    if last is not None and last != store.header(height).block_hash:
        raise WrongChainError(f"{path} has another block at height {height} than this chain: choose another file")
    file.seek(reader.offset)
    file.truncate()
    return ArchiveWriter(file, reader.digest), reader.following


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def _input(name: str) -> Iterator[IO[bytes]]:
    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        file = Path(name).open("rb")  # noqa: SIM115 - closed below, after its own errors were told apart
    except OSError as error:
        raise ConfigError(f"cannot read {name}: {error.strerror or error}") from None
    with file:
        yield file


class _Progress:
    """A line on a terminal that is drawn again; elsewhere a plain line now and then."""

    def __init__(self, what: str, is_quiet: bool) -> None:
        self._what = what
        self._is_quiet = is_quiet
        self._is_terminal = sys.stderr.isatty()
        self._next = monotonic() + (0 if self._is_terminal else LINE_SECONDS)

    def __call__(self, done: int, last: int) -> None:
        now = monotonic()
        if self._is_quiet or now < self._next:
            return
        text = f"{self._what}: block {done}" + (f" of {last}" if last else "")
        sys.stderr.write(f"\r{text}\x1b[K" if self._is_terminal else f"{text}\n")
        sys.stderr.flush()
        self._next = now + (REDRAW_SECONDS if self._is_terminal else LINE_SECONDS)

    def close(self) -> None:
        if self._is_terminal and not self._is_quiet:
            sys.stderr.write("\r\x1b[K")


@contextmanager
def _progress(what: str, given: argparse.Namespace) -> Iterator[_Progress]:
    progress = _Progress(what, given.json)
    try:
        yield progress
    finally:
        progress.close()


if __name__ == "__main__":
    sys.exit(main())
