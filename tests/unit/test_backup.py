"""Backups: whole or refused, never of a running process, never over another folder, and never a way to vote twice."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import socket
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from core.errors import LockedError
from node import rows
from node.folder import open_chain_folder
from node.store import ChainStore
from services.cli.backup import backup, restore
from services.rpc import tls
from services.storage.silence import FOR_EVER, SILENT, read_silence, write_silence
from tests.chainkit import key
from tests.stored_chain import GENESIS, NODE, fill, steps

TIP = len(steps())
app = typer.Typer()
app.command("backup")(backup)
app.command("restore")(restore)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A validator that stopped: its configuration, keys, and a chain with its votes."""
    home = tmp_path_factory.mktemp("net") / "node0"
    home.mkdir()
    authority = tls.make_authority(home.parent / "ca")
    tls.issue(authority, "node", "node0", ["127.0.0.1"], NODE).write(home / "tls")
    (home / "account.key").write_text(key("v0").seed.hex() + "\n")
    (home / "account.key").chmod(0o600)
    (home / "config.toml").write_text(
        'name = "node0"\nlisten = "127.0.0.1:0"\nadmin_listen = "127.0.0.1:0"\ndata_dir = "data"\nkey = "account.key"\n'
        '[tls]\nca = "tls/ca.pem"\ncert = "tls/tls.pem"\nkey = "tls/tls.key"\n[chain]\ngenesis = "../genesis.json"\n'
    )
    kv = open_chain_folder(home / "data", GENESIS, NODE)
    fill(kv)
    kv.close()
    (home / "data" / "blobs").mkdir()
    (home / "data" / "blobs" / "some").write_bytes(b"blob" * 1000)
    return home


@pytest.fixture
def home(stored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored, tmp_path / "node0"))


@pytest.fixture
def store(home: Path) -> Iterator[ChainStore]:
    kv = open_chain_folder(home / "data", GENESIS, NODE)
    yield ChainStore(kv, GENESIS)
    kv.close()


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def made(home: Path, *flags: str) -> Path:
    file = home.parent / "backup"
    code, said = run("backup", home, "--out", file, *flags)
    assert code == 0, said
    return file


def test_the_mark_is_the_nodes_own(home: Path) -> None:
    assert SILENT == rows.SILENT
    write_silence(home / "data" / "chain", 77)
    kv = open_chain_folder(home / "data", GENESIS, NODE)
    assert ChainStore(kv, GENESIS).silent_until == 77
    kv.close()


def test_a_restored_validator_cannot_vote_where_it_may_have_voted(home: Path, tmp_path: Path) -> None:
    file = made(home)
    code, said = run("restore", file, tmp_path / "new")
    assert code == 2
    assert "votes twice" in said
    assert not (tmp_path / "new").exists()
    code, said = run("restore", file, tmp_path / "new", "--silent-until", TIP + 40)
    assert code == 0, said
    kv = open_chain_folder(tmp_path / "new" / "data", GENESIS, NODE)
    restored = ChainStore(kv, GENESIS)
    assert restored.state.height == TIP
    # node.driver signs with its own key only where this says that nothing is lost.
    assert restored.silent_until == TIP + 40
    kv.close()
    # The folder that the backup is of was not touched: it votes on.
    assert read_silence(home / "data" / "chain") == 0


def test_an_archive_that_is_unpacked_by_hand_never_votes(home: Path, tmp_path: Path) -> None:
    with tarfile.open(made(home)) as archive:
        archive.extractall(tmp_path / "by-hand", filter="data")
    assert read_silence(tmp_path / "by-hand" / "data" / "chain") == FOR_EVER
    # Only longer silence can be asked of a store that says so, from the node's configuration or by reindex.
    kv = open_chain_folder(tmp_path / "by-hand" / "data", GENESIS, NODE)
    silent = ChainStore(kv, GENESIS)
    silent.be_silent(silent.state.height)
    assert silent.silent_until == FOR_EVER
    kv.close()


def test_a_running_node_is_refused(home: Path) -> None:
    """The lock that LevelDB holds, in another process: within one it would be the same owner's."""
    hold = "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); input()"
    command = [sys.executable, "-I", "-S", "-c", hold, str(home / "data" / "chain" / "LOCK")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        code, said = run("backup", home, "--out", home.parent / "backup")
        holder.communicate("\n")
    assert code == 3
    assert "stop it" in said
    assert not (home.parent / "backup").exists()


def test_a_process_whose_port_answers_is_refused(home: Path) -> None:
    """Pools and miners have no store with a lock."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        config = (
            (home / "config.toml").read_text().replace('admin_listen = "127.0.0.1:0"', f'admin_listen = "127.0.0.1:{port}"')
        )
        (home / "config.toml").write_text(config)
        code, said = run("backup", home, "--out", home.parent / "backup")
    assert code == 3
    assert "node0 runs" in said


def test_keys_come_only_when_asked_for(home: Path, tmp_path: Path) -> None:
    seed, pem = (home / "account.key").read_bytes(), (home / "tls" / "tls.key").read_bytes()
    file = made(home)
    assert file.stat().st_mode & 0o777 == 0o600
    with tarfile.open(file) as archive:
        content = b"".join(archive.extractfile(m).read() for m in archive)  # type: ignore[union-attr]
    assert seed.strip() not in content
    assert pem.splitlines()[1] not in content
    file.unlink()
    code, said = run("restore", made(home, "--with-keys"), tmp_path / "new", "--silent-until", 9)
    assert code == 0, said
    assert (tmp_path / "new" / "account.key").read_bytes() == seed
    assert (tmp_path / "new" / "tls" / "tls.key").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "new" / "data" / "blobs" / "some").read_bytes() == b"blob" * 1000


def test_nothing_is_overwritten(home: Path) -> None:
    file = made(home)
    assert run("backup", home, "--out", file)[0] == 2
    before = sorted((p, p.stat().st_mtime_ns) for p in home.rglob("*"))
    code, said = run("restore", file, home, "--silent-until", 9)
    assert code == 2
    assert "exists" in said
    assert sorted((p, p.stat().st_mtime_ns) for p in home.rglob("*")) == before


@pytest.mark.parametrize("where", [0.3, 0.6, 0.9])
def test_damage_is_found_and_nothing_is_restored(home: Path, tmp_path: Path, where: float) -> None:
    file = made(home)
    data = bytearray(file.read_bytes())
    data[int(where * len(data))] ^= 4
    file.write_bytes(data)
    code, _ = run("restore", file, tmp_path / "new", "--silent-until", 9)
    assert code in (2, 4)
    file.write_bytes(data[: int(where * len(data))])
    assert run("restore", file, tmp_path / "new", "--silent-until", 9)[0] in (2, 4)
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob(".pofl-*"))


def forged(path: Path, files: dict[str, bytes], listed: dict[str, bytes], **head: object) -> Path:
    manifest = {
        "format": "pofl-backup-1", "role": "pool", "name": "x", "keys": False, "chain": "",
        "files": {n: (len(d), hashlib.sha256(d).hexdigest(), 0) for n, d in listed.items()}, **head,
    }  # fmt: skip
    with tarfile.open(path, "w:gz") as archive:
        for name, data in {"manifest.json": json.dumps(manifest).encode(), **files}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/../../b", "", "."])
def test_no_file_lands_outside(tmp_path: Path, name: str) -> None:
    file = forged(tmp_path / "f", {name: b"x"}, {name: b"x"})
    assert run("restore", file, tmp_path / "deep" / "new")[0] in (2, 4)
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "deep" / "new").exists()


def test_files_that_differ_from_the_manifest_are_refused(tmp_path: Path) -> None:
    for files, listed in (({"a": b"x"}, {"a": b"y"}), ({"a": b"x"}, {}), ({}, {"a": b"x"}), ({"a": b"xx"}, {"a": b"x"})):
        file = forged(tmp_path / "f", files, listed)
        assert run("restore", file, tmp_path / "new")[0] == 4
        assert not (tmp_path / "new").exists()


def test_a_chain_cannot_hide_from_its_silence(tmp_path: Path) -> None:
    chain = {"data/chain/CURRENT": b"x"}
    assert run("restore", forged(tmp_path / "f", chain, chain), tmp_path / "new")[0] == 2
    assert run("restore", forged(tmp_path / "f", {}, {}, role="node"), tmp_path / "new")[0] == 2


def test_a_requester_is_asked_about_open_tasks(tmp_path: Path) -> None:
    file = forged(tmp_path / "f", {"a": b"x"}, {"a": b"x"}, role="requester")
    code, said = run("restore", file, tmp_path / "new")
    assert code == 2
    assert "labels" in said
    assert run("restore", file, tmp_path / "new", "--no-open-tasks")[0] == 0


def test_a_store_that_is_open_is_locked(home: Path, store: ChainStore) -> None:
    with pytest.raises(LockedError):
        write_silence(home / "data" / "chain", 3)
