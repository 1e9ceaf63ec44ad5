"""What is on sale: rows read from a file, made int8, shuffled by a secret, under one Merkle root.

The order and the salts follow from 32 secret bytes in the data folder, so the root is the same after every restart, and
nobody can tell from it which row of the file stands where.
"""

from __future__ import annotations

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
from services.data.arrays import finite_rows, read_arrays, whole_labels
from services.data.loading import is_described, load_rows
from services.runtime.durable import write_private

__all__ = ["DOMAIN_ORDER", "DOMAIN_SALTS", "Goods", "load_goods", "row_secret"]

DOMAIN_ORDER: Final = b"pofl/row-order/1"
DOMAIN_SALTS: Final = b"pofl/row-salt-secret/1"
KEPT_IN: Final = "rows.secret"
SECRET_SIZE: Final = 32


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
    try:
        whole_labels(cfg.path, y, classes)
    except InputError as error:
        raise ConfigError(error.message) from None
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
            write_private(path, rng.bytes(SECRET_SIZE).hex().encode() + b"\n")
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


def _read(path: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """x float64 [n, M], finite, and y int64 [n]; n, M within the market's limits."""
    try:
        if is_described(path):
            made = load_rows(path)
            return _checked(path, made.x.astype(np.float64), made.y)
        arrays = read_arrays(path, "x", "y")
        return _checked(path, arrays["x"], arrays["y"])
    except InputError as error:
        raise ConfigError(error.message) from None


def _checked(path: Path, x: NDArray[np.generic], y: NDArray[np.generic]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    floats = finite_rows(path, x, np.float64)
    labels = whole_labels(path, y, MAX_CLASSES)
    if len(floats) != len(labels):
        raise ConfigError(f"{path}: {len(floats)} rows of x but {len(labels)} labels in y")
    if not (CHUNKS <= len(floats) <= MAX_ROWS and 1 <= floats.shape[1] <= MAX_FEATURES):
        raise ConfigError(
            f"{path}: {len(x)} rows of {x.shape[1]} features; a data set has {CHUNKS} to {MAX_ROWS} rows of 1 to {MAX_FEATURES}"
        )
    return floats, labels
