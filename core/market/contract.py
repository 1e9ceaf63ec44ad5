"""The rule of a trade in integers: what every node recomputes (paper, section III; design: market, "A trade").

The same mechanism as :mod:`core.market.reverse_game`, on the same bounds ``0 <= p <= 1``, ``m >= 0``, ``D_s >= 0``, but
in exact rational arithmetic that is rounded down once per result, so that all nodes agree to the last unit. Symbols
are the paper's; ``e1``, ``e2`` are its epsilons. Amounts are the coin's smallest unit.

Limits, so that every result is an ``Amount`` and every intermediate value fits a signed 256-bit integer (for twins in
other languages): amounts of a rule and bids are at most ``MAX_RULE_AMOUNT``; ``e2 >= MIN_E2_PPM``, so that
``D_s <= D_bar / e2`` is at most 10^18; ``eta`` and ``beta`` are at most 1000.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from core.codec import DIGEST, I64, PUBLIC_KEY, SIGNATURE, U16, U32, U64, Fixed, Seq, decode, encode
from core.crypto.hashing import digest
from core.errors import MarketError
from core.ids import MILLION, AccountId, Amount, Digest, Height, Milliseconds, PartsPerMillion, Signature

__all__ = [
    "IntegerRule", "Offer", "SignedOffer", "Terms", "TradeTerms", "DEFAULT_RULE", "check_offer", "check_rule",
    "check_trade", "decode_offer", "least_bid", "range_amount", "terms", "trade_id", "with_highs",
    "DOMAIN_OFFER", "DOMAIN_TRADE", "DOMAIN_TRADE_SIGNATURE",
    "CHUNKS", "MAX_BUYERS", "MAX_CLASSES", "MAX_COEFFICIENT_MICRO", "MAX_FEATURES", "MAX_OFFER", "MAX_ROWS",
    "MAX_RULE_AMOUNT", "MIN_E2_PPM",
]  # fmt: skip

DOMAIN_OFFER: Final = b"pofl/offer/1"
"""Under the provider's signature of an offer."""
DOMAIN_TRADE: Final = b"pofl/trade/1"
"""Under the trade's id."""
DOMAIN_TRADE_SIGNATURE: Final = b"pofl/trade-signature/1"
"""Under the provider's signature of the trade terms."""

MAX_RULE_AMOUNT: Final = 10**15
"""Largest ``m``, ``m_bar``, ``m_min``, ``D_bar`` and ``alpha``; below 2^53, so it is exact as a float too."""
MIN_E2_PPM: Final = 1_000
MAX_COEFFICIENT_MICRO: Final = 1_000 * MILLION
"""Largest ``eta`` and ``beta``, in millionths."""
MAX_OFFER: Final = 2_048
"""Bytes of an encoded offer."""
MAX_ROWS: Final = 1 << 24
MAX_FEATURES: Final = 4_096
MAX_CLASSES: Final = 256
MAX_BUYERS: Final = 1_000
"""Miners that share one trade's rows: with a commitment each, a bid stays below a transaction's 64 KiB."""
CHUNKS: Final = 10
"""Parts in which a miner's share is delivered and paid."""


@dataclass(frozen=True, slots=True)
class IntegerRule:
    """The provider's public parameters of eqs. (2)-(4)."""

    e1_ppm: Annotated[int, U32]
    """Weight of the reputation in ``p``, parts per million."""
    e2_ppm: Annotated[int, U32]
    """Weight of the markup in ``p``, parts per million."""
    eta_micro: Annotated[int, U64]
    """``V = eta D_s``, millionths."""
    alpha: Annotated[Amount, I64]
    """Expected loss of selling to a pool of reputation 0, before the value's share: ``c = alpha (1-r) + beta V``."""
    beta_micro: Annotated[int, U64]
    """Expected loss per unit of value, millionths."""
    D_bar: Annotated[Amount, I64]
    """Recent high of the markup; the chain's figure for this provider, or a floor of hers above it."""
    m_bar: Annotated[Amount, I64]
    """Recent high of the bid; the same."""
    m_min: Annotated[Amount, I64]
    """Reserve: no bid below it. 0 is the paper's game (docs/adr/0030-market-defaults.md)."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a bid comes to under a rule."""

    markup: Amount
    """``D_s*(m)``."""
    price: Amount
    """``m + D_s``: locked until the draw."""
    p_ppm: PartsPerMillion
    """The probability of a deal."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A provider's rule and data set for one pool. Good until ``expiry_ms`` of block time."""

    chain_id: Annotated[Digest, DIGEST]
    provider: Annotated[AccountId, PUBLIC_KEY]
    pool: Annotated[AccountId, PUBLIC_KEY]
    data_root: Annotated[Digest, DIGEST]
    """RFC 6962 root of the rows (core.market.rows)."""
    rows: Annotated[int, U32]
    features: Annotated[int, U16]
    classes: Annotated[int, U16]
    rule: IntegerRule
    reputation_ppm: Annotated[PartsPerMillion, U32]
    """``r`` of the pool, read from the chain's state ..."""
    height_read: Annotated[Height, U64]
    """... after this height."""
    expiry_ms: Annotated[Milliseconds, U64]
    nonce: Annotated[bytes, Fixed(16)]
    """Tells apart offers that are otherwise alike."""


@dataclass(frozen=True, slots=True)
class SignedOffer:
    offer: Offer
    signature: Annotated[Signature, SIGNATURE]
    """The provider's, over the encoded offer under DOMAIN_OFFER."""


@dataclass(frozen=True, slots=True)
class TradeTerms:
    """What both sides sign: the offer, the bid, its probability, who receives rows, in order, and their marks."""

    offer: Offer
    bid: Annotated[Amount, I64]
    """``m``."""
    p_ppm: Annotated[PartsPerMillion, U32]
    miners: Annotated[tuple[AccountId, ...], Seq(PUBLIC_KEY, MAX_BUYERS)]
    marks: Annotated[tuple[Digest, ...], Seq(DIGEST, MAX_BUYERS)]
    """Of each miner, the pool's commitment to its choices of variants (core.market.marks.commit)."""


DEFAULT_RULE: Final = IntegerRule(
    e1_ppm=200_000,
    e2_ppm=500_000,
    eta_micro=1_800_000,
    alpha=Amount(3_000),
    beta_micro=1_000_000,
    D_bar=Amount(4_000),
    m_bar=Amount(8_000),
    m_min=Amount(1_000),
)
"""Parameters for which the mechanism does what section III promises (docs/adr/0030-market-defaults.md)."""


def terms(rule: IntegerRule, m: Amount, reputation: PartsPerMillion) -> Terms:
    """Markup, price and probability of the bid ``m``: eqs. (4) and (2), bounded, each rounded down once.

    ``D_s`` is the maximum of eq. (3)'s integrand over ``D_s >= 0`` and ``p <= 1``. It rises to eq. (4)'s value, or to
    where ``p`` reaches 1 if that comes first.

    Raises:
        MarketError: the rule breaks a condition, ``m`` or ``reputation`` is out of range, or ``m`` is below
            ``least_bid``.
    """
    check_rule(rule)
    if not 0 <= m <= MAX_RULE_AMOUNT:
        raise MarketError(f"the bid {m} is not in 0..{MAX_RULE_AMOUNT}", bid=m)
    if not 0 <= reputation <= MILLION:
        raise MarketError(f"the reputation {reputation} is not in 0..{MILLION} ppm", reputation=reputation)
    e1, e2, D_bar, m_bar = rule.e1_ppm, rule.e2_ppm, rule.D_bar, rule.m_bar
    k = MILLION - e1 - e2
    s = rule.beta_micro * rule.eta_micro - MILLION**2  # (beta eta - 1) * 10^12
    least = least_bid(rule, reputation)
    if m < least:
        raise MarketError(
            f"the bid {m} is below {least}, the least at reputation {reputation} ppm (alpha = {rule.alpha}, reserve "
            f"{rule.m_min}); bid more or decline",
            bid=m, least=least, reputation=reputation,
        )  # fmt: skip
    surplus = m * MILLION - rule.alpha * (MILLION - reputation)  # (m - alpha (1-r)) * 10^6
    # a = e1 r + (1-e1-e2) m/m_bar, times 10^12 m_bar: the probability before the markup
    a = e1 * reputation * m_bar + k * m * MILLION
    one = MILLION**2 * m_bar
    # eq. (4), numerator and denominator times 10^18 m_bar
    best = (e2 * surplus * MILLION**2 * m_bar - s * D_bar * a) // (2 * e2 * s * MILLION * m_bar)
    cap = (one - a) * D_bar // (e2 * MILLION * m_bar)  # p = 1
    markup = max(0, min(best, cap))
    # eq. (2), times 10^12 m_bar D_bar
    p = (a * D_bar + e2 * markup * MILLION * m_bar) // (MILLION * m_bar * D_bar)
    return Terms(Amount(markup), Amount(m + markup), PartsPerMillion(min(p, MILLION)))


def least_bid(rule: IntegerRule, reputation: PartsPerMillion) -> Amount:
    """``max(m_min, alpha (1-r))``, rounded up: below it every markup leaves the provider an expected loss."""
    return Amount(max(rule.m_min, -(-rule.alpha * (MILLION - reputation) // MILLION)))


def check_rule(rule: IntegerRule) -> None:
    """Refuse parameters for which eq. (4) is no maximum, or that could overflow.

    Raises:
        MarketError: names the condition and the values.
    """
    for name in ("D_bar", "m_bar"):
        value = getattr(rule, name)
        if not 1 <= value <= MAX_RULE_AMOUNT:
            raise MarketError(f"{name} = {value} is not in 1..{MAX_RULE_AMOUNT}", **{name: value})
    for name in ("alpha", "m_min"):
        value = getattr(rule, name)
        if not 0 <= value <= MAX_RULE_AMOUNT:
            raise MarketError(f"{name} = {value} is not in 0..{MAX_RULE_AMOUNT}", **{name: value})
    for name in ("eta_micro", "beta_micro"):
        value = getattr(rule, name)
        if not 0 <= value <= MAX_COEFFICIENT_MICRO:
            raise MarketError(f"{name} = {value} is not in 0..{MAX_COEFFICIENT_MICRO}", **{name: value})
    e1, e2 = rule.e1_ppm, rule.e2_ppm
    if e1 < 0 or e2 < MIN_E2_PPM or e1 + e2 > MILLION:
        raise MarketError(
            f"e1 >= 0, e2 >= {MIN_E2_PPM} and e1 + e2 <= {MILLION} ppm is violated: e1 = {e1}, e2 = {e2}", e1=e1, e2=e2
        )
    product = rule.beta_micro * rule.eta_micro
    if product <= MILLION**2:
        raise MarketError(
            f"beta eta > 1 (Theorem III.1) is violated: beta = {rule.beta_micro}, eta = {rule.eta_micro} millionths, "
            f"product {product // MILLION} millionths; raise either",
            beta_micro=rule.beta_micro, eta_micro=rule.eta_micro,
        )  # fmt: skip


def check_offer(offer: Offer) -> None:
    """Refuse an offer that contradicts itself. Signature, expiry and state are the caller's to check.

    Raises:
        MarketError: names what is wrong.
    """
    check_rule(offer.rule)
    if offer.provider == offer.pool:
        raise MarketError("provider and pool of an offer are one account; nobody trades with herself")
    for name, limit in (("rows", MAX_ROWS), ("features", MAX_FEATURES), ("classes", MAX_CLASSES)):
        value = getattr(offer, name)
        if not 1 <= value <= limit:
            raise MarketError(f"an offer of {value} {name}; {name} are 1..{limit}", **{name: value})
    if not 0 <= offer.reputation_ppm <= MILLION:
        r = offer.reputation_ppm
        raise MarketError(f"the reputation {r} is not in 0..{MILLION} ppm", reputation=r)


def check_trade(trade: TradeTerms) -> Terms:
    """Recompute a trade and return what it comes to. Signatures, expiry and state are the caller's to check.

    Raises:
        MarketError: the offer contradicts itself, the bid is refused, ``p_ppm`` is not eq. (2)'s, or the miners are
            none, repeated, too many for the rows, or not one commitment to marks each.
    """
    check_offer(trade.offer)
    found = terms(trade.offer.rule, trade.bid, trade.offer.reputation_ppm)
    if trade.p_ppm != found.p_ppm:
        raise MarketError(
            f"the trade says p = {trade.p_ppm} ppm, eq. (2) gives {found.p_ppm} for m = {trade.bid}",
            stated=trade.p_ppm, expected=found.p_ppm,
        )  # fmt: skip
    count, most = len(trade.miners), min(MAX_BUYERS, trade.offer.rows // CHUNKS)
    if not 1 <= count <= most:
        raise MarketError(
            f"{count} miners for {trade.offer.rows} rows; each takes {CHUNKS} chunks of a row or more: 1 to {most}",
            miners=count, most=most,
        )  # fmt: skip
    if len(set(trade.miners)) != count:
        raise MarketError("a miner is listed twice; each receives one share")
    if len(trade.marks) != count:
        raise MarketError(f"{len(trade.marks)} commitments to marks for {count} miners: one each", marks=len(trade.marks))
    return found


def decode_offer(data: bytes) -> Offer:
    """A checked offer from untrusted bytes. Raises MalformedError, LimitError or MarketError."""
    offer = decode(Offer, data, MAX_OFFER)
    check_offer(offer)
    return offer


def trade_id(trade: TradeTerms) -> Digest:
    """``SHA-256(domain, terms)``; the terms contain the chain id. This is the design's "bid id" of the draw."""
    return Digest(digest(DOMAIN_TRADE, encode(trade)))


def with_highs(rule: IntegerRule, D_bar: Amount, m_bar: Amount) -> IntegerRule:
    """The rule with the chain's recent highs where they are above its own: those are a floor, or one sure purchase in an empty
    market lowers them for good (docs/adr/0140)."""
    return IntegerRule(
        rule.e1_ppm,
        rule.e2_ppm,
        rule.eta_micro,
        rule.alpha,
        rule.beta_micro,
        Amount(max(rule.D_bar, min(D_bar, MAX_RULE_AMOUNT))),
        Amount(max(rule.m_bar, min(m_bar, MAX_RULE_AMOUNT))),
        rule.m_min,
    )


def range_amount(price: Amount, rows: int, start: int, stop: int) -> Amount:
    """The part of ``price`` that rows ``start..stop-1`` of ``rows`` release. Adjoining ranges sum to the whole.

    Raises:
        MarketError: the range is not inside ``0..rows``.
    """
    if not 0 <= start <= stop <= rows or rows < 1:
        raise MarketError(f"rows {start}..{stop} are not inside 0..{rows}", start=start, stop=stop, rows=rows)
    return Amount(price * stop // rows - price * start // rows)
