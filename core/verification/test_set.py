"""The encrypted test set: ``c0`` of every row as a blob; ``c1`` is public randomness (design: verification, section 2).

Row j < M holds feature j of every sample, row M + c is 1 where the label is c. One blob is one row: B ciphertexts, packed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from core.chain import merkle
from core.crypto.homomorphic import (
    PARAMS,
    Residues,
    Rows,
    RowsBuilder,
    SecretKey,
    encrypt_symmetric,
    expand_uniform,
    pack,
    unpack,
)
from core.crypto.homomorphic.fourier import Spectra, spectra
from core.crypto.homomorphic.ntt import to_ntt
from core.crypto.homomorphic.params import Ints
from core.errors import CryptoError, MalformedError
from core.ids import Digest, TaskId
from core.ports import Rng
from core.verification.field import Floats, T
from core.verification.scored_model import Features, Labels, check_features
from core.verification.task import PublicKind, TaskContext, batches_of, public_context

__all__ = ["EncryptedTestSet", "TestSet", "encrypt_test_set"]

KEPT_SPECTRA: Final = 256
"""Label ciphertexts whose spectra are kept: 393 kB each."""


@dataclass(frozen=True, eq=False)
class TestSet:
    """The requester's secret: int8 features of shape (I, M), labels of shape (I,) in [0, C)."""

    __test__ = False  # not a test case, whatever its name suggests to pytest

    features: Features
    labels: Labels
    classes: int

    def __post_init__(self) -> None:
        """Raises MalformedError for a feature or label out of range."""
        check_features(self.features, self.features.shape[-1])
        if self.labels.shape != self.features.shape[:1] or not len(self.labels):
            raise MalformedError(f"{self.labels.shape} labels for {self.features.shape} features")
        if int(self.labels.min()) < 0 or int(self.labels.max()) >= self.classes:
            raise MalformedError(f"labels are 0 to {self.classes - 1}, got {self.labels.min()} to {self.labels.max()}")

    @property
    def samples(self) -> int:
        return len(self.labels)

    @cached_property
    def floats(self) -> Floats:
        """The features as float64 (I, M), for exact products with field.matmul_small."""
        return self.features.astype(np.float64)

    def rows(self) -> Ints:
        """(M + C, I): features, then one-hot labels."""
        one_hot = (self.labels[None, :] == np.arange(self.classes)[:, None]).astype(np.int64)
        return np.concatenate([self.features.T.astype(np.int64), one_hot])


def encrypt_test_set(
    sk: SecretKey, chain_id: Digest, task_id: TaskId, test_set: TestSet, rng: Rng
) -> tuple[tuple[bytes, ...], tuple[Digest, ...], Digest]:
    """``(blobs, their digests, test_root)``: what the task publishes. Once per task: the public ``c1`` must not repeat."""
    rows = test_set.rows()
    count, batches = len(rows), batches_of(test_set.samples)
    flat = np.zeros((count, batches * PARAMS.degree), dtype=np.int64)
    flat[:, : test_set.samples] = np.remainder(rows, T)
    plain = flat.reshape(count, batches, PARAMS.degree)
    blobs = []
    for row in range(count):
        kind, index = _kind_of(row, test_set.features.shape[1])
        context = public_context(chain_id, task_id, kind, index)
        blobs.append(pack(encrypt_symmetric(sk, context, plain[row], rng)))
    digests = tuple(Digest(hashlib.sha256(blob).digest()) for blob in blobs)
    return tuple(blobs), digests, merkle.root(digests)


def _kind_of(row: int, features: int) -> tuple[PublicKind, int]:
    return (PublicKind.FEATURE, row) if row < features else (PublicKind.LABEL, row - features)


@dataclass(frozen=True, eq=False)
class EncryptedTestSet:
    """The test set as pools and nodes hold it: ``A[j, b]`` and ``Y[c, b]``, each half on its own."""

    rows0: tuple[Rows, ...]
    """``c0`` of all features, one for each batch."""
    rows1: tuple[Rows, ...]
    labels0: Residues
    """``c0`` of ``Y[c, b]``, shape (B, C, L, N)."""
    labels1: Residues

    @classmethod
    def load(cls, task: TaskContext, blobs: Sequence[bytes]) -> EncryptedTestSet:
        """Checks every blob against the task and unpacks it.

        Raises:
            CryptoError: a blob is not the one that the task lists.
            MalformedError, LimitError: a blob of another size, or a residue that is not below its prime.
        """
        listed, m = task.spec.test_blobs, task.features
        if len(blobs) != len(listed):
            raise MalformedError(f"{len(blobs)} blobs, the task lists {len(listed)}")

        def unpacked(rows: range) -> Iterator[tuple[Residues, Residues]]:
            for row in rows:
                if hashlib.sha256(blobs[row]).digest() != listed[row]:
                    raise CryptoError(f"blob {row} of the test set is not the one that the task lists", row=row)
                context = task.public(*_kind_of(row, m))
                yield unpack(blobs[row], task.batches), expand_uniform(PARAMS, context, task.batches)

        features = [[RowsBuilder(m) for _ in range(task.batches)] for _ in range(2)]
        for pair in unpacked(range(m)):
            for builders, half in zip(features, pair, strict=True):
                for builder, polynomial in zip(builders, half, strict=True):
                    builder.add(polynomial)
        labels = list(unpacked(range(m, len(listed))))
        rows0, rows1 = (tuple(builder.rows() for builder in builders) for builders in features)
        labels0, labels1 = (np.stack([pair[half] for pair in labels], axis=1) for half in range(2))
        made = cls(rows0, rows1, labels0, labels1)
        # Now, with the tables of roots that every check needs, and not during the first one.
        made._kept_spectra  # noqa: B018
        to_ntt(np.zeros((1, PARAMS.degree), dtype=np.int64), PARAMS)
        return made

    def label_spectra(self, index: int) -> Spectra:
        """Of ``c1`` of one ``Y[c, b]``, index ``b C + c``."""
        return spectra(self._flat_labels1[index]) if self._kept_spectra is None else self._kept_spectra[index]

    @cached_property
    def _kept_spectra(self) -> Spectra | None:
        """Of all labels, for all checks of a task, where they do not take too much memory."""
        return spectra(self._flat_labels1) if len(self._flat_labels1) <= KEPT_SPECTRA else None

    @property
    def _flat_labels1(self) -> Residues:
        return self.labels1.reshape(-1, *self.labels1.shape[2:])

    @property
    def features0(self) -> Residues:
        """``c0`` of ``A[j, b]``, shape (B, M, L, N): a copy each time, for whoever wants to look at single rows."""
        return np.stack([rows.residues() for rows in self.rows0])

    @property
    def features1(self) -> Residues:
        return np.stack([rows.residues() for rows in self.rows1])
