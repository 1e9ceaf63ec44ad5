"""What was said at the height being decided, for peers that come to it later: bounded for each signer.

Votes are the only messages of which one signer can make as many as it likes: rounds have no end. A validator that votes in ever
later rounds pushes out votes of its own, and nobody else's. Verdicts and answers are kept as far as the machine and
node.answers take them, which is a few of each signer and claim.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from core.chain.consensus import MAX_PROPOSAL_AHEAD
from core.chain.messages import Message
from core.chain.vote import Proposal, SignedProposal, SignedVote, Vote
from core.codec import decode
from core.verification.receipt import SignedAnswer

__all__ = ["Said"]

ROUNDS: Final = 16
"""Of one validator's votes, and of proposals: the latest ones that have begun here."""
LATER_ROUNDS: Final = 2
"""Of one validator's votes in rounds that have not begun here: the latest ones, as an honest validator sends those of its round
again and again."""

VOTES, PROPOSALS = "votes", "proposals"
_Row = tuple[str, bytes]
"""Votes of a validator, or proposals."""


class Said:
    """In order of arrival, each once."""

    def __init__(self) -> None:
        self._messages: dict[Message | SignedAnswer, None] = {}
        self._rounds: dict[_Row, dict[int, list[Message]]] = {}

    def __len__(self) -> int:
        return len(self._messages)

    def __iter__(self) -> Iterator[Message | SignedAnswer]:
        return iter(self._messages)

    def __contains__(self, message: object) -> bool:
        return message in self._messages

    def put(self, message: Message | SignedAnswer, round_: int) -> None:
        """A message that was checked, while this node is in ``round_``. It may be the one for which there is no room."""
        if message in self._messages:
            return
        self._messages[message] = None
        if isinstance(message, SignedVote):
            vote = decode(Vote, message.vote, 512)
            self._bound((VOTES, vote.validator), vote.round, message, round_)
        elif isinstance(message, SignedProposal):
            self._bound((PROPOSALS, b""), decode(Proposal, message.proposal, 512).round, message, round_)

    def clear(self) -> None:
        """The next height begins."""
        self._messages.clear()
        self._rounds.clear()

    def _bound(self, row: _Row, its_round: int, message: Message, round_: int) -> None:
        rounds = self._rounds.setdefault(row, {})
        rounds.setdefault(its_round, []).append(message)
        later = [r for r in rounds if r > round_]
        gone: int | None = None
        if len(later) > (LATER_ROUNDS if row[0] == VOTES else MAX_PROPOSAL_AHEAD):
            gone = min(later)
        elif len(rounds) - len(later) > ROUNDS:
            gone = min(rounds)
        if gone is not None:
            for old in rounds.pop(gone):
                self._messages.pop(old, None)
