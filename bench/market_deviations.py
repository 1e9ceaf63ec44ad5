"""What somebody gains who does not play the market as the paper has it, measured: misreports, the repeated game, coalitions.

Theorem III.3 is about one round and the pool's private values. Nothing is proven of the rest, so it is measured here, with
the default rule and pool, at r = 0.5 where nothing else is said. Amounts are in coins.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from bench.market_maps import DEFAULT_POOL
from core.errors import InternalError
from core.ids import MILLION
from core.market.bridge import to_float
from core.market.contract import DEFAULT_RULE
from core.market.reputation import DEFAULT_REPUTATION
from core.market.reverse_game import Array, Bid, PoolPrivate, best_response, least_bid, markup, pool_utility, provider_utility

__all__ = ["buy_surely", "collude", "measure", "misreport", "misstate", "repeat", "retry", "shill"]

RULE: Final = to_float(DEFAULT_RULE)
R: Final = 0.5
SEED: Final = 20261122
BURN: Final = 0.05
"""Share of each settled price that burns (core.params, market_burn_ppm)."""


def measure() -> list[dict[str, object]]:
    """All of them: name, what was gained, in coins and per cent, and a sentence."""
    return [misreport(), misstate(), *(repeat(pools) for pools in (1, 2, 4)), buy_surely(), retry(), collude(), shill()]


def misreport(draws: int = 100_000) -> dict[str, object]:
    """The pool answers as if its Q, alpha~, beta~ were others, in one round."""
    rng = np.random.default_rng(SEED)  # seeded, so that the figure can be made again

    def private() -> PoolPrivate:
        return PoolPrivate(rng.uniform(0, 40_000, draws), rng.uniform(0, 6_000, draws), rng.uniform(0, 2, draws))

    true, false = private(), private()
    r = rng.uniform(0, 1, draws)
    honest, lying = best_response(RULE, true, r), best_response(RULE, false, r)
    kept = np.nan_to_num(np.asarray(honest.U_pool))
    gained = np.nan_to_num(np.asarray(pool_utility(RULE, true, lying.m, lying.D_s, r))) - kept
    most = max(0.0, float(np.max(gained)))
    better = int((gained > 1e-9 * (1 + kept)).sum())
    return _row(
        "pool misreports, one round", most, float("nan"),
        f"of {draws:,} drawn misreports of Q, alpha~ and beta~ {better} gain",
    )  # fmt: skip


def misstate() -> dict[str, object]:
    """The provider announces another alpha and beta than her own, and the pool answers that rule: one round."""
    alpha, beta = np.meshgrid(np.linspace(0, 40_000, 161), np.linspace(0.56, 4, 173))
    honest = _first(best_response(RULE, DEFAULT_POOL, R))
    found = best_response(replace(RULE, alpha=alpha, beta=beta), DEFAULT_POOL, R)
    own = np.nan_to_num(np.asarray(provider_utility(RULE, found.m, found.D_s, R)))
    best = np.unravel_index(int(np.argmax(own)), own.shape)
    gain = float(own[best]) - float(honest.U_provider)
    return _row(
        "provider misstates alpha, beta", gain, gain / float(honest.U_provider),
        f"she expects {float(honest.U_provider):.0f} by her own alpha = {DEFAULT_RULE.alpha}, beta = 1, and "
        f"{float(own[best]):.0f} by stating alpha = {alpha[best]:.0f}, beta = {beta[best]:.2f}, if "
        "she knows the pool's Q: eq. (4) is the best markup for a bid that is made, not the best rule to announce",
    )  # fmt: skip


def repeat(pools: int, rounds: int = 40) -> dict[str, object]:
    """One pool bids a fixed share of its best bid, the others bid theirs; highs follow the chain's rule (second highest of
    each pool's last trade, the highest of one). Every trade counts as settled; utilities are averages over the rounds."""
    shares = np.concatenate([[1.0], np.linspace(0.3, 3, 271)])
    utility = _play(pools, shares, rounds)
    honest, best = float(utility[0]), int(np.argmax(utility))
    gain = float(utility[best]) - honest
    told = "no other share of its best bid brings one of them more"
    if gain > 1e-6 * honest:
        told = (
            f"one that always bids {shares[best]:.2f} of its best bid has {utility[best]:.0f} a round instead of {honest:.0f}, "
            "through the highs that it leaves"
        )
    return _row(f"repeated {rounds} rounds, {pools} pool{'s' * (pools > 1)}", gain, gain / honest, told)


def _play(pools: int, shares: Array, rounds: int) -> Array:
    """The first pool's average utility, for each share of its best bid."""
    rule, total = RULE, np.zeros(len(shares))
    least = max(float(np.asarray(rule.m_min)), float(np.asarray(rule.alpha)) * (1 - R))
    for _ in range(rounds):
        honest = best_response(rule, DEFAULT_POOL, R)
        if np.isnan(honest.m).any():
            raise InternalError("the default pool declines under the highs of its own trades: these figures do not hold")
        m = np.maximum(shares * honest.m, least)
        D_s = markup(rule, m, R)
        total += pool_utility(rule, DEFAULT_POOL, m, D_s, R)
        m_bar = _high([m, *[np.broadcast_to(honest.m, m.shape)] * (pools - 1)], RULE.m_bar)
        D_bar = _high([D_s, *[np.broadcast_to(honest.D_s, m.shape)] * (pools - 1)], RULE.D_bar)
        rule = replace(rule, m_bar=m_bar, D_bar=D_bar)
    return total / rounds


def buy_surely(rounds: int = 40, floors: bool = True) -> dict[str, object]:
    """A pool alone with a provider begins with the least bid that needs no markup, so that D_bar follows it down to nothing,
    and plays its best bid from then on. ``floors``: whether the rule's own highs stay the least (docs/adr/0140)."""

    def play(first: float | None) -> float:
        rule, total = RULE, 0.0
        for number in range(rounds):
            best = best_response(rule, DEFAULT_POOL, R)
            m = float(np.asarray(best.m)) if first is None or number else first
            D_s = np.asarray(markup(rule, m, R))
            total += float(np.nan_to_num(np.asarray(pool_utility(rule, DEFAULT_POOL, m, D_s, R))))
            if not np.isnan(m):
                low = (RULE.m_bar, RULE.D_bar) if floors else (1.0, 1.0)
                rule = replace(rule, m_bar=_high([np.asarray(m)], low[0]), D_bar=_high([D_s], low[1]))
        return total / rounds

    bids: Array = np.linspace(0, 60_000, 60_001)
    sure = bids[(np.asarray(markup(RULE, bids, R)) <= 0) & (bids >= float(np.asarray(least_bid(RULE, R))))]
    honest, found = play(None), play(float(sure[0]))
    gain = found - honest
    told = f"a first bid of {sure[0]:.0f} without a markup, best bids after it: {found:.0f} a round instead of {honest:.0f}"
    return _row("one pool alone buys surely once", gain, gain / honest, told)


def _high(values: list[Array], least: Array | float) -> Array:
    """As core.chain.rules_market.highs and contract.with_highs."""
    ordered = np.sort(np.stack(values), axis=0)[::-1]
    return np.asarray(np.maximum(least, ordered[min(1, len(values) - 1)]))


def retry(tries: int = 3) -> dict[str, object]:
    """A pool that the draw refuses bids again at once under other names of the start's reputation, and stops at a deal."""
    start = DEFAULT_REPUTATION.start_ppm / MILLION
    first, again = (_first(best_response(RULE, DEFAULT_POOL, r)) for r in (R, start))
    missed, total = 1 - float(first.p), float(first.U_pool)
    for _ in range(tries - 1):
        total += missed * float(again.U_pool)
        missed *= 1 - float(again.p)
    gain = total - float(first.U_pool)
    return _row(
        f"{tries} tries under {tries} names", gain, gain / float(first.U_pool),
        f"it has the rows with {1 - missed:.2f} instead of {float(first.p):.2f}: what the draw refuses once is only late",
    )  # fmt: skip


def collude() -> dict[str, object]:
    """Pool and provider choose the bid together, and share what it brings by payments that nobody sees."""
    honest = _first(best_response(RULE, DEFAULT_POOL, R))
    m: Array = np.linspace(float(np.asarray(RULE.m_min)), 40_000, 39_001)
    D_s = markup(RULE, m, R)
    joint = pool_utility(RULE, DEFAULT_POOL, m, D_s, R) + provider_utility(RULE, m, D_s, R)
    own = float(honest.U_pool) + float(honest.U_provider)
    best = int(np.argmax(joint))
    gain = float(joint[best]) - own
    return _row(
        "pool and provider agree on the bid", gain, gain / own,
        f"together they expect {own:.0f}, and {float(joint[best]):.0f} with m = {m[best]:.0f}, a sure deal without a markup: "
        "the refusals of the draw protect no provider who is paid otherwise",
    )  # fmt: skip


def shill() -> dict[str, object]:
    """The provider trades with two pools of her own at high bids, so that later bids are measured against those."""
    honest = _first(best_response(RULE, DEFAULT_POOL, R))
    scales = np.linspace(1, 5, 401)
    later = best_response(replace(RULE, m_bar=float(np.asarray(RULE.m_bar)) * scales), DEFAULT_POOL, R)
    expected = np.nan_to_num(np.asarray(later.U_provider))
    best = int(np.argmax(expected))
    bid = float(np.asarray(RULE.m_bar) * scales[best])
    cost = 2 * BURN * (bid + float(markup(RULE, bid, R)))
    gain = float(expected[best]) - float(honest.U_provider)
    told = f"two shill trades at m = {bid:.0f} burn {cost:.0f} coins; each later trade then brings her {gain:+.0f}"
    if best == 0:
        told = "no higher m_bar brings her more than the one that the trades have made"
    return _row("provider raises m_bar by shill trades", gain, gain / float(honest.U_provider), told)


def _first(bid: Bid) -> Bid:
    return Bid(*(float(np.asarray(v)) for v in (bid.m, bid.D_s, bid.p, bid.U_pool, bid.U_provider)))


def _row(name: str, gain: float, share: float, sentence: str) -> dict[str, object]:
    told = "" if np.isnan(share) else f" ({100 * share:+.1f} %)"
    return {
        "deviation": name, "gain_coins": gain, "gain_percent": "" if np.isnan(share) else 100 * share,
        "sentence": f"{name}: {sentence}; gain {gain:.0f}{told}.",
    }  # fmt: skip
