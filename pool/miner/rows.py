"""A miner's training data: its own rows, and those that its pool bought for it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.errors import MalformedError
from core.ids import AccountId, Digest, TaskId
from core.market.delivery import to_floats
from core.market.rows import Features, Labels
from pool.learning.targets import TargetRows, load_targets
from services.data.loading import is_described, load_rows
from services.data.stored import recipe_digest_in
from services.rpc.convert_mining import MAX_HELD

__all__ = ["TrainingRows"]

KEPT_TASKS: Final = 64
"""Tasks whose recipe and classes are remembered."""


@dataclass(frozen=True, slots=True)
class _Bought:
    """Rows of one delivery that were not here before."""

    data_root: Digest
    x: Features
    y: Labels
    feature_scale_micro: int


class TrainingRows:
    """Safe to use from the training thread while rows arrive on the event loop."""

    def __init__(self, own: TargetRows, recipe: bytes = b"") -> None:
        """``recipe``: digest of the one that the own rows were made by; empty where that is not known."""
        self._own, self._recipe = own, recipe
        self._has_classes = bool((own.y >= 0).all() and (own.y == np.floor(own.y)).all())
        self._tasks: dict[bytes, tuple[bytes, int | None]] = {}
        """Recipe and classes."""
        self._pool: AccountId | None = None
        """Who bought those that are not own."""
        self._trades: set[Digest] = set()
        """Whose rows are all here."""
        self._ranges: dict[Digest, list[tuple[int, int]]] = {}
        """Of each data set, by its root, which of its rows are here: ``first`` and stop, ascending, apart."""
        self._labels: dict[Digest, int] = {}
        """Of each data set, the largest label that was seen."""
        self._parts: list[_Bought] = []
        self._bought = 0
        self._made: tuple[frozenset[Digest], NDArray[np.float32], NDArray[np.float64]] | None = None
        """What was trained on last: own rows and those of these data sets."""
        self._lock = threading.Lock()

    @classmethod
    def load(cls, path: Path, descriptor: Path | None = None) -> TrainingRows:
        """An ``.npz`` with x and y, or whatever a descriptor describes (services.data).

        Raises NotFoundError, ConfigError, LimitError or MalformedError, naming the file, and the row at fault.
        """
        if descriptor is not None or path.suffix != ".npz" or is_described(path):
            made = load_rows(path, descriptor)
            return cls(TargetRows(made.x, made.y.astype(np.float64)), b"" if made.recipe is None else made.recipe.digest)
        return cls(load_targets(path), recipe_digest_in(path))

    @property
    def own(self) -> int:
        return len(self._own)

    @property
    def bought(self) -> int:
        return self._bought

    @property
    def pool(self) -> AccountId | None:
        """For whom it trains."""
        return self._pool

    @property
    def features(self) -> int:
        return int(self._own.x.shape[1])

    @property
    def holds(self) -> tuple[Digest, ...]:
        """Roots of the data sets of which bought rows are here, ascending; the newest where there are more than MAX_HELD."""
        return tuple(sorted(list(self._ranges)[-MAX_HELD:]))

    def has(self, trade_id: Digest) -> bool:
        """Whether all rows of a trade are here."""
        return trade_id in self._trades

    def begin(self, pool: AccountId) -> None:
        """Train for this pool, with own rows only: what another one bought is not for it."""
        with self._lock:
            self._pool = pool
            self._trades, self._ranges, self._labels, self._parts = set(), {}, {}, []
            self._bought, self._made = 0, None

    def add(
        self, trade_id: Digest, data_root: Digest, first: int, x: Features, y: Labels, feature_scale_micro: int,
        is_whole: bool = True,
    ) -> None:  # fmt: skip
        """Rows ``first`` and following of a data set, checked against its root; the next round trains on them too.

        ``is_whole``: no more will come of this trade. Rows of this data set that came before stay as they are: twice the same
        would count, and be paid, twice. Cheap: floats are made when they are trained on. Raises MalformedError if they have
        another width than the own rows, or no scale.
        """
        if x.shape[1] != self.features:
            raise MalformedError(f"bought rows have {x.shape[1]} features, own rows {self.features}")
        if feature_scale_micro < 1:
            raise MalformedError(f"bought rows have a feature scale of {feature_scale_micro} millionths")
        with self._lock:
            known = self._ranges.setdefault(data_root, [])
            new = np.ones(len(y), dtype=np.bool_)
            for start, stop in known:
                new[max(0, start - first) : max(0, stop - first)] = False
            if new.any():
                self._ranges[data_root] = _merged([*known, (first, first + len(y))])
                part = _Bought(data_root, x[new], y[new], feature_scale_micro)
                self._parts.append(part)
                self._labels[data_root] = max(self._labels.get(data_root, 0), int(part.y.max()))
                self._bought += len(part.y)
                self._made = None
            if is_whole:
                self._trades.add(trade_id)

    @property
    def kind(self) -> str:
        """What ``y`` is, for the owner to see: classes, or real targets that only a regression can learn."""
        low, high = float(self._own.y.min()), float(self._own.y.max())
        if self._has_classes:
            return f"classes {low:.0f} to {high:.0f}"
        return f"real targets {low:g} to {high:g}"

    def expect(self, task_id: TaskId, recipe: bytes, classes: int | None = None) -> None:
        """The recipe of a task's practice set, empty if it carries none, and how many classes its model tells apart.

        Raises MalformedError as ``source`` will."""
        self._tasks[task_id] = recipe, classes
        while len(self._tasks) > KEPT_TASKS:
            del self._tasks[next(iter(self._tasks))]
        self._check_recipe(task_id)

    def _check_recipe(self, job_id: bytes) -> None:
        wanted, _ = self._tasks.get(job_id, (b"", None))
        if wanted and self._recipe and wanted != self._recipe:
            raise MalformedError(
                f"these rows are made by recipe {self._recipe.hex()[:16]}, the task's by {wanted.hex()[:16]}: they would only "
                "look like bad rows. Ask the pool's owner or the task's for its practice.npz, put the [recipe] that "
                "`pofl data recipe practice.npz` prints into your descriptor, and start again"
            )

    def source(self, job_id: bytes) -> tuple[NDArray[np.float32], NDArray[np.float64]] | None:
        """What the Flower client trains on (pool.flower.client_app.DataSource): own rows, and of what was bought all data sets
        whose labels the task's model has. One bought for a task of ten classes does not keep this miner from one of two.

        Whether own ``y`` fits the task's model is checked there. Raises MalformedError if these rows are by another recipe."""
        self._check_recipe(job_id)
        _, classes = self._tasks.get(job_id, (b"", None))
        with self._lock:
            used = frozenset(
                root for root, label in self._labels.items() if self._has_classes and (classes is None or label < classes)
            )
            if self._made is not None and self._made[0] == used:
                return self._made[1:]
            self._made = None  # before the next one: both at once may be gigabytes
            parts = [part for part in self._parts if part.data_root in used]
            count = len(self._parts), self._pool
        # Without the lock: it may take seconds, and whoever waits for it on the event loop would stand still.
        x, y = self._joined(parts)
        with self._lock:
            if count == (len(self._parts), self._pool):
                self._made = used, x, y
        return x, y

    def _joined(self, parts: list[_Bought]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        if not parts:
            return self._own.x, self._own.y
        place = len(self._own)
        rows = place + sum(len(part.y) for part in parts)
        x, y = np.empty((rows, self.features), np.float32), np.empty(rows, np.float64)
        x[:place], y[:place] = self._own.x, self._own.y
        for part in parts:
            stop = place + len(part.y)
            x[place:stop], y[place:stop] = to_floats(part.x, part.feature_scale_micro), part.y
            place = stop
        return x, y


def _merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(stop, merged[-1][1])
        else:
            merged.append((start, stop))
    return merged
