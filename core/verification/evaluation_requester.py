"""The requester's side of one evaluation (paper, section IV; design: verification, section 3).

She decrypts only what the pool has shown to know (knowledge check), answers one masked model, once, and returns output keys
that the garbled circuit lists, or aborts in one fixed way. She learns neither the model nor N.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np

from core.crypto import garbling
from core.crypto.circuits import comparison_circuit, label_bits
from core.crypto.hashing import digest
from core.crypto.homomorphic import PARAMS, SecretKey, decrypt, unpack
from core.crypto.homomorphic.params import Ints
from core.crypto.oblivious_transfer import Ciphertexts, ExtensionReceiver, SetupRequest
from core.crypto.signing import KeyPair
from core.crypto.zero_check import ZeroCheckResponder
from core.errors import AuthError, CheatingError, MalformedError, UnavailableError
from core.ids import AccountId, Digest, ModelCommitment
from core.ports import Rng
from core.verification.field import T, matmul, matmul_small, pack_values, random_values, unpack_values
from core.verification.messages import (
    EXTRA_ROWS,
    BaseTransfer,
    BatchAccepted,
    EvaluationOpen,
    GarbledLabels,
    KnowledgeChallenge,
    KnowledgeCommitment,
    KnowledgeOpening,
    KnowledgeShares,
    MaskedModel,
    MaskedRows,
    Message,
    OutputKeys,
    TransferRequest,
    ZeroCommitments,
    ZeroNumbers,
    ZeroQueries,
)
from core.verification.receipt import ReceiptMessage, sign_receipt
from core.verification.session import OneUse, Session, mark_key, sign_openings
from core.verification.task import TaskContext
from core.verification.test_set import TestSet
from core.verification.transcript import Purpose, Side

__all__ = [
    "BATCHES", "DOMAIN_KEYS", "EVALUATION_CHECKS", "EVALUATION_RUNS", "EvaluationRequester", "PoolStanding", "evaluation_limit",
    "foreseen_commitment", "keys_digest",
]  # fmt: skip

BATCHES: Final = 2
"""Offline batches of one pool: one, and one spare."""
EVALUATION_RUNS: Final = 2
EVALUATION_CHECKS: Final = 3
"""One zero check, and two more where she found a run unequal: it may have been chance."""
DOMAIN_KEYS: Final = b"pofl/verify/output-keys/1"
DOMAIN_FORESEEN: Final = b"pofl/verify/foreseen-shares/1"


class PoolStanding(Protocol):
    """What the requester reads from the chain about one pool."""

    def has_entered(self, pool: AccountId) -> bool:
        """Entered the task, and entry has closed."""

    def commitment(self, pool: AccountId) -> ModelCommitment | None:
        """The pool's committed ``c_W``; None until commits have closed, or if it did not commit."""


def keys_digest(keys: bytes) -> Digest:
    """What the receipt says about the returned output keys."""
    return digest(DOMAIN_KEYS, keys)


def foreseen_commitment(head: Digest, salt: bytes, g: bytes) -> Digest:
    """What the requester commits to before she sees g: ``head`` is the transcript up to the opening of h."""
    return digest(DOMAIN_FORESEEN, head, salt, g)


def evaluation_limit(task: TaskContext) -> int:
    """No message of an evaluation of this task is longer, in bytes."""
    circuit = comparison_circuit(task.samples, task.label_bits)
    rows = 2 * (task.first_width + EXTRA_ROWS) * task.batches * PARAMS.poly_bytes
    labels = garbling.GarbledCircuit.encoded_size(circuit) + Ciphertexts.encoded_size(task.samples * task.label_bits)
    values = 5 * task.samples * (task.first_width + EXTRA_ROWS) + 32 * task.samples * task.label_bits
    return max(rows, labels, values) + (1 << 16)


class EvaluationRequester(Session):
    """Answers one pool's evaluation, offline part and online part, in one session."""

    def __init__(
        self,
        task: TaskContext,
        session: bytes,
        pool: AccountId,
        sk: SecretKey,
        test_set: TestSet,
        key: KeyPair,
        standing: PoolStanding,
        marks: OneUse,
        rng: Rng,
    ) -> None:
        """``pool`` is the authenticated caller; ``key`` signs the receipt."""
        super().__init__(Side.REQUESTER, Purpose.EVALUATION, task, session, evaluation_limit(task))
        self._pool, self._sk, self._test_set, self._key = pool, sk, test_set, key
        self._standing, self._marks, self._rng = standing, marks, rng
        self._circuit = comparison_circuit(task.samples, task.label_bits)
        self._transfer = ExtensionReceiver(session, rng)
        self._base: SetupRequest | None = None
        self._shares: Ints | None = None
        """``D``: (K + 2, I) until the knowledge check, (K, I) after it, None once used."""
        self._gamma: Ints | None = None
        self._foreseen = b""
        """What the pool's g has to be, packed, and the salt of the commitment to it."""
        self._salt = b""
        self._commitment: ModelCommitment | None = None
        self._responder: ZeroCheckResponder | None = None
        self._checks = 0
        """Zero checks that were begun: each tells the pool EVALUATION_RUNS bits."""
        self._expected = (EvaluationOpen,)

    def _handle(self, message: Message) -> Sequence[Message]:
        match message:
            case EvaluationOpen():
                return self._open(message)
            case BaseTransfer():
                self._base = SetupRequest.decode(message.data)
                self._expected = (MaskedRows,)
                return ()
            case MaskedRows():
                return self._decrypt(message)
            case KnowledgeOpening():
                return self._foresee(message)
            case KnowledgeShares():
                return self._check_knowledge(message)
            case MaskedModel():
                return self._answer(message)
            case GarbledLabels():
                return self._compare(message)
            case ZeroQueries():
                responder = ZeroCheckResponder(self._sk, self._rng, self._head_before)
                if len(message.queries) != EVALUATION_RUNS:
                    raise MalformedError(f"{len(message.queries)} runs, an evaluation has {EVALUATION_RUNS}")
                commitments = tuple(responder.commit(message.queries))
                self._checks += 1
                self._responder, self._expected = responder, (ZeroNumbers,)
                return (ZeroCommitments(commitments),)
            case ZeroNumbers():
                assert self._responder is not None
                openings = tuple(self._responder.open(message.numbers))
                if None in openings and self._checks < EVALUATION_CHECKS:
                    # Chance can spoil a check near a rounding boundary. Another one is charged to the same few.
                    self._responder, self._expected = None, (ZeroQueries,)
                else:
                    self._end("the evaluation is complete")
                return (sign_openings(self._key, self.transcript.head, openings),)
        raise AssertionError(type(message))

    def _open(self, message: EvaluationOpen) -> Sequence[Message]:
        self._check_task(message.chain_id, message.task_id)
        if message.pool != self._pool:
            raise AuthError(f"the caller is {self._pool.hex()[:16]}, the session is for {message.pool.hex()[:16]}")
        if message.batch >= BATCHES:
            raise MalformedError(f"batch {message.batch}; a pool has batches 0 to {BATCHES - 1}", batch=message.batch)
        if not self._standing.has_entered(self._pool):
            raise UnavailableError("evaluation opens to entered pools when entry has closed")
        # Everything secret of this session lives in this object only, so one mark at its opening covers it: after a crash
        # the batch is lost, never used twice.
        self._marks.mark(mark_key(b"evaluation-batch", self.task.task_id, self._pool, bytes([message.batch])))
        self._expected = (BaseTransfer,)
        return ()

    def _decrypt(self, message: MaskedRows) -> Sequence[Message]:
        """Step 2, first half: ``D_k = H_k A^T - m_k``."""
        assert self._base is not None
        rows = self.task.first_width + EXTRA_ROWS
        residues = unpack(message.ciphertexts, 2 * rows * self.task.batches)
        half = rows * self.task.batches
        plain = decrypt(self._sk, residues[:half], residues[half:])
        reply = self._transfer.setup(self._base)
        self._shares = self.task.gather(plain.reshape(rows, self.task.batches, PARAMS.degree))
        gamma = random_values(self._rng, EXTRA_ROWS * self.task.first_width).reshape(EXTRA_ROWS, -1)
        self._gamma = gamma
        self._expected = (KnowledgeOpening,)
        return (BaseTransfer(reply.encode()), KnowledgeChallenge(pack_values(gamma)))

    def _foresee(self, message: KnowledgeOpening) -> Sequence[Message]:
        """Step 2: what g must be, ``h A^T - (Σ γ_k D_k + D')``, and a commitment to it before she sees it.

        With well-formed rows she knows g before it comes, so it tells her nothing about H. With fractions planted in them she
        would have to guess every rounding (docs/adr/0067).
        """
        assert self._shares is not None
        assert self._gamma is not None
        h = unpack_values(message.h, (EXTRA_ROWS, self.task.features))
        width = self.task.first_width
        found = np.remainder(matmul(self._gamma, self._shares[:width]) + self._shares[width:], T)
        self._foreseen = pack_values(np.remainder(matmul_small(h, self._test_set.floats.T) - found, T))
        self._salt = self._rng.bytes(32)
        self._expected = (KnowledgeShares,)
        return (KnowledgeCommitment(foreseen_commitment(self.transcript.head, self._salt, self._foreseen)),)

    def _check_knowledge(self, message: KnowledgeShares) -> Sequence[Message]:
        """Step 2, second half: ``Σ γ_k D_k + D' = h A^T - g``.

        Raises:
            CheatingError: the pool does not know what it asked to decrypt; the batch is used up.
        """
        assert self._shares is not None
        unpack_values(message.g, (EXTRA_ROWS, self.task.samples))
        if message.g != self._foreseen:
            self._shares = None
            raise CheatingError("the knowledge check failed: the pool asked to decrypt what it does not know")
        self._shares = self._shares[: self.task.first_width]
        self._expected = (MaskedModel,)
        return (BatchAccepted(self._salt),)

    def _answer(self, message: MaskedModel) -> Sequence[Message]:
        """Step 4: ``V = E A^T + D``, once for this pool and task."""
        assert self._shares is not None
        committed = self._standing.commitment(self._pool)
        if committed is None:
            raise UnavailableError("models are evaluated when commits have closed, and only committed ones")
        if message.model_commitment != committed:
            raise MalformedError(f"model {message.model_commitment.hex()[:16]}, the chain has {committed.hex()[:16]}")
        e = unpack_values(message.e, (self.task.first_width, self.task.features))
        self._marks.mark(mark_key(b"evaluation-answer", self.task.task_id, self._pool))
        v = np.remainder(matmul_small(e, self._test_set.floats.T) + self._shares, T)
        choices = self._transfer.choose(label_bits(self._test_set.labels, self.task.label_bits))
        self._shares, self._commitment = None, committed
        self._expected = (GarbledLabels,)
        return (TransferRequest(pack_values(v), choices.encode()),)

    def _compare(self, message: GarbledLabels) -> Sequence[Message]:
        """Evaluates the circuit on her labels.

        Raises:
            CheatingError: an output key is not listed; always in the same words.
        """
        assert self._commitment is not None
        public = garbling.GarbledCircuit.decode(self._circuit, message.circuit)
        transfer = Ciphertexts.decode(message.transfer, self.task.samples * self.task.label_bits)
        labels = self._transfer.receive(transfer)
        keys = garbling.evaluate(self._circuit, public, labels).tobytes()
        statement = ReceiptMessage(
            self.task.chain_id, self.task.task_id, self._pool, self._commitment, public.digest, keys_digest(keys)
        )
        self._expected = (ZeroQueries,)
        return (OutputKeys(keys, sign_receipt(self._key, statement)),)
