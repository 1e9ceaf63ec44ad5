"""The body behind ``Vm``: the encrypted model, its commitment ``c_W``, and who is at fault when it does not decrypt.

``body = shape ‖ salt ‖ encrypted model``. The plaintext is the model, densely packed (``W_1`` row-major, ``b_1``, ``W_2``, …),
then the 32-byte seed of the encryption as eight words of 32 bits. The encryption's randomness is a function of seed and model,
so whoever decrypts can encrypt again and compare bit for bit: a body half way between two messages is found out, and a
decryption reveals nothing that its maker did not know (design: verification, section 5).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import Enum, auto
from typing import Annotated, Final

import numpy as np

from core.chain.block import MAX_VM_BODY
from core.chain.claims import model_commitment
from core.codec import Fixed, Var, decode, encode
from core.crypto.hashing import digest
from core.crypto.homomorphic import PARAMS, PublicKey, Residues, SecretKey, decrypt, encrypt_public, pack, public_key, unpack
from core.crypto.homomorphic.params import Ints
from core.errors import InputError, MalformedError
from core.ids import AccountId, Digest, ModelCommitment, TaskId
from core.ports import Rng
from core.verification.field import T, centred, pack_values, unpack_values
from core.verification.scored_model import ModelFamily, ModelShape, ScoredModel

__all__ = [
    "Blame", "EncryptedModel", "ModelOpening", "VmBody", "body_digest", "commitment", "decrypt_body", "judge_opening",
    "make_body", "plain_weights", "read_body",
    "DOMAIN_MODEL_COINS",
]  # fmt: skip

DOMAIN_MODEL_COINS: Final = b"pofl/verify/model-coins/1"
SEED_BYTES: Final = 32
SEED_WORDS: Final = 8
MAX_CIPHERTEXT_BYTES: Final = MAX_VM_BODY - 1024
MAX_PARAMETERS: Final = MAX_CIPHERTEXT_BYTES // (2 * PARAMS.poly_bytes) * PARAMS.degree - SEED_WORDS
"""Weights and biases of the largest model whose body fits."""


@dataclass(frozen=True, slots=True)
class VmBody:
    shape: ModelShape
    salt: Annotated[bytes, Fixed(32)]
    ciphertexts: Annotated[bytes, Var(MAX_CIPHERTEXT_BYTES)]
    """All ``c0``, then all ``c1``, packed."""


@dataclass(frozen=True, slots=True)
class ModelOpening:
    """What the pool shows to the validators when the requester says "malformed": everything that makes the body."""

    seed: Annotated[bytes, Fixed(SEED_BYTES)]
    values: Annotated[bytes, Var(MAX_VM_BODY)]
    """The model's encoding modulo t, 5 bytes a value."""


@dataclass(frozen=True, eq=False)
class EncryptedModel:
    """A checked body: its shape and both halves of its ciphertexts, each (count, L, N)."""

    shape: ModelShape
    c0: Residues
    c1: Residues


class Blame(Enum):
    """Whose fault a body is that the requester calls malformed."""

    POOL = auto()
    REQUESTER = auto()


def ciphertexts_of(family: ModelFamily) -> int:
    """How many ciphertexts a model of this family and its seed take."""
    return -(-(family.parameters + SEED_WORDS) // PARAMS.degree)


def make_body(pk: PublicKey, model: ScoredModel, rng: Rng) -> tuple[bytes, ModelOpening]:
    """The body of a model, and what would open it. The opening stays secret unless the requester says "malformed"."""
    opening = ModelOpening(rng.bytes(SEED_BYTES), pack_values(np.remainder(model.encode(), T)))
    return encode(VmBody(model.shape, rng.bytes(32), _encrypt(pk, model.shape, opening))), opening


def commitment(chain_id: Digest, task_id: TaskId, pool: AccountId, body: bytes) -> ModelCommitment:
    """``c_W = SHA-256(domain, chain, task, pool, SHA-256(body))``: worthless to any other pool."""
    return model_commitment(chain_id, task_id, pool, body_digest(body))


def body_digest(body: bytes) -> Digest:
    """What a claim shows of the body, so that everybody sees whose ``c_W`` is."""
    return Digest(hashlib.sha256(body).digest())


def read_body(body: bytes, family: ModelFamily) -> EncryptedModel:
    """The checked body of a model of ``family``.

    Raises:
        MalformedError, LimitError: not a body, another family than the task's, or residues out of range. Everyone sees
            that, so it is the pool's fault without asking the requester.
    """
    decoded = decode(VmBody, body, MAX_VM_BODY)
    if decoded.shape.family() != family:
        raise MalformedError(f"the body holds a model of {decoded.shape}, the task asks for {family}")
    count = ciphertexts_of(family)
    residues = unpack(decoded.ciphertexts, 2 * count)
    if not residues[count:].any(axis=(1, 2)).all():
        raise MalformedError("a ciphertext of the body has c1 = 0: it hides nothing")
    return EncryptedModel(decoded.shape, residues[:count], residues[count:])


def decrypt_body(sk: SecretKey, body: bytes, family: ModelFamily) -> ScoredModel:
    """The requester's reading of a body: decrypt, encrypt again from the packed seed, compare, check every range.

    Raises:
        MalformedError, LimitError: her answer is then "malformed".
    """
    encrypted = read_body(body, family)
    values = decrypt(sk, encrypted.c0, encrypted.c1).reshape(-1)
    words = values[family.parameters : family.parameters + SEED_WORDS]
    if int(words.max()) >> 32:
        raise MalformedError("a word of the packed seed has more than 32 bits")
    model = values[: family.parameters]
    opening = ModelOpening(words.astype("<u4").tobytes(), pack_values(model))
    if _encrypt(public_key(sk), encrypted.shape, opening) != decode(VmBody, body).ciphertexts:
        raise MalformedError("the body is not the encryption of what it decrypts to")
    return ScoredModel.decode(encrypted.shape, centred(model))


def judge_opening(pk: PublicKey, body: bytes, family: ModelFamily, opening: bytes | None) -> Blame:
    """Who lied when the requester called ``body`` malformed: she did if the opening makes the body and every value is in range.

    The caller has checked that ``body`` has the claimed ``c_W``. ``opening`` is an encoded ModelOpening, None if none came in
    time.
    """
    if opening is None:
        return Blame.POOL
    try:
        shown = decode(ModelOpening, opening, 2 * MAX_VM_BODY)
        encrypted = read_body(body, family)
        ScoredModel.decode(encrypted.shape, centred(unpack_values(shown.values, (family.parameters,))))
    except InputError:
        return Blame.POOL
    return Blame.REQUESTER if _encrypt(pk, encrypted.shape, shown) == decode(VmBody, body).ciphertexts else Blame.POOL


def _encrypt(pk: PublicKey, shape: ModelShape, opening: ModelOpening) -> bytes:
    family = shape.family()
    plain = np.zeros(ciphertexts_of(family) * PARAMS.degree, dtype=np.int64)
    plain[: family.parameters] = unpack_values(opening.values, (family.parameters,))
    plain[family.parameters : family.parameters + SEED_WORDS] = np.frombuffer(opening.seed, dtype="<u4")
    coins = digest(DOMAIN_MODEL_COINS, opening.seed, encode(shape), opening.values)
    return b"".join(pack(half) for half in encrypt_public(pk, plain.reshape(-1, PARAMS.degree), coins))


def plain_weights(values: Ints, count: int) -> Ints:
    """Weights of a linear form over the body's plaintext, (P,) as (count, N); seed and padding have weight zero."""
    out = np.zeros(count * PARAMS.degree, dtype=np.int64)
    out[: len(values)] = values
    return out.reshape(count, PARAMS.degree)
