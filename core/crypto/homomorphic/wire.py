"""Polynomials modulo q as bytes: 50 bits a residue, little-endian, polynomial, limb, coefficient in that order."""

from __future__ import annotations

import numpy as np

from core.crypto.homomorphic.modular import check_residues
from core.crypto.homomorphic.params import PARAMS, HeParams, Residues
from core.errors import LimitError, MalformedError

__all__ = ["pack", "unpack"]

_GROUP, _GROUP_BYTES, _BITS = 4, 25, 50
_MASK = np.uint64((1 << _BITS) - 1)


def pack(residues: Residues, params: HeParams = PARAMS) -> bytes:
    """The wire form of (..., L, N): ``poly_bytes`` for each polynomial.

    Raises:
        MalformedError: an entry is not below its prime.
    """
    check_residues(residues, params)
    v = np.ascontiguousarray(residues).reshape(-1, _GROUP)
    words = np.empty((v.shape[0], 3), dtype="<u8")
    words[:, 0] = v[:, 0] | v[:, 1] << np.uint64(50)
    words[:, 1] = v[:, 1] >> np.uint64(14) | v[:, 2] << np.uint64(36)
    words[:, 2] = v[:, 2] >> np.uint64(28) | v[:, 3] << np.uint64(22)
    out = np.empty((v.shape[0], _GROUP_BYTES), dtype=np.uint8)
    out[:, :24] = words.view(np.uint8)
    out[:, 24] = v[:, 3] >> np.uint64(42)
    return out.tobytes()


def unpack(data: bytes, count: int, params: HeParams = PARAMS) -> Residues:
    """``count`` polynomials from their wire form, shape (count, L, N), checked before anything uses them.

    Raises:
        LimitError: more bytes than ``count`` polynomials take.
        MalformedError: fewer bytes, or a residue that is not below its prime.
    """
    expected = count * params.poly_bytes
    if len(data) > expected:
        raise LimitError(f"{len(data)} bytes for {count} polynomials of {params.poly_bytes}", size=len(data), limit=expected)
    if len(data) < expected:
        raise MalformedError(f"truncated: {len(data)} bytes for {count} polynomials of {params.poly_bytes}", size=len(data))
    raw = np.frombuffer(data, dtype=np.uint8).reshape(-1, _GROUP_BYTES)
    words = np.ascontiguousarray(raw[:, :24]).view("<u8")
    v = np.empty((raw.shape[0], _GROUP), dtype=np.uint64)
    v[:, 0] = words[:, 0] & _MASK
    v[:, 1] = (words[:, 0] >> np.uint64(50) | words[:, 1] << np.uint64(14)) & _MASK
    v[:, 2] = (words[:, 1] >> np.uint64(36) | words[:, 2] << np.uint64(28)) & _MASK
    v[:, 3] = words[:, 2] >> np.uint64(22) | raw[:, 24].astype(np.uint64) << np.uint64(42)
    residues = v.reshape(count, params.limbs, params.degree)
    check_residues(residues, params)
    return residues
