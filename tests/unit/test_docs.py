"""What the documents state in numbers and names is what the code computes and has."""

from __future__ import annotations

import json
import math
import re
from fractions import Fraction
from itertools import combinations, pairwise
from pathlib import Path

import pytest

from bench import committee
from core.chain.rules_tasks import PLAINTEXT_BITS
from core.chain.transaction import Activation
from core.crypto.circuits import comparison_circuit
from core.crypto.homomorphic import PARAMS
from core.params import ChainParams
from core.verification import audit_requester, evaluation_requester, messages
from core.verification.field import T
from core.verification.noise import noise_of_steps
from core.verification.scored_model import ModelFamily

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PROTOCOL = (DOCS / "protocol.md").read_text(encoding="utf-8")
CONSENSUS = (DOCS / "consensus.md").read_text(encoding="utf-8")
PAPER = ModelFamily((256, 16, 16, 10), Activation.SIGMOID, 10)
DIGITS = ModelFamily((64, 16, 10), Activation.SIGMOID, 10)


# Committees


def test_the_tables_of_the_page_are_what_the_program_prints(capsys: pytest.CaptureFixture[str]) -> None:
    committee.main([])
    for table in capsys.readouterr().out.strip().split("\n\n"):
        assert table in CONSENSUS


def test_json_holds_the_same_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--nodes", "0"], ["--simulate", "-1"]):
        with pytest.raises(SystemExit):
            committee.main(wrong)
        assert f"{wrong[0]} is {wrong[1]}" in capsys.readouterr().err
    committee.main(["--json", "--nodes", "300"])
    printed = json.loads(capsys.readouterr().out)
    assert {row["size"] for row in printed["tails"]} == {64, 128, 256}
    found = committee.table_of_sizes(300)
    assert [row["size"] for row in printed["sizes"]] == [row.size for row in found]


def test_the_exact_tail_counts_every_committee() -> None:
    for bad, size, share in ((4, 5, Fraction(1, 3)), (4, 6, Fraction(1, 2)), (1, 7, Fraction(1, 3)), (9, 3, Fraction(1, 3))):
        least = committee.least_dishonest(size, share)
        drawn = list(combinations(range(10), size))
        failed = sum(1 for members in drawn if sum(node < bad for node in members) >= least)
        assert committee.failure(10, bad, size, share) == Fraction(failed, len(drawn))


def test_the_recommended_size_is_the_least() -> None:
    target = committee.TARGET / committee.HEIGHTS_A_YEAR
    for rule in committee.RULES:
        size = committee.smallest(2_000, 300, rule, target)
        assert size is not None
        assert committee.failure(2_000, 300, size, rule.share) <= target
        below = range(max(1, size - 3 * rule.share.denominator), size)
        assert all(committee.failure(2_000, 300, smaller, rule.share) > target for smaller in below)
    assert committee.smallest(100, 40, committee.RULES[0], target) is None


@pytest.mark.parametrize(("bad", "size", "rule"), [(250, 64, 0), (300, 31, 1), (200, 40, 0)])
def test_drawing_agrees_with_the_exact_tail(bad: int, size: int, rule: int) -> None:
    found = committee.simulate(1_000, bad, size, committee.RULES[rule], trials=3_000)
    deviation = math.sqrt(found.exact * (1 - found.exact) / found.trials)
    assert abs(found.failures / found.trials - found.exact) < 5 * deviation


def test_log2_of_what_no_float_holds() -> None:
    assert committee.log2(Fraction(3, 2**5000)) == pytest.approx(math.log2(3) - 5000)
    assert committee.log2(Fraction(2**40)) == 40
    assert committee.log2(Fraction(0)) == -math.inf


# Numbers of protocol.md


def test_parameters_are_the_codes() -> None:
    assert str(T) in PROTOCOL
    assert PARAMS.degree == 8192
    assert all(str(prime) in PROTOCOL for prime in PARAMS.primes)
    for name, value in {
        "EVALUATION_RUNS": (evaluation_requester.EVALUATION_RUNS, 2), "AUDIT_RUNS": (audit_requester.AUDIT_RUNS, 3),
        "EVALUATION_CHECKS": (evaluation_requester.EVALUATION_CHECKS, 3), "EXTRA_ROWS": (messages.EXTRA_ROWS, 2),
        "BATCHES": (evaluation_requester.BATCHES, 2), "ATTEMPTS": (audit_requester.ATTEMPTS, 3),
    }.items():  # fmt: skip
        assert value[0] == value[1], f"{name} has changed: protocol.md has its value in bounds and tables"
        assert f"`{name}`" in PROTOCOL


def test_noise_bounds_are_the_codes() -> None:
    columns = [noise_of_steps(family.dims, family.parameters, rows) for family, rows in ((PAPER, 10_000), (DIGITS, 400))]
    for paper, digits in zip(*columns, strict=True):
        bounds = (paper.worst, paper.likely, digits.worst, digits.likely)
        assert f"| {paper.step} | " + " | ".join(f"2^{math.log2(bound):.1f}" for bound in bounds) + " |" in PROTOCOL


def test_model_bounds_and_circuits_are_the_codes() -> None:
    for family in (PAPER, DIGITS):
        assert all(f"{bound:,}" in PROTOCOL for bound in family.bounds())
        assert f"{family.parameters:,}" in PROTOCOL
    for samples, outputs in ((10_000, 14), (400, 9)):
        circuit = comparison_circuit(samples, 4)
        assert f"{circuit.ands:,} ANDs" in PROTOCOL
        assert len(circuit.outputs) == outputs


def test_leaks_are_what_the_formulas_give() -> None:
    bits = math.ceil(math.log2(T))
    assert bits == PLAINTEXT_BITS == 33
    for family, rows in ((PAPER, 10_000), (DIGITS, 400)):
        assert f"{family.dims[1] * bits * rows:,}" in PROTOCOL
        seen = sum(width * math.log2(2 * bound + 1) for width, bound in zip(family.dims[1:], family.bounds(), strict=True))
        assert f"{seen:,.0f} a row" in PROTOCOL
        assert f"{math.log2(rows + 1):.1f}" in PROTOCOL
    assert f"{ChainParams().max_pools * 2 * 16 * bits:,}" in PROTOCOL
    # Four int8 features in one number modulo t, as section 1.10 says, and not five.
    assert 255**4 < T < 255**5


def test_every_message_is_described() -> None:
    names = [kind.__name__ for kind in messages.Message.__args__]
    assert [name for name in names if f"`{name}`" not in PROTOCOL] == []


def test_windows_are_those_of_the_page() -> None:
    for validators in (4, 7, 16):
        assert f"{ChainParams().min_window_ms(validators):,} ms" in CONSENSUS


# Names and links


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_what_a_page_points_to_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    decisions = {path.name[:4] for path in (DOCS / "adr").glob("*.md")}
    assert set(re.findall(r"docs/adr/(\d{4})", text)) <= decisions
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), target
    for target in re.findall(r"`((?:core|bench|proto|tests|services|node|requester)/[\w./-]+\.(?:py|proto))`", text):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_tables_are_whole(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, (above, below) in enumerate(pairwise(lines), start=1):
        if above.startswith("|") and below.startswith("|"):
            cells = [len(re.findall(r"(?<!\\)\|", line)) for line in (above, below)]
            assert cells[0] == cells[1], f"{page.name}:{number}: {cells[0]} and {cells[1]} bars"
