"""Makes tests/vectors/garbling.json with the readable twin: ``python -m tests.garbling_vectors``.

The file is committed; a change of any byte of a garbling is a change of protocol and shows up as a diff there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

from core.crypto.bristol import load_bristol
from core.crypto.circuits import Circuit, comparison_circuit
from core.crypto.garbling_reference import evaluate_reference, garble_reference

FILE = Path(__file__).parent / "vectors" / "garbling.json"

CONSTANTS = "5 9\n2 2 1\n1 2\n\n1 1 1 3 EQ\n2 1 0 2 4 XOR\n2 1 4 3 5 AND\n4 2 5 1 2 0 6 7 MAND\n1 1 7 8 INV\n"
"""A Bristol circuit with a constant, a MAND and an INV; values: 2 garbler bits, 1 evaluator bit."""


class Vector(TypedDict):
    circuit: str
    circuit_digest: str
    seed: str
    garbler_bits: list[int]
    evaluator_bits: list[int]
    aes_key: str
    offset: str
    tables: str
    garbler_labels: str
    evaluator_labels: list[list[str]]
    constant_labels: str
    output_digests: list[list[str]]
    output_keys: list[str]


def circuit_of(name: str) -> Circuit:
    if name == "constants":
        return load_bristol(CONSTANTS).circuit
    samples, bits = (int(part) for part in name.removeprefix("comparison-").split("x"))
    return comparison_circuit(samples, bits)


def make(name: str, seed: bytes, garbler_bits: list[int], evaluator_bits: list[int]) -> Vector:
    circuit = circuit_of(name)
    made = garble_reference(circuit, seed)
    split = circuit.garbler_inputs + circuit.evaluator_inputs
    bits = [*garbler_bits, *evaluator_bits, *circuit.constants]
    active = [made.label(wire, bit) for wire, bit in enumerate(bits)]
    keys = evaluate_reference(circuit, made.aes_key, made.tables, active, made.output_digests)
    return Vector(
        circuit=name,
        circuit_digest=circuit.digest.hex(),
        seed=seed.hex(),
        garbler_bits=garbler_bits,
        evaluator_bits=evaluator_bits,
        aes_key=made.aes_key.hex(),
        offset=made.offset.hex(),
        tables=b"".join(made.tables).hex(),
        garbler_labels=b"".join(active[: circuit.garbler_inputs]).hex(),
        evaluator_labels=[
            [made.label(wire, 0).hex(), made.label(wire, 1).hex()] for wire in range(circuit.garbler_inputs, split)
        ],
        constant_labels=b"".join(active[split:]).hex(),
        output_digests=[[low.hex(), high.hex()] for low, high in made.output_digests],
        output_keys=[key.hex() for key in keys],
    )


def all_vectors() -> list[Vector]:
    return [
        make("comparison-1x1", bytes(range(32)), [1], [1]),
        make("comparison-3x2", bytes(range(1, 33)), [0, 1, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0]),
        make("comparison-6x3", b"\x5a" * 32, [1, 0, 1] * 6, [1, 0, 1, 0, 0, 1] * 3),
        make("constants", b"\xc3" * 32, [0, 1], [1]),
    ]


if __name__ == "__main__":
    FILE.write_text(json.dumps(all_vectors(), indent=1) + "\n")
