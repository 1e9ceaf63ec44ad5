"""The same training without a federation: every miner's, one after another, in this process. ``python -m`` with JSON on stdin.

Rows, first weights, seeds, plan, aggregation and score are those of the rounds that it is compared with. Nothing is sent,
sealed, checked or saved.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import torch

from pool.flower.aggregation import aggregate
from pool.flower.checks import Accepted
from pool.flower.jobs import MiningJob, job_from_json
from pool.flower.manager import load_practice, template_of
from pool.learning.datasets import Dataset, load_npz
from pool.learning.model_spec import Weights, add, flatten, initial_weights, unflatten
from pool.learning.scoring import practice_score
from pool.learning.training import TrainingPlan, train_locally, warm_up

__all__ = ["measure"]

LONGEST_S = 3600.0


def measure(job: MiningJob, rows: list[Dataset], rounds: int) -> dict[str, float]:
    """Medians over ``rounds``: ``seconds`` and ``cpu_seconds`` of one round of all miners."""
    order, practice = template_of(job), load_practice(job)
    weights = initial_weights(job.spec, job.seed)
    wall: list[float] = []
    cpu: list[float] = []
    for number in range(1, rounds + 1):
        start, own = time.perf_counter(), time.process_time()
        seed = job.seed + number
        plan = TrainingPlan(order.optimizer, order.local_epochs, order.learning_rate, order.batch, seed, LONGEST_S)
        weights = _round(job, weights, rows, plan, number)
        practice_score(job.spec, weights, practice, job.targets)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - own)
    return {"seconds": statistics.median(wall), "cpu_seconds": statistics.median(cpu)}


def _round(job: MiningJob, weights: Weights, rows: list[Dataset], plan: TrainingPlan, number: int) -> Weights:
    updates = []
    for index, data in enumerate(rows):
        done = train_locally(job.spec, weights, data, plan)
        updates.append(Accepted(bytes([index]) * 33, flatten(done.delta), done.examples, done.examples, done.loss))
    return add(weights, unflatten(job.spec, aggregate(job.algorithm, number, updates)))


def main() -> None:
    """Entry point of ``python -m bench.mining_reference``."""
    settings = json.load(sys.stdin)
    torch.set_num_threads(1)
    warm_up()
    rows = [load_npz(Path(path)) for path in settings["rows"]]
    print(json.dumps(measure(job_from_json(settings["job"]), rows, settings["rounds"])))


if __name__ == "__main__":
    main()
