"""core.crypto.garbling: the fast engine against its readable twin, stored vectors and published circuits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from core.crypto import garbling, prg
from core.crypto.circuits import Bits, Circuit, comparison_circuit, label_bits
from core.crypto.garbling import GarbledCircuit, Garbling, RawLabels, evaluate, garble
from core.crypto.garbling_reference import garble_reference, tweak_hash
from core.errors import CheatingError, LimitError, MalformedError
from tests.garbling_vectors import FILE, Vector, all_vectors, circuit_of
from tests.seeded import SeededRng
from tests.unit.test_circuits import published

VECTORS: list[Vector] = json.loads(FILE.read_text())


def chosen(made: Garbling, bits: Bits) -> RawLabels:
    """The evaluator's labels, as the oblivious transfer would give them."""
    return np.ascontiguousarray(made.evaluator_labels[np.arange(len(bits)), bits])


def run(circuit: Circuit, garbler_bits: Bits, evaluator_bits: Bits, seed: bytes) -> Bits:
    made = garble(circuit, garbler_bits, seed)
    public = GarbledCircuit.decode(circuit, made.public.encode())
    return made.decode_bits(evaluate(circuit, public, chosen(made, evaluator_bits)))


def garbled_as(vector: Vector) -> dict[str, object]:
    """What the fast engine makes of a vector's inputs, in the vector's own words."""
    circuit = circuit_of(vector["circuit"])
    made = garble(circuit, np.array(vector["garbler_bits"], np.uint8), bytes.fromhex(vector["seed"]))
    keys = evaluate(circuit, made.public, chosen(made, np.array(vector["evaluator_bits"], np.uint8)))
    return {
        "circuit_digest": made.public.circuit_digest.hex(),
        "aes_key": made.public.aes_key.hex(),
        "tables": made.public.tables.tobytes().hex(),
        "garbler_labels": made.public.garbler_labels.tobytes().hex(),
        "evaluator_labels": [[label.tobytes().hex() for label in pair] for pair in made.evaluator_labels],
        "constant_labels": made.public.constant_labels.tobytes().hex(),
        "output_digests": [[value.tobytes().hex() for value in pair] for pair in made.public.output_digests],
        "output_keys": [key.tobytes().hex() for key in keys],
    }


def matches(vector: Vector) -> bool:
    try:
        made = garbled_as(vector)
    except CheatingError:
        return False
    return all(value == dict(vector)[name] for name, value in made.items())


@pytest.mark.parametrize("vector", VECTORS, ids=[v["circuit"] for v in VECTORS])
def test_the_fast_engine_gives_the_stored_vectors(vector: Vector) -> None:
    assert matches(vector)


def test_the_readable_twin_gives_the_stored_vectors() -> None:
    assert all_vectors() == VECTORS


def _no_tweaks(first: int, count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
    return np.zeros(count, np.uint64)


def _layer_tweaks(first: int, count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint64]]:
    return np.arange(0, 2 * count, 2, dtype=np.uint64)


def _no_orientation(self: prg.TweakHash, labels: prg.Labels, tweaks: prg.Labels) -> prg.Labels:
    mixed = labels.copy()
    mixed[:, 0] ^= tweaks
    return self._permute(mixed) ^ mixed


def _even_offset(circuit: Circuit, seed: bytes) -> tuple[bytes, prg.Labels, prg.Labels]:
    key, offset, zeros = _start_labels(circuit, seed)
    offset[0] ^= np.uint64(1)
    return key, offset, zeros


_start_labels, _garble_ands = garbling.start_labels, garbling._garble_ands


def _halves_exchanged(
    hash_: prg.TweakHash, offset: prg.Labels, a: prg.Labels, b: prg.Labels, first: int, tables: prg.Labels
) -> prg.Labels:
    return _garble_ands(hash_, offset, b, a, first, tables)


@pytest.mark.parametrize(
    ("target", "name", "broken"),
    [
        (garbling, "_tweaks", _no_tweaks),
        (garbling, "_tweaks", _layer_tweaks),
        (prg.TweakHash, "__call__", _no_orientation),
        (garbling, "start_labels", _even_offset),
        (garbling, "_garble_ands", _halves_exchanged),
    ],
    ids=["one tweak for all", "tweaks restart in every layer", "π(x⊕i)⊕x⊕i", "offset with lowest bit 0", "halves exchanged"],
)
def test_a_weakened_engine_breaks_the_vectors(
    monkeypatch: pytest.MonkeyPatch, target: object, name: str, broken: Callable[..., object]
) -> None:
    monkeypatch.setattr(target, name, broken)
    assert not all(matches(vector) for vector in VECTORS)


def test_decoding_is_by_whole_labels_never_by_colour(seed: int) -> None:
    """A label with the right colour and one other bit changed is refused; decoding by colour would take it."""
    circuit = comparison_circuit(3, 2)
    made = garble(circuit, np.ones(6, np.uint8), SeededRng(seed).bytes(32))
    keys = evaluate(circuit, made.public, chosen(made, np.ones(6, np.uint8)))
    assert made.decode(keys) == 3
    for wire in range(len(keys)):
        forged = keys.copy()
        forged[wire, 15] ^= 0x80
        with pytest.raises(CheatingError, match="none of this garbling"):
            made.decode(forged)
    with pytest.raises(MalformedError):
        made.decode(keys[:-1])


def test_the_hash_is_the_same_one_label_or_many(seed: int) -> None:
    rng = SeededRng(seed)
    key, labels = rng.bytes(16), np.frombuffer(rng.bytes(160), np.uint8).reshape(10, 16)
    tweaks = np.arange(10, dtype=np.uint64) * np.uint64(2**40 + 1)
    many = prg.as_bytes(prg.TweakHash(key)(prg.as_labels(labels), tweaks))
    for place in range(10):
        assert many[place].tobytes() == tweak_hash(key, labels[place].tobytes(), int(tweaks[place]))


@pytest.mark.parametrize(("samples", "bits"), [(1, 1), (5, 4), (64, 4), (333, 3)])
def test_the_comparison_counts_under_garbling(samples: int, bits: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    actual, predicted = random.integers(0, 2**bits, (2, samples))
    predicted[::2] = actual[::2]
    circuit = comparison_circuit(samples, bits)
    made = garble(circuit, label_bits(predicted, bits), SeededRng(seed).bytes(32))
    keys = evaluate(circuit, made.public, chosen(made, label_bits(actual, bits)))
    assert made.decode(keys) == int((actual == predicted).sum())


@pytest.mark.shared
@pytest.mark.parametrize("name", ["adder64", "aes_128", "neg64", "FP-eq", "mult64"])
def test_published_circuits_give_their_vectors_garbled(shared_data: Path, name: str, seed: int) -> None:
    loaded, cases = published(shared_data, name)
    rng = SeededRng(seed)
    for garbler_bits, evaluator_bits, wanted, _ in cases[:4]:
        out = run(loaded.circuit, garbler_bits, evaluator_bits, rng.bytes(32))
        assert sum(int(bit) << place for place, bit in enumerate(out)) == wanted


def test_a_seed_makes_the_same_garbling_again_and_another_seed_none_of_it() -> None:
    circuit, bits = comparison_circuit(9, 4), np.zeros(36, np.uint8)
    first, again, other = (garble(circuit, bits, bytes([value]) * 32) for value in (1, 1, 2))
    assert first.public.encode() == again.public.encode()
    assert first.public.digest == again.public.digest != other.public.digest
    assert first.public.aes_key != other.public.aes_key
    assert not (first.public.tables == other.public.tables).all(axis=1).any()


def test_the_public_part_does_not_depend_on_what_it_must_hide() -> None:
    """Only the garbler's active labels change with his bits: the tables and digests do not."""
    circuit = comparison_circuit(9, 4)
    one, two = (garble(circuit, np.full(36, bit, np.uint8), bytes(32)).public for bit in (0, 1))
    assert (one.tables == two.tables).all()
    assert (one.output_digests == two.output_digests).all()
    assert not (one.garbler_labels == two.garbler_labels).all(axis=1).any()


def test_secrets_are_not_shown() -> None:
    made = garble(comparison_circuit(1, 1), np.zeros(1, np.uint8), bytes(32))
    assert "evaluator_labels" not in repr(made)
    assert "output_labels" not in repr(made)


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_seed_has_32_bytes(size: int) -> None:
    with pytest.raises(MalformedError, match="32 bytes"):
        garble(comparison_circuit(1, 1), np.zeros(1, np.uint8), bytes(size))


def test_bytes_of_another_length_or_circuit_are_refused() -> None:
    circuit = comparison_circuit(4, 2)
    data = garble(circuit, np.zeros(8, np.uint8), bytes(32)).public.encode()
    assert len(data) == GarbledCircuit.encoded_size(circuit)
    assert GarbledCircuit.decode(circuit, data).encode() == data
    with pytest.raises(LimitError):
        GarbledCircuit.decode(circuit, data + b"\0")
    for cut in (0, 1, 31, 48, len(data) - 1):
        with pytest.raises(MalformedError):
            GarbledCircuit.decode(circuit, data[:cut])
    with pytest.raises(MalformedError, match="another circuit"):
        GarbledCircuit.decode(circuit, bytes(32) + data[32:])
    swapped = data[:-64] + data[-32:] + data[-64:-32]
    with pytest.raises(MalformedError, match="output 2"):
        GarbledCircuit.decode(circuit, swapped)
    with pytest.raises(MalformedError, match="output 2"):
        GarbledCircuit.decode(circuit, data[:-64] + data[-32:] * 2)


def test_wrong_labels_or_circuit_are_refused() -> None:
    circuit = comparison_circuit(4, 2)
    made = garble(circuit, np.zeros(8, np.uint8), bytes(32))
    good = chosen(made, np.zeros(8, np.uint8))
    for bad in (good[:7], good[:, :15], good.astype(np.int16).view(np.uint8)):
        with pytest.raises(MalformedError):
            evaluate(circuit, made.public, bad)
    with pytest.raises(MalformedError, match="another circuit"):
        evaluate(comparison_circuit(8, 1), made.public, good)
    with pytest.raises(MalformedError):
        garble(circuit, np.zeros(7, np.uint8), bytes(32))
    with pytest.raises(MalformedError):
        garble(circuit, np.full(8, 2, np.uint8), bytes(32))


def test_the_twin_agrees_on_every_label(seed: int) -> None:
    circuit = comparison_circuit(13, 4)
    seed_bytes = SeededRng(seed).bytes(32)
    fast, slow = garble(circuit, np.zeros(52, np.uint8), seed_bytes), garble_reference(circuit, seed_bytes)
    assert fast.public.tables.tobytes() == b"".join(slow.tables)
    for place, wire in enumerate(circuit.outputs):
        assert [label.tobytes() for label in fast.output_labels[place]] == [slow.label(int(wire), b) for b in (0, 1)]
    assert slow.offset[0] & 1 == 1
