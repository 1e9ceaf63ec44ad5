"""AES as a stream and as a hash of labels: what garbling and oblivious transfer are made of.

A *label* is 16 bytes, kept as two little-endian 64-bit words so that numpy can XOR many at once; bit 0 of byte 0 is
its least significant bit. AES-ECB over a whole array costs about 3 ns a block where the processor has AES.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

__all__ = ["LABEL_SIZE", "Labels", "TweakHash", "as_bytes", "as_labels", "random_labels", "stream"]

Labels = NDArray[np.uint64]
"""Shape (..., 2), little-endian words."""

LABEL_SIZE = 16


def as_labels(raw: NDArray[np.uint8]) -> Labels:
    """uint8 (..., 16) as words (..., 2). A copy only if the input is not contiguous."""
    return np.ascontiguousarray(raw).view(np.dtype("<u8"))


def as_bytes(labels: Labels) -> NDArray[np.uint8]:
    """Words (..., 2) as uint8 (..., 16)."""
    return np.ascontiguousarray(labels).view(np.uint8)


def stream(key: bytes, count: int, nonce: int = 0) -> bytes:
    """``count`` bytes of AES-CTR under a key of 16 or 32 bytes. The counter starts at ``nonce * 2^64``."""
    if not 0 <= nonce < 1 << 64:
        raise ValueError(f"nonce {nonce} does not fit 64 bits")
    encryptor = Cipher(algorithms.AES(key), modes.CTR((nonce << 64).to_bytes(16, "big"))).encryptor()
    return encryptor.update(bytes(count))


def random_labels(key: bytes, count: int, nonce: int = 0) -> Labels:
    """``count`` labels from the stream; a fresh array that may be written to."""
    raw = np.frombuffer(stream(key, LABEL_SIZE * count, nonce), np.dtype("<u8"))
    return raw.reshape(count, 2).copy()


class TweakHash:
    """TMMO: ``H(x, i) = π(π(x) ⊕ i) ⊕ π(x)``, π = AES-128 under a public key that is fresh for every use.

    Tweakable circular correlation robust in the ideal-cipher model (Guo, Katz, Wang, Yu, "Efficient and secure
    multiparty computation from fixed-key block ciphers", 2020), as half-gates and OT extension need.
    The tweak is the low word of a block.
    """

    __slots__ = ("_encryptor",)

    def __init__(self, key: bytes) -> None:
        # ECB is the bare permutation over many blocks at once; nothing is encrypted with it.
        self._encryptor: CipherContext = Cipher(algorithms.AES128(key), modes.ECB()).encryptor()  # noqa: S305

    def __call__(self, labels: Labels, tweaks: NDArray[np.uint64]) -> Labels:
        """Labels (n, 2) and tweaks (n,) to hashes (n, 2)."""
        first = self._permute(labels)
        mixed = first.copy()
        mixed[:, 0] ^= tweaks
        second = self._permute(mixed)
        second ^= first
        return second

    def _permute(self, labels: Labels) -> Labels:
        out = np.empty(2 * len(labels) + 2, np.dtype("<u8"))  # the library asks for one block less a byte of room
        self._encryptor.update_into(as_bytes(labels).reshape(-1).data, out.view(np.uint8).data)
        return out[:-2].reshape(-1, 2)
