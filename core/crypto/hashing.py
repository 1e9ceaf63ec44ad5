"""SHA-256 and SHAKE-256 over a domain label and parts, without ambiguity.

``digest(d, b"ab", b"c")`` and ``digest(d, b"a", b"bc")`` differ, because the label and every part carry their length
and the number of parts is hashed as well. A label is a named constant of the module that owns it, such as
``b"pofl/garbling/circuit/v1"``; two uses never share one.
"""

from __future__ import annotations

import functools
import hashlib

from core.ids import Digest

__all__ = ["DIGEST_SIZE", "Hasher", "digest", "expand"]

DIGEST_SIZE = 32


def digest(domain: bytes, *parts: bytes) -> Digest:
    """``SHA-256(frame(domain, parts))``, 32 bytes."""
    return Digest(hashlib.sha256(_frame(domain, parts)).digest())


def expand(domain: bytes, size: int, *parts: bytes) -> bytes:
    """``size`` bytes of SHAKE-256 over the same framing. Outputs of different sizes are unrelated: the size is framed.

    For seeds and keys; for megabytes use core.crypto.prg, which is faster.
    """
    return hashlib.shake_256(size.to_bytes(8, "big") + _frame(domain, parts)).digest(size)


class Hasher:
    """The digest of parts that arrive one after another; the same value as ``digest(domain, *parts)``.

    The number of parts is fixed beforehand, because it is hashed before them.
    """

    __slots__ = ("_missing", "_state")

    def __init__(self, domain: bytes, count: int) -> None:
        self._state = hashlib.sha256(_head(domain, count))
        self._missing = count

    def add(self, part: bytes) -> None:
        if self._missing == 0:
            raise ValueError("more parts than announced")
        self._missing -= 1
        self._state.update(len(part).to_bytes(8, "big"))
        self._state.update(part)

    def digest(self) -> Digest:
        if self._missing:
            raise ValueError(f"{self._missing} announced parts are missing")
        return Digest(self._state.digest())


@functools.lru_cache(maxsize=256)
def _head(domain: bytes, count: int) -> bytes:
    return len(domain).to_bytes(8, "big") + domain + count.to_bytes(8, "big")


def _frame(domain: bytes, parts: tuple[bytes, ...]) -> bytes:
    framed = [_head(domain, len(parts))]
    for part in parts:
        framed += (len(part).to_bytes(8, "big"), part)
    return b"".join(framed)
