"""Secure aggregation's messages: five orders of the manager, five answers, in the canonical encoding.

An order is public to the miners of the pool, but for what others sealed to one. An answer is sealed to the pool and signed
like an update (wire.py), so it is of one miner, one instruction and one round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, TypeAlias

from core.codec import U16, U32, U64, Fixed, Record, Seq, Union, Var, encode
from core.crypto.masking import MAX_PARTICIPANTS
from core.crypto.secure_messages import DIGEST_SIZE, MAX_SEALED_SHARES, Advert, Consent, Dealt, Reveal, Weigh
from core.market.contributions import counted
from pool.flower.wire import MAX_VECTOR_BYTES, Instruction

__all__ = [
    "MAX_FACTOR", "MAX_MASKED", "ORDER", "REPLY", "Agree", "Disclose", "Invite", "MaskedUpdate", "Order", "Reply", "Roster",
    "TrainMasked", "session_of", "weigh_by",
]  # fmt: skip

SESSION_LABEL: Final = b"pofl/mining/secure-session/v1"
MAX_MASKED: Final = 2 * MAX_VECTOR_BYTES
"""Eight bytes a number, where a plain update has four."""
MAX_FACTOR: Final = 16
"""Of the weight cap. A larger one would let one miner's vector drown all others', and so be seen in their sum."""


@dataclass(frozen=True, slots=True)
class Session:
    """What a sum is for; every signature and every mask of it is bound to this."""

    label: Annotated[bytes, Fixed(len(SESSION_LABEL))]
    run_id: Annotated[int, U64]
    round: Annotated[int, U32]
    job_id: Annotated[bytes, Fixed(32)]
    weight_factor: Annotated[int, U16]


@dataclass(frozen=True, slots=True)
class Invite:
    """Step 1: take part in a sum for this job; weights are capped at ``weight_factor`` medians of the others' examples."""

    job_id: Annotated[bytes, Fixed(32)]
    weight_factor: Annotated[int, U16]


@dataclass(frozen=True, slots=True)
class Roster:
    """Step 2: who takes part."""

    adverts: Annotated[tuple[Advert, ...], Seq(Record(Advert), MAX_PARTICIPANTS)]


@dataclass(frozen=True, slots=True)
class TrainMasked:
    """Step 3: train, and send the update masked. ``inbox``: what each of the roster sealed to this miner, empty if nothing."""

    instruction: Annotated[Instruction, Record(Instruction)]
    inbox: Annotated[tuple[bytes, ...], Seq(Var(MAX_SEALED_SHARES), MAX_PARTICIPANTS)]


@dataclass(frozen=True, slots=True)
class Agree:
    """Step 4: whose masked vectors came, as places in the roster."""

    survivors: Annotated[bytes, Var(MAX_PARTICIPANTS)]


@dataclass(frozen=True, slots=True)
class Disclose:
    """Step 5: enough agreed on that."""

    consents: Annotated[tuple[Consent, ...], Seq(Record(Consent), MAX_PARTICIPANTS)]


@dataclass(frozen=True, slots=True)
class MaskedUpdate:
    """Answer to 3: the model's parameters and, last, the mean loss: weighted, in fixed point, masked; 8 bytes each.

    ``held``: by the roster, the digest of the shares that each dealt to this miner, empty where none opened.
    """

    vector: Annotated[bytes, Var(MAX_MASKED)]
    held: Annotated[tuple[bytes, ...], Seq(Var(DIGEST_SIZE), MAX_PARTICIPANTS)]


Order: TypeAlias = Invite | Roster | TrainMasked | Agree | Disclose
Reply: TypeAlias = Advert | Dealt | MaskedUpdate | Consent | Reveal
ORDER: Final = Union({1: Invite, 2: Roster, 3: TrainMasked, 4: Agree, 5: Disclose})
REPLY: Final = Union({1: Advert, 2: Dealt, 3: MaskedUpdate, 4: Consent, 5: Reveal})


def session_of(run_id: int, round_number: int, job_id: bytes, weight_factor: int) -> bytes:
    return encode(Session(SESSION_LABEL, run_id, round_number, job_id, weight_factor))


def weigh_by(factor: int) -> Weigh:
    """The rule that pay follows, too (core.market.contributions)."""

    def weigh(examples: Sequence[int]) -> Sequence[int]:
        return counted(examples, factor)

    return weigh
