"""Both sides' books of one task's contributions, as state machines without files or sockets, and the check of a whole book.

``PoolBook`` turns a round into a signed sheet and keeps the members' answers. ``MinerBook`` checks what the pool signs
against what the miner sent and against all that it was shown before, and answers. ``audit`` checks a pool's book from
outside. A book is rebuilt by feeding it its own entries again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from core.crypto import signing
from core.errors import AuthError, CheatingError, CryptoError, LimitError, NotFoundError, SequenceError
from core.ids import AccountId, Digest, TaskId, short
from core.market.contributions import (
    MAX_LINES,
    MAX_REASON,
    MAX_SHARES,
    NO_HEAD,
    Answer,
    Closing,
    Entry,
    Line,
    RoundHead,
    RoundReceipt,
    RoundSheet,
    Share,
    SignedAnswer,
    SignedClosing,
    SignedHead,
    check_same,
    closing_digest,
    counted,
    head_digest,
    lines_root,
    receipt_of,
    shares_of,
    sign_answer,
    sign_closing,
    sign_head,
    verify_answer,
    verify_closing,
    verify_head,
    verify_receipt,
)

MAX_WORDS: Final = 16
"""Answers of one member on one statement: it may object after it agreed, but not fill the book."""

__all__ = ["Audited", "MinerBook", "PoolBook", "RoundFacts", "audit", "audit_held", "check_lines", "check_link", "clipped"]


@dataclass(frozen=True, slots=True)
class RoundFacts:
    """A round as the manager reports it. ``round``: the instructions' number."""

    round: int
    correct: int
    rows: int
    milliseconds: int
    bytes_up: int
    bytes_down: int


class PoolBook:
    """The pool's side. ``add_*`` return the entry to be kept before anybody sees it."""

    def __init__(
        self, key: signing.KeyPair, chain_id: Digest, task_id: TaskId, weight_factor: int = 4, owner_cut_ppm: int = 0
    ) -> None:
        self._key, self._chain_id, self._task_id = key, chain_id, task_id
        self.weight_factor, self._cut = weight_factor, owner_cut_ppm
        self.sheets: list[RoundSheet] = []
        self.closing: SignedClosing | None = None
        self.answers: dict[AccountId, SignedAnswer] = {}
        """The newest of each member."""
        self._words: dict[AccountId, tuple[Digest, int]] = {}
        self._places: dict[Digest, int] = {}
        self._named: set[AccountId] = set()
        """Who has a line in some round."""
        self._paid: set[AccountId] = set()
        """Who is counted in some round: a closing has room for MAX_SHARES of them."""

    def load(self, entries: Iterable[Entry]) -> None:
        """What this pool kept before it was started again. Raises CryptoError or CheatingError if it is not its own."""
        for entry in entries:
            if isinstance(entry, RoundSheet):
                verify_head(entry.signed)
                head = entry.signed.head
                if (head.chain_id, head.pool, head.task_id) != (self._chain_id, self._key.public_key, self._task_id):
                    raise CryptoError(f"head {head.number} is of another chain, pool or task")
                # A task is counted by one rule to its end, whatever the configuration says by now.
                self.weight_factor, self._cut = head.weight_factor, head.owner_cut_ppm
                self._keep(entry)
            elif isinstance(entry, SignedClosing):
                verify_closing(entry)
                self._close(entry)
            elif isinstance(entry, SignedAnswer):
                self._take_answer(entry)

    @property
    def last_round(self) -> int:
        """Number of the last round's instructions; 0 before the first."""
        return self.sheets[-1].signed.head.round if self.sheets else 0

    @property
    def shares(self) -> dict[AccountId, int]:
        sums: dict[AccountId, int] = {}
        for sheet in self.sheets:
            for line in sheet.lines:
                sums[line.miner] = sums.get(line.miner, 0) + line.counted
        return {miner: amount for miner, amount in sorted(sums.items()) if amount}

    def add_round(self, facts: RoundFacts, claims: Mapping[AccountId, int], refused: Mapping[AccountId, str]) -> RoundSheet:
        """``claims``: examples by the updates of those accepted. ``refused``: why others are not counted.

        Of accounts that were never counted before, only as many are as the closing still has room for, in their order.

        Raises SequenceError after the closing, LimitError for more members than a sheet has lines.
        """
        if self.closing is not None:
            raise SequenceError(f"task {short(self._task_id)} is closed: no round can follow")
        if len({*claims, *refused}) > MAX_LINES:
            raise LimitError(f"{len({*claims, *refused})} members in one round, a sheet has {MAX_LINES} lines")
        new = sorted(set(claims) - self._paid)[max(0, MAX_SHARES - len(self._paid)) :]
        refused = {**refused, **dict.fromkeys(new, f"this task counts {MAX_SHARES} accounts already, the most it can pay")}
        claims = {miner: claim for miner, claim in claims.items() if miner not in set(new)}
        accepted = sorted(claims.items())
        amounts = counted([claim for _, claim in accepted], self.weight_factor)
        lines = [Line(miner, claim, amount, "") for (miner, claim), amount in zip(accepted, amounts, strict=True)]
        lines += [
            Line(miner, 0, 0, clipped(reason or "not counted")) for miner, reason in refused.items() if miner not in claims
        ]
        lines.sort(key=lambda line: line.miner)
        previous = self.sheets[-1].signed.head if self.sheets else None
        head = RoundHead(
            self._chain_id, AccountId(self._key.public_key), self._task_id, len(self.sheets) + 1, facts.round,
            NO_HEAD if previous is None else head_digest(previous), lines_root(lines), len(lines), sum(amounts),
            sum(amounts) + (0 if previous is None else previous.total), self.weight_factor, self._cut, facts.correct,
            facts.rows, facts.milliseconds, facts.bytes_up, facts.bytes_down,
        )  # fmt: skip
        sheet = RoundSheet(sign_head(self._key, head), tuple(lines))
        self._keep(sheet)
        return sheet

    def close(self) -> SignedClosing:
        """The sums, signed once; asked again, the same."""
        if self.closing is None:
            last = head_digest(self.sheets[-1].signed.head) if self.sheets else NO_HEAD
            closing = Closing(
                self._chain_id, AccountId(self._key.public_key), self._task_id, len(self.sheets), last, self._cut,
                tuple(Share(miner, amount) for miner, amount in self.shares.items()),
            )  # fmt: skip
            self._close(sign_closing(self._key, closing))
        assert self.closing is not None
        return self.closing

    def add_answer(self, signed: SignedAnswer) -> bool:
        """A member's word on one of this book's statements; whether it is news.

        Raises AuthError (not signed, another chain, pool or task), NotFoundError (a statement that is not in this book, or a
        member that is not), LimitError (MAX_WORDS on one statement).
        """
        answer = signed.answer
        if (answer.chain_id, answer.pool, answer.task_id) != (self._chain_id, self._key.public_key, self._task_id):
            raise AuthError("the answer is for another chain, pool or task")
        place = self._places.get(answer.statement)
        if place is None:
            raise NotFoundError(f"this pool signed no statement {short(answer.statement)} of task {short(self._task_id)}")
        # Only members have lines, and only they may fill this book.
        if answer.miner not in self._named:
            raise NotFoundError(f"{short(answer.miner)} took no part in task {short(self._task_id)}")
        try:
            verify_answer(signed)
        except CryptoError as error:
            raise AuthError(error.message) from None
        known = self.answers.get(answer.miner)
        if known is not None and (known == signed or self._places[known.answer.statement] > place):
            return False
        statement, words = self._words.get(answer.miner, (answer.statement, 0))
        if statement == answer.statement and words >= MAX_WORDS:
            raise LimitError(f"{short(answer.miner)} answered statement {short(statement)} {words} times: that is enough")
        self._take_answer(signed)
        return True

    def _take_answer(self, signed: SignedAnswer) -> None:
        answer = signed.answer
        statement, words = self._words.get(answer.miner, (answer.statement, 0))
        self._words[answer.miner] = (answer.statement, words + 1 if statement == answer.statement else 1)
        self.answers[answer.miner] = signed

    def _keep(self, sheet: RoundSheet) -> None:
        self.sheets.append(sheet)
        self._named.update(line.miner for line in sheet.lines)
        self._paid.update(line.miner for line in sheet.lines if line.counted)
        self._places[head_digest(sheet.signed.head)] = sheet.signed.head.number

    def _close(self, closing: SignedClosing) -> None:
        self.closing = closing
        self._places[closing_digest(closing.closing)] = 1 << 32


class MinerBook:
    """The miner's side: what it sent, what the pool signed for it, and whether the two agree.

    ``note_sent`` comes before the pool can know of an answer; receipts may come late, again, or with gaps.
    """

    def __init__(self, key: signing.KeyPair, chain_id: Digest, pool: AccountId, task_id: TaskId) -> None:
        self._key, self._chain_id, self._pool, self._task_id = key, chain_id, pool, task_id
        self._sent: dict[int, int] = {}
        self._heads: dict[int, SignedHead] = {}
        self.receipts: dict[int, RoundReceipt] = {}
        """By number of the head."""
        self.closing: SignedClosing | None = None
        self.objections: list[str] = []

    @property
    def miner(self) -> AccountId:
        return AccountId(self._key.public_key)

    @property
    def counted(self) -> int:
        return sum(receipt.line.counted for receipt in self.receipts.values())

    @property
    def missing(self) -> tuple[int, ...]:
        """Numbers of heads that the pool signed before the last one that this miner knows, and did not show it."""
        last = max(self._heads, default=0)
        if self.closing is not None:
            last = max(last, self.closing.closing.rounds)
        return tuple(number for number in range(1, last + 1) if number not in self._heads)

    def note_sent(self, round_number: int, examples: int) -> None:
        """This miner answered the instruction of a round with an update on that many examples."""
        self._sent[round_number] = examples

    def show(self, signed: SignedHead) -> None:
        """A head that has no line of this miner, or whose line it has: fills gaps. Raises CryptoError, CheatingError."""
        self._check_place(signed.head.chain_id, signed.head.pool, signed.head.task_id)
        verify_head(signed)
        self._take_head(signed)

    def receive(self, receipt: RoundReceipt) -> SignedAnswer:
        """The answer to a receipt, whether new or seen before.

        Raises CryptoError (not signed, not this task's, not this miner's line: nothing to answer) or CheatingError (the pool
        contradicts what it signed before: proof, to be kept).
        """
        head = receipt.signed.head
        self._check_place(head.chain_id, head.pool, head.task_id)
        if receipt.line.miner != self.miner:
            raise CryptoError(f"the receipt is {short(receipt.line.miner)}'s, not {short(self.miner)}'s")
        verify_receipt(receipt)
        self._take_head(receipt.signed)
        self.receipts[head.number] = receipt
        objection = self._objection(head, receipt.line)
        self._object(objection)
        return self._answer(head_digest(head), objection)

    def receive_sheet(self, sheet: RoundSheet) -> RoundReceipt | None:
        """A round that was missed, from the pool's public book: the receipt, if this miner took part in it."""
        self.show(sheet.signed)
        check_lines(sheet)
        receipt = receipt_of(sheet, self.miner)
        if receipt is not None:
            self.receive(receipt)
        elif sheet.signed.head.round in self._sent:
            self._object(f"round {sheet.signed.head.round}: this miner answered, and has no line")
        return receipt

    def receive_closing(self, signed: SignedClosing) -> SignedAnswer:
        """The answer to the task's closing. Ask again after filling gaps; raises like ``receive``."""
        closing = signed.closing
        self._check_place(closing.chain_id, closing.pool, closing.task_id)
        verify_closing(signed)
        if self.closing is not None:
            check_same(self.closing, signed)
        self.closing = signed
        return self._answer(closing_digest(closing), self._closing_objection(closing))

    def _object(self, objection: str) -> None:
        if objection and objection not in self.objections:
            self.objections.append(objection)

    def _check_place(self, chain_id: Digest, pool: AccountId, task_id: TaskId) -> None:
        if (chain_id, pool, task_id) != (self._chain_id, self._pool, self._task_id):
            raise CryptoError(f"the statement is for another chain, pool or task than {short(self._task_id)}")

    def _take_head(self, signed: SignedHead) -> None:
        head = signed.head
        held = self._heads.get(head.number)
        if held is not None:
            check_same(held, signed)
            return
        before, after = self._heads.get(head.number - 1), self._heads.get(head.number + 1)
        if head.number == 1 and head.previous != NO_HEAD:
            raise CheatingError("the first head names one before it")
        if before is not None:
            check_link(before.head, head)
        if after is not None:
            check_link(head, after.head)
        self._heads[head.number] = signed

    def _objection(self, head: RoundHead, line: Line) -> str:
        sent = self._sent.get(head.round)
        if line.reason:
            return "the line counts examples and refuses them" if line.counted else ""
        if sent is None and head.round > min(self._sent, default=head.round):
            # A head under another number than its instructions had would hide whom it leaves out. Of rounds before its first
            # note a miner knows nothing: it may have lost them.
            return f"round {head.round}: the line counts an answer, this miner sent none in that round"
        if sent is not None and line.claimed != sent:
            return f"round {head.round}: the line says {line.claimed} examples claimed, this miner sent {sent}"
        if not 0 < line.counted <= line.claimed:
            return f"round {head.round}: {line.counted} of {line.claimed} examples counted, and no reason"
        return ""

    def _closing_objection(self, closing: Closing) -> str:
        own = next((share.counted for share in closing.shares if share.miner == self.miner), 0)
        if own != self.counted:
            return f"the closing counts {own} examples, the receipts {self.counted}"
        last = self._heads.get(closing.rounds)
        if last is not None and head_digest(last.head) != closing.last:
            return f"the closing ends with another head {closing.rounds}"
        if closing.rounds < max(self._heads, default=0):
            return f"the closing ends with head {closing.rounds}, this miner holds {max(self._heads)}"
        if last is not None and (sum(s.counted for s in closing.shares), closing.owner_cut_ppm) != (
            last.head.total, last.head.owner_cut_ppm,
        ):  # fmt: skip
            return "the closing has another sum or cut than the last head"
        # A round that the pool signed and shows to nobody may be the one that it left this miner out of.
        shown = {signed.head.round for signed in self._heads.values()}
        hidden = sorted(set(self._sent) - shown) if self.missing else []
        if hidden:
            return f"the pool does not show {len(self.missing)} of its rounds; this miner answered in round {hidden[0]}"
        # Who signs the closing signs all before it.
        return self.objections[0] if self.objections else ""

    def _answer(self, statement: Digest, objection: str) -> SignedAnswer:
        answer = Answer(self._chain_id, self._pool, self._task_id, self.miner, statement, self.counted, objection)
        return sign_answer(self._key, answer)


def clipped(text: str) -> str:
    """As much of a text as a reason or an objection may have."""
    return text.encode()[:MAX_REASON].decode(errors="ignore")


# -- a whole book ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Audited:
    """What a pool's book comes to."""

    heads: list[RoundHead] = field(default_factory=list)
    sums: dict[AccountId, int] = field(default_factory=dict)
    rounds: dict[AccountId, int] = field(default_factory=dict)
    """Rounds in which a member was counted."""
    closing: SignedClosing | None = None
    agreed: dict[AccountId, int] = field(default_factory=dict)
    """Number of the last head that a member agreed to; rounds + 1 for the closing."""
    objections: dict[AccountId, str] = field(default_factory=dict)


def audit(entries: Sequence[Entry], chain_id: Digest, pool: AccountId, task_id: TaskId) -> Audited:
    """Check a pool's book from outside: signatures, links, roots, the cap, sums, closing, answers.

    Raises CryptoError for what is not signed, CheatingError for what is signed and wrong.
    """
    found = Audited()
    places: dict[Digest, int] = {}
    for entry in entries:
        if isinstance(entry, RoundSheet):
            verify_head(entry.signed)
            head = entry.signed.head
            _check_book(head, chain_id, pool, task_id)
            check_lines(entry)
            if found.closing is not None:
                raise CheatingError(f"head {head.number} follows the closing")
            if found.heads:
                check_link(found.heads[-1], head)
            elif (head.number, head.previous, head.total) != (1, NO_HEAD, head.counted):
                raise CheatingError(f"the book begins with head {head.number}, not with the first one")
            found.heads.append(head)
            places[head_digest(head)] = head.number
            for line in entry.lines:
                found.sums[line.miner] = found.sums.get(line.miner, 0) + line.counted
                found.rounds[line.miner] = found.rounds.get(line.miner, 0) + (1 if line.counted else 0)
        elif isinstance(entry, SignedClosing):
            verify_closing(entry)
            _check_book(entry.closing, chain_id, pool, task_id)
            _check_closing(entry.closing, found)
            found.closing = entry
            places[closing_digest(entry.closing)] = len(found.heads) + 1
        elif isinstance(entry, SignedAnswer):
            verify_answer(entry)
            _check_book(entry.answer, chain_id, pool, task_id)
            place = places.get(entry.answer.statement)
            if place is None:
                who = short(entry.answer.miner)
                raise CheatingError(f"{who} answered a statement that is not in the book: it was shown another one")
            if entry.answer.objection:
                found.objections[entry.answer.miner] = entry.answer.objection
            else:
                found.agreed[entry.answer.miner] = max(place, found.agreed.get(entry.answer.miner, 0))
    return found


def check_link(before: RoundHead, after: RoundHead) -> None:
    """Raises CheatingError unless ``after`` follows ``before``."""
    if after.number != before.number + 1 or after.previous != head_digest(before):
        raise CheatingError(f"head {after.number} does not name head {before.number} as it was signed: the pool has two books")
    if after.total != before.total + after.counted:
        raise CheatingError(f"head {after.number} has a total of {after.total}, {before.total} + {after.counted} were due")
    if (after.owner_cut_ppm, after.weight_factor) != (before.owner_cut_ppm, before.weight_factor):
        raise CheatingError(f"head {after.number} changes the owner's cut or the cap of weights in the middle of a task")


def check_lines(sheet: RoundSheet) -> None:
    """Raises CheatingError unless the lines are the head's, in order, each member once, and counted by the rule."""
    head, lines = sheet.signed.head, sheet.lines
    if len(lines) != head.lines or lines_root(lines) != head.root:
        raise CheatingError(f"head {head.number} is of other lines")
    if any(b.miner <= a.miner for a, b in pairwise(lines)):
        raise CheatingError(f"head {head.number} names a member twice, or out of order")
    accepted = [line for line in lines if not line.reason]
    if any(line.claimed < 1 for line in accepted) or head.weight_factor < 1:
        raise CheatingError(f"head {head.number} accepts a claim of no examples")
    due = counted([line.claimed for line in accepted], head.weight_factor)
    if [line.counted for line in accepted] != due or any(line.counted for line in lines if line.reason):
        raise CheatingError(f"head {head.number} counts other than by its rule: {head.weight_factor} times the others' median")
    if sum(line.counted for line in lines) != head.counted:
        raise CheatingError(f"head {head.number} has another sum than its lines")


def _check_book(of: RoundHead | Closing | Answer, chain_id: Digest, pool: AccountId, task_id: TaskId) -> None:
    if (of.chain_id, of.pool, of.task_id) != (chain_id, pool, task_id):
        raise CheatingError("the book has an entry of another chain, pool or task")


def _check_closing(closing: Closing, found: Audited) -> None:
    last = head_digest(found.heads[-1]) if found.heads else NO_HEAD
    if (closing.rounds, closing.last) != (len(found.heads), last):
        raise CheatingError(f"the closing is of {closing.rounds} rounds, the book has {len(found.heads)}, or another last one")
    if {s.miner: s.counted for s in closing.shares} != {m: c for m, c in found.sums.items() if c}:
        raise CheatingError("the closing has other sums than the rounds")
    if found.heads and closing.owner_cut_ppm != found.heads[-1].owner_cut_ppm:
        raise CheatingError("the closing has another cut than the rounds")


def audit_held(entries: Sequence[Entry], chain_id: Digest) -> tuple[Mapping[int, RoundReceipt], SignedClosing | None]:
    """Check what one miner holds, without its key or its pool: receipts by number of the head, and the closing.

    Raises CryptoError for what is not signed, CheatingError for what is signed and contradicts itself, NotFoundError for a book
    without any receipt.
    """
    receipts = {e.signed.head.number: e for e in entries if isinstance(e, RoundReceipt)}
    if not receipts:
        raise NotFoundError("it holds no receipts")
    first = receipts[min(receipts)]
    place = (chain_id, first.signed.head.pool, first.signed.head.task_id)
    for entry in entries:
        if isinstance(entry, RoundReceipt):
            verify_receipt(entry)
            _check_book(entry.signed.head, *place)
            if entry.line.miner != first.line.miner:
                raise CheatingError("it holds receipts of two miners")
            check_same(receipts[entry.signed.head.number].signed, entry.signed)
    for number, receipt in receipts.items():
        if number + 1 in receipts:
            check_link(receipt.signed.head, receipts[number + 1].signed.head)
    closings = [entry for entry in entries if isinstance(entry, SignedClosing)]
    for closing in closings:
        verify_closing(closing)
        _check_book(closing.closing, *place)
        check_same(closings[0], closing)
    if closings:
        own = shares_of(closings[0].closing).get(first.line.miner, 0)
        held = sum(receipt.line.counted for receipt in receipts.values())
        if own < held:
            raise CheatingError(f"the closing counts {own} examples of {short(first.line.miner)}, its receipts {held}")
    return receipts, closings[0] if closings else None
