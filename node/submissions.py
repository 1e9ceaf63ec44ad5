"""Transactions on their way into the mempool: of users, of other nodes, and of this node's own account."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from core.chain import build, rules
from core.chain.state import State
from core.chain.transaction import Payload, SignedTransaction
from core.crypto.signing import KeyPair
from core.errors import TransactionError
from core.ids import AccountId, Amount, TxId
from node.links import Acceptance
from node.pending import Pending
from services.rpc.views import TransactionStatus, TxStatus
from services.runtime.metrics import counter, gauge

__all__ = ["MEMPOOL", "Submissions"]

MEMPOOL = gauge("node_mempool", "Transactions that wait.")
REFUSED = counter("node_transactions_refused", "Transactions refused, by reason.", ("reason",))


class Tip(Protocol):
    """Whose last state transactions are judged by."""

    @property
    def state(self) -> State: ...


class Submissions:
    """The mempool's door."""

    def __init__(
        self,
        tip: Tip,
        key: KeyPair,
        pending: Pending,
        broadcast: Callable[[SignedTransaction], None],
        due: Callable[[], None],
    ) -> None:
        """``due`` is called when a transaction came in and a block could take one."""
        self._tip = tip
        self._key = key
        self._pending = pending
        self._broadcast = broadcast
        self._due = due

    def status(self, tx_id: TxId) -> TransactionStatus:
        """Of a transaction that is in no finalised block."""
        if tx_id in self._pending:
            return TransactionStatus(TxStatus.PENDING)
        reason = self._pending.refusal(tx_id)
        if reason is not None:
            return TransactionStatus(TxStatus.REFUSED, None, reason)
        return TransactionStatus(TxStatus.UNKNOWN)

    def submit(self, transaction: SignedTransaction) -> None:
        """Into the mempool and to every peer. Raises TransactionError."""
        if self._add(transaction):
            self._broadcast(transaction)

    def submit_own(self, payload: Payload) -> TxId:
        """A transaction of this node's account. Raises TransactionError."""
        state, account = self._tip.state, AccountId(self._key.public_key)
        nonce = self._pending.next_nonce(state, account)
        free = build.make_transaction(self._key, state.chain_id, nonce, Amount(0), payload)
        fee = state.params.least_fee(len(free.transaction))
        is_free = rules.is_fee_free(payload)
        transaction = free if is_free else build.make_transaction(self._key, state.chain_id, nonce, fee, payload)
        self.submit(transaction)
        return transaction.tx_id

    def take(self, transaction: SignedTransaction) -> Acceptance:
        """One that a peer passes on."""
        try:
            is_new = self._add(transaction, note=False)
        except TransactionError:
            # Another node may be further, or less far: what it took may be refused here, and is not refused for good.
            return Acceptance.DROP
        return Acceptance.RELAY if is_new else Acceptance.DROP

    def _add(self, transaction: SignedTransaction, note: bool = True) -> bool:
        try:
            is_new = self._pending.add(self._tip.state, transaction, note)
        except TransactionError as error:
            REFUSED.labels(error.reason).inc()
            raise
        MEMPOOL.set(len(self._pending))
        self._due()
        return is_new
