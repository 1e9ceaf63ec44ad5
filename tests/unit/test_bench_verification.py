"""The measurements of ``pofl bench verification`` that need no services: parts, growth, figures, refusals."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bench import plots
from bench.verification_growth import growth, paper_gates
from bench.verification_machine import machine, process_cpu_seconds, repeated, spread
from bench.verification_parts import best_of, encryption, forward, garbling, tensor_product, transfer
from bench.verification_report import report, tables
from core.errors import ConfigError, LimitError
from core.verification.test_set import TestSet
from services.cli.bench import app

DIMS = (4, 3, 2)


def _plain(samples: int) -> TestSet:
    random = np.random.default_rng(1)
    features = random.integers(-127, 127, (samples, DIMS[0]), dtype=np.int8)
    return TestSet(features, random.integers(0, DIMS[-1], samples), DIMS[-1])


def _result(samples: int) -> dict[str, object]:
    """As much as figures and tables look at; every cost is linear."""
    ways = {"to_requester": 3 * samples, "from_requester": 2 * samples}
    step = {
        "seconds": 1e-4 * samples, "seconds_min": 1e-5 * samples, "seconds_max": 1e-3 * samples, "cpu_seconds": 1e-4 * samples,
        "requester_cpu_seconds": 1e-5 * samples, "pool_cpu_seconds": 1e-5 * samples, "bytes": ways, "wire_bytes": ways,
    }  # fmt: skip
    gates = {"or_paper": samples, "all_paper": 2 * samples, "all": 4 * samples, "note": "-"}
    return {
        "samples": samples, "layers": list(DIMS), "publish": step, "load": step, "encrypt": {**step, "bytes": samples},
        "audit": {**step, "again": step, "all_seconds": [0.1, 0.2]}, "audit16": {"seconds": None, "note": "left out"},
        "evaluation": {"online": step, "offline": step, "online_seconds": 1e-4 * samples, "offline_seconds": 1e-4 * samples,
                       "he_bytes": ways},
        "garbling": {**step, "garble": step, "evaluate": step, "and_gates": 4 * samples, "table_1": gates},
        "ot": {**step, "setup": step, "transfers": samples}, "plaintext": step,
        "tenseal_ckks_mm": {**step, "rows": samples, "threads": 1},
        "best_claim": [{"claims": 10, "best": step, "sort": step}], "machine": machine(),
        "paper": {"audit_seconds": [1.65, 1.7], "best_of_9364_claims_seconds": 60e-6},
    }  # fmt: skip


def test_parts_give_seconds_and_bytes_each_way() -> None:
    plain = _plain(40)
    circuit = garbling(plain, 1, 2)
    assert circuit["and_gates"] == circuit["table_1"]["all"]
    assert circuit["table_1"]["or_paper"] == 40
    assert circuit["table_1"]["adder_paper"] == 40 * 6 // 2
    assert circuit["seconds_min"] <= circuit["seconds"] <= circuit["seconds_max"]
    moved = transfer(plain, 1, 2)
    for step in (circuit, moved, moved["setup"]):
        assert set(step["bytes"]) == {"to_requester", "from_requester"}
        assert min(step["bytes"].values()) > 0
    assert encryption(plain, 1)["bytes"] > 0
    assert forward(plain, DIMS, 3)["runs"] == 3
    assert [one["claims"] for one in best_of((5, 50), 1)] == [5, 50]


def test_tenseal_multiplies_every_row() -> None:
    """4,100 rows are two batches of TenSEAL's 4,096 slots; the product is compared with numpy's inside."""
    found = tensor_product(_plain(4100), 2, 2)
    assert (found["rows"], found["batches"], found["runs"]) == (4100, 2, 2)
    assert 0 < found["largest_error"] < 0.01 * found["largest_value"]


def test_repeated_stops_after_its_time() -> None:
    assert repeated(5, lambda: None)["runs"] == 5
    assert repeated(5, lambda: time.sleep(0.02), 0.01)["runs"] == 1


def test_spread_is_median_least_and_greatest() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"seconds": 2.0, "seconds_min": 1.0, "seconds_max": 3.0, "runs": 3}


def test_machine_says_what_a_figure_depends_on() -> None:
    found = machine()
    assert found["cores"] >= found["cores_usable"] >= 1
    assert {"python", "numpy", "tenseal"} <= set(found["versions"])
    assert isinstance(found["aes"]["in_use"], bool)
    assert "OPENSSL_ia32cap" in found["aes"]
    assert process_cpu_seconds(os.getpid()) > 0
    json.dumps(found)


def test_growth_tells_linear_from_more() -> None:
    grown = growth([_result(size) for size in (10_000, 100, 1000)])
    assert grown["sizes"] == [100, 1000, 10_000]
    assert grown["quantities"]["audit.seconds"]["exponents"] == pytest.approx([1.0, 1.0])
    assert grown["quantities"]["garbling.and_gates"]["per_sample"] == pytest.approx([4.0, 4.0])
    assert min(grown["paper"]["exponents"]) > 1.1
    assert paper_gates(100) == 100 + 100 * 7 / 2


@pytest.mark.parametrize("sizes", [(100,), (100, 1000)])
def test_figures_are_drawn_and_written_as_numbers(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    pytest.importorskip("matplotlib")
    results = [_result(size) for size in sizes]
    plots.check_folder(tmp_path / "new")
    written = plots.write_all(results, tmp_path / "new")
    names = {path.name for path in written}
    assert {"fig10a.png", "fig10a.csv", "fig10b.png", "fig10b.csv", "fig11a.png", "fig11b.png", "table1.csv"} <= names
    assert all(path.stat().st_size > 0 for path in written)
    assert len((tmp_path / "new" / "fig10a.csv").read_text().splitlines()) == 1 + len(sizes)
    whole = {"sizes": results, "growth": growth(results)} if len(sizes) > 1 else results[0]
    assert len(tables({**whole, "figures": ["x"]})) >= 2


def test_a_missing_matplotlib_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match="matplotlib: run"):
        plots.check_folder(tmp_path)


async def test_a_folder_that_cannot_be_written_is_said_before_measuring(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--plot"):
        await report("100", "4,3,2", 1, 0, tmp_path / "file")


@pytest.mark.parametrize(
    ("samples", "layers", "said"),
    [
        ("many", "4,3,2", "--samples: positive whole numbers"),
        ("100,0", "4,3,2", "--samples: positive whole numbers"),
        ("100,100", "4,3,2", "each size once"),
        ("100", "4,x", "--layers: positive whole numbers"),
        ("100", "4,2", "at least one hidden layer"),
        ("2000000", "4,3,2", "2000000 samples"),
        ("5", "4,3,10", "a sample of each"),
    ],
)
def test_bad_arguments_are_refused_at_once(samples: str, layers: str, said: str) -> None:
    shown = CliRunner().invoke(app, ["verification", "--samples", samples, "--layers", layers])
    assert shown.exit_code == 2
    assert said in shown.stderr
    assert len(shown.stderr.strip().splitlines()) == 1


async def test_no_runs_are_refused() -> None:
    with pytest.raises(LimitError, match="0 runs"):
        await report("100", "4,3,2", 0, 0, None)
