"""Flower's own strategies, used for what they are good at: turning accepted updates into one.

The checks of checks.py come first, so a strategy here never sees a value that makes it raise or overflow. All rules
are applied to differences (weights after minus before): mean, median, trimmed mean and Krum commute with the shift.
"""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, MessageType, Metadata, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp.strategy import Bulyan, FedAvg, FedMedian, FedTrimmedAvg, Krum, MultiKrum, Strategy
from numpy.typing import NDArray

from core.errors import ConfigError
from pool.flower.checks import Accepted

__all__ = ["ALGORITHMS", "aggregate", "tolerated", "strategy_for"]

ALGORITHMS = ("fedavg", "fedsgd", "median", "trimmed_mean", "krum", "multikrum", "bulyan")
EXAMPLES = "num-examples"
TRIM = 0.2
COORDINATE_WISE = ("fedavg", "fedsgd", "median", "trimmed_mean")
"""With fewer than three updates Krum and Bulyan are the median too, but then there is little to hold."""
PART = 2_000_000
"""Coordinates aggregated at a time: 16 MB of each update."""


def tolerated(algorithm: str, count: int) -> int:
    """How many of ``count`` miners may be hostile: n >= 2f + 3 for Krum, n >= 4f + 3 for Bulyan."""
    if algorithm in ("krum", "multikrum"):
        return max(0, (count - 3) // 2)
    if algorithm == "bulyan":
        return max(0, (count - 3) // 4)
    return 0


def strategy_for(algorithm: str, count: int) -> Strategy:
    """The Flower strategy for ``count`` accepted updates. Bulyan and Krum need three; with fewer the median is taken.

    Raises ConfigError for a name that is not in ALGORITHMS.
    """
    if algorithm not in ALGORITHMS:
        raise ConfigError(f"algorithm {algorithm!r} is none of {', '.join(ALGORITHMS)}")
    hostile = tolerated(algorithm, count)
    if algorithm in ("fedavg", "fedsgd"):
        return FedAvg(weighted_by_key=EXAMPLES)
    if algorithm == "median" or (count < 3 and algorithm in ("krum", "multikrum", "bulyan")):
        return FedMedian(weighted_by_key=EXAMPLES)
    if algorithm == "trimmed_mean":
        # At least one value at each end goes as soon as there are three.
        fraction = max(TRIM, 1.0 / count + 1e-9) if count >= 3 else 0.0
        return FedTrimmedAvg(weighted_by_key=EXAMPLES, beta=min(fraction, 0.49))
    if algorithm == "krum":
        return Krum(weighted_by_key=EXAMPLES, num_malicious_nodes=hostile)
    if algorithm == "multikrum":
        return MultiKrum(weighted_by_key=EXAMPLES, num_malicious_nodes=hostile, num_nodes_to_select=max(1, count - hostile - 2))
    return Bulyan(weighted_by_key=EXAMPLES, num_malicious_nodes=hostile)


def aggregate(algorithm: str, round_number: int, updates: list[Accepted]) -> NDArray[np.float64]:
    """One vector from at least one accepted update, computed in float64.

    Flower holds every update three times while it aggregates. What treats each coordinate on its own is computed in parts, with
    the same result, so that large models do not take many times their size; Krum and Bulyan need whole updates.
    """
    size = len(updates[0].vector)
    if algorithm not in COORDINATE_WISE or size <= PART:
        return _aggregate(algorithm, round_number, updates, slice(0, size))
    result = np.empty(size, dtype=np.float64)
    for start in range(0, size, PART):
        part = slice(start, start + PART)
        result[part] = _aggregate(algorithm, round_number, updates, part)
    return result


def _aggregate(algorithm: str, round_number: int, updates: list[Accepted], part: slice) -> NDArray[np.float64]:
    replies = [
        make_message(
            content=RecordDict(
                {
                    "arrays": ArrayRecord({"delta": Array(u.vector[part].astype(np.float64))}),
                    "metrics": MetricRecord({EXAMPLES: u.weight}),
                }
            ),
            # A local message: it needs no run, so the process-global identity of Flower is not asked for one.
            metadata=Metadata(0, "", index + 2, SUPERLINK_NODE_ID, "", "", 0.0, 1.0, MessageType.TRAIN),
        )
        for index, u in enumerate(updates)
    ]
    arrays, _ = strategy_for(algorithm, len(updates)).aggregate_train(round_number, replies)
    if arrays is None:
        raise ConfigError(f"{algorithm} cannot aggregate {len(updates)} updates")
    return np.asarray(arrays["delta"].numpy(), dtype=np.float64)
