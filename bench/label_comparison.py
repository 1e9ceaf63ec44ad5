"""Times label comparison: ``python -m bench.label_comparison [samples] [bits]``.

Prints Table I of the paper beside the real gate counts, the speed of AES on this machine (an empty OPENSSL_ia32cap can
make it 70 times slower), and the median of each step.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from core.crypto import prg
from core.crypto.circuits import comparison_circuit, comparison_counts, label_bits
from core.crypto.garbling import GarbledCircuit, evaluate, garble
from core.crypto.oblivious_transfer import Choices, Ciphertexts, ExtensionReceiver, ExtensionSender
from core.ports import SystemRng

ROUNDS = 7


def main(samples: int, bits: int) -> None:
    rng = SystemRng()
    capabilities = os.environ.get("OPENSSL_ia32cap", "(not set)")  # noqa: SIM112 (OpenSSL spells it so)
    print(f"{samples} samples of {bits} bits; OPENSSL_ia32cap={capabilities!r}")
    print(comparison_counts(samples, bits))
    blocks = 1 << 18
    labels, tweaks = prg.random_labels(rng.bytes(16), blocks), np.arange(blocks, dtype=np.uint64)
    hash_ = prg.TweakHash(rng.bytes(16))
    seconds, _ = timed(lambda: hash_(labels, tweaks))
    print(f"label hash (two AES)  {1e9 * seconds / blocks:8.1f} ns")

    random = np.random.default_rng(1)
    actual = random.integers(0, 2**bits, samples)
    predicted = np.where(random.random(samples) < 0.8, actual, 0)
    mine, hers = label_bits(predicted, bits), label_bits(actual, bits)
    circuit = comparison_circuit(samples, bits)
    show("garble", *timed(lambda: garble(circuit, mine, rng.bytes(32))))
    made = garble(circuit, mine, rng.bytes(32))
    show("encode", *timed(made.public.encode))
    data = made.public.encode()
    show("decode", *timed(lambda: GarbledCircuit.decode(circuit, data)))
    chosen = made.evaluator_labels[np.arange(len(hers)), hers]
    show("evaluate", *timed(lambda: evaluate(circuit, made.public, chosen)))

    sender, receiver = ExtensionSender(rng.bytes(32), rng), None
    start = time.perf_counter()
    request = sender.request()
    receiver = ExtensionReceiver(request.session, rng)
    reply = receiver.setup(request)
    sender.finish(reply)
    print(f"{'transfer set-up':20s}  {1e3 * (time.perf_counter() - start):8.1f} ms, once, before labels are known")
    steps: dict[str, list[float]] = {"transfer choose": [], "transfer send": [], "transfer receive": []}
    sizes = ""
    for _ in range(ROUNDS):
        marks = [time.perf_counter()]
        choices = receiver.choose(hers).encode()
        marks.append(time.perf_counter())
        sent = sender.send(Choices.decode(choices, len(hers)), made.evaluator_labels).encode()
        marks.append(time.perf_counter())
        got = receiver.receive(Ciphertexts.decode(sent, len(hers)))
        marks.append(time.perf_counter())
        for name, begin, end in zip(steps, marks, marks[1:], strict=False):
            steps[name].append(end - begin)
        sizes = f"{len(choices)} + {len(sent)} bytes"
    for name, seen in steps.items():
        show(name, statistics.median(seen), None)
    count = made.decode(evaluate(circuit, made.public, got))
    print(f"N = {count} of {samples} ({int((predicted == actual).sum())} in the clear); circuit {len(data)} bytes, {sizes}")


def timed(step: Callable[[], object]) -> tuple[float, object]:
    """Median seconds over ROUNDS, and the last result."""
    seen, result = [], None
    for _ in range(ROUNDS):
        start = time.perf_counter()
        result = step()
        seen.append(time.perf_counter() - start)
    return statistics.median(seen), result


def show(name: str, seconds: float, _: object) -> None:
    print(f"{name:20s}  {1e3 * seconds:8.1f} ms")


if __name__ == "__main__":
    main(*(int(value) for value in (sys.argv[1:] + ["10000", "4"][len(sys.argv) - 1 :])))
