"""core.chain.table: versions, their trees and what differs between them."""

from __future__ import annotations

import random

import pytest

from core.chain import merkle
from core.chain.records import Account
from core.chain.table import Table
from core.codec import Reader
from core.errors import CryptoError
from core.ids import Amount


def anew(table: Table[Account]) -> Table[Account]:
    """The same records without a history."""
    return Table.read(Account, Reader(table.to_bytes()))


def test_roots_proofs_and_differences_are_those_of_tables_without_a_history() -> None:
    rng = random.Random(7)
    table = Table(Account, {bytes([i]): Account(Amount(i), 0) for i in range(0, 200, 3)})
    for step in range(60):
        before = table
        for _ in range(rng.choice([0, 1, 3, 700])):
            key = bytes([rng.randrange(256)])
            table = table.drop(key) if key in table and rng.random() < 0.4 else table.put(key, Account(Amount(step), 1))
        if rng.random() < 0.8:
            fresh = anew(table)
            assert (table.root, len(table), list(table)) == (fresh.root, len(fresh), list(fresh))
            assert table == fresh
            for key in rng.sample(list(table), min(3, len(table))):
                leaf, index, size, path = table.proof(key)
                assert (leaf, index, size, path) == fresh.proof(key)
                merkle.verify_proof(table.root, leaf, index, size, path)
        changed = set(table.changed(before))
        assert {k for k in {*table, *before} if table.get(k) != before.get(k)} <= changed
        assert changed <= {k for k in {*table, *before} if table.get(k) is not before.get(k)}
        assert before.root == anew(before).root


def test_what_is_not_there() -> None:
    table = Table(Account, {b"a": Account(Amount(1), 0)}).drop(b"a")
    assert table.root == merkle.EMPTY_ROOT
    assert (len(table), list(table), table.get(b"a")) == (0, [], None)
    for broken in (lambda: table[b"a"], lambda: table.drop(b"a")):
        with pytest.raises(KeyError):
            broken()
    with pytest.raises(CryptoError):
        merkle.verify_proof(table.root, b"leaf", 0, 1, ())
