"""`pofl testnet` around what runs: logs, status, down, and what cannot go together."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from services.cli.main import main
from services.testnet.layout import Layout, Shape, make_layout
from services.testnet.plan import Settings, save_settings


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    layout = make_layout(tmp_path_factory.mktemp("made") / "net", Shape(nodes=1, pools=1, miners=1))
    (layout.folder / "logs").mkdir()
    for name, lines in (("node0", 50), ("pool0", 2)):
        (layout.folder / "logs" / f"{name}.log").write_text("".join(f"{name} said {i}\n" for i in range(lines)))
    return layout


def pofl(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pofl", "testnet", *arguments])
    try:
        return main()
    except SystemExit as end:
        return int(end.code or 0)


def test_logs_of_one_and_of_all(net: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert pofl(monkeypatch, "logs", "node0", "--lines", "2", "--net", str(net.folder)) == 0
    assert capsys.readouterr().out == "node0 said 48\nnode0 said 49\n"
    assert pofl(monkeypatch, "logs", "--lines", "1", "--net", str(net.folder)) == 0
    assert capsys.readouterr().out == "node0          | node0 said 49\npool0          | pool0 said 1\n"


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("logs", "node7"), 2, "this testnet has no process 'node7'; it has node0, "),
        (("logs", "provider0"), 2, "provider0 has logged nothing yet"),
        (("logs", "--follow"), 2, "--follow needs the name of one process"),
        (("kill", "node0"), 3, "no testnet runs from"),
        (("pause", "node0"), 3, "no testnet runs from"),
        (("status",), 3, "no node of"),
        (("down",), 2, "no testnet runs from"),
        (("down", "--volumes"), 2, "--volumes is for containers"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    net: Layout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int,
    sentence: str,
) -> None:  # fmt: skip
    assert pofl(monkeypatch, *words, "--net", str(net.folder)) == code
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert sentence in said
    assert said.count("\n") == 1


def test_a_users_folder_is_not_started_and_its_processes_are_elsewhere(
    net: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("genesis.json", "testnet.json"):
        (tmp_path / "user").mkdir(exist_ok=True)
        shutil.copy(net.folder / part, tmp_path / "user" / part)
    shutil.copytree(net.folder / "user", tmp_path / "user" / "user")
    before = sorted(tmp_path.rglob("*"))
    assert pofl(monkeypatch, "up", "--dir", str(tmp_path / "user")) == 2
    said = capsys.readouterr().err
    assert "has no files of processes: they run elsewhere. Start them there: `pofl join BUNDLE`" in said
    assert sorted(tmp_path.rglob("*")) == before
    for words in (("testnet", "status"), ("chain", "tip")):
        monkeypatch.setattr(sys, "argv", ["pofl", *words, "--net", str(tmp_path / "user")])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 3
        said = capsys.readouterr().err
        assert f"the processes of {tmp_path / 'user'} run elsewhere" in said
        assert "pofl testnet up" not in said


def test_containers_and_processes_do_not_share_a_folder(
    net: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    save_settings(tmp_path / "boxes", Settings("pofl-test", Shape()))
    for words, sentence in (
        (("up", "--docker", "--dir", str(net.folder)), "is a testnet of processes: start it without --docker"),
        (("up", "--dir", str(tmp_path / "boxes")), "is a testnet in containers: start it with --docker"),
        (("up", "--docker", "--dir", str(tmp_path / "boxes"), "--nodes", "7"), "is a network of another shape"),
        (("up", "--bind", "127.0.0.1"), "--bind goes with --docker"),
        (("up", "--docker", "--data", "x.npz"), "--data goes with processes"),
        (("up", "--docker", "--dir", str(tmp_path / "new"), "--bind", "here"), "--bind is 'here'"),
    ):
        assert pofl(monkeypatch, *words) == 2, words
        assert sentence in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_without_an_engine_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    save_settings(tmp_path / "boxes", Settings("pofl-test", Shape()))
    for words in (("status",), ("logs", "node0"), ("kill", "node0"), ("down", "--volumes")):
        assert pofl(monkeypatch, *words, "--net", str(tmp_path / "boxes")) == 3, words
        said = capsys.readouterr().err
        assert said == (
            "error: no Docker engine answers: start it, or name another by DOCKER_HOST (No such file or directory)\n"
        ), words
    assert pofl(monkeypatch, "up", "--docker", "--dir", str(tmp_path / "new")) == 3
    assert not (tmp_path / "new").exists()
