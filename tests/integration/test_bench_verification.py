"""``pofl bench verification`` as a user runs it, at a tiny size: real processes, one JSON object, nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bench.verification_services import measure
from services.runtime.startup import PARENT

COMMAND = [sys.executable, "-m", "services.cli.main", "bench", "verification", "--samples", "60", "--layers", "4,3,2"]
WAYS = {"to_requester", "from_requester"}


async def test_every_step_has_seconds_and_bytes_each_way() -> None:
    told: list[str] = []
    found = await measure(60, (4, 3, 2), runs=2, nodes=2, progress=told.append)
    json.dumps(found)
    evaluation, audit = found["evaluation"], found["audit"]
    for step in (found["publish"], found["load"], evaluation["online"], evaluation["offline"], audit, audit["again"],
                 found["audit16"], found["garbling"], found["ot"]):  # fmt: skip
        assert step["seconds"] > 0
        assert set(step["bytes"]) >= WAYS
    assert (audit["runs"], evaluation["online"]["runs"], found["audit16"]["runs"]) == (2, 4, 2)
    # What the system counted on the connection is what was said, and a little more.
    for step in (found["load"], evaluation["online"], evaluation["offline"], audit):
        for way in WAYS:
            assert step["bytes"][way] <= step["wire_bytes"][way] < 1.1 * step["bytes"][way] + 100_000
    assert sum(evaluation["he_bytes"].values()) > 0
    assert found["encrypt"]["bytes"] < found["load"]["bytes"]["from_requester"]
    assert min(found["peak_memory"].values()) > 1 << 20
    assert found["audit"]["requester_cpu_seconds"] > 0
    assert any("audit by 2 nodes" in line for line in told)


@pytest.mark.parametrize(
    ("number", "stage"),
    [(signal.SIGINT, "garbling"), (signal.SIGTERM, "best of"), (signal.SIGINT, "loading"), (signal.SIGKILL, "loading")],
)
def test_a_stopped_measurement_leaves_no_process_behind(tmp_path: Path, number: signal.Signals, stage: str) -> None:
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(root), str(root / "proto")])
    env = {**os.environ, "PYTHONPATH": path, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        COMMAND, env=env, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_listen
    ) as process:
        assert process.stderr is not None
        said: list[str] = []
        for line in process.stderr:
            said.append(line)
            if stage in line:
                break
        assert stage in said[-1], said
        time.sleep(0.5)
        before = _started_by(process.pid)
        process.send_signal(number)
        rest = process.stderr.read()
        process.wait(100)
    assert stage != "loading" or len(before) == 2
    psutil.wait_procs(before, timeout=100)
    assert not _started_by(process.pid)
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert "Traceback" not in rest
        assert not list(tmp_path.iterdir())


def _listen() -> None:
    """As on a terminal, also where these tests run in the background of a shell that has them ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _started_by(pid: int) -> list[psutil.Process]:
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if one.environ().get(PARENT) == str(pid):
                found.append(one)
    return found
