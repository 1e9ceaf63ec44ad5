"""Real data end to end: described, published, learnt by a pool of miners on shares of them, claimed, audited, final.

Each run is a network of real processes; what is printed is what the block header says and what the fetched model scores.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_testnet import left_over

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "services.cli.main"]
ENV = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
SMALL = ("--nodes", "1", "--pools", "1", "--miners", "2", "--blocks", "1", "--timeout", "240")

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


def pofl(folder: Path, *arguments: str, timeout: float = 60) -> str:
    run = subprocess.run([*COMMAND, *arguments], cwd=folder, env=ENV, capture_output=True, text=True, timeout=timeout)
    assert run.returncode == 0, (arguments, run.stdout, run.stderr)
    return run.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    assert left_over(tmp_path) == []


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.timeout(360)
@pytest.mark.parametrize(
    ("name", "rule", "rows", "least"),
    [("mnist", "dirichlet:1", 2500, 0.8), ("spam", "even", 3000, 0.92), ("parkinsons", "key", 2000, 0.45)],
)
def test_a_pool_learns_it(
    folder: Path, shared_data: Path, name: str, rule: str, rows: int, least: float, capsys: pytest.CaptureFixture[str]
) -> None:
    source, *options = DESCRIBED[name]
    pofl(folder, "data", "describe", str(shared_data / source), *options, "--out", f"{name}.toml")
    seen = json.loads(pofl(folder, "data", "inspect", f"{name}.toml", "--json"))
    common = max(seen["class_counts"].values()) / seen["rows"]
    report = json.loads(
        pofl(
            folder, "testnet", "up", *SMALL, "--dir", str(folder / "net"), "--data", f"{name}.toml", "--split", rule,
            "--rows", str(rows), "--json", timeout=330,
        )
    )  # fmt: skip
    (block,) = report["blocks"]
    share = block["correct"] / block["total"]
    with capsys.disabled():
        sys.stdout.write(
            f"\n{name}: {seen['features']} features, {seen['classes']} classes, miners share by {rule}: header "
            f"{block['correct']}/{block['total']} = {share:.3f}, model scores {block['model_correct']}; commonest class {common:.3f}\n"
        )
    assert report["problems"] == []
    assert block["model_correct"] == block["correct"]
    assert share >= max(least, common)
    with (folder / "net" / "data" / "test.npz").open("rb") as file:
        assert file.read(2) == b"PK"
    recipe = json.loads(pofl(folder, "data", "recipe", str(folder / "net" / "data" / "practice.npz"), "--json"))
    assert recipe["digest"] == seen["recipe"]
