"""Figures 7 and 8: the CSV against the formulas, the verdicts, the maps and the measured deviations."""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import figures_market, market_deviations, market_maps
from bench.market_figures import PANELS, Panel, Setting, evaluate, verdict
from core.errors import ConfigError
from core.market.reverse_game import PoolPrivate, Rule, interior_bid, least_bid, markup, pool_utility
from services.cli.main import main

SMALL = Setting(points=5)
RULE = ("e1", "e2", "eta", "alpha", "beta", "D_bar", "m_bar", "m_min")


def panel(name: str) -> Panel:
    return next(p for p in PANELS if p.name == name)


def test_every_row_of_the_csv_is_the_formula_at_its_parameters(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = figures_market.draw(["fig8c"], SMALL, tmp_path)
    assert (tmp_path / "fig8c.png").read_bytes().startswith(b"\x89PNG")
    assert "does not follow" in (tmp_path / "fig8c.txt").read_text()
    assert [one["figure"] for one in found] == ["fig8c"]
    with (tmp_path / "fig8c.csv").open() as file:
        table = list(csv.DictReader(file))
    assert len(table) == 5 * (3 + 3 + 1)  # points of three printed and corrected readings, and the bounded one of beta = 3
    for row in table:
        v = {name: float(value) for name, value in row.items() if name not in ("formula", "reading")}
        c = v["alpha"] * (1 - v["r"]) + v["beta"] * v["eta"] * v["D_s"]
        c_pool = v["alpha_tilde"] * (1 - v["r"]) + v["beta_tilde"] * v["eta"] * v["D_s"]
        p = v["e1"] * v["r"] + v["e2"] * v["D_s"] / v["D_bar"] + (1 - v["e1"] - v["e2"]) * v["m"] / v["m_bar"]
        p = min(1.0, max(0.0, p)) if row["formula"] == "bounded" else p
        assert v["p"] == pytest.approx(p)
        assert v["price"] == pytest.approx(v["m"] + v["D_s"])
        assert v["U_pool"] == pytest.approx(p * (v["Q"] + c_pool - v["price"]))
        assert v["U_provider"] == pytest.approx(p * (v["price"] - c))
        rule, private = Rule(*(v[name] for name in RULE)), PoolPrivate(v["Q"], v["alpha_tilde"], v["beta_tilde"])
        if row["formula"] != "bounded":
            printed = row["formula"] == "printed"
            assert v["m"] == pytest.approx(float(interior_bid(rule, private, v["r"], as_printed=printed)))
            assert v["D_s"] == pytest.approx(float(markup(rule, v["m"], v["r"], as_printed=True)))
        else:
            bids = np.linspace(float(least_bid(rule, v["r"])), 60, 60_001)
            best = pool_utility(rule, private, bids, markup(rule, bids, v["r"]), v["r"]).max()
            assert best - 1e-9 <= v["U_pool"] <= best + 1e-4


@pytest.mark.parametrize("one", PANELS, ids=lambda p: p.name)
def test_what_follows_is_what_the_closed_form_says(one: Panel) -> None:
    """Of the paper's eight claims only those on Q follow."""
    said = verdict(one, SMALL)
    assert said["answer"] == "follows" if one.name in ("fig7c", "fig7d") else str(said["answer"]).startswith("does not follow")


def test_the_stated_figures_by_their_closed_form() -> None:
    """p* = e2 S / (2 (beta eta - 1) D_bar), whatever e1, m_bar and r are (ADR 0111)."""
    for highs in ((4.0, 8.0), (1.0, 3.0), (9.0, 2.0)):
        setting = Setting(*highs, points=5)
        curves = {c.reading.name: c for c in evaluate(panel("fig8b"), setting) if c.formula == "corrected"}
        x = panel("fig8b").axis(setting)
        surplus = {"alpha = 1.5": 20 + (x - 1.5) / 2, "alpha = alpha~": np.full(5, 20.0)}
        for name, S in surplus.items():
            assert curves[name].outcome("p") == pytest.approx(0.4 * S / (2 * 0.8 * highs[0]))


def test_the_printed_formula_makes_figure_8b_fall_only_by_its_misprint() -> None:
    curves = [c for c in evaluate(panel("fig8b"), SMALL) if c.reading.name == "alpha = alpha~"]
    printed, corrected = (next(c.outcome("p") for c in curves if c.formula == f) for f in ("printed", "corrected"))
    assert (np.diff(printed) < 0).all()
    assert np.ptp(corrected) < 1e-9
    at_one = [c for c in evaluate(panel("fig8b"), Setting(D_bar=1.0, points=5)) if c.reading.name == "alpha = alpha~"]
    assert np.ptp(at_one[0].outcome("p")) < 1e-9  # where the misprint has no effect, the fall is gone


def test_where_no_rule_is_best_nothing_is_drawn_as_one() -> None:
    curves = evaluate(panel("fig8d"), SMALL)
    assert {c.reading.name for c in curves if c.formula == "bounded"} == {"beta = 3"}
    assert "Theorem III.1" in str(verdict(panel("fig8d"), SMALL)["answer"])


@pytest.mark.parametrize("chart", market_maps.MAPS, ids=lambda m: m.name)
def test_the_defaults_lie_where_the_mechanism_does_what_it_promises(chart: market_maps.Map) -> None:
    x, y = chart.default
    near = dataclasses.replace(chart, x=np.array([x]), y=np.array([y]))
    assert market_maps.MEANINGS[market_maps.classify(near)[0, 0]] == "as promised"
    small = dataclasses.replace(chart, x=chart.x[::8], y=chart.y[::8])
    found = market_maps.classify(small)
    assert len(set(found.ravel().tolist())) > 1  # and the map also shows where it does not
    assert len(list(market_maps.rows(small, found))) == found.size


def test_at_known_points_the_map_says_why() -> None:
    chart = dataclasses.replace(market_maps.MAPS[0], x=np.array([500.0, 10_000.0, 200_000.0]), y=np.array([0.0, 5_000.0]))
    kinds = [[market_maps.MEANINGS[k] for k in row] for row in market_maps.classify(chart)]
    assert kinds[0] == ["declines at some r", "as promised", "p = 1 at every r"]
    assert kinds[1][1] == "p does not fall as r falls"  # alpha~ = 5,000 > alpha = 3,000


def test_a_map_is_a_picture_and_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    chart = market_maps.MAPS[2]
    monkeypatch.setattr(figures_market, "MAPS", (dataclasses.replace(chart, x=chart.x[::8], y=chart.y[::8]),))
    figures_market.draw(["map_highs"], SMALL, tmp_path)
    assert (tmp_path / "map_highs.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "map_highs.csv").read_text().splitlines()) == 26


def test_deviations_are_measured() -> None:
    """One round's misreports gain nothing; the rest does gain, and docs/market.md says so."""
    assert market_deviations.misreport(5_000)["gain_coins"] == 0
    sure = market_deviations.buy_surely(floors=False)
    for gaining in (market_deviations.misstate(), sure, market_deviations.retry(), market_deviations.collude()):
        assert float(str(gaining["gain_coins"])) > 100
    for pools in (1, 2, 4):
        assert float(str(market_deviations.repeat(pools, rounds=10)["gain_coins"])) == pytest.approx(0, abs=1)
    assert float(str(market_deviations.buy_surely()["gain_coins"])) < 0


def pofl(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pofl", *arguments])
    try:
        return main()
    except SystemExit as end:
        return int(end.code or 0)


def test_the_command_writes_and_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    assert pofl(monkeypatch, "reproduce", "fig7d", "--points", "3", "--out", str(tmp_path / "new"), "--json") == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert one["answer"] == "follows"
    assert sorted(Path(path).name for path in one["files"]) == ["fig7d.csv", "fig7d.png", "fig7d.txt"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fig9",), "there is no figure 'fig9': it must be one of fig7, fig8"),
        (("fig7", "--markup-high", "0"), "D_bar > 0 and m_bar > 0 is violated: D_bar = 0.0, m_bar = 8.0"),
        (("fig8", "--reputation", "2"), "the reputation r = 2.0 is not in [0, 1]"),
        (("fig8", "--points", "1"), "1 points on a curve"),
    ],
)
def test_bad_input_is_named_with_its_value(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pofl(monkeypatch, "reproduce", *arguments, "--out", str(tmp_path)) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        figures_market.check_folder(tmp_path / "file")
