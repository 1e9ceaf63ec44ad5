"""Boolean circuits in layers, and the circuit that counts right predictions (paper, section IV-B, Fig. 5).

A wire is an integer. Garbler's inputs come first, then the evaluator's, then constants, then the gates in layers;
a layer holds gates of one kind whose inputs all lie before it, and its outputs are consecutive. So a layer is one
numpy operation, in the clear and garbled. XOR and INV are free when garbled; an AND costs 32 bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from core.crypto.hashing import Hasher
from core.errors import LimitError, MalformedError
from core.ids import Digest

__all__ = [
    "MAX_LABEL_BITS", "MAX_SAMPLES", "Bits", "Circuit", "CircuitBuilder", "GateCounts", "Kind", "Layer", "Wires",
    "comparison_circuit", "comparison_counts", "evaluate_plain", "label_bits", "number_of",
]  # fmt: skip

Bits = NDArray[np.uint8]
Wires = NDArray[np.int64]

MAX_SAMPLES = 1 << 20
MAX_LABEL_BITS = 16
_CIRCUIT_DOMAIN = b"pofl/circuit/v1"


class Kind(IntEnum):
    XOR = 0
    AND = 1
    INV = 2


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """Gates ``start + i = kind(a[i], b[i])``. For INV, ``b`` is empty."""

    kind: Kind
    a: Wires
    b: Wires
    start: int

    @property
    def stop(self) -> int:
        return self.start + len(self.a)


@dataclass(frozen=True, eq=False)
class Circuit:
    """A checked circuit; MalformedError from the constructor if a gate reads a wire at or after its own layer."""

    garbler_inputs: int
    evaluator_inputs: int
    constants: tuple[int, ...]
    layers: tuple[Layer, ...]
    outputs: Wires

    def __post_init__(self) -> None:
        known = self.first_gate
        for number, layer in enumerate(self.layers):
            wanted = 0 if layer.kind is Kind.INV else len(layer.a)
            if layer.start != known or len(layer.b) != wanted or not len(layer.a):
                raise MalformedError(f"layer {number} does not continue at wire {known}", layer=number)
            _check_wires(layer.a, known, f"layer {number}")
            _check_wires(layer.b, known, f"layer {number}")
            known = layer.stop
        _check_wires(self.outputs, known, "outputs")

    @property
    def first_gate(self) -> int:
        return self.garbler_inputs + self.evaluator_inputs + len(self.constants)

    @functools.cached_property
    def wires(self) -> int:
        return self.layers[-1].stop if self.layers else self.first_gate

    @functools.cached_property
    def ands(self) -> int:
        return sum(len(layer.a) for layer in self.layers if layer.kind is Kind.AND)

    @functools.cached_property
    def digest(self) -> Digest:
        """Digest of the whole circuit: sizes, constants, every gate, outputs."""
        hasher = Hasher(_CIRCUIT_DOMAIN, 3 + 3 * len(self.layers))
        sizes = [self.garbler_inputs, self.evaluator_inputs, len(self.layers)]
        hasher.add(np.array(sizes, "<u8").tobytes())
        hasher.add(bytes(self.constants))
        for layer in self.layers:
            hasher.add(bytes([layer.kind]))
            hasher.add(layer.a.astype("<u4").tobytes())
            hasher.add(layer.b.astype("<u4").tobytes())
        hasher.add(self.outputs.astype("<u4").tobytes())
        return hasher.digest()


class CircuitBuilder:
    """Appends layers. Every method takes wire arrays of equal length and gives the wires of the results."""

    def __init__(self, garbler_inputs: int, evaluator_inputs: int, constants: Sequence[int] = ()) -> None:
        self.garbler_inputs = garbler_inputs
        self.evaluator_inputs = evaluator_inputs
        self.constants = tuple(constants)
        self._layers: list[Layer] = []
        self._next = garbler_inputs + evaluator_inputs + len(self.constants)

    def garbler_wires(self) -> Wires:
        return np.arange(self.garbler_inputs, dtype=np.int64)

    def evaluator_wires(self) -> Wires:
        return np.arange(self.garbler_inputs, self.garbler_inputs + self.evaluator_inputs, dtype=np.int64)

    def xor(self, a: Wires, b: Wires) -> Wires:
        return self.gate(Kind.XOR, a, b)

    def and_(self, a: Wires, b: Wires) -> Wires:
        return self.gate(Kind.AND, a, b)

    def inv(self, a: Wires) -> Wires:
        return self.gate(Kind.INV, a, a[:0])

    def build(self, outputs: Wires) -> Circuit:
        return Circuit(self.garbler_inputs, self.evaluator_inputs, self.constants, tuple(self._layers), outputs)

    def gate(self, kind: Kind, a: Wires, b: Wires) -> Wires:
        """One layer; ``b`` is empty for INV. No gates, no layer."""
        if not len(a):
            return a
        layer = Layer(kind, np.ascontiguousarray(a), np.ascontiguousarray(b), self._next)
        self._layers.append(layer)
        self._next = layer.stop
        return np.arange(layer.start, layer.stop, dtype=np.int64)


def evaluate_plain(circuit: Circuit, garbler_bits: Bits, evaluator_bits: Bits) -> Bits:
    """The output bits in the clear. Inputs: uint8 arrays of 0 and 1."""
    values = np.zeros(circuit.wires, np.uint8)
    values[: circuit.first_gate] = np.concatenate(
        [
            check_bits(garbler_bits, circuit.garbler_inputs, "the garbler's input"),
            check_bits(evaluator_bits, circuit.evaluator_inputs, "the evaluator's input"),
            np.array(circuit.constants, np.uint8),
        ]
    )
    for layer in circuit.layers:
        a = values[layer.a]
        if layer.kind is Kind.INV:
            values[layer.start : layer.stop] = a ^ 1
        elif layer.kind is Kind.AND:
            values[layer.start : layer.stop] = a & values[layer.b]
        else:
            values[layer.start : layer.stop] = a ^ values[layer.b]
    return values[circuit.outputs]


def check_bits(bits: Bits, count: int, name: str) -> Bits:
    """``bits`` itself; MalformedError unless it is ``count`` times 0 or 1 as uint8."""
    if bits.dtype != np.uint8 or bits.shape != (count,):
        raise MalformedError(f"{name} is uint8[{count}], got {bits.dtype}{list(bits.shape)}", wanted=count)
    if bits.size and int(bits.max()) > 1:
        raise MalformedError(f"{name} holds 0 and 1 only, got {int(bits.max())}", value=int(bits.max()))
    return bits


def label_bits(labels: NDArray[np.integer], bits: int) -> Bits:
    """Labels as input bits of the comparison circuit: bit j of label i at position ``i * bits + j``.

    Raises:
        LimitError: a label is negative or does not fit ``bits`` bits.
    """
    wide = labels.astype(np.int64)
    if wide.size and (int(wide.min()) < 0 or int(wide.max()) >> bits):
        raise LimitError(f"labels run from {int(wide.min())} to {int(wide.max())}; {bits} bits hold 0 to {2**bits - 1}")
    return ((wide[:, None] >> np.arange(bits)) & 1).astype(np.uint8).reshape(-1)


def number_of(bits: Bits) -> int:
    """Output bits, least significant first, as an integer."""
    return sum(int(bit) << place for place, bit in enumerate(bits))


@functools.lru_cache(maxsize=4)
def comparison_circuit(samples: int, bits: int) -> Circuit:
    """How many of ``samples`` predicted labels equal the actual ones (paper, Fig. 5 and 6).

    Garbler's input: predicted labels; evaluator's: actual labels, both as ``label_bits`` lays them out. Output: N,
    least significant bit first, ``samples.bit_length()`` bits.

    A sample costs ``bits - 1`` ANDs. Counting costs ``I - popcount(I)``, which is the proven minimum (Boyar and
    Peralta, "Tight bounds for the multiplicative complexity of symmetric functions", 2008).
    """
    if not 1 <= samples <= MAX_SAMPLES:
        raise LimitError(f"1 to {MAX_SAMPLES} samples, got {samples}", samples=samples, limit=MAX_SAMPLES)
    if not 1 <= bits <= MAX_LABEL_BITS:
        raise LimitError(f"labels of 1 to {MAX_LABEL_BITS} bits, got {bits}", bits=bits, limit=MAX_LABEL_BITS)
    build = CircuitBuilder(samples * bits, samples * bits)
    same = build.inv(build.xor(build.garbler_wires(), build.evaluator_wires())).reshape(samples, bits)
    while same.shape[1] > 1:
        half = same.shape[1] // 2
        both = build.and_(same[:, :half].reshape(-1), same[:, half : 2 * half].reshape(-1)).reshape(samples, half)
        same = np.concatenate([both, same[:, 2 * half :]], axis=1)
    return build.build(_count(build, same[:, 0]))


def _count(build: CircuitBuilder, wires: Wires) -> Wires:
    """The number of ones among ``wires``, in binary, least significant first.

    Column j holds bits of weight 2^j. A full adder takes three of one column and leaves one there and one in the next,
    for one AND (carry = ((a ^ c) & (b ^ c)) ^ c). Over the whole run column j sees ``n >> j`` bits, so exactly the
    columns where that is even need one half adder; every other bit goes through full adders.
    """
    total = len(wires)
    columns: list[Wires] = [wires] + [wires[:0]] * (total.bit_length() - 1)
    needs_half = [(total >> place) % 2 == 0 for place in range(len(columns))]
    while any(len(column) > 1 for column in columns):
        full = [column[: 3 * (len(column) // 3)].reshape(3, -1) for column in columns]
        rest = [column[3 * (len(column) // 3) :] for column in columns]
        halves = [half and len(left) == 2 for half, left in zip(needs_half, rest, strict=True)]
        half_in = [left for left, now in zip(rest, halves, strict=True) if now]
        a, b, c = np.concatenate(full, axis=1)
        x = np.array([pair[0] for pair in half_in], np.int64)
        y = np.array([pair[1] for pair in half_in], np.int64)
        n = len(a)
        mixed = build.xor(np.concatenate([a, b, x]), np.concatenate([c, c, y]))
        products = build.and_(np.concatenate([mixed[:n], x]), np.concatenate([mixed[n : 2 * n], y]))
        done = build.xor(np.concatenate([products[:n], mixed[:n]]), np.concatenate([c, b]))
        carries, sums = done[:n], done[n:]
        half_sums, half_carries = mixed[2 * n :], products[n:]
        columns = _regroup([part.shape[1] for part in full], rest, halves, (sums, carries), (half_sums, half_carries))
        needs_half = [half and not now for half, now in zip(needs_half, halves, strict=True)]
    return np.concatenate(columns)


def _regroup(
    sizes: list[int], rest: list[Wires], halves: list[bool], full: tuple[Wires, Wires], half: tuple[Wires, Wires]
) -> list[Wires]:
    """The columns after one layer of adders; ``full`` and ``half`` are (sums, carries) in column order."""
    columns: list[Wires] = []
    carried: list[Wires] = []
    taken = taken_half = 0
    for size, left, now in zip(sizes, rest, halves, strict=True):
        kept = half[0][taken_half : taken_half + 1] if now else left
        columns.append(np.concatenate([*carried, kept, full[0][taken : taken + size]]))
        carried = [full[1][taken : taken + size]]
        if now:
            carried.append(half[1][taken_half : taken_half + 1])
            taken_half += 1
        taken += size
    return columns


@dataclass(frozen=True, slots=True)
class GateCounts:
    """Non-free gates: the paper's Table I beside what this circuit has."""

    paper_or: int
    paper_adder: int
    paper_all: int
    compare_ands: int
    count_ands: int
    all_ands: int
    and_layers: int
    table_bytes: int


def comparison_counts(samples: int, bits: int) -> GateCounts:
    """Table I (I ORs and ``I * ceil(log2 I) / 2`` for the adders) and the real counts.

    An OR per sample is what Table I has for comparing labels; l-bit equality needs l - 1 ANDs (errata W11).
    """
    circuit = comparison_circuit(samples, bits)
    adders = samples * (samples - 1).bit_length() // 2
    compare = samples * (bits - 1)
    layers = sum(layer.kind is Kind.AND for layer in circuit.layers)
    counting = circuit.ands - compare
    return GateCounts(
        samples, adders, samples + adders, compare, counting, circuit.ands, layers, 32 * circuit.ands
    )  # fmt: skip


def _check_wires(wires: Wires, limit: int, where: str) -> None:
    if wires.dtype != np.int64 or wires.ndim != 1:
        raise MalformedError(f"{where}: wires are int64[n], got {wires.dtype}{list(wires.shape)}")
    if wires.size and (int(wires.min()) < 0 or int(wires.max()) >= limit):
        raise MalformedError(f"{where} reads a wire outside 0 to {limit - 1}", limit=limit)
