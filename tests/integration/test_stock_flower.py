"""``flwr run`` on a stock flower-superlink and two stock flower-supernodes, as real processes on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pool.flower.jobs import load_weights
from pool.learning.datasets import Dataset, save_npz
from pool.learning.model_spec import ModelSpec, score
from services.data.partition import even
from tests.flower_stock import Deployment
from tests.mining_support import CLASSES, FEATURES, digits

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(420)]
PATIENCE_S = 240.0
"""On a machine that does nothing else the run takes a fifth of this."""


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    train, _ = digits()
    parts = [tmp_path / f"rows{number}.npz" for number in range(2)]
    for path, rows in zip(parts, even(train.y, 2, 1), strict=True):
        save_npz(path, train.take(rows))
    made = Deployment(tmp_path, parts, PATIENCE_S)
    try:
        made.start()
        yield made
    finally:
        left = made.close()
    assert not left, f"processes were left behind: {left}"


def test_two_supernodes_train_what_flwr_run_asks_for(deployment: Deployment) -> None:
    practice: Dataset = digits()[1]
    save_npz(deployment.folder / "practice.npz", practice)
    out = deployment.folder / "best.npz"
    deployment.run(
        practice=str(deployment.folder / "practice.npz"), out=str(out), rounds=2, learning_rate=0.5, deadline_s=PATIENCE_S
    )
    reports = deployment.reports(out, 2)
    assert sorted(reports[-1]["accepted"].values()) == [600, 600], reports
    spec = ModelSpec(FEATURES, CLASSES)
    models, _ = load_weights(out, spec, ("best",))
    found = score(spec, models["best"], practice.x, practice.y)
    assert found.correct > 0.85 * len(practice)
    assert found.correct == max(report["practice_correct"] for report in reports)
