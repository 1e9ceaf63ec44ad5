"""Random circuits: in the clear, garbled, and garbled by the readable twin."""

from __future__ import annotations

import contextlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from core.crypto.bristol import load_bristol
from core.crypto.circuits import Circuit, CircuitBuilder, Kind, comparison_circuit, evaluate_plain, label_bits, number_of
from core.crypto.garbling import GarbledCircuit, evaluate, garble
from core.crypto.garbling_reference import garble_reference
from core.errors import MalformedError
from tests.garbling_vectors import CONSTANTS


@st.composite
def circuits(draw: st.DrawFn) -> Circuit:
    garbler, evaluator = draw(st.integers(0, 4)), draw(st.integers(1, 4))
    build = CircuitBuilder(garbler, evaluator, draw(st.lists(st.integers(0, 1), max_size=2)))
    known = garbler + evaluator + len(build.constants)
    for _ in range(draw(st.integers(0, 6))):
        kind, count = draw(st.sampled_from(Kind)), draw(st.integers(1, 5))
        wires = st.lists(st.integers(0, known - 1), min_size=count, max_size=count)
        a = np.array(draw(wires), np.int64)
        b = a[:0] if kind is Kind.INV else np.array(draw(wires), np.int64)
        build.gate(kind, a, b)
        known += count
    outputs = draw(st.lists(st.integers(0, known - 1), min_size=1, max_size=5))
    return build.build(np.array(outputs, np.int64))


@settings(deadline=None, max_examples=60)
@given(circuit=circuits(), seed=st.binary(min_size=32, max_size=32), data=st.data())
def test_garbled_is_plain_and_both_twins_agree(circuit: Circuit, seed: bytes, data: st.DataObject) -> None:
    def bits(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        return np.array(data.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)), np.uint8)

    garbler_bits, evaluator_bits = bits(circuit.garbler_inputs), bits(circuit.evaluator_inputs)
    made = garble(circuit, garbler_bits, seed)
    public = GarbledCircuit.decode(circuit, made.public.encode())
    keys = evaluate(circuit, public, made.evaluator_labels[np.arange(len(evaluator_bits)), evaluator_bits])
    assert list(made.decode_bits(keys)) == list(evaluate_plain(circuit, garbler_bits, evaluator_bits))
    slow = garble_reference(circuit, seed)
    assert made.public.tables.tobytes() == b"".join(slow.tables)
    assert made.public.output_digests.tobytes() == b"".join(low + high for low, high in slow.output_digests)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_a_damaged_circuit_text_is_refused_or_is_another_circuit(data: st.DataObject) -> None:
    text = list(CONSTANTS)
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.sampled_from("0123456789 \nANDXORIVEQWM-.é"))
    with contextlib.suppress(MalformedError):
        loaded = load_bristol("".join(text))
        bits = [np.zeros(count, np.uint8) for count in (loaded.circuit.garbler_inputs, loaded.circuit.evaluator_inputs)]
        assert len(evaluate_plain(loaded.circuit, *bits)) == sum(loaded.outputs)


@settings(deadline=None, max_examples=60)
@given(pairs=st.lists(st.tuples(st.integers(0, 31), st.integers(0, 31)), min_size=1, max_size=70))
def test_the_comparison_circuit_counts(pairs: list[tuple[int, int]]) -> None:
    predicted, actual = np.array(pairs).T
    circuit = comparison_circuit(len(pairs), 5)
    out = evaluate_plain(circuit, label_bits(predicted, 5), label_bits(actual, 5))
    assert number_of(out) == sum(p == a for p, a in pairs)
