"""What a testnet learns: the embedded digits, or data of one's own, split once by a fixed seed.

The default is scikit-learn's handwritten digits: 1,797 real 8x8 images of 10 classes (UCI "Optical Recognition of Handwritten
Digits"). The requester keeps a secret test set; a practice set is public; every miner has a share of its own; the rest only
the provider has.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.chain.transaction import Activation
from core.errors import ConfigError, InputError, LimitError
from core.market.contract import CHUNKS, MAX_CLASSES
from core.verification.body import MAX_PARAMETERS
from core.verification.noise import check_noise
from core.verification.scored_model import ModelFamily
from services.data.loading import load_rows
from services.data.partition import split
from services.data.rows import Rows
from services.data.stored import save_rows

__all__ = ["DIGITS", "SEED", "OwnData", "Split", "Subject", "split_digits", "split_own"]

SEED: Final = 20200224
TEST_ROWS: Final = 400
PRACTICE_ROWS: Final = 200
PROVIDER_ROWS: Final = 520
"""For a pool of three: 173 each, of which half can be traced and proven (docs/adr/0136)."""
WEIGHT_BITS: Final = 10
MOST_ENCRYPTED: Final = 512
"""Features and classes of a task together (core.verification.task)."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What the tasks of a testnet are about; kept in its manifest."""

    name: str
    features: int
    classes: int
    feature_scale_micro: int
    """int8 feature = round(x * this / 10^6)."""
    hidden: tuple[int, ...] = (16,)


DIGITS: Final = Subject("digits", 64, 10, 127_000_000)
"""Features are pixels in [0, 1]; the scored int8 feature is round(127 x)."""


@dataclass(frozen=True, slots=True)
class OwnData:
    """Data of whoever makes the testnet."""

    path: Path
    descriptor: Path | None = None
    by: str = "even"
    """How miners share: ``even``, ``dirichlet:ALPHA``, ``key``."""
    rows: int = 6000
    """At most so many in all, drawn by the seed; 0: all."""
    hidden: tuple[int, ...] = (16,)


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Disjoint rows of everybody."""

    subject: Subject
    test: Rows
    practice: Rows
    provider: Rows
    miners: tuple[Rows, ...]

    def write(self, paths: Mapping[str, Path], miners: list[Path]) -> None:
        """Write ``test``, ``practice``, ``provider`` and one npz a miner, all with their recipe. Raises ConfigError."""
        for name, rows in (("test", self.test), ("practice", self.practice), ("provider", self.provider)):
            save_rows(paths[name], rows)
        for path, rows in zip(miners, self.miners, strict=True):
            save_rows(path, rows)


def split_digits(miners: int) -> Split:
    """The same split on every machine. Raises ConfigError if scikit-learn is missing or there are too many miners."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ConfigError("the default data needs scikit-learn: pip install 'pofl[data]'") from None
    digits = load_digits()
    x = (digits.data / 16.0).astype(np.float32)
    rows = Rows("scikit-learn's digits", "digits", x, digits.target.astype(np.int64), DIGITS.classes)
    order = np.random.Generator(np.random.PCG64(SEED)).permutation(len(rows))
    reserved = TEST_ROWS + PRACTICE_ROWS + PROVIDER_ROWS
    share, rest = divmod(len(rows) - reserved, miners)
    if share < DIGITS.classes:
        raise ConfigError(
            f"{len(rows) - reserved} rows are left for {miners} miners: at most {(len(rows) - reserved) // DIGITS.classes}"
        )
    sizes = [TEST_ROWS, PRACTICE_ROWS, PROVIDER_ROWS] + [share + (i < rest) for i in range(miners)]
    edges = itertools.accumulate([0, *sizes])
    parts = [rows.take(order[a:b]) for a, b in itertools.pairwise(edges)]
    return Split(DIGITS, parts[0], parts[1], parts[2], tuple(parts[3:]))


def split_own(own: OwnData, miners: int) -> Split:
    """A fifth of the rows for the test set, a tenth for practice, a tenth for the provider, at most as many as of the digits.

    Those are drawn at random; what is left the miners share by ``own.by``.

    Raises InputError: the data cannot be read, or are too few, too wide, or not split in this way.
    """
    rows = load_rows(own.path, own.descriptor)
    if not rows.classes:
        raise ConfigError(f"{own.path}: its targets are real: a testnet's tasks have classes, so give the recipe cuts")
    if rows.features + rows.classes > MOST_ENCRYPTED:
        raise ConfigError(
            f"{own.path}: {rows.features} features and {rows.classes} classes: a task has at most {MOST_ENCRYPTED} of both "
            "together; the recipe can resize, or project (pca)"
        )
    if rows.classes > MAX_CLASSES:
        raise ConfigError(f"{own.path}: {rows.classes} classes: rows for sale have at most {MAX_CLASSES}")
    order = np.random.Generator(np.random.PCG64(SEED)).permutation(len(rows)).astype(np.int64)
    order = order[: own.rows or len(order)]
    test, practice = min(TEST_ROWS, len(order) // 5), min(PRACTICE_ROWS, len(order) // 10)
    provider = min(PROVIDER_ROWS, len(order) // 10)
    edges = list(itertools.accumulate([test, practice, provider]))
    left = order[edges[-1] :]
    if provider < CHUNKS or len(left) < miners:
        raise ConfigError(
            f"{own.path}: {len(order)} rows are too few: a testnet needs {10 * CHUNKS}, and a row for each of {miners} miners"
        )
    try:
        family = ModelFamily((rows.features, *own.hidden, rows.classes), Activation.SIGMOID, WEIGHT_BITS)
        if family.parameters > MAX_PARAMETERS:
            raise LimitError(f"{family.parameters} parameters, a task's model has at most {MAX_PARAMETERS}")
        check_noise(family.dims, family.parameters, test)
    except InputError as error:
        raise ConfigError(f"{own.path}, with hidden layers {list(own.hidden)}: {error.message}") from None
    parts = [rows.take(part) for part in np.split(order[: edges[-1]], edges[:-1])]
    kept = rows.take(left)
    shares = split(own.by, kept.y, kept.keys, miners, SEED)
    subject = Subject(_plain(rows.name), rows.features, rows.classes, _scale(rows, parts[1].x), own.hidden)
    return Split(subject, parts[0], parts[1], parts[2], tuple(kept.take(share) for share in shares))


def _plain(name: str) -> str:
    """A name for tasks, which have little room: ASCII letters, digits, dots and hyphens."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", name).strip("-")[:40] or "data"


def _scale(rows: Rows, practice: NDArray[np.float32]) -> int:
    """The recipe's; without one what brings the largest practice feature to 127, as a requester would."""
    known = rows.recipe.feature_scale_micro if rows.recipe is not None else 0
    largest = float(np.abs(practice).max())
    if not known and not largest > 0:
        raise ConfigError(f"{rows.source}: every feature of the practice set is 0")
    return known or max(1, round(127 / largest * 1_000_000))
