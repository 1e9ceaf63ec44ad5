"""Contributions signed by both sides: what holds between honest ones, and every lie that is caught."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.chain.block import Payout
from core.codec import decode_as, encode_as
from core.errors import AuthError, CheatingError, CryptoError, LimitError, MalformedError, NotFoundError, SequenceError
from core.ids import AccountId, Amount, Digest, TaskId
from core.market import contribution_books
from core.market import contributions as c
from core.market.contribution_books import MinerBook, PoolBook, RoundFacts, audit
from tests.pool_kit import CHAIN, TASK, keys

POOL_KEY, *MINER_KEYS = keys(5, "contributions")
POOL = AccountId(POOL_KEY.public_key)
ANN, BOB, EVE, LOU = (AccountId(k.public_key) for k in MINER_KEYS)
KEY_OF = {AccountId(k.public_key): k for k in MINER_KEYS}


def facts(number: int) -> RoundFacts:
    return RoundFacts(number, 80, 100, 500, 1000, 2000)


def pool_book(task: TaskId = TASK, **values: int) -> PoolBook:
    return PoolBook(POOL_KEY, CHAIN, task, **values)


def miner_book(miner: AccountId = ANN) -> MinerBook:
    return MinerBook(KEY_OF[miner], CHAIN, POOL, TASK)


def receipt(sheet: c.RoundSheet, miner: AccountId = ANN) -> c.RoundReceipt:
    found = c.receipt_of(sheet, miner)
    assert found is not None
    return found


def two_rounds() -> tuple[PoolBook, MinerBook, list[c.Entry]]:
    """A pool with Ann and Bob, Ann's book, and the pool's book on disk: two rounds, both answered by Ann."""
    pool, ann, kept = pool_book(), miner_book(), []
    for number, claims, refused in ((1, {ANN: 100, BOB: 60}, {}), (2, {ANN: 100}, {BOB: "no answer in time"})):
        ann.note_sent(number, 100)
        sheet = pool.add_round(facts(number), claims, refused)
        answer = ann.receive(receipt(sheet))
        assert pool.add_answer(answer)
        kept += [sheet, answer]
    return pool, ann, kept


# -- honest ones -------------------------------------------------------------------------------------------------------


def test_rounds_closing_answers_and_payouts_agree() -> None:
    pool, ann, kept = two_rounds()
    closing = pool.close()
    answer = ann.receive_closing(closing)
    assert answer.answer.objection == ""
    assert answer.answer.counted == ann.counted == 200
    assert pool.add_answer(answer)
    found = audit([*kept, closing, answer], CHAIN, POOL, TASK)
    assert found.sums == {ANN: 200, BOB: 60} == pool.shares
    assert found.rounds == {ANN: 2, BOB: 1}
    assert found.agreed == {ANN: 3}
    assert found.objections == {}
    payouts = c.share_out(Amount(850_000), pool.shares, POOL)
    c.check_payouts(closing.closing, payouts)


def test_more_accounts_than_a_closing_holds_do_not_end_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Joining under ever new accounts would else keep everybody's pay from being signed."""
    monkeypatch.setattr(contribution_books, "MAX_SHARES", 3)
    pool = pool_book()
    names = [AccountId(bytes([i]) * 32) for i in range(1, 6)]
    pool.add_round(facts(1), dict.fromkeys(names[:2], 5), {})
    sheet = pool.add_round(facts(2), dict.fromkeys(names, 5), {})
    assert [line.counted for line in sheet.lines] == [5, 5, 5, 0, 0]
    assert "the most it can pay" in sheet.lines[4].reason
    again = pool_book()
    again.load([*pool.sheets])
    assert again.add_round(facts(3), {names[4]: 5, names[0]: 7}, {}).signed.head.counted == 7
    assert [share.miner for share in again.close().closing.shares] == names[:3]


def test_a_book_is_rebuilt_from_its_entries_and_goes_on() -> None:
    pool, _, kept = two_rounds()
    again = pool_book()
    again.load([decode_as(c.ENTRY, encode_as(c.ENTRY, entry)) for entry in kept])
    assert (again.last_round, again.shares, again.answers) == (2, pool.shares, pool.answers)
    sheet = again.add_round(facts(3), {BOB: 5}, {})
    audit([*kept, sheet], CHAIN, POOL, TASK)
    closing = again.close()
    assert again.close() is closing
    with pytest.raises(SequenceError, match="closed"):
        again.add_round(facts(4), {}, {})
    third = pool_book(weight_factor=9, owner_cut_ppm=5)
    third.load([*kept, sheet])
    assert third.close() == closing, "one rule to the task's end, whatever the configuration says by now"
    with pytest.raises(CryptoError, match="another chain"):
        pool_book(TaskId(bytes(32))).load(kept)


def test_a_member_alone_knows_its_share_from_its_own_receipts() -> None:
    """Each head carries the sum over everybody, so a member needs no list of the others."""
    pool, ann, _ = two_rounds()
    total = ann.receipts[2].signed.head.total
    paid = {p.account: p.amount for p in c.share_out(Amount(1_000), pool.shares, POOL)}
    assert paid[ANN] == 1_000 * ann.counted // total


def test_a_member_that_was_away_fills_its_gaps_from_the_public_book() -> None:
    pool = pool_book()
    sheets = [pool.add_round(facts(n), {ANN: 10, BOB: 10} if n != 2 else {BOB: 10}, {}) for n in (1, 2, 3, 4)]
    ann = miner_book()
    for number in (1, 3, 4):
        ann.note_sent(number, 10)
    ann.receive(receipt(sheets[0]))
    ann.receive(receipt(sheets[3]))
    assert ann.missing == (2, 3)
    assert ann.receive_sheet(sheets[1]) is None
    assert ann.receive_sheet(sheets[2]) is not None
    assert ann.missing == ()
    assert ann.receive_closing(pool.close()).answer.objection == ""
    late = miner_book()
    assert "0" in late.receive_closing(pool.close()).answer.objection
    assert late.missing == (1, 2, 3, 4)
    for sheet in sheets:
        late.receive_sheet(sheet)
    assert late.receive_closing(pool.close()).answer.objection == ""


def test_an_empty_round_and_a_pool_of_nobody() -> None:
    pool = pool_book()
    sheet = pool.add_round(facts(1), {}, {ANN: "é" * 150})
    assert len(sheet.lines[0].reason.encode()) == c.MAX_REASON
    assert audit([sheet, pool.close()], CHAIN, POOL, TASK).sums == {ANN: 0}
    assert audit([pool_book().close()], CHAIN, POOL, TASK).heads == []


# -- the cap -----------------------------------------------------------------------------------------------------------


def test_a_liar_counts_for_at_most_the_factor_times_the_others() -> None:
    assert c.counted([100, 1 << 40], 4) == [100, 400], "also in a group of two, where a median of all binds nobody"
    assert c.counted([10, 10, 10, 1 << 40], 4) == [10, 10, 10, 40]
    assert c.counted([10, 20, 1000, 1000], 1) == [10, 20, 20, 20]
    assert c.counted([7], 1) == [7]
    assert c.counted([], 4) == []
    for claims, factor in (([0, 5], 4), ([5], 0)):
        with pytest.raises(LimitError):
            c.counted(claims, factor)


@given(st.lists(st.integers(1, 1 << 40), min_size=2, max_size=12), st.integers(1, 9), st.data())
def test_lying_does_not_move_ones_own_cap(claims: list[int], factor: int, data: st.DataObject) -> None:
    """The cap is the others' median, whatever one says oneself; honest claims above it are cut the same way."""
    place = data.draw(st.integers(0, len(claims) - 1))
    others = sorted(claims[:place] + claims[place + 1 :])
    cap = factor * others[(len(others) - 1) // 2]
    for claim in (claims[place], 1 << 60):
        found = c.counted([*claims[:place], claim, *claims[place + 1 :]], factor)
        assert found[place] == min(claim, cap)


# -- a pool that lies to its members -----------------------------------------------------------------------------------


def test_two_heads_for_one_round_are_proof() -> None:
    """Ann is told that she has all, Bob that he has."""
    honest, forked = pool_book(), pool_book()
    one = honest.add_round(facts(1), {ANN: 100, BOB: 1}, {})
    other = forked.add_round(facts(1), {ANN: 1, BOB: 100}, {})
    ann = miner_book()
    ann.receive(receipt(one))
    with pytest.raises(CheatingError, match="two heads number 1"):
        ann.receive(receipt(other))
    c.contradiction(one.signed, other.signed)
    with pytest.raises(MalformedError, match="same one"):
        c.contradiction(one.signed, one.signed)


def test_a_fork_shows_in_the_next_head_whoever_holds_it() -> None:
    honest, forked = pool_book(), pool_book()
    ann = miner_book()
    ann.receive(receipt(honest.add_round(facts(1), {ANN: 100, BOB: 1}, {})))
    forked.add_round(facts(1), {ANN: 1, BOB: 100}, {})
    with pytest.raises(CheatingError, match="two books"):
        ann.receive(receipt(forked.add_round(facts(2), {ANN: 1, BOB: 1}, {})))


def test_two_closings_fit_one_block_at_most() -> None:
    """Different members may be shown different books to the end. The chain shows all of them one payout list."""
    books = []
    for mine in ({ANN: 100, BOB: 50}, {ANN: 50, BOB: 100}):
        pool = pool_book()
        pool.add_round(facts(1), mine, {})
        books.append(pool)
    first, second = (pool.close() for pool in books)
    c.contradiction(first, second)
    payouts = c.share_out(Amount(850_000), books[0].shares, POOL)
    c.check_payouts(first.closing, payouts)
    with pytest.raises(CheatingError, match="is owed"):
        c.check_payouts(second.closing, payouts)


def test_paying_other_than_signed_is_found_to_the_last_unit() -> None:
    pool, _, _ = two_rounds()
    closing = pool.close().closing
    payouts = list(c.share_out(Amount(850_001), pool.shares, POOL))
    c.check_payouts(closing, payouts)
    first = payouts[0]
    moved = [Payout(first.account, Amount(first.amount - 1)), *payouts[1:-1]]
    moved.append(Payout(payouts[-1].account, Amount(payouts[-1].amount + 1)))
    with pytest.raises(CheatingError, match="pays 2 accounts"):
        c.check_payouts(closing, moved)
    friend = [Payout(EVE if p.account == BOB else p.account, p.amount) for p in payouts]
    with pytest.raises(CheatingError, match="has 0, is owed"):
        c.check_payouts(closing, friend)


def test_a_closing_that_forgets_a_round_or_a_member_is_objected_to() -> None:
    pool, ann, kept = two_rounds()
    closing = pool.close().closing
    for wrong, said in (
        (replace(closing, shares=(c.Share(ANN, 100),)), "counts 100"),
        (replace(closing, shares=()), "counts 0"),
        (replace(closing, last=Digest(bytes(32))), "another head"),
        (replace(closing, rounds=1, last=c.head_digest(kept[0].signed.head)), "ends with head 1"),  # type: ignore[union-attr]
        (replace(closing, owner_cut_ppm=500_000), "sum or cut"),
        (replace(closing, shares=tuple(s for s in closing.shares if s.miner == ANN)), "sum or cut"),
    ):
        book = miner_book()
        for entry in kept:
            if isinstance(entry, c.RoundSheet):
                book.receive(receipt(entry))
        answer = book.receive_closing(c.sign_closing(POOL_KEY, wrong))
        assert said in answer.answer.objection
        c.verify_answer(answer)
        with pytest.raises(CheatingError):
            audit([*kept, c.sign_closing(POOL_KEY, wrong)], CHAIN, POOL, TASK)
    ann.receive_closing(pool.close())
    with pytest.raises(CheatingError, match="two closings"):
        ann.receive_closing(c.sign_closing(POOL_KEY, replace(closing, shares=())))


def test_a_line_that_is_not_what_was_sent_is_objected_to_and_stays_so() -> None:
    pool, ann = pool_book(), miner_book()
    ann.note_sent(1, 100)
    answer = ann.receive(receipt(pool.add_round(facts(1), {ANN: 40}, {})))
    assert "40 examples claimed, this miner sent 100" in answer.answer.objection
    assert pool.add_answer(answer)
    ann.note_sent(2, 100)
    assert ann.receive(receipt(pool.add_round(facts(2), {ANN: 100}, {}))).answer.objection == ""
    assert "sent 100" in ann.receive_closing(pool.close()).answer.objection, "the closing covers all rounds"


def test_a_round_that_leaves_a_member_out_is_objected_to() -> None:
    pool, ann = pool_book(), miner_book()
    ann.note_sent(1, 100)
    sheet = pool.add_round(facts(1), {BOB: 100}, {})
    closing = pool.close()
    ann.receive_closing(closing)
    assert ann.missing == (1,)
    assert ann.receive_sheet(sheet) is None
    assert "has no line" in ann.receive_closing(closing).answer.objection


def _resigned(sheet: c.RoundSheet, lines: tuple[c.Line, ...] | None = None, **changes: object) -> c.RoundSheet:
    kept = sheet.lines if lines is None else lines
    changes = {"root": c.lines_root(kept), "lines": len(kept), **changes}
    return c.RoundSheet(c.sign_head(POOL_KEY, replace(sheet.signed.head, **changes)), kept)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: _resigned(s, (*s.lines[:1], replace(s.lines[1], counted=999))), "by its rule"),
        (lambda s: _resigned(s, counted=1, total=1), "another sum"),
        (lambda s: _resigned(s, s.lines[::-1]), "out of order"),
        (lambda s: _resigned(s, (s.lines[0], s.lines[0])), "twice"),
        (lambda s: _resigned(s, root=Digest(bytes(32))), "other lines"),
        (lambda s: _resigned(s, number=2), "begins with"),
        (lambda s: _resigned(s, total=7), "begins with"),
        (lambda s: _resigned(s, pool=EVE), "does not verify"),
        (lambda s: _resigned(s, task_id=TaskId(bytes(32))), "another chain"),
        (lambda s: _resigned(s, (replace(s.lines[0], claimed=0, counted=0), s.lines[1])), "no examples"),
        (lambda s: _resigned(s, (replace(s.lines[0], reason="late"), s.lines[1])), "by its rule"),
    ],
)  # fmt: skip
def test_an_audit_finds_every_other_lie_in_a_book(change: Callable[[c.RoundSheet], c.RoundSheet], said: str) -> None:
    sheet = pool_book().add_round(facts(1), {ANN: 100, BOB: 60}, {})
    audit([sheet], CHAIN, POOL, TASK)
    with pytest.raises((CheatingError, CryptoError), match=said):
        audit([change(sheet)], CHAIN, POOL, TASK)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"previous": Digest(bytes(32))}, "two books"),
        ({"number": 4}, "two books"),
        ({"total": 1}, "were due"),
        ({"owner_cut_ppm": 5}, "middle of a task"),
        ({"weight_factor": 9}, "middle of a task"),
    ],
)
def test_heads_that_do_not_follow_one_another_are_found_by_member_and_auditor(changes: dict[str, object], said: str) -> None:
    pool, _, kept = two_rounds()
    third = pool.add_round(facts(3), {ANN: 100}, {})
    wrong = _resigned(third, **changes)
    ann = miner_book()
    for entry in kept:
        if isinstance(entry, c.RoundSheet):
            ann.receive(receipt(entry))
    if "number" not in changes:
        with pytest.raises(CheatingError, match=said):
            ann.receive(receipt(wrong))
    with pytest.raises(CheatingError, match=said):
        audit([*kept, wrong], CHAIN, POOL, TASK)


def test_an_answer_to_a_statement_that_is_not_in_the_book_gives_the_pool_away() -> None:
    """The pool keeps Bob's answer to the head that only Bob was shown, in the book that it shows to all."""
    pool, forked = pool_book(), pool_book()
    sheet = pool.add_round(facts(1), {ANN: 100, BOB: 1}, {})
    bob = miner_book(BOB)
    answer = bob.receive(receipt(forked.add_round(facts(1), {ANN: 1, BOB: 100}, {}), BOB))
    with pytest.raises(CheatingError, match="was shown another"):
        audit([sheet, answer], CHAIN, POOL, TASK)


def test_nothing_follows_a_closing() -> None:
    pool, _, kept = two_rounds()
    late = pool_book()
    late.load(kept)
    with pytest.raises(CheatingError, match="follows the closing"):
        audit([*kept, pool.close(), late.add_round(facts(3), {ANN: 1}, {})], CHAIN, POOL, TASK)


# -- members that lie to the pool --------------------------------------------------------------------------------------


def test_answers_are_taken_from_members_about_this_book_only() -> None:
    pool, _, kept = two_rounds()
    good = pool.answers[ANN]
    assert not pool.add_answer(good), "no news"
    assert not pool.add_answer(kept[1]), "an older one does not replace a newer one"  # type: ignore[arg-type]
    assert pool.answers[ANN] == good
    head = kept[0].signed.head  # type: ignore[union-attr]
    eve = c.Answer(CHAIN, POOL, TASK, EVE, c.head_digest(head), 10**6, "")
    with pytest.raises(NotFoundError, match="took no part"):
        pool.add_answer(c.sign_answer(KEY_OF[EVE], eve))
    with pytest.raises(AuthError, match="does not verify"):
        pool.add_answer(c.sign_answer(KEY_OF[EVE], replace(good.answer, counted=1)))
    with pytest.raises(NotFoundError, match="signed no statement"):
        pool.add_answer(c.sign_answer(KEY_OF[ANN], replace(good.answer, statement=Digest(bytes(32)))))
    for change in ({"task_id": TaskId(bytes(32))}, {"pool": EVE}, {"chain_id": Digest(bytes(32))}):
        with pytest.raises(AuthError, match="another chain, pool or task"):
            pool.add_answer(c.sign_answer(KEY_OF[ANN], replace(good.answer, **change)))  # type: ignore[arg-type]


def test_receipts_of_others_or_of_nobody_are_refused() -> None:
    sheet = pool_book().add_round(facts(1), {ANN: 100, BOB: 60}, {})
    ann = miner_book()
    good = receipt(sheet)
    for wrong, said in (
        (receipt(sheet, BOB), "not"),
        (replace(good, line=replace(good.line, counted=101)), "root"),
        (replace(good, signed=c.SignedHead(good.signed.head, receipt(sheet, BOB).signed.signature[::-1])), "does not verify"),  # type: ignore[arg-type]
        (receipt(pool_book(TaskId(bytes(32))).add_round(facts(1), {ANN: 1}, {})), "another chain, pool or task"),
    ):
        with pytest.raises(CryptoError, match=said):
            ann.receive(wrong)
    assert ann.receipts == {}
    assert ann.receive(good) == ann.receive(good), "seen again, the same answer"


def test_a_pool_that_hides_the_round_it_left_a_member_out_of_gets_no_agreement() -> None:
    pool, ann, _ = two_rounds()
    ann.note_sent(3, 100)
    pool.add_round(facts(3), {BOB: 60}, {})
    assert ann.missing == ()
    answer = ann.receive_closing(pool.close())
    assert ann.missing == (3,), "the pool's book is not to be had"
    assert "does not show 1 of its rounds" in answer.answer.objection


def test_a_round_under_another_number_is_objected_to_by_whom_it_counts() -> None:
    """Ann answered round 3 too. Told as round 9, its head hides that she is left out of it; Bob sent nothing in a round 9."""
    pool, ann, _ = two_rounds()
    bob = miner_book(BOB)
    bob.note_sent(1, 60)
    bob.note_sent(3, 60)
    ann.note_sent(3, 100)
    sheet = pool.add_round(facts(9), {BOB: 60}, {})
    answer = bob.receive(receipt(sheet, BOB))
    assert answer.answer.objection == "round 9: the line counts an answer, this miner sent none in that round"
    assert pool.add_answer(answer)


def test_a_member_of_the_first_round_only_is_heard_on_the_closing() -> None:
    pool, ann, _ = two_rounds()
    for number in range(3, 303):
        ann.show(pool.add_round(facts(number), {BOB: 60}, {}).signed)
    assert pool.add_answer(ann.receive_closing(pool.close()))
    with pytest.raises(NotFoundError, match="took no part"):
        pool.add_answer(miner_book(EVE).receive_closing(pool.close()))


def test_one_member_does_not_fill_the_book_with_its_words() -> None:
    pool, ann, kept = two_rounds()
    answer = ann.receive(receipt(pool.sheets[-1])).answer
    words = [c.sign_answer(KEY_OF[ANN], replace(answer, objection=f"no, {number}")) for number in range(40)]
    # Its agreement to the same head was the first.
    assert all(pool.add_answer(word) for word in words[:15])
    with pytest.raises(LimitError, match="that is enough"):
        pool.add_answer(words[15])
    again = pool_book()
    again.load([*kept, *words[:15]])
    with pytest.raises(LimitError):
        again.add_answer(words[15])
    assert again.add_answer(ann.receive_closing(again.close())), "the next statement has its own word"


@pytest.mark.parametrize(
    ("honest", "others", "claim", "kept"),
    [(1, 2, 1, 67), (1, 4, 1, 50), (1, 16, 1, 20), (3, 16, 1, 43), (17, 16, 1, 81), (10, 2, 1 << 31, 56), (1, 2, 1 << 31, 11)],
)
def test_what_honest_miners_keep_beside_dwarfs_and_liars(honest: int, others: int, claim: int, kept: int) -> None:
    """The table of docs/adr/0138: why the median is of accounts and not of rows."""
    amounts = c.counted([10_000] * honest + [claim] * others, 4)
    assert round(100 * sum(amounts[:honest]) / sum(amounts)) == kept
