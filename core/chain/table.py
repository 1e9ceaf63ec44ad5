"""An immutable mapping from keys to records, with a canonical encoding and an RFC 6962 root.

Changing a table gives a new one; the old stays as it was. A change costs the changes of the block so far, not the
table's size. The tree of hashes is made from that of an older version: a changed record costs its path to the root, a new
or a dropped one the nodes to its right.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Final, Generic, TypeVar, overload

from core.chain import merkle
from core.codec import U32, Reader, Record, Var, decode_as, encode_as
from core.errors import MalformedError
from core.ids import Digest

__all__ = ["Table"]

T = TypeVar("T")
V = TypeVar("V")

MAX_KEY: Final = 128
MAX_RECORD: Final = 256 * 1024
_KEY: Final = Var(MAX_KEY)
_RECORD: Final = Var(MAX_RECORD)
_FOLD: Final = 512
"""Changes after which they are folded into the base: keeps a block of many transactions linear."""
_Rows = tuple[dict[bytes, V], dict[bytes, V | None]]
_Hashed = tuple[list[bytes], merkle.Tree]
"""Keys in order, and the tree over their leaves."""
_Touched = tuple[bytes, "_Touched | None"]
"""Keys that changed, last first."""


class Table(Mapping[bytes, V], Generic[V]):
    """Records of one kind, by key. Iteration is in ascending order of keys.

    The root is over the leaves ``key ‖ record``, each with its length, in that order.
    """

    __slots__ = ("_hashed", "_kind", "_older", "_rows", "_size")

    def __init__(self, kind: type[V], rows: Mapping[bytes, V] | None = None) -> None:
        self._kind = kind
        self._rows: _Rows[V] = (dict(rows or {}), {})
        """Base, which versions share, and changes: replaced together, so that threads may share a table."""
        self._size = len(self._rows[0])
        self._hashed: _Hashed | None = None
        self._older: tuple[_Hashed, _Touched | None] | None = None
        """The tree of an older version, and what changed since."""

    def __getitem__(self, key: bytes) -> V:
        base, changes = self._rows
        if key in changes:
            value = changes[key]
            if value is None:
                raise KeyError(key)
            return value
        return base[key]

    @overload
    def get(self, key: bytes, /) -> V | None: ...
    @overload
    def get(self, key: bytes, /, default: V | T) -> V | T: ...
    def get(self, key: bytes, /, default: V | T | None = None) -> V | T | None:
        base, changes = self._rows
        value = changes[key] if key in changes else base.get(key)
        return default if value is None else value

    def __contains__(self, key: object) -> bool:
        base, changes = self._rows
        if key in changes:
            return changes[key] is not None
        return key in base

    def __iter__(self) -> Iterator[bytes]:
        return iter(sorted(self._all()) if self._hashed is None else self._hashed[0])

    def __len__(self) -> int:
        return self._size

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self._kind is other._kind and self._all() == other._all()

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
        hashed = self._hashed or self._tree()
        return hashed[1].root

    def proof(self, key: bytes) -> tuple[bytes, int, int, tuple[Digest, ...]]:
        """Leaf, index, size and audit path of the record under ``key``, for merkle.verify_proof against ``root``."""
        keys, tree = self._tree()
        leaf, index = self._leaf(key), bisect_left(keys, key)
        return leaf, index, len(keys), tree.proof(index)

    def changed(self, before: Table[V]) -> Iterator[bytes]:
        """Keys under which this table has another record than ``before``, or none, or a new one; records are shared between
        versions, so identity tells. Costs the changes since the last folding; between unrelated tables, their size."""
        base, changes = self._rows
        old_base, old_changes = before._rows
        keys = {**old_changes, **changes} if base is old_base else {**old_base, **old_changes, **base, **changes}
        return (key for key in keys if self.get(key) is not before.get(key))

    def to_bytes(self) -> bytes:
        out = bytearray()
        U32.write(out, self._size)
        for key in self:
            out += self._leaf(key)
        return bytes(out)

    @classmethod
    def read(cls, kind: type[V], reader: Reader) -> Table[V]:
        """The table whose encoding is next. Raises MalformedError or LimitError."""
        rows: dict[bytes, V] = {}
        last = b""
        for number in range(U32.read(reader)):
            key = _KEY.read(reader)
            if number and key <= last:
                raise MalformedError(f"{kind.__name__} table: keys are not ascending")
            last = key
            rows[key] = decode_as(Record(kind), _RECORD.read(reader))
        return cls(kind, rows)

    def _with(self, key: bytes, record: V | None) -> Table[V]:
        base, changes = self._rows if len(self._rows[1]) < _FOLD else (self._all(), {})
        new: Table[V] = Table.__new__(Table)
        changes = changes.copy()
        changes[key] = record
        new._kind, new._rows, new._hashed = self._kind, (base, changes), None
        new._size = self._size + (record is not None) - (key in self)
        older = self._older if self._hashed is None else (self._hashed, None)
        new._older = None if older is None else (older[0], (key, older[1]))
        return new

    def _all(self) -> dict[bytes, V]:
        base, changes = self._rows
        if not changes:
            return base
        return {k: v for k, v in {**base, **changes}.items() if v is not None}

    def _tree(self) -> _Hashed:
        if self._hashed is None:
            if self._older is None:
                keys = sorted(self._all())
                self._hashed = keys, merkle.Tree([self._leaf_hash(key) for key in keys])
            else:
                self._hashed = self._grown(*self._older)
            self._older = None
        return self._hashed

    def _grown(self, old: _Hashed, touched: _Touched | None) -> _Hashed:
        """From an older version's tree: replaced leaves cost their paths, others all to the right of the first."""
        keys, tree = old
        changed: set[bytes] = set()
        while touched is not None:
            changed.add(touched[0])
            touched = touched[1]
        places = {key: bisect_left(keys, key) for key in changed}
        stays = {k: p for k, p in places.items() if k in self and p < len(keys) and keys[p] == k}
        moves = changed - stays.keys()
        tree = tree.replaced({place: self._leaf_hash(key) for key, place in stays.items()})
        if moves:
            start = min(places[key] for key in moves)
            leaves = dict(zip(keys[start:], tree.leaves(start), strict=True))
            for key in moves:
                leaves.pop(key, None)
                if key in self:
                    leaves[key] = self._leaf_hash(key)
            tail = sorted(leaves)
            keys, tree = keys[:start] + tail, tree.spliced(start, [leaves[key] for key in tail])
        return keys, tree

    def _leaf(self, key: bytes) -> bytes:
        out = bytearray()
        _KEY.write(out, key)
        _RECORD.write(out, encode_as(Record(self._kind), self[key]))
        return bytes(out)

    def _leaf_hash(self, key: bytes) -> Digest:
        return merkle.leaf_hash(self._leaf(key))
