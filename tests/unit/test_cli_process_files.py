"""Commands that look at a process's folder end with a sentence, whatever its configuration holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.cli.main import app
from services.rpc import tls


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('log = "x"\n', "log must be a table"),
        ('tls = "cert key ca"\n', "tls must be a table"),
        ('data_dir = "a\\u0000b"\n', "data_dir has a zero character"),
        ('[tls]\nkey = "a\\u0000b"\n', "key has a zero character"),
        ("x = [", "is not TOML"),
        (None, "give the folder of one process"),
    ],
)
@pytest.mark.parametrize(
    "command", [["backup", "FOLDER", "--out", "OUT"], ["debug", "dump", "--data-dir", "FOLDER", "--out", "OUT"],
                ["keys", "rotate-cert", "FOLDER", "--authority", "CA"]],
)  # fmt: skip
def test_a_configuration_of_another_shape(tmp_path: Path, command: list[str], text: str | None, why: str) -> None:
    folder = tmp_path / "node0"
    folder.mkdir()
    if text is not None:
        (folder / "config.toml").write_text(text)
    named = {"FOLDER": str(folder), "OUT": str(tmp_path / "out"), "CA": str(tmp_path)}
    result = CliRunner().invoke(app, [named.get(word, word) for word in command])
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert why in result.output.replace("has a config.toml: give a process's folder", "give the folder of one process")
    assert not (tmp_path / "out").exists()


def test_a_user_that_cannot_be_issued_leaves_no_folder(tmp_path: Path) -> None:
    def issue(out: Path, authority: Path, *more: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["keys", "issue-user", str(out), "--authority", str(authority), *more])
        assert isinstance(result.exception, SystemExit | None)
        return result.exit_code, result.output

    code, said = issue(tmp_path / "user", tmp_path / "nobody")
    assert (code, (tmp_path / "user").exists()) == (2, False)
    assert "cannot read the authority" in said
    tls.make_authority(tmp_path / "ca")
    assert issue(tmp_path / "user", tmp_path / "ca", "--name", "NO NAME")[0] == 2
    assert not (tmp_path / "user").exists()
    (tmp_path / "file").write_text("")
    code, said = issue(tmp_path / "file", tmp_path / "ca")
    assert code == 2
    assert "cannot write" in said
    assert issue(tmp_path / "user", tmp_path / "ca")[0] == 0
    code, said = issue(tmp_path / "user", tmp_path / "ca")
    assert code == 2
    assert "is not empty" in said
