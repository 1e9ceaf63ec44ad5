"""Marks for any data: variants, chunks of both variants, and agreement."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import MarketError
from core.market import marks, variants
from core.market.rows import DataSet, Held, Sold, open_chunk


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 9), st.integers(0, variants.MAX_STRENGTH))
@settings(max_examples=60, deadline=None)
def test_variants_of_any_rows_are_rows(seed: int, count: int, features: int, strength: int) -> None:
    rng = np.random.default_rng(seed)
    low = int(rng.integers(-127, 100))
    x = rng.integers(low, int(rng.integers(low, 127)) + 1, (count, features), dtype=np.int8)
    plus, minus = variants.make_variants(x, strength, b"s" * 32)
    assert (plus.astype(int) + minus == 2 * x.astype(int)).all()
    assert (np.minimum(plus, minus).min(axis=0) >= x.min(axis=0)).all()
    assert (np.maximum(plus, minus).max(axis=0) <= x.max(axis=0)).all()


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.data())
@settings(max_examples=60, deadline=None)
def test_a_buyer_gets_what_it_chose_of_any_run_and_nothing_else_opens(seed: int, count: int, draw: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    data = DataSet(rng.integers(-127, 128, (count, 4), dtype=np.int8), np.zeros(count, np.uint8), 1, b"s" * 32)
    groups = draw.draw(st.integers(1, count))
    start = draw.draw(st.integers(0, count - 1))
    stop = draw.draw(st.integers(start + 1, count))
    keys = tuple((rng.bytes(32), rng.bytes(32)) for _ in range(groups))
    choices = tuple(int(bit) for bit in rng.integers(0, 2, groups))
    trace = rng.integers(0, 2, count, dtype=np.uint8)
    chunk = data.chunk(start, stop, Sold(0, keys, trace))
    held = Held(0, choices, tuple(pair[c] for pair, c in zip(keys, choices, strict=True)))
    values, _ = open_chunk(chunk, data.root, count, 4, 1, start, stop, held)
    which = np.array(choices, np.uint8)[np.arange(count) % groups] ^ trace
    wanted = np.where(which[:, None] == 0, data.variant(0), data.variant(1))[start:stop]
    assert (values == wanted).all()
    turned = Held(0, tuple(1 - c for c in choices), held.keys)
    try:
        open_chunk(chunk, data.root, count, 4, 1, start, stop, turned)
    except MarketError:
        return
    raise AssertionError("a key opened the variant that was not chosen")


@given(st.integers(0, 2**256 - 1), st.integers(0, 2**256 - 1), st.integers(0, 2**256 - 1))
def test_agreement_counts_what_was_found_and_is_even_handed(found: int, seen: int, choices: int) -> None:
    agreeing, total, proven = marks.agreement(found, seen & found, choices)
    assert agreeing == sum((seen >> g & 1) == (choices >> g & 1) for g in range(256) if found >> g & 1)
    turned = marks.agreement(found, ~seen & found, choices)
    assert turned == (total - agreeing, total, proven)
