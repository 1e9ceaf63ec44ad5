"""Why a pool refused a miner's Flower client: a wrong clock is told from a slow answer."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from pool.flower import fleet

POOLS = datetime(2026, 11, 23, 3, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("asked", "answered", "said"),
    [
        # Asked at the pool's time, and answered after 26 s on a busy machine.
        (0, 26, "not registered any more"),
        # The pool's clock was read at the end of a long exchange.
        (-26, 0, "not registered any more"),
        (40, 41, "40 s ahead of the pool's"),
        (-401, -400, "400 s behind the pool's"),
    ],
)
def test_a_slow_answer_is_no_wrong_clock(asked: int, answered: int, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "_wall_clock", lambda: POOLS + timedelta(seconds=answered))
    response = httpx.Response(401, headers={"date": format_datetime(POOLS, usegmt=True)})
    assert said in fleet._why_refused("activate", response, POOLS + timedelta(seconds=asked))
