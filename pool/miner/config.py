"""The miner's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pool.learning.privacy import LocalPrivacy
from services.rpc.role import RoleConfig
from services.runtime import config
from services.runtime.address import host_and_port

__all__ = ["MinerConfig"]


@dataclass(frozen=True, kw_only=True)
class MinerConfig(RoleConfig):
    """``python -m pool.miner --config FILE``."""

    ROLE: ClassVar[str] = "miner"

    pool: str = config.required("Address of the pool manager, host:port.")
    data: Path = config.required("Own training data: npz with x (n, M) and y (n), or a descriptor, or what one describes.")
    descriptor: Path | None = config.option("Descriptor of the data, where it does not lie beside them.", default=None)
    token: str = config.option("Admission token, where the pool asks for one.", default="", secret=True)
    sealing: Literal["any", "hybrid"] = config.option(
        "Least strength of sealing; hybrid: join only a pool whose updates are sealed with ML-KEM too.", default="any"
    )
    aggregation: Literal["any", "secure"] = config.option(
        "secure: join only a pool whose manager sees no single update.", default="any"
    )
    secure_least: int = config.option(
        "With fewer miners this one begins no secure sum; a third of those who begin it may drop out.", default=3, low=3
    )
    dp_clip: float = config.option("Differential privacy: longest update, L2 norm; 0: no bound.", default=0.0, low=0)
    dp_noise: float = config.option(
        "Differential privacy: standard deviation of the noise in each parameter, in units of dp_clip.", default=0.0, low=0
    )
    bought_mib: int = config.option(
        "Most of the rows that pools bought for this miner, in MiB on the disk; in memory five times as much.",
        default=512, low=1,
    )  # fmt: skip
    start_delay_ms: int = config.option(
        "Wait before loading torch, so that miners on one host do not all at once.", default=0, low=0
    )

    def check(self) -> None:
        super().check()
        host_and_port(self.pool, "pool")
        self.privacy  # noqa: B018  # raises for what is no privacy

    @property
    def privacy(self) -> LocalPrivacy:
        """What is done to each update before it leaves. Raises ConfigError."""
        return LocalPrivacy(self.dp_clip, self.dp_noise)
