"""A testnet of real processes goes on when one of them is killed or paused by name, and is judged without it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_testnet import COMMAND, ENV, left_over, pofl

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]
SHAPE = ("--nodes", "4", "--pools", "2", "--miners", "1")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    assert left_over(tmp_path) == []


def heights(folder: Path) -> dict[str, tuple[str, int]]:
    rows = json.loads(pofl(folder, "testnet", "status", "--net", "net", "--json", timeout=300).stdout or "[]")
    return {row["name"]: (row["state"], row["height"]) for row in rows}


def do(folder: Path, act: str, process: str) -> str:
    done = pofl(folder, "testnet", act, process, "--net", "net", timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_block_is_mined_without_a_node_and_a_pool(folder: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "testnet", "up", "--dir", "net", *SHAPE, "--blocks", "1", "--timeout", "780", "--json"],
        cwd=folder, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as network:  # fmt: skip
        try:
            end = time.monotonic() + 300
            while not all(height >= 1 for _, height in heights(folder).values()) or not heights(folder):
                assert network.poll() is None, network.communicate()
                assert time.monotonic() < end
                time.sleep(1)
            assert do(folder, "kill", "node3") == "node3: killed\n"
            assert do(folder, "kill", "node2") == "node2: killed\n"
            assert do(folder, "start", "node2") == "node2: started\n"
            do(folder, "pause", "pool1")
            found = heights(folder)
            assert found["node3"] == ("killed", 0)
            assert found["node2"][0] in ("up", "down")  # it may be loading
            every = json.loads(pofl(folder, "testnet", "status", "--all", "--net", "net", "--json", timeout=300).stdout)
            assert {row["name"]: row["state"] for row in every}["pool1"] == "paused"
            out, err = network.communicate(timeout=800)
        finally:
            network.terminate()
    assert network.returncode == 0, (out, err)
    report = json.loads(out)
    assert report["problems"] == []
    assert [block["pool"] for block in report["blocks"]] == ["pool0"]
