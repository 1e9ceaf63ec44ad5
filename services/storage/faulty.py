"""A store that stops working at a chosen write: how the recovery of a role is tested."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from core.errors import PoflError, StorageError
from services.storage.interface import KeyValueStore

__all__ = ["Faulty"]


class Faulty:
    """Passes everything to ``inner`` until write number ``fail_at`` (from 1), which fails, and all use after it too.

    As with a machine that loses power: the failing write happened wholly or not at all. ``applied`` says which.
    """

    def __init__(
        self,
        inner: KeyValueStore,
        fail_at: int,
        *,
        applied: bool = False,
        error: Callable[[str], PoflError] = StorageError,
    ) -> None:
        self._inner = inner
        self._left = fail_at
        self._applied = applied
        self._error = error

    @property
    def failed(self) -> bool:
        return self._left <= 0

    def get(self, key: bytes) -> bytes | None:
        self._check()
        return self._inner.get(key)

    def put_batch(self, puts: Mapping[bytes, bytes], deletes: Iterable[bytes] = (), sync: bool = True) -> None:
        self._check()
        self._left -= 1
        if self._left > 0 or self._applied:
            self._inner.put_batch(puts, deletes, sync)
        self._check()

    def iterate(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        self._check()
        return self._inner.iterate(prefix)

    def close(self) -> None:
        self._inner.close()

    def _check(self) -> None:
        if self.failed:
            raise self._error("the store failed, as it was told to")
