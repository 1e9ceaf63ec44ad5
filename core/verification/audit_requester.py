"""The requester's side of audits and of stored checks (design: verification, sections 2, 4 and 6).

She gives one signed answer about each claimed model, the same to every validator, and proves it to each of them. What a
validator can make her decrypt is one bit a run, charged when the session opens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Protocol

import numpy as np

from core.chain.vote import SignedVerdict
from core.crypto.homomorphic import PARAMS, SecretKey, encrypt_symmetric, pack
from core.crypto.homomorphic.params import Ints
from core.crypto.signing import KeyPair
from core.crypto.zero_check import ZeroCheckResponder
from core.errors import AuthError, InputError, MalformedError, UnavailableError
from core.ids import AccountId, Correct, Digest, ModelCommitment, NodeId
from core.ports import Rng
from core.verification import body as bodies
from core.verification.field import T, dot, expand_values, matmul, matmul_small, multiply, pack_values, random_values
from core.verification.messages import (
    AuditAnswer,
    AuditOpen,
    BodyWanted,
    Challenges,
    Hints,
    LayerValues,
    MaskedProducts,
    Message,
    ModelBody,
    RunSeeds,
    StoredOpen,
    StoredOpened,
    ZeroCommitments,
    ZeroNumbers,
    ZeroQueries,
)
from core.verification.receipt import Answer, AnswerKind, SignedAnswer, sign_answer, z_digest, z_mark
from core.verification.scored_model import ModelFamily, ScoredModel, count_correct
from core.verification.session import OneUse, Session, mark_key, sign_openings
from core.verification.task import PublicKind, TaskContext
from core.verification.test_set import TestSet
from core.verification.transcript import Purpose, Side

__all__ = [
    "ATTEMPTS", "AUDIT_RUNS", "AnswerBook", "AuditRequester", "ClaimStanding", "DOMAIN_RUN", "ModelAnswer", "StoredRequester",
    "audit_limit", "hint_session", "run_coins",
]  # fmt: skip

AUDIT_RUNS: Final = 3
ATTEMPTS: Final = 3
"""One audit and two retries for each validator and claim; the same for the stored check."""
DOMAIN_RUN: Final = b"pofl/verify/audit-run/1"


class ClaimStanding(Protocol):
    """What the requester reads from the chain about a claim."""

    def is_claimed(self, pool: AccountId, model_commitment: ModelCommitment) -> bool:
        """On chain for this task, and claims have closed."""

    def check_turn(self, pool: AccountId, model_commitment: ModelCommitment, higher: tuple[SignedVerdict, ...]) -> None:
        """Raises TurnError unless ``higher``, with what is known already, refutes or skips every higher claim; MalformedError
        for verdicts that no honest validator brings."""

    def is_validator(self, validator: NodeId) -> bool:
        """May audit and store for this task."""


def run_coins(seed: bytes, samples: int, width: int) -> tuple[Ints, Ints]:
    """``s`` (I,) and ``r`` (K,) of one run, expanded from its seed on both sides."""
    values = expand_values(DOMAIN_RUN, seed, samples + width)
    return values[:samples], values[samples:]


def hint_session(message: AuditOpen, session: bytes) -> bytes:
    """What makes the public ``c1`` of this session's hints its own."""
    return mark_key(
        b"hint", message.task_id, message.pool, message.model_commitment, message.validator, bytes([message.attempt]), session
    )


def audit_limit(task: TaskContext, family: ModelFamily) -> int:
    """No message of an audit of this task is longer, in bytes."""
    body = 2 * bodies.ciphertexts_of(family) * PARAMS.poly_bytes
    return max(body, 5 * task.samples * max(family.dims[1:]), 16 * PARAMS.poly_bytes) + (1 << 16)


@dataclass(frozen=True, eq=False)
class ModelAnswer:
    """Her answer about one model, and what she needs to prove it. ``model`` is None when malformed."""

    signed: SignedAnswer
    model: ScoredModel | None
    z: tuple[Ints, ...]

    @cached_property
    def layers(self) -> tuple[LayerValues, ...]:
        """``Z_1 … Z_L`` as every validator gets them."""
        return tuple(LayerValues(number, pack_values(np.remainder(z, T))) for number, z in enumerate(self.z, start=1))


class AnswerBook:
    """One answer for each claimed model, found once and given to every validator.

    The answer is a function of body and test set, so a restarted requester signs the same one again.
    """

    def __init__(self, task: TaskContext, sk: SecretKey, test_set: TestSet, key: KeyPair) -> None:
        self._task, self._sk, self._test_set, self._key = task, sk, test_set, key
        self._answers: dict[ModelCommitment, ModelAnswer] = {}

    def find(self, model_commitment: ModelCommitment) -> ModelAnswer | None:
        """The answer, if the body was seen."""
        return self._answers.get(model_commitment)

    def decide(self, pool: AccountId, model_commitment: ModelCommitment, body: bytes) -> ModelAnswer:
        """Decrypts and scores a body.

        Raises:
            MalformedError: the body is not the one under ``model_commitment``.
        """
        if bodies.commitment(self._task.chain_id, self._task.task_id, pool, body) != model_commitment:
            raise MalformedError(f"the body is not the one under {model_commitment.hex()[:16]}")
        known = self._answers.get(model_commitment)
        if known is None:
            known = self._answer(pool, model_commitment, body)
            self._answers[model_commitment] = known
        return known

    def model(self, model_commitment: ModelCommitment) -> ScoredModel | None:
        """The decrypted model: what the requester buys when this claim wins."""
        known = self._answers.get(model_commitment)
        return None if known is None else known.model

    def _answer(self, pool: AccountId, model_commitment: ModelCommitment, body: bytes) -> ModelAnswer:
        task = self._task
        model: ScoredModel | None = None
        z: tuple[Ints, ...] = ()
        kind, mark, correct = AnswerKind.MALFORMED, Digest(bytes(32)), Correct(0)
        try:
            model = bodies.decrypt_body(self._sk, body, task.family)
        except InputError:
            pass
        else:
            z, predictions = model.forward(self._test_set.features)
            kind, correct = AnswerKind.SCORED, count_correct(predictions, self._test_set.labels)
            mark = z_mark(task.task_id, model_commitment, z_digest(z))
        answer = Answer(task.chain_id, task.task_id, pool, model_commitment, kind, mark, correct)
        return ModelAnswer(sign_answer(self._key, answer), model, z)


class _Prover(Session):
    """The requester's half of a zero check at the end of a session."""

    def __init__(
        self,
        purpose: Purpose,
        task: TaskContext,
        session: bytes,
        limit: int,
        sk: SecretKey,
        key: KeyPair,
        rng: Rng,
    ) -> None:
        super().__init__(Side.REQUESTER, purpose, task, session, limit)
        self._sk, self._key, self._rng = sk, key, rng
        self._responder: ZeroCheckResponder | None = None

    def _commit(self, message: ZeroQueries) -> Sequence[Message]:
        if len(message.queries) != AUDIT_RUNS:
            raise MalformedError(f"{len(message.queries)} runs, expected {AUDIT_RUNS}")
        responder = ZeroCheckResponder(self._sk, self._rng, self._head_before)
        commitments = tuple(responder.commit(message.queries))
        self._responder, self._expected = responder, (ZeroNumbers,)
        return (ZeroCommitments(commitments),)

    def _open_runs(self, message: ZeroNumbers) -> Sequence[Message]:
        assert self._responder is not None
        openings = tuple(self._responder.open(message.numbers))
        self._end("the zero check is complete")
        return (sign_openings(self._key, self.transcript.head, openings),)

    def _admit(self, caller: NodeId, named: NodeId, attempt: int, standing: ClaimStanding) -> None:
        if named != caller:
            raise AuthError(f"the caller is {caller.hex()[:16]}, the session is for {named.hex()[:16]}")
        if not standing.is_validator(caller):
            raise AuthError(f"{caller.hex()[:16]} is no validator")
        if attempt >= ATTEMPTS:
            raise MalformedError(f"attempt {attempt}; there are attempts 0 to {ATTEMPTS - 1}", attempt=attempt)


class AuditRequester(_Prover):
    """Answers one validator's audit of one claim."""

    def __init__(
        self,
        task: TaskContext,
        session: bytes,
        validator: NodeId,
        sk: SecretKey,
        test_set: TestSet,
        key: KeyPair,
        book: AnswerBook,
        standing: ClaimStanding,
        marks: OneUse,
        rng: Rng,
    ) -> None:
        """``validator`` is the authenticated caller; ``book`` is shared by all sessions of the task."""
        super().__init__(Purpose.AUDIT, task, session, audit_limit(task, task.family), sk, key, rng)
        self._validator, self._test_set = validator, test_set
        self._book, self._standing, self._marks = book, standing, marks
        self._open: AuditOpen | None = None
        self._answer: ModelAnswer | None = None
        self._hidden: list[tuple[Ints, Ints]] = []
        """``(v, m)`` of each run: ``W_1 r`` and the mask."""
        self._expected = (AuditOpen,)

    def _handle(self, message: Message) -> Sequence[Message]:
        match message:
            case AuditOpen():
                return self._begin(message)
            case ModelBody():
                return self._reply(message)
            case RunSeeds():
                return self._hint(message)
            case Challenges():
                return self._show_products(message)
            case ZeroQueries():
                return self._commit(message)
            case ZeroNumbers():
                return self._open_runs(message)
        raise AssertionError(type(message))

    def _begin(self, message: AuditOpen) -> Sequence[Message]:
        self._check_task(message.chain_id, message.task_id)
        self._admit(self._validator, message.validator, message.attempt, self._standing)
        if not self._standing.is_claimed(message.pool, message.model_commitment):
            raise UnavailableError(f"model {message.model_commitment.hex()[:16]} is not claimed, or claims are still open")
        self._standing.check_turn(message.pool, message.model_commitment, message.higher)
        # All secrets of this session live in this object; after a crash the attempt is lost and never resumed with others.
        name = (self.task.task_id, message.pool, message.model_commitment, message.validator, bytes([message.attempt]))
        self._marks.mark(mark_key(b"audit", *name))
        self._open, self._expected = message, (ModelBody,)
        return (BodyWanted(self._book.find(message.model_commitment) is None),)

    def _reply(self, message: ModelBody) -> Sequence[Message]:
        """Step 1: her answer, and ``Z_1 … Z_L``."""
        assert self._open is not None
        opened = self._open
        answer = self._book.find(opened.model_commitment)
        if answer is None:
            answer = self._book.decide(opened.pool, opened.model_commitment, message.body)
        self._answer = answer
        if answer.model is None:
            self._end("the answer is malformed")
            return (AuditAnswer(answer.signed),)
        self._expected = (RunSeeds,)
        return (AuditAnswer(answer.signed), *answer.layers)

    def _hint(self, message: RunSeeds) -> Sequence[Message]:
        """Step 2: for each run a fresh mask m and ``T = <m, u>`` with ``u_j = Σ_i s_i a_ij``, encrypted."""
        assert self._answer is not None
        assert self._answer.model is not None
        assert self._open is not None
        if len(message.seeds) != AUDIT_RUNS or len(set(message.seeds)) != AUDIT_RUNS:
            raise MalformedError(f"{AUDIT_RUNS} different seeds are needed, got {len(message.seeds)}")
        session = hint_session(self._open, self.session)
        coins = [run_coins(seed, self.task.samples, self.task.first_width) for seed in message.seeds]
        sums = matmul_small(np.stack([s for s, _ in coins]), self._test_set.floats)
        hints, hidden = [], []
        for run, ((_, r), u) in enumerate(zip(coins, sums, strict=True)):
            mask = random_values(self._rng, self.task.features)
            plain = np.zeros((1, PARAMS.degree), dtype=np.int64)
            plain[0, : self.task.features] = mask
            plain[0, self.task.features] = dot(mask, u)
            hints.append(pack(encrypt_symmetric(self._sk, self.task.public(PublicKind.HINT, run, session), plain, self._rng)))
            hidden.append((matmul(self._answer.model.weights[0], r), mask))
        self._hidden, self._expected = hidden, (Challenges,)
        return (Hints(tuple(hints)),)

    def _show_products(self, message: Challenges) -> Sequence[Message]:
        """``w = χ W_1 r + m``: uniform to the node."""
        if len(message.chi) != AUDIT_RUNS or any(not 0 <= chi < T for chi in message.chi):
            raise MalformedError(f"{AUDIT_RUNS} challenges in [0, {T}) are needed, got {message.chi}")
        w = [np.remainder(multiply(v, chi) + m, T) for chi, (v, m) in zip(message.chi, self._hidden, strict=True)]
        self._hidden, self._expected = [], (ZeroQueries,)
        return (MaskedProducts(pack_values(np.stack(w))),)


class StoredRequester(_Prover):
    """Proves to one validator that the scores of every row of the encrypted test set sum to one, once."""

    def __init__(
        self,
        task: TaskContext,
        session: bytes,
        validator: NodeId,
        sk: SecretKey,
        key: KeyPair,
        standing: ClaimStanding,
        marks: OneUse,
        rng: Rng,
    ) -> None:
        super().__init__(Purpose.STORED_CHECK, task, session, 16 * PARAMS.poly_bytes, sk, key, rng)
        self._validator, self._standing, self._marks = validator, standing, marks
        self._expected = (StoredOpen,)

    def _handle(self, message: Message) -> Sequence[Message]:
        match message:
            case StoredOpen():
                self._check_task(message.chain_id, message.task_id)
                self._admit(self._validator, message.validator, message.attempt, self._standing)
                self._marks.mark(mark_key(b"stored", self.task.task_id, message.validator, bytes([message.attempt])))
                self._expected = (ZeroQueries,)
                return (StoredOpened(),)
            case ZeroQueries():
                return self._commit(message)
            case ZeroNumbers():
                return self._open_runs(message)
        raise AssertionError(type(message))
