"""The parts of model verification that need no network, each on its own, in one process: encryption, garbling, transfer; and
what they are compared with: TenSEAL's tensor product and a plain forward pass. Prints one JSON object.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import tenseal

from core.chain.transaction import Activation
from core.crypto.circuits import comparison_circuit, comparison_counts, label_bits
from core.crypto.garbling import GarbledCircuit, evaluate, garble
from core.crypto.homomorphic import PARAMS, generate_keys
from core.crypto.oblivious_transfer import Choices, Ciphertexts, ExtensionReceiver, ExtensionSender
from core.ids import Digest, TaskId
from core.ports import SystemRng
from core.verification.scored_model import ModelShape, ScoredModel
from core.verification.task import key_context
from core.verification.test_set import TestSet, encrypt_test_set

RNG = SystemRng()
CKKS_DEGREE = 8192
CKKS_PRIMES = (40, 30, 30, 40)
TENSEAL_ROWS = 1024
"""Slots in use do not change what TenSEAL's product costs: one batch of up to 4,096 rows is measured and counted up."""


def timed(runs: int, step: Callable[[], object]) -> float:
    """Median seconds."""
    seen = []
    for _ in range(runs):
        start = time.perf_counter()
        step()
        seen.append(time.perf_counter() - start)
    return statistics.median(seen)


def encryption(plain: TestSet, runs: int) -> dict[str, object]:
    chain, sizes = Digest(bytes(32)), []

    def once() -> None:
        # A key and a task of its own each time: the public c1 of one task serves one set of plaintexts.
        task = TaskId(RNG.bytes(32))
        blobs, _, _ = encrypt_test_set(generate_keys(PARAMS, key_context(chain, task), RNG), chain, task, plain, RNG)
        sizes.append(sum(map(len, blobs)))

    return {"seconds": timed(runs, once), "bytes": sizes[-1], "runs": runs}


def labels(plain: TestSet, bits: int, runs: int) -> tuple[dict[str, object], dict[str, object]]:
    """Garbling and oblivious transfer of one label comparison."""
    samples = plain.samples
    circuit = comparison_circuit(samples, bits)
    counts = comparison_counts(samples, bits)
    mine, hers = label_bits(plain.labels, bits), label_bits(plain.labels, bits)
    made = garble(circuit, mine, RNG.bytes(32))
    data = made.public.encode()
    chosen = made.evaluator_labels[np.arange(len(hers)), hers]
    garble_s = timed(runs, lambda: garble(circuit, mine, RNG.bytes(32)))
    evaluate_s = timed(runs, lambda: evaluate(circuit, GarbledCircuit.decode(circuit, data), chosen))
    setups, transfers, size = [], [], {}
    for _ in range(runs):
        start = time.perf_counter()
        session = RNG.bytes(32)
        sender, receiver = ExtensionSender(session, RNG), ExtensionReceiver(session, RNG)
        request = sender.request()
        reply = receiver.setup(request)
        sender.finish(reply)
        ready = time.perf_counter()
        choices = receiver.choose(hers).encode()
        sent = sender.send(Choices.decode(choices, len(hers)), made.evaluator_labels).encode()
        receiver.receive(Ciphertexts.decode(sent, len(hers)))
        transfers.append(time.perf_counter() - ready)
        setups.append(ready - start)
        size = {
            "setup_to_receiver": len(request.encode()), "setup_to_sender": len(reply.encode()),
            "to_sender": len(choices), "to_receiver": len(sent),
        }  # fmt: skip
    garbling: dict[str, object] = {
        "seconds": garble_s + evaluate_s, "garble_seconds": garble_s, "evaluate_seconds": evaluate_s,
        "and_gates": counts.all_ands, "paper_gates": counts.paper_all, "bytes": len(data), "runs": runs,
    }  # fmt: skip
    transfer: dict[str, object] = {
        "seconds": statistics.median(transfers), "setup_seconds": statistics.median(setups), "transfers": len(hers),
        "bytes": size, "runs": runs,
    }  # fmt: skip
    return garbling, transfer


def tensor_product(plain: TestSet, width: int, runs: int) -> dict[str, object]:
    """``A W_1`` with TenSEAL's own CKKS tensors: samples in slots, one matrix product in the clear operand."""
    slots = CKKS_DEGREE // 2
    rows = min(TENSEAL_ROWS, plain.samples)
    batches = -(-plain.samples // slots)
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, CKKS_DEGREE, coeff_mod_bit_sizes=list(CKKS_PRIMES))
    context.global_scale = 2.0**30
    features = plain.features[:rows].astype(np.float64)[:, None, :]
    weights = np.random.default_rng(2).integers(-511, 511, (features.shape[2], width)).astype(np.float64)
    operand = tenseal.plain_tensor(features.reshape(-1).tolist(), list(features.shape))
    encrypted = tenseal.ckks_tensor(context, operand, batch=True)
    factor = tenseal.plain_tensor(weights.reshape(-1).tolist(), list(weights.shape))
    measured = timed(runs, lambda: encrypted.mm(factor))
    return {
        "seconds": measured * batches, "measured_seconds": measured, "scaled_by": batches, "runs": runs,
        "note": f"one batch ({rows} of its {slots} slots in use, which costs the same) was multiplied; counted {batches} times",
        "degree": CKKS_DEGREE,
    }  # fmt: skip


def forward(plain: TestSet, dims: tuple[int, ...], runs: int) -> dict[str, object]:
    """The same network in the clear: float64 with numpy, and the exact scored model."""
    random = np.random.default_rng(3)
    pairs = list(pairwise(dims))
    weights = [random.normal(size=pair) / pair[0] for pair in pairs]
    floats = plain.features.astype(np.float64)

    def once() -> object:
        x = floats
        for number, weight in enumerate(weights):
            x = x @ weight
            if number < len(weights) - 1:
                x = 1 / (1 + np.exp(-x))
        return int((x.argmax(axis=1) == plain.labels).sum())

    exact = ScoredModel(
        ModelShape(dims, Activation.SIGMOID, 10, (9,) * (len(dims) - 2)),
        tuple(random.integers(-511, 511, pair) for pair in pairs),
        tuple(random.integers(-5000, 5000, width) for _, width in pairs),
    )
    return {
        "seconds": timed(runs, once), "exact_seconds": timed(runs, lambda: exact.count(plain.features, plain.labels)),
        "runs": runs,
    }  # fmt: skip


def main(samples: int, dims: tuple[int, ...], runs: int) -> None:
    random = np.random.default_rng(1)
    plain = TestSet(
        random.integers(-127, 127, (samples, dims[0]), dtype=np.int8), random.integers(0, dims[-1], samples), dims[-1]
    )
    garbling, transfer = labels(plain, max(1, (dims[-1] - 1).bit_length()), runs)
    result = {
        "encrypt": encryption(plain, runs), "garbling": garbling, "ot": transfer,
        "tenseal_ckks_mm": tensor_product(plain, dims[1], max(1, runs // 2)), "plaintext": forward(plain, dims, runs),
    }  # fmt: skip
    print(json.dumps(result))


if __name__ == "__main__":
    main(int(sys.argv[1]), tuple(int(width) for width in sys.argv[2].split(",")), int(sys.argv[3]))
