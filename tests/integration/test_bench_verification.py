"""``pofl bench verification`` as a user runs it, at a tiny size: real processes, one JSON object, nothing left behind."""

from __future__ import annotations

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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_measurement_leaves_no_process_behind(tmp_path: Path, number: signal.Signals) -> None:
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(root), str(root / "proto")])
    env = {**os.environ, "PYTHONPATH": path, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(COMMAND, env=env, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said: list[str] = []
        for line in process.stderr:
            said.append(line)
            if "loading" in line:
                break
        time.sleep(0.5)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) == 2, said
        process.send_signal(number)
        rest = process.stderr.read()
        process.wait(30)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert "Traceback" not in rest
        assert not list(tmp_path.iterdir())
