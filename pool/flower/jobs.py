"""Settings and results of mining as they cross process borders: dataclasses, JSON lines, one ``.npz`` of state.

Nothing here imports flwr or torch, so the pool's service process stays small.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from core.crypto.masking import Aggregation
from core.crypto.sealing import Suite
from core.errors import ConfigError, CorruptError, InputError
from pool.learning.model_spec import ModelSpec, Score, Weights, flatten, unflatten
from pool.learning.targets import Targets
from services.runtime.durable import replaced
from services.runtime.npz import UNREADABLE, check_archive

__all__ = [
    "ALGORITHMS", "JoinTicket", "MiningJob", "MiningResult", "RoundReport", "UPDATES",
    "answer_limit", "job_from_json", "job_to_json", "load_weights", "save_weights",
]  # fmt: skip

ALGORITHMS = ("fedavg", "fedsgd", "median", "trimmed_mean", "krum", "multikrum", "bulyan")
OPTIMIZERS = ("sgd", "adam")
UPDATES = ("float32", "float16")
MAX_STATE: Final = 512 << 20
"""Bytes of saved models and reports unpacked."""


@dataclass(frozen=True)
class JoinTicket:
    """What a miner needs to take part: where, whom to trust, what to seal to and how, and under which key it is known."""

    superlink_address: str
    ca_pem: bytes
    hpke_public_key: bytes
    node_public_key: bytes
    suite: Suite = Suite.X25519
    aggregation: Aggregation = Aggregation.PLAIN


@dataclass(frozen=True)
class MiningJob:
    """One task to train for.

    ``practice``: ``.npz`` with x float32 (n, features) and y int64 (n); public rows, never the requester's test set.
    ``kind``: of the model (model_spec.KINDS). A regression has ``classes = 1`` and ``targets``, and its practice set real y.
    ``update``: how the numbers of an update travel (UPDATES). ``weight_factor``: no miner counts for more than this many times
    the median of the others' examples. ``practice_floor``: no step is taken after which less than this part of the best
    practice score is left; 0 to take every step.
    ``deadline_ms``: wall clock, Unix. ``quorum``: accepted updates without which a round does not count.
    ``target_correct``, ``patience`` (rounds without a better practice score), ``max_rounds``: stop early; None never.

    Raises ConfigError or LimitError when built from impossible values.
    """

    job_id: bytes
    features: int
    classes: int
    practice: Path
    deadline_ms: int
    hidden: tuple[int, ...] = ()
    activation: str = "relu"
    round_timeout_s: float = 5.0
    quorum: int = 1
    algorithm: str = "fedavg"
    local_epochs: int = 2
    learning_rate: float = 0.1
    batch: int = 32
    seed: int = 0
    optimizer: str = "sgd"
    target_correct: int | None = None
    patience: int | None = None
    max_rounds: int | None = None
    kind: str = "dense"
    targets: Targets | None = None
    update: str = "float32"
    weight_factor: int = 4
    practice_floor: float = 0.8

    def __post_init__(self) -> None:
        if len(self.job_id) != 32:
            raise ConfigError(f"job_id has {len(self.job_id)} bytes, expected 32")
        if self.algorithm not in ALGORITHMS:
            raise ConfigError(f"algorithm {self.algorithm!r} is none of {', '.join(ALGORITHMS)}")
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"optimizer {self.optimizer!r} is none of {', '.join(OPTIMIZERS)}")
        if self.update not in UPDATES:
            raise ConfigError(f"update {self.update!r} is none of {', '.join(UPDATES)}")
        if (self.kind == "regression") != (self.targets is not None):
            raise ConfigError(f"a {self.kind} job {'needs' if self.targets is None else 'has no'} targets")
        for name, value, low, high in (
            ("quorum", self.quorum, 1, 100_000), ("weight_factor", self.weight_factor, 1, 65_535),
            ("local_epochs", self.local_epochs, 1, 65_535),
            ("batch", self.batch, 1, 1 << 31), ("seed", self.seed, 0, (1 << 63) - 1),
        ):  # fmt: skip
            if not low <= value <= high:
                raise ConfigError(f"{name} = {value}, must be {low} to {high}")
        if not 0 <= self.practice_floor <= 1:
            raise ConfigError(f"practice_floor = {self.practice_floor}, must be 0 to 1")
        for name, real in (("round_timeout_s", self.round_timeout_s), ("learning_rate", self.learning_rate)):
            if not (math.isfinite(real) and real > 0):
                raise ConfigError(f"{name} = {real}, must be above 0")
        self.spec  # noqa: B018  # raises for an impossible model

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(self.features, self.classes, tuple(self.hidden), self.activation, self.kind)


def answer_limit(job: MiningJob, aggregation: Aggregation) -> int:
    """Bytes of one member's answer to one instruction: its numbers, eight bytes each when masked, and what holds them."""
    return (8 if aggregation is Aggregation.SECURE else 4) * job.spec.parameters + (1 << 20)


@dataclass(frozen=True)
class RoundReport:
    """One round. ``accepted``: miner key hex -> examples counted; ``refused``: miner key hex -> reason.

    ``claimed``: miner key hex -> examples by its own update, for the accepted ones. ``again``: it may have been reported
    before, to a process that died. ``silent``: keys (hex) of those who were asked and sent nothing usable in time;
    ``heard``: of those who did, whatever the round made of it.
    """

    number: int
    seconds: float
    participants: int
    accepted: Mapping[str, int]
    refused: Mapping[str, str]
    practice_correct: int
    practice_total: int
    loss: float
    bytes_up: int
    bytes_down: int
    claimed: Mapping[str, int] = field(default_factory=dict)
    again: bool = False
    silent: Sequence[str] = ()
    heard: Sequence[str] = ()


@dataclass(frozen=True)
class MiningResult:
    """The best model by practice score. ``contributions``: miner key hex -> accepted examples summed over rounds."""

    weights: Weights
    rounds: int
    contributions: dict[str, int]
    best_practice_correct: int
    best_practice_total: int
    reports: tuple[RoundReport, ...] = field(default=(), repr=False)


def job_to_json(job: MiningJob) -> dict[str, Any]:
    return {**asdict(job), "job_id": job.job_id.hex(), "practice": str(job.practice), "hidden": list(job.hidden)}


def job_from_json(value: Mapping[str, Any]) -> MiningJob:
    targets = value["targets"]
    return MiningJob(
        **{
            **value,
            "job_id": bytes.fromhex(value["job_id"]),
            "practice": Path(value["practice"]),
            "hidden": tuple(value["hidden"]),
            "targets": targets and Targets(targets["shift"], targets["scale"], tuple(targets["cuts"])),
        }
    )


def save_weights(path: Path, vectors: Mapping[str, Weights], meta: Mapping[str, Any]) -> None:
    """Write models of one shape and some JSON so that a reader sees the old file or the whole new one."""
    # A killed manager is what it has to survive, round after round; a power cut ends the pool's task anyway.
    with replaced(path, is_synced=False) as file:
        np.savez(file, meta=np.array(json.dumps(meta)), **{name: flatten(w) for name, w in vectors.items()})  # type: ignore[arg-type]


def load_weights(path: Path, spec: ModelSpec, names: tuple[str, ...]) -> tuple[dict[str, Weights], dict[str, Any]]:
    """Raises CorruptError when the file is not what save_weights wrote for this model."""
    try:
        check_archive(path, MAX_STATE)
        with np.load(path, allow_pickle=False) as arrays:
            meta = json.loads(str(arrays["meta"]))
            return {name: unflatten(spec, arrays[name]) for name in names}, meta
    except (*UNREADABLE, InputError) as error:
        raise CorruptError(f"{path}: not a saved state of this model: {error}") from None


def score_to_json(score: Score | None) -> list[float] | None:
    return None if score is None else [score.correct, score.total, score.loss]


def score_from_json(value: list[float] | None) -> Score | None:
    return None if value is None else Score(int(value[0]), int(value[1]), float(value[2]))
