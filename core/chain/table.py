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
_Rows = tuple[dict[bytes, V], dict[bytes, V | None], dict[bytes, tuple[bytes, Digest]]]
_FOLD: Final = 512
"""Changes after which they are folded into the base: keeps a block of many transactions linear."""


class Table(Mapping[bytes, V], Generic[V]):
    """Records of one kind, by key. Iteration is in ascending order of keys.

    The root is over the leaves ``key ‖ record``, each with its length, in that order.
    """

    __slots__ = ("_kind", "_root", "_rows")

    def __init__(self, kind: type[V], rows: Mapping[bytes, V] | None = None) -> None:
        self._kind = kind
        self._rows: _Rows[V] = (dict(rows or {}), {}, {})
        """Base, changes, encoded leaves: replaced together, so that threads may share a table."""
        self._root: Digest | None = None

    def __getitem__(self, key: bytes) -> V:
        base, changes, _ = self._rows
        if key in changes:
            value = changes[key]
            if value is None:
                raise KeyError(key)
            return value
        return base[key]

    def __contains__(self, key: object) -> bool:
        base, changes, _ = self._rows
        if key in changes:
            return changes[key] is not None
        return key in base

    def __iter__(self) -> Iterator[bytes]:
        return iter(sorted(self._folded()[0]))

    def __len__(self) -> int:
        return len(self._folded()[0])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self._kind is other._kind and self._folded()[0] == other._folded()[0]

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
            self._root = merkle.root_of_hashes([self._pack(rows, key)[1] for key in sorted(rows[0])])
        return self._root

    def proof(self, key: bytes) -> tuple[bytes, int, int, tuple[Digest, ...]]:
        """Leaf, index, size and audit path of the record under ``key``, for merkle.verify_proof against ``root``."""
        rows = self._folded()
        keys = sorted(rows[0])
        index = keys.index(key)
        path = merkle.proof_of_hashes([self._pack(rows, k)[1] for k in keys], index)
        return self._pack(rows, key)[0], index, len(keys), path

    def to_bytes(self) -> bytes:
        rows = self._folded()
        out = bytearray()
        U32.write(out, len(rows[0]))
        for key in sorted(rows[0]):
            out += self._pack(rows, key)[0]
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
        base, changes, encoded = self._rows if len(self._rows[1]) < _FOLD else self._folded()
        new: Table[V] = Table.__new__(Table)
        new._kind, new._root = self._kind, None
        new._rows = (base, {**changes, key: record}, encoded)
        return new

    def _folded(self) -> _Rows[V]:
        """Moves the changes into an own base: the same value, and nobody else's base is touched."""
        rows = self._rows
        if rows[1]:
            base, encoded = dict(rows[0]), dict(rows[2])
            for key, record in rows[1].items():
                encoded.pop(key, None)
                if record is None:
                    base.pop(key, None)
                else:
                    base[key] = record
            self._rows = rows = (base, {}, encoded)
        return rows

    def _pack(self, rows: _Rows[V], key: bytes) -> tuple[bytes, Digest]:
        """Encoded leaf and its hash, in folded rows."""
        base, _, encoded = rows
        known = encoded.get(key)
        if known is None:
            out = bytearray()
            Var(MAX_KEY).write(out, key)
            Var(MAX_RECORD).write(out, encode_as(Record(self._kind), base[key]))
            leaf = bytes(out)
            known = encoded[key] = (leaf, merkle.leaf_hash(leaf))
        return known
