"""What the pool trains in a task, and the integer model that comes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from core.codec import decode
from core.ids import MILLION, Milliseconds
from core.verification.body import VmBody
from core.verification.field import centred, unpack_values
from core.verification.quantise import FloatLayer, quantise
from core.verification.regression import cuts_from_micro, quantise_regression
from core.verification.scored_model import ScoredModel
from pool.flower.engine import MiningJob, MiningResult
from pool.learning.datasets import Dataset
from pool.learning.model_spec import Weights
from pool.learning.targets import TargetRows, Targets
from pool.manager.archive import Committed
from pool.manager.config import TrainingConfig
from services.rpc.views import TaskView
from services.runtime.logging import logger

__all__ = ["mining_job", "model_of", "quantised"]

log = logger(__name__)


def mining_job(
    view: TaskView, training: TrainingConfig, path: Path, deadline_ms: Milliseconds, practice: Dataset | TargetRows | None
) -> MiningJob:
    """The task as the engine wants it. ``path``: where the practice data lie. ``practice``: the same, read; None to see
    whether the task can be done at all.

    Raises ConfigError or LimitError for a model that cannot be trained here.
    """
    spec = view.spec
    targets = None
    if spec.cuts_micro:
        known = practice.y if isinstance(practice, TargetRows) else np.zeros(1)
        targets = Targets.of(known, tuple(cuts_from_micro(spec.cuts_micro).tolist()))
    return MiningJob(
        job_id=view.task_id, features=spec.features, classes=1 if targets else spec.classes,
        kind="regression" if targets else "dense", targets=targets, update=training.update, practice=path,
        deadline_ms=deadline_ms, hidden=spec.hidden, activation=spec.activation.name.lower(),
        round_timeout_s=training.round_timeout_s, quorum=training.quorum, algorithm=training.algorithm,
        local_epochs=training.local_epochs, optimizer=training.optimizer,
        learning_rate=training.learning_rate, batch=training.batch or 1 << 30, seed=training.seed,
        practice_floor=training.practice_floor,
    )  # fmt: skip


def quantised(view: TaskView, job: MiningJob, result: MiningResult, practice: Dataset | TargetRows) -> ScoredModel:
    """The trained model in integers, its scales chosen on the practice data."""
    spec, rows = view.spec, practice.x.astype("float64")
    scale, bits = spec.feature_scale_micro / MILLION, spec.weight_bits
    if job.targets is not None:
        layers, cuts = _doubles(job.targets.unscaled(result.weights)), cuts_from_micro(spec.cuts_micro)
        assert isinstance(practice, TargetRows)
        model, report = quantise_regression(layers, cuts, spec.activation, scale, bits, rows, practice.y)
    else:
        assert isinstance(practice, Dataset)
        model, report = quantise(_doubles(result.weights), spec.activation, scale, bits, rows, practice.y)
    log.info(
        "model quantised", task=view.task_id, float_correct=report.float_correct, scored_correct=report.scored_correct,
        rows=report.rows, clipped=report.clipped_weights,
    )  # fmt: skip
    return model


def model_of(committed: Committed) -> ScoredModel:
    """The integer model that a commitment is to. Raises MalformedError if the file does not hold one."""
    shape = decode(VmBody, committed.body).shape
    values = unpack_values(committed.opening.values, (shape.family().parameters,))
    return ScoredModel.decode(shape, centred(values))


def _doubles(weights: Weights) -> list[FloatLayer]:
    return [(W.astype(np.float64), b.astype(np.float64)) for W, b in weights]
