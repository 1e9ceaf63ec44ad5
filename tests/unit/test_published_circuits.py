"""The garbling engine is general: published circuits, garbled, give their published vectors, and the readable twin agrees."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from core.crypto.bristol import load_bristol
from core.crypto.circuits import Bits, Circuit, number_of
from core.crypto.garbling import GarbledCircuit, Garbling, evaluate, garble
from core.crypto.garbling_reference import evaluate_reference, garble_reference
from core.errors import CheatingError, MalformedError
from tests.seeded import SeededRng
from tests.unit.test_circuits import published

SMALL = [
    "adder64", "sub64", "neg64", "zero_equal", "FP-eq", "one-bit-full-adder", "jigg_compare-lt-32-bit-unsigned-old",
]  # fmt: skip
LARGE = [("mult64", 5), ("aes_128", 8), ("sha256", 2)]
"""With how many of their vectors; in the clear, all of them are tried in test_circuits."""

pytestmark = pytest.mark.shared


def through_the_wire(circuit: Circuit, garbler: Bits, evaluator: Bits, seed: bytes) -> tuple[Garbling, Bits]:
    """Both sides, with the garbled circuit as bytes in between; the output bits, least significant first."""
    made = garble(circuit, garbler, seed)
    public = GarbledCircuit.decode(circuit, made.public.encode())
    labels = np.ascontiguousarray(made.evaluator_labels[np.arange(len(evaluator)), evaluator])
    return made, made.decode_bits(evaluate(circuit, public, labels))


@pytest.mark.parametrize(("name", "count"), [*((name, 1000) for name in SMALL), *LARGE])
def test_garbled_circuits_give_their_vectors(shared_data: Path, name: str, count: int, seed: int) -> None:
    loaded, cases = published(shared_data, name)
    rng = SeededRng(seed)
    assert cases
    for garbler, evaluator, wanted, reverse in cases[:count]:
        _, out = through_the_wire(loaded.circuit, garbler, evaluator, rng.bytes(32))
        assert number_of(out[::-1] if reverse else out) == wanted


@pytest.mark.parametrize("name", [*SMALL, "mult64", "aes_128"])
def test_the_readable_twin_garbles_and_evaluates_the_same(shared_data: Path, name: str, seed: int) -> None:
    """Same tables and digests gate by gate; and the twin's evaluator, on the fast garbling, finds the vector's output."""
    loaded, cases = published(shared_data, name)
    circuit, seed_bytes = loaded.circuit, SeededRng(seed).bytes(32)
    garbler, evaluator, wanted, reverse = cases[-1]
    made, out = through_the_wire(circuit, garbler, evaluator, seed_bytes)
    slow = garble_reference(circuit, seed_bytes)
    assert made.public.tables.tobytes() == b"".join(slow.tables)
    assert made.public.output_digests.tobytes() == b"".join(low + high for low, high in slow.output_digests)
    bits = [*garbler.tolist(), *evaluator.tolist(), *circuit.constants]
    inputs = [slow.label(wire, bit) for wire, bit in enumerate(bits)]
    keys = evaluate_reference(circuit, slow.aes_key, slow.tables, inputs, slow.output_digests)
    found = [int(key == slow.label(int(wire), 1)) for key, wire in zip(keys, circuit.outputs, strict=True)]
    assert found == out.tolist()
    assert number_of(np.array(found[::-1] if reverse else found, np.uint8)) == wanted


def test_one_changed_table_is_noticed(shared_data: Path, seed: int) -> None:
    """Fails if keys that no digest lists were returned: all tables are spoiled, so nothing listed comes out."""
    loaded, cases = published(shared_data, "adder64")
    garbler, evaluator, _, _ = cases[-1]
    made = garble(loaded.circuit, garbler, SeededRng(seed).bytes(32))
    labels = np.ascontiguousarray(made.evaluator_labels[np.arange(len(evaluator)), evaluator])
    data = bytearray(made.public.encode())
    offset = bytes(data).index(made.public.tables.tobytes())
    for place in range(offset, offset + made.public.tables.nbytes):
        data[place] ^= 0x55
    with pytest.raises(CheatingError):
        evaluate(loaded.circuit, GarbledCircuit.decode(loaded.circuit, bytes(data)), labels)


@pytest.mark.parametrize("name", ["adder64", "FP-eq", "aes_128"])
def test_damage_to_a_published_text_is_refused_with_its_line(shared_data: Path, name: str) -> None:
    """A line cut short, doubled, left out, or with another wire, at the first, a middle and the last gate."""
    lines = (shared_data / "circuits" / f"{name}.txt").read_text().splitlines()
    gates = [number for number, line in enumerate(lines) if line.split()[-1:] and line.split()[-1].isalpha()]
    for place in (gates[0], gates[len(gates) // 2], gates[-1]):
        words = lines[place].split()
        for damaged, line in [
            ([" ".join(words[:-2]) + f" {words[-1]}"], place + 1),
            ([lines[place], lines[place]], place + 2),
            ([lines[place].replace(words[-2], "99999999")], place + 1),
            ([lines[place].replace(words[-1], "NOR")], place + 1),
            ([lines[place].replace(words[-1], "")], place + 1),
        ]:
            with pytest.raises(MalformedError, match=f"line {line}: "):
                load_bristol("\n".join([*lines[:place], *damaged, *lines[place + 1 :]]))
        with pytest.raises(MalformedError, match="line "):
            load_bristol("\n".join([*lines[:place], *lines[place + 1 :]]))
