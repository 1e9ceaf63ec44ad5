"""Transactions that wait for a block. A value: every change gives a new mempool (design: consensus, "Node").

Per sender they wait in order of their nonces, at most rules.MAX_NONCE_AHEAD of them. A transaction that is only too early
stays; one that cannot become good is refused with its reason. The same account and nonce again replaces, if it pays a tenth
more.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from core.chain import rules
from core.chain.block import MAX_TRANSACTION
from core.chain.records import Validator
from core.chain.state import State
from core.chain.transaction import Refusal, SignedTransaction, Transaction
from core.errors import InputError, TransactionError
from core.ids import AccountId, Milliseconds, TxId, short
from core.params import kib_begun

__all__ = ["Mempool", "Waiting", "add", "after_block", "candidates", "has_candidates", "is_candidate", "next_nonce"]

MAX_WAITING: Final = 4096
MAX_BYTES: Final = 32 * 1024 * 1024
EXPIRY_MS: Final = 10 * 60 * 1000
BUMP_PERCENT: Final = 10
"""Each replacement is sent to every node: it must pay that much more."""
_LATER: Final = (Refusal.TOO_EARLY, Refusal.BAD_NONCE)


@dataclass(frozen=True, slots=True)
class Waiting:
    signed: SignedTransaction
    transaction: Transaction
    since_ms: Milliseconds
    """On this node's clock."""
    tx_id: TxId

    @property
    def size(self) -> int:
        return len(self.signed.transaction)

    @property
    def rate(self) -> int:
        """What it pays for each KiB begun, in thousandths."""
        return _rate(self.transaction, self.size)


@dataclass(frozen=True, slots=True)
class Mempool:
    """By sender and nonce."""

    waiting: Mapping[tuple[AccountId, int], Waiting] = field(default_factory=dict)
    size: int = 0
    """Bytes of all transactions."""
    _worst: dict[tuple[Validator, ...], Waiting | None] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What goes first where the pool is full, once it is known."""

    def __len__(self) -> int:
        return len(self.waiting)

    def __contains__(self, tx_id: object) -> bool:
        return any(w.tx_id == tx_id for w in self.waiting.values())

    def get(self, tx_id: TxId) -> SignedTransaction | None:
        return next((w.signed for w in self.waiting.values() if w.tx_id == tx_id), None)


def add(pool: Mempool, state: State, signed: SignedTransaction, now_ms: Milliseconds, limit: int = MAX_WAITING) -> Mempool:
    """The pool with this transaction; the same pool if it is in there already.

    A full pool gives up what pays least for what pays more, and for a validator's duties, which pay nothing. Who pays too
    little for it is refused before anything that costs more than reading is done.

    Raises:
        TransactionError: it will not become good, pays no more than the one it would replace, or there is no room.
    """
    if len(signed.transaction) > MAX_TRANSACTION:
        raise TransactionError(f"{len(signed.transaction)} bytes, at most {MAX_TRANSACTION}", Refusal.LIMIT)
    limit = min(limit, MAX_WAITING)
    _check_room(pool, state, signed, limit)
    try:
        tx = rules.check_transaction(state, signed)
    except TransactionError as error:
        if error.reason != Refusal.TOO_EARLY:
            raise
        tx = signed.decoded()
    place = (tx.sender, tx.nonce)
    known = pool.waiting.get(place)
    if known is not None:
        if known.signed == signed:
            return pool
        least = max(known.transaction.fee + 1, -(-known.transaction.fee * (100 + BUMP_PERCENT) // 100))
        if tx.fee < least:
            raise TransactionError(
                f"nonce {tx.nonce} of {short(tx.sender)} waits with fee {known.transaction.fee}: pay {least} to replace it",
                Refusal.FEE_TOO_LOW, fee=tx.fee, waiting=known.transaction.fee, least=least,
            )  # fmt: skip
    waiting, size = dict(pool.waiting), pool.size + len(signed.transaction)
    if known is not None:
        size -= waiting.pop(place).size
    while len(waiting) >= limit or size > MAX_BYTES:
        worst = _worst(pool, state) if len(waiting) == len(pool.waiting) else _least(waiting, state)
        _check_better(worst, state, tx, len(signed.transaction), len(waiting))
        assert worst is not None
        size -= waiting.pop((worst.transaction.sender, worst.transaction.nonce)).size
    waiting[place] = Waiting(signed, tx, now_ms, signed.tx_id)
    return replace(pool, waiting=waiting, size=size)


def _rate(tx: Transaction, size: int) -> int:
    return tx.fee * 1000 // kib_begun(size)


def _check_room(pool: Mempool, state: State, signed: SignedTransaction, limit: int) -> None:
    """Raises TransactionError if the pool is full and the transaction says itself that it pays too little for a place."""
    if len(pool) < limit and pool.size + len(signed.transaction) <= MAX_BYTES:
        return
    try:
        tx = signed.decoded()
    except InputError:
        return
    if (tx.sender, tx.nonce) not in pool.waiting:
        _check_better(_worst(pool, state), state, tx, len(signed.transaction), len(pool))


def _worst(pool: Mempool, state: State) -> Waiting | None:
    """As ``_least``, looked for once for a pool: whoever is refused does not change it."""
    if state.validators not in pool._worst:
        pool._worst[state.validators] = _least(pool.waiting, state)
    return pool._worst[state.validators]


def _least(waiting: Mapping[tuple[AccountId, int], Waiting], state: State) -> Waiting | None:
    """The worst that waits, but for validators' duties: least fee for its size, of one sender the last."""
    validators = _names(state.validators)
    others = (w for place, w in waiting.items() if place[0] not in validators)
    return min(others, key=lambda w: (w.rate, -w.transaction.nonce, -w.since_ms), default=None)


@functools.lru_cache(maxsize=4)
def _names(validators: tuple[Validator, ...]) -> frozenset[bytes]:
    """A full pool asks for them with each transaction that comes; they change seldom."""
    return frozenset(bytes(v.node_id) for v in validators)


def _check_better(worst: Waiting | None, state: State, tx: Transaction, size: int, count: int) -> None:
    """Raises TransactionError unless ``tx`` may take the place of the worst that waits."""
    if worst is not None and _rate(tx, size) > worst.rate:
        return
    if worst is None or tx.sender not in _names(state.validators):
        raise TransactionError(f"{count} transactions wait already: pay more, or try again later", Refusal.LIMIT, waiting=count)


def after_block(pool: Mempool, state: State, now_ms: Milliseconds) -> tuple[Mempool, tuple[tuple[TxId, str], ...]]:
    """The pool on a new tip: without what is in blocks, expired or no longer good; and what was dropped, with why.

    Transactions that a block has taken are not named.
    """
    kept: dict[tuple[AccountId, int], Waiting] = {}
    dropped: list[tuple[TxId, str]] = []
    for place, waiting in sorted(pool.waiting.items()):
        if place[1] < state.account(place[0]).nonce:
            continue
        if now_ms > waiting.since_ms + EXPIRY_MS:
            dropped.append((waiting.tx_id, f"waited longer than {EXPIRY_MS // 1000} s"))
            continue
        try:
            rules.check_waiting(state, waiting.signed, waiting.transaction)
        except TransactionError as error:
            if error.reason not in _LATER:
                dropped.append((waiting.tx_id, error.message))
                continue
        kept[place] = waiting
    return Mempool(kept, sum(w.size for w in kept.values())), tuple(dropped)


def candidates(pool: Mempool, state: State) -> tuple[SignedTransaction, ...]:
    """What a block on ``state`` may take, best fees first, each sender's in order of nonce and without a gap.

    A sender's row ends at a transaction that does not apply on the tip now.
    """
    rows: list[list[Waiting]] = []
    for sender in {s for s, _ in pool.waiting}:
        nonce = state.account(sender).nonce
        row: list[Waiting] = []
        while (waiting := pool.waiting.get((sender, nonce))) is not None:
            row.append(waiting)
            nonce += 1
        if row and _applies(state, row[0].signed):
            rows.append(row)
    rows.sort(key=lambda row: (-row[0].rate, row[0].since_ms, row[0].transaction.sender))
    return tuple(w.signed for row in rows for w in row)


def has_candidates(pool: Mempool, state: State) -> bool:
    """Whether a block on ``state`` would take anything: what makes it due."""
    heads = (pool.waiting.get((sender, state.account(sender).nonce)) for sender in {s for s, _ in pool.waiting})
    return any(head is not None and _applies(state, head.signed) for head in heads)


def is_candidate(state: State, signed: SignedTransaction) -> bool:
    """Whether a block on ``state`` would take this one, first of its sender. New in a pool without candidates, it is the only
    one that can be."""
    tx = signed.decoded()
    return tx.nonce == state.account(tx.sender).nonce and _applies(state, signed)


def next_nonce(pool: Mempool, state: State, account: AccountId) -> int:
    """The first nonce that neither the chain nor the pool has used."""
    nonce = state.account(account).nonce
    while (account, nonce) in pool.waiting:
        nonce += 1
    return nonce


def _applies(state: State, signed: SignedTransaction) -> bool:
    try:
        rules.check_transaction(state, signed)
    except TransactionError:
        return False
    return True
