"""A scored model as bytes: what the requester keeps and hands to her owner, and what ``pofl model fetch`` writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

import numpy as np

from core.chain.block import MAX_VM_BODY
from core.codec import Fixed, Var, decode, encode
from core.errors import MalformedError
from core.verification.scored_model import ModelShape, ScoredModel

__all__ = ["MAX_MODEL_FILE", "dump_model", "load_model"]

MAGIC: Final = b"pofl/model/1"
MAX_MODEL_FILE: Final = MAX_VM_BODY + 1024


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
