"""Linear forms over the test set, the model and the hints: what the zero checks of all three protocols are about.

A form is a sum of numbers, each taken from some ciphertexts with weights, plus a constant; it is to be zero modulo t (design:
verification, section 4). ``Number`` is one such sum while it is being built.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from core.crypto.homomorphic import PARAMS, Residues, add, combine
from core.crypto.homomorphic.combine import multiply_ntt, reverse
from core.crypto.homomorphic.fourier import MAX_TERMS, Product, Spectra, small_spectra
from core.crypto.homomorphic.modular import centre, mul_const, mul_mod, primes_column
from core.crypto.homomorphic.ntt import from_ntt, reduce, to_ntt
from core.crypto.homomorphic.params import Ints
from core.crypto.zero_check import LinearForm
from core.verification.field import Halves, T, dot, matmul, multiply
from core.verification.scored_model import Labels, ModelShape, ScoredModel, column_slices
from core.verification.task import TaskContext
from core.verification.test_set import EncryptedTestSet

__all__ = [
    "AuditCoins", "KnownPart", "Number", "SampleSums", "audit_form", "audit_known", "evaluation_const", "evaluation_forms",
    "evaluation_products", "feature_numbers", "hint_weights", "known_weights", "label_number", "stored_number",
]  # fmt: skip

_UNREDUCED = 4
"""Products of up to p/2 + 1 each that are added up before a reduction."""


@dataclass(frozen=True, eq=False)
class Number:
    """Coefficient 0 of ``c0``'s half, shape (L,), and all of ``c1``'s half as its transform, shape (L, N).

    Numbers are added and scaled in the transform; only what is sent is transformed back.
    """

    head: Residues
    tail: Ints
    """Within p/2 + 1 of zero."""

    def __add__(self, other: Number) -> Number:
        tail = self.tail + other.tail
        _reduce(tail)
        return Number(add(self.head[:, None], other.head[:, None])[:, 0], tail)

    def times(self, factor: int) -> Number:
        """Times a scalar modulo t."""
        signed = int(centre(np.array([factor % T], dtype=np.int64), T)[0])
        head = np.array([int(h) * signed % p for h, p in zip(self.head, PARAMS.primes, strict=True)], dtype=np.uint64)
        return Number(head, np.stack([mul_const(row, signed, p) for row, p in zip(self.tail, PARAMS.primes, strict=True)]))

    def equals(self, const: int) -> LinearForm:
        """The form ``number + const``."""
        return LinearForm(self.head, from_ntt(self.tail[None], PARAMS)[0], const % T)


def number(c0: Residues, c1_ntt: Ints, weights: Ints) -> Number:
    """``Σ weights · coefficients`` over ciphertexts (count, L, N) with weights (count, N); ``c1_ntt``: transforms."""
    head = np.zeros(PARAMS.limbs, dtype=np.uint64)
    tail = np.zeros((PARAMS.limbs, PARAMS.degree), dtype=np.int64)
    for i, row in enumerate(weights):
        signed = centre(row, T)
        for limb, prime in enumerate(PARAMS.primes):
            products = mul_mod(c0[i, limb].view(np.int64), signed, prime)
            head[limb] = (int(head[limb]) + int(products.sum())) % prime
        tail += multiply_ntt(c1_ntt[i], transform_of(signed[None])[0], PARAMS)
        if i % _UNREDUCED == _UNREDUCED - 1:
            _reduce(tail)
    _reduce(tail)
    return Number(head, tail)


def chosen_number(c0: Residues, c1_spectra: Callable[[int], Spectra], weights: Ints) -> Number:
    """``number`` for weights 0 and 1, in a tenth of the time. ``c1_spectra``: of the i-th ciphertext's c1."""
    low = (1 << 25) - 1
    signed = c0.view(np.int64)
    # Halves of 25 bits: sums of up to 2^38 chosen coefficients stay below 2^63.
    high_sum, low_sum = (np.einsum("cln,cn->l", half, weights) for half in (signed >> 25, signed & low))
    head = [((int(h) << 25) + int(v)) % p for h, v, p in zip(high_sum, low_sum, PARAMS.primes, strict=True)]
    tail = np.zeros((1, PARAMS.limbs, PARAMS.degree), dtype=np.uint64)
    for first in range(0, len(weights), MAX_TERMS):
        product = Product()
        for i, row in enumerate(reverse(weights[first : first + MAX_TERMS]), start=first):
            product.add(c1_spectra(i), small_spectra(row))
        tail = add(tail, product.residues()[None])
    return Number(np.array(head, dtype=np.uint64), to_ntt(tail, PARAMS)[0])


def transform_of(weights: Ints) -> Ints:
    """The transforms of ``w(X^-1)``, so that coefficient 0 of a product is ``Σ_n w_n m_n``: (count, N) to (count, L, N).

    Weights are centred modulo t.
    """
    return to_ntt(reverse(weights), PARAMS)


def _reduce(tail: Ints) -> None:
    for limb, prime in enumerate(PARAMS.primes):
        reduce(tail[limb], prime)


class SampleSums:
    """``Σ_i samples[r, i] a_ij`` for every feature j and each run r: the part of ``feature_numbers`` that needs no columns.

    For ``c0`` this is M numbers a batch and nothing else is needed of it. For ``c1`` the columns come first, because one
    transform of their sum is less than M products.
    """

    def __init__(self, task: TaskContext, test_set: EncryptedTestSet, samples: Ints) -> None:
        """``samples``: (runs, I), modulo t."""
        self._test_set = test_set
        spread = task.spread(samples)
        total: Residues | None = None
        for batch in range(task.batches):
            part = test_set.rows0[batch].dots(np.ascontiguousarray(spread[:, batch]))
            total = part if total is None else (total + part) % primes_column(PARAMS)[:, 0].astype(np.uint64)
        assert total is not None
        self._heads = total
        """(runs, M, L)."""
        self._transforms = [transform_of(centre(spread[:, batch], T)) for batch in range(task.batches)]

    def times(self, columns: Ints) -> list[Number]:
        """``Σ_j columns[r, j] Σ_i samples[r, i] a_ij`` for each run: one pass over ``c1`` for all runs.

        ``columns``: (runs, M), modulo t.
        """
        runs = len(columns)
        tails = np.zeros((runs, PARAMS.limbs, PARAMS.degree), dtype=np.int64)
        for rows, samples in zip(self._test_set.rows1, self._transforms, strict=True):
            sums = to_ntt(rows.combine(columns), PARAMS)
            for run in range(runs):
                tails[run] += multiply_ntt(sums[run], samples[run], PARAMS)
                _reduce(tails[run])
        return [Number(self._head(run, columns[run]), tails[run]) for run in range(runs)]

    def _head(self, run: int, columns: Ints) -> Residues:
        signed = centre(columns, T)  # the same representatives as in c1's half: a multiple of t is zero modulo t, not modulo q
        head = [
            int(mul_mod(self._heads[run, :, limb].view(np.int64), signed, prime).sum()) % prime
            for limb, prime in enumerate(PARAMS.primes)
        ]
        return np.array(head, dtype=np.uint64)


def feature_numbers(task: TaskContext, test_set: EncryptedTestSet, columns: Ints, samples: Ints) -> list[Number]:
    """``Σ_ij samples[r, i] columns[r, j] a_ij`` for each run r: one matrix product over ``A`` for all runs.

    ``columns``: (runs, M), ``samples``: (runs, I), both modulo t.
    """
    return SampleSums(task, test_set, samples).times(columns)


def label_number(task: TaskContext, test_set: EncryptedTestSet, predictions: Labels) -> Number:
    """``Σ_i Σ_c Y[c, i] [prediction_i = c]``: N on the committed labels. Padding has weight zero."""
    chosen = (predictions[None, :] == np.arange(task.classes)[:, None]).astype(np.int64)
    weights = task.spread(chosen).swapaxes(0, 1).reshape(-1, PARAMS.degree)
    c0 = test_set.labels0.reshape(-1, PARAMS.limbs, PARAMS.degree)
    return chosen_number(c0, test_set.label_spectra, weights)


def stored_number(task: TaskContext, test_set: EncryptedTestSet, samples: Ints) -> Number:
    """``Σ_i samples_i Σ_c Y[c, i]`` for weights (I,) modulo t: equals ``Σ_i samples_i`` when every label is one-hot."""
    ones = np.ones((1, task.classes), dtype=np.int64)
    c0, c1 = (
        np.concatenate([combine(ones, half[batch]) for batch in range(task.batches)])
        for half in (test_set.labels0, test_set.labels1)
    )
    return number(c0, to_ntt(c1, PARAMS), task.spread(samples))


def evaluation_products(task: TaskContext, test_set: EncryptedTestSet, model: ScoredModel, coins: Ints) -> list[Number]:
    """``s^T (A W_1) r`` for each run. It needs nothing from the requester, so it may be made while she computes.

    ``coins``: (runs, I + K + 1) secret values modulo t, fresh for each run: s, r, c4.
    """
    s, r = coins[:, : task.samples], coins[:, task.samples : -1]
    return feature_numbers(task, test_set, matmul(r, np.ascontiguousarray(model.weights[0].T)), s)


def evaluation_forms(
    task: TaskContext, products: Sequence[Number], model: ScoredModel, z: Ints, labels: Number, correct: int, coins: Ints
) -> list[LinearForm]:
    """The pool's check, one form a run: ``s^T (A W_1) r - s^T (z_1 - b_1) r + c4 (Σ_c Y[c] [prediction = c] - N)``.

    ``products``: evaluation_products of the same coins. ``labels``: label_number of the predictions.
    """
    return [
        (product + labels.times(int(one[-1]))).equals(evaluation_const(model, z, correct, one))
        for product, one in zip(products, coins, strict=True)
    ]


def evaluation_const(model: ScoredModel, z: Ints, correct: int, coins: Ints) -> int:
    """What the pool's form adds to its ciphertexts: ``-s^T (z_1 - b_1) r - c4 N`` for one run's coins, (I + K + 1,)."""
    samples = len(z)
    return -dot(matmul(coins[:samples], z - model.biases[0]), coins[samples:-1]) - int(coins[-1]) * correct


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


@dataclass(frozen=True, eq=False)
class KnownPart:
    """All of one run's form but what ``w`` and the hint decide."""

    number: Number
    const: int


def audit_known(
    task: TaskContext,
    shape: ModelShape,
    coins: AuditCoins,
    z: Sequence[Ints | Halves],
    x: Sequence[Ints | Halves],
    model: tuple[Residues, Ints],
    labels: Number,
    correct: int,
) -> KnownPart:
    """The weights of section 6, step 3, on model and labels, which the node knows before it has a hint.

    Args:
        z: ``Z_1 … Z_L``, each (I, d_l).
        x: ``X_1 … X_{L-1}``, the activations.
        model: the body's ciphertexts: c0, and the transform of c1, each (count, L, N).
        labels: label_number of the predictions.
        correct: the requester's N*, never the pool's claim.
    """
    flat, const = known_weights(shape, coins, z, x, correct)
    weights = np.zeros((len(model[0]), PARAMS.degree), dtype=np.int64)
    weights.reshape(-1)[: len(flat)] = flat
    return KnownPart(number(*model, weights) + labels.times(coins.c4), const)


def known_weights(
    shape: ModelShape, coins: AuditCoins, z: Sequence[Ints | Halves], x: Sequence[Ints | Halves], correct: int
) -> tuple[Ints, int]:
    """What ``audit_known`` puts on the model's encoding, (P,) modulo t, and its constant."""
    c2, chi, omega = coins.c2, coins.chi, coins.omega
    parts: list[Ints] = []
    # ω · (w - χ W_1 r - m) and c2 (Σ_j w_j u_j - χ s^T (Z_1 - b_1) r - T)
    first_weights = multiply(multiply(-omega, chi)[:, None], coins.r[None, :])
    scale = c2 * chi % T
    first_bias = multiply(coins.r, scale * int(np.sum(coins.s) % T) % T)
    parts += [first_weights.reshape(-1), first_bias]
    const = -scale * dot(matmul(coins.s, z[0]), coins.r) - coins.c4 * correct
    # s_l^T X_{l-1} W_l r_l - s_l^T (Z_l - b_l) r_l
    for layer, (s, r) in enumerate(coins.layers, start=1):
        parts.append(multiply(matmul(s, x[layer - 1])[:, None], r[None, :]).reshape(-1))
        parts.append(multiply(r, int(np.sum(s) % T)))
        const -= dot(matmul(s, z[layer]), r)
    flat = np.concatenate(parts)
    assert len(flat) == column_slices(shape.dims)[-1][1].stop
    return flat, const


def hint_weights(coins: AuditCoins) -> Ints:
    """What ``audit_form`` puts on a hint's values, the mask m and then T: (M + 1,) modulo t."""
    weights: Ints = np.remainder(np.append(-coins.omega, -coins.c2), T)
    return weights


def audit_form(
    task: TaskContext, coins: AuditCoins, w: Ints, products: Number, hint: tuple[Residues, Ints], known: KnownPart
) -> LinearForm:
    """One run of the node's check.

    Args:
        w: the opened ``χ W_1 r + m``, (M,).
        products: feature_numbers with columns ``c2 w`` and samples ``s``.
        hint: c0, and the transform of c1, each (1, L, N).
        known: audit_known of the same coins.
    """
    weights = np.zeros((1, PARAMS.degree), dtype=np.int64)
    weights[0, : task.features + 1] = hint_weights(coins)
    total = products + number(*hint, weights) + known.number
    return total.equals(dot(coins.omega, w) + known.const)
