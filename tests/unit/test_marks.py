"""Marks: the transfer of variants, its commitment, the exact judgement, the variants themselves, and reading a copy."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from bench import marks as bench
from core.errors import CheatingError, MarketError
from core.market import marks, tracing, variants
from core.market.delivery import Share as RowShare
from core.market.rows import DataSet, Held, Sold, open_chunk
from tests.chainkit import account, some

SESSION = marks.session_id(some("chain"), account("provider"), account("pool0"), some("rows"), account("miner0"))
SEED, SECRET = b"s" * 32, b"p" * 32
COUNT = 70
PINNED = "59ef1c219d6a4f08e29b5fcf2f2cad169352c86434dea91fe376dd37334cbbcd"


@pytest.fixture(scope="module")
def marking() -> marks.Marking:
    return marks.commit(SEED, SESSION, COUNT)


def sold(marking: marks.Marking, points: bytes | None = None) -> tuple[tuple[tuple[bytes, bytes], ...], bytes]:
    return marks.seller_keys(
        SESSION, marking.commitment, marking.seed_hash, marking.points if points is None else points, COUNT, SECRET
    )


def rows(count: int = 240, features: int = 16) -> np.ndarray[tuple[int, ...], np.dtype[np.int8]]:
    return np.random.default_rng(2).integers(0, 128, (count, features), dtype=np.int8)


# The transfer


def test_a_buyer_has_one_key_of_each_group_and_the_seller_both(marking: marks.Marking) -> None:
    pairs, reply = sold(marking)
    mine = marks.group_keys(marking, SESSION, reply)
    choices = marks.choices_of(SEED, COUNT)
    assert [pair[c] for pair, c in zip(pairs, choices, strict=True)] == list(mine)
    assert not {pair[1 - c] for pair, c in zip(pairs, choices, strict=True)} & set(mine)
    assert 20 < int(choices.sum()) < 50


def test_what_is_committed_to_never_changes() -> None:
    """Nodes of all releases must open alike: this value is part of the protocol."""
    assert marks.commit(SEED, SESSION, 3).commitment.hex() == PINNED


def test_both_sides_say_the_same_again(marking: marks.Marking) -> None:
    assert marks.commit(SEED, SESSION, COUNT) == marking
    assert sold(marking) == sold(marking), "a stream may break: the keys stay"
    other = marks.seller_keys(SESSION, marking.commitment, marking.seed_hash, marking.points, COUNT, b"q" * 32)
    assert other[0] != sold(marking)[0]


def test_the_seller_takes_only_the_message_that_the_trade_commits_to(marking: marks.Marking) -> None:
    """Else a buyer could ask twice with other choices, and have both variants."""
    again = marks.commit(b"t" * 32, SESSION, COUNT)
    with pytest.raises(MarketError, match="not the ones that the trade commits to"):
        sold(marking, again.points)
    with pytest.raises(MarketError, match="must be 4480"):
        sold(marking, marking.points[:-1])


def test_points_outside_the_group_end_the_transfer(marking: marks.Marking) -> None:
    bad = bytes([1]) + bytes(31) + marking.points[32:]  # of order one
    committed = marks.commitment(marking.seed_hash, marks.points_digest(bad))
    with pytest.raises(CheatingError):
        marks.seller_keys(SESSION, committed, marking.seed_hash, bad, COUNT, SECRET)
    _, reply = sold(marking)
    with pytest.raises(CheatingError, match="no canonical point"):
        marks.group_keys(marking, SESSION, bytes(32) + reply[32:])
    with pytest.raises(CheatingError, match="must have 2240"):
        marks.group_keys(marking, SESSION, reply[:-1])


@pytest.mark.parametrize(("seed", "count"), [(b"short", 3), (SEED, 0), (SEED, 257)])
def test_a_commitment_needs_a_seed_and_a_count(seed: bytes, count: int) -> None:
    with pytest.raises(MarketError, match="marks from a seed"):
        marks.commit(seed, SESSION, count)


def test_an_opening_is_the_committed_seed_in_the_same_place(marking: marks.Marking) -> None:
    points = marks.points_digest(marking.points)
    opened = marks.opened(marking.commitment, SEED, points, SESSION, COUNT)
    assert [opened >> g & 1 for g in range(COUNT)] == marks.choices_of(SEED, COUNT).tolist()
    elsewhere = marks.session_id(some("chain"), account("provider"), account("pool0"), some("rows"), account("miner1"))
    with pytest.raises(MarketError, match="never be opened"):
        marks.opened(marking.commitment, SEED, points, elsewhere, COUNT)
    with pytest.raises(MarketError, match="does not open"):
        marks.opened(marking.commitment, b"t" * 32, points, SESSION, COUNT)
    with pytest.raises(MarketError, match="does not open"):
        marks.opened(marking.commitment, SEED, some("points"), SESSION, COUNT)


def test_secrets_are_not_printed(marking: marks.Marking) -> None:
    for secret in (SEED, marking.points):
        assert repr(secret) not in repr(marking)
    assert "keys" not in repr(Sold(0, ((b"a", b"b"),), np.zeros(1, np.uint8)))
    assert "choices" not in repr(Held(0, (1,), (b"a",)))


# The judgement


@pytest.mark.parametrize("found", [41, 42, 75, 128, 133, 256])
def test_the_threshold_is_the_exact_binomial_tail(found: int) -> None:
    least = marks.least_agreeing(found)
    assert least is not None

    def tail(k: int) -> Fraction:
        return Fraction(sum(math.comb(found, i) for i in range(k, found + 1)), 2**found)

    both = Fraction(1, 2 ** (marks.SECURITY + 1))
    assert tail(least) <= both < tail(least - 1)


def test_the_documents_name_the_thresholds() -> None:
    text = (Path(__file__).parents[2] / "docs" / "market.md").read_text(encoding="utf-8")
    named = ", ".join(f"{marks.least_agreeing(n)} of {n}" for n in (256, 100, 64, 41))
    assert f"({named})" in text


def test_few_marks_prove_nothing() -> None:
    assert marks.least_agreeing(marks.SECURITY) is None
    assert marks.least_agreeing(marks.SECURITY + 1) == marks.SECURITY + 1
    assert not any(marks.agreement((1 << n) - 1, (1 << n) - 1, (1 << n) - 1)[2] for n in range(marks.SECURITY + 1))


def test_only_what_was_found_counts() -> None:
    found, choices = (1 << 60) - 1, (1 << 60) - 1
    assert marks.agreement(found, found, choices | 1 << 80) == (60, 60, True)
    assert marks.agreement(found, 0, choices) == (0, 60, True), "turned around"
    assert marks.agreement(found, (1 << 30) - 1, choices) == (30, 60, False)


@pytest.mark.parametrize(
    ("found", "seen", "reason"),
    [
        (1 << COUNT, 0, "beyond the 70 marks"), ((1 << 60) - 1, 1 << 61, "were not found"),
        ((1 << 40) - 1, 0, "40 marks found"), (0, 0, "0 marks found"),
    ],
)  # fmt: skip
def test_a_report_that_says_nothing_is_refused(found: int, seen: int, reason: str) -> None:
    with pytest.raises(MarketError, match=reason):
        marks.check_sight(found, seen, COUNT)


def test_nobody_is_framed_and_nobody_innocent_is_convicted() -> None:
    """The same functions 10^5 times: ``pofl bench marks`` (docs/market.md)."""
    assert sum(bench.framing(500, 3)["accused"].values()) == 0
    found = bench.innocent(bench.load_digits(), 500, 3)
    assert (found["convicted"], found["traced"]) == (0, 0)


# What a seller who spoils rows can learn


def test_a_spoiled_row_is_refused_whichever_variant_it_hides_behind(marking: marks.Marking) -> None:
    """Selective failure: she spoils what choice 1 opens. A buyer with choice 1 signs nothing, one with 0 sees nothing."""
    data = DataSet(rows(), np.zeros(240, np.uint8), 1, SECRET)
    share = RowShare.of(data.root, 240, 16, 1, 1, 0)
    count = share.marks
    mine = marks.commit(SEED, SESSION, count)
    keys, reply = marks.seller_keys(SESSION, mine.commitment, mine.seed_hash, mine.points, count, SECRET)
    held = Held(0, mine.keys.choices, marks.group_keys(mine, SESSION, reply))
    outcomes = set()
    for group in range(8):
        spoiled = tuple((a, b"x" * 32) if g == group else (a, b) for g, (a, b) in enumerate(keys))
        chunk = data.chunk(0, 24, Sold(0, spoiled, data.trace(some("trade"), account("miner0"), 240)))
        try:
            open_chunk(chunk, data.root, 240, 16, 1, 0, 24, held)
            refused = False
        except MarketError:
            refused = True
        assert refused == bool(mine.keys.choices[group])
        outcomes.add(refused)
    assert outcomes == {True, False}


def test_a_seller_who_puts_one_variant_behind_both_choices_learns_nothing(marking: marks.Marking) -> None:
    """The buyer takes the row: its choice, which alone is judged, is as hidden as before."""
    data = DataSet(rows(), np.zeros(240, np.uint8), 1, SECRET)
    held = Held(0, (0, 1), (b"k0", b"k1"))
    same = Sold(0, ((b"k0", b"k0"), (b"k1", b"k1")), np.zeros(240, np.uint8))
    chunk = data.chunk(0, 4, same)
    size = 17 + 16
    parts = [chunk.sealed[i : i + size] for i in range(0, len(chunk.sealed), size)]
    forged = replace(chunk, sealed=b"".join(p for i in range(0, len(parts), 2) for p in (parts[i], parts[i])))
    values, _ = open_chunk(forged, data.root, 240, 16, 1, 0, 4, held)
    assert (values == data.variant(0)[:4]).all()


# Variants


def test_variants_stand_around_the_row_within_what_its_columns_take() -> None:
    x = rows()
    x[:, 3] = 7
    plus, minus = variants.make_variants(x, variants.DEFAULT_STRENGTH, SECRET)
    assert ((plus.astype(int) + minus) == 2 * x.astype(int)).all()
    for each in (plus, minus):
        assert (each.min(axis=0) >= x.min(axis=0)).all()
        assert (each.max(axis=0) <= x.max(axis=0)).all()
    assert (plus[:, 3] == 7).all(), "a mark in a constant column would show itself"
    moved = np.abs(plus.astype(int) - x)
    assert set(np.unique(moved)) <= {0, *variants.amplitudes(x, variants.DEFAULT_STRENGTH).tolist()}
    edge = (x == x.min(axis=0)) | (x == x.max(axis=0))
    assert (moved[edge] == 0).all()
    again = variants.make_variants(x, variants.DEFAULT_STRENGTH, SECRET)
    assert (again[0] == plus).all()
    assert (variants.make_variants(x, variants.DEFAULT_STRENGTH, b"q" * 32)[0] != plus).any()


def test_a_strength_of_nothing_leaves_rows_alone_and_too_much_is_refused() -> None:
    plus, minus = variants.make_variants(rows(), 0, SECRET)
    assert (plus == minus).all()
    for bad in (-1, variants.MAX_STRENGTH + 1):
        with pytest.raises(MarketError, match="mark strength"):
            variants.make_variants(rows(), bad, SECRET)


# Copies


def test_a_copy_is_traced_and_read_whatever_its_order() -> None:
    data = DataSet(rows(), np.zeros(240, np.uint8), 1, SECRET)
    both = data.variant(0), data.variant(1)
    count = marks.mark_count(240)
    choices = marks.choices_of(SEED, count)
    trace = data.trace(some("trade"), account("miner0"), 240)
    which = choices[np.arange(240) % count] ^ trace
    held = np.where(which[:, None] == 0, *both).astype(np.float64)
    order = np.random.default_rng(1).permutation(240)[:150]
    copy = tracing.read_copy(both, held[order])
    assert copy.matched == 150
    names = [account(f"miner{i}") for i in range(5)]
    shares = [tracing.Share(0, data.trace(some("trade"), name, 240)) for name in names]
    best, sight = tracing.most_likely(copy, shares)
    assert best == 0
    assert sight.is_ours
    assert (sight.seen == (choices == 1))[sight.found].all()
    assert not tracing.look(copy, shares[1]).is_ours


def test_the_score_is_the_exact_tail_of_coins() -> None:
    for heads, coins in ((0, 0), (0, 9), (9, 9), (60, 100), (23, 23)):
        tail = sum(math.comb(coins, k) for k in range(heads, coins + 1)) / 2**coins
        assert tracing._bits(heads, coins) == pytest.approx(-math.log2(tail), abs=1e-9)


def test_rows_that_are_nobodys_fit_nobody() -> None:
    data = DataSet(rows(), np.zeros(240, np.uint8), 1, SECRET)
    stranger = np.random.default_rng(9).uniform(0, 127, (200, 16))
    copy = tracing.read_copy((data.variant(0), data.variant(1)), stranger)
    sight = tracing.look(copy, tracing.Share(0, data.trace(some("trade"), account("miner0"), 240)))
    assert sight.score < tracing.LEAST_SCORE
    with pytest.raises(MarketError, match="nobody whose copy"):
        tracing.most_likely(copy, [])


@pytest.mark.parametrize("copy", [np.zeros((0, 16)), np.zeros((3, 15)), np.zeros(16), np.full((2, 16), np.nan)])
def test_a_copy_of_another_form_is_refused(copy: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> None:
    data = rows()
    with pytest.raises(MarketError, match="copy"):
        tracing.read_copy((data, data), copy)


def test_wild_values_outweigh_nothing() -> None:
    data = DataSet(rows(), np.zeros(240, np.uint8), 1, SECRET)
    both = data.variant(0), data.variant(1)
    copy = both[0].astype(np.float64)
    copy[:, 0] = 1e6 * (1 - 2.0 * (np.arange(240) % 2))
    found = tracing.read_copy(both, copy)
    assert np.abs(found.leaning).max() <= 1
