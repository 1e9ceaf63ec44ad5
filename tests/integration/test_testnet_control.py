"""`pofl testnet kill|pause|resume|start`: what one command does to the processes that another one started."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.errors import ConfigError, UnavailableError
from services.testnet import control
from services.testnet.control import SOCKET, Control, ask
from services.testnet.supervisor import ProcessSpec, Supervisor


def sleeper(folder: Path, name: str) -> ProcessSpec:
    (folder / "sleeper.py").write_text("import time; time.sleep(600)")
    return ProcessSpec(name, "node", "sleeper", folder / "unused.toml", folder / f"{name}.log", {"PYTHONPATH": str(folder)})


def state_of(pid: int) -> str:
    """As the system has it: T stopped, Z ended."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


@pytest.fixture(params=["short", "long"])
async def running(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[Path, Supervisor, Control]]:
    """Two processes; once in a folder whose path is longer than a socket's may be."""
    folder = tmp_path if request.param == "short" else tmp_path / ("x" * 100)
    folder.mkdir(exist_ok=True)
    async with Supervisor() as supervisor, Control(supervisor).serving(folder) as held:
        for name in ("node0", "node1"):
            await supervisor.start(sleeper(folder, name))
        yield folder, supervisor, held


async def test_a_process_is_killed_and_started_again(running: tuple[Path, Supervisor, Control]) -> None:
    folder, supervisor, held = running
    pid = next(child.process.pid for child in supervisor.children if child.spec.name == "node1")
    assert await ask(folder, "status") == {"node0": "running", "node1": "running"}
    assert await ask(folder, "kill", "node1") == {"node0": "running", "node1": "killed"}
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert held.is_away("node1")
    back = asyncio.create_task(held.until_back("node1"))
    with pytest.raises(ConfigError, match="node1 is killed: `pofl testnet start node1` starts it again"):
        await ask(folder, "kill", "node1")
    assert not back.done()
    assert await ask(folder, "start", "node1") == {"node0": "running", "node1": "running"}
    async with asyncio.timeout(60):
        await back
    supervisor.check()  # that it ended was no failure


async def test_a_process_is_paused_and_goes_on(running: tuple[Path, Supervisor, Control]) -> None:
    folder, supervisor, held = running
    pid = supervisor.children[0].process.pid
    assert (await ask(folder, "pause", "node0"))["node0"] == "paused"
    async with asyncio.timeout(60):
        while state_of(pid) != "T":  # noqa: ASYNC110 - the system tells nobody
            await asyncio.sleep(0.02)
    assert held.is_away("node0")
    assert (await ask(folder, "resume", "node0"))["node0"] == "running"
    async with asyncio.timeout(60):
        while state_of(pid) == "T":  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await ask(folder, "pause", "node0")  # stopped processes end too, and at once: SIGTERM reaches them


@pytest.mark.parametrize(
    ("act", "name", "sentence"),
    [
        ("kill", "node9", "this testnet runs no process 'node9'; it runs node0, node1"),
        ("start", "node0", "node0 was not killed"),
        ("resume", "node0", "node0 is not paused"),
        ("eat", "node0", "'eat' cannot be done to a process; there is kill, pause, resume, start, status"),
    ],
)
async def test_what_cannot_be_done_is_said(
    running: tuple[Path, Supervisor, Control], act: str, name: str, sentence: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        await ask(running[0], act, name)
    assert sentence in raised.value.message


async def test_only_the_owner_can_ask_and_nonsense_changes_nothing(
    running: tuple[Path, Supervisor, Control], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, _ = running
    assert stat.S_IMODE((folder / SOCKET).stat().st_mode) == 0o600
    monkeypatch.setattr(control, "LINE_SECONDS", 0.2)
    for line in (b"nonsense\n", b"[]\n", b'{"act": "kill"}\n', b"x" * (2 * control.MOST) + b"\n", b"", b"\xff\n"):
        with control._address(folder) as address:
            reader, writer = await asyncio.open_unix_connection(address)
        writer.write(line)
        async with asyncio.timeout(60):
            answer = await reader.readline()
        assert json.loads(answer) == {"error": "that was no request"}
        writer.close()
    assert await ask(folder, "status") == {"node0": "running", "node1": "running"}


async def test_where_nothing_runs_that_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="no testnet runs from"):
        await ask(tmp_path, "status")
    # What a killed one left behind is no testnet, and the next one takes its place.
    left = socket.socket(socket.AF_UNIX)
    left.bind(os.fspath(tmp_path / SOCKET))
    left.close()
    with pytest.raises(UnavailableError, match="no testnet runs from"):
        await ask(tmp_path, "status")
    async with Supervisor() as supervisor, Control(supervisor).serving(tmp_path):
        assert await ask(tmp_path, "status") == {}
    assert not (tmp_path / SOCKET).exists()
