"""market.proto <-> plain values, a checked pair per message.

``*_to_proto`` trusts its argument. ``*_from_proto`` raises MalformedError or LimitError and names the field.
"""

from __future__ import annotations

from dataclasses import dataclass

from pofl.market.v1 import market_pb2 as pb

from core.codec import decode, encode
from core.crypto.oblivious_transfer.base import POINT_SIZE
from core.crypto.sealing import KEY_SIZE
from core.errors import LimitError, MalformedError
from core.ids import AccountId, Amount, Digest, PartsPerMillion, Signature
from core.market.contract import (
    CHUNKS,
    MAX_BUYERS,
    MAX_CLASSES,
    MAX_FEATURES,
    MAX_OFFER,
    MAX_ROWS,
    IntegerRule,
    SignedOffer,
    TradeTerms,
    check_rule,
    decode_offer,
)
from core.market.delivery import MAX_SEALED, DeliveryOpen, SignedOpen
from core.market.marks import MARKS, points_size
from services.rpc.convert_fields import exact

__all__ = [
    "Bidding", "DataSetView", "SealedChunk", "bid_from_proto", "bid_to_proto", "data_set_from_proto", "data_set_to_proto",
    "data_sets_from_proto", "offer_from_proto", "offer_to_proto", "open_from_proto", "open_to_proto", "receipt_from_proto",
    "receipt_to_proto", "sealed_from_proto", "sealed_to_proto",
]  # fmt: skip

MAX_DATA_SETS = 1_000
MAX_NAME = 255


@dataclass(frozen=True, slots=True)
class DataSetView:
    """A data set on sale."""

    data_root: Digest
    name: str
    rows: int
    features: int
    classes: int
    feature_scale_micro: int
    """int8 feature = round(float * this / 10^6), clamped to [-127, 127]."""
    rule: IntegerRule | None = None
    """What offers are made by, with the least that the highs may be; None where the provider does not say."""


@dataclass(frozen=True, slots=True)
class Bidding:
    """A pool's bid under a provider's offer, signed by the pool (core.market.delivery.sign_bid)."""

    trade: TradeTerms
    pool_signature: Signature


@dataclass(frozen=True, slots=True)
class SealedChunk:
    """One message of a delivery: chunk number ``chunk`` of the miner's share."""

    chunk: int
    sealed: bytes
    transfer: bytes = b""
    """With the first message of a stream, the sender's message of the oblivious transfer."""


def data_set_to_proto(view: DataSetView) -> pb.DataSet:
    return pb.DataSet(
        data_root=view.data_root, name=view.name, rows=view.rows, features=view.features, classes=view.classes,
        feature_scale_micro=view.feature_scale_micro, rule=b"" if view.rule is None else encode(view.rule),
    )  # fmt: skip


def data_set_from_proto(message: pb.DataSet) -> DataSetView:
    if len(message.name) > MAX_NAME:
        raise LimitError(f"name: {len(message.name)} characters, at most {MAX_NAME}", field="name")
    if message.feature_scale_micro < 1:
        raise MalformedError("feature_scale_micro: 0, must be positive", field="feature_scale_micro")
    rule = decode(IntegerRule, message.rule, MAX_OFFER) if message.rule else None
    if rule is not None:
        check_rule(rule)
    return DataSetView(
        data_root=Digest(exact("data_root", message.data_root)),
        name=message.name,
        rows=_within("rows", message.rows, 1, MAX_ROWS),
        features=_within("features", message.features, 1, MAX_FEATURES),
        classes=_within("classes", message.classes, 1, MAX_CLASSES),
        feature_scale_micro=message.feature_scale_micro,
        rule=rule,
    )


def data_sets_from_proto(message: pb.ListDataSetsResponse) -> tuple[DataSetView, ...]:
    if len(message.data_sets) > MAX_DATA_SETS:
        raise LimitError(f"data_sets: {len(message.data_sets)}, at most {MAX_DATA_SETS}", field="data_sets")
    return tuple(data_set_from_proto(each) for each in message.data_sets)


def offer_to_proto(signed: SignedOffer) -> pb.RequestOfferResponse:
    return pb.RequestOfferResponse(offer=encode(signed.offer), signature=signed.signature)


def offer_from_proto(message: pb.RequestOfferResponse) -> SignedOffer:
    """Decoded and free of contradictions; the signature is the caller's to check. Raises MarketError as well."""
    return SignedOffer(decode_offer(message.offer), Signature(exact("signature", message.signature, 64)))


def bid_to_proto(bidding: Bidding) -> pb.AcceptBidRequest:
    trade = bidding.trade
    return pb.AcceptBidRequest(
        offer=encode(trade.offer), bid=trade.bid, p_ppm=trade.p_ppm, miners=trade.miners,
        pool_signature=bidding.pool_signature, marks=trade.marks,
    )  # fmt: skip


def bid_from_proto(message: pb.AcceptBidRequest) -> Bidding:
    """Decoded; whether it follows the rule is the provider's to check. Raises MarketError for an impossible offer."""
    if len(message.miners) > MAX_BUYERS:
        raise LimitError(f"miners: {len(message.miners)}, at most {MAX_BUYERS}", field="miners")
    if len(message.marks) > MAX_BUYERS:
        raise LimitError(f"marks: {len(message.marks)}, at most {MAX_BUYERS}", field="marks")
    if message.bid < 0:
        raise MalformedError(f"bid: {message.bid} is negative", field="bid")
    trade = TradeTerms(
        offer=decode_offer(message.offer),
        bid=Amount(message.bid),
        p_ppm=PartsPerMillion(_within("p_ppm", message.p_ppm, 0, 1_000_000)),
        miners=tuple(AccountId(exact("miners", m)) for m in message.miners),
        marks=tuple(Digest(exact("marks", m)) for m in message.marks),
    )
    return Bidding(trade, Signature(exact("pool_signature", message.pool_signature, 64)))


def open_to_proto(signed: SignedOpen) -> pb.DeliverRequest:
    opened = signed.opened
    message = pb.DeliverOpen(
        trade_id=opened.trade_id, miner=opened.miner, hpke_public_key=opened.hpke_public_key,
        from_chunk=opened.from_chunk, signature=signed.signature, seed_hash=opened.seed_hash, points=opened.points,
    )  # fmt: skip
    return pb.DeliverRequest(open=message)


def open_from_proto(message: pb.DeliverRequest, chain_id: Digest) -> SignedOpen:
    """The first message of a delivery on this chain; the signature is the caller's to check."""
    if message.WhichOneof("kind") != "open":
        raise MalformedError("a delivery begins with `open`", field="open")
    body = message.open
    opened = DeliveryOpen(
        chain_id=chain_id,
        trade_id=Digest(exact("open.trade_id", body.trade_id)),
        miner=AccountId(exact("open.miner", body.miner)),
        hpke_public_key=exact("open.hpke_public_key", body.hpke_public_key, KEY_SIZE),
        from_chunk=_within("open.from_chunk", body.from_chunk, 0, CHUNKS - 1),
        seed_hash=Digest(exact("open.seed_hash", body.seed_hash)),
        points=_short("open.points", body.points, points_size(MARKS)),
    )
    return SignedOpen(opened, Signature(exact("open.signature", body.signature, 64)))


def receipt_to_proto(chunk: int, signature: Signature) -> pb.DeliverRequest:
    return pb.DeliverRequest(receipt=pb.ChunkReceipt(chunk=chunk, signature=signature))


def receipt_from_proto(message: pb.DeliverRequest) -> tuple[int, Signature]:
    """``(chunk, signature)``: any message of a delivery after the first."""
    if message.WhichOneof("kind") != "receipt":
        raise MalformedError("after `open`, a delivery takes receipts only", field="receipt")
    chunk = _within("receipt.chunk", message.receipt.chunk, 0, CHUNKS - 1)
    return chunk, Signature(exact("receipt.signature", message.receipt.signature, 64))


def sealed_to_proto(part: SealedChunk) -> pb.DeliverResponse:
    return pb.DeliverResponse(chunk=part.chunk, chunks=CHUNKS, sealed=part.sealed, transfer=part.transfer)


def sealed_from_proto(message: pb.DeliverResponse) -> SealedChunk:
    if message.chunks != CHUNKS:
        raise MalformedError(f"chunks: {message.chunks}, a share has {CHUNKS}", field="chunks")
    if len(message.sealed) > MAX_SEALED:
        raise LimitError(f"sealed: {len(message.sealed)} bytes, at most {MAX_SEALED}", field="sealed")
    transfer = _short("transfer", message.transfer, POINT_SIZE * MARKS)
    return SealedChunk(_within("chunk", message.chunk, 0, CHUNKS - 1), message.sealed, transfer)


def _short(name: str, value: bytes, limit: int) -> bytes:
    if len(value) > limit:
        raise LimitError(f"{name}: {len(value)} bytes, at most {limit}", field=name)
    return value


def _within(name: str, value: int, low: int, high: int) -> int:
    if not low <= value <= high:
        raise MalformedError(f"{name}: {value} is not in {low}..{high}", field=name)
    return value
