"""Frozen ciphertexts under a fixed key, as digests: what every implementation and every release must make, bit for bit.

``python -m tests.homomorphic_vectors`` writes the file again, which only a change of the protocol may ask for.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.crypto.homomorphic import (
    PARAMS,
    Ints,
    PublicKey,
    Residues,
    SecretKey,
    combine,
    encrypt_public,
    encrypt_symmetric,
    expand_uniform,
    linear_form,
    mask_for_decryption,
    multiply_poly,
    pack,
    public_key,
)
from core.crypto.homomorphic.sampling import Stream, ternary
from tests.seeded import SeededRng

__all__ = ["FILE", "Known", "all_vectors", "known", "stored"]

FILE = Path(__file__).parent / "vectors" / "homomorphic.txt"
HEAD = "# SHA-256 of packed polynomials (core/crypto/homomorphic/wire.py), as tests/homomorphic_vectors.py makes them.\n"
CONTEXT = b"known answer"
T, N = PARAMS.plain_modulus, PARAMS.degree

Pair = tuple[Residues, Residues]
"""``c0, c1``, each (count, L, N)."""


@dataclass(frozen=True, eq=False)
class Known:
    """The fixed key, plaintexts, and the ciphertexts that follow from them."""

    sk: SecretKey
    plain: Ints
    poly: Ints
    matrix: Ints
    symmetric: Pair
    public: Pair
    product: Pair
    combination: Pair
    masked: Pair
    share: Ints
    number: Pair


def known_key() -> SecretKey:
    """A ternary secret from a stream; ``b = -a s + e`` is an encryption of zero under ``a``."""
    s = ternary(Stream(b"pofl/test/secret", CONTEXT, 0, PARAMS), N)
    bare = SecretKey(PARAMS, CONTEXT, s, expand_uniform(PARAMS, CONTEXT, 1)[0])
    b = encrypt_symmetric(bare, CONTEXT, np.zeros((1, N), dtype=np.int64), SeededRng("known key"))
    return SecretKey(PARAMS, CONTEXT, s, b[0])


def known() -> Known:
    sk = known_key()
    pk = public_key(sk)
    numbers = np.arange(2 * N, dtype=np.int64).reshape(2, N)
    plain, poly = numbers * 1048583 % T, (numbers[0] * 524287 + 3) % T
    plain[0, :3], poly[:3] = (0, T - 1, T // 2), (T // 2, T // 2 + 1, 0)
    matrix = np.array([[1, T - 1], [T // 2, T // 2 + 1], [0, 0]], dtype=np.int64)
    context = b"known answer rows"
    c0, c1 = encrypt_symmetric(sk, context, plain, SeededRng("known rows")), expand_uniform(PARAMS, context, 2)
    masked0, masked1, share = mask_for_decryption(pk, c0, c1, SeededRng("known mask"))
    head, tail = linear_form(c0, c1, np.stack([poly, poly[::-1]]))
    whole = np.zeros((1, PARAMS.limbs, N), dtype=np.uint64)
    whole[0, :, 0] = head
    return Known(
        sk, plain, poly, matrix, (c0, c1), encrypt_public(pk, plain, b"known answer seed"),
        (multiply_poly(c0, poly), multiply_poly(c1, poly)), (combine(matrix, c0), combine(matrix, c1)),
        (masked0, masked1), share, (whole, tail[None]),
    )  # fmt: skip


def all_vectors(found: Known | None = None) -> dict[str, str]:
    found = found or known()
    fixed = expand_uniform(PARAMS, CONTEXT, 2)
    bare = PublicKey(PARAMS, CONTEXT, fixed[1])

    def digest(*parts: Residues) -> str:
        return hashlib.sha256(b"".join(pack(part) for part in parts)).hexdigest()

    return {
        "expand_uniform": digest(fixed),
        "encrypt_public": digest(*encrypt_public(bare, np.arange(N, dtype=np.int64)[None], b"known answer seed")),
        "secret": hashlib.sha256(found.sk.s.astype("<i1").tobytes()).hexdigest(),
        "public_key": digest(found.sk.b),
        "plaintexts": hashlib.sha256(found.plain.astype("<i8").tobytes()).hexdigest(),
        "symmetric": digest(*found.symmetric),
        "public": digest(*found.public),
        "product_with_a_polynomial": digest(*found.product),
        "combination": digest(*found.combination),
        "masked": digest(*found.masked),
        "share": hashlib.sha256(found.share.astype("<i8").tobytes()).hexdigest(),
        "linear_form": digest(*found.number),
    }


def stored() -> dict[str, str]:
    lines = FILE.read_text().splitlines()
    return dict(line.split(" ", 1) for line in lines if line and not line.startswith("#"))


if __name__ == "__main__":
    FILE.write_text(HEAD + "".join(f"{name} {value}\n" for name, value in all_vectors().items()))
