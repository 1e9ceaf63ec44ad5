"""services.rpc.role: wrong files and flags end with one sentence and a documented exit code."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from core.crypto.signing import KeyPair
from core.errors import ConfigError
from core.ids import Milliseconds, NodeId
from core.params import Genesis, GenesisValidator
from services.rpc.role import Role, RoleConfig, read_key, role_main
from services.runtime import lifecycle
from services.runtime.lifecycle import Lifecycle

ROOT = Path(__file__).resolve().parent.parent.parent


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig(RoleConfig):
    ROLE: ClassVar[str] = "platform"


async def end_at_once(role: Role[SampleConfig], life: Lifecycle) -> None:
    assert role.account == KeyPair.from_seed(b"k" * 32).public_key


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    genesis = Genesis("test", 1, Milliseconds(1), (GenesisValidator(NodeId(b"v" * 32), 1, "node0"),), ())
    (tmp_path / "genesis.json").write_text(genesis.to_json())
    key = tmp_path / "account.key"
    key.write_text((b"k" * 32).hex() + "\n")
    key.chmod(0o600)
    (tmp_path / "role.toml").write_text(
        'name = "p"\nlisten = "127.0.0.1:0"\ndata_dir = "data"\nkey = "account.key"\n'
        '[tls]\ninsecure_loopback = true\n[chain]\ngenesis = "genesis.json"\n'
    )
    return tmp_path


@pytest.fixture(autouse=True)
def _role_ends_and_this_process_does_not(monkeypatch: pytest.MonkeyPatch, loggers_as_before: None) -> None:
    """A role that ends closes the workers of its process, and ends the process if one is busy or it takes too long. Here they
    are other tests' workers, and the process of all of them."""

    def no_end(code: int) -> None:
        raise AssertionError(f"the process would have ended with {code}")

    monkeypatch.setattr(lifecycle, "close_all", lambda: False)
    monkeypatch.setattr(lifecycle, "_end_now", no_end)


def run(folder: Path, *flags: str) -> int:
    return role_main(SampleConfig, end_at_once, ["--config", str(folder / "role.toml"), *flags])


def test_a_role_starts_and_ends(folder: Path) -> None:
    assert run(folder) == 0
    assert (folder / "data").is_dir()


STUCK = """
import sys, time
from services.rpc.role import role_main
from tests.unit.test_role import SampleConfig, end_at_once

class Stuck:
    def __del__(self) -> None:
        time.sleep(3600)

stuck = Stuck()
sys.exit(role_main(SampleConfig, end_at_once))
"""


def test_what_waits_when_the_interpreter_is_taken_apart_does_not_hold_the_process(folder: Path) -> None:
    """gRPC's objects did, for ever, in a node that was told to stop while its links came up."""
    words = [sys.executable, "-c", STUCK, "--config", str(folder / "role.toml")]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
    assert subprocess.run(words, cwd=ROOT, env=environment, timeout=240, check=False).returncode == 0


def test_a_data_folder_is_its_owners_only(folder: Path) -> None:
    """Training states, practice rows and stores lie in it."""
    run(folder)
    assert (folder / "data").stat().st_mode & 0o077 == 0


def test_the_printed_configuration_can_be_read_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--print-config") == 0
    (folder / "role.toml").write_text(capsys.readouterr().out)
    assert run(folder) == 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: (f / "account.key").chmod(0o644), "can be read by others (mode 0644): run `chmod 600"),
        (lambda f: (f / "account.key").write_text("xyz"), "is no Ed25519 seed: it must be 64 hex digits"),
        (lambda f: (f / "account.key").unlink(), "cannot read the key"),
        (lambda f: (f / "genesis.json").unlink(), "cannot read the genesis file"),
        (lambda f: (f / "genesis.json").write_text("{}"), "genesis.json: genesis: not a genesis document: it lacks 'params'"),
        (lambda f: (f / "genesis.json").write_text("junk"), "not a genesis document: no JSON at line 1, column 1"),
        (lambda f: (f / "data").write_text("a file"), "cannot make the data folder"),
        (lambda f: (f / "role.toml").unlink(), "cannot read the configuration file"),
    ],
)
def test_wrong_files_are_named_without_a_traceback(
    folder: Path, capsys: pytest.CaptureFixture[str], change: object, sentence: str
) -> None:
    assert callable(change)
    change(folder)
    assert run(folder) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
    assert error.count("\n") == 1


def test_an_unknown_key_names_the_nearest_known_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--set", "log.levl=debug") == 2
    assert "did you mean 'log.level'" in capsys.readouterr().err


def test_a_key_file_must_belong_to_its_owner_only(folder: Path) -> None:
    assert read_key(folder / "account.key").public_key == KeyPair.from_seed(b"k" * 32).public_key
    with pytest.raises(ConfigError, match="cannot read the key"):
        read_key(folder / "missing.key")
