"""Regression as a scored model: N counts the targets that fall into the right bucket (docs/adr/0065).

The task's public cut points ``t_1 <= … <= t_{C-1}`` put a real target into one of C buckets: bucket c holds ``(t_c, t_{c+1}]``.
A network with one real output z is then an argmax over C integer columns, because with ``a_c = c - ⌊C/2⌋``

    score_c = a_c z - Σ_{k<=c} t_k,      score_{c+1} - score_c = z - t_{c+1},

so scores rise with c while ``t_c < z`` and fall or stay afterwards; ties go to the lowest bucket. Nothing else in the protocol
knows about it: the last layer has columns ``a_c w``. Linear regression is the case without a hidden layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.chain.transaction import MAX_CUT, MAX_CUTS, Activation
from core.crypto.homomorphic.params import Ints
from core.errors import InputError, LimitError
from core.verification.activations import largest_output
from core.verification.quantise import (
    FloatLayer,
    Floats,
    HiddenLayers,
    QuantisationReport,
    check_layers,
    float_forward,
    largest,
    quantise_features,
    quantise_hidden,
    report_of,
)
from core.verification.scored_model import BIAS_BOUND, FEATURE_BOUND, Labels, ModelFamily, ModelShape, ScoredModel

__all__ = [
    "MICRO", "buckets", "bucket_columns", "check_buckets", "cuts_from_micro", "cuts_to_micro", "quantile_cuts",
    "quantise_regression",
]  # fmt: skip

MICRO: Final = 1_000_000
"""Cut points are integers on chain: millionths of the targets' unit."""

_SCALES: Final = 48
_SMALLEST_SCALE: Final = 0.5
"""Scales that are tried for the last layer: this many, between half of the largest that fits and the largest."""


def buckets(values: NDArray[np.float64] | Ints, cuts: NDArray[np.float64] | Ints) -> Labels:
    """The bucket of each value: how many cuts are below it. A value on a cut is in the lower bucket."""
    return np.searchsorted(cuts, values, side="left").astype(np.int64)


def quantile_cuts(targets: Floats, classes: int) -> Floats:
    """Cut points that put about as many of ``targets`` into each of ``classes`` buckets.

    Raises:
        InputError: fewer than 2 classes, or too few different targets to tell them apart.
    """
    if classes < 2 or targets.ndim != 1 or not len(targets) or not np.isfinite(targets).all():
        raise InputError(f"{classes} buckets for targets of {targets.shape}: at least 2 buckets and finite targets are needed")
    cuts = np.quantile(targets, np.arange(1, classes) / classes)
    if len(np.unique(buckets(targets, cuts))) < classes:
        raise InputError(f"the targets have too few different values for {classes} buckets of one size")
    return np.asarray(cuts, dtype=np.float64)


def cuts_to_micro(cuts: Floats) -> tuple[int, ...]:
    """Cut points as a task carries them.

    Raises:
        InputError: no cut or too many, one that is not finite or out of range, or two that do not rise by a millionth.
    """
    values = np.asarray(cuts, dtype=np.float64)
    if values.ndim != 1 or not 1 <= len(values) <= MAX_CUTS:
        raise InputError(f"a regression has 1 to {MAX_CUTS} cut points, got {values.shape}")
    if not (np.isfinite(values).all() and float(np.abs(values).max()) <= MAX_CUT / MICRO):
        raise InputError(f"cut points must be finite and within {MAX_CUT / MICRO:g} of 0, got {values.tolist()[:20]}")
    micro = tuple(int(value) for value in np.rint(values * MICRO))
    if any(second <= first for first, second in pairwise(micro)):
        raise InputError(f"cut points must rise by a millionth at least, got {values.tolist()[:20]}")
    return micro


def cuts_from_micro(cuts_micro: Sequence[int]) -> Floats:
    """The cut points of a task, in the targets' unit: what everybody who puts targets into buckets compares with."""
    return np.array(cuts_micro, dtype=np.float64) / MICRO


def check_buckets(family: ModelFamily) -> int:
    """The largest ``|w|`` of one real output that the columns of its buckets leave room for.

    Raises:
        LimitError: more buckets than the weight bits hold.
    """
    classes = family.dims[-1]
    room = family.weight_bound // (classes // 2)
    if not room:
        raise LimitError(
            f"{classes} buckets need weights of more than {family.weight_bits} bits, which hold up to "
            f"{2 * family.weight_bound + 1}",
            classes=classes, weight_bits=family.weight_bits,
        )  # fmt: skip
    return room


def bucket_columns(w: Ints, cuts: Ints) -> tuple[Ints, Ints]:
    """The layer whose argmax is the bucket of ``x · w`` among integer ``cuts`` in rising order.

    Args:
        w: (d,). cuts: (C - 1,).

    Returns:
        Weights (d, C), biases (C,), both int64. ``|weights| <= ⌊C/2⌋ max |w|``; biases are centred.

    Raises:
        InputError: no cut, or cuts that fall.
    """
    if not len(cuts) or (np.diff(cuts) < 0).any():
        raise InputError(f"cut points have to rise, and there has to be one: {cuts.tolist()[:20]}")
    classes = len(cuts) + 1
    factors = np.arange(classes, dtype=np.int64) - classes // 2
    biases = -np.concatenate([[0], np.cumsum(cuts)]).astype(np.int64)
    # What all scores share decides nothing; taking it out keeps the biases small.
    biases -= (int(biases.max()) + int(biases.min())) // 2
    return np.asarray(w[:, None] * factors, dtype=np.int64), biases


def quantise_regression(
    layers: Sequence[FloatLayer],
    cuts: Floats,
    activation: Activation,
    feature_scale: float,
    weight_bits: int,
    calibration: Floats,
    targets: Floats | None = None,
) -> tuple[ScoredModel, QuantisationReport]:
    """The scored model of a float network with one real output.

    ``w`` is rounded at the scale that fits the bits and moves the outputs of the calibration rows least; cuts, less the float
    bias, are rounded down at that scale, which moves no integer output across them.

    Args:
        layers: as for ``quantise``; the last W has shape (inputs, 1). One layer is linear regression.
        cuts: the task's cut points, C - 1 of them, rising.
        targets: of the calibration rows, if known, for the loss: correct is who is in the bucket of the target.

    Raises:
        InputError: as for ``quantise``; cuts that are not finite or do not rise; another number of outputs or targets.
        LimitError: more buckets than the weight bits hold, or a family that cannot be scored exactly.
    """
    floats, x = check_layers(layers, feature_scale, calibration)
    cuts = np.asarray(cuts, dtype=np.float64)
    if cuts.ndim != 1 or not len(cuts) or not np.isfinite(cuts).all() or (np.diff(cuts) < 0).any():
        raise InputError(f"cut points have to be finite and to rise, and there has to be one: {cuts.tolist()[:20]}")
    w, b = floats[-1]
    given = None if targets is None else np.asarray(targets, dtype=np.float64)
    if w.shape[1] != 1 or (given is not None and given.shape != (len(x),)):
        shape = None if given is None else given.shape
        raise InputError(f"regression has one output and one target a row, got {w.shape[1]} outputs, targets {shape}")
    classes = len(cuts) + 1
    family = ModelFamily((*(layer[0].shape[0] for layer in floats), classes), activation, weight_bits)
    room = check_buckets(family)
    made = quantise_hidden(floats[:-1], activation, feature_scale, family.weight_bound, x)
    w_int, unit = _rounded(w[:, 0], made, room)
    ceiling = largest_output(activation) if made.shifts else FEATURE_BOUND
    reach = ceiling * int(np.abs(w_int).sum())
    # A cut that no output reaches may as well be just beyond reach: it keeps the biases within their bound.
    scaled = np.clip(np.floor((cuts - b[0]) * unit * made.scale), -reach - 1, reach).astype(np.int64)
    weights, biases = bucket_columns(w_int, scaled)
    if int(np.abs(biases).max()) > BIAS_BOUND:
        raise LimitError(f"{classes} buckets over {len(w_int)} inputs need biases beyond {BIAS_BOUND}", classes=classes)
    made.weights.append(weights)
    made.biases.append(biases)
    public = ModelShape(family.dims, activation, weight_bits, tuple(made.shifts))
    model = ScoredModel(public, tuple(made.weights), tuple(made.biases))
    exact = buckets(float_forward(floats, activation, x)[:, 0], cuts)
    labels = None if given is None else buckets(given, cuts)
    return model, report_of(model, quantise_features(x, feature_scale), exact, labels, made)


def _rounded(w: Floats, made: HiddenLayers, room: int) -> tuple[Ints, float]:
    """``round(w · unit)`` within ``room``, and the unit: the one whose outputs on the calibration rows are nearest."""
    wanted, reach = made.x @ w, largest(w)
    best: tuple[float, Ints, float] | None = None
    for part in np.linspace(1.0, _SMALLEST_SCALE, _SCALES):
        unit = part * (room + 0.499) / reach
        rounded = np.rint(w * unit).astype(np.int64)
        error = float(np.square(made.x @ rounded / unit - wanted).sum())
        if best is None or error < best[0]:
            best = error, rounded, unit
    assert best is not None
    return best[1], best[2]
