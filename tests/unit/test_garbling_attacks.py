"""A cheating garbler: what the listed output digests stop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from core.crypto.circuits import CircuitBuilder, comparison_circuit
from core.crypto.garbling import UNLISTED, GarbledCircuit, RawLabels, evaluate, garble
from core.errors import CheatingError
from tests.seeded import SeededRng


def bits_of(value: int) -> list[int]:
    return [(value >> place) & 1 for place in range(8)]


def test_labels_without_a_common_offset_do_not_reach_the_garbler(seed: int) -> None:
    """Eight label bits are added up with XOR; the garbler gives each wire an offset of its own.

    Without the digests the one output label would tell him all eight bits: it differs for all 256 values, as the first
    assertion shows. With them at most two values pass, and all others end in the same words. Seen to fail with the
    check in ``evaluate`` taken out: all 256 labels are then returned.
    """
    build = CircuitBuilder(0, 8)
    wire = build.evaluator_wires()[:1]
    for other in build.evaluator_wires()[1:]:
        wire = build.xor(wire, np.array([other]))
    circuit = build.build(wire)
    made = garble(circuit, np.zeros(0, np.uint8), SeededRng(seed).bytes(32))
    rng = SeededRng(seed + 1)
    forged = np.frombuffer(rng.bytes(8 * 2 * 16), np.uint8).reshape(8, 2, 16).copy()
    would_return = {np.bitwise_xor.reduce(forged[np.arange(8), bits_of(value)], axis=0).tobytes() for value in range(256)}
    assert len(would_return) == 256
    messages = []
    for value in range(256):
        with pytest.raises(CheatingError) as caught:
            evaluate(circuit, made.public, forged[np.arange(8), bits_of(value)])
        messages.append((caught.value.message, caught.value.values))
    assert messages == [(UNLISTED, {})] * 256


def test_every_way_to_fail_looks_the_same(seed: int) -> None:
    circuit = comparison_circuit(16, 4)
    made = garble(circuit, np.zeros(64, np.uint8), SeededRng(seed).bytes(32))
    good = made.evaluator_labels[:, 0]
    assert made.decode(evaluate(circuit, made.public, good)) == 16

    def changed(**parts: RawLabels) -> GarbledCircuit:
        return replace(made.public, **parts)  # type: ignore[arg-type]

    tables, labels = made.public.tables.copy(), made.public.garbler_labels.copy()
    tables[:, 3] ^= 1
    labels[0, 5] ^= 1
    digests = made.public.output_digests.copy()
    digests[2, :, 0] ^= 1
    bad_input = good.copy()
    bad_input[7, 3] ^= 4
    for public, mine in [
        (changed(tables=tables), good),
        (changed(garbler_labels=labels), good),
        (changed(output_digests=digests), good),
        (changed(output_digests=made.public.output_digests[::-1].copy()), good),
        (made.public, bad_input),
    ]:
        with pytest.raises(CheatingError) as caught:
            evaluate(circuit, public, mine)
        assert (caught.value.message, caught.value.values) == (UNLISTED, {})


def test_an_output_label_of_another_wire_or_run_is_not_listed(seed: int) -> None:
    """The digest covers the place of the output, so labels cannot be moved between outputs."""
    circuit = comparison_circuit(3, 1)
    rng = SeededRng(seed)
    one, two = (garble(circuit, np.zeros(3, np.uint8), rng.bytes(32)) for _ in range(2))
    keys = evaluate(circuit, one.public, one.evaluator_labels[:, 0])
    with pytest.raises(CheatingError):
        one.decode(keys[::-1])
    with pytest.raises(CheatingError):
        two.decode(keys)
    with pytest.raises(CheatingError, match="not listed"):
        evaluate(circuit, two.public, one.evaluator_labels[:, 0])
