"""A report of a fault holds what helps and no secret."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli.debug import app
from services.rpc import tls

SEED = "5eed" * 16
PASSPHRASE = "correct horse battery"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "net" / "node0"
    folder.mkdir(parents=True)
    authority = tls.make_authority(tmp_path / "net" / "ca")
    tls.issue(authority, "node", "node0", ["127.0.0.1"]).write(folder / "tls")
    (folder / "account.key").write_text(SEED + "\n")
    (folder / "data").mkdir()
    (folder / "config.toml").write_text(
        f'name = "node0"\nlisten = "127.0.0.1:0"\nadmin_listen = "127.0.0.1:1"\ndata_dir = "data"\nkey = "account.key"\n'
        f'api_token = "tok-1234567890"\n[tls]\nkey = "tls/tls.key"\ncert = "tls/tls.pem"\npassphrase = "{PASSPHRASE}"\n'
    )
    (tmp_path / "net" / "logs").mkdir()
    pem = (folder / "tls" / "tls.key").read_text()
    (tmp_path / "net" / "logs" / "node0.log").write_text(f"first\nloaded {pem} ok\nlast\n")
    return folder


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def parts(file: Path) -> dict[str, str]:
    with tarfile.open(file) as archive:
        return {m.name.removeprefix("pofl-debug/"): archive.extractfile(m).read().decode() for m in archive}  # type: ignore[union-attr]


@pytest.mark.parametrize("inner", [".", "data"])
def test_what_is_in_it_and_what_never(home: Path, tmp_path: Path, inner: str) -> None:
    code, said = run("--data-dir", home / inner, "--out", tmp_path / "r.tar.gz")
    assert code == 0, said
    found = parts(tmp_path / "r.tar.gz")
    assert {"versions.json", "config.toml", "files.json", "log.txt", "missing.json"} <= set(found)
    everything = "".join(found.values())
    for secret in (SEED, "tok-1234567890", PASSPHRASE, *(home / "tls" / "tls.key").read_text().splitlines()[1:-1]):
        assert secret not in everything
    assert 'name = "node0"' in found["config.toml"]
    assert "first\nloaded (private key)" in found["log.txt"]
    # The process does not run: that is said, and the rest is there.
    assert "127.0.0.1:1" in json.loads(found["missing.json"])["status.json"]
    assert (tmp_path / "r.tar.gz").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("leak", [SEED, SEED[:64], "tok-1234567890", PASSPHRASE])
def test_a_secret_that_came_into_a_log_stops_it(home: Path, tmp_path: Path, leak: str) -> None:
    (tmp_path / "net" / "logs" / "node0.log").write_text(f"seed is {leak}\n")
    code, said = run("--data-dir", home, "--out", tmp_path / "r.tar.gz")
    assert code == 2
    assert "log.txt would hold a private key or a token" in said
    assert leak not in said
    assert not (tmp_path / "r.tar.gz").exists()


def test_a_key_whose_head_was_cut_off_with_the_older_lines(home: Path, tmp_path: Path) -> None:
    (tmp_path / "net" / "logs" / "node0.log").write_text("c2VjcmV0\nc2VjcmV0\n-----END PRIVATE KEY-----\nlast\n")
    assert run("--data-dir", home, "--out", tmp_path / "r.tar.gz")[0] == 0
    assert parts(tmp_path / "r.tar.gz")["log.txt"] == "(private key)\nlast\n"


def test_it_says_what_to_give(home: Path, tmp_path: Path) -> None:
    assert run("--out", tmp_path / "r.tar.gz")[0] == 2
    assert "config.toml" in run("--data-dir", tmp_path, "--out", tmp_path / "r.tar.gz")[1]
    (tmp_path / "r.tar.gz").write_text("")
    assert "exists" in run("--data-dir", home, "--out", tmp_path / "r.tar.gz")[1]


def test_secrets_inside_lists_and_addresses_are_not_shown(home: Path, tmp_path: Path) -> None:
    with (home / "config.toml").open("a") as file:
        file.write('url = "https://me:hunter22@host/path"\n[[guests]]\nname = "guest"\ntoken = "tok-0987654321"\n')
    assert run("--data-dir", home, "--out", tmp_path / "r.tar.gz")[0] == 0
    config = parts(tmp_path / "r.tar.gz")["config.toml"]
    assert '"name": "guest"' in config
    assert "https://(secret)@host/path" in config
    assert "tok-0987654321" not in config
    assert "hunter22" not in config
