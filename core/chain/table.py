"""An immutable mapping from keys to records, with a canonical encoding and an RFC 6962 root.

Changing a table gives a new one; the old stays as it was. A change costs the changes of the block so far, not the
table's size, and each record is encoded and hashed once in its life.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Generic, TypeVar

from core.chain import merkle
from core.codec import U32, Reader, Record, Var, decode_as, encode_as
from core.errors import MalformedError
from core.ids import Digest

__all__ = ["Table"]

V = TypeVar("V")

MAX_KEY: Final = 128
MAX_RECORD: Final = 256 * 1024
_FOLD: Final = 512
"""Changes after which they are folded into the base: keeps a block of many transactions linear."""


class Table(Mapping[bytes, V], Generic[V]):
    """Records of one kind, by key. Iteration is in ascending order of keys.

    The root is over the leaves ``key ‖ record``, each with its length, in that order.
    """

    __slots__ = ("_base", "_changes", "_encoded", "_kind", "_root")

    def __init__(self, kind: type[V], rows: Mapping[bytes, V] | None = None) -> None:
        self._kind = kind
        self._base: dict[bytes, V] = dict(rows or {})
        self._changes: dict[bytes, V | None] = {}
        self._encoded: dict[bytes, tuple[bytes, Digest]] = {}
        self._root: Digest | None = None

    def __getitem__(self, key: bytes) -> V:
        if key in self._changes:
            value = self._changes[key]
            if value is None:
                raise KeyError(key)
            return value
        return self._base[key]

    def __contains__(self, key: object) -> bool:
        if key in self._changes:
            return self._changes[key] is not None
        return key in self._base

    def __iter__(self) -> Iterator[bytes]:
        return iter(sorted(self._folded()._base))

    def __len__(self) -> int:
        return len(self._folded()._base)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self._kind is other._kind and self._folded()._base == other._folded()._base

    __hash__ = None  # type: ignore[assignment]

    def put(self, key: bytes, record: V) -> Table[V]:
        """This table with ``record`` under ``key``."""
        return self._with(key, record)

    def drop(self, key: bytes) -> Table[V]:
        """This table without ``key``, which must be there."""
        if key not in self:
            raise KeyError(key)
        return self._with(key, None)

    @property
    def root(self) -> Digest:
        """RFC 6962 root over the leaves in key order."""
        if self._root is None:
            rows = self._folded()
            self._root = merkle.root_of_hashes([rows._pack(key)[1] for key in sorted(rows._base)])
        return self._root

    def proof(self, key: bytes) -> tuple[bytes, int, int, tuple[Digest, ...]]:
        """Leaf, index, size and audit path of the record under ``key``, for merkle.verify_proof against ``root``."""
        rows = self._folded()
        keys = sorted(rows._base)
        index = keys.index(key)
        path = merkle.proof_of_hashes([rows._pack(k)[1] for k in keys], index)
        return rows._pack(key)[0], index, len(keys), path

    def to_bytes(self) -> bytes:
        rows = self._folded()
        out = bytearray()
        U32.write(out, len(rows._base))
        for key in sorted(rows._base):
            out += rows._pack(key)[0]
        return bytes(out)

    @classmethod
    def read(cls, kind: type[V], reader: Reader) -> Table[V]:
        """The table whose encoding is next. Raises MalformedError or LimitError."""
        rows: dict[bytes, V] = {}
        last = b""
        for number in range(U32.read(reader)):
            key = Var(MAX_KEY).read(reader)
            if number and key <= last:
                raise MalformedError(f"{kind.__name__} table: keys are not ascending")
            last = key
            rows[key] = decode_as(Record(kind), Var(MAX_RECORD).read(reader))
        return cls(kind, rows)

    def _with(self, key: bytes, record: V | None) -> Table[V]:
        source = self._folded() if len(self._changes) >= _FOLD else self
        new: Table[V] = Table.__new__(Table)
        new._kind, new._base, new._encoded = source._kind, source._base, source._encoded
        new._changes = {**source._changes, key: record}
        new._root = None
        return new

    def _folded(self) -> Table[V]:
        """Moves the changes into an own base: the same value, and nobody else's base is touched."""
        if self._changes:
            base = dict(self._base)
            encoded = dict(self._encoded)
            for key, record in self._changes.items():
                encoded.pop(key, None)
                if record is None:
                    base.pop(key, None)
                else:
                    base[key] = record
            self._base, self._encoded, self._changes = base, encoded, {}
        return self

    def _pack(self, key: bytes) -> tuple[bytes, Digest]:
        """Encoded leaf and its hash; call on a folded table."""
        known = self._encoded.get(key)
        if known is None:
            out = bytearray()
            Var(MAX_KEY).write(out, key)
            Var(MAX_RECORD).write(out, encode_as(Record(self._kind), self._base[key]))
            leaf = bytes(out)
            known = self._encoded[key] = (leaf, merkle.leaf_hash(leaf))
        return known
