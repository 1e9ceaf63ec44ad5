"""The bridge to SEAL (through TenSEAL): key generation, and the reference twin of everything else.

SEAL samples the secret keys. Its decryption, encryption and plaintext product are what the numpy code is tested against,
in both directions. No byte of a peer reaches SEAL's parser: a ciphertext comes here as residues that were checked, and the
file around them is written by this module. SEAL reads and writes through paths only, so a memfd serves as one. A
process must not fork after a context exists.

The file of an uncompressed ciphertext (SEAL 4.3): a 16 byte header, 97 bytes of fields and array header, then uint64 residues,
c0's limbs and c1's limbs.
"""

from __future__ import annotations

import os
import struct
from functools import cache
from typing import Protocol, cast

import numpy as np
import tenseal.sealapi as seal

from core.crypto.homomorphic.modular import check_residues
from core.crypto.homomorphic.ntt import forward, inverse, table
from core.crypto.homomorphic.params import PARAMS, HeParams, Ints, Residues
from core.errors import CryptoError, MalformedError

__all__ = ["SealTwin", "sample_secret", "security_bits_allowed", "security_bits_used"]

_HEADER = struct.Struct("<HBBBBHQ")
_MAGIC, _MAJOR, _MINOR, _UNCOMPRESSED = 0xA15E, 4, 3, 0


class _Array(Protocol):
    def size(self) -> int: ...

    def __getitem__(self, index: int) -> int: ...


def _context(params: HeParams) -> seal.SEALContext:
    parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.BFV)
    parameters.set_poly_modulus_degree(params.degree)
    parameters.set_plain_modulus(params.plain_modulus)
    parameters.set_coeff_modulus([seal.Modulus(prime) for prime in (*params.primes, params.special_prime)])
    context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)
    if not context.parameters_set():
        raise CryptoError(f"SEAL refuses the parameters: {context.parameters_error_message()}")
    return context


_shared_context = cache(_context)


def security_bits_allowed(params: HeParams = PARAMS) -> int:
    """Bits of modulus that SEAL allows for this degree at 128 bit security."""
    return int(seal.CoeffModulus.MaxBitCount(params.degree, seal.SEC_LEVEL_TYPE.TC128))


def security_bits_used(params: HeParams = PARAMS) -> int:
    """Bits of the key modulus as SEAL counts them, its special prime included."""
    return sum(prime.bit_length() for prime in (*params.primes, params.special_prime))


def _read(array: _Array) -> Residues:
    return np.fromiter((array[i] for i in range(array.size())), dtype=np.uint64, count=array.size())


def sample_secret(params: HeParams = PARAMS) -> Ints:
    """A ternary secret from SEAL's key generator, shape (N,)."""
    generator = seal.KeyGenerator(_shared_context(params))
    key = generator.secret_key()
    data = key.data()  # a view without ownership: generator and key have to outlive it
    prime = params.primes[0]
    values = np.fromiter((data.data(i) for i in range(params.degree)), dtype=np.int64, count=params.degree)
    secret = inverse(values[None], table(prime, params.degree))[0]
    secret = np.where(secret == prime - 1, -1, secret)
    if int(np.abs(secret).max()) > 1:
        raise CryptoError("SEAL's secret key is not ternary in the expected order: another version of SEAL?")
    return secret


def _file(fields: bytes, values: Residues) -> bytes:
    raw = values.astype("<u8").tobytes()
    inner = _HEADER.pack(_MAGIC, 16, _MAJOR, _MINOR, _UNCOMPRESSED, 0, 24 + len(raw)) + struct.pack("<Q", values.size)
    return _HEADER.pack(_MAGIC, 16, _MAJOR, _MINOR, _UNCOMPRESSED, 0, 16 + len(fields) + len(inner) + len(raw)) + (
        fields + inner + raw
    )


class SealTwin:
    """SEAL under one of our secret keys."""

    def __init__(self, secret: Ints, params: HeParams = PARAMS) -> None:
        self._params = params
        self._context = _shared_context(params)
        limbs = [
            forward(secret[None], table(prime, params.degree))[0] % prime for prime in (*params.primes, params.special_prime)
        ]
        values = np.concatenate(limbs).astype(np.uint64)
        fields = struct.pack("<4Q", *self._context.key_parms_id()) + struct.pack("<Qd", values.size, 1.0)
        self._key = seal.SecretKey()
        self._load(self._key, _file(fields, values))
        self._decryptor = seal.Decryptor(self._context, self._key)
        self._evaluator = seal.Evaluator(self._context)

    def _load(self, target: seal.Ciphertext | seal.SecretKey | seal.Plaintext, data: bytes) -> None:
        handle = os.memfd_create("pofl-seal", os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(handle), "wb") as stream:
                stream.write(data)
            target.load(self._context, f"/proc/self/fd/{handle}")
        except (RuntimeError, ValueError) as error:
            raise CryptoError(f"SEAL refuses a file of ours: {error}") from error
        finally:
            os.close(handle)

    def _ciphertext(self, c0: Residues, c1: Residues) -> seal.Ciphertext:
        check_residues(c0, self._params)
        check_residues(c1, self._params)
        if not c1.any():
            raise MalformedError("c1 is zero: a ciphertext that hides nothing")
        fields = struct.pack("<4Q", *self._context.first_parms_id()) + struct.pack(
            "<B3QdQ", 0, 2, self._params.degree, self._params.limbs, 1.0, 1
        )
        out = seal.Ciphertext()
        self._load(out, _file(fields, np.concatenate([c0.reshape(-1), c1.reshape(-1)])))
        return out

    def _plaintext(self, plain: Ints) -> seal.Plaintext:
        fields = bytes(32) + struct.pack("<Qd", plain.size, 1.0)
        out = seal.Plaintext()
        self._load(out, _file(fields, plain.astype(np.uint64)))
        return out

    def _residues(self, ciphertext: seal.Ciphertext) -> tuple[Residues, Residues]:
        values = _read(cast(_Array, ciphertext.dyn_array()))
        c0, c1 = values.reshape(2, self._params.limbs, self._params.degree)
        return c0, c1

    def decrypt(self, c0: Residues, c1: Residues) -> Ints:
        """One ciphertext, two arrays (L, N), to its plaintext (N,)."""
        plain = seal.Plaintext()
        self._decryptor.decrypt(self._ciphertext(c0, c1), plain)
        out = np.zeros(self._params.degree, dtype=np.int64)
        count = plain.coeff_count()
        out[:count] = np.fromiter((plain.data(i) for i in range(count)), dtype=np.int64, count=count)
        return out

    def encrypt(self, plain: Ints) -> tuple[Residues, Residues]:
        """SEAL's own symmetric encryption of (N,)."""
        out = seal.Ciphertext()
        seal.Encryptor(self._context, self._key).encrypt_symmetric(self._plaintext(plain), out)
        return self._residues(out)

    def multiply_plain(self, c0: Residues, c1: Residues, plain: Ints) -> tuple[Residues, Residues]:
        """SEAL's product with a non-zero polynomial (N,) modulo t."""
        out = seal.Ciphertext()
        self._evaluator.multiply_plain(self._ciphertext(c0, c1), self._plaintext(plain), out)
        return self._residues(out)

    def noise_budget(self, c0: Residues, c1: Residues) -> int:
        """Bits left, as SEAL counts."""
        return int(self._decryptor.invariant_noise_budget(self._ciphertext(c0, c1)))
