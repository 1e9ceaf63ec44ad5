"""The market end to end: a pool that leaks is reported, its name falls, and its next rows are dearer and less likely.

The measurement of ``pofl bench leaking-pool``, shortened to two blocks: one before the report, one after it. Whether fewer
blocks are won takes more of them (docs/market.md has a run).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.leaking_pool import Setting, measure, problems
from tests.e2e.test_testnet import left_over

pytestmark = [pytest.mark.e2e, pytest.mark.ci, pytest.mark.slow]


class Quiet:
    def state(self, name: str, role: str, text: str) -> None:
        """Nobody watches."""

    def say(self, line: str) -> None:
        """Nobody listens."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    assert left_over(tmp_path) == []


@pytest.mark.timeout(900)
async def test_a_leaking_pool_buys_dearer_and_less_likely(folder: Path) -> None:
    setting = Setting(blocks=1, honest=1, nodes=3, seed=2, slack=1.5)
    found = await measure(setting, folder / "net", Quiet())
    assert problems(found) == []
    assert [r["outcome"] for r in found["reports"]] == ["leaked"]
    before, after = found["before"], found["after"]
    assert before["leaking"]["p"] == before["honest"]["p"]
    assert before["leaking"]["price_a_row"] == before["honest"]["price_a_row"]
    assert after["leaking"]["r"] < after["honest"]["r"]
    assert after["leaking"]["r"] < before["leaking"]["r"]
    assert after["leaking"]["p"] < after["honest"]["p"]
    assert after["leaking"]["price_a_row"] > after["honest"]["price_a_row"]
    assert after["leaking"]["m"] > after["honest"]["m"]
    first = [t for t in found["trades"] if t["task"] == 1]
    assert [(t["deal"], t["rows"]) for t in first] == [(True, 100), (True, 100)]
    assert [t["outcomes"] for t in first] == [["leaked"], []]
    assert sum(found[when][side]["blocks"] for when in ("before", "after") for side in ("leaking", "honest")) == 2
