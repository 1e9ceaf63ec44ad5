"""The requester's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from core.errors import ConfigError
from services.rpc.role import RoleConfig
from services.runtime import config

__all__ = ["AutoConfig", "RequesterConfig"]


@dataclass(frozen=True, kw_only=True)
class AutoConfig:
    """Tasks that are published by themselves, one after the other; none if ``tasks`` is 0."""

    tasks: int = config.option("How many; the next is published when the one before has ended.", default=0, low=0)
    name: str = config.option("Name of the tasks; a number is appended.", default="task")
    test_set: Path | None = config.option("Secret test set: npz with x (I, M) and y (I), or a descriptor.", default=None)
    practice_set: Path | None = config.option("Public practice set, same form.", default=None)
    hidden: tuple[int, ...] = config.option("Widths of the hidden layers.", default=(16,), low=1, high=4096)
    activation: Literal["sigmoid", "relu", "identity"] = config.option("Of the hidden layers.", default="sigmoid")
    weight_bits: int = config.option("Bits of a scored weight.", default=10, low=2, high=16)
    feature_scale_micro: int = config.option("int8 feature = round(x * this / 10^6).", default=127_000_000, low=1)
    buckets: int = config.option(
        "y are real targets, counted by so many buckets, cut by the practice set; 0: y are classes.", default=0, low=0
    )
    cuts_micro: tuple[int, ...] = config.option(
        "y are real targets, counted by the buckets between these values, in millionths.", default=()
    )
    reward: int = config.option("Reward of each task.", default=1_000_000, low=1)
    bond: int = config.option("Bond of each task, at least the reward; 0: the reward.", default=0, low=0)


@dataclass(frozen=True, kw_only=True)
class RequesterConfig(RoleConfig):
    """``python -m requester --config FILE``."""

    ROLE: ClassVar[str] = "requester"

    audit_slots: int = config.option("Audits served at a time.", default=2, low=1, high=64)
    audit_queue: int = config.option("Audits that may wait for a slot.", default=64, low=0)
    evaluation_slots: int = config.option("Evaluations computed at a time.", default=2, low=1, high=64)
    auto: AutoConfig = config.section(AutoConfig, "Tasks published by themselves.")

    def check(self) -> None:
        super().check()
        if self.auto.tasks and (self.auto.test_set is None or self.auto.practice_set is None):
            raise ConfigError("auto.tasks is set, so auto.test_set and auto.practice_set must name files")
        if self.auto.buckets and self.auto.cuts_micro:
            raise ConfigError("auto.buckets and auto.cuts_micro exclude one another: cut points make the buckets")
