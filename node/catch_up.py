"""Blocks that others made final: executed one after another as any block, stored several at a time (docs/adr/0086)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from core.chain import rules
from core.chain import verify as checks
from core.chain.block import Block, Certificate
from core.chain.state import State
from core.errors import BlockError, PoflError, StorageError
from core.ids import short
from node.light import LightService
from node.rows import transaction_ids
from node.store import ChainStore, FinalBlock

__all__ = ["CatchUp", "catch_up", "final_state"]

MAX_BLOCKS: Final = 64
MAX_BYTES: Final = 4 * 1024 * 1024
"""Of the blocks of one write. What a power failure takes is fetched again."""


class CatchUp:
    """Adds blocks to a store, which nobody else writes to meanwhile."""

    def __init__(self, store: ChainStore, light: LightService | None) -> None:
        self.state = store.state
        """After the last block that was added, stored or not."""
        self._store = store
        self._light = light
        self._waiting: list[FinalBlock] = []
        self._rows: dict[bytes, bytes] = {}
        self._size = 0

    def add(self, block: Block, certificate: Certificate) -> State:
        """The state after the next block; it is stored later. Raises BlockError, WrongChainError, StorageError."""
        after = final_state(self.state, block, certificate)
        if self._light is not None:
            self._rows |= self._light.rows(self.state)
        self._waiting.append(FinalBlock(block, certificate, after, transaction_ids(block)))
        self._size += len(block.body)
        self.state = after
        if len(self._waiting) >= MAX_BLOCKS or self._size >= MAX_BYTES:
            self.write()
        return after

    def write(self) -> None:
        """All that was added is on the disk when this returns. Raises StorageError."""
        if self._waiting:
            self._store.commit_all(self._waiting, self._rows)
            self._waiting, self._rows, self._size = [], {}, 0


def catch_up(
    store: ChainStore, light: LightService | None, blocks: Sequence[tuple[Block, Certificate]]
) -> tuple[list[State], PoflError | None]:
    """The states after those blocks that are final, which are stored then, and what is wrong with the next. Raises
    StorageError."""
    new = CatchUp(store, light)
    states: list[State] = []
    failure: PoflError | None = None
    try:
        for block, certificate in blocks:
            states.append(new.add(block, certificate))
    except StorageError:
        raise
    except PoflError as error:
        failure = error
    new.write()
    return states, failure


def final_state(state: State, block: Block, certificate: Certificate) -> State:
    """The state after a block that ``certificate`` makes final. Raises BlockError, WrongChainError."""
    if (certificate.height, certificate.block_hash) != (state.height + 1, block.block_hash):
        raise BlockError(
            f"a certificate of height {certificate.height} for block {short(certificate.block_hash)}, the block is "
            f"{short(block.block_hash)} after height {state.height}"
        )
    checks.check_certificate(certificate, state.chain_id, state.validators)
    return rules.apply_block(state, block)
