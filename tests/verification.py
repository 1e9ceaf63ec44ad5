"""A whole small task for verification tests: keys, encrypted test set, context, all from seeds."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from core.chain.block import Vm
from core.chain.transaction import Activation, TaskSpec, task_id
from core.chain.vote import SignedVerdict
from core.crypto.homomorphic import PARAMS, PublicKey, SecretKey, generate_keys, public_key
from core.crypto.signing import KeyPair
from core.errors import BudgetError
from core.ids import AccountId, Correct, Digest, ModelCommitment, NodeId
from core.verification.audit_node import AuditedClaim, AuditNode, Finding
from core.verification.audit_requester import AnswerBook, AuditRequester
from core.verification.body import ModelOpening, commitment, make_body
from core.verification.evaluation_pool import EvaluationPool, EvaluationResult
from core.verification.evaluation_requester import EvaluationRequester
from core.verification.messages import Envelope
from core.verification.receipt import ReceiptMessage, sign_receipt
from core.verification.scored_model import ScoredModel
from core.verification.session import Session
from core.verification.task import TaskContext, key_context
from core.verification.test_set import EncryptedTestSet, TestSet, encrypt_test_set
from tests.models import random_features, random_labels
from tests.seeded import SeededRng

CHAIN = Digest(b"\x11" * 32)
POOL = AccountId(b"\x22" * 32)


class Marks:
    """One-use marks in memory: the twin of the stored ones."""

    def __init__(self) -> None:
        self.used: set[bytes] = set()

    def mark(self, key: bytes) -> None:
        if key in self.used:
            raise BudgetError(f"already used: {key!r}")
        self.used.add(key)


@dataclass(frozen=True, eq=False)
class World:
    task: TaskContext
    sk: SecretKey
    pk: PublicKey
    signer: KeyPair
    plain: TestSet
    encrypted: EncryptedTestSet
    blobs: tuple[bytes, ...]


def make_world(
    dims: tuple[int, ...] = (8, 4, 3),
    samples: int = 20,
    activation: Activation = Activation.SIGMOID,
    seed: int = 1,
    plain: TestSet | None = None,
    chain: Digest = CHAIN,
) -> World:
    rng = SeededRng(f"world {seed}")
    signer = KeyPair.generate(rng)
    requester = AccountId(signer.public_key)
    task = task_id(chain, requester, rng.bytes(32))
    sk = generate_keys(PARAMS, key_context(chain, task), rng)
    plain = plain or TestSet(random_features(samples, dims[0], seed), random_labels(samples, dims[-1], seed), dims[-1])
    blobs, digests, root = encrypt_test_set(sk, chain, task, plain, rng)
    spec = TaskSpec(
        name="test", features=dims[0], classes=dims[-1], samples=plain.samples, hidden=dims[1:-1], activation=activation,
        weight_bits=10, feature_scale_micro=127_000_000, test_root=root, test_blobs=digests, public_key_blob=Digest(bytes(32)),
        practice_blob=Digest(bytes(32)), endpoint="127.0.0.1:1", leak_bits=1 << 20,
    )  # fmt: skip
    context = TaskContext(chain, task, requester, spec)
    return World(context, sk, public_key(sk), signer, plain, EncryptedTestSet.load(context, blobs), blobs)


@functools.cache
def small_world() -> World:
    """Shared by tests that do not change it: 8-4-3, 20 samples."""
    return make_world()


class Standing:
    """A pool that entered and committed."""

    def __init__(self, commitment: ModelCommitment | None = None, entered: bool = True) -> None:
        self.committed, self.entered = commitment, entered

    def has_entered(self, pool: AccountId) -> bool:
        return self.entered

    def commitment(self, pool: AccountId) -> ModelCommitment | None:
        return self.committed


def exchange(caller: Session, requester: Session, opening: Sequence[Envelope], log: list[Envelope] | None = None) -> None:
    """Carries messages to and fro until both sides are silent, or the caller is done."""
    to_requester = list(opening)
    while to_requester:
        to_caller: list[Envelope] = []
        for envelope in to_requester:
            if log is not None:
                log.append(envelope)
            to_caller += requester.step(envelope)
        to_requester = []
        for envelope in to_caller:
            if log is not None:
                log.append(envelope)
            if caller.is_over:
                return
            to_requester += caller.step(envelope)


@dataclass(eq=False)
class Evaluation:
    """Both sides of one evaluation."""

    world: World
    model: ScoredModel
    pool: EvaluationPool
    requester: EvaluationRequester
    standing: Standing
    marks: Marks
    body: bytes
    opening: ModelOpening
    c_w: ModelCommitment

    def offline(self) -> None:
        exchange(self.pool, self.requester, self.pool.start())

    def online(self) -> EvaluationResult:
        self.standing.committed = self.c_w
        exchange(self.pool, self.requester, self.pool.evaluate(self.model, self.c_w))
        assert self.pool.result is not None
        return self.pool.result


def make_evaluation(
    world: World,
    model: ScoredModel,
    seed: int = 0,
    pool: type[EvaluationPool] = EvaluationPool,
    requester: type[EvaluationRequester] = EvaluationRequester,
    marks: Marks | None = None,
    batch: int = 0,
    plain: TestSet | None = None,
) -> Evaluation:
    session = hashlib.sha256(b"session %d" % seed).digest()
    marks = marks or Marks()
    standing = Standing()
    body, opening = make_body(world.pk, model, SeededRng(f"body {seed}"))
    p = pool(world.task, session, POOL, world.pk, world.encrypted, SeededRng(f"pool {seed}"), batch)
    r = requester(
        world.task, session, POOL, world.sk, plain or world.plain, world.signer, standing, marks, SeededRng(f"requester {seed}")
    )
    c_w = commitment(world.task.chain_id, world.task.task_id, POOL, body)
    return Evaluation(world, model, p, r, standing, marks, body, opening, c_w)


class Claims:
    """Every claim is on chain, every caller a validator, unless said otherwise."""

    def __init__(self, claimed: bool = True, validator: bool = True) -> None:
        self.claimed, self.validator = claimed, validator

    def is_claimed(self, pool: AccountId, model_commitment: ModelCommitment) -> bool:
        return self.claimed

    def check_turn(self, pool: AccountId, model_commitment: ModelCommitment, higher: tuple[SignedVerdict, ...]) -> None:
        """Every claim's turn."""

    def is_validator(self, validator: NodeId) -> bool:
        return self.validator


VALIDATOR = KeyPair.generate(SeededRng("validator"))


@dataclass(eq=False)
class Audit:
    """Both sides of one audit."""

    node: AuditNode
    requester: AuditRequester
    book: AnswerBook
    marks: Marks

    def run(self) -> Finding:
        exchange(self.node, self.requester, self.node.start())
        assert self.node.finding is not None
        return self.node.finding


def claim_of(world: World, body: bytes, correct: int, pool: AccountId = POOL) -> AuditedClaim:
    """A claim with a good receipt, without the evaluation before it."""
    c_w = commitment(world.task.chain_id, world.task.task_id, pool, body)
    circuit, keys = Digest(bytes(32)), Digest(b"\x01" * 32)
    statement = ReceiptMessage(world.task.chain_id, world.task.task_id, pool, c_w, circuit, keys)
    return AuditedClaim(pool, Correct(correct), Vm(c_w, circuit, sign_receipt(world.signer, statement)), body)


def make_audit(
    world: World,
    claim: AuditedClaim,
    seed: int = 0,
    node: type[AuditNode] = AuditNode,
    requester: type[AuditRequester] = AuditRequester,
    marks: Marks | None = None,
    attempt: int = 0,
    book: AnswerBook | None = None,
    plain: TestSet | None = None,
) -> Audit:
    session = hashlib.sha256(b"audit %d" % seed).digest()
    marks = marks or Marks()
    plain = plain or world.plain
    book = book or AnswerBook(world.task, world.sk, plain, world.signer)
    f = node(world.task, session, VALIDATOR, world.pk, world.encrypted, claim, SeededRng(f"node {seed}"), attempt)
    r = requester(
        world.task, session, NodeId(VALIDATOR.public_key), world.sk, plain, world.signer, book, Claims(), marks,
        SeededRng(f"audited {seed}"),
    )  # fmt: skip
    return Audit(f, r, book, marks)
