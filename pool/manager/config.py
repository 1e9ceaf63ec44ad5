"""The pool manager's configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from core.crypto.secure_messages import LEAST
from core.errors import ConfigError
from pool.flower.secure_wire import MAX_FACTOR
from services.rpc.convert_mining import MAX_TOKEN
from services.rpc.role import RoleConfig
from services.runtime import config

__all__ = ["LEAST_TOKEN", "AdmissionConfig", "MarketConfig", "PoolConfig", "TrainingConfig"]

LEAST_TOKEN: Final = 16
"""Bytes of an admission token: what is shorter can be guessed."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the pool learns (design: mining)."""

    algorithm: Literal["fedavg", "fedsgd", "median", "trimmed_mean", "krum", "multikrum", "bulyan"] = config.option(
        "How updates are aggregated.", default="fedavg"
    )
    local_epochs: int = config.option("Passes over its data that a miner makes in a round.", default=5, low=1)
    optimizer: Literal["sgd", "adam"] = config.option("How a miner takes its steps.", default="adam")
    learning_rate: float = config.option("Step length, zeta in the paper.", default=0.01, low=1e-9)
    batch: int = config.option("Rows in a step; 0: all.", default=16, low=0)
    quorum: int = config.option("Updates that make a round.", default=1, low=1)
    round_timeout_s: float = config.option("Longest round, seconds.", default=8.0, low=0.5)
    weight_factor: int = config.option(
        "No miner counts for more than this many times the median of the others' examples, in the model and in pay.",
        default=4,
        low=1,
        high=65_535,
    )
    practice_floor: float = config.option(
        "Take no step after which less than this part of the best practice score is left; 0: take every step.",
        default=0.8,
        low=0,
        high=1,
    )
    seed: int = config.option("Seed of initial weights and shuffling.", default=1, low=0)
    update: Literal["float32", "float16"] = config.option(
        "How miners send the numbers of an update; float16 halves what they upload.", default="float32"
    )
    model: Literal["dense", "lenet", "alexnet"] = config.option(
        "Kind of the models that are trained for tasks on chain; only dense ones are scored there.", default="dense"
    )
    sealing: Literal["x25519", "hybrid"] = config.option(
        "HPKE suite that updates are sealed with; hybrid: with ML-KEM-768, against a future quantum computer.", default="x25519"
    )
    aggregation: Literal["plain", "secure"] = config.option(
        "secure: the manager learns the sum of the updates only, and cannot check each.", default="plain"
    )

    @property
    def least_miners(self) -> int:
        """Members without whom no round can count: a task entered with fewer only costs a part of the bond."""
        return max(self.quorum, LEAST if self.aggregation == "secure" else 1)


@dataclass(frozen=True, kw_only=True)
class MarketConfig:
    """What bought rows are worth to the pool: its private information in the reverse game, section III."""

    buy: bool = config.option("Buy rows from providers.", default=True)
    profit: int = config.option("Q, legally expected net profit of one trade.", default=20_000, low=0)
    leak_alpha_micro: int = config.option("alpha~: profit of leaking per lost reputation.", default=0, low=0)
    leak_beta_micro: int = config.option("beta~: profit of leaking per sensitivity.", default=0, low=0)


@dataclass(frozen=True, kw_only=True)
class AdmissionConfig:
    """Who may join."""

    mode: Literal["open", "token", "allow"] = config.option("Everybody, holders of the token, or a list.", default="open")
    token: str = config.option("The token of mode `token`.", default="", secret=True)
    allow: tuple[str, ...] = config.option("Accounts (hex) of mode `allow`.", default=())


@dataclass(frozen=True, kw_only=True)
class PoolConfig(RoleConfig):
    """``python -m pool.manager --config FILE``."""

    ROLE: ClassVar[str] = "pool"

    fleet_listen: str = config.required("Address that miners' Flower clients connect to, host:port.")
    fleet_advertise: str = config.option("Address told to miners; `fleet_listen` if empty.", default="")
    bond: int = config.option("Bond for a task; 0: the least that it asks.", default=0, low=0)
    min_miners: int = config.option(
        "Members ready before a task is entered: online, and not silent when they were last asked to train.", default=1, low=1
    )
    owner_cut_ppm: int = config.option("The owner's part of a won reward, millionths.", default=0, low=0, high=1_000_000)
    training: TrainingConfig = config.section(TrainingConfig, "Training.")
    market: MarketConfig = config.section(MarketConfig, "Buying rows.")
    admission: AdmissionConfig = config.section(AdmissionConfig, "Admission of miners.")

    def check(self) -> None:
        super().check()
        if self.training.model != "dense":
            raise ConfigError(
                f"training.model is {self.training.model}, but a task on chain is won by dense models only (softmax, linear "
                "regression, MLP): remove it; convolutional models train through the engine, docs/mining.md says how"
            )
        if self.admission.mode == "token" and not self.admission.token:
            raise ConfigError("admission.mode is token, so admission.token must be set")
        if self.admission.mode == "allow" and not self.admission.allow:
            raise ConfigError("admission.mode is allow, so admission.allow must list the members' accounts: nobody could join")
        if self.admission.token and not LEAST_TOKEN <= len(self.admission.token.encode()) <= MAX_TOKEN:
            raise ConfigError(
                f"admission.token has {len(self.admission.token.encode())} bytes, must have {LEAST_TOKEN} to {MAX_TOKEN}: take "
                "it from a generator of random passwords, and give it to members only"
            )
        if self.training.aggregation == "secure" and self.training.algorithm not in ("fedavg", "fedsgd"):
            raise ConfigError(
                f"training.aggregation is secure, so training.algorithm must be fedavg or fedsgd, not "
                f"{self.training.algorithm}: the others compare single updates, which the manager does not see"
            )
        if self.training.aggregation == "secure" and self.training.weight_factor > MAX_FACTOR:
            raise ConfigError(
                f"training.aggregation is secure, so training.weight_factor must be at most {MAX_FACTOR}, not "
                f"{self.training.weight_factor}: miners take part in no sum in which one of them drowns the others"
            )
        for account in self.admission.allow:
            if not re.fullmatch("[0-9a-fA-F]{64}", account):
                raise ConfigError(f"admission.allow: {account[:80]!r} is no account; accounts are 64 hex digits")
