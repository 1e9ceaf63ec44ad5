"""Whole networks from manifests: each is run, perturbed as it says, and judged by what it then serves (docs/testing.md)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from bench.manifest.containers import Containers, why_not
from bench.manifest.drive import Outcome, run_manifest
from bench.manifest.processes import Processes
from bench.manifest.reader import CONTAINERS, read_manifest
from tests.e2e.test_testnet import left_over

MANIFESTS = sorted(Path(__file__).with_name("manifests").glob("*.toml"))

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]


SLACK = float(os.environ.get("POFL_MANIFEST_SLACK", "1"))
"""For a busy machine: windows so many times longer."""


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=[pytest.mark.ci] if p.stem == "plain" else []) for p in MANIFESTS]
)
async def test_manifest(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = read_manifest(path).slower(SLACK)
    async with Processes(manifest, tmp_path / "net") as network:
        outcome = await run_manifest(manifest, network, print)
    tell(path, outcome, capsys)
    assert left_over(tmp_path) == []


async def test_a_manifest_in_containers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if reason := await why_not():
        pytest.skip(reason)
    path = Path(__file__).with_name("manifests") / "compose" / "faults.toml"
    manifest = read_manifest(path, CONTAINERS)
    async with Containers(manifest, tmp_path / "net") as network:
        outcome = await run_manifest(manifest, network, print)
    tell(path, outcome, capsys)


def tell(path: Path, outcome: Outcome, capsys: pytest.CaptureFixture[str]) -> None:
    """A line of figures; of a run that failed everything that is needed to find out why."""
    if outcome.problems:
        logs = Path("testnet-data") / f"manifest-{path.stem}-logs"
        shutil.rmtree(logs, ignore_errors=True)
        shutil.copytree(Path(outcome.folder) / "logs", logs)
        timeline = "\n".join(outcome.timeline)
        pytest.fail(f"{path} with seed {outcome.seed}; logs in {logs}\n{timeline}\n" + "\n".join(outcome.problems))
    with capsys.disabled():
        print(
            f"\n{path.stem}: {outcome.seconds:.0f} s, {outcome.height} blocks, {outcome.work_blocks} work, "
            f"{outcome.void_tasks} void"
        )
