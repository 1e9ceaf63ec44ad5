"""Any choices and messages, batch after batch in one session."""

from __future__ import annotations

import functools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from core.crypto.oblivious_transfer import ExtensionReceiver, ExtensionSender
from tests.unit.test_oblivious_transfer import ready, transfer


@functools.cache
def session() -> tuple[ExtensionSender, ExtensionReceiver]:
    return ready(5)


@settings(deadline=None, max_examples=40)
@given(bits=st.lists(st.integers(0, 1), min_size=1, max_size=300), data=st.data())
def test_transfers(bits: list[int], data: st.DataObject) -> None:
    count = len(bits)
    raw = data.draw(st.binary(min_size=32, max_size=32)) * count
    messages = np.frombuffer(raw, np.uint8).reshape(count, 2, 16)
    choice = np.array(bits, np.uint8)
    got = transfer(*session(), messages, choice)
    assert (got == messages[np.arange(count), choice]).all()
