"""A miner's training data: its own rows, and those that its pool bought for it."""

from __future__ import annotations

import threading
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
"""Tasks whose recipe is remembered."""


class TrainingRows:
    """Safe to use from the training thread while rows arrive on the event loop."""

    def __init__(self, own: TargetRows, recipe: bytes = b"") -> None:
        """``recipe``: digest of the one that the own rows were made by; empty where that is not known."""
        self._own, self._recipe = own, recipe
        self._recipes: dict[bytes, bytes] = {}
        self._x, self._y = own.x, own.y
        self._pool: AccountId | None = None
        """Who bought those that are not own."""
        self._trades: set[Digest] = set()
        """Whose rows are all here."""
        self._indices: dict[Digest, set[int]] = {}
        """Of each data set, by its root, which of its rows are here."""
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
        return len(self._y) - len(self._own)

    @property
    def features(self) -> int:
        return int(self._own.x.shape[1])

    @property
    def holds(self) -> tuple[Digest, ...]:
        """Roots of the data sets of which bought rows are here, ascending; the newest where there are more than MAX_HELD."""
        return tuple(sorted(list(self._indices)[-MAX_HELD:]))

    def has(self, trade_id: Digest) -> bool:
        """Whether all rows of a trade are here."""
        return trade_id in self._trades

    def begin(self, pool: AccountId) -> bool:
        """Train for this pool: what another one bought is not for it. False if that changes nothing."""
        if pool == self._pool:
            return False
        with self._lock:
            self._pool = pool
            self._x, self._y = self._own.x, self._own.y
            self._trades, self._indices = set(), {}
        return True

    def add(
        self, trade_id: Digest, data_root: Digest, first: int, x: Features, y: Labels, feature_scale_micro: int,
        is_whole: bool = True,
    ) -> None:  # fmt: skip
        """Rows ``first`` and following of a data set, checked against its root; the next round trains on them too.

        ``is_whole``: no more will come of this trade. Rows of this data set that came before stay as they are: twice the same
        would count, and be paid, twice. Raises MalformedError if they have another width than the own rows.
        """
        if x.shape[1] != self.features:
            raise MalformedError(f"bought rows have {x.shape[1]} features, own rows {self.features}")
        with self._lock:
            known = self._indices.setdefault(data_root, set())
            new = np.array([first + i not in known for i in range(len(y))], dtype=np.bool_)
            if new.any():
                known.update(range(first, first + len(y)))
                self._x = np.concatenate([self._x, to_floats(x[new], feature_scale_micro)])
                self._y = np.concatenate([self._y, y[new].astype(np.float64)])
            if is_whole:
                self._trades.add(trade_id)

    @property
    def kind(self) -> str:
        """What ``y`` is, for the owner to see: classes, or real targets that only a regression can learn."""
        low, high = float(self._own.y.min()), float(self._own.y.max())
        if low >= 0 and bool((self._own.y == np.floor(self._own.y)).all()):
            return f"classes {low:.0f} to {high:.0f}"
        return f"real targets {low:g} to {high:g}"

    def expect(self, task_id: TaskId, recipe: bytes) -> None:
        """The recipe of a task's practice set, empty if it carries none. Raises MalformedError as ``source`` will."""
        self._recipes[task_id] = recipe
        while len(self._recipes) > KEPT_TASKS:
            del self._recipes[next(iter(self._recipes))]
        self._check_recipe(task_id)

    def _check_recipe(self, job_id: bytes) -> None:
        wanted = self._recipes.get(job_id, b"")
        if wanted and self._recipe and wanted != self._recipe:
            raise MalformedError(
                f"these rows are made by recipe {self._recipe.hex()[:16]}, the task's by {wanted.hex()[:16]}: they would only "
                "look like bad rows. Ask the pool's owner or the task's for its practice.npz, put the [recipe] that "
                "`pofl data recipe practice.npz` prints into your descriptor, and start again"
            )

    def source(self, job_id: bytes) -> tuple[NDArray[np.float32], NDArray[np.float64]] | None:
        """What the Flower client trains on (pool.flower.client_app.DataSource): all rows, for every task.

        Whether ``y`` fits the task's model is checked there. Raises MalformedError if these rows are by another recipe."""
        self._check_recipe(job_id)
        with self._lock:
            return self._x, self._y
