"""tests.node_network: what happens to nodes whose test run is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.node_network import ROOT

NODE = """
import os, sys, time
from services.runtime.startup import end_with_parent
end_with_parent(os.environ)
print("pid", os.getpid(), flush=True)
time.sleep(600)
"""
RUN = """
import asyncio, os, signal, sys
from pathlib import Path
from tests.node_network import NodeProcess
async def main() -> None:
    log = Path(sys.argv[1])
    await NodeProcess("node0", "", Path("unused.toml"), log, program=("-c", sys.argv[2])).start()
    while not log.read_text().endswith("\\n"):
        await asyncio.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such signal")
async def test_nodes_end_with_a_test_run_that_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
    run = await asyncio.create_subprocess_exec(sys.executable, "-c", RUN, str(log), NODE, env=environment)
    assert await run.wait() == -signal.SIGKILL
    pid = int(log.read_text().split()[1])
    try:
        async with asyncio.timeout(60):
            while _is_alive(pid):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
        raise AssertionError(f"process {pid} outlived the run that started it") from None


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
