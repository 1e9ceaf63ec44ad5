"""The liars who plant ciphertexts, or lie to a pool or about labels at publication; and the list of all kinds of lies.

``AUDIT_LIES``, ``EVALUATION_LIES`` and ``STORED_LIES`` map the name of a kind to its class in bench.lies_told or here.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.lies_told import (
    AnyCount,
    AnyProducts,
    AnyT,
    AnyValue,
    Case,
    ColumnsSwapped,
    CountByOne,
    FeaturesUnderAnotherKey,
    FirstLayerAndWhatFollows,
    FittedProducts,
    GuessedChallenge,
    HintUnderAnotherKey,
    LabelsAllRight,
    LabelsRotated,
    LabelsSwapped,
    Layers,
    Liar,
    OneLabel,
    OneOff,
    OneOffSecond,
    OneOffThird,
    OtherChallenge,
    OtherFeatures,
    OtherMask,
    OtherModel,
    OtherModelThroughout,
    Plant,
    PlantKind,
    ProductByOne,
    ProductsAndT,
    ProductsWithoutModel,
    RowsRotated,
    RowsSwapped,
    SecondLayerAndWhatFollows,
    WrongT,
    ZeroProducts,
)
from core.crypto.homomorphic.params import Ints
from core.verification.activations import apply
from core.verification.field import T
from core.verification.scored_model import Labels, predict

__all__ = ["AUDIT_LIES", "EVALUATION_LIES", "STORED_LIES"]

# Planted ciphertexts


class HalfFeature(Liar):
    """She answers for the features without the fraction."""

    kind, size = PlantKind.FEATURE, Fraction(1, 2)

    def prepare(self) -> None:
        case = self.case
        row = int(self.rng.integers(case.samples))
        place = {
            PlantKind.FEATURE: (row, int(self.rng.integers(case.dims[0]))),
            PlantKind.LABEL: (row, int(predict(self.truth[-1])[row])),
            PlantKind.MODEL: (0, int(self.rng.integers(len(case.model.encode())))),
            PlantKind.HINT: (0, int(self.rng.integers(case.dims[0]))),
        }[self.kind]
        self.plants = (Plant(self.kind, place, self.size),)


class ThirdFeature(HalfFeature):
    size = Fraction(1, 3)


class HalfFeatureRounded(HalfFeature):
    """She answers for the features with the half, Z rounded: a lie wherever a weight is odd."""

    def prepare(self) -> None:
        while True:
            super().prepare()
            row, feature = self.plants[0].place
            weights = self.case.model.weights[0][feature]
            if (weights % 2).any():
                break
        z = self.truth[0].copy()
        z[row] += weights // 2
        self.z = list(self.case.model.forward_from(z)[0])

    def answer(self) -> tuple[Layers, int]:
        return self.counted(self.z)

    def first_layer(self) -> Ints:
        return self.z[0]


class NoisyFeatures(HalfFeature):
    """As much noise as still decrypts, in three places."""

    def prepare(self) -> None:
        found: list[Plant] = []
        for _ in range(3):
            super().prepare()
            found.append(Plant(self.kind, self.plants[0].place, Fraction(int(self.rng.integers(1, 1 << 19)), 1 << 20)))
        self.plants = tuple(found)


class HalfLabel(HalfFeature):
    """A half in the label of a prediction, and N* rounded up."""

    kind = PlantKind.LABEL

    def answer(self) -> tuple[Layers, int]:
        return self.truth, self.count + 1 if self.count < self.case.samples else self.count - 1

    def fed_labels(self, chosen: Labels) -> Labels:
        return OneLabel(self.case, self.rng)._labels(chosen)


class ThirdLabel(HalfLabel):
    size = Fraction(1, 3)


class NoisyLabels(NoisyFeatures):
    kind = PlantKind.LABEL

    def answer(self) -> tuple[Layers, int]:
        return self.truth, self.count + 1 if self.count < self.case.samples else self.count - 1


class HalfWeight(HalfFeature):
    """With the pool's help: a body half way between two models, scored as one of them. The weight counts in some row: one
    whose neuron is silent in all of them changes nothing, and is no lie."""

    kind = PlantKind.MODEL

    def prepare(self) -> None:
        silent = _silent(self.case, self.truth)
        while True:
            super().prepare()
            if not silent[self.plants[0].place[1]]:
                return


def _silent(case: Case, z: Layers) -> NDArray[np.bool_]:
    """For each place of the model's encoding: whether it is a weight whose input is 0 in every row."""
    shape = case.model.shape
    found = []
    inputs = [case.features, *(apply(shape.activation, one, shift) for one, shift in zip(z, shape.shifts, strict=False))]
    for rows, weights in zip(inputs, case.model.weights, strict=True):
        found += [np.repeat(~rows.any(axis=0), weights.shape[1]), np.zeros(weights.shape[1], dtype=bool)]
    return np.concatenate(found)


class ThirdWeight(HalfWeight):
    size = Fraction(1, 3)


class HalfMask(HalfFeature):
    kind = PlantKind.HINT


class ThirdT(HalfMask):
    def prepare(self) -> None:
        self.plants = (Plant(PlantKind.HINT, (0, self.case.dims[0]), Fraction(1, 3)),)


# Evaluation


class ShiftedAnswer(Liar):
    """V, hence the pool's z_1, with one entry by one."""

    def prepare(self) -> None:
        self.first = self.one_off(self.truth[0])

    def first_layer(self) -> Ints:
        return self.first


class AnyAnswer(ShiftedAnswer):
    def prepare(self) -> None:
        self.first = self.truth[0].copy()
        self.first[self.rng.integers(self.case.samples)] += int(self.rng.integers(1, 100_000))


class AnswerRowsSwapped(ShiftedAnswer):
    def prepare(self) -> None:
        one, two = self.rng.choice(self.case.samples, 2, replace=False)
        self.first = self.truth[0].copy()
        self.first[[one, two]] = self.first[[two, one]]


class AnswerColumnsSwapped(ShiftedAnswer):
    def prepare(self) -> None:
        one, two = self.rng.choice(self.case.dims[1], 2, replace=False)
        self.first = self.truth[0].copy()
        self.first[:, [one, two]] = self.first[:, [two, one]]


class AnswerForOtherFeatures(ShiftedAnswer):
    def prepare(self) -> None:
        self.first = OtherFeatures(self.case, self.rng).z[0]


# Stored check


class OneHotLie(Liar):
    column: tuple[int, ...] = (1, 1, 0)

    def encrypted_labels(self) -> Ints:
        labels = super().encrypted_labels()
        labels[:, self.rng.integers(self.case.samples)] = np.array(self.column)
        return labels


class NoLabel(OneHotLie):
    column = (0, 0, 0)


class DoubleLabel(OneHotLie):
    column = (0, 2, 0)


class InverseOfTwo(OneHotLie):
    column = (pow(2, -1, T), 0, 0)


class NegativeLabel(OneHotLie):
    column = (0, -1, 0)


AUDIT_LIES: Final[dict[str, type[Liar]]] = {
    "audit: one z of layer 1 by one": OneOff,
    "audit: one z of layer 2 by one": OneOffSecond,
    "audit: one z of layer 3 by one": OneOffThird,
    "audit: one z of any layer by anything": AnyValue,
    "audit: two rows of Z exchanged": RowsSwapped,
    "audit: rows of Z rotated": RowsRotated,
    "audit: two columns of Z_1 exchanged": ColumnsSwapped,
    "audit: another Z_1 and what follows from it": FirstLayerAndWhatFollows,
    "audit: another Z_2 and what follows from it": SecondLayerAndWhatFollows,
    "audit: Z of another model": OtherModel,
    "audit: Z of other features": OtherFeatures,
    "audit: N* by one": CountByOne,
    "audit: any N*": AnyCount,
    "audit: N* of two labels exchanged": LabelsSwapped,
    "audit: N* of one other label": OneLabel,
    "audit: N* of rotated labels": LabelsRotated,
    "audit: N* as if all were right": LabelsAllRight,
    "audit: T by one": WrongT,
    "audit: any T": AnyT,
    "audit: T for a guessed challenge, another Z_1": GuessedChallenge,
    "audit: w by one": ProductByOne,
    "audit: any w": AnyProducts,
    "audit: w zero": ZeroProducts,
    "audit: w without the model": ProductsWithoutModel,
    "audit: w under another challenge": OtherChallenge,
    "audit: w and Z of another model": OtherModelThroughout,
    "audit: w fitted to another Z_1": FittedProducts,
    "audit: another mask in the hint": OtherMask,
    "audit: any w and any T": ProductsAndT,
    "audit: hint under another key": HintUnderAnotherKey,
    "audit: features under another key": FeaturesUnderAnotherKey,
    "audit: 1/2 in a feature": HalfFeature,
    "audit: 1/3 in a feature": ThirdFeature,
    "audit: 1/2 in a feature, Z rounded": HalfFeatureRounded,
    "audit: noise near the limit in features": NoisyFeatures,
    "audit: 1/2 in a label, N* by one": HalfLabel,
    "audit: 1/3 in a label, N* by one": ThirdLabel,
    "audit: noise near the limit in labels, N* by one": NoisyLabels,
    "audit: 1/2 in a weight": HalfWeight,
    "audit: 1/3 in a weight": ThirdWeight,
    "audit: 1/2 in the hint's mask": HalfMask,
    "audit: 1/3 in the hint's T": ThirdT,
}
EVALUATION_LIES: Final[dict[str, type[Liar]]] = {
    "evaluation: one z_1 by one": ShiftedAnswer,
    "evaluation: one row of z_1 by anything": AnyAnswer,
    "evaluation: two rows of z_1 exchanged": AnswerRowsSwapped,
    "evaluation: two columns of z_1 exchanged": AnswerColumnsSwapped,
    "evaluation: z_1 of other features": AnswerForOtherFeatures,
    "evaluation: two labels exchanged": LabelsSwapped,
    "evaluation: one other label": OneLabel,
    "evaluation: rotated labels": LabelsRotated,
    "evaluation: labels as if all were right": LabelsAllRight,
    "evaluation: features under another key": FeaturesUnderAnotherKey,
    "evaluation: 1/2 in a feature": HalfFeature,
    "evaluation: 1/2 in a feature, z_1 rounded": HalfFeatureRounded,
    "evaluation: noise near the limit in features": NoisyFeatures,
    "evaluation: 1/2 in a label, another label fed": HalfLabel,
}
STORED_LIES: Final[dict[str, type[Liar]]] = {
    "stored: two classes": OneHotLie,
    "stored: no class": NoLabel,
    "stored: a class twice": DoubleLabel,
    "stored: the inverse of two": InverseOfTwo,
    "stored: minus one": NegativeLabel,
    "stored: 1/2 in a label": HalfLabel,
    "stored: 1/3 in a label": ThirdLabel,
    "stored: noise near the limit in labels": NoisyLabels,
}
