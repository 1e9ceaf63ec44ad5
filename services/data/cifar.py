"""CIFAR-10 in both its forms: the binary records, and the Python batches, which are pickles and are not unpickled here.

The Python batches are pickles of protocol 2, written by Python 2: a dictionary with a NumPy array and lists. `_read_pickle` is
a reader of exactly the opcodes in them. Of the three globals that they name it looks nothing up: it knows what the array's
three constructor calls mean, and any other name, call or opcode is an error.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from core.errors import LimitError, MalformedError
from services.data.limits import check_size, opened

__all__ = ["read_cifar10"]

SIDE: Final = 32
PIXELS: Final = 3 * SIDE * SIDE
RECORD: Final = 1 + PIXELS
MAX_FILE: Final = 1 << 30
MAX_STACK: Final = 1 << 16
"""Objects on the stack: the published files append a thousand at a time."""
MAX_STEPS: Final = 1 << 21
"""Opcodes, and objects that are remembered: a row has four or five, and as many rows as a file may have bytes for take less."""
GLOBALS: Final = frozenset({"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"})

Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]


def read_cifar10(path: Path) -> Labelled:
    """Pixels (n, 32, 32, 3) and labels 0 to 9 of one file of either form. Raises NotFoundError, MalformedError, LimitError."""
    with opened(path) as file:
        data = bytearray()
        while part := file.read(1 << 20):
            data += part
            if len(data) > MAX_FILE:
                raise LimitError(f"{path}: more than {MAX_FILE} bytes unpacked")
    # A record begins with a label of at most 9, a pickle of protocol 2 with 0x80.
    return _python(path, bytes(data)) if data[:1] == b"\x80" else _binary(path, bytes(data))


def _binary(path: Path, data: bytes) -> Labelled:
    if not data or len(data) % RECORD:
        raise MalformedError(f"{path}: {len(data)} bytes, not whole records of {RECORD} (a label, then {PIXELS} pixels)")
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, RECORD)
    return _rows(records[:, 1:]), _labels(path, records[:, 0].astype(np.int64))


def _python(path: Path, data: bytes) -> Labelled:
    try:
        found = _Reader(data).read()
    except (IndexError, KeyError, struct.error, TypeError, ValueError) as error:
        raise MalformedError(f"{path}: not a CIFAR-10 batch: a broken pickle ({type(error).__name__}: {error})") from None
    except MalformedError as error:
        raise MalformedError(f"{path}: not a CIFAR-10 batch: {error.message}") from None
    pixels = found.get(b"data") if isinstance(found, dict) else None
    labels = found.get(b"labels") if isinstance(found, dict) else None
    if not isinstance(pixels, _Array) or pixels.content is None or not isinstance(labels, list):
        raise MalformedError(f"{path}: not a CIFAR-10 batch: it must hold an array `data` and a list `labels`")
    rows = pixels.content
    if rows.ndim != 2 or rows.shape[1] != PIXELS or len(rows) != len(labels):
        raise MalformedError(f"{path}: data is {rows.shape} with {len(labels)} labels, it must be (n, {PIXELS}) and n")
    wrong = next((row for row, label in enumerate(labels) if type(label) is not int), None)
    if wrong is not None:
        raise MalformedError(f"{path}: row {wrong}: the label is no whole number", row=wrong)
    check_size(path, len(rows), PIXELS)
    return _rows(rows), _labels(path, np.array(labels, dtype=np.int64))


def _rows(flat: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """From colour planes to colours a pixel."""
    return np.ascontiguousarray(flat.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1))


def _labels(path: Path, labels: NDArray[np.int64]) -> NDArray[np.int64]:
    if not len(labels):
        raise MalformedError(f"{path}: no rows")
    wrong = np.flatnonzero((labels < 0) | (labels > 9))
    if wrong.size:
        row = int(wrong[0])
        raise MalformedError(f"{path}: row {row}: label {labels[row]}, labels are 0 to 9", row=row)
    return labels


class _Mark:
    """Where a list or tuple begins on the stack."""


@dataclass
class _Global:
    name: str


@dataclass(eq=False)
class _Array:
    """``numpy.core.multiarray._reconstruct(ndarray, (0,), 'b')``, filled by BUILD."""

    content: NDArray[np.uint8] | None = None


class _Type:
    """``numpy.dtype('u1', 0, 1)``."""


Value: TypeAlias = "bool | int | bytes | list[Value] | tuple[Value, ...] | dict[bytes, Value] | _Global | _Array | _Type | None"


class _Reader:
    """A stack machine for the opcodes of the ten thousand rows' files, and no others."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._stack: list[Value | _Mark] = []
        self._memo: dict[int, Value | _Mark] = {}

    def read(self) -> Value:
        if self._take(2) != b"\x80\x02":
            raise MalformedError(f"a pickle of protocol {self._data[1]}, the published files have protocol 2")
        steps = 0
        while (code := self._take(1)) != b".":
            steps += 1
            if steps > MAX_STEPS:
                raise MalformedError(f"more than {MAX_STEPS} opcodes, for rows that would have a few each")
            self._step(code)
            if len(self._stack) > MAX_STACK:
                raise MalformedError(f"more than {MAX_STACK} objects")
        value = self._pop()
        if self._stack or self._at != len(self._data):
            raise MalformedError("something follows the dictionary")
        return value

    def _step(self, code: bytes) -> None:
        if code in _PLAIN:
            self._stack.append(_PLAIN[code])
        elif code in _NUMBERS:
            (number,) = struct.unpack(_NUMBERS[code], self._take(struct.calcsize(_NUMBERS[code])))
            self._stack.append(number)
        elif code in _STRINGS:
            (size,) = struct.unpack(_STRINGS[code], self._take(struct.calcsize(_STRINGS[code])))
            self._stack.append(self._take(size))
        elif code == b"}":
            self._stack.append({})
        elif code == b"]":
            self._stack.append([])
        elif code == b"(":
            self._stack.append(_Mark())
        elif code in (b"q", b"r"):
            index = self._take(1)[0] if code == b"q" else struct.unpack("<I", self._take(4))[0]
            self._memo[index] = self._stack[-1]
        elif code in (b"h", b"j"):
            self._stack.append(self._memo[self._take(1)[0] if code == b"h" else struct.unpack("<I", self._take(4))[0]])
        elif code in _TUPLES:
            items = [self._pop() for _ in range(_TUPLES[code])]
            self._stack.append(tuple(reversed(items)))
        elif code == b"t":
            self._stack.append(tuple(self._to_mark()))
        elif code in (b"a", b"e"):
            items = [self._pop()] if code == b"a" else self._to_mark()
            target = self._stack[-1]
            if not isinstance(target, list):
                raise MalformedError("appends to what is no list")
            target.extend(items)
        elif code in (b"s", b"u"):
            self._set(list(reversed([self._pop(), self._pop()])) if code == b"s" else self._to_mark())
        elif code == b"c":
            self._stack.append(self._global())
        elif code == b"R":
            self._stack.append(_reduced(self._pop(), self._pop()))
        elif code == b"b":
            _build(self._pop(), self._stack[-1])
        else:
            raise MalformedError(f"opcode {code!r} at byte {self._at - 1}, which the published files do not have")

    def _take(self, size: int) -> bytes:
        if size < 0 or size > len(self._data) - self._at:
            raise MalformedError(f"{size} bytes at byte {self._at}, the file has {len(self._data)}")
        self._at += size
        return self._data[self._at - size : self._at]

    def _pop(self) -> Value:
        value = self._stack.pop()
        if isinstance(value, _Mark):
            raise MalformedError("a mark where a value should be")
        return value

    def _to_mark(self) -> list[Value]:
        items: list[Value] = []
        while not isinstance(value := self._stack.pop(), _Mark):
            items.append(value)
        items.reverse()
        return items

    def _set(self, items: list[Value]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise MalformedError("sets items of what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, bytes):
                raise MalformedError("a key that is no text")
            target[key] = value

    def _global(self) -> _Global:
        ends = self._data.find(b"\n", self._at, self._at + 100)
        last = self._data.find(b"\n", ends + 1, ends + 101) if ends >= 0 else -1
        if last < 0:
            raise MalformedError(f"a global without an end at byte {self._at}")
        name = self._take(last + 1 - self._at)[:-1].replace(b"\n", b" ").decode("ascii", "replace")
        if name not in GLOBALS:
            raise MalformedError(f"it names {name!r}: only NumPy's array is known here, and nothing is ever run")
        return _Global(name)


_PLAIN: Final[dict[bytes, bool | None]] = {b"N": None, b"\x88": True, b"\x89": False}
_NUMBERS: Final = {b"K": "<B", b"M": "<H", b"J": "<i"}
_STRINGS: Final = {b"U": "<B", b"T": "<i"}
_TUPLES: Final = {b"\x85": 1, b"\x86": 2, b"\x87": 3}


def _reduced(arguments: Value, called: Value) -> Value:
    name = called.name if isinstance(called, _Global) else ""
    if name.endswith("_reconstruct") and arguments == (_Global("numpy ndarray"), (0,), b"b"):
        return _Array()
    if name == "numpy dtype" and arguments == (b"u1", 0, 1):
        return _Type()
    raise MalformedError("it calls what is not the making of an array of bytes")


def _build(state: Value, target: Value | _Mark) -> None:
    if isinstance(target, _Type):
        if state != (3, b"|", None, None, None, -1, -1, 0):
            raise MalformedError("an array of another type than bytes")
        return
    if not isinstance(target, _Array) or target.content is not None or not isinstance(state, tuple) or len(state) != 5:
        raise MalformedError("it fills what is no array")
    version, shape, kind, by_columns, content = state
    if version != 1 or not isinstance(kind, _Type) or not isinstance(content, bytes) or not isinstance(by_columns, bool):
        raise MalformedError("an array that is not made of bytes")
    if not isinstance(shape, tuple) or len(shape) != 2:
        raise MalformedError("an array that has not two dimensions")
    rows, columns = shape
    if type(rows) is not int or type(columns) is not int or rows < 0 or columns < 0:
        raise MalformedError("an array whose sizes are no whole numbers")
    if rows * columns != len(content):
        raise MalformedError(f"an array of {rows} x {columns} with {len(content)} bytes")
    target.content = np.frombuffer(content, dtype=np.uint8).reshape(rows, columns, order="F" if by_columns else "C")
