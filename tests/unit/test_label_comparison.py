"""Garbling and oblivious transfer together: the pool learns N, the requester nothing (paper, section IV-B)."""

from __future__ import annotations

import numpy as np
import pytest

from core.crypto.circuits import comparison_circuit, label_bits
from core.crypto.garbling import GarbledCircuit, evaluate, garble
from core.crypto.oblivious_transfer import Choices, Ciphertexts
from core.errors import CheatingError
from tests.seeded import SeededRng
from tests.unit.test_oblivious_transfer import ready


@pytest.mark.parametrize(("samples", "bits"), [(1, 4), (359, 4), (2000, 4)])
def test_the_pool_learns_how_many_labels_are_right(samples: int, bits: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    actual = random.integers(0, 10, samples)
    predicted = np.where(random.random(samples) < 0.8, actual, 0)
    circuit = comparison_circuit(samples, bits)
    pool, requester = ready(seed)
    made = garble(circuit, label_bits(predicted, bits), SeededRng(seed).bytes(32))

    choices = Choices.decode(requester.choose(label_bits(actual, bits)).encode(), samples * bits)
    ciphertexts, public = pool.send(choices, made.evaluator_labels).encode(), made.public.encode()

    labels = requester.receive(Ciphertexts.decode(ciphertexts, samples * bits))
    keys = evaluate(circuit, GarbledCircuit.decode(circuit, public), labels)
    assert made.decode(keys) == int((actual == predicted).sum())


def test_a_changed_ciphertext_ends_in_the_fixed_abort(seed: int) -> None:
    """The transfer's ciphertexts are not authenticated; a changed one gives a wrong label, which is not listed."""
    circuit = comparison_circuit(20, 4)
    pool, requester = ready(seed)
    made = garble(circuit, np.zeros(80, np.uint8), SeededRng(seed).bytes(32))
    data = bytearray(pool.send(requester.choose(np.zeros(80, np.uint8)), made.evaluator_labels).encode())
    data[-32 * 7] ^= 1
    labels = requester.receive(Ciphertexts.decode(bytes(data), 80))
    with pytest.raises(CheatingError, match="not listed"):
        evaluate(circuit, made.public, labels)
