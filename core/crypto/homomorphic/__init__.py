"""BFV on residues: what the verification protocols compute on encrypted test samples (design: verification, section 2).

Plaintexts are packed in coefficients: sample i is coefficient ``i mod N`` of batch ``i div N`` (docs/adr/0010). A ciphertext is
a pair of residue arrays in coefficient form; everything on them is exact and the same on every machine. SEAL (through
TenSEAL) makes the keys and is the reference twin, see ``SealTwin``.
"""

from core.crypto.homomorphic.combine import (
    combine,
    combine_reference,
    dot_weights,
    linear_form,
    linear_forms,
    multiply_poly,
    multiply_poly_reference,
)
from core.crypto.homomorphic.encryption import (
    NumberMask,
    add_plain,
    decrypt,
    encrypt_public,
    encrypt_symmetric,
    mask_for_decryption,
    measure_noise,
    number_mask,
    rerandomise,
)
from core.crypto.homomorphic.keys import PublicKey, SecretKey, generate_keys, public_key
from core.crypto.homomorphic.modular import add, check_plain, check_residues, negate, sub
from core.crypto.homomorphic.params import PARAMS, HeParams, Ints, Residues
from core.crypto.homomorphic.rounding import compose, scale_down, scale_up
from core.crypto.homomorphic.rows import Rows, RowsBuilder
from core.crypto.homomorphic.sampling import expand_uniform
from core.crypto.homomorphic.seal import SealTwin
from core.crypto.homomorphic.wire import pack, unpack

__all__ = [
    "HeParams", "Ints", "NumberMask", "PARAMS", "PublicKey", "Residues", "Rows", "RowsBuilder", "SealTwin", "SecretKey", "add",
    "add_plain", "check_plain", "check_residues", "combine", "combine_reference", "compose", "decrypt", "dot_weights",
    "encrypt_public", "encrypt_symmetric", "expand_uniform", "generate_keys", "linear_form", "linear_forms",
    "mask_for_decryption", "measure_noise", "multiply_poly", "multiply_poly_reference", "negate", "number_mask", "pack",
    "public_key", "rerandomise", "scale_down", "scale_up", "sub", "unpack",
]  # fmt: skip
