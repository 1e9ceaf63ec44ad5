"""What travels between manager and miner inside a Flower message: one blob each way, in the canonical encoding.

Numbers that are real travel as IEEE doubles in eight bytes, vectors as little-endian float32. The instruction is
public to the miners of the pool. The update is sealed (HPKE, RFC 9180) to the pool's key under UpdateContext, so that
it can be opened only as this miner's answer to this instruction of this round, and signed with the miner's node key:
HPKE in base mode does not say who sealed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from core.codec import U8, U16, U32, U64, Codec, Enum, Fixed, Reader, Record, Seq, Text, Var, decode, encode
from core.crypto import sealing
from core.errors import CryptoError, MalformedError
from pool.flower import keys

__all__ = [
    "MAX_RECEIPTS", "MAX_VECTOR_BYTES", "Answer", "Instruction", "Outcome", "Receipt", "Update", "UpdateContext",
    "open_update", "seal_update", "vector_from_bytes", "vector_to_bytes",
]  # fmt: skip

MAX_VECTOR_BYTES = 400_000_000
MAX_RECEIPTS = 1024
UPDATE_LABEL = b"pofl/mining/update/v1"
ANSWER_LABEL = b"pofl/mining/answer/v1"


class _Double:
    """A finite or infinite IEEE double, big-endian."""

    def write(self, out: bytearray, value: float) -> None:
        out += struct.pack(">d", value)

    def read(self, reader: Reader) -> Any:
        return struct.unpack(">d", reader.take(8))[0]


DOUBLE: Codec = _Double()


@dataclass(frozen=True, slots=True)
class Receipt:
    """What an earlier round counted for one miner: accepted examples, capped like its weight, or none and the reason."""

    miner: Annotated[bytes, Fixed(keys.NODE_KEY_BYTES)]
    round: Annotated[int, U32]
    examples: Annotated[int, U64]
    reason: Annotated[str, Text(400)]


@dataclass(frozen=True, slots=True)
class Instruction:
    """Manager to miner: train this model on your rows of this task.

    ``budget_s`` is relative (clocks differ); ``vector`` holds the current weights. ``receipts`` are those of the round
    before, for all to see: payouts follow them, so each miner can check its own and everybody's share.
    """

    job_id: Annotated[bytes, Fixed(32)]
    round: Annotated[int, U32]
    features: Annotated[int, U32]
    classes: Annotated[int, U32]
    hidden: Annotated[tuple[int, ...], Seq(U32, 16)]
    activation: Annotated[str, Text(16)]
    optimizer: Annotated[str, Text(16)]
    local_epochs: Annotated[int, U16]
    learning_rate: Annotated[float, DOUBLE]
    batch: Annotated[int, U32]
    seed: Annotated[int, U64]
    budget_s: Annotated[float, DOUBLE]
    receipts: Annotated[tuple[Receipt, ...], Seq(Record(Receipt), MAX_RECEIPTS)]
    vector: Annotated[bytes, Var(MAX_VECTOR_BYTES)]


class Outcome(IntEnum):
    TRAINED = 0
    NO_DATA = 1
    FAILED = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """Miner to manager. ``sealed`` is an Update for TRAINED, else empty; ``reason`` says why there is none."""

    outcome: Annotated[Outcome, Enum(Outcome)]
    reason: Annotated[str, Text(512)]
    sealed: Annotated[bytes, Var(MAX_VECTOR_BYTES + 4096)]
    signature: Annotated[bytes, Var(80)]


@dataclass(frozen=True, slots=True)
class Update:
    """What the manager opens: examples trained on, mean loss, weights after minus weights before."""

    examples: Annotated[int, U64]
    loss: Annotated[float, DOUBLE]
    steps: Annotated[int, U32]
    milliseconds: Annotated[int, U32]
    version: Annotated[int, U8]
    vector: Annotated[bytes, Var(MAX_VECTOR_BYTES)]


@dataclass(frozen=True, slots=True)
class UpdateContext:
    """HPKE ``info``: which run, instruction, miner and round an update belongs to, so that none is replayed or swapped."""

    label: Annotated[bytes, Fixed(len(UPDATE_LABEL))]
    run_id: Annotated[int, U64]
    instruction_id: Annotated[str, Text(128)]
    miner: Annotated[bytes, Fixed(keys.NODE_KEY_BYTES)]
    round: Annotated[int, U32]


def context(run_id: int, instruction_id: str, miner: bytes, round_number: int) -> bytes:
    return encode(UpdateContext(UPDATE_LABEL, run_id, instruction_id, miner, round_number))


def seal_update(update: Update, pool_key: bytes, info: bytes, signer: Any) -> Answer:
    """Seal ``update`` to the pool's HPKE key and sign the ciphertext. ``signer``: the node's private key object."""
    sealed = sealing.seal(pool_key, encode(update), info, b"")
    return Answer(Outcome.TRAINED, "", sealed, keys.sign(signer, ANSWER_LABEL + info + sealed))


def open_update(answer: Answer, pool_private: bytes, info: bytes, miner: bytes) -> Update:
    """Check the signature, open, decode.

    Raises CryptoError (another miner, instruction, round or key, or changed bytes) or MalformedError.
    """
    keys.verify(miner, ANSWER_LABEL + info + answer.sealed, answer.signature)
    try:
        plaintext = sealing.open_(pool_private, answer.sealed, info, b"")
    except CryptoError as error:
        raise CryptoError(f"the update does not open: {error.message}") from None
    return decode(Update, plaintext)


def vector_to_bytes(vector: NDArray[np.float64]) -> bytes:
    return vector.astype("<f4").tobytes()


def vector_from_bytes(data: bytes, count: int) -> NDArray[np.float64]:
    """``count`` float32 values as float64. Raises MalformedError for any other length; values are not judged here."""
    if len(data) != 4 * count:
        raise MalformedError(f"{len(data)} bytes of weights, the model has {count} parameters ({4 * count} bytes)")
    return np.frombuffer(data, dtype="<f4").astype(np.float64)
