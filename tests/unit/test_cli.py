"""The command line: help that teaches, and one clear sentence with a documented exit code for every mistake."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import click
import numpy as np
import pytest
import typer

from core.chain.transaction import Activation
from core.errors import ConfigError, NotFoundError
from core.verification.model_file import dump_model
from core.verification.scored_model import ModelShape, ScoredModel
from services.cli.connection import Connection
from services.cli.errors import heeds_ctrl_c, runs
from services.cli.main import app, main
from services.cli.tasks import PAGE, ending_in_words, find_task, leak_in_words
from services.rpc.views import TaskPhase, TaskView

HEIGHTS = "a whole number from 1 to 9223372036854775807"


def pofl(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pofl", *arguments])
    try:
        return main()
    except SystemExit as end:
        return int(end.code or 0)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("testnet", "up", "--blok", "2"), "No such option '--blok'"),
        (("testnet", "up", "--nodes", "four"), "'four' is not a whole number"),
        (("testnet", "init", "--out", "{tmp}/net", "--nodes", "0"), "nodes is 0, it must be from 1 to 64"),
        (("testnet", "init", "--out", "{tmp}"), "is not empty: choose another folder"),
        (("testnet", "status", "--net", "{tmp}/nothing"), "holds no testnet"),
        (("testnet", "down", "--net", "{tmp}/nothing"), "holds no testnet"),
        (("chain", "tip"), "no testnet here: make one with `pofl testnet up`"),
        (("chain", "show", "0", "--node", "127.0.0.1:1"), f"0 is not {HEIGHTS}"),
        (("chain", "show", "99999999999999999999", "--node", "127.0.0.1:1"), f"99999999999999999999 is not {HEIGHTS}"),
        (("explain", "99999999999999999999", "--node", "127.0.0.1:1"), f"99999999999999999999 is not {HEIGHTS}"),
        (("task", "show", "xyz", "--node", "127.0.0.1:1"), "'xyz' is no task id"),
        (("task", "list", "--phase", "lost", "--node", "127.0.0.1:1"), "--phase is 'lost': it must be one of pending"),
        (("task", "submit", "--test", "a", "--practice", "b", "--reward", "0"), f"0 is not {HEIGHTS}"),
        (
            ("task", "submit", "--test", "a", "--practice", "b", "--reward", "1", "--activation", "tanh"),
            "--activation is 'tanh': it must be sigmoid, relu or identity",
        ),
        (("model", "score", "{tmp}/none", "--data", "{tmp}/none"), "cannot read {tmp}/none"),
        (("model", "score", "{tmp}/a.txt", "--data", "{tmp}/none"), "{tmp}/a.txt is no file of `pofl model fetch`"),
        (("testnet", "init", "--out", "{tmp}/a.txt"), "cannot write a testnet to {tmp}/a.txt: Not a directory"),
        (("testnet", "up", "--dir", "{tmp}/a.txt/net"), "cannot write a testnet to {tmp}/a.txt/net: Not a directory"),
        (("model", "fetch", "--out", "{tmp}/a.txt"), "exists: choose another file"),
        (("keys", "new", "{tmp}/a.txt"), "exists: a key is never overwritten"),
        (("keys", "show", "{tmp}/a.txt"), "can be read by others"),
        (("run", "minr"), "'minr' is no role: it must be one of node"),
        (("no-such-command",), "No such command 'no-such-command'. `pofl --help` says what there is."),
        (("explian", "3"), "No such command 'explian'. Did you mean 'explain'? `pofl --help` says what there is."),
        (("explain", ""), f"'' is not {HEIGHTS}. `pofl explain --help` says what there is."),
        (("explain", "1.5"), f"'1.5' is not {HEIGHTS}. "),
        (("explain",), "Missing argument 'HEIGHT'. `pofl explain --help` says what there is."),
        (("chain", "tip", "--node", "nonsense"), "--node is 'nonsense': it must be HOST:PORT"),
        (("chain", "tip", "--node", "10.0.0.1:0"), "--node is '10.0.0.1:0': it must be HOST:PORT"),
        (("chain", "tip", "--node", "10.0.0.1:9000"), "--node 10.0.0.1:9000 is another machine: give --tls DIR"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: tuple[str, ...],
    sentence: str,
) -> None:
    (tmp_path / "a.txt").write_text("something")
    (tmp_path / "a.txt").chmod(0o644)
    monkeypatch.chdir(tmp_path)
    filled = [argument.replace("{tmp}", str(tmp_path)) for argument in arguments]
    assert pofl(monkeypatch, *filled) == 2
    printed = capsys.readouterr().err
    assert sentence.replace("{tmp}", str(tmp_path)) in printed
    assert printed.startswith("error: ")
    assert "Traceback" not in printed


def test_a_node_that_nobody_runs_is_exit_code_3(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert pofl(monkeypatch, "chain", "tip", "--node", "127.0.0.1:1") == 3
    assert "127.0.0.1:1 cannot be reached" in capsys.readouterr().err


def test_a_testnet_that_is_stopped_is_told_apart_from_a_node_that_is_down(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    net = tmp_path / "net"
    assert pofl(monkeypatch, "testnet", "init", "--out", str(net), "--nodes", "1", "--pools", "1", "--miners", "1") == 0
    assert pofl(monkeypatch, "chain", "tip", "--net", str(net)) == 3
    told = capsys.readouterr().err
    assert told.startswith(f"error: no testnet runs from {net}: start it with `pofl testnet up --dir {net}`")
    monkeypatch.setattr("services.cli.pid_file.running", lambda layout: 1)
    assert pofl(monkeypatch, "chain", "tip", "--net", str(net)) == 3
    assert "cannot be reached" in capsys.readouterr().err.partition("error: ")[2][:40]


def test_help_says_what_an_argument_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As it does for options: a newer click loses these texts on their way through typer."""
    pofl(monkeypatch, "explain", "--help")
    assert "Height of a work or void block." in capsys.readouterr().out


@pytest.mark.parametrize("group", ["chain", "testnet", "task"])
def test_a_group_without_a_command_shows_its_help_and_no_empty_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], group: str
) -> None:
    assert pofl(monkeypatch, group) == 2
    printed = capsys.readouterr()
    assert "Usage" in printed.out
    assert not printed.err


@pytest.mark.parametrize("command", [(), ("testnet",), ("task",), ("chain",), ("model",), ("keys",), ("config",)])
def test_every_group_teaches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    assert pofl(monkeypatch, *command, "--help") == 0
    assert "Usage" in capsys.readouterr().out


def test_every_command_shows_an_example() -> None:
    def commands(group: click.Group, path: str) -> Iterator[tuple[str, str]]:
        for name, command in group.commands.items():
            if isinstance(command, click.Group):
                yield from commands(command, f"{path} {name}")
            else:
                yield f"{path} {name}", command.help or ""

    found = dict(commands(cast("click.Group", typer.main.get_command(app)), "pofl"))
    assert len(found) > 15
    assert [name for name, text in found.items() if f"Example: {name}" not in text] == []


def test_from_outside_the_containers_it_says_which_address_to_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "bundles"
    assert (
        pofl(monkeypatch, "testnet", "init", "--compose", "--out", str(out), "--nodes", "1", "--pools", "1", "--miners", "1")
        == 0
    )
    net = out / "user"
    text = (net / "testnet.json").read_text()
    assert "node0:7000" in text
    (net / "testnet.json").write_text(text.replace("node0:7000", "node0.invalid:7000"))
    assert pofl(monkeypatch, "chain", "tip", "--net", str(net)) == 3
    told = capsys.readouterr().err
    assert f"the processes of {net} run elsewhere" in told
    assert f"--node 127.0.0.1:7100 --tls {net}/user/tls" in told
    assert "testnet up" not in told


def test_down_does_not_signal_whoever_has_the_number_of_an_ended_testnet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    net = tmp_path / "net"
    assert pofl(monkeypatch, "testnet", "init", "--out", str(net), "--nodes", "1", "--pools", "1", "--miners", "1") == 0
    (net / "supervisor.pid").write_text(str(os.getpid()))  # as one that was killed leaves it
    assert pofl(monkeypatch, "testnet", "down", "--net", str(net)) == 2
    assert "no testnet runs from" in capsys.readouterr().err


def test_a_new_key_is_private_and_shown_without_its_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "account.key"
    assert pofl(monkeypatch, "keys", "new", str(path), "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert path.stat().st_mode & 0o777 == 0o600
    assert pofl(monkeypatch, "keys", "show", str(path), "--json") == 0
    shown = capsys.readouterr().out
    assert json.loads(shown)["account"] == made["account"]
    assert path.read_text().strip() not in shown


def test_a_model_is_scored_in_exact_integers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shape = ModelShape((2, 2), Activation.IDENTITY, 8, ())
    identity = ScoredModel(shape, (np.array([[1, 0], [0, 1]], np.int64),), (np.zeros(2, np.int64),))
    (tmp_path / "model").write_bytes(dump_model(identity))
    np.savez(tmp_path / "data.npz", x=np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]), y=np.array([0, 1, 1]))
    arguments = ("model", "score", str(tmp_path / "model"), "--data", str(tmp_path / "data.npz"))
    assert pofl(monkeypatch, *arguments) == 0
    assert "2 of 3 correct" in capsys.readouterr().out  # a tie goes to the lowest class
    np.savez(tmp_path / "data.npz", x=np.zeros((3, 5)), y=np.zeros(3))
    assert pofl(monkeypatch, *arguments) == 2
    assert "does not fit the model" in capsys.readouterr().err
    (tmp_path / "data.npz").write_text("neither numbers nor an archive")
    assert pofl(monkeypatch, *arguments) == 2
    assert "not an .npz file of plain arrays" in capsys.readouterr().err
    np.savez(tmp_path / "data.npz", z=np.zeros(3))
    assert pofl(monkeypatch, *arguments) == 2
    assert "no array 'x'; it holds ['z']" in capsys.readouterr().err


def test_init_writes_a_network_that_run_and_config_understand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    net = tmp_path / "net"
    assert pofl(monkeypatch, "testnet", "init", "--out", str(net), "--nodes", "1", "--pools", "1", "--miners", "1") == 0
    assert "6 processes" in capsys.readouterr().out
    assert pofl(monkeypatch, "testnet", "status", "--net", str(net), "--json") == 3
    printed = capsys.readouterr()
    assert json.loads(printed.out) == [{"name": "node0", "state": "down", "height": 0, "block": "-", "peers": 0}]
    assert f"no node of {net} answers: start it with `pofl testnet up --dir {net}`" in printed.err


class _Tasks:
    """Pages of tasks, as a node serves them."""

    def __init__(self, ids: list[bytes]) -> None:
        self.chain = self
        self._ids = ids

    async def tasks(self, phases: tuple[object, ...], limit: int, after: bytes) -> tuple[SimpleNamespace, ...]:
        start = self._ids.index(after) + 1 if after else 0
        return tuple(SimpleNamespace(task_id=one) for one in self._ids[start : start + limit])


async def test_a_task_is_found_by_the_digits_that_tables_print() -> None:
    ids = [i.to_bytes(4, "big") + bytes(28) for i in range(PAGE + 5)]
    ids += [b"\xab\xcd\xef\x01" + bytes(28), b"\xab\xcd\xef\x01" + b"\x01" * 28]
    connection = cast(Connection, _Tasks(ids))
    found = await find_task(connection, f"{PAGE + 3:08X}")
    assert found.task_id == ids[PAGE + 3], "also when it is not on the first page"
    with pytest.raises(ConfigError, match="2 tasks have ids that begin with abcdef01: give more digits"):
        await find_task(connection, "abcdef01")
    assert (await find_task(connection, "abcdef0101")).task_id == ids[-1]
    with pytest.raises(NotFoundError, match="no task on this chain has an id that begins with ffffffff"):
        await find_task(connection, "ffffffff")
    for text in ("abc", "abcdefgh1", "abcdef0"):
        with pytest.raises(ConfigError, match="is no task id"):
            await find_task(connection, text)


def test_the_end_of_a_task_is_said_in_words() -> None:
    def said(phase: TaskPhase, *entries: tuple[object, object]) -> str:
        views = tuple(SimpleNamespace(model_commitment=commit, correct=claim) for commit, claim in entries)
        return ending_in_words(cast(TaskView, SimpleNamespace(phase=phase, entries=views, ended_height=88)))

    assert said(TaskPhase.WON, (b"c", 5)) == "won at height 88"
    assert said(TaskPhase.VOID) == "void at height 88, no pool entered"
    assert "no pool that entered committed a model" in said(TaskPhase.VOID, (None, None))
    assert "no pool that committed a model claimed" in said(TaskPhase.VOID, (b"c", None), (None, None))
    assert "no claim stood, `pofl explain 88` tells more" in said(TaskPhase.VOID, (b"c", 5))


def test_the_leak_is_said_in_words() -> None:
    assert "has 512: they can reconstruct the row" in leak_in_words(4224, 64)
    assert "has 2048: not enough to reconstruct the row" in leak_in_words(1000, 256)


def test_ctrl_c_ends_a_command_that_only_computes(capsys: pytest.CaptureFixture[str]) -> None:
    @runs
    async def compute() -> None:
        heeds_ctrl_c()
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it went on")

    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as ended:
            compute()
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.value.code == 130
