"""How long the homomorphic layer takes at the paper's size: ``python -m bench.homomorphic``.

10,000 samples in two batches, 256 features, 16 hidden units. Times are wall time, best of a few.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import pairwise
from math import log2
from typing import TypeVar

import numpy as np

from core.crypto.homomorphic import (
    PARAMS,
    SealTwin,
    combine,
    decrypt,
    encrypt_public,
    encrypt_symmetric,
    expand_uniform,
    generate_keys,
    linear_forms,
    mask_for_decryption,
    multiply_poly,
    pack,
    public_key,
    unpack,
)
from core.crypto.zero_check import LinearForm, ZeroCheckResponder, ZeroCheckVerifier
from core.ports import SystemRng
from core.verification.noise import noise_of_steps

T = TypeVar("T")


def measure(name: str, step: Callable[[], T], times: int = 3) -> T:
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        result = step()
        best = min(best, time.perf_counter() - start)
    print(f"{name:<58}{best * 1e3:10.1f} ms", flush=True)
    return result


def main() -> None:
    # OpenSSL reads the name in this case; an empty value turns AES instructions off and makes streams 70 times slower.
    capabilities = os.environ.get("OPENSSL_ia32cap")  # noqa: SIM112
    print(f"OPENSSL_ia32cap={capabilities!r} OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS')!r}")
    rng, numbers = SystemRng(), np.random.default_rng()
    sk = measure("keys (once a task)", lambda: generate_keys(PARAMS, b"bench"), 1)
    pk = public_key(sk)
    count, batches, hidden = 256, 2, 16
    plain = numbers.integers(0, 256, (batches * count, PARAMS.degree))
    c1 = measure("expand c1 of 512 ciphertexts", lambda: expand_uniform(PARAMS, b"bench A", batches * count))
    c0 = measure("encrypt 512 ciphertexts", lambda: encrypt_symmetric(sk, b"bench A", plain, rng), 1)
    wire = measure("pack 512", lambda: pack(c0))
    measure("unpack and check 512", lambda: unpack(wire, batches * count))
    print(f"{'size of 512':<58}{len(wire) / 1e6:10.1f} MB")
    for rows in (1, 2, hidden):
        matrix = numbers.integers(0, PARAMS.plain_modulus, (rows, count))
        for name, halves in (("c0", [c0]), ("c0 and c1", [c0, c1])):
            measure(
                f"matrix product {rows} x 256, 2 batches, {name}",
                lambda halves=halves, matrix=matrix: [  # type: ignore[misc]
                    combine(matrix, half[b * count : (b + 1) * count]) for half in halves for b in range(batches)
                ],
            )
    measure("multiply by a polynomial, 1", lambda: multiply_poly(c0[:1], plain[:1]))
    measure("mask 36 for decryption", lambda: mask_for_decryption(pk, c0[:36], c1[:36], rng))
    measure("decrypt 36", lambda: decrypt(sk, c0[:36], c1[:36]))
    twin = SealTwin(sk.s)
    measure("decrypt 1 through SEAL", lambda: twin.decrypt(c0[0], c1[0]))
    measure("encrypt a model body, 1 ciphertext", lambda: encrypt_public(pk, plain[:1], bytes(32)))
    weights = numbers.integers(0, PARAMS.plain_modulus, (3, 5, PARAMS.degree))
    heads, tails = measure("3 linear forms over 5 ciphertexts", lambda: linear_forms(c0[:5], c1[:5], weights))
    values = [int((plain[:5].astype(object) * w.astype(object)).sum()) for w in weights]
    forms = [LinearForm(head, tail, -value) for head, tail, value in zip(heads, tails, values, strict=True)]
    verifier = measure("zero check: queries of 3 runs", lambda: ZeroCheckVerifier(pk, forms, rng), 1)
    responder = ZeroCheckResponder(sk, rng)
    commitments = measure("zero check: answer 3 runs", lambda: responder.commit(verifier.queries()), 1)
    verifier.conclude(responder.open(verifier.reveal(commitments)))
    show_noise()


def show_noise() -> None:
    """Calculated noise of every step at the paper's size, in bits; tests/unit/test_noise.py measures it."""
    dims = (256, 16, 16, 10)
    parameters = sum((rows + 1) * columns for rows, columns in pairwise(dims))
    for step in noise_of_steps(dims, parameters, 10_000):
        bits = f"worst {log2(step.worst):5.1f}, likely {log2(step.likely):5.1f}, limit {log2(step.limit):5.1f}"
        print(f"noise in bits, {step.step:<42}{bits}")


if __name__ == "__main__":
    main()
