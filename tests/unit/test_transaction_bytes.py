"""SignedTransaction.to_bytes and from_bytes are the codec's, only cheaper."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.chain.block import MAX_TRANSACTION
from core.chain.transaction import MAX_SIGNED, SignedTransaction
from core.codec import decode, encode
from core.errors import InputError
from core.ids import Signature


@given(st.binary(max_size=200), st.binary(min_size=64, max_size=64))
def test_what_is_written_is_read_again(content: bytes, signature: bytes) -> None:
    signed = SignedTransaction(content, Signature(signature))
    assert signed.to_bytes() == encode(signed)
    assert SignedTransaction.from_bytes(signed.to_bytes()) == signed


ALMOST = st.builds(lambda size, rest: size.to_bytes(4, "big") + rest, st.integers(0, 140), st.binary(max_size=200))


@given(st.one_of(st.binary(max_size=300), ALMOST))
def test_any_bytes_mean_the_same_to_both(data: bytes) -> None:
    assert outcome(SignedTransaction.from_bytes, data) == outcome(lambda d: decode(SignedTransaction, d, MAX_SIGNED), data)


@pytest.mark.parametrize("size", [MAX_TRANSACTION, MAX_TRANSACTION + 1])
def test_both_have_one_limit(size: int) -> None:
    data = size.to_bytes(4, "big") + bytes(size + 64)
    assert outcome(SignedTransaction.from_bytes, data) == outcome(lambda d: decode(SignedTransaction, d, MAX_SIGNED), data)
    signed = SignedTransaction(bytes(size), Signature(bytes(64)))
    assert outcome(lambda _: signed.to_bytes(), b"") == outcome(lambda _: encode(signed), b"")


def test_a_signature_of_another_size_is_not_written() -> None:
    signed = SignedTransaction(b"a", Signature(bytes(63)))
    assert outcome(lambda _: signed.to_bytes(), b"") == outcome(lambda _: encode(signed), b"")


def outcome(read: Callable[[bytes], object], data: bytes) -> object:
    try:
        return read(data)
    except InputError as error:
        return type(error), error.message
