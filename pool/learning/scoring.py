"""How good a model of any kind is on practice rows. Torch is imported only for a convolutional model."""

from __future__ import annotations

import numpy as np

from core.verification.regression import buckets
from pool.learning.datasets import Dataset
from pool.learning.model_spec import ModelSpec, Score, Weights, forward, score, score_logits
from pool.learning.targets import TargetRows, Targets

__all__ = ["practice_score"]


def practice_score(spec: ModelSpec, weights: Weights, rows: Dataset | TargetRows, targets: Targets | None = None) -> Score:
    """Correct predictions and mean loss, of a regression by the buckets of ``targets`` (all rows in one without cuts)."""
    if isinstance(rows, TargetRows):
        unit = targets or Targets()
        found = forward(spec, weights, rows.x)[:, 0]
        error = float(np.mean(np.square(found - unit.learned(rows.y))))
        if not unit.cuts:
            return Score(0, len(rows), error)
        cuts = np.array(unit.cuts)
        same = buckets(found * unit.scale + unit.shift, cuts) == buckets(rows.y, cuts)
        return Score(int(same.sum()), len(rows), error)
    if not spec.is_convolutional:
        return score(spec, weights, rows.x, rows.y)
    from pool.learning.models import outputs

    return score_logits(outputs(spec, weights, rows.x), rows.y)
