"""What a scored model is, in numpy alone: shapes, first weights, forward pass, practice score.

A model is a chain of dense layers, ``a_0 = x``, ``a_k = f(a_{k-1} W_k + b_k)``, the last one without ``f`` (paper,
section IV-A, ``z = xW + b``). No hidden layer makes it softmax regression. Weights are a tuple of pairs ``(W, b)``,
``W`` float64 of shape (inputs, outputs), ``b`` float64 of shape (outputs). The torch twin is in models.py; this one
is small enough to read, and lets a pool manager score a model without importing torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError, LimitError, MalformedError

__all__ = [
    "ACTIVATIONS", "ModelSpec", "Score", "Weights",
    "add", "finite", "flatten", "forward", "initial_weights", "score", "subtract", "unflatten",
]  # fmt: skip

Weights: TypeAlias = tuple[tuple[NDArray[np.float64], NDArray[np.float64]], ...]

ACTIVATIONS = ("sigmoid", "relu", "identity")
MAX_LAYERS = 16
MAX_WIDTH = 1 << 20
MAX_PARAMETERS = 100_000_000


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Layer widths and the activation between them.

    Raises ConfigError for an activation that is not known, LimitError for more parameters than MAX_PARAMETERS.
    """

    features: int
    classes: int
    hidden: tuple[int, ...] = ()
    activation: str = "relu"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"activation {self.activation!r} is none of {', '.join(ACTIVATIONS)}")
        if len(self.hidden) > MAX_LAYERS:
            raise LimitError(f"{len(self.hidden)} hidden layers, at most {MAX_LAYERS}")
        for name, width in (("features", self.features), *(("hidden", h) for h in self.hidden)):
            if not 1 <= width <= MAX_WIDTH:
                raise LimitError(f"{name} = {width}, must be 1 to {MAX_WIDTH}")
        if not 2 <= self.classes <= MAX_WIDTH:
            raise LimitError(f"classes = {self.classes}, must be 2 to {MAX_WIDTH}")
        if self.parameters > MAX_PARAMETERS:
            raise LimitError(f"{self.parameters} parameters, at most {MAX_PARAMETERS}")

    @property
    def widths(self) -> tuple[int, ...]:
        return (self.features, *self.hidden, self.classes)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Shape (inputs, outputs) of each ``W``."""
        return tuple(pairwise(self.widths))

    @property
    def parameters(self) -> int:
        return sum(inputs * outputs + outputs for inputs, outputs in self.shapes)


@dataclass(frozen=True, slots=True)
class Score:
    """How many of ``total`` examples a model names right, and its mean cross-entropy in nats."""

    correct: int
    total: int
    loss: float


def initial_weights(spec: ModelSpec, seed: int) -> Weights:
    """Seeded first weights: zero for softmax regression; Glorot (sigmoid, identity) or He (relu) with hidden layers."""
    if not spec.hidden:
        return tuple((np.zeros(shape), np.zeros(shape[1])) for shape in spec.shapes)
    rng = np.random.default_rng(seed)
    layers = []
    for inputs, outputs in spec.shapes:
        variance = 2.0 / inputs if spec.activation == "relu" else 2.0 / (inputs + outputs)
        layers.append((rng.normal(0.0, np.sqrt(variance), (inputs, outputs)), np.zeros(outputs)))
    return tuple(layers)


def forward(spec: ModelSpec, weights: Weights, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logits ``z``, shape (n, classes), of rows ``x``, shape (n, features)."""
    activations = x.astype(np.float64)
    for index, (W, b) in enumerate(weights):
        activations = activations @ W + b
        if index < len(weights) - 1:
            activations = _activate(spec.activation, activations)
    return activations


def score(spec: ModelSpec, weights: Weights, x: NDArray[np.float32], y: NDArray[np.int64]) -> Score:
    """Correct predictions and mean cross-entropy on a practice set (never on the requester's test rows)."""
    logits = forward(spec, weights, x)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(axis=1))
    loss = float(np.mean(log_sum - shifted[np.arange(len(y)), y]))
    return Score(int((logits.argmax(axis=1) == y).sum()), len(y), loss)


def flatten(weights: Weights) -> NDArray[np.float64]:
    """All parameters in one vector: ``W_1`` by rows, ``b_1``, ``W_2``, ..."""
    return np.concatenate([part.ravel() for layer in weights for part in layer])


def unflatten(spec: ModelSpec, vector: NDArray[np.float64]) -> Weights:
    """Inverse of flatten. Raises MalformedError when the length is not the model's number of parameters."""
    if vector.shape != (spec.parameters,):
        raise MalformedError(f"{vector.shape} values for a model of {spec.parameters} parameters")
    layers, offset = [], 0
    for inputs, outputs in spec.shapes:
        W = vector[offset : offset + inputs * outputs].reshape(inputs, outputs)
        offset += inputs * outputs
        layers.append((W.astype(np.float64), vector[offset : offset + outputs].astype(np.float64)))
        offset += outputs
    return tuple(layers)


def add(left: Weights, right: Weights) -> Weights:
    return tuple((W + V, b + c) for (W, b), (V, c) in zip(left, right, strict=True))


def subtract(left: Weights, right: Weights) -> Weights:
    return tuple((W - V, b - c) for (W, b), (V, c) in zip(left, right, strict=True))


def finite(weights: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> bool:
    return all(bool(np.isfinite(part).all()) for layer in weights for part in layer)


def _activate(name: str, z: NDArray[np.float64]) -> NDArray[np.float64]:
    if name == "relu":
        return np.maximum(z, 0.0)
    if name == "sigmoid":
        # exp of a non-positive number only: no overflow for large |z|.
        e = np.exp(-np.abs(z))
        return np.where(z >= 0, 1.0 / (1.0 + e), e / (1.0 + e))
    return z
