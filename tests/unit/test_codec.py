"""core.codec: one value, one encoding."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.codec import (
    BOOL,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    Enum,
    Fixed,
    Maybe,
    Record,
    Seq,
    Text,
    Union,
    Var,
    decode,
    encode,
)
from core.errors import LimitError, MalformedError


class Colour(IntEnum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True, slots=True)
class Inner:
    x: Annotated[int, U16]


@dataclass(frozen=True, slots=True)
class Other:
    y: Annotated[int, I64]


@dataclass(frozen=True, slots=True)
class Whole:
    flag: Annotated[bool, BOOL]
    colour: Annotated[Colour, Enum(Colour)]
    name: Annotated[str, Text(12)]
    data: Annotated[bytes, Var(8)]
    four: Annotated[bytes, Fixed(4)]
    inner: Inner
    maybe: Annotated[int | None, Maybe(U32)]
    many: Annotated[tuple[Inner, ...], Seq(Record(Inner), 3)]
    either: Annotated[Inner | Other, Union({1: Inner, 2: Other})]


inners = st.builds(Inner, st.integers(0, 2**16 - 1))
wholes = st.builds(
    Whole,
    st.booleans(),
    st.sampled_from(Colour),
    st.text(max_size=3),
    st.binary(max_size=8),
    st.binary(min_size=4, max_size=4),
    inners,
    st.none() | st.integers(0, 2**32 - 1),
    st.lists(inners, max_size=3).map(tuple),
    inners | st.builds(Other, st.integers(-(2**63), 2**63 - 1)),
)


@given(wholes)
def test_every_value_survives_the_round_trip(value: Whole) -> None:
    assert decode(Whole, encode(value)) == value


@given(wholes, wholes)
def test_different_values_have_different_encodings(a: Whole, b: Whole) -> None:
    assert (a == b) == (encode(a) == encode(b))


@given(st.binary(max_size=80))
def test_arbitrary_bytes_either_decode_canonically_or_raise_a_typed_error(data: bytes) -> None:
    try:
        value = decode(Whole, data)
    except (MalformedError, LimitError):
        return
    assert encode(value) == data


@given(wholes, st.data())
def test_truncated_and_extended_bytes_are_refused(value: Whole, data: st.DataObject) -> None:
    encoded = encode(value)
    with pytest.raises(MalformedError, match="follow the value"):
        decode(Whole, encoded + b"\0")
    cut = data.draw(st.integers(0, len(encoded) - 1))
    with pytest.raises((MalformedError, LimitError)):
        decode(Whole, encoded[:cut])


def test_a_known_answer_pins_the_layout() -> None:
    value = Whole(True, Colour.BLUE, "ab", b"\x07", b"wxyz", Inner(258), None, (Inner(1),), Other(-1))
    assert encode(value).hex() == (
        "01" "02" "000000026162" "0000000107" "7778797a" "0102" "00" "00000001" "0001" "02" "ffffffffffffffff"
    )  # fmt: skip


def test_a_length_over_its_limit_is_refused_before_anything_is_read() -> None:
    @dataclass(frozen=True, slots=True)
    class Blob:
        data: Annotated[bytes, Var(8)]

    with pytest.raises(LimitError, match=r"Blob.data: 4294967295 bytes, at most 8"):
        decode(Blob, b"\xff\xff\xff\xff")


def test_errors_name_the_record_and_the_field() -> None:
    with pytest.raises(LimitError, match=r"Inner.x: 65536 does not fit 16 unsigned bits"):
        encode(Inner(65536))
    with pytest.raises(MalformedError, match=r"Inner.x: truncated: 2 bytes wanted, 1 left"):
        decode(Inner, b"\x01")


def test_a_boolean_is_not_an_integer() -> None:
    with pytest.raises(MalformedError, match="expected an integer, got bool"):
        encode(Inner(True))


def test_unknown_enum_member_tag_and_boolean_are_refused() -> None:
    good = bytearray(encode(Whole(False, Colour.RED, "", b"", b"abcd", Inner(0), None, (), Inner(0))))
    for position, wrong in ((0, 2), (1, 9), (len(good) - 3, 7)):
        bad = bytearray(good)
        bad[position] = wrong
        with pytest.raises(MalformedError):
            decode(Whole, bytes(bad))


def test_a_whole_value_may_have_a_limit() -> None:
    with pytest.raises(LimitError, match="3 bytes, at most 2"):
        decode(Inner, b"abc", limit=2)


def test_a_field_without_a_codec_is_a_programming_error() -> None:
    @dataclass(frozen=True, slots=True)
    class Bare:
        x: int

    with pytest.raises(TypeError, match=r"x names no codec"):
        encode(Bare(1))


def test_eight_bits_are_eight_bits() -> None:
    @dataclass(frozen=True, slots=True)
    class Byte:
        x: Annotated[int, U8]

    assert encode(Byte(255)) == b"\xff"
    with pytest.raises(LimitError):
        encode(Byte(256))


@dataclass(frozen=True, slots=True)
class Even:
    """Read and written in one step."""

    a: Annotated[int, U64]
    b: Annotated[bytes, Fixed(4)]
    c: Annotated[int, I32]
    d: Annotated[int, U8]


@dataclass(frozen=True, slots=True)
class Evens:
    many: Annotated[tuple[Even, ...], Seq(Record(Even), 3)]


evens = st.builds(
    Even, st.integers(0, 2**64 - 1), st.binary(min_size=4, max_size=4), st.integers(-(2**31), 2**31 - 1), st.integers(0, 255)
)


@given(st.lists(evens, max_size=3).map(tuple))
def test_records_of_integers_and_fixed_bytes_have_the_encoding_of_their_fields(many: tuple[Even, ...]) -> None:
    out = bytearray()
    for even in many:
        U64.write(out, even.a)
        Fixed(4).write(out, even.b)
        I32.write(out, even.c)
        U8.write(out, even.d)
    assert encode(Evens(many)) == len(many).to_bytes(4, "big") + bytes(out)
    assert decode(Evens, encode(Evens(many))) == Evens(many)


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (Even(2**64, b"1234", 0, 0), LimitError, "Even.a: 18446744073709551616 does not fit"),
        (Even(-1, b"1234", 0, 0), LimitError, "Even.a: -1 does not fit"),
        (Even(True, b"1234", 0, 0), MalformedError, "Even.a: expected an integer, got bool"),
        (Even(0, b"123", 0, 0), MalformedError, "Even.b: expected 4 bytes, got 3"),
        (Even(0, b"12345", 0, 0), MalformedError, "Even.b: expected 4 bytes, got 5"),
        (Even(0, b"1234", 2**31, 0), LimitError, "Even.c: 2147483648 does not fit"),
    ],
)
def test_what_does_not_fit_such_a_record_is_named(wrong: Even, error: type[Exception], words: str) -> None:
    encode(Even(0, b"1234", 0, 0))
    with pytest.raises(error, match=words):
        encode(wrong)


def test_such_a_record_that_is_cut_short_is_named() -> None:
    data = encode(Evens((Even(1, b"1234", 2, 3), Even(4, b"5678", 6, 7))))
    with pytest.raises(MalformedError, match=r"Even\.d: truncated: 1 bytes wanted, 0 left"):
        decode(Evens, data[:-1])
    with pytest.raises(MalformedError, match=r"Even\.b: truncated: 4 bytes wanted, 2 left"):
        decode(Even, data[4:14])
    with pytest.raises(LimitError, match=r"Evens\.many: 4 items, at most 3"):
        decode(Evens, (4).to_bytes(4, "big") + data[4:] * 2)
