"""The four messages of oblivious transfer. Sizes follow from the number of transfers and are checked before parsing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, TypeVar

from core.codec import U32, Fixed, Var, decode, encode
from core.crypto.oblivious_transfer.base import POINT_SIZE
from core.crypto.oblivious_transfer.puncture import BLOCKS, CHECK_SIZE, SUMS_SIZE, TRANSFERS
from core.errors import LimitError, MalformedError

__all__ = [
    "CHECK_ROWS", "MAX_TRANSFERS", "SESSION_SIZE", "Choices", "Ciphertexts", "SetupReply", "SetupRequest", "column_bytes",
]  # fmt: skip

SESSION_SIZE = 32
MAX_TRANSFERS = 1 << 20
"""Transfers of one batch."""
CHECK_ROWS = 128
"""Rows of the random binary matrix of the consistency check, and random rows that hide what it shows."""


_Batch = TypeVar("_Batch", "Choices", "Ciphertexts")


def column_bytes(count: int) -> int:
    """Bytes of one column of the extension: ``count`` rows rounded up to words, and the hiding rows."""
    return 8 * (-(-count // 64)) + CHECK_ROWS // 8


@dataclass(frozen=True, slots=True)
class SetupRequest:
    """Sender to receiver: base points ``r_0 ‖ r_1`` of 128 transfers."""

    session: Annotated[bytes, Fixed(SESSION_SIZE)]
    points: Annotated[bytes, Fixed(2 * POINT_SIZE * TRANSFERS)] = field(repr=False)

    def encode(self) -> bytes:
        return encode(self)

    @classmethod
    def decode(cls, data: bytes) -> SetupRequest:
        """Raises LimitError or MalformedError."""
        return decode(cls, data, limit=SESSION_SIZE + 2 * POINT_SIZE * TRANSFERS)


@dataclass(frozen=True, slots=True)
class SetupReply:
    """Receiver to sender: base points ``S``, and sums and checks of the trees."""

    session: Annotated[bytes, Fixed(SESSION_SIZE)]
    points: Annotated[bytes, Fixed(POINT_SIZE * TRANSFERS)] = field(repr=False)
    sums: Annotated[bytes, Fixed(SUMS_SIZE * BLOCKS)] = field(repr=False)
    checks: Annotated[bytes, Fixed(CHECK_SIZE * BLOCKS)] = field(repr=False)

    def encode(self) -> bytes:
        return encode(self)

    @classmethod
    def decode(cls, data: bytes) -> SetupReply:
        """Raises LimitError or MalformedError."""
        return decode(cls, data, limit=SESSION_SIZE + POINT_SIZE * TRANSFERS + (SUMS_SIZE + CHECK_SIZE) * BLOCKS)


@dataclass(frozen=True, slots=True)
class Choices:
    """Receiver to sender: what turns random columns into columns of her choice, and the consistency check.

    ``corrections``: 64 columns of column_bytes(count). ``choice_hash``: 16 bytes. ``column_hashes``: 128 of 16 bytes.
    """

    session: Annotated[bytes, Fixed(SESSION_SIZE)]
    batch: Annotated[int, U32]
    count: Annotated[int, U32]
    corrections: Annotated[bytes, Var(BLOCKS * column_bytes(MAX_TRANSFERS))] = field(repr=False)
    choice_hash: Annotated[bytes, Fixed(CHECK_ROWS // 8)] = field(repr=False)
    column_hashes: Annotated[bytes, Fixed(TRANSFERS * CHECK_ROWS // 8)] = field(repr=False)

    def encode(self) -> bytes:
        return encode(self)

    @staticmethod
    def encoded_size(count: int) -> int:
        return SESSION_SIZE + 12 + BLOCKS * column_bytes(count) + (TRANSFERS + 1) * CHECK_ROWS // 8

    @classmethod
    def decode(cls, data: bytes, count: int) -> Choices:
        """The message for a batch of ``count`` transfers. Raises LimitError or MalformedError."""
        return _checked(decode(cls, data, limit=cls.encoded_size(_count(count))), count)


@dataclass(frozen=True, slots=True)
class Ciphertexts:
    """Sender to receiver: both messages of every transfer under their pads, and the key of the hash that made them."""

    session: Annotated[bytes, Fixed(SESSION_SIZE)]
    batch: Annotated[int, U32]
    count: Annotated[int, U32]
    hash_key: Annotated[bytes, Fixed(16)]
    pairs: Annotated[bytes, Var(32 * MAX_TRANSFERS)] = field(repr=False)

    def encode(self) -> bytes:
        return encode(self)

    @staticmethod
    def encoded_size(count: int) -> int:
        return SESSION_SIZE + 28 + 32 * count

    @classmethod
    def decode(cls, data: bytes, count: int) -> Ciphertexts:
        """The message for a batch of ``count`` transfers. Raises LimitError or MalformedError."""
        return _checked(decode(cls, data, limit=cls.encoded_size(_count(count))), count)


def check_body(message: Choices | Ciphertexts, count: int) -> None:
    """Raises MalformedError unless the message is for ``count`` transfers and its body has their size."""
    body = message.corrections if isinstance(message, Choices) else message.pairs
    wanted = BLOCKS * column_bytes(count) if isinstance(message, Choices) else 32 * count
    if message.count != count or len(body) != wanted:
        raise MalformedError(
            f"{type(message).__name__} of {message.count} transfers with {len(body)} bytes; {count} transfers have {wanted}",
            count=message.count,
            size=len(body),
        )


def _checked(message: _Batch, count: int) -> _Batch:
    check_body(message, count)
    return message


def _count(count: int) -> int:
    if not 1 <= count <= MAX_TRANSFERS:
        raise LimitError(f"{count} transfers, 1 to {MAX_TRANSFERS} in a batch", count=count, limit=MAX_TRANSFERS)
    return count
