"""What is on sale: rows read from a file, made int8, shuffled by a secret, under one Merkle root.

The order and the salts follow from 32 secret bytes in the data folder, so the root is the same after every restart, and
nobody can tell from it which row of the file stands where.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.crypto.hashing import expand
from core.errors import ConfigError, CorruptError, InputError, MarketError
from core.ids import MILLION
from core.market.contract import CHUNKS, MAX_CLASSES, MAX_FEATURES, MAX_ROWS
from core.market.rows import DataSet
from core.ports import Rng
from core.verification.quantise import quantise_features
from provider.config import DataConfig
from services.data.loading import is_described, load_rows
from services.runtime.npz import UNREADABLE, check_archive

__all__ = ["DOMAIN_ORDER", "DOMAIN_SALTS", "Goods", "load_goods", "row_secret"]

DOMAIN_ORDER: Final = b"pofl/row-order/1"
DOMAIN_SALTS: Final = b"pofl/row-salt-secret/1"
KEPT_IN: Final = "rows.secret"
SECRET_SIZE: Final = 32
MAX_UNPACKED: Final = 4 << 30
"""Bytes of x and y in memory."""


@dataclass(frozen=True, slots=True)
class Goods:
    """A data set on sale."""

    name: str
    data: DataSet
    feature_scale_micro: int


def load_goods(cfg: DataConfig, secret: bytes) -> Goods:
    """The data set of a configuration. Raises ConfigError: one sentence that names the file, and the row at fault."""
    if cfg.path is None:
        raise ConfigError("data.path is not set: give an npz file with x (n, M) and y (n), or a descriptor")
    x, y = _read(cfg.path)
    classes = cfg.classes or int(y.max()) + 1
    _check_labels(cfg.path, y, classes)
    # A sort by keyed pseudorandom numbers: nobody without the secret can undo it.
    order = np.argsort(np.frombuffer(expand(DOMAIN_ORDER, 8 * len(y), secret), dtype=">u8"), kind="stable")
    features = quantise_features(x[order], cfg.feature_scale_micro / MILLION)
    salts = expand(DOMAIN_SALTS, 32, secret)
    try:
        data = DataSet(features, y[order].astype(np.uint8), classes, salts, cfg.mark_strength_ppm)
    except MarketError as error:
        raise ConfigError(f"{cfg.path}: {error.message}") from None
    return Goods(cfg.name, data, cfg.feature_scale_micro)


def row_secret(folder: Path, rng: Rng) -> bytes:
    """The 32 bytes that order and salts follow from, made on the first call, readable by their owner only.

    Raises:
        ConfigError: the file cannot be read or made, or others can read it.
        CorruptError: it is damaged. A new one would change the root, and rows sold under the old could not be delivered.
    """
    path = folder / KEPT_IN
    try:
        if not path.exists():
            _write(path, rng.bytes(SECRET_SIZE).hex() + "\n")
        mode = path.stat().st_mode
        text = path.read_bytes()[: 4 * SECRET_SIZE]
    except OSError as error:
        raise ConfigError(f"cannot use {path}: {error.strerror or error}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{path} can be read by others (mode {stat.S_IMODE(mode):04o}): run `chmod 600 {path}`")
    try:
        secret = bytes.fromhex(text.decode("ascii").strip())
    except (UnicodeDecodeError, ValueError):
        secret = b""
    if len(secret) != SECRET_SIZE:
        raise CorruptError(f"{path} must hold {2 * SECRET_SIZE} hex digits: restore it, or remove it to sell under a new root")
    return secret


def _write(path: Path, text: str) -> None:
    """Whole or not at all, even if the machine stops in between."""
    partial = path.with_name(path.name + ".part")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """x float64 [n, M], finite, and y int64 [n]; n, M within the market's limits."""
    try:
        if is_described(path):
            made = load_rows(path)
            return _checked(path, made.x.astype(np.float64), made.y)
        check_archive(path, MAX_UNPACKED)
        with np.load(path, allow_pickle=False) as arrays:
            missing = [name for name in ("x", "y") if name not in arrays.files]
            if missing:
                raise ConfigError(f"{path}: no array {missing[0]!r}; it holds {', '.join(sorted(arrays.files)) or 'nothing'}")
            x, y = arrays["x"], arrays["y"]
    except InputError as error:
        raise ConfigError(error.message) from None
    except UNREADABLE as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise ConfigError(f"{path} is no readable npz file of plain arrays: {reason or error}") from None
    return _checked(path, x, y)


def _checked(path: Path, x: NDArray[np.generic], y: NDArray[np.generic]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    if x.dtype.kind not in "fiu" or x.ndim != 2:
        raise ConfigError(f"{path}: x must be numbers of shape (n, M), got {x.dtype} {list(x.shape)}")
    if y.dtype.kind not in "fiu" or y.shape != (len(x),):
        raise ConfigError(f"{path}: y must be {len(x)} numbers, one for each row of x, got {y.dtype} {list(y.shape)}")
    if not (CHUNKS <= len(x) <= MAX_ROWS and 1 <= x.shape[1] <= MAX_FEATURES):
        raise ConfigError(
            f"{path}: {len(x)} rows of {x.shape[1]} features; a data set has {CHUNKS} to {MAX_ROWS} rows of 1 to {MAX_FEATURES}"
        )
    bad = ~np.isfinite(x.astype(np.float64))
    if bad.any():
        row, column = (int(i) for i in np.argwhere(bad)[0])
        raise ConfigError(f"{path}: row {row} has x[{column}] = {x[row, column]}, not a finite number", row=row)
    labels = y.astype(np.float64)
    broken = np.flatnonzero(~np.isfinite(labels) | (labels != np.floor(labels)))
    if broken.size:
        row = int(broken[0])
        raise ConfigError(f"{path}: row {row} has label {y[row]}, not a whole number", row=row)
    _check_labels(path, labels, MAX_CLASSES)
    return x.astype(np.float64), labels.astype(np.int64)


def _check_labels(path: Path, y: NDArray[np.float64] | NDArray[np.int64], classes: int) -> None:
    wrong = np.flatnonzero((y < 0) | (y >= classes))
    if wrong.size:
        row = int(wrong[0])
        raise ConfigError(f"{path}: row {row} has label {y[row]:g}; labels are 0 to {classes - 1}", row=row)
