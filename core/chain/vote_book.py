"""The votes of one height that a validator holds, and their power.

A validator that votes twice in one place is counted for both blocks, once each: which one the others saw is not known
here, and fewer than 1/3 of them cannot change a decision. Memory is bounded per validator.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from core.chain.evidence import is_equivocation
from core.chain.transaction import Equivocation
from core.chain.verify import is_quorum, is_third
from core.chain.vote import SignedVote, Step, Vote
from core.codec import decode
from core.errors import InputError
from core.ids import BlockHash, NodeId

__all__ = ["VoteBook"]

MAX_PER_PLACE: Final = 2
MAX_FUTURE_ROUNDS: Final = 16
"""Rounds ahead of the machine's own for which votes of one validator are kept: the latest ones."""

Pair = tuple[Vote, SignedVote]


class VoteBook:
    def __init__(self, power: Mapping[bytes, int]) -> None:
        self._power = power
        self._total = sum(power.values())
        self._places: dict[tuple[int, Step], dict[NodeId, list[Pair]]] = {}
        self._counted: dict[tuple[int, Step, BlockHash | None], int] = {}
        """Powers asked for since the last change."""

    def add(self, vote: Vote, signed: SignedVote, current_round: int) -> tuple[bool, Equivocation | None]:
        """Keeps a checked vote: whether it was new, and evidence if its signer contradicts itself."""
        pairs = self._places.get((vote.round, vote.step), {}).get(vote.validator, [])
        if any(s == signed or v == vote for v, s in pairs):
            return False, None
        if len(pairs) >= MAX_PER_PLACE and not self._completes(vote, pairs):
            return False, None
        if vote.round > current_round and not self._make_room(vote, current_round):
            return False, None
        evidence = next((Equivocation(s, signed) for v, s in pairs if is_equivocation(v, vote)), None)
        place = self._places.setdefault((vote.round, vote.step), {})
        place.setdefault(vote.validator, []).append((vote, signed))
        self._counted.clear()
        return True, evidence

    def _completes(self, vote: Vote, pairs: list[Pair]) -> bool:
        """Whether a vote beyond MAX_PER_PLACE is for a block that more than 1/3 voted for there. Else a validator that votes
        three ways could hide from some nodes a quorum that others saw. Few blocks have so many votes."""
        power = self.power(vote.round, vote.step, vote.block_hash)
        return is_third(power, self._total) and all(v.block_hash != vote.block_hash for v, _ in pairs)

    def _make_room(self, vote: Vote, current_round: int) -> bool:
        rounds = {r for (r, _), by in self._places.items() if r > current_round and vote.validator in by}
        if vote.round in rounds or len(rounds) < MAX_FUTURE_ROUNDS:
            return True
        oldest = min(rounds)
        if vote.round < oldest:
            return False
        for step in Step:
            self._places.get((oldest, step), {}).pop(vote.validator, None)
        self._counted.clear()
        return True

    def is_known(self, signed: SignedVote) -> bool:
        """Whether these very bytes are here; they were checked then."""
        try:
            vote = decode(Vote, signed.vote, 512)
        except InputError:
            return False
        return any(s == signed for _, s in self._places.get((vote.round, vote.step), {}).get(vote.validator, []))

    def votes(self, round_: int, step: Step, block_hash: BlockHash | None = None) -> Iterator[Pair]:
        """Votes of one place, for one block or for any."""
        for pairs in self._places.get((round_, step), {}).values():
            yield from (p for p in pairs if block_hash is None or p[0].block_hash == block_hash)

    def power(self, round_: int, step: Step, block_hash: BlockHash | None = None) -> int:
        place = (round_, step, block_hash)
        if place not in self._counted:
            self._counted[place] = sum(
                self._power[v] for v in {vote.validator for vote, _ in self.votes(round_, step, block_hash)}
            )
        return self._counted[place]

    def has_quorum(self, round_: int, step: Step, block_hash: BlockHash | None = None) -> bool:
        return is_quorum(self.power(round_, step, block_hash), self._total)

    def quorum_block(self, round_: int, step: Step) -> BlockHash | None:
        """The block (or NIL) that 2/3 voted for there."""
        for block_hash in {vote.block_hash for vote, _ in self.votes(round_, step)}:
            if self.has_quorum(round_, step, block_hash):
                return block_hash
        return None

    def rounds(self) -> list[int]:
        return sorted({r for (r, _), by in self._places.items() if by})

    def busiest_round_after(self, round_: int) -> int | None:
        """The highest round after ``round_`` in which more than 1/3 of the power voted."""
        for later in reversed(self.rounds()):
            if later <= round_:
                return None
            voters = {v.validator for step in Step for v, _ in self.votes(later, step)}
            if is_third(sum(self._power[v] for v in voters), self._total):
                return later
        return None

    def has_third(self) -> bool:
        """Whether more than 1/3 of the power voted at this height, in whatever rounds."""
        voters = {validator for by in self._places.values() for validator in by}
        return is_third(sum(self._power[v] for v in voters), self._total)
