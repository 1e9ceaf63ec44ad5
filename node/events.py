"""What goes through the driver's queue, and what the driver asks of who handles work heights."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from core.chain.block import Block, Certificate
from core.chain.messages import Event, Message, ReceivedProposal, ReceivedVerdict, ReceivedVote
from core.chain.state import Entry, State
from core.chain.vote import Proposal, SignedProposal, SignedVerdict, SignedVote, Verdict, Vote
from core.codec import decode
from core.ids import Digest, Height
from core.verification.receipt import SignedAnswer
from node.links import Acceptance
from node.store import AuditTime

__all__ = ["FROM_PEERS", "Fetched", "Item", "WorkHooks", "height_of", "received"]

FROM_PEERS = (ReceivedProposal, ReceivedVote, ReceivedVerdict)


class WorkHooks(Protocol):
    """What the driver asks of who handles work heights."""

    def enter(self, state: State) -> None:
        """A new height begins."""

    def examine(self, index: int, claim: Entry) -> None:
        """Fetch and audit a claim; results come back as events."""

    def need_block(self, claim: Entry) -> None: ...

    def noted(self) -> None:
        """A verdict came in."""

    def hear(self, signed: SignedAnswer) -> Acceptance:
        """An answer of the requester that a node passes on. Raises WrongChainError, CryptoError."""

    def audits(self) -> tuple[tuple[AuditTime, ...], dict[bytes, Digest]]:
        """How long own audits of this height took, and the z_digests they gave, by commitment."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """Finalised blocks that a peer gave, in order."""

    blocks: tuple[tuple[Block, Certificate], ...]


@dataclass(slots=True)
class Item:
    what: Event | Fetched
    height: Height | None
    """The height that it is about; None for whichever is being decided."""
    done: asyncio.Future[Acceptance] | None = None


def received(message: Message) -> Event:
    match message:
        case SignedProposal():
            return ReceivedProposal(message)
        case SignedVote():
            return ReceivedVote(message)
        case SignedVerdict():
            return ReceivedVerdict(message)


def height_of(message: Message) -> Height:
    """Raises MalformedError, LimitError."""
    match message:
        case SignedProposal():
            return decode(Proposal, message.proposal, 512).height
        case SignedVote():
            return decode(Vote, message.vote, 512).height
        case SignedVerdict():
            return decode(Verdict, message.verdict, 1024).height
