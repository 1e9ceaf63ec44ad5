"""What can be learned: model families, their parameters' shapes, first weights, and all parameters as one vector.

Four kinds (design: mining, "Aggregation, models, data"):

- ``dense``: a chain of dense layers, ``a_0 = x``, ``a_k = f(a_{k-1} W_k + b_k)``, the last one without ``f`` (paper, section
  IV-A, ``z = xW + b``). No hidden layer makes it softmax regression, hidden layers an MLP.
- ``regression``: the same with one real output (``classes = 1``); no hidden layer makes it linear regression.
- ``lenet``: LeNet-5 (LeCun et al. 1998) for rows that are images of 28x28 or 32x32 with 1 or 3 channels.
- ``alexnet``: AlexNet (Krizhevsky et al. 2012) in its usual variant for 32x32: strides and poolings cut so that 1x1 is left,
  and one dense layer after the convolutions.

Weights are a tuple of pairs ``(W, b)`` for every kind: ``W`` of shape (inputs, outputs) for a dense layer and (outputs,
inputs, k, k) for a convolution, ``b`` of shape (outputs). So sealing, checks and aggregation see one vector of floats and do
not know the kind. Everything here is numpy: the twin in torch is models.py, which convolutions need and dense models do not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError, LimitError, MalformedError

__all__ = [
    "ACTIVATIONS", "KINDS", "Convolution", "Floats", "ModelSpec", "Score", "Weights",
    "add", "flatten", "forward", "initial_weights", "score", "score_logits", "subtract", "unflatten",
]  # fmt: skip

Floats: TypeAlias = NDArray[np.floating[Any]]
Weights: TypeAlias = tuple[tuple[Floats, Floats], ...]
"""float32 where a model is kept, as it travels; float64 where it is computed with."""

ACTIVATIONS: Final = ("sigmoid", "relu", "identity")
KINDS: Final = ("dense", "regression", "lenet", "alexnet")
MAX_LAYERS: Final = 16
MAX_WIDTH: Final = 1 << 20
MAX_PARAMETERS: Final = 100_000_000
IMAGES: Final = {784: (1, 28), 1024: (1, 32), 2352: (3, 28), 3072: (3, 32)}
"""Features of a row -> channels and side of the image that it is, channel by channel, each by rows."""


@dataclass(frozen=True, slots=True)
class Convolution:
    """``outputs`` channels by a square kernel, then the activation, then max pooling of 2x2 where ``pool`` says so."""

    outputs: int
    kernel: int
    stride: int = 1
    padding: int = 0
    pool: bool = False

    def side(self, side: int) -> int:
        """The side of its square output before pooling."""
        return (side + 2 * self.padding - self.kernel) // self.stride + 1


_LENET: Final = (Convolution(6, 5, pool=True), Convolution(16, 5, pool=True))
_ALEXNET: Final = (
    Convolution(64, 11, stride=4, padding=5, pool=True), Convolution(192, 5, padding=2, pool=True),
    Convolution(384, 3, padding=1), Convolution(256, 3, padding=1), Convolution(256, 3, padding=1, pool=True),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model family. Building one takes no memory, so a spec from a peer is checked by building it.

    ``features``: numbers in a row; for images, what their channels and sides multiply to. ``hidden``: widths of the hidden
    dense layers, none for lenet and alexnet, which have their own.

    Raises ConfigError for a kind or activation that is not known and for what a kind does not have, LimitError for sizes out
    of range, among them more than MAX_PARAMETERS in all.
    """

    features: int
    classes: int
    hidden: tuple[int, ...] = ()
    activation: str = "relu"
    kind: str = "dense"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"model {self.kind[:40]!r} is none of {', '.join(KINDS)}")
        if self.activation not in ACTIVATIONS:
            raise ConfigError(f"activation {self.activation[:40]!r} is none of {', '.join(ACTIVATIONS)}")
        if len(self.hidden) > MAX_LAYERS:
            raise LimitError(f"{len(self.hidden)} hidden layers, at most {MAX_LAYERS}")
        for name, width in (("features", self.features), *(("hidden", h) for h in self.hidden)):
            if not 1 <= width <= MAX_WIDTH:
                raise LimitError(f"{name} = {width}, must be 1 to {MAX_WIDTH}")
        if self.kind == "regression":
            if self.classes != 1:
                raise ConfigError(f"a regression has one output, got classes = {self.classes}")
        elif not 2 <= self.classes <= MAX_WIDTH:
            raise LimitError(f"classes = {self.classes}, must be 2 to {MAX_WIDTH}")
        if self.is_convolutional:
            if self.hidden:
                raise ConfigError(f"{self.kind} has its own layers: hidden = {list(self.hidden)} must be empty")
            sizes = [size for size, (_, side) in IMAGES.items() if self.kind == "lenet" or side == 32]
            if self.features not in sizes:
                raise ConfigError(
                    f"{self.kind} reads images of {', '.join(map(str, sizes))} numbers a row (1 or 3 channels of "
                    f"{'28x28 or ' if self.kind == 'lenet' else ''}32x32), got {self.features}"
                )
        if self.parameters > MAX_PARAMETERS:
            raise LimitError(f"{self.parameters} parameters, at most {MAX_PARAMETERS}")

    @property
    def is_convolutional(self) -> bool:
        """Whether only torch computes its outputs."""
        return self.kind in ("lenet", "alexnet")

    @property
    def image(self) -> tuple[int, int]:
        """Channels and side of the image that a row of a convolutional model is."""
        return IMAGES[self.features]

    @property
    def convolutions(self) -> tuple[Convolution, ...]:
        if self.kind == "alexnet":
            return _ALEXNET
        if self.kind == "lenet":
            # 28x28 is padded to the 32x32 of the original.
            padding = 2 if self.image[1] == 28 else 0
            return (Convolution(6, 5, padding=padding, pool=True), *_LENET[1:])
        return ()

    @property
    def widths(self) -> tuple[int, ...]:
        """Inputs and outputs of the dense layers, those after the convolutions included."""
        if not self.is_convolutional:
            return (self.features, *self.hidden, self.classes)
        side = self.image[1]
        for convolution in self.convolutions:
            side = convolution.side(side) // (2 if convolution.pool else 1)
        flat = self.convolutions[-1].outputs * side * side
        return (flat, 120, 84, self.classes) if self.kind == "lenet" else (flat, self.classes)

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of each ``W``: (outputs, inputs, k, k) of convolutions, then (inputs, outputs) of dense layers."""
        channels = (self.image[0] if self.is_convolutional else 0, *(c.outputs for c in self.convolutions))
        kernels = tuple(
            (c.outputs, inputs, c.kernel, c.kernel) for inputs, c in zip(channels[:-1], self.convolutions, strict=True)
        )
        return (*kernels, *pairwise(self.widths))

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) + _outputs(shape) for shape in self.shapes)

    @property
    def activations(self) -> int:
        """Numbers that one row makes on its way through the model: what a batch costs in memory."""
        count, side = self.features + sum(self.widths), self.image[1] if self.is_convolutional else 0
        for convolution in self.convolutions:
            side = convolution.side(side)
            count += 2 * convolution.outputs * side * side
            side //= 2 if convolution.pool else 1
        return count


@dataclass(frozen=True, slots=True)
class Score:
    """How many of ``total`` examples a model names right, and its mean loss: cross-entropy in nats, or, of a regression,
    the squared error in units of the targets' spread."""

    correct: int
    total: int
    loss: float


def initial_weights(spec: ModelSpec, seed: int) -> Weights:
    """Seeded first weights, float32: zero without a hidden layer; else Glorot (sigmoid, identity) or He (relu), biases zero."""
    if len(spec.shapes) == 1:
        return tuple((np.zeros(shape, np.float32), np.zeros(_outputs(shape), np.float32)) for shape in spec.shapes)
    rng = np.random.default_rng(seed)
    layers = []
    for shape in spec.shapes:
        # Inputs and outputs that one unit has: a kernel's are its channels times its area.
        area = math.prod(shape[2:])
        inputs, outputs = (shape[1] * area, shape[0] * area) if len(shape) == 4 else shape
        variance = 2.0 / inputs if spec.activation == "relu" else 2.0 / (inputs + outputs)
        kernel = rng.normal(0.0, np.sqrt(variance), shape).astype(np.float32)
        layers.append((kernel, np.zeros(_outputs(shape), np.float32)))
    return tuple(layers)


def forward(spec: ModelSpec, weights: Weights, x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logits ``z``, shape (n, classes), of rows ``x``, shape (n, features). Raises ConfigError for a convolutional model."""
    if spec.is_convolutional:
        raise ConfigError(f"{spec.kind} is computed by torch, not here")
    activations: NDArray[np.float64] = x.astype(np.float64)
    for index, (W, b) in enumerate(weights):
        activations = activations @ W + b
        if index < len(weights) - 1:
            activations = _activate(spec.activation, activations)
    return activations


def score(spec: ModelSpec, weights: Weights, x: NDArray[np.float32], y: NDArray[np.int64]) -> Score:
    """Correct predictions and mean cross-entropy of a dense classifier on a practice set (never on the requester's test
    rows). For every kind: scoring.practice_score."""
    return score_logits(forward(spec, weights, x), y)


def score_logits(logits: NDArray[np.float64], y: NDArray[np.int64]) -> Score:
    """What logits of shape (n, classes) say of labels of shape (n)."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(shifted).sum(axis=1))
    loss = float(np.mean(log_sum - shifted[np.arange(len(y)), y]))
    return Score(int((logits.argmax(axis=1) == y).sum()), len(y), loss)


def flatten(weights: Weights) -> Floats:
    """All parameters in one vector: ``W_1`` by rows, ``b_1``, ``W_2``, ..."""
    return np.concatenate([part.ravel() for layer in weights for part in layer])


def unflatten(spec: ModelSpec, vector: Floats) -> Weights:
    """Inverse of flatten: views of ``vector``, no copy. Raises MalformedError for another length than the model's."""
    if vector.shape != (spec.parameters,):
        raise MalformedError(f"{vector.shape} values for a model of {spec.parameters} parameters")
    layers, offset = [], 0
    for shape in spec.shapes:
        middle = offset + math.prod(shape)
        end = middle + _outputs(shape)
        layers.append((vector[offset:middle].reshape(shape), vector[middle:end]))
        offset = end
    return tuple(layers)


def add(left: Weights, right: Weights) -> Weights:
    """The sum, as precise as ``left``."""
    return tuple(
        ((W + V).astype(W.dtype, copy=False), (b + c).astype(b.dtype, copy=False))
        for (W, b), (V, c) in zip(left, right, strict=True)
    )


def subtract(left: Weights, right: Weights) -> Weights:
    return tuple((W - V, b - c) for (W, b), (V, c) in zip(left, right, strict=True))


def _outputs(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) == 4 else shape[1]


def _activate(name: str, z: NDArray[np.float64]) -> NDArray[np.float64]:
    if name == "relu":
        return np.maximum(z, 0.0)
    if name == "sigmoid":
        # exp of a non-positive number only: no overflow for large |z|.
        e = np.exp(-np.abs(z))
        return np.where(z >= 0, 1.0 / (1.0 + e), e / (1.0 + e))
    return z
