"""``pofl bench mining`` at its smallest: real processes, and the fields that its page names."""

from __future__ import annotations

import json

import psutil
import pytest
from typer.testing import CliRunner

from services.cli.bench import app


@pytest.mark.slow
@pytest.mark.timeout(420)  # half a minute of processor time
def test_every_figure_is_measured() -> None:
    before = set(psutil.Process().children(recursive=True))
    words = ["mining", "--miners", "2", "--sizes", "0.02", "--runs", "1", "--rows", "40"]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    (one,) = result["measured"]
    assert one["miners"] == 2
    assert one["round"]["runs"] == 1
    assert 0 < one["round"]["seconds_min"] <= one["round"]["seconds"] <= one["round"]["seconds_max"]
    assert all(one["round"]["cpu_seconds"][role] > 0 for role in ("guard", "manager", "miners", "service"))
    assert all(one["peak_memory"][role] > 20_000_000 for role in ("guard", "manager", "miner"))
    assert one["bytes"]["up"] > 2 * one["model_bytes"] < one["bytes"]["down"]
    assert one["one_process"]["seconds"] > 0
    size = str(one["model_bytes"])
    assert result["round"]["seconds"] == {size: {"2": one["round"]["seconds"]}}
    assert result["overhead"]["ratio"] == {size: {"2": one["round"]["seconds"] / one["one_process"]["seconds"]}}
    deadline = result["deadline"]
    assert (deadline["late"] > 0) == (deadline["early"]["seconds_min"] < 0)
    # Late by what a busy machine takes to see that it has come, not more.
    assert -60 < deadline["early"]["seconds_min"] <= deadline["early"]["seconds_max"] < deadline["task_seconds"]
    assert deadline["empty"] + (deadline["unused"] or {"runs": 0})["runs"] == deadline["early"]["runs"] == 1
    assert result["machine"]["cores"]
    assert set(result["versions"]) == {"flwr", "torch"}
    assert (result["stock"], result["left_out"]) == ([], [])
    assert set(psutil.Process().children(recursive=True)) <= before, "a process was left behind"
