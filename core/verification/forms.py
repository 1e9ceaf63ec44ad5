"""Linear forms over the test set, the model and the hints: what the zero checks of all three protocols are about.

A form is a sum of numbers, each taken from some ciphertexts with weights, plus a constant; it is to be zero modulo t (design:
verification, section 4). ``Number`` is one such sum while it is being built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from core.crypto.homomorphic import PARAMS, Residues, add, combine, linear_form
from core.crypto.homomorphic.params import Ints
from core.crypto.zero_check import LinearForm
from core.verification.field import T, dot, matmul, multiply
from core.verification.scored_model import Labels, ModelShape, ScoredModel, column_slices
from core.verification.task import TaskContext
from core.verification.test_set import EncryptedTestSet

__all__ = ["AuditCoins", "Number", "audit_form", "evaluation_forms", "feature_numbers", "label_number", "stored_number"]


@dataclass(frozen=True, eq=False)
class Number:
    """Coefficient 0 of ``c0``'s half, shape (L,), and all of ``c1``'s half, shape (L, N)."""

    head: Residues
    c1: Residues

    def __add__(self, other: Number) -> Number:
        return Number(add(self.head[:, None], other.head[:, None])[:, 0], add(self.c1, other.c1))

    def times(self, factor: int) -> Number:
        """Times a scalar modulo t."""
        both = np.concatenate([self.c1[None], np.broadcast_to(self.head[None, :, None], self.c1[None].shape)])
        scaled = [combine(np.array([[factor % T]], dtype=np.int64), np.ascontiguousarray(half[None]))[0] for half in both]
        return Number(np.ascontiguousarray(scaled[1][:, 0]), scaled[0])

    def equals(self, const: int) -> LinearForm:
        """The form ``number + const``."""
        return LinearForm(self.head, self.c1, const % T)


def number(c0: Residues, c1: Residues, weights: Ints) -> Number:
    """``Σ weights · coefficients`` over ciphertexts (count, L, N) with weights (count, N)."""
    return Number(*linear_form(np.ascontiguousarray(c0), np.ascontiguousarray(c1), weights))


def feature_numbers(task: TaskContext, test_set: EncryptedTestSet, columns: Ints, samples: Ints) -> list[Number]:
    """``Σ_ij samples[r, i] columns[r, j] a_ij`` for each run r: one matrix product over ``A`` for all runs.

    ``columns``: (runs, M), ``samples``: (runs, I), both modulo t.
    """
    spread = task.spread(samples)
    totals: list[Number | None] = [None] * len(columns)
    for batch in range(task.batches):
        c0 = combine(columns, test_set.features0[batch])
        c1 = combine(columns, test_set.features1[batch])
        for run in range(len(columns)):
            part = number(c0[run : run + 1], c1[run : run + 1], spread[run, batch : batch + 1])
            known = totals[run]
            totals[run] = part if known is None else known + part
    return [total for total in totals if total is not None]


def label_number(task: TaskContext, test_set: EncryptedTestSet, predictions: Labels) -> Number:
    """``Σ_i Σ_c Y[c, i] [prediction_i = c]``: N on the committed labels. Padding has weight zero."""
    chosen = (predictions[None, :] == np.arange(task.classes)[:, None]).astype(np.int64)
    weights = task.spread(chosen).swapaxes(0, 1).reshape(-1, PARAMS.degree)
    shape = (-1, PARAMS.limbs, PARAMS.degree)
    return number(test_set.labels0.reshape(shape), test_set.labels1.reshape(shape), weights)


def stored_number(task: TaskContext, test_set: EncryptedTestSet, samples: Ints) -> Number:
    """``Σ_i samples_i Σ_c Y[c, i]`` for weights (I,) modulo t: equals ``Σ_i samples_i`` when every label is one-hot."""
    ones = np.ones((1, task.classes), dtype=np.int64)
    halves = [
        np.concatenate([combine(ones, half[batch]) for batch in range(task.batches)])
        for half in (test_set.labels0, test_set.labels1)
    ]
    return number(halves[0], halves[1], task.spread(samples))


def evaluation_forms(
    task: TaskContext, test_set: EncryptedTestSet, model: ScoredModel, z: Ints, labels: Number, correct: int, coins: Ints
) -> list[LinearForm]:
    """The pool's check, one form a run: ``s^T (A W_1) r - s^T (z_1 - b_1) r + c4 (Σ_c Y[c] [prediction = c] - N)``.

    ``coins``: (runs, I + K + 1) secret values modulo t, fresh for each run: s, r, c4. ``labels``: label_number of the
    predictions.
    """
    s, r, c4 = coins[:, : task.samples], coins[:, task.samples : -1], coins[:, -1]
    columns = matmul(r, np.ascontiguousarray(model.weights[0].T))
    products = feature_numbers(task, test_set, columns, s)
    rest = z - model.biases[0]
    return [
        (products[run] + labels.times(int(c4[run]))).equals(-dot(matmul(s[run], rest), r[run]) - int(c4[run]) * correct)
        for run in range(len(coins))
    ]


@dataclass(frozen=True, eq=False)
class AuditCoins:
    """One run's coins: ``s`` (I,) and ``r`` (K,) known to both sides, everything else secret to the node."""

    s: Ints
    r: Ints
    chi: int
    omega: Ints
    """(M,)."""
    c2: int
    c4: int
    layers: tuple[tuple[Ints, Ints], ...]
    """``s_l`` (I,) and ``r_l`` (d_l,) for l = 2 … L."""


def audit_form(
    task: TaskContext,
    shape: ModelShape,
    coins: AuditCoins,
    w: Ints,
    z: Sequence[Ints],
    x: Sequence[Ints],
    products: Number,
    model: tuple[Residues, Residues],
    hint: tuple[Residues, Residues],
    labels: Number,
    correct: int,
) -> LinearForm:
    """One run of the node's check, with all the weights of section 6, step 3.

    Args:
        w: the opened ``χ W_1 r + m``, (M,).
        z: ``Z_1 … Z_L``, each (I, d_l).
        x: ``X_1 … X_{L-1}``, the activations.
        products: feature_numbers with columns ``c2 w`` and samples ``s``.
        model: the body's ciphertexts, each half (count, L, N).
        hint: each half (1, L, N).
        labels: label_number of the predictions.
        correct: the requester's N*, never the pool's claim.
    """
    c2, chi, omega = coins.c2, coins.chi, coins.omega
    parts: list[Ints] = []
    # ω · (w - χ W_1 r - m) and c2 (Σ_j w_j u_j - χ s^T (Z_1 - b_1) r - T)
    first_weights = multiply(multiply(-omega, chi)[:, None], coins.r[None, :])
    scale = c2 * chi % T
    first_bias = multiply(coins.r, scale * int(np.sum(coins.s) % T) % T)
    parts += [first_weights.reshape(-1), first_bias]
    const = dot(omega, w) - scale * dot(matmul(coins.s, z[0]), coins.r) - coins.c4 * correct
    # s_l^T X_{l-1} W_l r_l - s_l^T (Z_l - b_l) r_l
    for layer, (s, r) in enumerate(coins.layers, start=1):
        parts.append(multiply(matmul(s, x[layer - 1])[:, None], r[None, :]).reshape(-1))
        parts.append(multiply(r, int(np.sum(s) % T)))
        const -= dot(matmul(s, z[layer]), r)
    flat = np.concatenate(parts)
    assert len(flat) == column_slices(shape.dims)[-1][1].stop
    weights = np.zeros((len(model[0]), PARAMS.degree), dtype=np.int64)
    weights.reshape(-1)[: len(flat)] = flat
    hint_weights = np.zeros((1, PARAMS.degree), dtype=np.int64)
    hint_weights[0, : task.features] = np.remainder(-omega, T)
    hint_weights[0, task.features] = (-c2) % T
    total = products + number(*model, weights) + number(*hint, hint_weights) + labels.times(coins.c4)
    return total.equals(const)
