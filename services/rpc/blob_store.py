"""Content-addressed blobs on disk.

A blob's name is the SHA-256 of its whole content. It comes into the store whole or not at all: content is written to a
part, hashed on the way, forced to the disk and renamed. A transfer that breaks leaves its part behind, and the next
one of the same blob may go on from there.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from core.errors import (
    ConfigError,
    CorruptError,
    CryptoError,
    LimitError,
    MalformedError,
    NotFoundError,
    StorageError,
    StorageFullError,
    UnavailableError,
)
from services.rpc.limits import CHUNK
from services.runtime.durable import sync_folder

__all__ = ["DIGEST_SIZE", "BlobStore", "Part", "checked_digest"]

DIGEST_SIZE = 32


class BlobStore:
    """A folder of blobs with a quota in bytes, counted over whole blobs and parts.

    Files are spread over 256 folders by the first byte of their name. Methods block for as long as the disk does:
    call those on large blobs through `run_cpu`.
    """

    def __init__(self, folder: Path, quota: int) -> None:
        """Opens or makes the folder. Raises ConfigError."""
        self._folder = folder
        self._quota = quota
        try:
            (folder / "parts").mkdir(parents=True, exist_ok=True)
            self._sizes = {path.name: path.stat().st_size for path in folder.glob("??/*") if len(path.name) == 64}
            self._parts = {path.name: path.stat().st_size for path in (folder / "parts").iterdir()}
        except OSError as error:
            raise ConfigError(f"cannot use the blob folder {folder}: {error.strerror or error}") from error
        self._reserved: dict[str, int] = {}
        self.spare: Callable[[], Iterable[bytes]] = tuple
        """Names of blobs that may go when room is needed, the first ones first."""

    @property
    def used(self) -> int:
        """Bytes taken or promised, parts of broken transfers included."""
        return sum(self._sizes.values()) + sum(self._parts.values()) + sum(self._reserved.values())

    def size(self, digest: bytes) -> int | None:
        """Size in bytes, or None if the blob is not here."""
        return self._sizes.get(_name(digest))

    def digests(self) -> list[bytes]:
        """Names of all blobs."""
        return [bytes.fromhex(name) for name in sorted(self._sizes)]

    def put(self, content: bytes) -> bytes:
        """Store ``content``; its digest. Raises LimitError (quota), StorageFullError, StorageError."""
        digest = hashlib.sha256(content).digest()
        with self.incoming(digest, len(content)) as part:
            if part is not None:
                part.write(content[part.offset :])
                part.finish()
        return digest

    def get(self, digest: bytes, verify: bool = True) -> bytes:
        """The whole content. Raises NotFoundError; CorruptError if it does not hash to its name any more."""
        content = b"".join(self.read(digest, 0))
        if verify and hashlib.sha256(content).digest() != digest:
            raise CorruptError(f"blob {digest.hex()} is damaged on disk: delete {self._path(digest)} and fetch it again")
        return content

    def read(self, digest: bytes, offset: int, chunk: int = CHUNK) -> Iterator[bytes]:
        """Content from ``offset`` on, in pieces of at most ``chunk`` bytes. Raises NotFoundError, MalformedError."""
        size = self.size(digest)
        if size is None:
            raise NotFoundError(f"blob {digest.hex()} is not here", digest=digest)
        if offset > size:
            raise MalformedError(f"offset {offset} is beyond the blob's {size} bytes")
        return self._pieces(digest, offset, chunk)

    def delete(self, digest: bytes) -> None:
        """Forget a blob, if it is here."""
        self._path(digest).unlink(missing_ok=True)
        self._sizes.pop(_name(digest), None)

    @contextlib.contextmanager
    def incoming(self, digest: bytes, size: int) -> Iterator[Part | None]:
        """Where to write a blob that comes in; None if it is here already.

        The quota is checked, and the room kept, before a byte of it is read. Raises LimitError, UnavailableError (the
        same blob is coming in already), StorageFullError, StorageError.
        """
        name = _name(digest)
        if name in self._sizes:
            yield None
            return
        if name in self._reserved:
            raise UnavailableError(f"blob {name} is being received already: try again in a moment")
        self._parts.pop(name, None)
        self._make_room(name, size)
        self._reserved[name] = size
        path = self._folder / "parts" / name
        try:
            with Part(path, self._path(digest), digest, size) as part:
                yield part
                if part.finished:
                    self._sizes[name] = size
        finally:
            del self._reserved[name]
            if path.exists():
                self._parts[name] = path.stat().st_size

    def _make_room(self, name: str, size: int) -> None:
        """Parts of broken transfers go first, the oldest first: nobody may fill the disk with beginnings."""
        while self._parts and self.used + size > self._quota:
            oldest = next(iter(self._parts))
            (self._folder / "parts" / oldest).unlink(missing_ok=True)
            del self._parts[oldest]
        if self.used + size > self._quota:
            self._drop_spare(size)
        if self.used + size > self._quota:
            raise LimitError(
                f"blob {name} of {size} bytes does not fit: {self.used} of {self._quota} bytes are taken",
                size=size, used=self.used, quota=self._quota,
            )  # fmt: skip

    def _drop_spare(self, size: int) -> None:
        for digest in self.spare():
            if self.used + size <= self._quota:
                return
            if self.size(digest) is not None:
                self.delete(digest)

    def _pieces(self, digest: bytes, offset: int, chunk: int) -> Iterator[bytes]:
        try:
            with self._path(digest).open("rb") as file:
                file.seek(offset)
                while piece := file.read(chunk):
                    yield piece
        except FileNotFoundError:
            self._sizes.pop(_name(digest), None)
            raise NotFoundError(f"blob {digest.hex()} is not here any more", digest=digest) from None
        except OSError as error:
            raise StorageError(f"cannot read blob {digest.hex()}: {error.strerror or error}") from error

    def _path(self, digest: bytes) -> Path:
        name = _name(digest)
        return self._folder / name[:2] / name


class Part:
    """A blob that is not complete. Leaving the context without `finish` keeps what came, for the next time."""

    def __init__(self, path: Path, target: Path, digest: bytes, size: int) -> None:
        self._path = path
        self._target = target
        self._digest = digest
        self._size = size
        self._hash = hashlib.sha256()
        self.offset = 0
        """Bytes that are here already."""
        self.finished = False

    def __enter__(self) -> Part:
        with _disk_errors(self._path):
            self._file = self._path.open("a+b")
            if self._file.seek(0, os.SEEK_END) > self._size:
                self._file.truncate(0)
            self._file.seek(0)
            while piece := self._file.read(CHUNK):
                self._hash.update(piece)
                self.offset += len(piece)
        return self

    def restart(self) -> None:
        """Forget what came so far."""
        with _disk_errors(self._path):
            self._file.truncate(0)
        self._hash = hashlib.sha256()
        self.offset = 0

    def write(self, data: bytes) -> None:
        """The next bytes. Raises LimitError if they are more than was announced, StorageFullError, StorageError."""
        if self.offset + len(data) > self._size:
            raise LimitError(f"blob {self._digest.hex()} is longer than the {self._size} bytes announced")
        with _disk_errors(self._path):
            self._file.write(data)
        self._hash.update(data)
        self.offset += len(data)

    def finish(self) -> None:
        """Into the store, if the content is what its name says.

        Raises MalformedError (incomplete), CryptoError (other content; what came is thrown away), StorageFullError,
        StorageError.
        """
        if self.offset != self._size:
            raise MalformedError(f"blob {self._digest.hex()} ended after {self.offset} of {self._size} bytes")
        if self._hash.digest() != self._digest:
            found = self._hash.hexdigest()
            self.restart()
            raise CryptoError(f"content of blob {self._digest.hex()} hashes to {found}")
        with _disk_errors(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._target.parent.mkdir(exist_ok=True)
            self._path.replace(self._target)
            sync_folder(self._target.parent)
        self.finished = True

    def __exit__(self, *_: object) -> None:
        with _disk_errors(self._path):
            self._file.close()
        if self.offset == 0 and not self.finished:
            self._path.unlink(missing_ok=True)


def checked_digest(digest: bytes) -> bytes:
    """``digest``, if it has its size. Raises MalformedError."""
    if len(digest) != DIGEST_SIZE:
        raise MalformedError(f"a blob's digest has {DIGEST_SIZE} bytes, got {len(digest)}")
    return digest


def _name(digest: bytes) -> str:
    return checked_digest(digest).hex()


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(f"no space left for the blob {path}: free some") from error
        raise StorageError(f"cannot write the blob {path}: {error.strerror or error}") from error
