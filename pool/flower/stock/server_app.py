"""The ServerApp of the stock deployment: the pool's round loop, checks and aggregation over Flower's public Grid."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from core.errors import DeadlineError
from pool.flower.manager import load_practice, load_state, report_of, round_loop, save_state, stop_when
from pool.flower.rounds import RoundLog
from pool.flower.stock.fleet import StockFleet
from pool.flower.stock.settings import StockSettings, read_settings

__all__ = ["app", "mine"]

MARGIN_S = 1.0
"""The loop stops this long before the deadline: the result must be on disk by then, and a stock process ends slowly."""

_log = logging.getLogger(__name__)
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """What Flower calls. A PoflError ends the run as failed, with its sentence in ``flwr log``."""
    # Flower uploads what the process writes; without a handler of its own the logger of this package stays silent.
    package = logging.getLogger(__package__)
    package.setLevel(logging.INFO)
    package.addHandler(logging.StreamHandler())
    mine(grid, context.run_id, read_settings(context.run_config, context.run_id, int(1000 * time.time())))


def mine(grid: Grid, run_id: int, settings: StockSettings) -> None:
    """Rounds until the deadline or a reason to stop. ``out`` has the best model after each round, in a form that
    jobs.load_weights reads, and ``out`` with ``.jsonl`` appended a line a round, as the pool's own manager reports them.

    Raises DeadlineError when no round was accepted in time.
    """
    job = settings.job
    practice = load_practice(job)
    registered: dict[bytes, int] = {}
    state = load_state(job, settings.out, registered)
    fleet = StockFleet(grid, run_id, settings.sealing, registered, settings.members)
    _log.info("pool key %s", settings.sealing.public_key.hex())
    left = job.deadline_ms / 1000 - time.time() - MARGIN_S
    loop = round_loop(job, practice, fleet, state, fleet.known, time.monotonic() + left)
    reports = settings.out.with_name(settings.out.name + ".jsonl")
    reports.write_text("")

    def on_round(log: RoundLog) -> None:
        save_state(settings.out, state)
        with reports.open("a") as file:
            file.write(json.dumps(asdict(report_of(log))) + "\n")
        _log.info(
            "round %d: %.1f s, %d of %d accepted, practice %d of %d",
            log.number, log.seconds, len(log.accepted), log.participants, log.score.correct, log.score.total,
        )  # fmt: skip
        for miner, reason in log.refused.items():
            _log.info("round %d: refused %s: %s", log.number, miner.hex()[:16], reason)

    try:
        loop.run(stop_when(job), on_round)
    finally:
        fleet.close()
    if state.best_score is None:
        raise DeadlineError(
            f"no round was accepted in time ({state.round} tried, {len(fleet.known())} miners, quorum {job.quorum})"
        )
    _log.info(
        "best: %d of %d practice rows; the model is in %s", state.best_score.correct, state.best_score.total, settings.out
    )
