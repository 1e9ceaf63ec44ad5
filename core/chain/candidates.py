"""The blocks of one height that could be decided: which apply, which are justified, which are preferred.

Together these are the design's ``is_valid(block)`` and ``is_preferred(block)`` (design: consensus, "Work height").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from core.chain import rules
from core.chain.block import Block, BlockKind, Header
from core.chain.state import State
from core.chain.transaction import PoolFault, VerdictEquivocation, Verdicts
from core.chain.vote import SignedVerdict, VerdictKind
from core.chain.work_height import WorkHeight
from core.codec import decode
from core.errors import BlockError, InputError, TransactionError, VoteError
from core.ids import BlockHash, Digest, Milliseconds, ModelCommitment

__all__ = ["Candidate", "Candidates"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A block that applies to the parent's state."""

    block: Block
    header: Header
    state: State
    """After it."""
    is_empty: bool


class Candidates:
    def __init__(self, state: State, work: WorkHeight, audited: Digest | None) -> None:
        self._state = state
        self._work = work
        self._audited = audited
        self._is_work = rules.is_work_height(state)
        self._blocks: dict[BlockHash, Candidate] = {}
        self._justified: dict[BlockHash, tuple[SignedVerdict, ...]] = {}
        self._work_blocks: dict[ModelCommitment, BlockHash] = {}
        self._faulty: set[ModelCommitment] = set()

    def __contains__(self, block_hash: BlockHash) -> bool:
        return block_hash in self._blocks

    def get(self, block_hash: BlockHash) -> Candidate | None:
        return self._blocks.get(block_hash)

    def verdicts_for(self, block_hash: BlockHash) -> tuple[SignedVerdict, ...]:
        """The set that justified the block; empty if nothing did or had to."""
        return self._justified.get(block_hash, ())

    def work_block(self, commitment: ModelCommitment) -> BlockHash | None:
        """The first work block that came for a claim."""
        return self._work_blocks.get(commitment)

    def take(
        self, block: Block, verdicts: Iterable[SignedVerdict] = ()
    ) -> tuple[Candidate, list[PoolFault | VerdictEquivocation]]:
        """Keeps a block and the verdicts that came with it, all or nothing; also what they prove against somebody.

        Raises:
            BlockError, WrongChainError: the block does not apply to the state.
            VoteError: a verdict is wrong, or there are more than could be.
        """
        block_hash = block.block_hash
        known = self._blocks.get(block_hash)
        if known is None:
            after = rules.apply_block(self._state, block)
            known = Candidate(block, block.header.decoded(), after, not block.decoded_body().transactions)
        signed = tuple(dict.fromkeys(verdicts))
        limit = len(self._work.claims) * len(self._state.validators) * len(VerdictKind)
        if len(signed) > limit:
            raise VoteError(f"{len(signed)} verdicts come with a block; there are at most {limit}")
        pairs = [(self._work.check(s), s) for s in signed]
        evidence = [found for found in (self._work.add(v, s)[1] for v, s in pairs) if found is not None]
        self._blocks[block_hash] = known
        is_first = block_hash not in self._justified
        if pairs and is_first and self._work.is_justified(known.header, (v for v, _ in pairs)):
            self._justified[block_hash] = signed
        return known, [*evidence, *self._keep_work_block(known)]

    def _keep_work_block(self, known: Candidate) -> list[PoolFault]:
        if known.header.kind is not BlockKind.WORK or known.header.vm is None:
            return []
        commitment = known.header.vm.model_commitment
        first = self._work_blocks.setdefault(commitment, known.block.block_hash)
        if first == known.block.block_hash or commitment in self._faulty:
            return []
        self._faulty.add(commitment)
        return [PoolFault(self._blocks[first].block.header, known.block.header)]

    def is_valid(self, block_hash: BlockHash) -> bool:
        """Whether the block is here, applies, and at a work height was justified once. Monotone."""
        known = self._blocks.get(block_hash)
        if known is None:
            return False
        if self._is_work and block_hash not in self._justified:
            if not self._work.is_justified(known.header):
                return False
            self._justified[block_hash] = self._work.all_signed()
        return True

    def pack(self, place: tuple[int, BlockHash] | None) -> tuple[int, bytes, tuple[SignedVerdict, ...]]:
        """A lock, or the valid block, of a round, for the disk: the round (-1 for none), the block, what justified it."""
        known = None if place is None else self._blocks.get(place[1])
        if place is None or known is None:
            return -1, b"", ()
        return place[0], known.block.to_bytes(), self.verdicts_for(place[1])

    def unpack(self, round_: int, block: bytes, verdicts: tuple[SignedVerdict, ...]) -> tuple[int, BlockHash] | None:
        """The other way; keeps the block. Raises as ``take``, or MalformedError."""
        if round_ < 0:
            return None
        known, _ = self.take(decode(Block, block), verdicts)
        return round_, known.block.block_hash

    def preferred_from(self, block_hash: BlockHash, now_ms: Milliseconds) -> Milliseconds | None:
        """From when on a fresh proposal of this block may be prevoted, as far as is known now; None: not at all.

        An empty block waits for the tick; a work or void block must be the best outcome known here; a Verdicts
        transaction must reveal the z_digest that this node's own audit found, if it audited.
        """
        known, params = self._blocks[block_hash], self._state.params
        if self._is_work:
            return now_ms if self._work.is_preferred(known.header, now_ms, params.gossip_ms) else None
        if known.is_empty:
            tip = self._state.tip
            return tip.timestamp_ms if tip.height == 0 else Milliseconds(tip.timestamp_ms + params.tick_ms)
        return None if self._pays_wrongly(known.block) else now_ms

    def _pays_wrongly(self, block: Block) -> bool:
        if self._audited is None or self._state.pot is None:
            return False
        try:
            first = rules.decode_transaction(block.decoded_body().transactions[0]).decoded().payload
        except (InputError, TransactionError, IndexError) as error:
            raise BlockError(f"a block that applied does not decode: {error}") from None
        return isinstance(first, Verdicts) and first.z_digest != self._audited
