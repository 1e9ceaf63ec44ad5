"""Building this node's transaction blocks, and the transaction that pays the auditors of a work block."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from core.chain import build
from core.chain.block import Block
from core.chain.state import State
from core.chain.transaction import Refusal, SignedTransaction, Verdicts
from core.crypto.signing import KeyPair
from core.ids import Amount
from node.pending import Pending
from node.store import ChainStore

__all__ = ["BlockAuthor"]

PATIENCE: Final = 0.4
"""Of a proposer's time, for the first word of an auditor after a work block: only the next block can pay them."""
_MAY_BE_GOOD: Final = (Refusal.TOO_EARLY, Refusal.BAD_NONCE)


class BlockAuthor:
    def __init__(self, store: ChainStore, key: KeyPair, pending: Pending) -> None:
        self._store = store
        self._key = key
        self._pending = pending

    async def build(self) -> Block:
        """A block on the tip with what waits and applies. Raises BlockError at a work height."""
        state, certificate = self._store.state, self._store.tip_certificate
        if state.pot is not None:
            await self._await_verdicts(state)
        transactions = self._transactions(state)
        built = await asyncio.to_thread(build.build_transaction_block, state, self._key, certificate, transactions)
        for dropped in built.dropped:
            if dropped.error.reason not in _MAY_BE_GOOD:
                self._pending.drop(dropped.tx_id, dropped.error.message)
        return built.block

    def own_verdicts(self) -> Verdicts | None:
        """After a work block that this node audited: who else did, as the transaction that pays them."""
        height = self._store.state.height
        record = self._store.work(height)
        if record is None or not any(record.z_digest):
            return None
        return Verdicts(height, record.z_digest, record.verdicts)

    async def _await_verdicts(self, state: State) -> None:
        end = time.monotonic() + PATIENCE * state.params.propose_ms / 1000
        while self.own_verdicts() is None and (left := end - time.monotonic()) > 0:
            seen = self._pending.arrived.count
            if any(isinstance(signed.decoded().payload, Verdicts) for signed in self._pending.candidates(state)):
                return
            try:
                async with asyncio.timeout(left):
                    await self._pending.arrived.wait(seen)
            except TimeoutError:
                return

    def _transactions(self, state: State) -> list[SignedTransaction]:
        """Of those that would pay the auditors only what this node can stand for: its own finding, or without one that of
        another validator."""
        found = self.own_verdicts()
        chosen: list[SignedTransaction] = []
        if found is not None:
            nonce = state.account(self._key.public_key).nonce
            chosen.append(build.make_transaction(self._key, state.chain_id, nonce, Amount(0), found))
        validators = {bytes(v.node_id) for v in state.validators}
        for signed in self._pending.candidates(state):
            transaction = signed.decoded()
            is_word = isinstance(transaction.payload, Verdicts)
            if not is_word or (found is None and transaction.sender in validators):
                chosen.append(signed)
        return chosen
