"""``pofl bench consensus`` with tiny sizes: real processes, the fields that its page names."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from bench.consensus import best_of, slope
from services.cli.bench import app


def test_every_figure_is_measured() -> None:
    words = ["consensus", "--blocks", "64", "--transactions", "20", "--heights", "8", "--runs", "2", "--validators", "1"]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["finalise"]["runs"] == 2
    assert result["tx"]["transactions"] == 20
    assert result["tx"]["per_second"] > 0
    assert result["sync"]["blocks_per_cpu_second"] > 0
    assert len(result["rss"]["slopes"]) == 1
    assert result["choose_best_of_9364"]["claims"] == 9364
    assert result["machine"]["versions"]["pynacl"]


def test_the_best_of_many_needs_no_sort() -> None:
    found = best_of(500)
    assert 0 < found["seconds_min"] <= found["seconds"] < found["records"]["seconds"] * 10


@pytest.mark.parametrize("rise", [0.0, 0.25])
def test_a_slope(rise: float) -> None:
    assert slope([(h, 80 + rise * h) for h in range(10, 30)]) == pytest.approx(rise)
