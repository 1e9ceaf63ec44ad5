"""Local training of one miner in one round. Seeded: the same plan, weights and data give the same update."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from core.errors import ConfigError
from pool.learning.datasets import Dataset
from pool.learning.model_spec import ModelSpec, Weights, initial_weights, subtract
from pool.learning.models import build, export_weights, import_weights

__all__ = ["LocalUpdate", "TrainingPlan", "train_locally", "warm_up"]

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """One round's work. ``optimizer`` "gradient" is FedSGD: one step along the full-batch gradient (paper, section II).

    ``budget_s``: seconds after which no further batch starts.
    """

    optimizer: str
    local_epochs: int
    learning_rate: float
    batch: int
    seed: int
    budget_s: float


@dataclass(frozen=True, slots=True)
class LocalUpdate:
    """``delta``: weights after training minus weights before. ``loss``: mean cross-entropy over the batches seen."""

    delta: Weights
    examples: int
    loss: float
    steps: int
    seconds: float


def train_locally(spec: ModelSpec, weights: Weights, data: Dataset, plan: TrainingPlan) -> LocalUpdate:
    """Train on ``data`` from ``weights``; at least one batch, whatever the budget."""
    started = time.monotonic()
    torch.manual_seed(plan.seed)
    model = build(spec)
    import_weights(model, weights)
    before = export_weights(model)
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    count = len(data)
    full_batch = plan.optimizer == "gradient"
    batch = count if full_batch else min(plan.batch, count)
    epochs = 1 if full_batch else plan.local_epochs
    parameters = tuple(model.parameters())
    step = _stepper(plan, parameters)
    loss_of = nn.CrossEntropyLoss()
    order = torch.Generator().manual_seed(plan.seed)
    total, seen, steps = 0.0, 0, 0
    for _ in range(epochs):
        shuffled = torch.randperm(count, generator=order)
        for start in range(0, count, batch):
            if steps and time.monotonic() - started > plan.budget_s:
                break
            rows = shuffled[start : start + batch]
            loss = loss_of(model(x[rows]), y[rows])
            step(torch.autograd.grad(loss, parameters))
            total += float(loss.detach()) * len(rows)
            seen += len(rows)
            steps += 1
    delta = subtract(export_weights(model), before)
    return LocalUpdate(delta, count, total / seen, steps, time.monotonic() - started)


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
    if plan.optimizer not in ("gradient", "sgd"):
        raise ConfigError(f"optimizer {plan.optimizer!r} is none of gradient, sgd, adam")

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
