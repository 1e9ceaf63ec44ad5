"""The network in containers: it comes up healthy, mines, stops, goes on, and leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = f"pofl-test-{os.getpid()}"
ENV = {**os.environ, "TESTNET_BIND": f"127.9.{os.getpid() // 256 % 256}.{os.getpid() % 256}", "COMPOSE_PROJECT_NAME": PROJECT}
PS = ("docker", "ps", "--filter", f"label=com.docker.compose.project={PROJECT}", "--format")
IMAGES = (ENV.get("TESTNET_IMAGE", "pofl:0.1.0"), ENV.get("TESTNET_TRAIN_IMAGE", "pofl-train:0.1.0"))

pytestmark = [pytest.mark.e2e, pytest.mark.ci, pytest.mark.slow, pytest.mark.timeout(480)]


def docker(*arguments: str, timeout: float = 60, check: bool = True) -> str:
    done = subprocess.run(
        arguments, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL
    )
    assert not check or done.returncode == 0, f"{' '.join(arguments)}: {done.stdout}\n{done.stderr}"
    return done.stdout


def why_not() -> str:
    if shutil.which("docker") is None:
        return "no docker on this machine"
    try:
        docker("docker", "version", "--format", "{{.Server.Version}}", timeout=20)
    except (AssertionError, subprocess.TimeoutExpired):
        return "no docker engine answers"
    for image in IMAGES:
        if not docker("docker", "image", "ls", "--quiet", image):
            return f"the image {image} is not built: `docker compose build`"
    return "" if COMPOSE else "no compose for this docker"


def compose_command() -> list[str]:
    for command in (["docker", "compose"], ["docker-compose"]):
        try:
            if subprocess.run([*command, "version"], capture_output=True, timeout=20, check=False).returncode == 0:
                return command
        except (FileNotFoundError, subprocess.TimeoutExpired):
            continue
    return []


COMPOSE = compose_command()


@pytest.fixture(scope="module")
def up() -> Iterator[float]:
    """Seconds until everything is healthy."""
    if reason := why_not():
        pytest.skip(reason)
    started = time.monotonic()
    try:
        if COMPOSE[0] == "docker":
            docker(*COMPOSE, "up", "--wait", "--wait-timeout", "240", timeout=260, check=False)
        else:
            docker(*COMPOSE, "up", "-d", timeout=260)
        until_healthy(240)
        yield time.monotonic() - started
    finally:
        docker(*COMPOSE, "--profile", "tools", "down", "-v", timeout=120)


def states() -> dict[str, str]:
    """Health of each service that runs."""
    listed = docker(*PS, '{{.Label "com.docker.compose.service"}} {{.Status}}')
    found = (line.partition(" ") for line in listed.splitlines())
    return {name: "healthy" if "(healthy)" in status else status for name, _, status in found}


def until_healthy(seconds: float) -> None:
    end = time.monotonic() + seconds
    while len(found := states()) < 15 or set(found.values()) != {"healthy"}:
        assert time.monotonic() < end, found
        time.sleep(2)


def cli(*arguments: str) -> Any:
    run = ["run", "--rm", "--no-deps", "-T", "cli"]
    return json.loads(docker(*COMPOSE, "--profile", "tools", *run, *arguments, "--json"))


def until_won(seconds: float) -> None:
    end = time.monotonic() + seconds
    while not any(task["phase"] == "won" for task in cli("task", "list")):
        assert time.monotonic() < end, cli("task", "list")
        time.sleep(2)


def test_it_mines_and_goes_on_after_a_stop(up: float) -> None:
    until_won(180)
    height = cli("chain", "tip")["height"]
    docker(*COMPOSE, "stop", timeout=120)
    docker(*COMPOSE, "start", "node0", "node1", "node2", "node3", timeout=120)
    end = time.monotonic() + 120
    while True:
        try:
            tip = cli("chain", "tip")
        except AssertionError:
            assert time.monotonic() < end
            continue
        if tip["height"] > height:
            break
        assert time.monotonic() < end, tip
        time.sleep(2)


def test_a_container_sees_no_key_of_another(up: float) -> None:
    docker(*COMPOSE, "start", "node0", timeout=60)
    inside = [*COMPOSE, "exec", "-T", "node0"]  # by service: compose v2 and docker-compose name containers differently
    listed = docker(*inside, "find", "/pofl", "-name", "*.key").split()
    assert sorted(listed) == [
        "/pofl/node0/account.key",
        "/pofl/node0/tls/tls.key",
    ]
    assert docker(*inside, "id", "-u").strip() == "10001"
    with pytest.raises(AssertionError, match="Read-only file system"):
        docker(*inside, "touch", "/opt/pofl/changed")
    ports = [line.split()[1:] for line in docker(*PS, '{{.Label "com.docker.compose.service"}} {{.Ports}}').splitlines()]
    assert all(port.startswith(f"{ENV['TESTNET_BIND']}:710") for found in ports for port in found), ports
