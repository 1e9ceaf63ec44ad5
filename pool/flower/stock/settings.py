"""The run configuration of the stock app, as ``flwr run --run-config`` sets it, checked before anything starts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.crypto.sealing import SealingKeyPair, Suite
from core.errors import ConfigError
from core.ports import SystemRng
from pool.flower.jobs import MiningJob
from pool.flower.keys import NODE_KEY_BYTES
from pool.learning.targets import Targets, load_targets

__all__ = ["StockSettings", "read_settings"]


@dataclass(frozen=True, slots=True)
class StockSettings:
    """``out``: the ``.npz`` of the best model. ``members``: see StockFleet."""

    job: MiningJob
    out: Path
    members: Mapping[bytes, int] | None
    sealing: SealingKeyPair


_JOB = {
    "kind": str, "features": int, "classes": int, "activation": str, "algorithm": str, "optimizer": str, "update": str,
    "local-epochs": int, "learning-rate": float, "batch": int, "seed": int, "quorum": int, "round-timeout-s": float,
}  # fmt: skip


def read_settings(config: Mapping[str, Any], run_id: int, now_ms: int) -> StockSettings:
    """``now_ms``: wall clock, from which ``deadline-s`` counts.

    Raises ConfigError that names the key.
    """
    values = {name.replace("-", "_"): _typed(config, name, kind) for name, kind in _JOB.items()}
    practice = _path(config, "practice")
    if not practice.is_file():
        raise ConfigError(f"practice = {practice}: no such file on the machine that runs the ServerApp")
    cuts = tuple(_numbers(config, "cuts", float))
    job = MiningJob(
        job_id=run_id.to_bytes(8, "big", signed=run_id < 0).rjust(32, b"\0"),
        practice=practice,
        targets=Targets.of(load_targets(practice).y, cuts) if values["kind"] == "regression" else None,
        deadline_ms=now_ms + int(1000 * _typed(config, "deadline-s", float)),
        hidden=tuple(_numbers(config, "hidden", int)),
        max_rounds=_typed(config, "rounds", int) or None,
        patience=_typed(config, "patience", int) or None,
        target_correct=_typed(config, "target-correct", int) or None,
        **values,
    )
    out = _path(config, "out")
    if out.exists():
        raise ConfigError(f"out = {out} exists: choose another file, or remove it")
    if not out.parent.is_dir():
        raise ConfigError(f"out = {out}: the folder does not exist on the machine that runs the ServerApp")
    return StockSettings(job, out, _members(config), _sealing(config))


def _typed(config: Mapping[str, Any], name: str, kind: type[Any]) -> Any:
    value = config.get(name)
    if value is None:
        raise ConfigError(f"{name} is missing in the run configuration")
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigError(f"{name} = {value!r}, expected {kind.__name__}")
    return value


def _path(config: Mapping[str, Any], name: str) -> Path:
    text = _typed(config, name, str)
    path = Path(text).expanduser()
    # Flower starts the process wherever it likes.
    if not path.is_absolute():
        raise ConfigError(f"{name} = {text!r}, expected an absolute path on the machine that runs the ServerApp")
    return path


def _numbers(config: Mapping[str, Any], name: str, kind: type[Any]) -> list[Any]:
    text = str(config.get(name, ""))
    try:
        return [kind(word) for word in text.split(",")] if text.strip() else []
    except ValueError:
        raise ConfigError(f"{name} = {text!r}, expected numbers separated by commas, as in 64,32") from None


def _members(config: Mapping[str, Any]) -> Mapping[bytes, int] | None:
    if not config.get("members"):
        return None
    path = _path(config, "members")
    try:
        found = {bytes.fromhex(key): int(most) for key, most in json.loads(path.read_text()).items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"members = {path}: expected a JSON object, node key in hex -> most rows: {error}") from None
    wrong = [key.hex() for key, most in found.items() if len(key) != NODE_KEY_BYTES or most < 1]
    if wrong:
        raise ConfigError(f"members = {path}: {wrong[0]} is no node key of {NODE_KEY_BYTES} bytes with at least one row")
    return found


def _sealing(config: Mapping[str, Any]) -> SealingKeyPair:
    """The pool's key: from the file of ``sealing-key`` (64 hex digits), or a fresh one for this run."""
    label = str(config.get("suite", ""))
    suite = {one.label: one for one in Suite}.get(label)
    if suite is None:
        raise ConfigError(f"suite = {label!r} is none of {', '.join(one.label for one in Suite)}")
    if not config.get("sealing-key"):
        return SealingKeyPair.generate(SystemRng(), suite)
    path = _path(config, "sealing-key")
    try:
        return SealingKeyPair.from_private(bytes.fromhex(path.read_text().strip()), suite)
    except (OSError, ValueError) as error:
        raise ConfigError(f"sealing-key = {path}: expected a file of 64 hex digits: {error}") from None
