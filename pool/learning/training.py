"""Local training of one miner in one round. Seeded: the same plan, weights and data give the same update."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from core.errors import ConfigError, LimitError, MalformedError
from pool.learning.datasets import Dataset
from pool.learning.model_spec import ModelSpec, Weights, initial_weights
from pool.learning.models import build, export_weights, import_weights, rows_at_once
from pool.learning.targets import TargetRows, Targets

__all__ = ["LocalUpdate", "TrainingPlan", "train_locally", "warm_up"]

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8
OPTIMIZERS = ("gradient", "sgd", "adam")
MAX_BUDGET_S = 86_400.0


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """One round's work. ``optimizer`` "gradient" is FedSGD: one step along the full-batch gradient (paper, section II).

    ``budget_s``: seconds after which no further batch starts; 0 or less leaves the one batch that is always done.

    Raises ConfigError or LimitError for what cannot be done: the plan comes from the pool.
    """

    optimizer: str
    local_epochs: int
    learning_rate: float
    batch: int
    seed: int
    budget_s: float

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"optimizer {self.optimizer[:40]!r} is none of {', '.join(OPTIMIZERS)}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ConfigError(f"learning_rate = {self.learning_rate}, must be a number above 0")
        if not self.budget_s <= MAX_BUDGET_S:
            raise LimitError(f"budget_s = {self.budget_s}, at most {MAX_BUDGET_S:g}")
        if self.local_epochs < 1 or self.batch < 1:
            raise LimitError(f"local_epochs = {self.local_epochs} and batch = {self.batch} must be at least 1")


@dataclass(frozen=True, slots=True)
class LocalUpdate:
    """``delta``: weights after training minus weights before. ``loss``: mean over the rows of the batches seen, as in Score."""

    delta: Weights
    examples: int
    loss: float
    steps: int
    seconds: float


def train_locally(
    spec: ModelSpec, weights: Weights, data: Dataset | TargetRows, plan: TrainingPlan, targets: Targets | None = None
) -> LocalUpdate:
    """Train on ``data`` from ``weights``; at least one batch, whatever the budget.

    A classifier learns labels by cross-entropy, a regression ``targets.learned(y)`` by squared error. A batch whose activations
    would take too much memory is computed in parts, whose gradients add up to the batch's.

    Raises MalformedError for rows of the other kind than the model.
    """
    started = time.monotonic()
    x, y, loss_of = _problem(spec, data, targets or Targets())
    torch.manual_seed(plan.seed)
    model = build(spec)
    import_weights(model, weights)
    count = len(data)
    full_batch = plan.optimizer == "gradient"
    batch = count if full_batch else min(plan.batch, count)
    epochs = 1 if full_batch else plan.local_epochs
    parameters = tuple(model.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    step = _stepper(plan, parameters)
    part = rows_at_once(spec)
    order = torch.Generator().manual_seed(plan.seed)
    total, seen, steps = 0.0, 0, 0
    for _ in range(epochs):
        shuffled = torch.randperm(count, generator=order)
        for start in range(0, count, batch):
            if steps and time.monotonic() - started > plan.budget_s:
                break
            rows = shuffled[start : start + batch]
            gradients: tuple[torch.Tensor, ...] = ()
            for first in range(0, len(rows), part):
                some = rows[first : first + part]
                loss = loss_of(model(x[some]), y[some])
                found = torch.autograd.grad(loss / len(rows), parameters)
                gradients = tuple(torch.add(*pair) for pair in zip(gradients, found, strict=True)) if gradients else found
                total += float(loss.detach())
            step(gradients)
            seen += len(rows)
            steps += 1
    with torch.no_grad():
        for parameter, old in zip(parameters, before, strict=True):
            parameter.sub_(old)
    return LocalUpdate(export_weights(model), count, total / seen, steps, time.monotonic() - started)


def _problem(
    spec: ModelSpec, data: Dataset | TargetRows, targets: Targets
) -> tuple[torch.Tensor, torch.Tensor, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
    """Inputs, what is to be learned from them, and the summed loss."""
    x = torch.from_numpy(data.x)
    if spec.kind == "regression":
        if not isinstance(data, TargetRows):
            raise MalformedError("a regression needs real targets, these rows have labels")
        return x, torch.from_numpy(targets.learned(data.y)[:, None]), nn.MSELoss(reduction="sum")
    if not isinstance(data, Dataset):
        raise MalformedError(f"a {spec.kind} model of {spec.classes} classes needs labels, these rows have real targets")
    return x, torch.from_numpy(data.y), nn.CrossEntropyLoss(reduction="sum")


def warm_up() -> None:
    """Run one tiny training of each kind, so that the first real round does not pay for torch's lazy imports."""
    spec = ModelSpec(2, 2, (2,), "relu")
    data = Dataset(np.zeros((2, 2), np.float32), np.array([0, 1], np.int64))
    for name in ("gradient", "sgd", "adam"):
        train_locally(spec, initial_weights(spec, 0), data, TrainingPlan(name, 1, 0.1, 2, 0, 1.0))


def _stepper(plan: TrainingPlan, parameters: tuple[torch.Tensor, ...]) -> Callable[[tuple[torch.Tensor, ...]], None]:
    """Applies gradients. Written out, because importing torch.optim takes as long as importing the rest of torch."""
    if plan.optimizer == "adam":
        return _Adam(parameters, plan.learning_rate).step

    def descend(gradients: tuple[torch.Tensor, ...]) -> None:
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(gradient, alpha=plan.learning_rate)

    return descend


class _Adam:
    """Kingma and Ba 2015, algorithm 1, with its default constants."""

    def __init__(self, parameters: tuple[torch.Tensor, ...], rate: float) -> None:
        self._parameters, self._rate, self._t = parameters, rate, 0
        self._m = [torch.zeros_like(p) for p in parameters]
        self._v = [torch.zeros_like(p) for p in parameters]

    def step(self, gradients: tuple[torch.Tensor, ...]) -> None:
        self._t += 1
        with torch.no_grad():
            for parameter, gradient, m, v in zip(self._parameters, gradients, self._m, self._v, strict=True):
                m.mul_(BETA_1).add_(gradient, alpha=1 - BETA_1)
                v.mul_(BETA_2).addcmul_(gradient, gradient, value=1 - BETA_2)
                m_hat, v_hat = m / (1 - BETA_1**self._t), v / (1 - BETA_2**self._t)
                parameter.addcdiv_(m_hat, v_hat.sqrt().add_(EPSILON), value=-self._rate)
