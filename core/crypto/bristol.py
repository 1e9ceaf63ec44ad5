"""Circuits from Bristol Fashion text (https://nigelsmart.github.io/MPC-Circuits/).

Gates AND, XOR, INV, EQ (constant), EQW (copy) and MAND (many ANDs). Only the form is trusted, never the sizes: every
count is checked against what the text holds before anything of that size is made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from core.crypto.circuits import Circuit, CircuitBuilder, Kind, Wires
from core.errors import LimitError, MalformedError

__all__ = ["MAX_TEXT", "BristolCircuit", "load_bristol"]

MAX_TEXT = 16 << 20
"""Characters."""

_Gate = tuple[Kind, int, int, int]  # kind, a, b, out; in the numbers of the text


@dataclass(frozen=True, slots=True, eq=False)
class BristolCircuit:
    """A circuit and the widths of its values: ``inputs`` in order (the garbler's first), ``outputs``."""

    circuit: Circuit
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def load_bristol(text: str, garbler_values: int = 1) -> BristolCircuit:
    """The circuit of ``text``. The first ``garbler_values`` input values are the garbler's, the others the evaluator's.

    Raises:
        LimitError: the text is longer than MAX_TEXT, or has fewer input values than are to be the garbler's.
        MalformedError: anything else that is not a well-formed circuit, with its line number.
    """
    if len(text) > MAX_TEXT:
        raise LimitError(f"circuit text of {len(text)} characters, at most {MAX_TEXT}", size=len(text), limit=MAX_TEXT)
    lines = _numbers(text)
    counts_line, head = _next(lines, "the counts of gates and wires", 0)
    gate_count, wire_count = _ints(counts_line, head, 2)
    line, head = _next(lines, "the input values", counts_line)
    inputs = _widths(line, head)
    line, head = _next(lines, "the output values", line)
    outputs = _widths(line, head)
    if not (sum(inputs) <= wire_count <= len(text) and sum(outputs) <= wire_count):
        raise MalformedError(f"line {line}: {wire_count} wires do not fit the inputs, outputs and text", line=line)
    if not 0 <= garbler_values <= len(inputs):
        raise LimitError(f"{garbler_values} input values for the garbler, the circuit has {len(inputs)}", values=garbler_values)
    reader = _GateReader(sum(inputs), wire_count)
    found = 0
    for line, words in lines:
        reader.read(line, words)
        found += 1
    if found != gate_count:
        raise MalformedError(f"line {counts_line} announces {gate_count} gates, the text has {found}", line=counts_line)
    garbler = sum(inputs[:garbler_values])
    first_output = wire_count - sum(outputs)
    circuit = _layered(reader, garbler, sum(inputs) - garbler, range(first_output, wire_count), line)
    return BristolCircuit(circuit, inputs, outputs)


class _GateReader:
    """Reads gate lines in the order of the text; a gate may read only wires that an earlier line wrote."""

    def __init__(self, inputs: int, wires: int) -> None:
        self.wires = wires
        self.source: dict[int, int] = {wire: wire for wire in range(inputs)}
        """Wire -> the wire that carries its value (copies are followed)."""
        self.constants: list[int] = []
        self.constant_wires: list[int] = []
        self.gates: list[_Gate] = []

    def read(self, line: int, words: list[str]) -> None:
        kind = words[-1]
        numbers = _ints(line, words[:-1])
        if len(numbers) < 2 or len(numbers) != 2 + numbers[0] + numbers[1]:
            raise MalformedError(f"line {line}: counts of inputs and outputs do not fit the wires listed", line=line)
        ins, outs = numbers[2 : 2 + numbers[0]], numbers[2 + numbers[0] :]
        if kind == "EQ":
            _expect(line, kind, (len(ins), len(outs)), (1, 1))
            if ins[0] > 1:
                raise MalformedError(f"line {line}: EQ takes 0 or 1, got {ins[0]}", line=line)
            self._define(line, outs[0], outs[0])
            self.constants.append(ins[0])
            self.constant_wires.append(outs[0])
            return
        sources = [self._known(line, wire) for wire in ins]
        if kind == "EQW":
            _expect(line, kind, (len(ins), len(outs)), (1, 1))
            self._define(line, outs[0], sources[0])
        elif kind == "INV":
            _expect(line, kind, (len(ins), len(outs)), (1, 1))
            self._gate(line, Kind.INV, sources[0], sources[0], outs[0])
        elif kind in ("AND", "XOR"):
            _expect(line, kind, (len(ins), len(outs)), (2, 1))
            self._gate(line, Kind[kind], sources[0], sources[1], outs[0])
        elif kind == "MAND":
            if not outs or len(ins) != 2 * len(outs):
                raise MalformedError(f"line {line}: MAND has twice as many inputs as outputs", line=line)
            for place, out in enumerate(outs):
                self._gate(line, Kind.AND, sources[place], sources[len(outs) + place], out)
        else:
            raise MalformedError(f"line {line}: unknown gate {kind[:20]!r}", line=line)

    def _gate(self, line: int, kind: Kind, a: int, b: int, out: int) -> None:
        self._define(line, out, out)
        self.gates.append((kind, a, b, out))

    def _known(self, line: int, wire: int) -> int:
        try:
            return self.source[wire]
        except KeyError:
            raise MalformedError(f"line {line}: wire {wire} is read before it is written", line=line) from None

    def _define(self, line: int, wire: int, source: int) -> None:
        if wire >= self.wires:
            raise MalformedError(f"line {line}: wire {wire} of {self.wires}", line=line)
        if wire in self.source:
            raise MalformedError(f"line {line}: wire {wire} is written twice", line=line)
        self.source[wire] = source


def _layered(reader: _GateReader, garbler: int, evaluator: int, outputs: range, last: int) -> Circuit:
    """``last``: the number of the last line, by which every output has to be written."""
    inputs = garbler + evaluator
    build = CircuitBuilder(garbler, evaluator, reader.constants)
    place = np.full(reader.wires, -1, np.int64)
    place[:inputs] = np.arange(inputs)
    place[reader.constant_wires] = inputs + np.arange(len(reader.constants))
    depth = np.zeros(reader.wires, np.int64)
    levels: dict[tuple[int, Kind], list[_Gate]] = {}
    for gate in reader.gates:
        kind, a, b, out = gate
        depth[out] = max(depth[a], depth[b]) + 1
        levels.setdefault((int(depth[out]), kind), []).append(gate)
    for (_, kind), gates in sorted(levels.items()):
        table = np.array([(a, b, out) for _, a, b, out in gates], np.int64)
        left, right = place[table[:, 0]], place[table[:, 1]]
        made = build.gate(kind, left, left[:0] if kind is Kind.INV else right)
        place[table[:, 2]] = made
    wanted: list[int] = []
    for wire in outputs:
        if wire not in reader.source:
            raise MalformedError(f"line {last}: the text ends and output wire {wire} is never written", line=last, wire=wire)
        wanted.append(int(place[reader.source[wire]]))
    chosen: Wires = np.array(wanted, np.int64)
    return build.build(chosen)


def _numbers(text: str) -> Iterator[tuple[int, list[str]]]:
    """Lines that are not empty, as (number from 1, words)."""
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if words:
            yield number, words


def _next(lines: Iterator[tuple[int, list[str]]], what: str, after: int) -> tuple[int, list[str]]:
    try:
        return next(lines)
    except StopIteration:
        raise MalformedError(f"line {after + 1}: the text ends before {what}", line=after + 1) from None


def _ints(line: int, words: list[str], count: int | None = None) -> list[int]:
    if count is not None and len(words) != count:
        raise MalformedError(f"line {line}: {count} numbers wanted, got {len(words)}", line=line)
    if not all(word.isascii() and word.isdigit() and len(word) <= 9 for word in words):
        raise MalformedError(f"line {line}: not a list of numbers below 10^9", line=line)
    return [int(word) for word in words]


def _widths(line: int, words: list[str]) -> tuple[int, ...]:
    numbers = _ints(line, words)
    if numbers[0] != len(numbers) - 1 or not numbers[0] or 0 in numbers[1:]:
        raise MalformedError(f"line {line}: a count and that many widths wanted", line=line)
    return tuple(numbers[1:])


def _expect(line: int, kind: str, got: tuple[int, int], wanted: tuple[int, int]) -> None:
    if got != wanted:
        raise MalformedError(f"line {line}: {kind} has {wanted[0]} inputs and {wanted[1]} output, got {got}", line=line)
