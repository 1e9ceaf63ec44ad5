"""The market on the chain, of chain.proto <-> services.rpc.views (see convert_chain)."""

from __future__ import annotations

from pofl.chain.v1 import chain_pb2 as pb

from core.endpoint import check_endpoint
from core.errors import MalformedError
from core.ids import AccountId, Digest, Height, Milliseconds, PartsPerMillion
from core.market.marks import MARKS
from services.rpc.convert_fields import amount, exact, instant, small
from services.rpc.views import LeakReportView, MarketView, ProviderView, ReportOutcome, TradePhase, TradeView

__all__ = [
    "market_from_proto", "market_to_proto", "provider_from_proto", "provider_to_proto", "trade_from_proto",
    "trade_to_proto",
]  # fmt: skip


def provider_to_proto(view: ProviderView) -> pb.ProviderView:
    return pb.ProviderView(provider=view.provider, data_root=view.data_root, rows=view.rows, endpoint=view.endpoint)


def provider_from_proto(message: pb.ProviderView) -> ProviderView:
    return ProviderView(
        provider=AccountId(exact("provider", message.provider)),
        data_root=Digest(exact("data_root", message.data_root)),
        rows=message.rows,
        endpoint=check_endpoint(message.endpoint, "provider.endpoint"),
    )


def trade_to_proto(view: TradeView) -> pb.TradeView:
    return pb.TradeView(
        trade_id=view.trade_id,
        provider=view.provider,
        pool=view.pool,
        data_root=view.data_root,
        bid=view.bid,
        markup=view.markup,
        p_ppm=view.p_ppm,
        reputation_ppm=view.reputation_ppm,
        phase=pb.TradePhase.ValueType(view.phase),
        bid_height=view.bid_height,
        draw_height=view.draw_height or 0,
        miners=view.miners,
        chunks_total=view.chunks_total,
        chunks_delivered=view.chunks_delivered,
        delivery_deadline_ms=view.delivery_deadline_ms or 0,
        rows=view.rows,
        marks=view.marks,
        reports=[_report_to_proto(report) for report in view.reports],
        is_leaked=view.is_leaked,
    )


def _report_to_proto(view: LeakReportView) -> pb.LeakReport:
    return pb.LeakReport(
        miner=view.miner, outcome=pb.ReportOutcome.ValueType(view.outcome), found=view.found, agreeing=view.agreeing,
        copy=view.copy, height=view.height, deadline_ms=view.deadline_ms,
    )  # fmt: skip


def _report_from_proto(message: pb.LeakReport) -> LeakReportView:
    try:
        outcome = ReportOutcome(message.outcome)
    except ValueError:
        raise MalformedError(f"outcome: unknown value {message.outcome}", field="outcome") from None
    return LeakReportView(
        miner=AccountId(exact("reports.miner", message.miner)),
        outcome=outcome,
        found=small("reports.found", message.found, MARKS),
        agreeing=small("reports.agreeing", message.agreeing, MARKS),
        copy=Digest(exact("reports.copy", message.copy)),
        height=Height(message.height),
        deadline_ms=Milliseconds(message.deadline_ms),
    )


def trade_from_proto(message: pb.TradeView) -> TradeView:
    try:
        phase = TradePhase(message.phase)
    except ValueError:
        raise MalformedError(f"phase: unknown value {message.phase}", field="phase") from None
    return TradeView(
        trade_id=Digest(exact("trade_id", message.trade_id)),
        provider=AccountId(exact("provider", message.provider)),
        pool=AccountId(exact("pool", message.pool)),
        data_root=Digest(exact("data_root", message.data_root)),
        bid=amount("bid", message.bid),
        markup=amount("markup", message.markup),
        p_ppm=PartsPerMillion(small("p_ppm", message.p_ppm, 1_000_000)),
        reputation_ppm=PartsPerMillion(small("reputation_ppm", message.reputation_ppm, 1_000_000)),
        phase=phase,
        bid_height=Height(message.bid_height),
        draw_height=Height(message.draw_height) if message.draw_height else None,
        miners=tuple(AccountId(exact("miners", m)) for m in message.miners),
        chunks_total=message.chunks_total,
        chunks_delivered=message.chunks_delivered,
        delivery_deadline_ms=instant(message.delivery_deadline_ms),
        rows=message.rows,
        marks=tuple(Digest(exact("marks", m)) for m in message.marks),
        reports=tuple(_report_from_proto(report) for report in message.reports),
        is_leaked=message.is_leaked,
    )


def market_to_proto(view: MarketView) -> pb.GetMarketResponse:
    return pb.GetMarketResponse(
        height=view.height, bid_high=view.bid_high, markup_high=view.markup_high,
        pool_reputation_ppm=view.pool_reputation_ppm,
    )  # fmt: skip


def market_from_proto(message: pb.GetMarketResponse) -> MarketView:
    return MarketView(
        height=Height(message.height),
        bid_high=amount("bid_high", message.bid_high),
        markup_high=amount("markup_high", message.markup_high),
        pool_reputation_ppm=PartsPerMillion(small("pool_reputation_ppm", message.pool_reputation_ppm, 1_000_000)),
    )
