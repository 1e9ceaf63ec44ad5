"""`pofl testnet up --docker` with a real engine: it mines, loses processes and gets them back, and leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from services.testnet.plan import LABEL, load_settings
from tests.e2e.test_compose import IMAGES, docker, why_not

ROOT: Final = Path(__file__).resolve().parents[2]
COMMAND: Final = (sys.executable, "-m", "services.cli.main", "testnet")
ENV: Final = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
BIND: Final = f"127.8.{os.getpid() // 250 % 250}.{1 + os.getpid() % 250}"
SHAPE: Final = ("--nodes", "4", "--pools", "1", "--miners", "1")
NAMED: Final = ("--image", IMAGES[0], "--train-image", IMAGES[1])
NODES: Final = [f"node{i}" for i in range(4)]

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(900)]


def pofl(folder: Path, *words: str, code: int = 0, seconds: float = 600, **env: str) -> tuple[str, str]:
    """A command of ``pofl testnet``, which must end with ``code``: what it wrote, and to standard error."""
    ended = subprocess.run(
        [*COMMAND, *words], cwd=folder, env={**ENV, **env}, capture_output=True, text=True, timeout=seconds,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert ended.returncode == code, (words, ended.returncode, ended.stdout, ended.stderr)
    return ended.stdout, ended.stderr


def left(project: str) -> str:
    """What the engine still keeps of a network."""
    by_label = ("--filter", f"label={LABEL}={project}")
    kinds = (("ps", "--all", "--quiet"), ("volume", "ls", "--quiet"), ("network", "ls", "--quiet"))
    return "".join(docker("docker", *kind, *by_label) for kind in kinds)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    if reason := why_not():
        pytest.skip(reason)
    made: Path = tmp_path_factory.mktemp("docker")
    try:
        yield made
    finally:
        for settings in filter(None, map(load_settings, [path for path in made.iterdir() if path.is_dir()])):
            pofl(made, "down", "--volumes", "--net", next(p.name for p in made.iterdir() if load_settings(p) == settings))
            assert left(settings.project) == ""


@pytest.fixture(scope="module")
def up(folder: Path) -> Any:
    out, _ = pofl(folder, "up", "--docker", "--dir", "net", "--bind", BIND, *SHAPE, *NAMED, "--blocks", "1", "--json")
    return json.loads(out)


def states(folder: Path) -> dict[str, Any]:
    out, _ = pofl(folder, "status", "--net", "net", "--all", "--json")
    return {row["name"]: row for row in json.loads(out)}


def until(folder: Path, what: str, is_so: Callable[[dict[str, Any]], bool], seconds: float = 240) -> dict[str, Any]:
    end = time.monotonic() + seconds
    while not is_so(found := states(folder)):
        assert time.monotonic() < end, f"not {what} within {seconds} s: {found}"
        time.sleep(1)
    return found


def test_it_is_healthy_and_mines(folder: Path, up: Any) -> None:
    assert len(up["blocks"]) == 1
    sys.stdout.write(
        f"\n{up['containers']} containers healthy after {up['healthy_seconds']} s, block after {up['seconds']} s\n"
    )
    found = states(folder)
    assert {row["state"] for row in found.values()} == {"healthy"}
    assert set(found) == {*NODES, "pool0", "pool0-miner0", "provider0", "platform0", "requester0"}
    assert all(found[name]["height"] >= up["blocks"][0]["height"] and found[name]["peers"] == 3 for name in NODES)
    # Any command finds it, with the user's certificate that lies in its folder.
    tip = subprocess.run(
        [*COMMAND[:-1], "chain", "tip", "--net", "net", "--json"],
        cwd=folder,
        env=ENV,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert json.loads(tip.stdout)["height"] >= up["blocks"][0]["height"], tip.stderr
    assert (folder / "net" / "user" / "account.key").stat().st_mode & 0o077 == 0
    out, _ = pofl(folder, "logs", "pool0", "--lines", "5", "--net", "net")
    assert 0 < len(out.splitlines()) <= 5
    everything, _ = pofl(folder, "logs", "--lines", "1", "--net", "net")
    assert {line.partition("|")[0].strip() for line in everything.splitlines()} == set(found)


def test_a_log_is_followed_until_ctrl_c(folder: Path, up: Any) -> None:
    words = [*COMMAND, "logs", "node0", "--follow", "--lines", "1", "--net", "net"]
    with subprocess.Popen(words, cwd=folder, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        assert following.stdout.readline()
        following.send_signal(signal.SIGINT)
        following.communicate(timeout=120)
    assert following.returncode == 130


def test_a_process_is_killed_paused_and_back(folder: Path, up: Any) -> None:
    pofl(folder, "kill", "node3", "--net", "net")
    pofl(folder, "pause", "pool0-miner0", "--net", "net")
    found = until(
        folder, "killed and paused", lambda s: (s["node3"]["state"], s["pool0-miner0"]["state"]) == ("exited", "paused")
    )
    height = found["node0"]["height"]
    until(folder, "three nodes go on", lambda s: s["node0"]["height"] >= height + 2)
    _, said = pofl(folder, "kill", "node3", "--net", "net", code=2)
    assert "node3 is exited, it should be running" in said
    pofl(folder, "start", "node3", "--net", "net")
    pofl(folder, "resume", "pool0-miner0", "--net", "net")
    tip = states(folder)["node0"]["height"]
    until(folder, "back", lambda s: s["node3"]["height"] >= tip and {row["state"] for row in s.values()} == {"healthy"})


def test_up_again_leaves_what_is_well_and_starts_what_is_not(folder: Path, up: Any) -> None:
    project = load_settings(folder / "net").project  # type: ignore[union-attr]
    before = docker("docker", "inspect", f"{project}-node0", "--format", "{{.Id}} {{.State.StartedAt}}")
    pofl(folder, "kill", "node1", "--net", "net")
    pofl(folder, "up", "--docker", "--dir", "net")
    assert {row["state"] for row in states(folder).values()} == {"healthy"}
    assert docker("docker", "inspect", f"{project}-node0", "--format", "{{.Id}} {{.State.StartedAt}}") == before


def test_a_container_can_write_nothing_and_do_nothing(folder: Path, up: Any) -> None:
    name = f"{load_settings(folder / 'net').project}-pool0"  # type: ignore[union-attr]
    assert docker("docker", "exec", name, "id", "-u").strip() == "10001"
    with pytest.raises(AssertionError, match="Read-only file system"):
        docker("docker", "exec", name, "touch", "/opt/pofl/changed")
    for tool in ("gcc", "cc", "g++", "make", "ld"):
        assert docker("docker", "exec", name, "sh", "-c", f"command -v {tool}", check=False) == "", tool
    capabilities = docker("docker", "exec", name, "grep", "CapEff", "/proc/1/status").split()[1]
    assert int(capabilities, 16) == 0


def test_what_is_in_the_way_is_one_sentence(folder: Path, up: Any) -> None:
    _, said = pofl(folder, "up", "--docker", "--dir", "second", "--bind", BIND, *SHAPE, *NAMED, code=3)
    assert said == f"error: node0, {BIND}:7100: the port is taken: stop what uses it, or choose another address with --bind\n"
    assert not (folder / "second").exists(), "nothing was made before the ports were looked at"
    _, said = pofl(folder, "up", "--docker", "--dir", "third", "--image", "pofl:none", code=2)
    assert said.startswith("error: there is no image pofl:none: build it with `docker compose build`")
    assert not (folder / "third").exists()
    _, said = pofl(folder, "up", "--docker", "--dir", "third", code=3, DOCKER_HOST="unix:///nowhere/docker.sock")
    assert said.startswith("error: no Docker engine answers: start it, or name another by DOCKER_HOST (")
    assert said.count("\n") == 1
    _, said = pofl(folder, "kill", "node9", "--net", "net", code=2)
    assert said.startswith("error: this network has no process 'node9'; it has node0, ")
    _, said = pofl(folder, "up", "--dir", "net", code=2)
    assert "is a testnet in containers: start it with --docker" in said


def test_down_stops_and_up_goes_on(folder: Path, up: Any) -> None:
    height = states(folder)["node0"]["height"]
    project = load_settings(folder / "net").project  # type: ignore[union-attr]
    out, _ = pofl(folder, "down", "--net", "net")
    assert "9 containers removed" in out or "10 containers removed" in out
    assert docker("docker", "ps", "--all", "--quiet", "--filter", f"label={LABEL}={project}") == ""
    _, said = pofl(folder, "status", "--net", "net", code=3)
    assert "start it with `pofl testnet up --docker --dir net`" in said
    pofl(folder, "up", "--docker", "--dir", "net")
    assert states(folder)["node0"]["height"] >= height
    mounts = "{{range .Mounts}}{{.Name}} {{end}}"
    containers = docker("docker", "ps", "--all", "--quiet", "--filter", f"label={LABEL}={project}").split()
    used = set(docker("docker", "inspect", *containers, "--format", mounts).split())
    out, _ = pofl(folder, "down", "--volumes", "--net", "net")
    assert "nothing is left" in out
    assert left(project) == ""
    assert not used & set(docker("docker", "volume", "ls", "--quiet").split()), "also those without a name"
    assert not (folder / "net").exists()
