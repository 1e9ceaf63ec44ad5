"""What a node holds of the height being decided: work blocks, ``Vm`` bodies, openings.

A work height must stay decidable when every node is stopped in the middle of it and the pool is gone afterwards: what was
fetched is kept on disk until the height is decided, bodies somewhat longer (the requester fetches the one she paid for).
Room is limited: the oldest goes first, and what is for another height than the next is not taken at all.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Final

from core.chain.block import MAX_BODY, MAX_CLAIMS, MAX_HEADER, MAX_VM_BODY
from core.codec import DIGEST, U8, U32, U64, decode, encode
from core.errors import InputError, LimitError
from core.ids import Height, ModelCommitment
from services.storage import KeyValueStore

__all__ = ["HELD", "HELD_INDEX", "Held", "WorkPart"]

HELD_INDEX, HELD = b"x", b"y"
QUOTA: Final = 256 * 1024 * 1024
KEPT_HEIGHTS: Final = 64
"""Bodies of heights further back are dropped."""


class WorkPart(IntEnum):
    """Of which claim's parts one is kept."""

    BLOCK = 1
    BODY = 2
    OPENING = 3


_LIMITS: Final = {WorkPart.BLOCK: MAX_HEADER + MAX_BODY + 128, WorkPart.BODY: MAX_VM_BODY, WorkPart.OPENING: 2 * MAX_VM_BODY}


@dataclass(frozen=True, slots=True)
class _Entry:
    height: Annotated[Height, U64]
    part: Annotated[int, U8]
    commitment: Annotated[ModelCommitment, DIGEST]
    size: Annotated[int, U32]


class Held:
    """Parts of claims by kind and commitment. Rows: ``x ‖ number`` names what ``y ‖ kind ‖ commitment`` holds.

    May be used from several threads, also while a block is committed.
    """

    def __init__(self, kv: KeyValueStore, quota: int = QUOTA) -> None:
        self._kv = kv
        self._quota = quota
        self._lock = threading.Lock()
        self._decided = Height(0)
        """What comes for this height or an earlier one is too late: nothing would delete it."""
        self._entries: dict[int, _Entry] = {}
        """By number, the oldest first."""
        for key, value in kv.iterate(HELD_INDEX):
            try:
                self._entries[int.from_bytes(key[1:], "big")] = decode(_Entry, value)
            except InputError:
                # Not worth a refusal to start: it is fetched again.
                kv.put_batch({}, [key])

    @property
    def used(self) -> int:
        """Bytes."""
        with self._lock:
            return self._used()

    def _used(self) -> int:
        return sum(e.size for e in self._entries.values())

    def put(self, height: Height, part: WorkPart, commitment: ModelCommitment, data: bytes) -> bool:
        """Keep a part, synced; False if it is here already, there are too many of that height, or the height is decided.

        The caller has checked it. Raises LimitError if it is larger than such a part can be, StorageError.
        """
        if len(data) > _LIMITS[part]:
            raise LimitError(f"a {part.name.lower()} of {len(data)} bytes, at most {_LIMITS[part]}", size=len(data))
        with self._lock:
            return self._put(height, part, commitment, data)

    def _put(self, height: Height, part: WorkPart, commitment: ModelCommitment, data: bytes) -> bool:
        same = [e for e in self._entries.values() if (e.height, e.part) == (height, part)]
        if height <= self._decided or self._find(part, commitment) is not None or len(same) >= MAX_CLAIMS:
            return False
        number = max(self._entries, default=-1) + 1
        gone: list[int] = []
        room = self._quota - self._used() - len(data)
        for old, held in self._entries.items():
            if room >= 0:
                break
            gone.append(old)
            room += held.size
        entry = _Entry(height, part, commitment, len(data))
        puts = {_index(number): encode(entry), _key(entry): data}
        self._kv.put_batch(puts, [k for n in gone for k in (_index(n), _key(self._entries[n]))])
        for old in gone:
            del self._entries[old]
        self._entries[number] = entry
        return True

    def get(self, part: WorkPart, commitment: ModelCommitment) -> bytes | None:
        """Raises CorruptError if its checksum does not hold."""
        return self._kv.get(HELD + bytes([part]) + commitment)

    def commitments(self, height: Height, part: WorkPart) -> tuple[ModelCommitment, ...]:
        """Whose parts of a kind are here for a height, the first kept first."""
        with self._lock:
            return tuple(e.commitment for e in self._entries.values() if (e.height, e.part) == (height, part))

    def size(self, part: WorkPart, commitment: ModelCommitment) -> int:
        """Bytes of a part; 0 if it is not here."""
        with self._lock:
            found = self._find(part, commitment)
        return 0 if found is None else found.size

    def decided(self, height: Height) -> list[bytes]:
        """Rows to delete when ``height`` is final: all of it but its bodies, and bodies of long ago."""
        with self._lock:
            self._decided = max(self._decided, height)
            gone = [
                number
                for number, entry in self._entries.items()
                if entry.height <= height and (entry.part != WorkPart.BODY or entry.height + KEPT_HEIGHTS <= height)
            ]
            return [key for number in gone for key in (_index(number), _key(self._entries.pop(number)))]

    def _find(self, part: WorkPart, commitment: ModelCommitment) -> _Entry | None:
        return next((e for e in self._entries.values() if (e.part, e.commitment) == (part, commitment)), None)


def _index(number: int) -> bytes:
    return HELD_INDEX + number.to_bytes(8, "big")


def _key(entry: _Entry) -> bytes:
    return HELD + bytes([entry.part]) + entry.commitment
