"""A chain as a stream of bytes: what ``pofl chain export`` writes and ``import`` reads (docs/operations.md).

::

    magic          8 bytes   "PoFLarc" and the version, 1
    frame          kind (1) ‖ length (4, big endian) ‖ payload ‖ digest (32)
      1 head       ArchiveHead: the genesis document, the first height
      2 block      ArchiveBlock: a block and the certificate that makes it final
      3 end        ArchiveEnd: the last height

``digest`` is ``SHA-256(domain ‖ digest before ‖ kind ‖ length ‖ payload)``; before the first frame it is 32 zero bytes. So a
frame is known to be whole, in its place and of this stream before the next one is read, and a stream that was cut off is good
up to its last whole frame. Lengths are checked before a payload is read. The digests protect against accidents; who made the
blocks final, only the certificates say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Final, Protocol, TypeVar

from core.chain.block import MAX_BODY, MAX_HEADER, Block, Certificate
from core.codec import U64, Record, decode, encode
from core.errors import InputError, LimitError, MalformedError
from core.ids import Height
from core.params import MAX_GENESIS, Genesis

__all__ = ["MAGIC", "ArchiveBlock", "ArchiveReader", "ArchiveWriter"]

MAGIC: Final = b"PoFLarc\x01"
DOMAIN_FRAME: Final = b"pofl/archive-frame/1"
HEAD, BLOCK, END = 1, 2, 3
MAX_CERTIFICATE: Final = 64 * 1024
_LIMITS: Final = {HEAD: MAX_GENESIS + 64, BLOCK: MAX_HEADER + MAX_BODY + MAX_CERTIFICATE + 256, END: 64}
_PREFIX: Final = 5
_DIGEST: Final = 32

T = TypeVar("T")


class Source(Protocol):
    """What is read from: a file, a pipe."""

    def read(self, size: int, /) -> bytes: ...


class Sink(Protocol):
    """What is written to."""

    def write(self, data: bytes, /) -> object: ...


@dataclass(frozen=True, slots=True)
class ArchiveHead:
    genesis: Annotated[Genesis, Record(Genesis)]
    first: Annotated[Height, U64]


@dataclass(frozen=True, slots=True)
class ArchiveBlock:
    block: Annotated[Block, Record(Block)]
    certificate: Annotated[Certificate, Record(Certificate)]


@dataclass(frozen=True, slots=True)
class ArchiveEnd:
    last: Annotated[Height, U64]


class ArchiveWriter:
    """Writes one stream. Errors of the sink pass through."""

    def __init__(self, sink: Sink, digest: bytes = bytes(_DIGEST)) -> None:
        """``digest``: of the last whole frame, to go on with a stream."""
        self._sink = sink
        self._digest = digest

    def head(self, genesis: Genesis, first: Height) -> None:
        self._sink.write(MAGIC)
        self._frame(HEAD, encode(ArchiveHead(genesis, first)))

    def block(self, block: Block, certificate: Certificate) -> None:
        self._frame(BLOCK, encode(ArchiveBlock(block, certificate)))

    def end(self, last: Height) -> None:
        self._frame(END, encode(ArchiveEnd(last)))

    def _frame(self, kind: int, payload: bytes) -> None:
        prefix = bytes([kind]) + len(payload).to_bytes(4, "big")
        self._digest = _next(self._digest, prefix, payload)
        self._sink.write(prefix + payload + self._digest)


class ArchiveReader:
    """Reads one stream. ``genesis`` and ``first`` are known at once."""

    def __init__(self, source: Source, name: str = "the file") -> None:
        """Raises MalformedError if it is no archive, LimitError, ConfigError (an unusable genesis document)."""
        self._source = source
        self._name = name
        self.digest = bytes(_DIGEST)
        """Of the last whole frame."""
        self.offset = 0
        """Bytes up to the end of the last whole frame."""
        self.ended = False
        """Whether the end mark was read: nothing is missing."""
        magic = self._exactly(len(MAGIC))
        if magic[:7] != MAGIC[:7]:
            raise MalformedError(f"{name} is no file of `pofl chain export`: give one that it wrote")
        if magic != MAGIC:
            raise MalformedError(f"{name} has version {magic[7]} of the format, this software reads version {MAGIC[7]}")
        self.offset = len(MAGIC)
        _, payload = self._frame(HEAD)
        try:
            head = decode(ArchiveHead, payload)
        except InputError as error:
            # Its digest holds: it was written so.
            raise MalformedError(f"{name} was made by a release with another genesis document: {error.message}") from None
        head.genesis.check()
        self._accept()
        self.genesis, self.first = head.genesis, head.first
        self.following: Height = head.first
        """Height of the next block."""

    def blocks(self) -> Iterator[ArchiveBlock]:
        """The blocks, in order of height. Nothing but their form and place is checked.

        Raises MalformedError, LimitError: the stream is damaged, or was cut off. What was yielded before is whole.
        """
        while True:
            kind, payload = self._frame(BLOCK, END)
            if kind == END:
                last = self._decode(ArchiveEnd, payload).last
                if last != self.following - 1:
                    raise MalformedError(
                        f"{self._name}: the end mark says height {last}, the last block was {self.following - 1}"
                    )
                self.ended = True
                return
            found = self._decode(ArchiveBlock, payload)
            if found.certificate.height != self.following:
                raise MalformedError(
                    f"{self._name}: block {found.certificate.height} stands where block {self.following} should"
                )
            self._accept()
            self.following = Height(self.following + 1)
            yield found

    def _frame(self, *kinds: int) -> tuple[int, bytes]:
        """Kind and payload of the next frame, whose digest holds."""
        prefix = self._exactly(_PREFIX)
        kind, length = prefix[0], int.from_bytes(prefix[1:], "big")
        if kind not in kinds:
            raise MalformedError(f"{self._name} is damaged at byte {self.offset}: no frame of kind {kind} can stand there")
        if length > _LIMITS[kind]:
            raise LimitError(f"{self._name}: a frame of {length} bytes at byte {self.offset}, at most {_LIMITS[kind]}")
        payload = self._exactly(length)
        digest = _next(self.digest, prefix, payload)
        if self._exactly(_DIGEST) != digest:
            raise MalformedError(f"{self._name} is damaged: the digest of the frame at byte {self.offset} does not hold")
        self._pending = digest, self.offset + _PREFIX + length + _DIGEST
        return kind, payload

    def _accept(self) -> None:
        self.digest, self.offset = self._pending

    def _exactly(self, size: int) -> bytes:
        """Pipes give less than was asked for."""
        data = bytearray()
        while len(data) < size:
            piece = self._source.read(min(size - len(data), 1 << 16))
            if not piece:
                raise self._cut_off(bytes(data))
            data += piece
        return bytes(data)

    def _cut_off(self, rest: bytes) -> MalformedError:
        """``rest``: what there was of the part that is missing."""
        name = self._name
        if self.offset > len(MAGIC):
            last = self.following - 1
            return MalformedError(f"{name} was cut off after block {last}: export it again, or go on with `--append`")
        if self.offset:
            return MalformedError(f"{name} was cut off in its head, before the first block: export it again, to a new file")
        if rest and MAGIC.startswith(rest):
            return MalformedError(f"{name} has {len(rest)} bytes only: export it again, to a new file")
        return MalformedError(f"{name} {'is no file of `pofl chain export`' if rest else 'is empty'}: give one that it wrote")

    def _decode(self, kind: type[T], payload: bytes) -> T:
        try:
            return decode(kind, payload)
        except InputError as error:
            raise MalformedError(f"{self._name}, byte {self.offset}: {error.message}") from None


def _next(before: bytes, prefix: bytes, payload: bytes) -> bytes:
    return hashlib.sha256(DOMAIN_FRAME + before + prefix + payload).digest()
