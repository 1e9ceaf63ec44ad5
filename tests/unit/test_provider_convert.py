"""market.proto: what leaves comes back, and what cannot be is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pofl.market.v1 import market_pb2 as pb

from core.crypto.signing import KeyPair
from core.errors import InputError, LimitError, MalformedError, MarketError
from core.ids import AccountId, Digest, Signature
from core.market import delivery
from core.market.contract import CHUNKS, MAX_BUYERS, SignedOffer
from core.market.delivery import MAX_SEALED, DeliveryOpen, Share
from core.market.rows import plan, share_marks, share_range
from services.rpc import convert_market as convert
from services.rpc.convert_market import Bidding, DataSetView, SealedChunk
from services.rpc.limits import MAX_MESSAGE
from services.rpc.market_client import share_of
from tests.unit.test_market_contract import a_trade, an_offer

SIGNATURE = Signature(b"s" * 64)
CHAIN = Digest(b"c" * 32)
VIEW = DataSetView(Digest(b"d" * 32), "digits", 300, 64, 10, 127_000_000)
OPEN = delivery.sign_open(
    KeyPair.from_seed(b"m" * 32),
    DeliveryOpen(
        CHAIN, Digest(b"t" * 32), AccountId(KeyPair.from_seed(b"m" * 32).public_key), b"h" * 32, 3, Digest(b"e" * 32), b"points"
    ),
)


def test_every_message_comes_back() -> None:
    assert convert.data_set_from_proto(convert.data_set_to_proto(VIEW)) == VIEW
    signed = SignedOffer(an_offer(), SIGNATURE)
    assert convert.offer_from_proto(convert.offer_to_proto(signed)) == signed
    bidding = Bidding(a_trade(), SIGNATURE)
    assert convert.bid_from_proto(convert.bid_to_proto(bidding)) == bidding
    assert convert.open_from_proto(convert.open_to_proto(OPEN), CHAIN) == OPEN
    assert convert.receipt_from_proto(convert.receipt_to_proto(9, SIGNATURE)) == (9, SIGNATURE)
    part = SealedChunk(9, b"sealed", b"transfer")
    assert convert.sealed_from_proto(convert.sealed_to_proto(part)) == part


def test_the_largest_chunk_fits_one_message() -> None:
    assert len(convert.sealed_to_proto(SealedChunk(9, bytes(MAX_SEALED), bytes(8192))).SerializeToString()) < MAX_MESSAGE


def _data_set(**changes: Any) -> Callable[[], object]:
    message = convert.data_set_to_proto(VIEW)
    for name, value in changes.items():
        setattr(message, name, value)
    return lambda: convert.data_set_from_proto(message)


def _bid(**changes: Any) -> Callable[[], object]:
    message = convert.bid_to_proto(Bidding(a_trade(), SIGNATURE))
    for name, value in changes.items():
        if name == "miners":
            del message.miners[:]
            message.miners.extend(value)
        else:
            setattr(message, name, value)
    return lambda: convert.bid_from_proto(message)


def _open(**changes: Any) -> Callable[[], object]:
    message = convert.open_to_proto(OPEN)
    for name, value in changes.items():
        setattr(message.open, name, value)
    return lambda: convert.open_from_proto(message, CHAIN)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (_data_set(data_root=b"x"), MalformedError, "data_root: 1 bytes"),
        (_data_set(rows=0), MalformedError, "rows: 0"),
        (_data_set(features=5_000), MalformedError, "features: 5000"),
        (_data_set(classes=257), MalformedError, "classes: 257"),
        (_data_set(feature_scale_micro=0), MalformedError, "feature_scale_micro"),
        (_data_set(name="n" * 256), LimitError, "name: 256"),
        (_bid(offer=b"x"), MalformedError, "truncated"),
        (_bid(offer=bytes(3_000)), LimitError, "3000 bytes"),
        (_bid(bid=-1), MalformedError, "bid: -1"),
        (_bid(p_ppm=1_000_001), MalformedError, "p_ppm: 1000001"),
        (_bid(miners=[b"short"]), MalformedError, "miners: 5 bytes"),
        (_bid(miners=[bytes(32)] * (MAX_BUYERS + 1)), LimitError, "miners: 1001"),
        (_bid(pool_signature=b""), MalformedError, "pool_signature: 0 bytes"),
        (_open(trade_id=b""), MalformedError, "open.trade_id"),
        (_open(hpke_public_key=bytes(31)), MalformedError, "open.hpke_public_key: 31 bytes"),
        (_open(from_chunk=CHUNKS), MalformedError, "open.from_chunk: 10"),
        (_open(signature=bytes(63)), MalformedError, "open.signature"),
        (lambda: convert.open_from_proto(convert.receipt_to_proto(0, SIGNATURE), CHAIN), MalformedError, "begins with"),
        (lambda: convert.receipt_from_proto(convert.open_to_proto(OPEN)), MalformedError, "receipts only"),
        (lambda: convert.receipt_from_proto(pb.DeliverRequest()), MalformedError, "receipts only"),
        (lambda: convert.receipt_from_proto(convert.receipt_to_proto(10, SIGNATURE)), MalformedError, "chunk: 10"),
        (lambda: convert.sealed_from_proto(pb.DeliverResponse(chunk=0, chunks=9)), MalformedError, "chunks: 9"),
        (lambda: convert.sealed_from_proto(pb.DeliverResponse(chunk=10, chunks=10)), MalformedError, "chunk: 10"),
        (
            lambda: convert.sealed_from_proto(pb.DeliverResponse(chunks=10, sealed=bytes(MAX_SEALED + 1))),
            LimitError,
            "sealed:",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(bad: Callable[[], object], error: type[InputError], message: str) -> None:
    with pytest.raises(error, match=message):
        bad()


def test_shares_are_the_plans() -> None:
    for rows, miners in ((300, 3), (97, 4), (10, 1)):
        for index, chunks in enumerate(plan(rows, miners)):
            share = Share.of(VIEW.data_root, rows, 64, 10, miners, index)
            assert tuple(share.range(chunk) for chunk in range(CHUNKS)) == chunks
            assert share_range(rows, miners, index) == (chunks[0][0], chunks[-1][1])
            assert share_marks(rows, miners, index) == share.marks
    assert share_of(VIEW, 100, 100) == Share.of(VIEW.data_root, 300, 64, 10, 3, 1)
    for first, count in ((-1, 100), (0, 9), (201, 100)):
        with pytest.raises(MarketError, match="a share is inside"):
            share_of(VIEW, first, count)
    with pytest.raises(MarketError, match="chunk 10"):
        share_of(VIEW, 0, 100).range(10)
