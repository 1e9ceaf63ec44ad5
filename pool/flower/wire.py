"""What travels between manager and miner inside a Flower message: one blob each way, in the canonical encoding.

Numbers that are real travel as IEEE doubles in eight bytes, vectors of weights as little-endian float32, updates in the
Precision that the instruction asks for. The instruction is public to the miners of the pool. The update is sealed (HPKE, RFC
9180) to the pool's key under UpdateContext, so that it can be opened only as this miner's answer to this instruction of this
round, and signed with the miner's node key: HPKE in base mode does not say who sealed.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from core.codec import U8, U16, U32, U64, Codec, Enum, Fixed, Reader, Seq, Text, Var, decode, encode
from core.crypto import sealing
from core.errors import CryptoError, MalformedError
from pool.flower import keys

__all__ = [
    "MAX_VECTOR_BYTES", "Answer", "Instruction", "Outcome", "Precision", "Update", "UpdateContext",
    "context", "delta_from", "delta_to_bytes", "open_bytes", "open_update", "seal_bytes", "seal_update", "vector_from_bytes",
    "vector_to_bytes",
]  # fmt: skip

MAX_VECTOR_BYTES = 400_000_000
UPDATE_LABEL = b"pofl/mining/update/v1"
ANSWER_LABEL = b"pofl/mining/answer/v1"
MAX_FLOAT32 = float(np.finfo(np.float32).max)
HALF_EXPONENT = 15
"""Half floats hold magnitudes below 2^16: the largest value of an update is brought below 2^15."""
TOP_EXPONENT = 128 - HALF_EXPONENT
"""Of an update whose largest value is 2^127 or more."""
LARGEST_SCALED = 2.0**HALF_EXPONENT - 2.0 ** (HALF_EXPONENT - 11)
"""The greatest half float below 2^15."""
MAX_EXPONENT = 170
"""The smallest float32 is 2^-149, the largest below 2^128: no honest power of two is further from 0."""


class _Double:
    """A finite or infinite IEEE double, big-endian."""

    def write(self, out: bytearray, value: float) -> None:
        out += struct.pack(">d", value)

    def read(self, reader: Reader) -> Any:
        return struct.unpack(">d", reader.take(8))[0]


DOUBLE: Codec = _Double()


class Precision(IntEnum):
    """How the numbers of an update travel."""

    FLOAT32 = 1
    FLOAT16 = 2
    """Half the bytes: one power of two for all, then IEEE half floats (docs/adr/0091)."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """Manager to miner: train this model on your rows of this task.

    ``budget_s`` is relative (clocks differ); ``vector`` holds the current weights. ``kind``: of the model (model_spec.KINDS).
    ``shift`` and ``scale``: of the targets of a regression.
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
    vector: Annotated[bytes, Var(MAX_VECTOR_BYTES)]
    kind: Annotated[str, Text(16)] = "dense"
    shift: Annotated[float, DOUBLE] = 0.0
    scale: Annotated[float, DOUBLE] = 1.0
    precision: Annotated[Precision, Enum(Precision)] = Precision.FLOAT32


class Outcome(IntEnum):
    TRAINED = 0
    NO_DATA = 1
    FAILED = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """Miner to manager. ``sealed`` is an Update for TRAINED, else empty; ``reason`` says why there is none."""

    outcome: Annotated[Outcome, Enum(Outcome)]
    reason: Annotated[str, Text(512)]
    sealed: Annotated[bytes, Var(2 * MAX_VECTOR_BYTES + 4096)]
    signature: Annotated[bytes, Var(80)]


@dataclass(frozen=True, slots=True)
class Update:
    """What the manager opens: examples trained on, mean loss, weights after minus weights before.

    ``version``: the Precision of ``vector``, which delta_to_bytes makes and delta_from reads.
    """

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


def seal_update(
    update: Update, pool_key: bytes, info: bytes, signer: Any, suite: sealing.Suite = sealing.Suite.X25519
) -> Answer:
    """Seal ``update`` to the pool's HPKE key and sign the ciphertext. ``signer``: the node's private key object."""
    return seal_bytes(encode(update), pool_key, info, signer, suite)


def seal_bytes(plaintext: bytes, pool_key: bytes, info: bytes, signer: Any, suite: sealing.Suite) -> Answer:
    """The same for any answer."""
    sealed = sealing.seal(pool_key, plaintext, info, b"", suite)
    return Answer(Outcome.TRAINED, "", sealed, keys.sign(signer, ANSWER_LABEL + info + sealed))


def open_update(
    answer: Answer, pool_private: bytes, info: bytes, miner: bytes, suite: sealing.Suite = sealing.Suite.X25519
) -> Update:
    """Check the signature, open, decode.

    Raises CryptoError (another miner, instruction, round, suite or key, or changed bytes) or MalformedError.
    """
    return decode(Update, open_bytes(answer, pool_private, info, miner, suite))


def open_bytes(answer: Answer, pool_private: bytes, info: bytes, miner: bytes, suite: sealing.Suite) -> bytes:
    """The same for any answer. Raises CryptoError."""
    keys.verify(miner, ANSWER_LABEL + info + answer.sealed, answer.signature)
    try:
        return sealing.open_(pool_private, answer.sealed, info, b"", suite)
    except CryptoError as error:
        raise CryptoError(f"the update does not open: {error.message}") from None


def vector_to_bytes(vector: NDArray[np.floating[Any]]) -> bytes:
    return vector.astype("<f4").tobytes()


def vector_from_bytes(data: bytes, count: int) -> NDArray[np.float64]:
    """``count`` float32 values as float64. Raises MalformedError for any other length; values are not judged here."""
    # A signalling NaN would warn on its way to float64; it becomes a NaN, and whoever judges values refuses it.
    with np.errstate(invalid="ignore"):
        return _float32(data, count).astype(np.float64)


def delta_to_bytes(delta: NDArray[np.floating[Any]], precision: Precision) -> bytes:
    """An update's vector. In half precision all values are divided by one power of two that brings the largest magnitude to
    [2^14, 2^15), so that what is lost is relative to the largest step, however long or short steps are.

    Raises MalformedError for a value that is not finite in half precision; in float32 the manager says so.
    """
    if precision is Precision.FLOAT32:
        return vector_to_bytes(delta)
    largest = float(np.abs(delta).max(initial=0.0))
    if not largest <= MAX_FLOAT32:
        raise MalformedError(f"the largest value of the update is {largest}: training diverged")
    exponent = max(-MAX_EXPONENT, math.frexp(largest)[1] - HALF_EXPONENT) if largest else 0
    scaled = np.ldexp(delta, -exponent)
    if exponent == TOP_EXPONENT:
        # Rounded up these would be 2^128, which no float32 holds.
        scaled = np.clip(scaled, -LARGEST_SCALED, LARGEST_SCALED)
    halves: NDArray[np.float16] = scaled.astype("<f2")
    return exponent.to_bytes(2, "big", signed=True) + halves.tobytes()


def delta_from(update: Update, count: int) -> NDArray[np.float32]:
    """The ``count`` values of an update, not judged. No copy where they travelled as float32.

    Raises MalformedError for another length, an unknown precision, or a power of two that no float32 has.
    """
    if update.version == Precision.FLOAT32:
        return _float32(update.vector, count)
    if update.version != Precision.FLOAT16:
        raise MalformedError(f"update version {update.version}, expected {Precision.FLOAT32:d} or {Precision.FLOAT16:d}")
    if len(update.vector) != 2 + 2 * count:
        raise MalformedError(f"{len(update.vector)} bytes of half floats, {count} parameters are {2 + 2 * count} bytes")
    exponent = int.from_bytes(update.vector[:2], "big", signed=True)
    if abs(exponent) > MAX_EXPONENT:
        raise MalformedError(f"the exponent of half floats is {exponent}, must be -{MAX_EXPONENT} to {MAX_EXPONENT}")
    # Not through half floats: the power of two does not fit one. What no float32 holds is infinite, and refused as such.
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        values: NDArray[np.float32] = np.ldexp(np.frombuffer(update.vector, dtype="<f2", offset=2).astype(np.float32), exponent)
        return values


def _float32(data: bytes, count: int) -> NDArray[np.float32]:
    if len(data) != 4 * count:
        raise MalformedError(f"{len(data)} bytes of weights, the model has {count} parameters ({4 * count} bytes)")
    return np.frombuffer(data, dtype="<f4")
