"""From trained float weights to the scored integer model, with the loss stated (design: verification, section 1).

Layer by layer, with ``s_x`` the scale of the layer's integer input (feature_scale at first) and ``s_w`` that of its weights:
``z_int ≈ s_x s_w z``. The shift brings ``z_int`` to the 12-bit index of the activation table. For the sigmoid the index has
a fixed unit of 1/256, so ``s_w`` is the largest of the form ``256 · 2^shift / s_x`` that the weight bits allow; relu and
identity take any unit, so ``s_w`` uses the full range and the shift follows from the largest ``z`` on the calibration rows.
Half of the shift's unit is added to the bias, which turns the flooring shift into rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from core.chain.transaction import Activation
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

__all__ = ["Floats", "QuantisationReport", "float_forward", "quantise", "quantise_features"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class QuantisationReport:
    """What was lost between the float model and the scored one, on the calibration rows."""

    rows: int
    same_predictions: int
    """Rows on which both models predict the same class."""
    clipped_weights: int
    """Weights that did not fit their bits at the chosen scale."""
    float_correct: int | None
    """Of the float model; None without labels."""
    scored_correct: int | None

    @property
    def loss_points(self) -> float | None:
        """Accuracy lost, in percentage points; negative when the scored model is better. None without labels."""
        if self.float_correct is None or self.scored_correct is None:
            return None
        return 100.0 * (self.float_correct - self.scored_correct) / self.rows


def quantise_features(x: Floats, feature_scale: float) -> Features:
    """``clamp(round(x · scale), -127, 127)`` as int8: how every party turns floats into the task's features."""
    return np.clip(np.rint(np.asarray(x, dtype=np.float64) * feature_scale), -FEATURE_BOUND, FEATURE_BOUND).astype(np.int8)


def float_forward(layers: Sequence[tuple[Floats, Floats]], activation: Activation, x: Floats) -> Floats:
    """Logits of the float model, shape (rows, C)."""
    for weights, bias in layers[:-1]:
        x = _activate(activation, x @ weights + bias)
    weights, bias = layers[-1]
    return np.asarray(x @ weights + bias)


def quantise(
    layers: Sequence[tuple[Floats, Floats]],
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
    float_layers = [(np.asarray(w, dtype=np.float64), np.asarray(b, dtype=np.float64)) for w, b in layers]
    x_float = np.asarray(calibration, dtype=np.float64)
    _check(float_layers, feature_scale, x_float)
    family = ModelFamily((float_layers[0][0].shape[0], *(w.shape[1] for w, _ in float_layers)), activation, weight_bits)
    features = quantise_features(x_float, feature_scale)
    x, scale = features.astype(np.int64), feature_scale
    weights, biases, shifts, clipped = [], [], [], 0
    for number, (w, b) in enumerate(float_layers):
        hidden = number < len(float_layers) - 1
        largest = max(float(np.abs(w).max()), 1e-12)
        w_scale, shift = family.weight_bound / largest, 0
        if hidden and activation is Activation.SIGMOID:
            shift = int(np.clip(np.floor(np.log2(scale * w_scale / SIGMOID_INDEX_UNIT)), 0, MAX_SHIFT))
            w_scale = SIGMOID_INDEX_UNIT * 2.0**shift / scale
        else:
            w_scale = min(w_scale, BIAS_BOUND / 2 / (scale * max(float(np.abs(b).max()), 1e-12)))
        w_int = np.rint(w * w_scale)
        clipped += int(np.count_nonzero(np.abs(w_int) > family.weight_bound))
        w_int = np.clip(w_int, -family.weight_bound, family.weight_bound).astype(np.int64)
        b_int = np.clip(np.rint(b * w_scale * scale), -BIAS_BOUND // 2, BIAS_BOUND // 2).astype(np.int64)
        z = x @ w_int + b_int
        if hidden and activation is not Activation.SIGMOID:
            reach = int(np.abs(z).max())
            shift = min(max(0, reach.bit_length() - INDEX_MAX.bit_length()), MAX_SHIFT)
        if hidden:
            half = (1 << shift) >> 1
            b_int, z = b_int + half, z + half
            x = apply(activation, z, shift)
            scale = SIGMOID_ONE if activation is Activation.SIGMOID else scale * w_scale / 2.0**shift
            shifts.append(shift)
        weights.append(w_int)
        biases.append(b_int)
    model = ScoredModel(ModelShape(family.dims, activation, weight_bits, tuple(shifts)), tuple(weights), tuple(biases))
    return model, _report(model, features, float_layers, activation, x_float, labels, clipped)


def _report(
    model: ScoredModel,
    features: Features,
    layers: list[tuple[Floats, Floats]],
    activation: Activation,
    x: Floats,
    labels: Labels | None,
    clipped: int,
) -> QuantisationReport:
    scored = model.forward(features)[1]
    exact = predict(float_forward(layers, activation, x))  # type: ignore[arg-type]
    return QuantisationReport(
        rows=len(x),
        same_predictions=int(np.count_nonzero(scored == exact)),
        clipped_weights=clipped,
        float_correct=None if labels is None else int(np.count_nonzero(exact == labels)),
        scored_correct=None if labels is None else int(np.count_nonzero(scored == labels)),
    )


def _activate(activation: Activation, z: Floats) -> Floats:
    if activation is Activation.SIGMOID:
        return 1.0 / (1.0 + np.exp(-np.clip(z, -60.0, 60.0)))
    return np.maximum(z, 0.0) if activation is Activation.RELU else z


def _check(layers: list[tuple[Floats, Floats]], feature_scale: float, x: Floats) -> None:
    if not layers or x.ndim != 2 or not len(x):
        raise InputError(f"quantise needs at least one layer and one calibration row, got {len(layers)} and {x.shape}")
    if not (np.isfinite(feature_scale) and feature_scale > 0):
        raise InputError(f"the feature scale is {feature_scale}, it must be positive")
    width = x.shape[1]
    for number, (w, b) in enumerate(layers, start=1):
        if w.ndim != 2 or w.shape[0] != width or b.shape != (w.shape[1],):
            raise InputError(f"layer {number}: weights {w.shape} and bias {b.shape} do not follow {width} inputs")
        if not (np.isfinite(w).all() and np.isfinite(b).all()):
            raise InputError(f"layer {number}: a weight is not finite; training diverged", layer=number)
        width = w.shape[1]
