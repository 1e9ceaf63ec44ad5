"""The data provider's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from services.rpc.role import RoleConfig
from services.runtime import config

__all__ = ["DataConfig", "ProviderConfig", "RuleConfig"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is on sale."""

    path: Path | None = config.option("Data set: npz with x (n, M) and y (n).", default=None)
    name: str = config.option("Name shown to buyers.", default="rows")
    feature_scale_micro: int = config.option("int8 feature = round(x * this / 10^6).", default=127_000_000, low=1)


@dataclass(frozen=True, kw_only=True)
class RuleConfig:
    """Parameters of the game rule D_s*(m), eq. (4). Zero means the library's documented default."""

    epsilon1_ppm: int = config.option("e1, weight of reputation in p.", default=0, low=0, high=1_000_000)
    epsilon2_ppm: int = config.option("e2, weight of the markup in p.", default=0, low=0, high=1_000_000)
    eta_micro: int = config.option("eta, sensitivity V = eta D_s.", default=0, low=0)
    alpha_micro: int = config.option("alpha, expected loss per lost reputation.", default=0, low=0)
    beta_micro: int = config.option("beta, expected loss per sensitivity.", default=0, low=0)
    bid_high: int = config.option("m_bar before the first settled trade.", default=0, low=0)
    markup_high: int = config.option("D_bar before the first settled trade.", default=0, low=0)


@dataclass(frozen=True, kw_only=True)
class ProviderConfig(RoleConfig):
    """``python -m provider --config FILE``."""

    ROLE: ClassVar[str] = "provider"

    offer_ms: int = config.option("How long an offer is good for.", default=20_000, low=1_000)
    data: DataConfig = config.section(DataConfig, "The data set on sale.")
    rule: RuleConfig = config.section(RuleConfig, "The game rule.")
