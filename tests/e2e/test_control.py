"""A testnet of real processes goes on when one of them is killed or paused by name, and is judged without it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.test_testnet import COMMAND, ENV, left_over, pofl

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1500)]
SHAPE = ("--nodes", "4", "--pools", "2", "--miners", "1")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    assert left_over(tmp_path) == []


def states(folder: Path, *more: str) -> dict[str, tuple[str, int]]:
    found = pofl(folder, "testnet", "status", "--net", "net", "--json", *more, timeout=300)
    return {row["name"]: (row["state"], row["height"]) for row in json.loads(found.stdout or "[]")}


def do(folder: Path, act: str, *process: str) -> str:
    done = pofl(folder, "testnet", act, *process, "--net", "net", timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def until(network: subprocess.Popen[str], what: str, is_so: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        assert network.poll() is None, network.communicate()
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(1)


def won(folder: Path) -> int:
    listed = pofl(folder, "task", "list", "--phase", "won", "--net", "net", "--json", timeout=300)
    return len(json.loads(listed.stdout or "[]"))


def test_blocks_are_mined_without_a_node_and_a_pool_and_with_a_requester_that_is_killed(folder: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, "testnet", "up", "--dir", "net", *SHAPE],
        cwd=folder, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as network:  # fmt: skip
        try:
            until(network, "four nodes", lambda: sum(height >= 1 for _, height in states(folder).values()) == 4)
            assert do(folder, "kill", "node3") == "node3: killed\n"
            assert do(folder, "kill", "node2") == "node2: killed\n"
            assert do(folder, "start", "node2") == "node2: started\n"
            assert do(folder, "pause", "pool1") == "pool1: paused\n"
            found = states(folder, "--all")
            assert found["node3"] == ("killed", 0)
            assert found["node2"][0] in ("up", "down")  # it may be loading
            assert found["pool1"][0] == "paused"
            assert found["pool0"][0] == "up"
            # Two: when the second is there, the first was asked for on every node that is not away.
            before = won(folder)
            until(network, "two blocks without them", lambda: won(folder) >= before + 2, 900)
            # Whoever publishes: in the middle of what she does then, once or twice in what follows from a publication.
            before = won(folder)
            for _ in range(2):
                assert do(folder, "kill", "requester0") == "requester0: killed\n"
                time.sleep(2)
                assert do(folder, "start", "requester0") == "requester0: started\n"
            until(network, "a block after she was killed", lambda: won(folder) >= before + 1, 900)
            do(folder, "start", "node3")
            do(folder, "resume", "pool1")
            tip = states(folder)["node0"][1]
            until(network, "all are back", lambda: all(height >= tip for _, height in states(folder).values()))
            assert do(folder, "down").endswith("stopped\n")
            out, err = network.communicate(timeout=120)
        finally:
            network.terminate()
    assert network.returncode == 0, (out, err)
    assert "stopped; no process is left" in out
