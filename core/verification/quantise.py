"""From trained float weights to the scored integer model, with the loss stated (design: verification, section 1).

Layer by layer, with ``s_x`` the scale of the layer's integer input (feature_scale at first) and ``s_w`` that of its weights:
``z_int ≈ s_x s_w z``. The shift brings ``z_int`` to the 12-bit index of the activation table. For the sigmoid the index has
a fixed unit of 1/256, so ``s_w`` is the largest of the form ``256 · 2^shift / s_x`` that the weight bits allow; relu and
identity take any unit, so ``s_w`` uses the full range and the shift follows from the largest ``z`` on the calibration rows.
Half of the shift's unit is added to the bias, which turns the flooring shift into rounding.

No hidden layer makes softmax regression. Linear regression, and networks with one real output, are in ``regression``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.chain.transaction import Activation
from core.crypto.homomorphic.params import Ints
from core.errors import InputError
from core.verification.activations import INDEX_MAX, SIGMOID_INDEX_UNIT, SIGMOID_ONE, apply
from core.verification.scored_model import (
    BIAS_BOUND,
    FEATURE_BOUND,
    MAX_SHIFT,
    Features,
    Labels,
    ModelFamily,
    ModelShape,
    ScoredModel,
    predict,
)

__all__ = [
    "FloatLayer", "Floats", "HiddenLayers", "QuantisationReport", "check_layers", "float_forward", "largest", "quantise",
    "quantise_features", "quantise_hidden", "report_of",
]  # fmt: skip

Floats = NDArray[np.float64]
FloatLayer = tuple[Floats, Floats]
"""``(W, b)`` of shapes (inputs, outputs) and (outputs,): the transpose of torch's ``Linear.weight``, and its ``bias``."""
_BIAS_ROOM: Final = BIAS_BOUND // 2
"""The other half is for what is added for rounding."""


@dataclass(frozen=True, slots=True)
class QuantisationReport:
    """What was lost between the float model and the scored one, on the calibration rows."""

    rows: int
    same_predictions: int
    """Rows on which both models predict the same class."""
    clipped_weights: int
    """Weights that did not fit their bits at the chosen scale."""
    clipped_biases: int
    """Biases that did not fit their bound."""
    float_correct: int | None
    """Of the float model; None without labels."""
    scored_correct: int | None

    @property
    def loss_samples(self) -> int | None:
        """Correct predictions lost; negative when the scored model is better. None without labels."""
        if self.float_correct is None or self.scored_correct is None:
            return None
        return self.float_correct - self.scored_correct

    @property
    def loss_points(self) -> float | None:
        """Accuracy lost, in percentage points; negative when the scored model is better. None without labels."""
        return None if self.loss_samples is None else 100.0 * self.loss_samples / self.rows


def quantise_features(x: Floats, feature_scale: float) -> Features:
    """``clamp(round(x · scale), -127, 127)`` as int8: how every party turns floats into the task's features."""
    return np.clip(np.rint(np.asarray(x, dtype=np.float64) * feature_scale), -FEATURE_BOUND, FEATURE_BOUND).astype(np.int8)


def float_forward(layers: Sequence[tuple[Floats, Floats]], activation: Activation, x: Floats) -> Floats:
    """Logits of the float model, shape (rows, C)."""
    for weights, bias in layers[:-1]:
        x = _activate(activation, x @ weights + bias)
    weights, bias = layers[-1]
    return np.asarray(x @ weights + bias)


@dataclass(slots=True)
class HiddenLayers:
    """Quantised layers so far, and what the next one sees."""

    x: Ints
    """Integer inputs of the next layer on the calibration rows, (rows, d)."""
    scale: float
    """``x ≈ scale · (the float network's inputs there)``."""
    weights: list[Ints] = field(default_factory=list)
    biases: list[Ints] = field(default_factory=list)
    shifts: list[int] = field(default_factory=list)
    clipped_weights: int = 0
    clipped_biases: int = 0

    def add(self, w: Floats, b: Floats, unit: float, bound: int) -> Ints:
        """Appends ``round(w · unit)`` and ``round(b · unit · scale)``, clipped and counted; gives the rows' ``z``."""
        w_int, b_int = np.rint(w * unit), np.rint(b * unit * self.scale)
        self.clipped_weights += int(np.count_nonzero(np.abs(w_int) > bound))
        self.clipped_biases += int(np.count_nonzero(np.abs(b_int) > _BIAS_ROOM))
        self.weights.append(np.clip(w_int, -bound, bound).astype(np.int64))
        self.biases.append(np.clip(b_int, -_BIAS_ROOM, _BIAS_ROOM).astype(np.int64))
        return self.x @ self.weights[-1] + self.biases[-1]


def quantise(
    layers: Sequence[FloatLayer],
    activation: Activation,
    feature_scale: float,
    weight_bits: int,
    calibration: Floats,
    labels: Labels | None = None,
) -> tuple[ScoredModel, QuantisationReport]:
    """The scored model of a float network.

    Args:
        layers: ``(W, b)`` with W of shape (inputs, outputs); the transpose of torch's ``Linear.weight``.
        feature_scale: the task's scale; int8 feature = round(float * scale).
        calibration: float features, shape (rows, M), that set the shifts of relu and identity and measure the loss.
        labels: of the calibration rows, if known, for the loss in points.

    Raises:
        InputError: weights that are not finite, shapes that do not chain, no calibration rows.
        LimitError: a family that cannot be scored exactly.
    """
    floats, x = check_layers(layers, feature_scale, calibration)
    family = ModelFamily((floats[0][0].shape[0], *(w.shape[1] for w, _ in floats)), activation, weight_bits)
    made = quantise_hidden(floats[:-1], activation, feature_scale, family.weight_bound, x)
    w, b = floats[-1]
    unit = min(family.weight_bound / largest(w), _BIAS_ROOM / (made.scale * largest(b)))
    made.add(w, b, unit, family.weight_bound)
    shape = ModelShape(family.dims, activation, weight_bits, tuple(made.shifts))
    model = ScoredModel(shape, tuple(made.weights), tuple(made.biases))
    exact = predict(float_forward(floats, activation, x))  # type: ignore[arg-type]
    return model, report_of(model, quantise_features(x, feature_scale), exact, labels, made)


def quantise_hidden(
    layers: Sequence[FloatLayer], activation: Activation, feature_scale: float, bound: int, calibration: Floats
) -> HiddenLayers:
    """All layers that an activation follows; ``bound`` is the largest weight. The caller has checked the layers."""
    made = HiddenLayers(quantise_features(calibration, feature_scale).astype(np.int64), feature_scale)
    for w, b in layers:
        unit, shift = bound / largest(w), 0
        if activation is Activation.SIGMOID:
            shift = int(np.clip(np.floor(np.log2(made.scale * unit / SIGMOID_INDEX_UNIT)), 0, MAX_SHIFT))
            unit = SIGMOID_INDEX_UNIT * 2.0**shift / made.scale
        else:
            unit = min(unit, _BIAS_ROOM / (made.scale * largest(b)))
        z = made.add(w, b, unit, bound)
        if activation is not Activation.SIGMOID:
            reach = int(np.abs(z).max())
            shift = min(max(0, reach.bit_length() - INDEX_MAX.bit_length()), MAX_SHIFT)
        half = (1 << shift) >> 1
        made.biases[-1] = made.biases[-1] + half
        made.x = apply(activation, z + half, shift)
        made.scale = SIGMOID_ONE if activation is Activation.SIGMOID else made.scale * unit / 2.0**shift
        made.shifts.append(shift)
    return made


def report_of(
    model: ScoredModel, features: Features, exact: Labels, labels: Labels | None, made: HiddenLayers
) -> QuantisationReport:
    """What ``model`` predicts beside ``exact``, the float network's predictions on the same rows."""
    scored = model.forward(features)[1]
    return QuantisationReport(
        rows=len(features),
        same_predictions=int(np.count_nonzero(scored == exact)),
        clipped_weights=made.clipped_weights,
        clipped_biases=made.clipped_biases,
        float_correct=None if labels is None else int(np.count_nonzero(exact == labels)),
        scored_correct=None if labels is None else int(np.count_nonzero(scored == labels)),
    )


def largest(values: Floats) -> float:
    """The largest magnitude, and never 0: scales are divided by it."""
    return max(float(np.abs(values).max()), 1e-12)


def _activate(activation: Activation, z: Floats) -> Floats:
    if activation is Activation.SIGMOID:
        return 1.0 / (1.0 + np.exp(-np.clip(z, -60.0, 60.0)))
    return np.maximum(z, 0.0) if activation is Activation.RELU else z


def check_layers(layers: Sequence[FloatLayer], feature_scale: float, calibration: Floats) -> tuple[list[FloatLayer], Floats]:
    """Layers and calibration rows as float64. Raises InputError for what cannot be quantised."""
    floats = [(np.asarray(w, dtype=np.float64), np.asarray(b, dtype=np.float64)) for w, b in layers]
    x = np.asarray(calibration, dtype=np.float64)
    if not floats or x.ndim != 2 or not len(x):
        raise InputError(f"quantise needs at least one layer and one calibration row, got {len(floats)} and {x.shape}")
    if not np.isfinite(x).all():
        raise InputError("a calibration feature is not finite")
    if not (np.isfinite(feature_scale) and feature_scale > 0):
        raise InputError(f"the feature scale is {feature_scale}, it must be positive")
    width = x.shape[1]
    for number, (w, b) in enumerate(floats, start=1):
        if w.ndim != 2 or not w.size or w.shape[0] != width or b.shape != (w.shape[1],):
            raise InputError(f"layer {number}: weights {w.shape} and bias {b.shape} do not follow {width} inputs")
        if not (np.isfinite(w).all() and np.isfinite(b).all()):
            raise InputError(f"layer {number}: a weight is not finite; training diverged", layer=number)
        width = w.shape[1]
    return floats, x
