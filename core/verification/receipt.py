"""What the requester signs: receipts of evaluations, and her one answer about each claimed model.

A receipt is good while the task is current; the block header that carries it binds it to a place in the chain (design:
verification, section 3). An answer covers no session, so it is the same for every validator, and two different ones about
one claim are her fault on sight (section 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Final

from core.chain.block import DOMAIN_RECEIPT, Receipt, Vm
from core.chain.vote import DOMAIN_TAG, DOMAIN_Z
from core.codec import DIGEST, PUBLIC_KEY, SIGNATURE, U32, Enum, encode
from core.crypto.hashing import digest
from core.crypto.homomorphic.params import Ints
from core.crypto.signing import KeyPair, sign, verify
from core.errors import CryptoError
from core.ids import AccountId, Correct, Digest, ModelCommitment, NodeId, Signature, TaskId

__all__ = [
    "Answer", "AnswerKind", "ReceiptMessage", "SignedAnswer", "contradict", "sign_answer", "sign_receipt", "tag",
    "verify_answer", "verify_receipt", "z_digest", "z_mark",
    "DOMAIN_ANSWER", "DOMAIN_MARK_OF_Z", "MAX_ANSWER",
]  # fmt: skip

DOMAIN_ANSWER: Final = b"pofl/verify/answer/1"
DOMAIN_MARK_OF_Z: Final = b"pofl/verify/z-mark/1"
MAX_ANSWER: Final = 512
"""No encoded SignedAnswer is longer, in bytes."""


@dataclass(frozen=True, slots=True)
class ReceiptMessage:
    """The bytes under a receipt's signature."""

    chain_id: Annotated[Digest, DIGEST]
    task_id: Annotated[TaskId, DIGEST]
    pool: Annotated[AccountId, PUBLIC_KEY]
    model_commitment: Annotated[ModelCommitment, DIGEST]
    garbled_circuit_digest: Annotated[Digest, DIGEST]
    output_keys_digest: Annotated[Digest, DIGEST]


def sign_receipt(key: KeyPair, message: ReceiptMessage) -> Receipt:
    """The requester's receipt for one evaluation."""
    return Receipt(message.output_keys_digest, sign(key, DOMAIN_RECEIPT, encode(message)))


def verify_receipt(requester: AccountId, chain_id: Digest, task_id: TaskId, pool: AccountId, vm: Vm) -> None:
    """Raises CryptoError unless ``vm`` carries the requester's receipt for this chain, task and pool."""
    message = ReceiptMessage(
        chain_id, task_id, pool, vm.model_commitment, vm.garbled_circuit_digest, vm.receipt.output_keys_digest
    )
    verify(requester, DOMAIN_RECEIPT, encode(message), vm.receipt.signature)


class AnswerKind(IntEnum):
    SCORED = 1
    MALFORMED = 2
    """The body does not decrypt to a model of the task's family under its own packed seed."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The requester's word about the model under ``model_commitment``."""

    chain_id: Annotated[Digest, DIGEST]
    task_id: Annotated[TaskId, DIGEST]
    pool: Annotated[AccountId, PUBLIC_KEY]
    model_commitment: Annotated[ModelCommitment, DIGEST]
    kind: Annotated[AnswerKind, Enum(AnswerKind)]
    z_mark: Annotated[Digest, DIGEST]
    """Of ``Z_1 … Z_L``, see z_mark: comparable, and no help to who wants a tag without an audit; zeros when malformed."""
    correct: Annotated[Correct, U32]
    """N*, her own count; 0 when malformed."""


@dataclass(frozen=True, slots=True)
class SignedAnswer:
    answer: Answer
    signature: Annotated[Signature, SIGNATURE]


def sign_answer(key: KeyPair, answer: Answer) -> SignedAnswer:
    return SignedAnswer(answer, sign(key, DOMAIN_ANSWER, encode(answer)))


def verify_answer(requester: AccountId, signed: SignedAnswer) -> None:
    """Raises CryptoError unless the requester signed this answer."""
    verify(requester, DOMAIN_ANSWER, encode(signed.answer), signed.signature)


def contradict(requester: AccountId, first: SignedAnswer, second: SignedAnswer) -> None:
    """Checks evidence that the requester answered twice about one claim, differently.

    Raises:
        CryptoError: a signature is not hers, the answers are about different claims, or they agree.
    """
    verify_answer(requester, first)
    verify_answer(requester, second)
    one, two = first.answer, second.answer
    same = (one.chain_id, one.task_id, one.pool, one.model_commitment)
    if same != (two.chain_id, two.task_id, two.pool, two.model_commitment):
        raise CryptoError("the two answers are about different claims")
    if one == two:
        raise CryptoError("the two answers agree")


def z_digest(layers: tuple[Ints, ...]) -> Digest:
    """``SHA-256(domain, Z_1, …, Z_L)``, each as little-endian int64 of shape (I, d_l) in C order."""
    return digest(DOMAIN_Z, *(layer.astype("<i8").tobytes() for layer in layers))


def z_mark(task_id: TaskId, model_commitment: ModelCommitment, z_digest: Digest) -> Digest:
    """What an answer shows of the z_digest. Answers are passed on before verdicts are in (docs/adr/0062): with the z_digest
    itself in them, whoever hears one could make the tag of an audit that it never made."""
    return digest(DOMAIN_MARK_OF_Z, task_id, model_commitment, z_digest)


def tag(chain_id: Digest, task_id: TaskId, model_commitment: ModelCommitment, z_digest: Digest, validator: NodeId) -> Digest:
    """What shows that ``validator`` audited: only who knows the digest of ``Z_1 … Z_L`` can make it."""
    return digest(DOMAIN_TAG, chain_id, task_id, model_commitment, z_digest, validator)
