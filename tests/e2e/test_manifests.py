"""Whole networks from manifests: each is run, perturbed as it says, and judged by what it then serves (docs/testing.md)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from bench.manifest.drive import run_manifest
from bench.manifest.processes import Processes
from bench.manifest.reader import read_manifest
from tests.e2e.test_testnet import left_over

MANIFESTS = sorted(Path(__file__).with_name("manifests").glob("*.toml"))

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
async def test_manifest(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = read_manifest(path).slower(float(os.environ.get("POFL_MANIFEST_SLACK", "1")))
    net = tmp_path / "net"
    async with Processes(manifest, net) as network:
        outcome = await run_manifest(manifest, network, print)
    if outcome.problems:
        logs = Path("testnet-data") / f"manifest-{path.stem}-logs"
        shutil.rmtree(logs, ignore_errors=True)
        shutil.copytree(net / "logs", logs)
        timeline = "\n".join(outcome.timeline)
        pytest.fail(f"{path} with seed {manifest.seed}; logs in {logs}\n{timeline}\n" + "\n".join(outcome.problems))
    assert left_over(tmp_path) == []
    with capsys.disabled():
        print(
            f"\n{path.stem}: {outcome.seconds:.0f} s, {outcome.height} blocks, {outcome.work_blocks} work, "
            f"{outcome.void_tasks} void"
        )
