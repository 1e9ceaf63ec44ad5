"""What every store is and does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Protocol

from core import codec
from core.errors import MalformedError, UnavailableError, WrongChainError

__all__ = ["RESERVED", "KeyValueStore", "StoreMeta", "check_key"]

RESERVED = b"\x00"
"""Keys that begin with this byte belong to the store itself."""
MAX_KEY = 1024


class KeyValueStore(Protocol):
    """Bytes to bytes, ordered by key.

    Keys have 1 to 1024 bytes and do not begin with a zero byte (MalformedError). After `close` every use raises
    UnavailableError; closing twice is allowed. Stores may be used from several threads.
    """

    def get(self, key: bytes) -> bytes | None:
        """The value, or None. Raises CorruptError if its checksum does not hold."""

    def put_batch(self, puts: Mapping[bytes, bytes], deletes: Iterable[bytes] = (), sync: bool = True) -> None:
        """All of it or none of it; with ``sync`` it is on the disk when this returns.

        A key in both is put. Raises StorageFullError, StorageError; nothing has changed then, and every later
        write may raise it too until the store is opened again.
        """

    def iterate(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """All entries whose key begins with ``prefix``, by key, as they were when this was called."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class StoreMeta:
    """What a store is for. It is written once, and a store that is for something else is refused."""

    schema: Annotated[int, codec.U32]
    """Version of the layout of keys and values."""
    chain_id: Annotated[str, codec.Text(64)]
    genesis_hash: Annotated[bytes, codec.DIGEST]
    node: Annotated[bytes, codec.PUBLIC_KEY]
    """Account of the process that the store belongs to."""

    def require(self, stored: StoreMeta, where: str) -> None:
        """Raises WrongChainError, which says what differs and what to do."""
        for what, ours, theirs in (
            ("chain id", self.chain_id, stored.chain_id),
            ("genesis hash", self.genesis_hash.hex(), stored.genesis_hash.hex()),
            ("node key", self.node.hex(), stored.node.hex()),
            ("schema", str(self.schema), str(stored.schema)),
        ):
            if ours != theirs:
                raise WrongChainError(
                    f"{where} belongs to {what} {theirs}, this process has {ours}: "
                    "set data_dir to another folder, or start with the files that the folder was made with",
                    ours=ours, theirs=theirs,
                )  # fmt: skip


def check_key(key: bytes) -> bytes:
    """``key``, if a store takes it."""
    if not 0 < len(key) <= MAX_KEY or key.startswith(RESERVED):
        raise MalformedError(f"a key has 1 to {MAX_KEY} bytes and does not begin with zero, got {key[:32]!r}")
    return key


def closed(what: str) -> UnavailableError:
    return UnavailableError(f"{what} is closed")
