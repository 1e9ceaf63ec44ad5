"""core.crypto.circuits and core.crypto.bristol: the counting circuit, Bristol Fashion, published vectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from core.crypto.bristol import BristolCircuit, load_bristol
from core.crypto.circuits import (
    Bits,
    CircuitBuilder,
    Kind,
    comparison_circuit,
    comparison_counts,
    evaluate_plain,
    label_bits,
    number_of,
)
from core.errors import LimitError, MalformedError

ADDER = """8 11
1 3
1 2

2 1 0 1 3 XOR
1 1 3 4 INV
2 1 3 2 5 XOR
2 1 0 1 6 AND
2 1 2 3 7 AND
1 1 5 8 EQW
2 1 6 7 9 XOR
1 1 8 10 EQW
"""


@pytest.mark.parametrize(("samples", "bits"), [(1, 1), (2, 1), (3, 2), (7, 3), (8, 4), (97, 4), (256, 5), (1000, 4)])
def test_the_circuit_counts_equal_labels(samples: int, bits: int, seed: int) -> None:
    circuit = comparison_circuit(samples, bits)
    random = np.random.default_rng(seed)
    for agree in (0.0, 0.5, 1.0):
        actual = random.integers(0, 2**bits, samples)
        predicted = np.where(random.random(samples) < agree, actual, (actual + 1) % 2**bits)
        count = evaluate_plain(circuit, label_bits(predicted, bits), label_bits(actual, bits))
        assert number_of(count) == int((predicted == actual).sum())
        assert len(count) == samples.bit_length()


@pytest.mark.parametrize("samples", [1, 2, 3, 4, 5, 6, 7, 8, 31, 32, 33, 359, 1023, 10_000])
@pytest.mark.parametrize("bits", [1, 4, 5])
def test_counting_reaches_the_proven_minimum_of_ands(samples: int, bits: int) -> None:
    counts = comparison_counts(samples, bits)
    assert counts.compare_ands == samples * (bits - 1)
    assert counts.count_ands == samples - samples.bit_count()


def test_table_one_of_the_paper_beside_the_real_counts() -> None:
    counts = comparison_counts(10_000, 4)
    assert (counts.paper_or, counts.paper_adder, counts.paper_all) == (10_000, 70_000, 80_000)
    assert (counts.compare_ands, counts.count_ands, counts.all_ands) == (30_000, 9_995, 39_995)
    assert counts.table_bytes == 1_279_840
    assert counts.and_layers == 25


@pytest.mark.parametrize(("samples", "bits"), [(0, 4), (-1, 4), (1 << 21, 4), (10, 0), (10, 17)])
def test_sizes_are_limited(samples: int, bits: int) -> None:
    with pytest.raises(LimitError):
        comparison_circuit(samples, bits)


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(LimitError, match="0 to 15"):
        label_bits(np.array([3, 16]), 4)
    with pytest.raises(LimitError, match="-1"):
        label_bits(np.array([3, -1]), 4)


def test_wrong_inputs_are_refused() -> None:
    circuit = comparison_circuit(3, 2)
    good = np.zeros(6, np.uint8)
    bad: Bits
    for bad in (good[:5], np.zeros(6, np.int64).view(np.uint8)[::4], good + 2, good.reshape(2, 3)):
        with pytest.raises(MalformedError):
            evaluate_plain(circuit, good, bad)
        with pytest.raises(MalformedError):
            evaluate_plain(circuit, bad, good)


def test_a_gate_reads_only_earlier_wires() -> None:
    build = CircuitBuilder(1, 1)
    build.xor(np.array([0]), np.array([2]))
    with pytest.raises(MalformedError, match="layer 0 reads"):
        build.build(np.array([2]))
    with pytest.raises(MalformedError, match="outputs reads"):
        CircuitBuilder(1, 1).build(np.array([2]))


def test_the_digest_tells_circuits_apart() -> None:
    digests = {comparison_circuit(s, b).digest for s, b in [(8, 4), (4, 8), (8, 3), (9, 4)]}
    digests |= {load_bristol(ADDER, n).circuit.digest for n in (0, 1)}
    digests.add(load_bristol(ADDER.replace("2 1 0 1 6 AND", "2 1 0 1 6 XOR")).circuit.digest)
    assert len(digests) == 7


def test_bristol_with_copies_constants_and_many_ands() -> None:
    text = "4 8\n1 2\n1 4\n\n1 1 1 2 EQ\n1 1 0 3 EQ\n4 2 0 2 1 3 4 5 MAND\n1 1 4 6 EQW\n"
    with pytest.raises(MalformedError, match="line 8: the text ends and output wire 7 is never written"):
        load_bristol(text)
    loaded = load_bristol(text.replace("4 8\n1 2\n1 4", "4 7\n1 2\n1 3"))
    for bits in range(4):
        x, y = bits & 1, bits >> 1
        out = evaluate_plain(loaded.circuit, np.array([x, y], np.uint8), np.zeros(0, np.uint8))
        # MAND 0 2 | 1 3: wire 4 = x & y's partner list is (0, 2) with (1, 3)
        assert list(out) == [x & y, 0, x & y]
    assert loaded.circuit.constants == (1, 0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (("8 11", "8"), "line 1: 2 numbers"),
        (("8 11", "9 11"), "line 1 announces 9 gates, the text has 8"),
        (("8 11", "8 999999999"), "line 3: 999999999 wires"),
        (("8 11", "8 1e3"), "line 1: not a list"),
        (("1 3\n", "2 3\n"), "line 2: a count"),
        (("1 3\n", "1 0\n"), "line 2: a count"),
        (("2 1 0 1 3 XOR", "2 1 0 1 11 XOR"), "line 5: wire 11 of 11"),
        (("2 1 0 1 3 XOR", "2 1 0 9 3 XOR"), "line 5: wire 9 is read before"),
        (("2 1 0 1 3 XOR", "2 1 0 1 2 XOR"), "line 5: wire 2 is written twice"),
        (("2 1 0 1 3 XOR", "2 1 0 3 XOR"), "line 5: counts"),
        (("2 1 0 1 3 XOR", "XOR"), "line 5: counts"),
        (("2 1 0 1 3 XOR", "2 1 0 1 3 NAND"), "line 5: unknown gate 'NAND'"),
        (("2 1 0 1 3 XOR", "2 1 0 -1 3 XOR"), "line 5: not a list"),
        (("1 1 3 4 INV", "2 1 3 3 4 INV"), "line 6: INV has 1 inputs"),
        (("1 1 3 4 INV", "1 1 2 4 EQ"), "line 6: EQ takes 0 or 1"),
        (("1 1 3 4 INV", "3 1 0 1 2 4 MAND"), "line 6: MAND"),
        (("2 1 6 7 9 XOR\n", "2 1 6 7 9 XOR"), "line 11"),
    ],
)
def test_a_malformed_file_is_refused_with_its_line(change: tuple[str, str], match: str) -> None:
    assert change[0] in ADDER
    with pytest.raises(MalformedError, match=match):
        load_bristol(ADDER.replace(*change, 1))


def test_an_empty_or_huge_text_is_refused() -> None:
    for text, match in [
        ("", "line 1: the text ends before the counts"),
        ("8 11\n", "line 2: the text ends before the input"),
        ("\n8 11\n1 3\n\n", "line 4: the text ends before the output"),
    ]:
        with pytest.raises(MalformedError, match=match):
            load_bristol(text)
    for values in (-1, 2):
        with pytest.raises(LimitError, match="for the garbler"):
            load_bristol(ADDER, values)
    with pytest.raises(LimitError):
        load_bristol(" " * (16 << 20) + "1")


def split(value: str, width: int) -> Bits:
    return np.array([(int(value, 16) >> place) & 1 for place in range(width)], np.uint8)


def published(shared_data: Path, name: str) -> tuple[BristolCircuit, list[tuple[Bits, Bits, int, bool]]]:
    """A published circuit and its vectors: (garbler's bits, evaluator's bits, output, most significant bit first)."""
    folder = shared_data / "circuits"
    loaded = load_bristol((folder / f"{name}.txt").read_text())
    data = json.loads((folder / f"{name}.vectors.json").read_text())
    cases = []
    for vector in data["vectors"]:
        parts = [split(value, width) for value, width in zip(vector["inp"], loaded.inputs, strict=True)]
        rest = np.concatenate([np.zeros(0, np.uint8), *parts[1:]])
        cases.append((parts[0], rest, int(vector["out"][0], 16), "most" in data["output_bit_order"]))
    return loaded, cases


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "ands"),
    [
        ("adder64", 63), ("sub64", 63), ("neg64", 62), ("mult64", 4033), ("zero_equal", 63), ("FP-eq", 315),
        ("one-bit-full-adder", 3), ("jigg_compare-lt-32-bit-unsigned-old", 150), ("aes_128", 6400), ("sha256", 22573),
    ],
)  # fmt: skip
def test_published_circuits_give_their_vectors(shared_data: Path, name: str, ands: int) -> None:
    loaded, cases = published(shared_data, name)
    assert loaded.circuit.ands == ands
    assert cases
    for garbler, evaluator, wanted, reverse in cases:
        out = evaluate_plain(loaded.circuit, garbler, evaluator)
        assert number_of(out[::-1] if reverse else out) == wanted


def test_layers_are_of_one_kind_and_never_empty() -> None:
    circuit = comparison_circuit(1000, 4)
    assert all(len(layer.a) for layer in circuit.layers)
    assert {layer.kind for layer in circuit.layers} == set(Kind)
