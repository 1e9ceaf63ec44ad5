"""What goes into the consensus machine and what comes out of it, and the record it keeps on disk.

Events and actions are plain values. The caller does what actions say **in order**: above all, ``Persist`` is written with
one synced write before a later ``Broadcast`` is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated

from core.chain.block import MAX_BODY, MAX_HEADER, MAX_VALIDATORS, Block, Certificate
from core.chain.state import Entry, State
from core.chain.transaction import Payload
from core.chain.vote import SignedProposal, SignedVerdict, SignedVote, VerdictKind
from core.codec import DIGEST, I32, U8, U64, Maybe, Record, Seq, Var
from core.ids import BlockHash, Correct, Digest, Height, ModelCommitment

__all__ = [
    "Action", "AuditClaim", "AuditDone", "AuditFailed", "BlockAvailable", "BlockBuilt", "BodyHeld", "Broadcast",
    "ConsensusRecord", "Event", "Faulty",
    "Finalise", "Message", "NeedBlock", "OpeningAwaited", "Persist", "ReceivedProposal", "ReceivedVerdict", "ReceivedVote",
    "Relay",
    "RequestBlock", "RequestWork", "RoundStep", "SetTimer", "Start", "Timeout", "Timer", "TimerKind", "TransactionsWaiting",
]  # fmt: skip

Message = SignedProposal | SignedVote | SignedVerdict
"""What validators gossip at a height."""


class TimerKind(IntEnum):
    PROPOSE = 1
    """key: the round."""
    PREVOTE = 2
    PRECOMMIT = 3
    DUE = 4
    """A block may be due now, or a preference have changed."""
    BODY = 5
    """key: the claim's place in rank order. Work block and Vm body should be here."""
    AUDIT = 6
    """key: as BODY. The audit should be over."""
    RESEND = 7


@dataclass(frozen=True, slots=True)
class Timer:
    kind: TimerKind
    key: int


# -- events ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Once, first; also after a restart."""


@dataclass(frozen=True, slots=True)
class Timeout:
    timer: Timer


@dataclass(frozen=True, slots=True)
class TransactionsWaiting:
    """Whether the mempool holds a transaction that applies on the tip."""

    waiting: bool


@dataclass(frozen=True, slots=True)
class ReceivedProposal:
    signed: SignedProposal


@dataclass(frozen=True, slots=True)
class ReceivedVote:
    signed: SignedVote


@dataclass(frozen=True, slots=True)
class ReceivedVerdict:
    signed: SignedVerdict


@dataclass(frozen=True, slots=True)
class BlockAvailable:
    """A block of this height from whoever had it: the answer to RequestBlock or RequestWork, or a pool's work block."""

    block: Block
    verdicts: tuple[SignedVerdict, ...] = ()


@dataclass(frozen=True, slots=True)
class BlockBuilt:
    """The answer to NeedBlock: core.chain.build.build_transaction_block."""

    round: int
    block: Block


@dataclass(frozen=True, slots=True)
class BodyHeld:
    """The Vm body of a claim is here, whole, and hashes to its commitment."""

    model_commitment: ModelCommitment


@dataclass(frozen=True, slots=True)
class AuditDone:
    """This node's own finding about a claim; ``z_digest`` is there iff the zero check passed."""

    model_commitment: ModelCommitment
    kind: VerdictKind
    correct: Correct
    reason: str
    z_digest: Digest | None


@dataclass(frozen=True, slots=True)
class AuditFailed:
    """This node failed at its own part of an audit: nothing is known of pool or requester."""

    model_commitment: ModelCommitment


@dataclass(frozen=True, slots=True)
class OpeningAwaited:
    """The requester signed "malformed" about a claim within audit_ms: its pool has open_ms from now to open it."""

    model_commitment: ModelCommitment


Event = (
    Start | Timeout | TransactionsWaiting | ReceivedProposal | ReceivedVote | ReceivedVerdict | BlockAvailable | BlockBuilt
    | BodyHeld | AuditDone | AuditFailed | OpeningAwaited
)  # fmt: skip


# -- actions -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Persist:
    """Write this in one synced write, replacing the former, before doing what follows."""

    record: bytes


@dataclass(frozen=True, slots=True)
class Broadcast:
    """Send to every validator: own messages, and on resending what others may lack."""

    message: Message


@dataclass(frozen=True, slots=True)
class Relay:
    """A peer's message that was new and passed every check: forward it."""

    message: Message


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Give back Timeout(timer) after ``delay_ms``; a second timer of the same kind and key replaces the first."""

    timer: Timer
    delay_ms: int


@dataclass(frozen=True, slots=True)
class NeedBlock:
    """This node proposes in ``round``: build a transaction block and give it back as BlockBuilt."""

    round: int


@dataclass(frozen=True, slots=True)
class RequestBlock:
    """2/3 voted for a block that is not here: fetch it from peers."""

    block_hash: BlockHash


@dataclass(frozen=True, slots=True)
class RequestWork:
    """The adopted claim's work block is not here: fetch it from peers or the pool."""

    claim: Entry


@dataclass(frozen=True, slots=True)
class AuditClaim:
    """``claim``, number ``index`` in rank order, is the top remaining one: fetch its block and body, and audit it."""

    index: int
    claim: Entry


@dataclass(frozen=True, slots=True)
class Finalise:
    """The block is final: store block, certificate, state and verdicts in one write; the machine is done."""

    block: Block
    certificate: Certificate
    state: State
    justification: tuple[SignedVerdict, ...]
    """At a work height, verdicts that lead to this block; empty if this node decided on the votes alone."""
    verdicts: tuple[SignedVerdict, ...]
    """All verdicts of this height known here."""


@dataclass(frozen=True, slots=True)
class Faulty:
    """Somebody signed what no honest signer signs: send this payload as a transaction."""

    evidence: Payload


Action = (
    Persist | Broadcast | Relay | SetTimer | NeedBlock | RequestBlock | RequestWork | AuditClaim | Finalise | Faulty
)  # fmt: skip


# -- what survives a restart -------------------------------------------------------------------------------------------


class RoundStep(IntEnum):
    """Where in a round the machine is; WAITING: no round has started."""

    WAITING = 0
    PROPOSE = 1
    PREVOTE = 2
    PRECOMMIT = 3


@dataclass(frozen=True, slots=True)
class ConsensusRecord:
    """Everything that keeps a restarted validator from contradicting itself."""

    chain_id: Annotated[Digest, DIGEST]
    height: Annotated[Height, U64]
    round: Annotated[int, I32]
    step: Annotated[int, U8]
    proposal: Annotated[SignedProposal | None, Maybe(Record(SignedProposal))]
    """Its own, of the current round."""
    votes: Annotated[tuple[SignedVote, ...], Seq(Record(SignedVote), 64)]
    """Its own, of the last rounds."""
    verdicts: Annotated[tuple[SignedVerdict, ...], Seq(Record(SignedVerdict), 4096)]
    """Its own."""
    locked_round: Annotated[int, I32]
    locked_block: Annotated[bytes, Var(MAX_HEADER + MAX_BODY + 128)]
    """Empty for none."""
    locked_verdicts: Annotated[tuple[SignedVerdict, ...], Seq(Record(SignedVerdict), 65536)]
    valid_round: Annotated[int, I32]
    valid_block: Annotated[bytes, Var(MAX_HEADER + MAX_BODY + 128)]
    valid_verdicts: Annotated[tuple[SignedVerdict, ...], Seq(Record(SignedVerdict), 65536)]
    """What justified the blocks at a work height."""
    polka: Annotated[tuple[SignedVote, ...], Seq(Record(SignedVote), MAX_VALIDATORS)]
    """The prevotes of 2/3 for ``valid_block`` in ``valid_round``: a re-proposal needs them."""
