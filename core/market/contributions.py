"""What a pool's members contributed to a task: said by the pool, answered by the miner, paid by the chain.

After each round the pool signs a *head*: who is counted for how much is in the Merkle root of its *lines*, and each head
names the one before, so that signing one is signing all. Each member gets the head, its own line and the path between them,
and answers with its signature: agreed, or an objection. When training is over the pool signs one *closing*: the sums, from
which ``share_out`` makes the payout list of the work block, to the last unit.

The payout list is on the chain, one for all. A pool that shows different members different heads or closings, or pays other
than it signed, is caught by whoever compares: two signed heads of one number that differ, or a closing and a block that do
not fit, are proof for anybody (docs/adr/0095). All numbers are integers.

(Paper, section II: the manager "allocates the reward to miners according to their contributions"; design: mining.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Final

from core.chain import merkle
from core.chain.block import MAX_MINERS, Payout
from core.codec import DIGEST, PUBLIC_KEY, SIGNATURE, U16, U32, U64, Record, Seq, Text, Union, encode
from core.crypto import signing
from core.crypto.hashing import digest
from core.errors import CheatingError, CryptoError, LimitError, MalformedError
from core.ids import MILLION, AccountId, Amount, Digest, Signature, TaskId, short

__all__ = [
    "Answer", "Closing", "Entry", "Line", "RoundHead", "RoundReceipt", "RoundSheet", "Share", "SignedAnswer",
    "SignedClosing", "SignedHead",
    "check_payouts", "check_same", "closing_digest", "contradiction", "counted", "head_digest", "lines_root", "receipt_of",
    "share_out", "shares_of", "sign_answer", "sign_closing", "sign_head", "verify_answer", "verify_closing", "verify_head",
    "verify_receipt",
    "ENTRY", "MAX_ENTRY", "MAX_LINES", "MAX_PAID", "MAX_REASON", "NO_HEAD",
]  # fmt: skip

DOMAIN_HEAD: Final = b"pofl/contribution-head/1"
DOMAIN_CLOSING: Final = b"pofl/contribution-closing/1"
DOMAIN_ANSWER: Final = b"pofl/contribution-answer/1"
DOMAIN_HEAD_DIGEST: Final = b"pofl/contribution-head-digest/1"
DOMAIN_CLOSING_DIGEST: Final = b"pofl/contribution-closing-digest/1"
MAX_LINES: Final = MAX_MINERS
"""Members that take part in one round."""
MAX_SHARES: Final = 8 * MAX_MINERS
"""Members that took part in some round of a task."""
MAX_REASON: Final = 200
"""Bytes of a refusal's or an objection's text."""
MAX_ENTRY: Final = 1 << 20
MAX_PAID: Final = MAX_MINERS - 1
"""Miners in one payout list: one place is the pool's own."""
NO_HEAD: Final = Digest(bytes(32))
"""What the first head names as the one before."""


@dataclass(frozen=True, slots=True)
class Line:
    """One member in one round. Accepted where ``reason`` is empty, and then ``counted`` follows from all lines.

    ``claimed``: examples by its own update, 0 if none could be read. ``counted``: what it is paid for.
    """

    miner: Annotated[AccountId, PUBLIC_KEY]
    claimed: Annotated[int, U64]
    counted: Annotated[int, U64]
    reason: Annotated[str, Text(MAX_REASON)]


@dataclass(frozen=True, slots=True)
class RoundHead:
    """What the pool signs after a round. ``number`` runs 1, 2, ... without gaps; ``round`` is the instructions' number."""

    chain_id: Annotated[Digest, DIGEST]
    pool: Annotated[AccountId, PUBLIC_KEY]
    task_id: Annotated[TaskId, DIGEST]
    number: Annotated[int, U32]
    round: Annotated[int, U32]
    previous: Annotated[Digest, DIGEST]
    """``head_digest`` of head number - 1; NO_HEAD for the first."""
    root: Annotated[Digest, DIGEST]
    """RFC 6962 root over the encoded lines, in ascending order of their accounts."""
    lines: Annotated[int, U32]
    counted: Annotated[int, U64]
    """Sum over this round's lines."""
    total: Annotated[int, U64]
    """Sum over all rounds so far: with its own lines a member knows its share without anybody's help."""
    weight_factor: Annotated[int, U16]
    """Cap of ``counted``: this many times the median claim of the others."""
    owner_cut_ppm: Annotated[int, U32]
    correct: Annotated[int, U32]
    """Of ``rows`` practice rows, by the model after this round."""
    rows: Annotated[int, U32]
    milliseconds: Annotated[int, U32]
    bytes_up: Annotated[int, U64]
    bytes_down: Annotated[int, U64]


@dataclass(frozen=True, slots=True)
class SignedHead:
    head: Annotated[RoundHead, Record(RoundHead)]
    signature: Annotated[Signature, SIGNATURE]


@dataclass(frozen=True, slots=True)
class RoundReceipt:
    """What one member gets of a round: its line, and that it is in the head."""

    signed: Annotated[SignedHead, Record(SignedHead)]
    line: Annotated[Line, Record(Line)]
    index: Annotated[int, U32]
    path: Annotated[tuple[Digest, ...], Seq(DIGEST, 16)]


@dataclass(frozen=True, slots=True)
class RoundSheet:
    """A head with all its lines: what the pool keeps, and shows to anybody."""

    signed: Annotated[SignedHead, Record(SignedHead)]
    lines: Annotated[tuple[Line, ...], Seq(Record(Line), MAX_LINES)]


@dataclass(frozen=True, slots=True)
class Share:
    """A member's examples, summed over all rounds of a task."""

    miner: Annotated[AccountId, PUBLIC_KEY]
    counted: Annotated[int, U64]


@dataclass(frozen=True, slots=True)
class Closing:
    """The end of a task's training: with the reward, which the chain knows, it fixes every payout."""

    chain_id: Annotated[Digest, DIGEST]
    pool: Annotated[AccountId, PUBLIC_KEY]
    task_id: Annotated[TaskId, DIGEST]
    rounds: Annotated[int, U32]
    last: Annotated[Digest, DIGEST]
    """``head_digest`` of the last head."""
    owner_cut_ppm: Annotated[int, U32]
    shares: Annotated[tuple[Share, ...], Seq(Record(Share), MAX_SHARES)]
    """In ascending order of accounts, each once, none of zero."""


@dataclass(frozen=True, slots=True)
class SignedClosing:
    closing: Annotated[Closing, Record(Closing)]
    signature: Annotated[Signature, SIGNATURE]


@dataclass(frozen=True, slots=True)
class Answer:
    """A member's word on a head or closing, and so on all before it. Agreed where ``objection`` is empty."""

    chain_id: Annotated[Digest, DIGEST]
    pool: Annotated[AccountId, PUBLIC_KEY]
    task_id: Annotated[TaskId, DIGEST]
    miner: Annotated[AccountId, PUBLIC_KEY]
    statement: Annotated[Digest, DIGEST]
    """``head_digest`` or ``closing_digest``."""
    counted: Annotated[int, U64]
    """What the receipts that this member holds sum to."""
    objection: Annotated[str, Text(MAX_REASON)]


@dataclass(frozen=True, slots=True)
class SignedAnswer:
    answer: Annotated[Answer, Record(Answer)]
    signature: Annotated[Signature, SIGNATURE]


Entry = RoundSheet | SignedClosing | SignedAnswer | RoundReceipt
ENTRY: Final = Union({1: RoundSheet, 2: SignedClosing, 3: SignedAnswer, 4: RoundReceipt})
"""One entry of a pool's or a miner's book."""


# -- digests and signatures --------------------------------------------------------------------------------------------


def head_digest(head: RoundHead) -> Digest:
    return digest(DOMAIN_HEAD_DIGEST, encode(head))


def closing_digest(closing: Closing) -> Digest:
    return digest(DOMAIN_CLOSING_DIGEST, encode(closing))


def sign_head(key: signing.KeyPair, head: RoundHead) -> SignedHead:
    return SignedHead(head, signing.sign(key, DOMAIN_HEAD, encode(head)))


def verify_head(signed: SignedHead) -> None:
    """Raises CryptoError unless the head's pool signed it."""
    signing.verify(signed.head.pool, DOMAIN_HEAD, encode(signed.head), signed.signature)


def sign_closing(key: signing.KeyPair, closing: Closing) -> SignedClosing:
    return SignedClosing(closing, signing.sign(key, DOMAIN_CLOSING, encode(closing)))


def verify_closing(signed: SignedClosing) -> None:
    """Raises CryptoError unless the closing's pool signed it, MalformedError for shares out of order, twice or of zero."""
    shares = signed.closing.shares
    if any(b.miner <= a.miner for a, b in pairwise(shares)) or any(s.counted == 0 for s in shares):
        raise MalformedError("a closing's shares are in ascending order of accounts, each once, none of zero")
    signing.verify(signed.closing.pool, DOMAIN_CLOSING, encode(signed.closing), signed.signature)


def sign_answer(key: signing.KeyPair, answer: Answer) -> SignedAnswer:
    return SignedAnswer(answer, signing.sign(key, DOMAIN_ANSWER, encode(answer)))


def verify_answer(signed: SignedAnswer) -> None:
    """Raises CryptoError unless the answer's miner signed it."""
    signing.verify(signed.answer.miner, DOMAIN_ANSWER, encode(signed.answer), signed.signature)


# -- lines -------------------------------------------------------------------------------------------------------------


def lines_root(lines: Sequence[Line]) -> Digest:
    return merkle.root([encode(line) for line in lines])


def receipt_of(sheet: RoundSheet, miner: AccountId) -> RoundReceipt | None:
    """The member's part of a sheet; None if it has no line."""
    index = next((i for i, line in enumerate(sheet.lines) if line.miner == miner), None)
    if index is None:
        return None
    path = merkle.proof([encode(line) for line in sheet.lines], index)
    return RoundReceipt(sheet.signed, sheet.lines[index], index, path)


def verify_receipt(receipt: RoundReceipt) -> None:
    """Raises CryptoError unless the pool signed the head and the line is in it."""
    verify_head(receipt.signed)
    head = receipt.signed.head
    merkle.verify_proof(head.root, encode(receipt.line), receipt.index, head.lines, receipt.path)


def counted(claims: Sequence[int], factor: int) -> list[int]:
    """What each of the accepted claims counts for: at most ``factor`` times the lower median of the *others'* claims.

    Of the others: in a group of two a liar would else pull the median up with its own claim. Then it has at most ``factor``
    times what the other one has. A single claim stands as it is; nobody else is paid less for it.

    Raises:
        LimitError: a factor or a claim below 1.
    """
    if factor < 1 or any(claim < 1 for claim in claims):
        raise LimitError(f"a factor of {factor}, claims from {min(claims, default=1)}: neither may be below 1")
    if len(claims) < 2:
        return list(claims)
    ranked = sorted(claims)
    middle = (len(claims) - 2) // 2
    # Without a claim at or below the middle, everything above moves down by one place.
    return [min(c, factor * (ranked[middle] if c > ranked[middle] else ranked[middle + 1])) for c in claims]


# -- payouts -----------------------------------------------------------------------------------------------------------


def share_out(total: Amount, contributions: Mapping[AccountId, int], pool: AccountId, cut_ppm: int = 0) -> tuple[Payout, ...]:
    """``total`` among miners by contribution, each rounded down, after the owner's cut; the pool has what is left.

    Every amount is positive, every account is named once, and all sum to ``total``. Without any contribution the pool has
    it all. Beyond MAX_PAID miners the smallest contributions are not paid. Accounts are in ascending order.

    Raises:
        LimitError: ``total`` is not positive, a contribution is negative, or the cut is not in 0..10^6.
    """
    if total <= 0 or not 0 <= cut_ppm <= MILLION or any(c < 0 for c in contributions.values()):
        raise LimitError(
            f"a total of {total}, a cut of {cut_ppm} ppm, contributions from {min(contributions.values(), default=0)}: the "
            f"total must be positive, the cut 0 to {MILLION}, contributions not negative"
        )
    paid = sorted(contributions.items(), key=lambda item: (-item[1], item[0]))[:MAX_PAID]
    whole = sum(contribution for _, contribution in paid)
    miners_part = total - total * cut_ppm // MILLION
    amounts: dict[AccountId, int] = {pool: total}
    for account, contribution in paid:
        amount = miners_part * contribution // whole if whole else 0
        if amount and account != pool:
            amounts[account] = amount
            amounts[pool] -= amount
    return tuple(Payout(account, Amount(amount)) for account, amount in sorted(amounts.items()) if amount)


def check_payouts(closing: Closing, payouts: Sequence[Payout]) -> None:
    """The work block's payout list is the one that its pool signed for. Raises CheatingError, which says who has what."""
    total = Amount(sum(payout.amount for payout in payouts))
    owed = {p.account: p.amount for p in share_out(total, shares_of(closing), closing.pool, closing.owner_cut_ppm)}
    paid = {p.account: p.amount for p in payouts}
    wrong = [a for a in sorted({*owed, *paid}) if owed.get(a, 0) != paid.get(a, 0)]
    if wrong:
        named = "; ".join(f"{short(a)} has {paid.get(a, 0)}, is owed {owed.get(a, 0)}" for a in wrong[:5])
        where = f"pool {short(closing.pool)}, task {short(closing.task_id)}"
        raise CheatingError(f"{where}: it pays {len(wrong)} accounts other than it signed: {named}", accounts=len(wrong))


def shares_of(closing: Closing) -> dict[AccountId, int]:
    return {share.miner: share.counted for share in closing.shares}


# -- proof of two faces ------------------------------------------------------------------------------------------------


def contradiction(one: SignedHead | SignedClosing, other: SignedHead | SignedClosing) -> None:
    """Proof that a pool signed two different statements for one place. Who holds both can show them to anybody.

    Raises:
        CryptoError: a signature does not hold.
        MalformedError: they do not contradict each other.
    """
    if isinstance(one, SignedHead) and isinstance(other, SignedHead):
        verify_head(one)
        verify_head(other)
        a, b = one.head, other.head
        same_place = (a.chain_id, a.pool, a.task_id, a.number) == (b.chain_id, b.pool, b.task_id, b.number)
        differ = a != b
    elif isinstance(one, SignedClosing) and isinstance(other, SignedClosing):
        verify_closing(one)
        verify_closing(other)
        c, d = one.closing, other.closing
        same_place = (c.chain_id, c.pool, c.task_id) == (d.chain_id, d.pool, d.task_id)
        differ = c != d
    else:
        raise MalformedError("a head and a closing are for different places")
    if not (same_place and differ):
        raise MalformedError("the two statements are the same one, or for different places")


def check_same(held: SignedHead | SignedClosing, shown: SignedHead | SignedClosing) -> None:
    """Raises CheatingError if the pool signed two different statements for one place."""
    try:
        contradiction(held, shown)
    except (MalformedError, CryptoError):
        return
    statement = held.head if isinstance(held, SignedHead) else held.closing
    what = f"two heads number {held.head.number}" if isinstance(held, SignedHead) else "two closings"
    where = f"of task {short(statement.task_id)}"
    raise CheatingError(f"pool {short(statement.pool)} signed {what} {where}: keep both, they are proof")
