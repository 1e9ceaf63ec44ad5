"""A store that lives as long as its object."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping

from services.storage.interface import check_key, closed

__all__ = ["Memory"]


class Memory:
    """KeyValueStore in a dictionary."""

    def __init__(self) -> None:
        self._entries: dict[bytes, bytes] | None = {}
        self._lock = threading.Lock()

    def get(self, key: bytes) -> bytes | None:
        with self._lock:
            return self._open().get(check_key(key))

    def put_batch(self, puts: Mapping[bytes, bytes], deletes: Iterable[bytes] = (), sync: bool = True) -> None:
        added = {check_key(key): bytes(value) for key, value in puts.items()}
        removed = [check_key(key) for key in deletes]
        with self._lock:
            entries = self._open()
            for key in removed:
                entries.pop(key, None)
            entries.update(added)

    def iterate(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        with self._lock:
            return iter(sorted(entry for entry in self._open().items() if entry[0].startswith(prefix)))

    def close(self) -> None:
        with self._lock:
            self._entries = None

    def _open(self) -> dict[bytes, bytes]:
        if self._entries is None:
            raise closed("the store in memory")
        return self._entries
