"""The canonical encoding of everything that is hashed, signed or voted on.

One value has exactly one encoding and every decoder refuses anything else: integers are big-endian and of fixed
width, variable parts carry a 32-bit length, sequences a 32-bit count, unions an 8-bit tag, and no byte may follow.
A record is a frozen dataclass whose fields name their codec::

    @dataclass(frozen=True, slots=True)
    class Point:
        x: Annotated[int, U32]
        name: Annotated[bytes, Var(16)]

    data = encode(Point(1, b"a"))
    assert decode(Point, data) == Point(1, b"a")

Every length is checked against its limit before a byte of it is read, so a decoder never allocates more than it was
sent. Errors are MalformedError or LimitError and name the record and the field.
"""

from __future__ import annotations

import dataclasses
import operator
import struct
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any, Protocol, TypeVar, cast, get_type_hints

from core.errors import LimitError, MalformedError

__all__ = [
    "BOOL",
    "DIGEST", "I32", "I64", "PUBLIC_KEY", "SIGNATURE", "U8", "U16", "U32", "U64", "Codec", "Enum", "Fixed", "Int",
    "Maybe", "Reader", "Record", "Seq", "Text", "Union", "Var", "decode", "decode_as", "encode", "encode_as",
]  # fmt: skip

T = TypeVar("T")


class Reader:
    """A cursor over untrusted bytes."""

    __slots__ = ("_data", "_offset")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    @property
    def remaining(self) -> int:
        return len(self._data) - self._offset

    def take(self, count: int) -> bytes:
        start = self._offset
        end = start + count
        if end > len(self._data):
            raise MalformedError(f"truncated: {count} bytes wanted, {self.remaining} left")
        self._offset = end
        return self._data[start:end]


class Codec(Protocol):
    """Writes one value, reads one value."""

    def write(self, out: bytearray, value: Any) -> None: ...

    def read(self, reader: Reader) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Int:
    """Big-endian integer of ``size`` bytes."""

    size: int
    signed: bool = False

    def write(self, out: bytearray, value: int) -> None:
        if type(value) is not int and (isinstance(value, bool) or not isinstance(value, int)):
            raise MalformedError(f"expected an integer, got {type(value).__name__}")
        try:
            out += value.to_bytes(self.size, "big", signed=self.signed)
        except OverflowError:
            kind = "signed" if self.signed else "unsigned"
            raise LimitError(f"{value} does not fit {8 * self.size} {kind} bits", value=value) from None

    def read(self, reader: Reader) -> int:
        return int.from_bytes(reader.take(self.size), "big", signed=self.signed)


U8, U16, U32, U64 = Int(1), Int(2), Int(4), Int(8)
I32, I64 = Int(4, signed=True), Int(8, signed=True)


class _Bool:
    def write(self, out: bytearray, value: bool) -> None:
        out.append(1 if value else 0)

    def read(self, reader: Reader) -> bool:
        byte = reader.take(1)[0]
        if byte > 1:
            raise MalformedError(f"a boolean is 0 or 1, got {byte}")
        return byte == 1


BOOL = _Bool()


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Exactly ``size`` bytes."""

    size: int

    def write(self, out: bytearray, value: bytes) -> None:
        if len(value) != self.size:
            raise MalformedError(f"expected {self.size} bytes, got {len(value)}")
        out += value

    def read(self, reader: Reader) -> bytes:
        return reader.take(self.size)


DIGEST, PUBLIC_KEY, SIGNATURE = Fixed(32), Fixed(32), Fixed(64)


@dataclasses.dataclass(frozen=True)
class Var:
    """At most ``limit`` bytes."""

    limit: int

    def write(self, out: bytearray, value: bytes) -> None:
        if len(value) > self.limit:
            raise LimitError(f"{len(value)} bytes, at most {self.limit}", size=len(value), limit=self.limit)
        U32.write(out, len(value))
        out += value

    def read(self, reader: Reader) -> bytes:
        size = U32.read(reader)
        if size > self.limit:
            raise LimitError(f"{size} bytes, at most {self.limit}", size=size, limit=self.limit)
        return reader.take(size)


@dataclasses.dataclass(frozen=True)
class Text:
    """UTF-8 of at most ``limit`` bytes."""

    limit: int

    def write(self, out: bytearray, value: str) -> None:
        Var(self.limit).write(out, value.encode())

    def read(self, reader: Reader) -> str:
        try:
            return Var(self.limit).read(reader).decode()
        except UnicodeDecodeError as error:
            raise MalformedError(f"not UTF-8 at byte {error.start}") from None


@dataclasses.dataclass(frozen=True)
class Enum:
    """A member of an IntEnum, in one byte."""

    kind: type[IntEnum]

    def write(self, out: bytearray, value: IntEnum) -> None:
        U8.write(out, int(value))

    def read(self, reader: Reader) -> IntEnum:
        number = U8.read(reader)
        try:
            return self.kind(number)
        except ValueError:
            raise MalformedError(f"{number} is no {self.kind.__name__}", value=number) from None


@dataclasses.dataclass(frozen=True)
class Maybe:
    """A value or None."""

    inner: Codec

    def write(self, out: bytearray, value: Any) -> None:
        BOOL.write(out, value is not None)
        if value is not None:
            self.inner.write(out, value)

    def read(self, reader: Reader) -> Any:
        return self.inner.read(reader) if BOOL.read(reader) else None


@dataclasses.dataclass(frozen=True)
class Seq:
    """A tuple of at most ``limit`` values."""

    inner: Codec
    limit: int

    def write(self, out: bytearray, value: tuple[Any, ...]) -> None:
        if len(value) > self.limit:
            raise LimitError(f"{len(value)} items, at most {self.limit}", count=len(value), limit=self.limit)
        U32.write(out, len(value))
        for item in value:
            self.inner.write(out, item)

    def read(self, reader: Reader) -> tuple[Any, ...]:
        count = U32.read(reader)
        if count > self.limit:
            raise LimitError(f"{count} items, at most {self.limit}", count=count, limit=self.limit)
        inner = self.inner
        if isinstance(inner, Record) and (flat := _flat(inner.kind)) is not None:
            size = count * flat.form.size
            # What is cut short is read one by one, which says where.
            if reader.remaining >= size:
                kind = inner.kind
                return tuple([kind(*values) for values in flat.form.iter_unpack(reader.take(size))])
        return tuple([inner.read(reader) for _ in range(count)])


class Record:
    """A dataclass whose fields are annotated with their codecs."""

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def write(self, out: bytearray, value: Any) -> None:
        if type(value) is not self.kind:
            raise MalformedError(f"expected {self.kind.__name__}, got {type(value).__name__}")
        flat = _FLAT.get(self.kind)
        if flat is not None and (data := flat.packed(value)) is not None:
            out += data
            return
        name = ""
        try:
            for name, codec in _fields(self.kind):
                codec.write(out, getattr(value, name))
        except (MalformedError, LimitError) as error:
            raise _within(self.kind, name, error) from None

    def read(self, reader: Reader) -> Any:
        flat = _flat(self.kind)
        if flat is not None and reader.remaining >= flat.form.size:
            return self.kind(*flat.form.unpack(reader.take(flat.form.size)))
        name, values = "", []
        try:
            for name, codec in _fields(self.kind):  # noqa: B007 - named by the error
                values.append(codec.read(reader))
        except (MalformedError, LimitError) as error:
            raise _within(self.kind, name, error) from None
        return self.kind(*values)


class Union:
    """One of several records, told apart by a tag byte."""

    def __init__(self, members: Mapping[int, type]) -> None:
        self.members = dict(members)
        self._tags = {kind: tag for tag, kind in self.members.items()}

    def write(self, out: bytearray, value: Any) -> None:
        tag = self._tags.get(type(value))
        if tag is None:
            raise MalformedError(f"{type(value).__name__} is no member of this union")
        U8.write(out, tag)
        Record(type(value)).write(out, value)

    def read(self, reader: Reader) -> Any:
        tag = U8.read(reader)
        kind = self.members.get(tag)
        if kind is None:
            raise MalformedError(f"unknown tag {tag}; known are {sorted(self.members)}", tag=tag)
        return Record(kind).read(reader)


def encode(value: object) -> bytes:
    """The canonical bytes of a record."""
    return encode_as(Record(type(value)), value)


def decode(kind: type[T], data: bytes, limit: int | None = None) -> T:
    """The record of ``kind`` in ``data``, all of it.

    Raises:
        LimitError: ``data`` is longer than ``limit``, or a part is longer than its own limit.
        MalformedError: anything else that is not the canonical encoding of a ``kind``.
    """
    return cast(T, decode_as(Record(kind), data, limit))


def encode_as(codec: Codec, value: object) -> bytes:
    out = bytearray()
    codec.write(out, value)
    return bytes(out)


def decode_as(codec: Codec, data: bytes, limit: int | None = None) -> Any:
    if limit is not None and len(data) > limit:
        raise LimitError(f"{len(data)} bytes, at most {limit}", size=len(data), limit=limit)
    reader = Reader(data)
    value = codec.read(reader)
    if reader.remaining:
        raise MalformedError(f"{reader.remaining} bytes follow the value", extra=reader.remaining)
    return value


class _Flat:
    """A record of integers and fixed bytes only, in one step. What is unusual in it is left to the fields' own codecs, which
    know what to say."""

    def __init__(self, names: tuple[str, ...], codecs: tuple[Int | Fixed, ...]) -> None:
        forms = [f"{c.size}s" if isinstance(c, Fixed) else _FORMS[c.size, c.signed] for c in codecs]
        self.form = struct.Struct(">" + "".join(forms))
        self._sizes = tuple(c.size if isinstance(c, Fixed) else None for c in codecs)
        self._values: Callable[[object], Any] = operator.attrgetter(*names)
        self._is_single = len(names) == 1

    def packed(self, value: object) -> bytes | None:
        """The same bytes as the fields' codecs write; None if one of them might refuse its value."""
        values: tuple[Any, ...] = (self._values(value),) if self._is_single else self._values(value)
        for each, size in zip(values, self._sizes, strict=True):
            # struct cuts or fills up bytes, and takes booleans.
            if type(each) is not int if size is None else type(each) is not bytes or len(each) != size:
                return None
        try:
            return self.form.pack(*values)
        except struct.error:
            return None


_FORMS = {
    (1, False): "B", (2, False): "H", (4, False): "I", (8, False): "Q", (4, True): "i", (8, True): "q",
}  # fmt: skip
_FLAT: dict[type, _Flat | None] = {}


def _flat(kind: type) -> _Flat | None:
    if kind not in _FLAT:
        _fields(kind)
    return _FLAT[kind]


_FIELDS: dict[type, tuple[tuple[str, Codec], ...]] = {}


def _fields(kind: type) -> tuple[tuple[str, Codec], ...]:
    known = _FIELDS.get(kind)
    if known is not None:
        return known
    hints = get_type_hints(kind, include_extras=True)
    found: list[tuple[str, Codec]] = []
    for field in dataclasses.fields(kind):
        metadata = getattr(hints[field.name], "__metadata__", ())
        codec = next((m for m in metadata if hasattr(m, "write") and hasattr(m, "read")), None)
        if codec is None:
            hint = hints[field.name]
            if not dataclasses.is_dataclass(hint):
                raise TypeError(f"{kind.__name__}.{field.name} names no codec")
            codec = Record(cast(type, hint))
        found.append((field.name, codec))
    _FIELDS[kind] = tuple(found)
    flat = [codec for _, codec in found if isinstance(codec, Int | Fixed)]
    is_flat = len(flat) == len(found) > 0 and all(isinstance(c, Fixed) or (c.size, c.signed) in _FORMS for c in flat)
    _FLAT[kind] = _Flat(tuple(name for name, _ in found), tuple(flat)) if is_flat else None
    return _FIELDS[kind]


def _within(kind: type, name: str, error: MalformedError | LimitError) -> MalformedError | LimitError:
    """The error, named by the innermost record and field that it is in."""
    if error.values.get("field"):
        return error
    return type(error)(f"{kind.__name__}.{name}: {error.message}", **{**error.values, "field": name})
