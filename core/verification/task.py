"""What every party of a task's verification knows: ids, sizes, and which public randomness belongs to what."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np

from core.chain import merkle
from core.chain.transaction import TaskSpec
from core.crypto.hashing import digest
from core.crypto.homomorphic.keys import PublicKey
from core.crypto.homomorphic.params import PARAMS, Ints
from core.errors import LimitError, MalformedError
from core.ids import AccountId, Digest, TaskId
from core.verification.body import MAX_PARAMETERS
from core.verification.noise import check_noise
from core.verification.regression import check_buckets
from core.verification.scored_model import ModelFamily

__all__ = ["PublicKind", "TaskContext", "batches_of", "check_spec", "key_context", "public_context", "DOMAIN_PUBLIC"]

DOMAIN_PUBLIC: Final = b"pofl/verify/public-randomness/1"
MAX_SAMPLES: Final = 1 << 17
MAX_ROWS: Final = 512
"""Rows of the encrypted test set, M + C: one blob each."""


class PublicKind(IntEnum):
    """What a public polynomial is for; two kinds never share one."""

    KEY = 1
    FEATURE = 2
    LABEL = 3
    HINT = 4


def public_context(chain_id: Digest, task_id: TaskId, kind: PublicKind, index: int = 0, session: bytes = b"") -> bytes:
    """The context of ``expand_uniform`` for one ciphertext row: nobody chooses a ``c1``, and none repeats."""
    return digest(DOMAIN_PUBLIC, chain_id, task_id, bytes([kind]), index.to_bytes(4, "big"), session)


def key_context(chain_id: Digest, task_id: TaskId) -> bytes:
    """The context of the public key's ``a``."""
    return public_context(chain_id, task_id, PublicKind.KEY)


def batches_of(samples: int) -> int:
    """B: ciphertexts in a row; sample i is coefficient ``i mod N`` of batch ``i div N``."""
    return -(-samples // PARAMS.degree)


@dataclass(frozen=True, slots=True)
class TaskContext:
    """A published task."""

    chain_id: Digest
    task_id: TaskId
    requester: AccountId
    spec: TaskSpec

    @property
    def family(self) -> ModelFamily:
        return ModelFamily.of(self.spec)

    @property
    def samples(self) -> int:
        """I."""
        return self.spec.samples

    @property
    def features(self) -> int:
        """M."""
        return self.spec.features

    @property
    def classes(self) -> int:
        """C."""
        return self.spec.classes

    @property
    def first_width(self) -> int:
        """K = d_1."""
        return self.family.dims[1]

    @property
    def batches(self) -> int:
        """B."""
        return batches_of(self.spec.samples)

    @property
    def label_bits(self) -> int:
        """Bits of a label in the comparison circuit, at least 1."""
        return max(1, (self.spec.classes - 1).bit_length())

    @property
    def row_bytes(self) -> int:
        """Size of one blob of the encrypted test set."""
        return self.batches * PARAMS.poly_bytes

    def public(self, kind: PublicKind, index: int = 0, session: bytes = b"") -> bytes:
        return public_context(self.chain_id, self.task_id, kind, index, session)

    def public_key(self, blob: bytes) -> PublicKey:
        """The requester's key from its blob, with ``a`` from this task's own context. Raises MalformedError, LimitError."""
        return PublicKey.from_bytes(blob, key_context(self.chain_id, self.task_id))

    def spread(self, values: Ints) -> Ints:
        """(..., I) as batches (..., B, N), padding zero."""
        out = np.zeros((*values.shape[:-1], self.batches * PARAMS.degree), dtype=np.int64)
        out[..., : self.samples] = values
        return out.reshape(*values.shape[:-1], self.batches, PARAMS.degree)

    def gather(self, batches: Ints) -> Ints:
        """(..., B, N) back to (..., I); padding is dropped."""
        flat = batches.reshape(*batches.shape[:-2], self.batches * PARAMS.degree)
        return np.ascontiguousarray(flat[..., : self.samples])


def check_spec(spec: TaskSpec) -> None:
    """What the verification protocol asks of a task at publication.

    Raises:
        LimitError: more samples or rows than the protocol carries, or a family that cannot be scored exactly.
        MalformedError: blobs that do not match the sizes or the root.
    """
    family = ModelFamily.of(spec)
    if not 1 <= spec.samples <= MAX_SAMPLES:
        raise LimitError(f"a test set has 1 to {MAX_SAMPLES} samples, got {spec.samples}")
    if spec.classes < 2 or spec.features + spec.classes > MAX_ROWS:
        raise LimitError(
            f"{spec.features} features and {spec.classes} classes: at least 2 classes, at most {MAX_ROWS} rows in all"
        )
    if spec.features >= PARAMS.degree:
        raise LimitError(f"{spec.features} features do not fit one hint of {PARAMS.degree} coefficients")
    if spec.cuts_micro:
        check_buckets(family)
    if family.parameters > MAX_PARAMETERS:
        raise LimitError(
            f"{family.parameters} parameters, the encrypted model of a block holds {MAX_PARAMETERS}: use narrower layers"
        )
    check_noise(family.dims, family.parameters, spec.samples)
    if len(spec.test_blobs) != spec.features + spec.classes:
        raise MalformedError(f"{len(spec.test_blobs)} test blobs for {spec.features} features and {spec.classes} classes")
    if merkle.root(spec.test_blobs) != spec.test_root:
        raise MalformedError("the test root is not the root of the listed blobs")
