"""The activations of the scored model: arithmetic shift, clamp, table lookup (design: verification, section 1).

``x = TABLE[clamp(z >> shift, -2048, 2047) + 2048]``. The tables are the same on every machine: they are computed with
``decimal``, never with the platform's ``exp``, and their SHA-256 is pinned here and checked before first use.
"""

from __future__ import annotations

import functools
import hashlib
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.chain.transaction import Activation
from core.crypto.homomorphic.params import Ints
from core.errors import CorruptError

__all__ = [
    "INDEX_MAX", "INDEX_MIN", "PINNED", "SIGMOID_INDEX_UNIT", "SIGMOID_ONE", "apply", "largest_output", "table",
]  # fmt: skip

INDEX_MIN: Final = -2048
INDEX_MAX: Final = 2047
SIGMOID_INDEX_UNIT: Final = 256
"""Index i stands for the real number i / 256, so the table covers [-8, 8)."""
SIGMOID_ONE: Final = 1023
"""Output 1023 stands for 1.0. relu and identity keep the unit of their index."""

PINNED: Final[dict[Activation, str]] = {
    Activation.IDENTITY: "4d03c1071bbb0168f05cfdcf859053a7bfe695a3204039925404b9037f51395c",
    Activation.SIGMOID: "71994069dec4a17366b1d31706612f091ad93dea2d7140e0b05df86db274f5a0",
    Activation.RELU: "4b91bfdf592ab6d00c9cb02a9dcfef7bc38caf88437b4902f864da12e72ba9cf",
}
"""SHA-256 of each table as 4,096 little-endian int16."""


@functools.cache
def table(activation: Activation) -> NDArray[np.int16]:
    """The read-only table of 4,096 outputs. Raises CorruptError if this machine computed another one."""
    indices = range(INDEX_MIN, INDEX_MAX + 1)
    if activation is Activation.SIGMOID:
        outputs = [_sigmoid(index) for index in indices]
    elif activation is Activation.RELU:
        outputs = [max(index, 0) for index in indices]
    else:
        outputs = list(indices)
    data = np.array(outputs, dtype="<i2")
    found = hashlib.sha256(data.tobytes()).hexdigest()
    if found != PINNED[activation]:
        raise CorruptError(f"the {activation.name} table hashes to {found}, pinned is {PINNED[activation]}")
    result = data.astype(np.int16)
    result.setflags(write=False)
    return result


@functools.cache
def largest_output(activation: Activation) -> int:
    """``max |x|`` over the table: what the next layer's bound uses."""
    return int(np.abs(table(activation).astype(np.int64)).max())


def apply(activation: Activation, z: Ints, shift: int) -> Ints:
    """``x = act(z)`` entry by entry, int64."""
    index = np.clip(z >> shift, INDEX_MIN, INDEX_MAX) - INDEX_MIN
    outputs: Ints = table(activation)[index].astype(np.int64)
    return outputs


def _sigmoid(index: int) -> int:
    """``round(1023 / (1 + exp(-index / 256)))``; decimal's exp is correctly rounded, so 40 digits decide every case."""
    context = Context(prec=40, rounding=ROUND_HALF_EVEN)
    power = context.exp(context.divide(Decimal(-index), Decimal(SIGMOID_INDEX_UNIT)))
    value = context.divide(Decimal(SIGMOID_ONE), context.add(Decimal(1), power))
    return int(value.to_integral_value(rounding=ROUND_HALF_EVEN))
