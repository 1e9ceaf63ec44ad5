"""Figures 7(a)-(d) and 8(a)-(d) of the paper in numbers: eq. (5) as printed, corrected, and on the game's bounds.

The paper does not state ``D_bar`` and ``m_bar``, nor ``r`` and some of ``alpha``, ``beta`` for Fig. 8. What it leaves open is
an option or a second reading, and each claim is also tried on a grid of 1,600 pairs of highs.

For ``beta = beta~`` the interior equilibrium is, with the surplus ``S = Q + (alpha~ - alpha)(1 - r)``
(docs/adr/0111-the-equilibrium-is-a-share-of-the-surplus.md), ::

    p* = e2 S / (2 (beta eta - 1) D_bar),    U_pool = U_provider = e2 S^2 / (4 (beta eta - 1) D_bar)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError
from core.market.reverse_game import (
    Array,
    Bid,
    PoolPrivate,
    Rule,
    best_response,
    deal_probability,
    interior_bid,
    markup,
    pool_utility,
    provider_utility,
)

__all__ = ["FORMULAS", "PANELS", "Curves", "Panel", "Reading", "Setting", "evaluate", "rows", "verdict"]

Formula = Literal["printed", "corrected", "bounded"]
FORMULAS: Final[tuple[Formula, ...]] = ("printed", "corrected", "bounded")
"""Eqs. (2)-(5) as printed; with eq. (5) corrected (errata P1); the best answer within 0 <= p <= 1, m >= 0, D_s >= 0."""
OUTCOMES: Final = ("m", "D_s", "price", "p", "U_pool", "U_provider")
HIGHS: Final = np.arange(0.5, 20.5, 0.5)
"""Of D_bar and m_bar, where a claim is tried on other highs than the chosen ones."""
FLAT: Final = 1e-9
"""A curve that moves by less than this is flat: rounding."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What the paper does not state, with our defaults."""

    D_bar: float = 4.0
    """Recent highs, of the markup and ..."""
    m_bar: float = 8.0
    """... of the bid."""
    r: float = 0.5
    """Of Fig. 8; the paper says 0.5 for Fig. 7(c)(d)."""
    points: int = 51

    def __post_init__(self) -> None:
        if not (0 < self.D_bar < float("inf") and 0 < self.m_bar < float("inf")):
            raise ConfigError(f"D_bar > 0 and m_bar > 0 is violated: D_bar = {self.D_bar}, m_bar = {self.m_bar}")
        if not 0 <= self.r <= 1:
            raise ConfigError(f"the reputation r = {self.r} is not in [0, 1]")
        if not 3 <= self.points <= 10_001:
            raise ConfigError(f"{self.points} points on a curve; 3 to 10001 make one")


@dataclass(frozen=True, slots=True)
class Reading:
    """One way to fill in what the paper leaves open: all parameters along the curve."""

    name: str
    rule: Rule
    private: PoolPrivate
    r: float | Array

    @property
    def is_maximum(self) -> bool:
        """Theorem III.1's condition, ``beta eta > 1``: else eq. (4) is the provider's worst markup."""
        return bool(np.all(np.asarray(self.rule.beta) * self.rule.eta > 1))


@dataclass(frozen=True, slots=True)
class Panel:
    """One of the eight."""

    name: str
    shows: Literal["utility", "probability"]
    x: str
    span: tuple[float, float]
    claim: str
    """What the paper says of it."""
    rises: dict[str, bool]
    """The same for a machine: outcome -> whether it rises with x."""
    why: str
    readings: Callable[[Setting, Array], tuple[Reading, ...]]

    def axis(self, setting: Setting) -> Array:
        return np.linspace(*self.span, setting.points)


@dataclass(frozen=True, slots=True)
class Curves:
    reading: Reading
    formula: Formula
    x: Array
    bid: Bid

    def outcome(self, name: str) -> Array:
        shape = np.broadcast_shapes(np.shape(self.bid.p), np.shape(self.x))
        return np.broadcast_to(np.asarray(getattr(self.bid, name)), shape)


def evaluate(panel: Panel, setting: Setting) -> list[Curves]:
    """Every curve of a panel. A bounded curve is missing where the rule breaks Theorem III.1."""
    x = panel.axis(setting)
    found = []
    for reading in panel.readings(setting, x):
        found += [Curves(reading, f, x, solve(reading, f)) for f in FORMULAS if f != "bounded" or reading.is_maximum]
    return found


def solve(reading: Reading, formula: Formula) -> Bid:
    rule, private, r = reading.rule, reading.private, reading.r
    if formula != "corrected":
        return best_response(rule, private, r, as_printed=formula == "printed")
    m = interior_bid(rule, private, r)
    D_s = markup(rule, m, r, as_printed=True)
    p = deal_probability(rule, m, D_s, r, as_printed=True)
    return Bid(
        m, D_s, p, pool_utility(rule, private, m, D_s, r, as_printed=True), provider_utility(rule, m, D_s, r, as_printed=True)
    )


def rows(curves: list[Curves]) -> Iterator[dict[str, object]]:
    """One row a point, with every parameter: each can be computed again by itself. A pool that declines has empty cells."""
    for one in curves:
        rule, private = one.reading.rule, one.reading.private
        given = {f.name: getattr(rule, f.name) for f in fields(rule)}
        given |= {"Q": private.Q, "alpha_tilde": private.alpha, "beta_tilde": private.beta, "r": one.reading.r}
        columns = {name: np.broadcast_to(np.asarray(value, dtype=np.float64), one.x.shape) for name, value in given.items()}
        columns |= {name: one.outcome(name) for name in OUTCOMES}
        for i in range(len(one.x)):
            yield {"formula": one.formula, "reading": one.reading.name} | {
                name: "" if np.isnan(column[i]) else float(column[i]) for name, column in columns.items()
            }


# -- does the claim follow? --------------------------------------------------------------------------------------------


def verdict(panel: Panel, setting: Setting) -> dict[str, object]:
    """Whether the paper's claim follows, with numbers: for every curve, and on the grid of highs."""
    curves = evaluate(panel, setting)
    stated = {c.formula: c for c in reversed(curves)}  # the first reading is the one nearest to the paper's words
    lines = [f"{c.formula}, {c.reading.name}: {'; '.join(_trend(c, name) for name in panel.rises)}" for c in curves]
    follows = {formula: _holds(panel, curve) for formula, curve in stated.items()}
    reading = stated["corrected"].reading
    if not reading.is_maximum:
        answer = "does not follow: the stated parameters break Theorem III.1"
    else:
        answer = "follows" if follows["corrected"] and follows["bounded"] else "does not follow"
    tried = len(HIGHS) ** 2
    x = panel.axis(replace(setting, points=min(setting.points, 21)))
    counts = [
        f"{other.name}: printed {_share(panel, other, x, 'printed')}, corrected {_share(panel, other, x, 'corrected')}"
        for other in panel.readings(setting, x)
    ]
    told = f"Of {tried} pairs of D_bar, m_bar in {HIGHS[0]:g}..{HIGHS[-1]:g} the claim holds for ({'; '.join(counts)})"
    return {
        "figure": panel.name, "claim": panel.claim, "answer": answer, "why": panel.why, "curves": lines,
        "elsewhere": told, "sentence": f'{panel.name}: "{panel.claim}" {answer}. {panel.why} {told}.',
    }  # fmt: skip


def _holds(panel: Panel, curve: Curves) -> bool:
    return all(bool(_monotone(curve.outcome(name), up)) for name, up in panel.rises.items())


def _monotone(values: Array, up: bool) -> NDArray[np.bool_]:
    """Along the last axis: never turns back, and ends elsewhere than it began. NaN makes it false."""
    steps = np.diff(values if up else -values, axis=-1)
    return np.asarray((steps >= -FLAT).all(axis=-1) & (steps.sum(axis=-1) > FLAT))


def _share(panel: Panel, reading: Reading, x: Array, formula: Formula) -> int:
    """For how many pairs of the grid of highs the claim is true in a reading; none where the rule breaks Theorem III.1."""
    if not reading.is_maximum:
        return 0
    D_bar, m_bar = (h.reshape(-1, 1) for h in np.meshgrid(HIGHS, HIGHS))
    reading = replace(reading, rule=replace(reading.rule, D_bar=D_bar, m_bar=m_bar))
    curve = Curves(reading, formula, np.broadcast_to(x, (len(D_bar), len(x))), solve(reading, formula))
    return int(np.logical_and.reduce([_monotone(curve.outcome(name), up) for name, up in panel.rises.items()]).sum())


def _trend(curve: Curves, name: str) -> str:
    values = curve.outcome(name)
    first, last = float(values[0]), float(values[-1])
    steps = np.diff(values)
    if np.isnan(values).any():
        word = "is missing where the pool declines,"
    elif np.abs(steps).max() <= FLAT:
        return f"{name} stays {first:.4g}"
    elif (steps >= -FLAT).all() or (steps <= FLAT).all():
        word = "rises" if last > first else "falls"
    else:
        word = "turns back, going"
    beyond = " (leaves 0..1)" if name == "p" and (np.nanmax(values) > 1 + FLAT or np.nanmin(values) < -FLAT) else ""
    return f"{name} {word} from {first:.4g} to {last:.4g}{beyond}"


# -- the panels --------------------------------------------------------------------------------------------------------


def _rule(setting: Setting, eta: float = 1.8, alpha: float | Array = 1.5, beta: float | Array = 1.0) -> Rule:
    return Rule(0.4, 0.4, eta, alpha, beta, setting.D_bar, setting.m_bar)


def _fig7_r(setting: Setting, x: Array) -> tuple[Reading, ...]:
    return (
        Reading("as stated", _rule(setting), PoolPrivate(8.0, 1.5, 1.0), x),
        Reading("alpha~ = 0.5", _rule(setting), PoolPrivate(8.0, 0.5, 1.0), x),
    )


def _fig7_q(setting: Setting, x: Array) -> tuple[Reading, ...]:
    return (Reading("as stated", _rule(setting), PoolPrivate(x, 1.5, 1.0), 0.5),)


def _fig8_alpha(setting: Setting, x: Array) -> tuple[Reading, ...]:
    return (
        Reading("alpha = 1.5", _rule(setting), PoolPrivate(20.0, x, 1.0), setting.r),
        Reading("alpha = alpha~", _rule(setting, alpha=x), PoolPrivate(20.0, x, 1.0), setting.r),
    )


def _fig8_beta(setting: Setting, x: Array) -> tuple[Reading, ...]:
    return (
        Reading("beta = 1", _rule(setting, 0.5, 5.0, 1.0), PoolPrivate(20.0, 5.0, x), setting.r),
        Reading("beta = beta~", _rule(setting, 0.5, 5.0, x), PoolPrivate(20.0, 5.0, x), setting.r),
        Reading("beta = 3", _rule(setting, 0.5, 5.0, 3.0), PoolPrivate(20.0, 5.0, x), setting.r),
    )


BOTH: Final = {"U_pool": True, "U_provider": True}
APART: Final = {"U_pool": True, "U_provider": False}
SURPLUS: Final = "With beta = beta~, p* = e2 S / (2 (beta eta - 1) D_bar) and S = Q + (alpha~ - alpha)(1 - r):"
WHY_R: Final = (
    f"{SURPLUS} alpha = alpha~ makes S = Q at every r, so reputation changes the price and neither p* nor the utilities. "
    "With alpha > alpha~ all three rise."
)
WHY_Q: Final = f"{SURPLUS} S grows with Q."
WHY_ALPHA: Final = (
    f"{SURPLUS} p* and both utilities rise with alpha~ where alpha stays, and stay where alpha follows it. "
    "They fall only if alpha rises faster than alpha~."
)
WHY_BETA: Final = (
    "The figure has eta = 0.5 and beta up to 1.5, so beta eta <= 0.75: eq. (4) is then the provider's worst markup. "
    "With beta = 3, and D_s >= 0 and A2 > 0, p* rises with beta~."
)
PANELS: Final = (
    Panel("fig7a", "utility", "r", (0, 1), "both utilities rise with r", BOTH, WHY_R, _fig7_r),
    Panel("fig7b", "probability", "r", (0, 1), "p rises with r", {"p": True}, WHY_R, _fig7_r),
    Panel("fig7c", "utility", "Q", (5, 12), "both utilities rise with Q", BOTH, WHY_Q, _fig7_q),
    Panel("fig7d", "probability", "Q", (5, 12), "p rises with Q", {"p": True}, WHY_Q, _fig7_q),
    Panel(
        "fig8a", "utility", "alpha~", (1, 6), "the pool's utility rises with alpha~, the provider's falls", APART, WHY_ALPHA,
        _fig8_alpha,
    ),
    Panel("fig8b", "probability", "alpha~", (1, 6), "p falls as alpha~ rises", {"p": False}, WHY_ALPHA, _fig8_alpha),
    Panel(
        "fig8c", "utility", "beta~", (0.5, 1.5), "the pool's utility rises with beta~, the provider's falls", APART, WHY_BETA,
        _fig8_beta,
    ),
    Panel("fig8d", "probability", "beta~", (0.5, 1.5), "p falls as beta~ rises", {"p": False}, WHY_BETA, _fig8_beta),
)  # fmt: skip
