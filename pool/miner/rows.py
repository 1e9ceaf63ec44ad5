"""A miner's training data: its own rows, and those that its pool bought for it."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.errors import MalformedError
from core.ids import Digest
from core.market.delivery import to_floats
from core.market.rows import Features, Labels
from pool.learning.datasets import Dataset, load_npz

__all__ = ["TrainingRows"]


class TrainingRows:
    """Safe to use from the training thread while rows arrive on the event loop."""

    def __init__(self, own: Dataset) -> None:
        self._own = own
        self._x, self._y = own.x, own.y
        self._trades: set[Digest] = set()
        self._lock = threading.Lock()

    @classmethod
    def load(cls, path: Path) -> TrainingRows:
        """Raises NotFoundError, LimitError or MalformedError, naming the file."""
        return cls(load_npz(path))

    @property
    def own(self) -> int:
        return len(self._own)

    @property
    def bought(self) -> int:
        return len(self._y) - len(self._own)

    @property
    def features(self) -> int:
        return int(self._own.x.shape[1])

    def has(self, trade_id: Digest) -> bool:
        return trade_id in self._trades

    def add(self, trade_id: Digest, x: Features, y: Labels, feature_scale_micro: int) -> None:
        """Rows of a trade, checked against the provider's root; the next round trains on them too.

        Raises MalformedError if they have another width than the own rows.
        """
        if x.shape[1] != self.features:
            raise MalformedError(f"bought rows have {x.shape[1]} features, own rows {self.features}")
        with self._lock:
            if trade_id not in self._trades:
                self._x = np.concatenate([self._x, to_floats(x, feature_scale_micro)])
                self._y = np.concatenate([self._y, y.astype(np.int64)])
                self._trades.add(trade_id)

    def source(self, job_id: bytes) -> tuple[NDArray[np.float32], NDArray[np.int64]] | None:
        """What the Flower client trains on (pool.flower.client_app.DataSource): all rows, for every task."""
        with self._lock:
            return self._x, self._y
