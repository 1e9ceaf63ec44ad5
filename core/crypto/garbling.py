"""Half-gates garbling of layered circuits: what the pool sends and the requester evaluates (paper, section IV-B).

Every wire has a zero label and a one label; one label = zero label ⊕ offset, so XOR and INV cost nothing (Kolesnikov
and Schneider 2008). The offset's lowest bit is 1, so a label's lowest bit, its *colour*, tells the evaluator which row
to use and says nothing about the value. An AND is two half-gates of one ciphertext each (Zahur, Rosulek, Evans 2015):

    T_G = H(A⁰, 2g) ⊕ H(A¹, 2g) ⊕ p_b·Δ            W_G = H(A⁰, 2g) ⊕ p_a·T_G
    T_E = H(B⁰, 2g+1) ⊕ H(B¹, 2g+1) ⊕ A⁰           W_E = H(B⁰, 2g+1) ⊕ p_b·(T_E ⊕ A⁰)        C⁰ = W_G ⊕ W_E

with p = colour of the zero label, g = number of the AND in the circuit. H is core.crypto.prg.TweakHash.

The garbler may lie about the circuit. What an evaluator's reply can then tell is bounded: with the tables come, per
output wire, the digests of its two labels in sorted order; the evaluator returns labels only if all are listed, and
otherwise aborts always in the same words. The garbler decodes by whole labels, never by a colour.

core.crypto.garbling_reference is the readable twin, one gate at a time; both give the same bytes.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from core.crypto import prg
from core.crypto.circuits import Bits, Circuit, Kind, check_bits
from core.crypto.hashing import DIGEST_SIZE, digest, expand
from core.crypto.prg import LABEL_SIZE, Labels, TweakHash
from core.errors import CheatingError, LimitError, MalformedError
from core.ids import Digest

__all__ = [
    "LABEL_SIZE", "ROWS_SIZE", "SEED_SIZE", "UNLISTED", "GarbledCircuit", "Garbling", "RawLabels", "evaluate", "garble",
    "output_key_digest",
]  # fmt: skip

RawLabels = NDArray[np.uint8]
"""uint8 (..., 16)."""

SEED_SIZE = 32
ROWS_SIZE = 32
"""Bytes of table of one AND."""
UNLISTED = "an output label is not listed: the garbled circuit is refused and its run is used up"
"""The one message with which an evaluation fails; it says neither which output nor what was seen."""

_SEED_DOMAIN = b"pofl/garbling/seed/v1"
_PUBLIC_DOMAIN = b"pofl/garbling/circuit/v1"
_OUTPUT_DOMAIN = b"pofl/garbling/output/v1"


@dataclass(frozen=True, slots=True, eq=False)
class GarbledCircuit:
    """What the garbler sends. Nothing in it may be used for a second evaluation.

    ``tables``: uint8 (ANDs, 32), T_G ‖ T_E in the order of the circuit. ``garbler_labels``: uint8 (n, 16), the active
    labels of the garbler's input bits. ``constant_labels``: uint8 (n, 16), those of the circuit's constants.
    ``output_digests``: uint8 (outputs, 2, 32), sorted. ``aes_key``: 16 bytes.
    """

    circuit_digest: Digest
    aes_key: bytes
    tables: RawLabels
    garbler_labels: RawLabels
    constant_labels: RawLabels
    output_digests: NDArray[np.uint8]

    def encode(self) -> bytes:
        """The canonical bytes. All lengths follow from the circuit, so there is no framing."""
        parts = (self.tables, self.garbler_labels, self.constant_labels, self.output_digests)
        return b"".join([self.circuit_digest, self.aes_key, *(part.tobytes() for part in parts)])

    @property
    def digest(self) -> Digest:
        """What the block header and the receipt name."""
        return digest(_PUBLIC_DOMAIN, self.encode())

    @classmethod
    def encoded_size(cls, circuit: Circuit) -> int:
        """Bytes of every garbling of ``circuit``; the limit to give to whatever reads from a peer."""
        return DIGEST_SIZE + LABEL_SIZE + sum(_sizes(circuit))

    @classmethod
    def decode(cls, circuit: Circuit, data: bytes) -> GarbledCircuit:
        """The garbling of ``circuit`` in a peer's bytes.

        Raises:
            LimitError: longer than a garbling of this circuit.
            MalformedError: shorter, of another circuit, or with output digests out of order.
        """
        wanted = cls.encoded_size(circuit)
        if len(data) > wanted:
            raise LimitError(f"garbled circuit of {len(data)} bytes, this one has {wanted}", size=len(data), limit=wanted)
        if len(data) < wanted:
            raise MalformedError(f"garbled circuit of {len(data)} bytes, this one has {wanted}", size=len(data))
        if data[:DIGEST_SIZE] != circuit.digest:
            raise MalformedError("the garbled circuit is of another circuit than the one agreed on")
        start = DIGEST_SIZE + LABEL_SIZE
        parts = []
        for size in _sizes(circuit):
            parts.append(np.frombuffer(data, np.uint8, size, start))
            start += size
        digests = parts[3].reshape(-1, 2, DIGEST_SIZE)
        for wire, (low, high) in enumerate(digests):
            if low.tobytes() >= high.tobytes():
                raise MalformedError(f"the digests of output {wire} are not two different ones in order", wire=wire)
        return cls(
            Digest(data[:DIGEST_SIZE]),
            data[DIGEST_SIZE : DIGEST_SIZE + LABEL_SIZE],
            parts[0].reshape(-1, ROWS_SIZE),
            parts[1].reshape(-1, LABEL_SIZE),
            parts[2].reshape(-1, LABEL_SIZE),
            digests,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Garbling:
    """The garbler's whole knowledge. ``evaluator_labels``: uint8 (n, 2, 16), (zero, one) for the oblivious transfer."""

    public: GarbledCircuit
    evaluator_labels: RawLabels = field(repr=False)
    output_labels: RawLabels = field(repr=False)

    def decode_bits(self, output_keys: RawLabels) -> Bits:
        """Output bits of the labels (outputs, 16) that the evaluator returned.

        Raises:
            MalformedError: another shape.
            CheatingError: a label is neither of its wire's two. Every wire is compared before this is said.
        """
        _check_labels(output_keys, len(self.output_labels), "output labels")
        ones = np.zeros(len(output_keys), np.uint8)
        known = True
        for wire, (zero, one) in enumerate(self.output_labels):
            got = output_keys[wire].tobytes()
            is_zero = hmac.compare_digest(got, zero.tobytes())
            is_one = hmac.compare_digest(got, one.tobytes())
            ones[wire] = is_one
            known &= is_zero or is_one
        if not known:
            raise CheatingError("a returned output label is none of this garbling: the evaluator did not evaluate it")
        return ones

    def decode(self, output_keys: RawLabels) -> int:
        """The output as an integer, least significant wire first: ``N`` of the comparison circuit. Errors as above."""
        return sum(int(bit) << place for place, bit in enumerate(self.decode_bits(output_keys)))


def garble(circuit: Circuit, garbler_bits: Bits, seed: bytes) -> Garbling:
    """Garbles ``circuit``, the garbler's input bits (uint8 0 or 1) included. Same arguments, same bytes.

    ``seed``: 32 secret bytes, used for one run only; a second use with other bits shows the offset.

    Raises:
        MalformedError: bits or seed of another length or kind.
    """
    if len(seed) != SEED_SIZE:
        raise MalformedError(f"a garbling seed has {SEED_SIZE} bytes, got {len(seed)}", size=len(seed))
    check_bits(garbler_bits, circuit.garbler_inputs, "the garbler's input")
    aes_key, offset, zeros = start_labels(circuit, seed)
    labels = np.empty((circuit.wires, 2), np.dtype("<u8"))
    labels[: circuit.first_gate] = zeros
    tables = np.empty((circuit.ands, 2, 2), np.dtype("<u8"))
    hash_ = TweakHash(aes_key)
    done = 0
    for layer in circuit.layers:
        a = labels.take(layer.a, axis=0)
        if layer.kind is Kind.INV:
            a ^= offset
        elif layer.kind is Kind.XOR:
            a ^= labels.take(layer.b, axis=0)
        else:
            count = len(layer.a)
            a = _garble_ands(hash_, offset, a, labels.take(layer.b, axis=0), done, tables[done : done + count])
            done += count
        labels[layer.start : layer.stop] = a
    split = circuit.garbler_inputs + circuit.evaluator_inputs
    outputs = _both(labels[circuit.outputs], offset)
    public = GarbledCircuit(
        circuit.digest,
        aes_key,
        prg.as_bytes(tables).reshape(-1, ROWS_SIZE),
        prg.as_bytes(_active(zeros[: circuit.garbler_inputs], garbler_bits, offset)),
        prg.as_bytes(_active(zeros[split:], np.array(circuit.constants, np.uint8), offset)),
        _listed(outputs),
    )
    return Garbling(public, _both(zeros[circuit.garbler_inputs : split], offset), outputs)


def evaluate(circuit: Circuit, public: GarbledCircuit, evaluator_labels: RawLabels) -> RawLabels:
    """The output labels, uint8 (outputs, 16), of the evaluator's labels (n, 16) from the oblivious transfer.

    Raises:
        MalformedError: labels of another shape, or a garbling of another circuit.
        CheatingError: with the message UNLISTED and nothing else, if any output label is not listed.
    """
    _check_labels(evaluator_labels, circuit.evaluator_inputs, "evaluator's labels")
    if public.circuit_digest != circuit.digest:
        raise MalformedError("the garbled circuit is of another circuit than the one agreed on")
    labels = np.empty((circuit.wires, 2), np.dtype("<u8"))
    inputs = (public.garbler_labels, evaluator_labels, public.constant_labels)
    labels[: circuit.first_gate] = np.concatenate([prg.as_labels(part) for part in inputs])
    tables = prg.as_labels(public.tables).reshape(-1, 2, 2)
    hash_ = TweakHash(public.aes_key)
    done = 0
    for layer in circuit.layers:
        a = labels.take(layer.a, axis=0)
        if layer.kind is Kind.XOR:
            a ^= labels.take(layer.b, axis=0)
        elif layer.kind is Kind.AND:
            count = len(layer.a)
            a = _evaluate_ands(hash_, a, labels.take(layer.b, axis=0), done, tables[done : done + count])
            done += count
        labels[layer.start : layer.stop] = a
    outputs = prg.as_bytes(labels[circuit.outputs])
    listed = True
    for wire, (label, digests) in enumerate(zip(outputs, public.output_digests, strict=True)):
        found = output_key_digest(wire, label.tobytes())
        low, high = (hmac.compare_digest(found, known.tobytes()) for known in digests)
        listed &= low | high
    if not listed:
        raise CheatingError(UNLISTED)
    return outputs


def output_key_digest(wire: int, label: bytes) -> Digest:
    """SHA-256 of an output label and its place among the outputs."""
    return digest(_OUTPUT_DOMAIN, wire.to_bytes(4, "big"), label)


def start_labels(circuit: Circuit, seed: bytes) -> tuple[bytes, Labels, Labels]:
    """AES key, offset (2,) with lowest bit 1, and the zero labels of inputs and constants, all from the seed."""
    derived = expand(_SEED_DOMAIN, 64, seed, circuit.digest)
    offset = np.frombuffer(derived[16:32], np.dtype("<u8")).copy()
    offset[0] |= np.uint64(1)
    return derived[:16], offset, prg.random_labels(derived[32:], circuit.first_gate)


def _garble_ands(hash_: TweakHash, offset: Labels, a: Labels, b: Labels, first: int, tables: Labels) -> Labels:
    """Zero labels of one layer of ANDs; writes T_G and T_E into ``tables``."""
    n = len(a)
    even = _tweaks(first, n)
    odd = even + np.uint64(1)
    hashed = hash_(np.concatenate([a, a ^ offset, b, b ^ offset]), np.concatenate([even, even, odd, odd]))
    a0, a1, b0, b1 = hashed.reshape(4, n, 2)
    colour_a, colour_b = _masks(a), _masks(b)
    t_g = np.bitwise_xor(a0, a1, out=a1)
    t_g ^= colour_b & offset
    t_e = np.bitwise_xor(b0, b1, out=b1)
    tables[:, 0] = t_g
    np.bitwise_xor(t_e, a, out=tables[:, 1])
    t_g &= colour_a
    t_e &= colour_b  # p_b·(T_E ⊕ A⁰) = p_b·(H(B⁰) ⊕ H(B¹))
    a0 ^= t_g
    b0 ^= t_e
    a0 ^= b0
    return a0


def _evaluate_ands(hash_: TweakHash, a: Labels, b: Labels, first: int, tables: Labels) -> Labels:
    """Active labels: C = H(A, 2g) ⊕ s_a·T_G ⊕ H(B, 2g+1) ⊕ s_b·(T_E ⊕ A), s = colour of the active label."""
    n = len(a)
    even = _tweaks(first, n)
    hashed = hash_(np.concatenate([a, b]), np.concatenate([even, even + np.uint64(1)]))
    out = hashed[:n] ^ hashed[n:]
    out ^= tables[:, 0] & _masks(a)
    out ^= (tables[:, 1] ^ a) & _masks(b)
    return out


def _tweaks(first: int, count: int) -> NDArray[np.uint64]:
    return np.arange(2 * first, 2 * (first + count), 2, dtype=np.uint64)


def _masks(labels: Labels) -> NDArray[np.uint64]:
    """(n, 1): all ones where the colour is 1, else zero."""
    colours: NDArray[np.uint64] = labels[:, :1] & np.uint64(1)
    return np.negative(colours)


def _active(zeros: Labels, bits: Bits, offset: Labels) -> Labels:
    return zeros ^ (np.negative(bits.astype(np.uint64))[:, None] & offset)


def _both(zeros: Labels, offset: Labels) -> RawLabels:
    return prg.as_bytes(np.stack([zeros, zeros ^ offset], axis=1))


def _listed(outputs: RawLabels) -> NDArray[np.uint8]:
    pairs = [
        sorted(output_key_digest(wire, label.tobytes()) for label in pair) for wire, pair in enumerate(outputs)
    ]  # fmt: skip
    return np.frombuffer(b"".join(low + high for low, high in pairs), np.uint8).reshape(-1, 2, DIGEST_SIZE)


def _sizes(circuit: Circuit) -> tuple[int, int, int, int]:
    return (
        ROWS_SIZE * circuit.ands,
        LABEL_SIZE * circuit.garbler_inputs,
        LABEL_SIZE * len(circuit.constants),
        2 * DIGEST_SIZE * len(circuit.outputs),
    )


def _check_labels(labels: RawLabels, count: int, name: str) -> None:
    if labels.dtype != np.uint8 or labels.shape != (count, LABEL_SIZE):
        raise MalformedError(f"{name} are uint8[{count}, {LABEL_SIZE}], got {labels.dtype}{list(labels.shape)}")
