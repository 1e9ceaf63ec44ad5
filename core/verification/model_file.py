"""A scored model as bytes: what the requester keeps and hands to her owner, and what ``pofl model fetch`` writes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Final

import numpy as np

from core.chain.block import MAX_VM_BODY
from core.chain.transaction import MAX_CUTS
from core.codec import I64, U64, Fixed, Seq, Var, decode, encode
from core.errors import MalformedError
from core.verification.scored_model import ModelShape, ScoredModel

__all__ = ["MAX_MODEL_FILE", "TaskModel", "dump_model", "dump_task_model", "load_model", "load_task_model"]

MAGIC: Final = b"pofl/model/1"
TASK_MAGIC: Final = b"pofl/model/2"
MAX_MODEL_FILE: Final = MAX_VM_BODY + 8 * MAX_CUTS + 2048


@dataclass(frozen=True, slots=True, eq=False)
class TaskModel:
    """A model, and how its task turns floats into features and, of a regression, targets into buckets."""

    model: ScoredModel
    feature_scale_micro: int
    """int8 feature = round(x * this / 10^6); 0: not known."""
    cuts_micro: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Raises MalformedError unless the cut points are as many as the model's classes ask, and rise."""
        classes = self.model.shape.dims[-1]
        if self.cuts_micro and (len(self.cuts_micro) != classes - 1 or any(b <= a for a, b in pairwise(self.cuts_micro))):
            raise MalformedError(
                f"a model of {classes} buckets has {classes - 1} rising cut points, got {len(self.cuts_micro)}"
            )


@dataclass(frozen=True, slots=True)
class _TaskModelFile:
    magic: Annotated[bytes, Fixed(len(TASK_MAGIC))]
    feature_scale_micro: Annotated[int, U64]
    cuts_micro: Annotated[tuple[int, ...], Seq(I64, MAX_CUTS)]
    model: Annotated[bytes, Var(MAX_VM_BODY + 1024)]


@dataclass(frozen=True, slots=True)
class _ModelFile:
    magic: Annotated[bytes, Fixed(len(MAGIC))]
    shape: ModelShape
    values: Annotated[bytes, Var(MAX_VM_BODY)]
    """Weights and biases in the order of the Vm body, big-endian int32."""


def dump_model(model: ScoredModel) -> bytes:
    """The canonical bytes of a model."""
    return encode(_ModelFile(MAGIC, model.shape, model.encode().astype(">i4").tobytes()))


def load_model(data: bytes) -> ScoredModel:
    """The checked model of a file. Raises MalformedError or LimitError."""
    stored = decode(_ModelFile, data, MAX_MODEL_FILE)
    if stored.magic != MAGIC:
        raise MalformedError("these bytes are no PoFL model")
    if len(stored.values) % 4:
        raise MalformedError(f"{len(stored.values)} bytes are no whole number of values of 4 bytes")
    return ScoredModel.decode(stored.shape, np.frombuffer(stored.values, ">i4").astype(np.int64))


def dump_task_model(stored: TaskModel) -> bytes:
    """The canonical bytes of a model with what its task says of features and targets."""
    return encode(_TaskModelFile(TASK_MAGIC, stored.feature_scale_micro, stored.cuts_micro, dump_model(stored.model)))


def load_task_model(data: bytes) -> TaskModel:
    """What dump_task_model or dump_model wrote. Raises MalformedError or LimitError."""
    if data[: len(MAGIC)] == MAGIC:
        return TaskModel(load_model(data), 0)
    stored = decode(_TaskModelFile, data, MAX_MODEL_FILE)
    if stored.magic != TASK_MAGIC:
        raise MalformedError("these bytes are no PoFL model")
    return TaskModel(load_model(stored.model), stored.feature_scale_micro, stored.cuts_micro)
