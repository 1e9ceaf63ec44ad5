"""The liars of bench.lies: one class a kind, each a requester who departs from the protocol in one way. Here those who lie to
an auditor about values; bench.lies_kinds has the others and the list of all.

Drawing one makes one lie: a liar whose statement would happen to be true draws again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from fractions import Fraction
from itertools import pairwise
from typing import Final

import numpy as np

from core.chain.transaction import Activation
from core.crypto.homomorphic.params import Ints
from core.verification.field import T, dot, matmul, multiply
from core.verification.scored_model import Features, Labels, ModelShape, ScoredModel, count_correct, predict

__all__ = ["Case", "Liar", "Plant", "PlantKind", "new_case", "new_model"]

DIMS: Final = (6, 5, 4, 3)
SAMPLES: Final = 15
Layers = list[Ints]


@dataclass(frozen=True, eq=False)
class Case:
    """What is committed: test set and model."""

    features: Features
    labels: Labels
    model: ScoredModel

    @property
    def dims(self) -> tuple[int, ...]:
        return self.model.shape.dims

    @property
    def samples(self) -> int:
        return len(self.labels)

    @property
    def wide(self) -> Ints:
        return self.features.astype(np.int64)


def new_case(rng: np.random.Generator, dims: tuple[int, ...] = DIMS, samples: int = SAMPLES) -> Case:
    features = rng.integers(-127, 127, (samples, dims[0]), dtype=np.int8, endpoint=True)
    return Case(features, rng.integers(0, dims[-1], samples), new_model(rng, dims))


def new_model(rng: np.random.Generator, dims: tuple[int, ...] = DIMS) -> ScoredModel:
    pairs = list(pairwise(dims))
    weights = tuple(rng.integers(-511, 511, pair, endpoint=True) for pair in pairs)
    shape = ModelShape(dims, Activation.RELU, 10, (9,) * (len(dims) - 2))
    return ScoredModel(shape, weights, tuple(rng.integers(-5000, 5000, pair[1]) for pair in pairs))


class PlantKind(Enum):
    """Which ciphertexts a fraction is planted in, and what its place means."""

    FEATURE = auto()
    """(sample, feature)"""
    LABEL = auto()
    """(sample, class)"""
    MODEL = auto()
    """(0, place in the encoding)"""
    HINT = auto()
    """(0, place; T is at M)"""


@dataclass(frozen=True, slots=True)
class Plant:
    """``size`` (not an integer) added to one encrypted value: ``size * q / t`` on its coefficient of c0."""

    kind: PlantKind
    place: tuple[int, int]
    size: Fraction


class Liar:
    """The honest requester. Each kind of lie overrides what it needs."""

    plants: tuple[Plant, ...] = ()
    features_key_is_another = False
    hint_key_is_another = False
    """Encrypts under a key that nobody has published; under the task's key such a ciphertext holds uniform values."""

    def __init__(self, case: Case, rng: np.random.Generator) -> None:
        self.case, self.rng = case, rng
        self.truth: Layers = list(case.model.forward(case.features)[0])
        self.count = int(count_correct(predict(self.truth[-1]), case.labels))
        self.prepare()

    def prepare(self) -> None:
        """Draws the lie."""

    # Audit

    def answer(self) -> tuple[Layers, int]:
        """``Z_1 … Z_L`` and N*, before any coin is known."""
        return self.truth, self.count

    def hint(self, s: Ints, r: Ints) -> tuple[Ints, int]:
        """The mask m and ``T = <m, u>``, when the public coins are known."""
        mask = self.uniform(self.case.dims[0])
        return mask, dot(mask, matmul(s, self.case.wide))

    def products(self, s: Ints, r: Ints, chi: int, mask: Ints, t: int) -> Ints:
        """``w = χ W_1 r + m``, when χ is known."""
        w: Ints = np.remainder(multiply(matmul(self.case.model.weights[0], r), chi) + mask, T)
        return w

    def encrypted_hint(self, mask: Ints, t: int) -> tuple[Ints, int]:
        """What the hint's ciphertext holds."""
        return mask, t

    # What was published

    def encrypted_features(self) -> Ints:
        return self.case.wide

    def encrypted_labels(self) -> Ints:
        """(C, I)"""
        classes = np.arange(self.case.dims[-1])[:, None]
        return np.asarray(self.case.labels[None, :] == classes).astype(np.int64)

    # Evaluation

    def first_layer(self) -> Ints:
        """What the pool gets as ``z_1``."""
        return self.truth[0]

    def fed_labels(self, chosen: Labels) -> Labels:
        """Her choices in the oblivious transfer. ``chosen``: the pool's predictions, which she does not know; a lie that does
        not change the count harms nobody, so liars look at them to make one that does."""
        return self.case.labels

    # Tools

    def uniform(self, count: int) -> Ints:
        return self.rng.integers(0, T, count)

    def one_off(self, values: Ints) -> Ints:
        """A copy with one entry by one up or down."""
        changed = values.copy()
        changed.reshape(-1)[self.rng.integers(changed.size)] += self.rng.choice([-1, 1])
        return changed

    def counted(self, z: Layers) -> tuple[Layers, int]:
        """With the N* that these layers give on the committed labels."""
        return z, int(count_correct(predict(z[-1]), self.case.labels))


# Audit: answers


class OneOff(Liar):
    layer = 0

    def prepare(self) -> None:
        self.z = list(self.truth)
        self.z[self.layer] = self.one_off(self.z[self.layer])

    def answer(self) -> tuple[Layers, int]:
        return self.counted(self.z)


class OneOffSecond(OneOff):
    layer = 1


class OneOffThird(OneOff):
    layer = 2


class AnyValue(OneOff):
    """One entry of any layer becomes anything in its range."""

    def prepare(self) -> None:
        self.z = [layer.copy() for layer in self.truth]
        number = int(self.rng.integers(len(self.z)))
        bound, flat = self.case.model.bounds()[number], self.z[number].reshape(-1)
        place = int(self.rng.integers(flat.size))
        old = int(flat[place])
        while int(flat[place]) == old:
            flat[place] = self.rng.integers(-bound, bound, endpoint=True)


class RowsSwapped(OneOff):
    def prepare(self) -> None:
        one, two = self.rng.choice(self.case.samples, 2, replace=False)
        order = np.arange(self.case.samples)
        order[[one, two]] = order[[two, one]]
        self.z = [layer[order] for layer in self.truth]


class RowsRotated(OneOff):
    def prepare(self) -> None:
        shift = int(self.rng.integers(1, self.case.samples))
        self.z = [np.roll(layer, shift, axis=0) for layer in self.truth]


class ColumnsSwapped(OneOff):
    def prepare(self) -> None:
        one, two = self.rng.choice(self.case.dims[1], 2, replace=False)
        self.z = [layer.copy() for layer in self.truth]
        self.z[0][:, [one, two]] = self.z[0][:, [two, one]]


class FirstLayerAndWhatFollows(OneOff):
    """Another Z_1, and everything after it computed from it."""

    def prepare(self) -> None:
        z = self.truth[0].copy()
        z[self.rng.integers(self.case.samples)] += int(self.rng.integers(1, 5000))
        self.z = list(self.case.model.forward_from(z)[0])


class SecondLayerAndWhatFollows(OneOff):
    def prepare(self) -> None:
        start, model = self.truth[1].copy(), self.case.model
        start[self.rng.integers(self.case.samples)] += int(self.rng.integers(1, 5000))
        rest = ScoredModel(ModelShape(model.shape.dims[1:], Activation.RELU, 10, (9,)), model.weights[1:], model.biases[1:])
        self.z = [self.truth[0], *rest.forward_from(start)[0]]


class OtherModel(OneOff):
    def prepare(self) -> None:
        self.other = new_model(self.rng, self.case.dims)
        self.z = list(self.other.forward(self.case.features)[0])


class OtherFeatures(OneOff):
    """One feature of one sample by one."""

    def prepare(self) -> None:
        features = self.case.features.copy()
        flat = features.reshape(-1)
        place = int(self.rng.integers(flat.size))
        flat[place] += -1 if flat[place] > 0 else 1
        while np.array_equal(z := self.case.model.first_layer(features), self.truth[0]):
            flat[self.rng.integers(flat.size)] = int(self.rng.integers(-127, 128))
        self.z = list(self.case.model.forward_from(z)[0])


class CountByOne(Liar):
    def answer(self) -> tuple[Layers, int]:
        return self.truth, self.count + (1 if self.count == 0 or self.rng.integers(2) else -1)


class AnyCount(Liar):
    def answer(self) -> tuple[Layers, int]:
        return self.truth, (self.count + int(self.rng.integers(1, self.case.samples + 1))) % (self.case.samples + 1)


class LabelsSwapped(Liar):
    """Two labels exchanged, so that N* differs; where no exchange does it, one label is changed."""

    def _labels(self, chosen: Labels) -> Labels:
        true = self.case.labels
        count = count_correct(chosen, true)
        for _ in range(30):
            one, two = self.rng.choice(len(true), 2, replace=False)
            labels = true.copy()
            labels[[one, two]] = labels[[two, one]]
            if count_correct(chosen, labels) != count:
                return labels
        return OneLabel(self.case, self.rng)._labels(chosen)

    def answer(self) -> tuple[Layers, int]:
        chosen = predict(self.truth[-1])
        return self.truth, int(count_correct(chosen, self._labels(chosen)))

    def fed_labels(self, chosen: Labels) -> Labels:
        return self._labels(chosen)


class OneLabel(LabelsSwapped):
    def _labels(self, chosen: Labels) -> Labels:
        labels, place = self.case.labels.copy(), int(self.rng.integers(self.case.samples))
        classes = self.case.dims[-1]
        labels[place] = chosen[place] if labels[place] != chosen[place] else (labels[place] + 1) % classes
        return labels


class LabelsRotated(LabelsSwapped):
    def _labels(self, chosen: Labels) -> Labels:
        true = self.case.labels
        count = count_correct(chosen, true)
        for shift in self.rng.permutation(np.arange(1, len(true))):
            labels = np.roll(true, int(shift))
            if count_correct(chosen, labels) != count:
                return labels
        return super()._labels(chosen)


class LabelsAllRight(LabelsSwapped):
    """As if every prediction were right; as if every one were wrong, where they are."""

    def _labels(self, chosen: Labels) -> Labels:
        all_right = self.count == self.case.samples
        return (chosen + 1) % self.case.dims[-1] if all_right else chosen.copy()


# Audit: hints and products


class WrongT(Liar):
    def encrypted_hint(self, mask: Ints, t: int) -> tuple[Ints, int]:
        return mask, (t + int(self.rng.choice([-1, 1]))) % T


class AnyT(Liar):
    def encrypted_hint(self, mask: Ints, t: int) -> tuple[Ints, int]:
        return mask, (t + int(self.rng.integers(1, T))) % T


class GuessedChallenge(FirstLayerAndWhatFollows):
    """A false Z_1, and a T that would hide it under a guessed χ."""

    def hint(self, s: Ints, r: Ints) -> tuple[Ints, int]:
        mask, t = super().hint(s, r)
        false = dot(matmul(s, self.z[0] - self.truth[0]), r)
        return mask, (t - int(self.rng.integers(T)) * false) % T


class ProductByOne(Liar):
    def products(self, s: Ints, r: Ints, chi: int, mask: Ints, t: int) -> Ints:
        return np.remainder(self.one_off(super().products(s, r, chi, mask, t)), T)


class AnyProducts(Liar):
    def products(self, s: Ints, r: Ints, chi: int, mask: Ints, t: int) -> Ints:
        return self.uniform(len(mask))


class ZeroProducts(Liar):
    def products(self, s: Ints, r: Ints, chi: int, mask: Ints, t: int) -> Ints:
        return np.zeros_like(mask)


class ProductsWithoutModel(Liar):
    """``w = m``."""

    def products(self, s: Ints, r: Ints, chi: int, mask: Ints, t: int) -> Ints:
        return mask


class OtherChallenge(Liar):
    def products(self, s: Ints, r: Ints, chi: int, mask: Ints, t: int) -> Ints:
        return super().products(s, r, (chi + 1) % T, mask, t)


class OtherModelThroughout(OtherModel):
    """Z, N* and w of one and the same other model."""

    def products(self, s: Ints, r: Ints, chi: int, mask: Ints, t: int) -> Ints:
        w: Ints = np.remainder(multiply(matmul(self.other.weights[0], r), chi) + mask, T)
        return w


class FittedProducts(FirstLayerAndWhatFollows):
    """A false Z_1, and w moved until ``<w, u>`` is what the equation of layer one asks for."""

    def products(self, s: Ints, r: Ints, chi: int, mask: Ints, t: int) -> Ints:
        w = super().products(s, r, chi, mask, t)
        u = matmul(s, self.case.wide)
        owed = chi * dot(matmul(s, self.z[0] - self.truth[0]), r)
        place = int(np.flatnonzero(u)[0])
        w[place] = (int(w[place]) + owed * pow(int(u[place]), -1, T)) % T
        return w


class OtherMask(Liar):
    """The hint's mask is not the one in w."""

    def encrypted_hint(self, mask: Ints, t: int) -> tuple[Ints, int]:
        return np.remainder(self.one_off(mask), T), t


class ProductsAndT(AnyProducts):
    def encrypted_hint(self, mask: Ints, t: int) -> tuple[Ints, int]:
        return mask, (t + int(self.rng.integers(1, T))) % T


class HintUnderAnotherKey(Liar):
    hint_key_is_another = True

    def encrypted_hint(self, mask: Ints, t: int) -> tuple[Ints, int]:
        return self.uniform(len(mask)), int(self.rng.integers(T))


class FeaturesUnderAnotherKey(Liar):
    features_key_is_another = True

    def prepare(self) -> None:
        self.other = self.uniform(self.case.features.size).reshape(self.case.features.shape)

    def encrypted_features(self) -> Ints:
        return self.other
