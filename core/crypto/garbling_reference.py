"""The readable twin of core.crypto.garbling: one gate, one label at a time, as the papers write it.

Slow, and used to make and check test vectors. Same bytes as the fast twin for the same arguments.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from core.crypto.circuits import Circuit, Kind
from core.crypto.garbling import UNLISTED, output_key_digest
from core.crypto.hashing import expand
from core.crypto.prg import LABEL_SIZE, stream
from core.errors import CheatingError

__all__ = ["ReferenceGarbling", "colour", "evaluate_reference", "garble_reference", "tweak_hash", "xor"]

_SEED_DOMAIN = b"pofl/garbling/seed/v1"


@dataclass(frozen=True, slots=True)
class ReferenceGarbling:
    """Everything a garbling made, as lists of bytes. ``tables[g]`` is T_G ‖ T_E of AND number g."""

    aes_key: bytes
    offset: bytes
    zero_labels: list[bytes]
    tables: list[bytes]
    output_digests: list[tuple[bytes, bytes]]

    def label(self, wire: int, bit: int) -> bytes:
        return xor(self.zero_labels[wire], self.offset) if bit else self.zero_labels[wire]


def xor(*labels: bytes) -> bytes:
    total = 0
    for label in labels:
        total ^= int.from_bytes(label, "little")
    return total.to_bytes(LABEL_SIZE, "little")


def colour(label: bytes) -> int:
    return label[0] & 1


def tweak_hash(aes_key: bytes, label: bytes, tweak: int) -> bytes:
    """H(x, i) = π(π(x) ⊕ i) ⊕ π(x)."""
    once = _permute(aes_key, label)
    return xor(_permute(aes_key, xor(once, tweak.to_bytes(LABEL_SIZE, "little"))), once)


def garble_reference(circuit: Circuit, seed: bytes) -> ReferenceGarbling:
    derived = expand(_SEED_DOMAIN, 64, seed, circuit.digest)
    aes_key, stream_key = derived[:16], derived[32:]
    offset = bytes([derived[16] | 1]) + derived[17:32]
    raw = stream(stream_key, LABEL_SIZE * circuit.first_gate)
    zero = [raw[start : start + LABEL_SIZE] for start in range(0, len(raw), LABEL_SIZE)]
    tables: list[bytes] = []
    for kind, a, b in _gates(circuit):
        if kind is Kind.XOR:
            zero.append(xor(zero[a], zero[b]))
        elif kind is Kind.INV:
            zero.append(xor(zero[a], offset))
        else:
            out, rows = _garble_and(aes_key, offset, zero[a], zero[b], len(tables))
            zero.append(out)
            tables.append(rows)
    digests = []
    for place, wire in enumerate(circuit.outputs):
        both = zero[wire], xor(zero[wire], offset)
        low, high = sorted(bytes(output_key_digest(place, label)) for label in both)
        digests.append((low, high))
    return ReferenceGarbling(aes_key, offset, zero, tables, digests)


def evaluate_reference(
    circuit: Circuit, aes_key: bytes, tables: list[bytes], inputs: list[bytes], digests: list[tuple[bytes, bytes]]
) -> list[bytes]:
    """Output labels from the active labels of all inputs and constants, in wire order."""
    active = list(inputs)
    done = 0
    for kind, a, b in _gates(circuit):
        if kind is Kind.XOR:
            active.append(xor(active[a], active[b]))
        elif kind is Kind.INV:
            active.append(active[a])
        else:
            t_g, t_e = tables[done][:LABEL_SIZE], tables[done][LABEL_SIZE:]
            w_g = tweak_hash(aes_key, active[a], 2 * done)
            if colour(active[a]):
                w_g = xor(w_g, t_g)
            w_e = tweak_hash(aes_key, active[b], 2 * done + 1)
            if colour(active[b]):
                w_e = xor(w_e, t_e, active[a])
            active.append(xor(w_g, w_e))
            done += 1
    outputs = [active[wire] for wire in circuit.outputs]
    if any(output_key_digest(place, label) not in digests[place] for place, label in enumerate(outputs)):
        raise CheatingError(UNLISTED)
    return outputs


def _garble_and(aes_key: bytes, offset: bytes, a: bytes, b: bytes, number: int) -> tuple[bytes, bytes]:
    """Zero label of the output and T_G ‖ T_E, from the zero labels of the inputs."""
    h_a0, h_a1 = (tweak_hash(aes_key, label, 2 * number) for label in (a, xor(a, offset)))
    h_b0, h_b1 = (tweak_hash(aes_key, label, 2 * number + 1) for label in (b, xor(b, offset)))
    t_g = xor(h_a0, h_a1, offset) if colour(b) else xor(h_a0, h_a1)
    w_g = xor(h_a0, t_g) if colour(a) else h_a0
    t_e = xor(h_b0, h_b1, a)
    w_e = xor(h_b0, t_e, a) if colour(b) else h_b0
    return xor(w_g, w_e), t_g + t_e


def _gates(circuit: Circuit) -> list[tuple[Kind, int, int]]:
    gates: list[tuple[Kind, int, int]] = []
    for layer in circuit.layers:
        partners = layer.a if layer.kind is Kind.INV else layer.b
        gates += [(layer.kind, int(a), int(b)) for a, b in zip(layer.a, partners, strict=True)]
    return gates


def _permute(aes_key: bytes, block: bytes) -> bytes:
    encryptor = Cipher(algorithms.AES128(aes_key), modes.ECB()).encryptor()  # noqa: S305 (the bare permutation)
    return encryptor.update(block)
