"""Real data end to end: described, published, learnt by a pool of miners on shares of them, claimed, audited, final.

Each run is a network of real processes; what is printed is what the block header says and what the fetched model scores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.testnet.layout import load_layout
from tests.e2e.test_testnet import left_over

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "services.cli.main"]
ENV = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
SMALL = ("--nodes", "1", "--pools", "1", "--miners", "2", "--blocks", "1", "--timeout", "420")

DESCRIBED = {
    # The paper's 256 features: 16 x 16 pixels.
    "mnist": ("images/mnist.npz", "--x", "x_train", "--y", "y_train", "--resize", "16x16"),
    "spam": (
        "text/sms_spam.tsv", "--kind", "text", "--no-header", "--not-quoted", "--target", "0", "--text", "1", "--words", "150",
    ),
    "parkinsons": (
        "federated/parkinsons_telemonitoring.csv", "--target", "total_UPDRS", "--key", "subject#",
        "--without", "motor_UPDRS,test_time", "--cuts", "22,33",
    ),
}  # fmt: skip


def pofl(folder: Path, *arguments: str, timeout: float = 180) -> str:
    run = subprocess.run([*COMMAND, *arguments], cwd=folder, env=ENV, capture_output=True, text=True, timeout=timeout)
    assert run.returncode == 0, (arguments, run.stdout, run.stderr)
    return run.stdout


def a_guest_joins(folder: Path, network: subprocess.Popen[str]) -> None:
    """Somebody from outside mines with an invitation, a pool's address and a share of the data, and nothing else."""
    end = time.monotonic() + 300
    while not (folder / "net" / "testnet.json").exists() and time.monotonic() < end:
        assert network.poll() is None, network.communicate()
        time.sleep(0.2)
    pofl(folder, "testnet", "invite", "guest", "--net", "net")
    pool = next(m for m in load_layout(folder / "net").members if m.role == "pool")
    log = folder / "guest.log"
    with log.open("wb") as out, subprocess.Popen(
        [*COMMAND, "run", "miner", "--home", "guest", "--pool", pool.listen, "--data", "shares/share0.npz"],
        cwd=folder, env=ENV, stdout=out, stderr=out,
    ) as guest:  # fmt: skip
        try:
            end = time.monotonic() + 300
            while "member of the pool" not in log.read_text() and time.monotonic() < end:
                assert guest.poll() is None, log.read_text()
                assert network.poll() is None, network.communicate()
                time.sleep(0.5)
        finally:
            guest.terminate()
    assert "member of the pool" in log.read_text(), log.read_text()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    assert left_over(tmp_path) == []


@pytest.mark.e2e
@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("name", "rule", "rows", "least"),
    [
        ("mnist", "dirichlet:1", 2500, 0.8),
        pytest.param("spam", "even", 3000, 0.92, marks=pytest.mark.ci),
        ("parkinsons", "key", 2000, 0.45),
    ],
)
def test_a_pool_learns_it(
    folder: Path, shared_data: Path, name: str, rule: str, rows: int, least: float, capsys: pytest.CaptureFixture[str]
) -> None:
    source, *options = DESCRIBED[name]
    pofl(folder, "data", "describe", str(shared_data / source), *options, "--out", f"{name}.toml")
    seen = json.loads(pofl(folder, "data", "inspect", f"{name}.toml", "--json"))
    common = max(seen["class_counts"].values()) / seen["rows"]
    if name == "spam":
        # Before there is a network, which is gone when its block is mined.
        pofl(folder, "data", "partition", f"{name}.toml", "--parts", "30", "--out", "shares")
    network = subprocess.Popen(
        [
            *COMMAND, "testnet", "up", *SMALL, "--dir", str(folder / "net"), "--data", f"{name}.toml", "--split", rule,
            "--rows", str(rows), "--json",
        ],
        cwd=folder, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with network:
        try:
            if name == "spam":
                a_guest_joins(folder, network)
            out, err = network.communicate(timeout=480)
        finally:
            network.terminate()
    assert network.returncode == 0, (out, err)
    report = json.loads(out)
    (block,) = report["blocks"]
    share = block["correct"] / block["total"]
    with capsys.disabled():
        sys.stdout.write(
            f"\n{name}: {seen['features']} features, {seen['classes']} classes, miners share by {rule}: header "
            f"{block['correct']}/{block['total']} = {share:.3f}, "
            f"model scores {block['model_correct']}; commonest class {common:.3f}\n"
        )
    assert report["problems"] == []
    assert block["model_correct"] == block["correct"]
    assert share >= max(least, common)
    with (folder / "net" / "data" / "test.npz").open("rb") as file:
        assert file.read(2) == b"PK"
    recipe = json.loads(pofl(folder, "data", "recipe", str(folder / "net" / "data" / "practice.npz"), "--json"))
    assert recipe["digest"] == seen["recipe"]
