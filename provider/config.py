"""The data provider's configuration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from core.errors import ConfigError, MarketError
from core.ids import Amount
from core.market.contract import DEFAULT_RULE, MAX_RULE_AMOUNT, IntegerRule, check_rule
from core.market.variants import DEFAULT_STRENGTH, MAX_STRENGTH
from services.rpc.role import RoleConfig
from services.runtime import config

__all__ = ["DataConfig", "ProviderConfig", "RuleConfig"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is on sale."""

    path: Path | None = config.option("Data set: npz with x (n, M) and y (n), or a descriptor.", default=None)
    name: str = config.option("Name shown to buyers.", default="rows")
    feature_scale_micro: int = config.option("int8 feature = round(x * this / 10^6).", default=127_000_000, low=1, high=2**63)
    classes: int = config.option("Number of classes; 0: the largest label and one.", default=0, low=0, high=256)
    mark_strength_ppm: int = config.option(
        "How far marks move a value, millionths of its column's range; 0: a leak can never be proven.",
        default=DEFAULT_STRENGTH, low=0, high=MAX_STRENGTH,
    )  # fmt: skip

    def check(self) -> None:
        if not 1 <= len(self.name) <= 64:
            raise ConfigError(f"data.name must have 1 to 64 characters, got {len(self.name)}")


@dataclass(frozen=True, kw_only=True)
class RuleConfig:
    """Parameters of the game rule D_s*(m), eq. (4). -1 means the documented default (core.market.contract).

    Amounts are in the coin's smallest unit.
    """

    e1_ppm: int = config.option("e1, weight of the reputation in p.", default=-1, low=-1, high=1_000_000)
    e2_ppm: int = config.option("e2, weight of the markup in p.", default=-1, low=-1, high=1_000_000)
    eta_micro: int = config.option("eta: V = eta D_s, millionths.", default=-1, low=-1)
    alpha: int = config.option(
        "alpha, expected loss of selling to a pool of reputation 0, coins.", default=-1, low=-1, high=MAX_RULE_AMOUNT
    )
    beta_micro: int = config.option("beta, expected loss per unit of V, millionths.", default=-1, low=-1)
    markup_high: int = config.option("D_bar, at least: trades raise it, coins.", default=-1, low=-1, high=MAX_RULE_AMOUNT)
    bid_high: int = config.option("m_bar, at least: trades raise it, coins.", default=-1, low=-1, high=MAX_RULE_AMOUNT)
    bid_least: int = config.option("m_min, the reserve: no bid below it, coins.", default=-1, low=-1, high=MAX_RULE_AMOUNT)

    def rule(self) -> IntegerRule:
        """The rule with its defaults filled in. Raises ConfigError naming the condition that it breaks."""

        def given(value: int, default: int) -> int:
            return default if value < 0 else value

        d = DEFAULT_RULE
        rule = replace(
            d,
            e1_ppm=given(self.e1_ppm, d.e1_ppm),
            e2_ppm=given(self.e2_ppm, d.e2_ppm),
            eta_micro=given(self.eta_micro, d.eta_micro),
            alpha=Amount(given(self.alpha, d.alpha)),
            beta_micro=given(self.beta_micro, d.beta_micro),
            D_bar=Amount(given(self.markup_high, d.D_bar)),
            m_bar=Amount(given(self.bid_high, d.m_bar)),
            m_min=Amount(given(self.bid_least, d.m_min)),
        )
        try:
            check_rule(rule)
        except MarketError as error:
            raise ConfigError(f"rule: {error.message}") from None
        return rule

    def check(self) -> None:
        self.rule()


@dataclass(frozen=True, kw_only=True)
class ProviderConfig(RoleConfig):
    """``python -m provider --config FILE``."""

    ROLE: ClassVar[str] = "provider"

    offer_ms: int = config.option("How long an offer is good for.", default=20_000, low=1_000, high=3_600_000)
    receipt_ms: int = config.option("How long a miner has for the receipt of a chunk.", default=20_000, low=100)
    data: DataConfig = config.section(DataConfig, "The data set on sale.")
    rule: RuleConfig = config.section(RuleConfig, "The game rule.")

    def check(self) -> None:
        super().check()
        if self.data.path is None:
            raise ConfigError("data.path is not set: give an npz file with x (n, M) and y (n)")
