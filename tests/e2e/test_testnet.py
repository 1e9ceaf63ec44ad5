"""The whole system as its users meet it: the command, real processes, the README's client session, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "services.cli.main"]
ENV = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}


def pofl(folder: Path, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], cwd=folder, env=ENV, capture_output=True, text=True, timeout=timeout)


def left_over(folder: Path) -> list[str]:
    """Command lines of processes that were started from this folder and stay: one that ends with its parent does so later."""
    end = time.monotonic() + 60
    while (found := _started_from(folder)) and time.monotonic() < end:
        time.sleep(0.2)
    return found


def _started_from(folder: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(folder) in command and "pytest" not in command:
                found.append(command)
    return found


def wait_for_height(folder: Path, network: subprocess.Popen[str], height: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert network.poll() is None, network.communicate()
        answer = pofl(folder, "testnet", "status", "--json")
        if answer.returncode == 0 and all(node["height"] >= height for node in json.loads(answer.stdout)):
            return
        time.sleep(1)
    pytest.fail(f"no height {height} after {seconds} s")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    assert left_over(tmp_path) == []


@pytest.mark.timeout(420)
def test_a_network_mines_a_block_and_everybody_can_look_at_it(folder: Path) -> None:
    net = folder / "testnet-data" / "net"
    with subprocess.Popen(
        [*COMMAND, "testnet", "up", "--blocks", "1", "--dir", str(net), "--json"],
        cwd=folder, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as network:  # fmt: skip
        try:
            wait_for_height(folder, network, 3, 120)
            session = readme_session(folder)
            assert re.match(r"height \d+ supply \d+\n1 BLOCK_KIND_TRANSACTION [0-9a-f]{8}\n", session), session
            verified = pofl(folder, "chain", "verify", "--json")
            assert verified.returncode == 0, verified.stderr
            assert json.loads(verified.stdout)["verified"] >= 3
            second = pofl(folder, "testnet", "up", "--dir", str(net))
            assert second.returncode == 2
            assert "a testnet already runs from" in second.stderr
            out, err = network.communicate(timeout=300)
        finally:
            network.terminate()
    assert network.returncode == 0, (out, err)
    report = json.loads(out)
    assert report["problems"] == []
    (block,) = report["blocks"]
    assert block["model_correct"] == block["correct"] > 300
    assert block["total"] == 400
    assert block["pool"] in ("pool0", "pool1")
    assert block["vm_bytes"] > 100_000
    assert block["audit_ms"] > 0
    assert secrets_in(net / "logs", secrets_of(net)) == []


def secrets_of(net: Path) -> list[str]:
    """What no log may hold: seeds of accounts, lines of private keys, secrets of tasks and rows, in hex and as they are."""
    found = []
    for path in net.rglob("*"):
        if path.suffix == ".key":
            found += [line for line in path.read_text().splitlines() if "-----" not in line]
        elif path.is_file() and ("secrets" in path.parts or "secret" in path.name) and path.stat().st_size >= 16:
            data = path.read_bytes()
            found += [data[:32].hex(), data[-32:].hex()]
    assert len(found) > 30
    return found


def secrets_in(logs: Path, secrets: list[str]) -> list[str]:
    text = "\n".join(path.read_text(errors="replace") for path in logs.glob("*.log"))
    assert len(text) > 10_000
    # A seed may be cut as bytes are in our logs; eight bytes of it are never there by chance.
    return [secret for secret in secrets if secret[:16] in text or secret[-16:] in text or "PRIVATE KEY" in text]


def readme_session(folder: Path) -> str:
    """What the README's client prints, exactly as it stands there."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert code is not None
    assert len(code[1].strip().splitlines()) <= 15
    run = subprocess.run(
        [sys.executable, "-c", code[1]], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT / "proto")},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_a_signal_stops_every_process(folder: Path, number: signal.Signals, code: int) -> None:
    net = folder / "net"
    with subprocess.Popen(
        [*COMMAND, "testnet", "up", "--blocks", "9", "--dir", str(net), "--nodes", "1", "--pools", "1", "--miners", "1"],
        cwd=folder, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as network:  # fmt: skip
        end = time.monotonic() + 60
        while not (net / "logs" / "pool0-miner0.log").exists() and time.monotonic() < end:
            time.sleep(0.2)
        network.send_signal(number)
        out, err = network.communicate(timeout=60)
    assert network.returncode == code, (out, err)
    assert "stopped; no process is left" in out
    assert "Traceback" not in err
