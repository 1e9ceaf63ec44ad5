"""services.testnet.supervisor: nothing is left behind, whatever the processes do."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import ConfigError, NotFoundError, PoflError
from services.testnet import supervisor
from services.testnet.supervisor import ProcessSpec, Supervisor

ROOT = str(Path(__file__).resolve().parents[2])
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("pids", os.getpid(), child.pid, flush=True)
time.sleep(600)
"""


def script(folder: Path, name: str, source: str) -> ProcessSpec:
    (folder / f"{name}.py").write_text(source)
    return ProcessSpec(name, "node", name, folder / "unused.toml", folder / f"{name}.log", {"PYTHONPATH": str(folder)})


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110 - what is waited for is another process
            await asyncio.sleep(0.02)


async def test_a_process_that_ignores_sigterm_and_its_child_are_gone_after_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "STOP_TIMEOUT", 0.3)
    spec = script(tmp_path, "stubborn", STUBBORN)
    async with Supervisor() as running:
        await running.start(spec)
        await until(lambda: spec.log.read_text().endswith("\n"))
        pids = [int(word) for word in spec.log.read_text().split()[1:]]
        assert len(pids) == 2
        assert all(is_alive(pid) for pid in pids)
    await until(lambda: not any(is_alive(pid) for pid in pids))


async def test_a_process_that_is_ended_is_no_failure_and_can_be_started_again(tmp_path: Path) -> None:
    spec = script(tmp_path, "sleeper", "import time; time.sleep(600)")
    async with Supervisor() as running:
        first = await running.start(spec)
        await running.end(spec.name)
        assert not is_alive(first.process.pid)
        second = await running.start(spec)
        await asyncio.sleep(0.2)
        running.check()
        assert is_alive(second.process.pid)
        with pytest.raises(NotFoundError, match="nobody"):
            await running.end("nobody")
        os.kill(second.process.pid, signal.SIGKILL)
        assert running.failed is not None
        assert "sleeper ended" in await asyncio.wait_for(asyncio.shield(running.failed), 60)


ORPHAN = """
import os, sys, time
from services.runtime.startup import end_with_parent
end_with_parent(os.environ)
print("pid", os.getpid(), flush=True)
time.sleep(600)
"""
KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from services.testnet.supervisor import ProcessSpec, Supervisor
async def main() -> None:
    folder = Path(sys.argv[1])
    log = folder / "orphan.log"
    env = {"PYTHONPATH": f"{folder}:{sys.argv[2]}"}
    async with Supervisor() as running:
        await running.start(ProcessSpec("orphan", "node", "orphan", folder / "unused.toml", log, env))
        while not log.read_text().endswith("\\n"):
            await asyncio.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such signal")
async def test_a_supervisor_that_is_killed_takes_its_processes_along(tmp_path: Path) -> None:
    script(tmp_path, "orphan", ORPHAN)
    killed = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, str(tmp_path), ROOT, env={**os.environ, "PYTHONPATH": ROOT}
    )
    assert await killed.wait() == -signal.SIGKILL
    pid = int((tmp_path / "orphan.log").read_text().split()[1])
    await until(lambda: not is_alive(pid))


async def test_an_end_by_a_signal_is_told_by_its_name(tmp_path: Path) -> None:
    spec = script(tmp_path, "shot", "import os; os.kill(os.getpid(), 9)")
    async with Supervisor() as running:
        await running.start(spec)
        assert running.failed is not None
        assert "shot ended by SIGKILL" in await asyncio.wait_for(asyncio.shield(running.failed), 60)


async def test_an_unexpected_end_is_told_with_the_end_of_the_log(tmp_path: Path) -> None:
    spec = script(tmp_path, "dies", "import sys; print('no room for me'); sys.exit(3)")
    async with Supervisor() as running:
        await running.start(spec)
        assert running.failed is not None
        message = await asyncio.wait_for(asyncio.shield(running.failed), 60)
        assert "dies ended with exit code 3" in message
        assert "no room for me" in message
        with pytest.raises(PoflError, match="no room for me"):
            running.check()


async def test_stopping_is_no_failure(tmp_path: Path) -> None:
    spec = script(tmp_path, "sleeps", "import time; time.sleep(600)")
    async with Supervisor() as running:
        child = await running.start(spec)
    assert child.process.returncode is not None
    assert child.process.returncode < 0
    assert not is_alive(child.process.pid)
    running.check()
    assert spec.log.exists()


STEADY = """
import sys, time
print("words", *sys.argv[1:], flush=True)
while True:
    time.sleep(0.05)
    print("tick", flush=True)
"""


async def test_a_process_can_be_killed_and_stopped_for_a_while_and_neither_is_a_failure(tmp_path: Path) -> None:
    spec = replace(script(tmp_path, "steady", STEADY), arguments=("first", "second"))
    async with Supervisor() as running:
        child = await running.start(spec)
        await until(lambda: "tick" in spec.log.read_text())
        assert spec.log.read_text().split()[1:4] == ["first", "second", "--config"]
        running.send("steady", signal.SIGSTOP)
        await until(lambda: Path(f"/proc/{child.process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T")
        running.send("steady", signal.SIGCONT)
        mark = spec.log.stat().st_size
        await until(lambda: spec.log.stat().st_size > mark)
        await running.kill("steady")
        assert child.process.returncode == -signal.SIGKILL
        running.check()
        with pytest.raises(NotFoundError, match="no process 'steady'"):
            await running.kill("steady")
        with pytest.raises(NotFoundError, match="no process 'steady'"):
            running.send("steady", signal.SIGCONT)
        again = await running.start(spec)
        assert again.process.pid != child.process.pid


async def test_a_log_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where a folder must be")
    spec = replace(script(tmp_path, "quiet", ""), log=tmp_path / "logs" / "quiet.log")
    async with Supervisor() as running:
        with pytest.raises(ConfigError, match=f"cannot write the log {spec.log}: .* must be able to write there"):
            await running.start(spec)
        assert not running.children
