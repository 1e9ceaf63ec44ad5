"""Everyone finds the plaintext count, whatever the model and the test set: whole evaluations and audits, 0 differences.

``pofl bench exactness --cases 1000`` is the long form of this file.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.exactness import Case, draw_case, measure, play
from core.chain.transaction import Activation
from core.crypto.homomorphic import PARAMS
from core.verification.scored_model import MAX_LAYERS
from services.cli.main import main

ROOT = Path(__file__).parent.parent.parent
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    hidden = draw(st.lists(st.integers(1, 6), max_size=5))
    dims = (draw(st.integers(1, 9)), *hidden, draw(st.integers(2, 9)))
    return Case(
        seed=draw(st.integers(0, 1 << 32)), number=0, dims=dims, activation=draw(st.sampled_from(Activation)),
        weight_bits=draw(st.integers(2, 12)), samples=draw(st.integers(1, 40)),
        agreement=draw(st.sampled_from([0.0, 0.5, 1.0])),
    )  # fmt: skip


@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=SLOW)
@given(cases())
def test_pool_requester_and_node_agree_with_the_plain_count(case: Case) -> None:
    assert play(case).is_exact


@pytest.mark.parametrize(
    ("dims", "samples", "activation"),
    [
        ((6, 3), 1, Activation.SIGMOID),  # softmax regression, one sample
        ((1, 2), 13, Activation.IDENTITY),  # the smallest model that there is
        ((4, 1, 2), 20, Activation.RELU),
        ((3, 5, 1, 4), 31, Activation.IDENTITY),
        ((5, 2, 3, 2, 3), 17, Activation.SIGMOID),
        ((2, 1, 1, 1, 1, 2), 9, Activation.RELU),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else str(value),
)
def test_every_depth(dims: tuple[int, ...], samples: int, activation: Activation) -> None:
    assert play(Case(5, len(dims), dims, activation, 10, samples, 0.5)).is_exact


@pytest.mark.parametrize(
    "case",
    [
        Case(6, 0, (2,) * MAX_LAYERS + (2,), Activation.RELU, 10, 5, 0.5),
        Case(6, 1, (2, 2), Activation.SIGMOID, 10, PARAMS.degree - 1, 0.5),
        Case(6, 2, (2, 2), Activation.SIGMOID, 10, PARAMS.degree, 0.5),
        Case(6, 3, (2, 1, 3), Activation.SIGMOID, 10, PARAMS.degree + 1, 0.5),
    ],
    ids=["deepest", "one less than a batch", "one batch", "one more than a batch"],
)
def test_sizes_at_their_edges(case: Case) -> None:
    assert play(case).is_exact


def test_many_classes() -> None:
    """Labels of eight bits. (A task's limit, 512 rows of features and classes together, takes ten times as long.)"""
    assert play(Case(7, 0, (2, 130), Activation.SIGMOID, 10, 30, 0.5)).is_exact


def test_a_broken_party_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement itself notices: a plain computation with another rule for ties differs somewhere."""
    import bench.exactness as measured

    case = Case(8, 0, (3, 4, 2), Activation.RELU, 2, 30, 1.0)
    right = play(case)
    assert right.is_exact
    assert not replace(right, node=right.plain - 1).is_exact
    assert not replace(right, same_layers=False).is_exact
    reference = measured.reference
    monkeypatch.setattr(measured, "reference", lambda model, x: tuple(z + (x.shape[0] > 0) for z in reference(model, x)))
    assert not play(case).is_exact


def test_a_run_is_replayable() -> None:
    lines: list[str] = []
    first, again = (measure(1, 77, lines.append) for _ in range(2))
    assert first["differences"] == 0
    assert first["results_digest"] == again["results_digest"]
    assert first["products_digest"] == again["products_digest"]
    assert draw_case(77, 1) == draw_case(77, 1) != draw_case(78, 1) != draw_case(78, 2)
    assert "seed 77" in lines[0]


@pytest.mark.parametrize("broken", [False, True])
def test_the_command_prints_json_and_ends_with_one_on_a_difference(
    broken: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import bench.exactness as measured

    outcome = measured.Outcome(3, 3, 3, 4 if broken else 3, True, bytes(32))
    monkeypatch.setattr(measured, "play", lambda case: outcome)
    monkeypatch.setattr(measured, "products_digest", lambda seed: "00")
    monkeypatch.setattr(sys, "argv", ["pofl", "bench", "exactness", "--cases", "2", "--seed", "4", "--json"])
    with contextlib.suppress(SystemExit):
        code = main()
    assert code == (1 if broken else 0)
    found = json.loads(capsys.readouterr().out)
    assert (found["seed"], found["cases"], found["differences"]) == (4, 2, 2 if broken else 0)
    assert [failure["case"] for failure in found["failures"]] == ([0, 1] if broken else [])


SCRIPT = """
import sys
from bench.exactness import draw_case, play, products_digest
outcomes = [play(draw_case(11, 0))]
assert all(outcome.is_exact for outcome in outcomes)
print(products_digest(11), *(f"{outcome.pool}:{outcome.z_digest.hex()}" for outcome in outcomes))
"""


PINNED = (
    "90b08ad01d65641673ca87b0af1d62439b0797c7164053b3199729d31cfbda47",
    "1:e344581d4c80058e6a960f1d81447a7954b91e970054bec9d01280ad130ff301",
)
"""What one machine found once. The inputs come from numpy's generators: another numpy may ask for another pin, nothing else."""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_any_number_of_blas_threads_and_any_kernel_gives_the_same_numbers() -> None:
    """N, the digest of all Z, and every product of matrices that BLAS takes part in, on this machine as on any other.

    The second setting makes OpenBLAS use its kernels of 2004, which add up in another order and without fused operations.
    """
    for threads, kernel in (("1", ""), ("2", "Prescott"), ("4", "")):
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "proto")])
        if kernel:
            environment["OPENBLAS_CORETYPE"] = kernel
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stderr
        assert tuple(done.stdout.split()) == PINNED, (threads, kernel)
