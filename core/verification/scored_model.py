"""The scored model: the integer network whose accuracy is an exact number (design: verification, section 1).

``z_l = x_{l-1} W_l + b_l`` in exact integers with ``x_0`` the int8 features; ``x_l = act(z_l)``; the prediction is the index
of the largest ``z_L``, the lowest index of equals; ``N = Σ [prediction = label]``. Every honest party on every machine gets
the same N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Final

import numpy as np
from numpy.typing import NDArray

from core.chain.transaction import Activation, TaskSpec
from core.codec import U8, U32, Enum, Seq
from core.crypto.homomorphic.params import Ints
from core.errors import LimitError, MalformedError
from core.ids import Correct
from core.verification.activations import apply, largest_output
from core.verification.field import T

__all__ = [
    "BIAS_BOUND", "FEATURE_BOUND", "Features", "Labels", "MAX_LAYERS", "ModelFamily", "ModelShape", "ScoredModel",
    "check_features", "column_slices", "count_correct", "predict",
]  # fmt: skip

Features = NDArray[np.int8]
"""Shape (I, M), entries in [-127, 127]."""
Labels = NDArray[np.int64]
"""Shape (I,), entries in [0, C)."""

FEATURE_BOUND: Final = 127
BIAS_BOUND: Final = 1 << 29
"""``|b| <= 2^29``: with it and the widths below, every ``|z|`` stays under t/2."""
MAX_LAYERS: Final = 9
MAX_WIDTH: Final = 65535
MAX_SHIFT: Final = 31
WEIGHT_BITS: Final = range(2, 13)


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """What the task fixes: widths, activation and weight size. Anything else a model is free to choose."""

    dims: tuple[int, ...]
    """``d_0 = M, …, d_L = C``."""
    activation: Activation
    weight_bits: int

    def __post_init__(self) -> None:
        """Raises LimitError naming what is out of range, or the layer whose ``|z|`` could reach t/2."""
        if not 2 <= len(self.dims) <= MAX_LAYERS + 1:
            raise LimitError(f"a model has 1 to {MAX_LAYERS} layers, got {len(self.dims) - 1}")
        if any(not 1 <= width <= MAX_WIDTH for width in self.dims):
            raise LimitError(f"widths are 1 to {MAX_WIDTH}, got {self.dims}")
        if self.weight_bits not in WEIGHT_BITS:
            raise LimitError(f"weights have {WEIGHT_BITS[0]} to {WEIGHT_BITS[-1]} bits, got {self.weight_bits}")
        for layer, bound in enumerate(self.bounds(), start=1):
            if 2 * bound >= T:
                raise LimitError(
                    f"layer {layer} of {self.dims} could reach {bound}, which is not below t/2 = {T // 2}: use fewer inputs "
                    "or smaller weights",
                    layer=layer, bound=bound,
                )  # fmt: skip

    @staticmethod
    def of(spec: TaskSpec) -> ModelFamily:
        """The family that a task names. Raises LimitError for one that cannot be scored exactly."""
        return ModelFamily((spec.features, *spec.hidden, spec.classes), spec.activation, spec.weight_bits)

    @property
    def layers(self) -> int:
        """L."""
        return len(self.dims) - 1

    @property
    def weight_bound(self) -> int:
        return (1 << (self.weight_bits - 1)) - 1

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return sum((rows + 1) * columns for rows, columns in pairwise(self.dims))

    def bounds(self) -> tuple[int, ...]:
        """``bound_l >= |z_l|`` for every model of the family and every input, l = 1 … L."""
        largest = FEATURE_BOUND
        found = []
        for rows in self.dims[:-1]:
            found.append(rows * largest * self.weight_bound + BIAS_BOUND)
            largest = largest_output(self.activation)
        return tuple(found)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The public part of a model: the preimage of ``c_W`` starts with it."""

    dims: Annotated[tuple[int, ...], Seq(U32, MAX_LAYERS + 1)]
    activation: Annotated[Activation, Enum(Activation)]
    """Which pinned table the hidden layers use."""
    weight_bits: Annotated[int, U8]
    shifts: Annotated[tuple[int, ...], Seq(U8, MAX_LAYERS)]
    """One for each hidden layer."""

    def family(self) -> ModelFamily:
        """Raises LimitError or MalformedError unless models of this shape can be scored."""
        family = ModelFamily(self.dims, self.activation, self.weight_bits)
        if len(self.shifts) != family.layers - 1 or any(shift > MAX_SHIFT for shift in self.shifts):
            raise MalformedError(f"{family.layers - 1} shifts of at most {MAX_SHIFT} are needed, got {self.shifts}")
        return family


@dataclass(frozen=True, slots=True, eq=False)
class ScoredModel:
    """Integer weights of one model; checked on construction.

    ``weights[l]`` is ``W_{l+1}`` of shape (d_l, d_{l+1}), ``biases[l]`` of shape (d_{l+1},), both int64 and read-only.
    """

    shape: ModelShape
    weights: tuple[Ints, ...] = field(repr=False)
    biases: tuple[Ints, ...] = field(repr=False)

    def __post_init__(self) -> None:
        """Raises MalformedError naming the layer that does not fit, LimitError for a family that cannot be scored."""
        family = self.shape.family()
        if len(self.weights) != family.layers or len(self.biases) != family.layers:
            raise MalformedError(f"{family.layers} layers expected, got {len(self.weights)}")
        for layer, (weights, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            rows, columns = family.dims[layer], family.dims[layer + 1]
            fits = weights.shape == (rows, columns) and bias.shape == (columns,)
            if not fits or weights.dtype != np.int64 or bias.dtype != np.int64:
                raise MalformedError(
                    f"layer {layer + 1}: weights {weights.shape} of {weights.dtype} and bias {bias.shape} of {bias.dtype}, "
                    f"expected ({rows}, {columns}) and ({columns},) of int64"
                )
            if not _within(weights, family.weight_bound):
                raise MalformedError(f"layer {layer + 1}: a weight is beyond {family.weight_bound}", layer=layer + 1)
            if not _within(bias, BIAS_BOUND):
                raise MalformedError(f"layer {layer + 1}: a bias is beyond {BIAS_BOUND}", layer=layer + 1)
            weights.setflags(write=False)
            bias.setflags(write=False)

    @property
    def family(self) -> ModelFamily:
        return self.shape.family()

    @property
    def layers(self) -> int:
        return len(self.weights)

    def bounds(self) -> tuple[int, ...]:
        """``bound_l`` of every layer, each below t/2."""
        return self.family.bounds()

    def forward(self, features: Features) -> tuple[tuple[Ints, ...], Labels]:
        """``(Z_1 … Z_L), predictions`` for features of shape (I, M); ``Z_l`` is int64 of shape (I, d_l)."""
        return self.forward_from(self.first_layer(features))

    def first_layer(self, features: Features) -> Ints:
        """``Z_1 = A W_1 + b_1``."""
        check_features(features, self.shape.dims[0])
        return _exact(features.astype(np.int64), self.weights[0]) + self.biases[0]

    def forward_from(self, z: Ints) -> tuple[tuple[Ints, ...], Labels]:
        """The rest of the network from ``Z_1``, of shape (I, d_1): ``(Z_1 … Z_L), predictions``."""
        found = [z]
        for layer in range(1, self.layers):
            x = apply(self.shape.activation, found[-1], self.shape.shifts[layer - 1])
            found.append(_exact(x, self.weights[layer]) + self.biases[layer])
        return tuple(found), predict(found[-1])

    def count(self, features: Features, labels: Labels) -> Correct:
        """N: how many predictions equal their label."""
        return count_correct(self.forward(features)[1], labels)

    def encode(self) -> Ints:
        """Weights and biases in the order of the ``Vm`` body: ``W_1`` row-major, ``b_1``, ``W_2``, …; int64, signed."""
        parts = [part.reshape(-1) for pair in zip(self.weights, self.biases, strict=True) for part in pair]
        return np.concatenate(parts)

    @staticmethod
    def decode(shape: ModelShape, values: Ints) -> ScoredModel:
        """The model of ``shape`` whose encoding is ``values``.

        Raises:
            MalformedError: another number of values, or one out of its range.
        """
        family = shape.family()
        if values.shape != (family.parameters,):
            raise MalformedError(f"{values.shape} values, a model of {family.dims} has {family.parameters}")
        weights, biases, start = [], [], 0
        for rows, columns in pairwise(family.dims):
            weights.append(values[start : start + rows * columns].astype(np.int64).reshape(rows, columns))
            start += rows * columns
            biases.append(values[start : start + columns].astype(np.int64))
            start += columns
        return ScoredModel(shape, tuple(weights), tuple(biases))


def check_features(features: Features, width: int) -> None:
    """Raises MalformedError unless ``features`` is int8 of shape (I, width) without -128."""
    if features.dtype != np.int8 or features.ndim != 2 or features.shape[1] != width:
        raise MalformedError(f"features are {features.shape} of {features.dtype}, expected (I, {width}) of int8")
    if features.size and int(features.min()) < -FEATURE_BOUND:
        raise MalformedError("a feature is -128; features are in [-127, 127]")


def predict(z: Ints) -> Labels:
    """Argmax of each row of ``Z_L``, ties to the lowest index."""
    indices: Labels = np.argmax(z, axis=1).astype(np.int64)
    return indices


def count_correct(predictions: Labels, labels: Labels) -> Correct:
    """``Σ [prediction = label]``."""
    if predictions.shape != labels.shape:
        raise MalformedError(f"{predictions.shape} predictions for {labels.shape} labels")
    return Correct(int(np.count_nonzero(predictions == labels)))


def column_slices(dims: Sequence[int]) -> list[tuple[slice, slice]]:
    """Where ``W_l`` and ``b_l`` lie in the encoding, layer by layer."""
    found, start = [], 0
    for rows, columns in pairwise(dims):
        middle = start + rows * columns
        found.append((slice(start, middle), slice(middle, middle + columns)))
        start = middle + columns
    return found


def _within(values: Ints, bound: int) -> bool:
    # Not by abs(): the smallest int64 is its own absolute value.
    return int(values.min()) >= -bound and int(values.max()) <= bound


def _exact(x: Ints, weights: Ints) -> Ints:
    # Every partial sum is below bound_l < 2^33, so float64 is exact in any order and BLAS may do it.
    return np.asarray(x.astype(np.float64) @ weights.astype(np.float64)).astype(np.int64)
