"""Parameters of the BFV scheme, and how much noise each step may add (design: verification, section 2).

A ciphertext of plaintext ``m`` in ``Z_t[X]/(X^N + 1)`` is a pair with

    c0 + c1 s = round(q m / t) + v   (mod q),

where ``v`` is the noise. Everything below bounds ``max |v|`` over the coefficients. The rounding of ``q m / t`` counts as
noise, so the bounds also hold after multiplication by plaintexts, whose wrap-around modulo t costs nothing.

The bounds are worst cases over every coin and every plaintext: they hold always, not with high probability.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np
from numpy.typing import NDArray

from core.errors import CryptoError

__all__ = ["ERROR_BOUND", "HeParams", "Ints", "MODULUS_BITS_AT_128", "PARAMS", "Residues", "check_security"]

Residues = NDArray[np.uint64]
"""Shape (..., L, N): polynomials modulo q in coefficient form, one row for each prime, each entry less than its prime."""
Ints = NDArray[np.int64]

ERROR_BOUND = 21
"""Errors are centred binomial: 21 coins less 21 coins (standard deviation 3.24), so at most 21 in absolute value."""


MODULUS_BITS_AT_128: Final = {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881}
"""Most bits of modulus at 128 bit classical security, by degree, for ternary secrets and errors of standard deviation 3.2
(homomorphicencryption.org standard, 2018, table 1; SEAL's sec_level_type tc128)."""


@dataclass(frozen=True, slots=True)
class HeParams:
    """A parameter set: ``Z_t`` in coefficients, ``q`` the product of ``primes``.

    ``special_prime`` is the key-level prime that SEAL insists on. No ciphertext or public key of ours is modulo it; it is
    counted in the security estimate all the same.
    """

    degree: int
    plain_modulus: int
    primes: tuple[int, ...]
    special_prime: int

    @property
    def limbs(self) -> int:
        """L, the number of data primes."""
        return len(self.primes)

    @property
    def modulus(self) -> int:
        """q."""
        return prod(self.primes)

    @property
    def prime_bits(self) -> int:
        """Width of one residue on the wire."""
        return max(self.primes).bit_length()

    @property
    def poly_bytes(self) -> int:
        """Packed size of one polynomial modulo q: what ``c0`` of one ciphertext costs on the wire."""
        return self.limbs * self.degree * self.prime_bits // 8

    @property
    def noise_limit(self) -> int:
        """Decryption is right while the noise is below this: q / 2t, here 2^116."""
        return self.modulus // (2 * self.plain_modulus)

    @property
    def noise_fresh(self) -> int:
        """After encrypt_symmetric: the error and the rounding of q m / t, here 2^4.5."""
        return ERROR_BOUND + 1

    @property
    def noise_fresh_public(self) -> int:
        """After encrypt_public: ``e u + e1 s + e0`` with ternary u and s, and the rounding; here 2^18.4."""
        return self.noise_rerandomise + self.noise_fresh

    @property
    def noise_rerandomise(self) -> int:
        """What an encryption of zero without e0 adds: ``e u + e1 s``."""
        return 2 * self.degree * ERROR_BOUND

    @property
    def security_bits_used(self) -> int:
        """Bits of the key modulus, the special prime included: what the security estimate is about."""
        return (self.modulus * self.special_prime).bit_length()

    def noise_after_products(self, noise: int, count: int) -> int:
        """After a sum of ``count`` ciphertexts, each times a scalar modulo t: 2^44.5 for 256 fresh ones."""
        return count * (self.plain_modulus // 2) * noise

    def noise_after_poly(self, noise: int, count: int = 1) -> int:
        """After a sum of ``count`` products with a polynomial modulo t: 2^89.5 on top of 256 scalar products."""
        return self.degree * self.noise_after_products(noise, count)


PARAMS = HeParams(
    degree=8192,
    plain_modulus=8589852673,
    primes=(1125899905351681, 1125899905744897, 1125899906629633),
    special_prime=1125899906826241,
)
"""The one parameter set of the protocol. 150 bits of q (200 with SEAL's key prime, of 218 allowed at 128 bit security)."""


def check_security(params: HeParams) -> None:
    """Raises CryptoError unless the key modulus is small enough for 128 bit security."""
    allowed = MODULUS_BITS_AT_128.get(params.degree, 0)
    if params.security_bits_used > allowed:
        raise CryptoError(f"{params.security_bits_used} bits of modulus at degree {params.degree}, {allowed} are secure")


check_security(PARAMS)
