"""The parts of model verification that need no network, each on its own, in one process: encryption, garbling, transfer; and
what they are compared with: TenSEAL's tensor product and a plain forward pass. Prints one JSON object; standard error says
which part is being measured.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import tenseal

from bench.verification_machine import Json, repeated, spread
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
from services.runtime.startup import end_with_parent

RNG = SystemRng()
CKKS_DEGREE = 8192
CKKS_PRIMES = (40, 30, 30, 40)
TENSEAL_S = 100.0
"""TenSEAL's products of the larger sizes are repeated less often, so that they take about this long in all."""
ENCRYPTION_S = 60.0
CLAIMS = (10, 100, 1000, 5000, 9364)
"""9,364 nodes is the paper's figure for Bitcoin."""


def say(part: str) -> None:
    """For bench.verification_services, which knows lines that begin so."""
    sys.stderr.write(f"# {part}\n")
    sys.stderr.flush()


def encryption(plain: TestSet, runs: int) -> Json:
    chain, sizes = Digest(bytes(32)), []

    def once() -> None:
        # A key and a task of its own each time: the public c1 of one task serves one set of plaintexts.
        task = TaskId(RNG.bytes(32))
        blobs, _, _ = encrypt_test_set(generate_keys(PARAMS, key_context(chain, task), RNG), chain, task, plain, RNG)
        sizes.append(sum(map(len, blobs)))

    return {**repeated(runs, once, ENCRYPTION_S), "bytes": sizes[-1]}


def garbling(plain: TestSet, bits: int, runs: int) -> Json:
    """The comparison circuit, garbled by the pool and evaluated by the requester."""
    circuit, counts = comparison_circuit(plain.samples, bits), comparison_counts(plain.samples, bits)
    mine = hers = label_bits(plain.labels, bits)
    made = garble(circuit, mine, RNG.bytes(32))
    data = made.public.encode()
    chosen = made.evaluator_labels[np.arange(len(hers)), hers]
    pool = repeated(runs, lambda: garble(circuit, mine, RNG.bytes(32)).public.encode())
    requester = repeated(runs, lambda: evaluate(circuit, GarbledCircuit.decode(circuit, data), chosen))
    keys = evaluate(circuit, made.public, chosen)
    assert made.decode(keys) == plain.samples
    return {
        **{name: pool[name] + requester[name] for name in ("seconds", "seconds_min", "seconds_max")},
        "garble": pool, "evaluate": requester, "runs": runs,
        "and_gates": counts.all_ands,
        "table_1": {
            "or_paper": counts.paper_or, "adder_paper": counts.paper_adder, "all_paper": counts.paper_all,
            "compare": counts.compare_ands, "count": counts.count_ands, "all": counts.all_ands, "layers": counts.and_layers,
            "note": "non-free gates. The paper compares labels with one OR a sample, which only suits labels of one bit; "
            f"equality of {bits} bits needs {bits - 1} ANDs a sample (docs/errata.md, W11)",
        },
        "bytes": {"to_requester": len(data), "from_requester": int(np.asarray(keys).nbytes)},
    }  # fmt: skip


def transfer(plain: TestSet, bits: int, runs: int) -> Json:
    """Oblivious transfer of the keys of the requester's labels. The set-up is done before labels are compared."""
    hers = label_bits(plain.labels, bits)
    keys = garble(comparison_circuit(plain.samples, bits), hers, RNG.bytes(32)).evaluator_labels
    wall, pool, requester, setups = [], [], [], []
    for _ in range(runs):
        start = time.perf_counter()
        session = RNG.bytes(32)
        sender, receiver = ExtensionSender(session, RNG), ExtensionReceiver(session, RNG)
        request = sender.request()
        reply = receiver.setup(request)
        sender.finish(reply)
        setups.append(time.perf_counter() - start)
        start, own = time.perf_counter(), [time.process_time()]
        choices = receiver.choose(hers).encode()
        own.append(time.process_time())
        sent = sender.send(Choices.decode(choices, len(hers)), keys).encode()
        own.append(time.process_time())
        receiver.receive(Ciphertexts.decode(sent, len(hers)))
        wall.append(time.perf_counter() - start)
        requester.append(own[1] - own[0] + time.process_time() - own[2])
        pool.append(own[2] - own[1])
    return {
        **spread(wall), "pool_cpu_seconds": statistics.median(pool), "requester_cpu_seconds": statistics.median(requester),
        "transfers": len(hers), "bytes": {"to_requester": len(sent), "from_requester": len(choices)},
        "setup": {
            **spread(setups), "note": "offline, once for an evaluation",
            "bytes": {"to_requester": len(request.encode()), "from_requester": len(reply.encode())},
        },
    }  # fmt: skip


def tensor_product(plain: TestSet, width: int, runs: int) -> Json:
    """``A W_1`` with TenSEAL's own CKKS tensors: samples in slots, every batch of them; the result is decrypted and compared.

    One batch at a time is in memory.
    """
    slots = CKKS_DEGREE // 2
    batches = -(-plain.samples // slots)
    context = tenseal.context(tenseal.SCHEME_TYPE.CKKS, CKKS_DEGREE, coeff_mod_bit_sizes=list(CKKS_PRIMES))
    context.global_scale = 2.0**30
    features = plain.features.astype(np.float64)
    weights = np.random.default_rng(2).integers(-511, 511, (features.shape[1], width)).astype(np.float64)
    factor = tenseal.plain_tensor(weights.reshape(-1).tolist(), list(weights.shape))
    products: list[list[float]] = []
    encrypting = deviation = 0.0
    for batch in range(batches):
        say(f"TenSEAL's product, batch {batch + 1} of {batches}")
        rows = features[batch * slots : (batch + 1) * slots]
        start = time.perf_counter()
        operand = tenseal.plain_tensor(rows.reshape(-1).tolist(), [len(rows), 1, rows.shape[1]])
        encrypted = tenseal.ckks_tensor(context, operand, batch=True)
        encrypting += time.perf_counter() - start
        seen: list[float] = []
        while len(seen) < runs:
            start = time.perf_counter()
            product = encrypted.mm(factor)
            seen.append(time.perf_counter() - start)
            if not products:
                runs = max(1, min(runs, int(TENSEAL_S / (seen[0] * batches))))
        products.append(seen)
        decrypted = np.array(product.decrypt().tolist()).reshape(len(rows), width)
        deviation = max(deviation, float(np.abs(decrypted - rows @ weights).max()))
    largest = float(np.abs(features @ weights).max())
    if deviation > 0.01 * largest:
        raise ArithmeticError(f"TenSEAL's product is off by {deviation:g} where numbers go up to {largest:g}")
    return {
        **spread([sum(one) for one in zip(*products, strict=True)]), "rows": plain.samples, "batches": batches,
        "batch_seconds": [min(map(min, products)), max(map(max, products))], "encrypt_seconds": encrypting,
        "degree": CKKS_DEGREE, "largest_value": largest, "largest_error": deviation, "threads": os.cpu_count(),
        "note": "all rows were encrypted and multiplied, and the products decrypted and compared with numpy's; "
        "TenSEAL uses its own threads, everything else here one",
    }  # fmt: skip


def forward(plain: TestSet, dims: tuple[int, ...], runs: int) -> Json:
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
    return {**repeated(runs, once), "exact": repeated(runs, lambda: exact.count(plain.features, plain.labels))}


def best_of(counts: tuple[int, ...], runs: int) -> list[Json]:
    """Fig. 11(a) of the paper: finding the best of n claimed results. Its full nodes sort; the greatest is enough."""
    random, rows = np.random.default_rng(4), []
    for count in counts:
        claims = random.integers(0, 10_000, count)
        best, order = repeated(20 * runs, claims.argmax), repeated(20 * runs, claims.argsort)
        rows.append({"claims": count, "best": best, "sort": order})
    return rows


def main(samples: int, dims: tuple[int, ...], runs: int) -> None:
    random = np.random.default_rng(1)
    plain = TestSet(
        random.integers(-127, 127, (samples, dims[0]), dtype=np.int8), random.integers(0, dims[-1], samples), dims[-1]
    )
    bits = max(1, (dims[-1] - 1).bit_length())
    steps: dict[str, tuple[str, Callable[[], object]]] = {
        "encrypt": ("encryption of the test set", lambda: encryption(plain, runs)),
        "garbling": ("garbling", lambda: garbling(plain, bits, runs)),
        "ot": ("oblivious transfer", lambda: transfer(plain, bits, runs)),
        "tenseal_ckks_mm": ("TenSEAL's product", lambda: tensor_product(plain, dims[1], runs)),
        "plaintext": ("forward pass in the clear", lambda: forward(plain, dims, runs)),
        "best_claim": ("best of many claims", lambda: best_of(CLAIMS, runs)),
    }  # fmt: skip
    result: dict[str, object] = {}
    for name, (part, step) in steps.items():
        say(part)
        result[name] = step()
    print(json.dumps(result))


if __name__ == "__main__":
    end_with_parent(os.environ)
    main(int(sys.argv[1]), tuple(int(width) for width in sys.argv[2].split(",")), int(sys.argv[3]))
