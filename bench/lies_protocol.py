"""The liars of bench.lies_told behind the real machines: real keys, real ciphertexts, every message encoded and answered.

A lie is missed when the audit ends in ``Valid``, the evaluation in a result, the stored check in a pass, or when somebody else
than the liar is blamed. Pools and signatures have lies of their own here, which no linear form is about.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final
from unittest.mock import patch

import numpy as np

from bench.lies import CASE_TRIES, RNG, Tally
from bench.lies_kinds import AUDIT_LIES, EVALUATION_LIES, STORED_LIES
from bench.lies_told import Case, Liar, PlantKind, new_case, new_model
from core.chain import merkle
from core.chain.block import Vm
from core.chain.transaction import Activation, TaskSpec, task_id
from core.codec import decode, encode
from core.crypto.homomorphic import PARAMS, PublicKey, SecretKey, encrypt_symmetric, generate_keys, pack, public_key, unpack
from core.crypto.homomorphic.params import Ints
from core.crypto.signing import KeyPair
from core.errors import PoflError
from core.ids import AccountId, Correct, Digest, ModelCommitment, NodeId
from core.verification import body as bodies
from core.verification.audit_node import AuditedClaim, AuditNode, PoolFault, RequesterFault, StoredNode, Undecided
from core.verification.audit_requester import AnswerBook, AuditRequester, StoredRequester, hint_session, run_coins
from core.verification.body import ModelOpening, VmBody, commitment, make_body
from core.verification.evaluation_pool import EvaluationPool
from core.verification.evaluation_requester import EvaluationRequester
from core.verification.field import T, pack_values, unpack_values
from core.verification.messages import (
    Challenges,
    Envelope,
    Hints,
    MaskedModel,
    MaskedProducts,
    Message,
    RunSeeds,
    TransferRequest,
    ZeroNumbers,
    ZeroOpenings,
    ZeroQueries,
)
from core.verification.receipt import ReceiptMessage, sign_receipt
from core.verification.scored_model import Features, Labels, ScoredModel
from core.verification.session import Session, sign_openings
from core.verification.task import PublicKind, TaskContext, key_context
from core.verification.test_set import EncryptedTestSet, TestSet

__all__ = ["honest_refused", "run_protocol"]

CHAIN: Final = Digest(hashlib.sha256(b"lies").digest())
POOL: Final = AccountId(KeyPair.generate(RNG).public_key)
NODE: Final = KeyPair.generate(RNG)


class Marks:
    """One-use marks, for one session."""

    def __init__(self) -> None:
        self.used: set[bytes] = set()

    def mark(self, key: bytes) -> None:
        assert key not in self.used
        self.used.add(key)


class Standing:
    """Everybody may do everything; the pool has committed to what it says."""

    def __init__(self, committed: ModelCommitment | None = None) -> None:
        self.committed = committed

    def has_entered(self, pool: AccountId) -> bool:
        return True

    def commitment(self, pool: AccountId) -> ModelCommitment | None:
        return self.committed

    def is_claimed(self, pool: AccountId, model_commitment: ModelCommitment) -> bool:
        return True

    def check_turn(self, pool: AccountId, model_commitment: ModelCommitment, higher: object) -> None:
        """Every claim's turn."""

    def is_validator(self, validator: NodeId) -> bool:
        return True


@dataclass(frozen=True, eq=False)
class World:
    """A published task, and the model that is evaluated and claimed in it."""

    case: Case
    task: TaskContext
    sk: SecretKey
    pk: PublicKey
    signer: KeyPair
    encrypted: EncryptedTestSet
    body: bytes
    opening: ModelOpening

    def claim(self, correct: int, body: bytes | None = None, **about: object) -> AuditedClaim:
        """With a receipt; ``about`` replaces what the receipt is about."""
        body = self.body if body is None else body
        c_w = commitment(CHAIN, self.task.task_id, POOL, body)
        statement = ReceiptMessage(CHAIN, self.task.task_id, POOL, c_w, Digest(bytes(32)), Digest(b"\x01" * 32))
        receipt = sign_receipt(self.signer, replace(statement, **about))  # type: ignore[arg-type]
        return AuditedClaim(POOL, Correct(correct), Vm(c_w, Digest(bytes(32)), receipt), body)


def new_world(case: Case) -> World:
    signer, (features, classes) = KeyPair.generate(RNG), (case.dims[0], case.dims[-1])
    requester = AccountId(signer.public_key)
    task = task_id(CHAIN, requester, RNG.bytes(32))
    spec = TaskSpec(
        name="lies", features=features, classes=classes, samples=case.samples, hidden=case.dims[1:-1],
        activation=Activation.RELU, weight_bits=10, feature_scale_micro=127_000_000, test_root=Digest(bytes(32)),
        test_blobs=(), public_key_blob=Digest(bytes(32)), practice_blob=Digest(bytes(32)), endpoint="127.0.0.1:1",
        leak_bits=1 << 20,
    )  # fmt: skip
    sk = generate_keys(PARAMS, key_context(CHAIN, task), RNG)
    context, encrypted = publish(TaskContext(CHAIN, task, requester, spec), sk, Liar(case, np.random.default_rng(0)))
    body, opening = make_body(public_key(sk), case.model, RNG)
    return World(case, context, sk, public_key(sk), signer, encrypted, body, opening)


def publish(task: TaskContext, sk: SecretKey, liar: Liar) -> tuple[TaskContext, EncryptedTestSet]:
    """The test set as this requester publishes it, plants and all."""
    width = task.features
    rows = np.concatenate([liar.encrypted_features().T, liar.encrypted_labels()])
    blobs = []
    for row, values in enumerate(rows):
        kind, index = (PublicKind.FEATURE, row) if row < width else (PublicKind.LABEL, row - width)
        c0 = encrypt_symmetric(sk, task.public(kind, index), task.spread(np.remainder(values, T)), RNG)
        for plant in liar.plants:
            sample, column = plant.place
            if (plant.kind, column) == (PlantKind[kind.name], index):
                add_fraction(c0, sample, plant.size.numerator, plant.size.denominator)
        blobs.append(pack(c0))
    digests = tuple(Digest(hashlib.sha256(blob).digest()) for blob in blobs)
    context = replace(task, spec=replace(task.spec, test_blobs=digests, test_root=merkle.root(digests)))
    return context, EncryptedTestSet.load(context, blobs)


def add_fraction(c0: np.ndarray[tuple[int, ...], np.dtype[np.uint64]], place: int, above: int, below: int) -> None:
    """``above / below`` of a unit of plaintext onto one coefficient of the first ciphertext."""
    size = PARAMS.modulus * above // (T * below)
    for limb, prime in enumerate(PARAMS.primes):
        c0[0, limb, place] = (int(c0[0, limb, place]) + size) % prime


def converse(caller: Session, requester: Session, opening: Sequence[Envelope]) -> None:
    """Carries messages to and fro until one side is silent or over."""
    waiting = list(opening)
    while waiting:
        replies = [reply for envelope in waiting for reply in requester.step(envelope)]
        waiting = []
        for reply in replies:
            if caller.is_over:
                return
            waiting += caller.step(reply)


# Requesters who lie


class _Scored(ScoredModel):
    """The decrypted model, scored as the liar likes."""

    liar: Liar

    def forward(self, features: Features) -> tuple[tuple[Ints, ...], Labels]:
        z, correct = self.liar.answer()
        labels = self.liar.case.labels
        wrong = (labels + 1) % self.liar.case.dims[-1]
        chosen = np.where(np.arange(len(labels)) < correct, labels, wrong)
        return tuple(np.ascontiguousarray(layer) for layer in z), chosen


class LyingAudit(AuditRequester):
    liar: Liar

    def _hint(self, message: RunSeeds) -> Sequence[Message]:
        assert self._open is not None
        width, hints = self.task.features, []
        key = other_key(self.task) if self.liar.hint_key_is_another else self._sk
        self.said: list[tuple[Ints, Ints, Ints, int]] = []
        for run, seed in enumerate(message.seeds):
            s, r = run_coins(seed, self.task.samples, self.task.first_width)
            mask, t = self.liar.hint(s, r)
            held, held_t = self.liar.encrypted_hint(mask, t)
            plain = np.zeros((1, PARAMS.degree), dtype=np.int64)
            plain[0, : width + 1] = np.append(held, held_t)
            context = self.task.public(PublicKind.HINT, run, hint_session(self._open, self.session))
            c0 = encrypt_symmetric(key, context, plain, self._rng)
            for plant in self.liar.plants:
                if plant.kind is PlantKind.HINT:
                    add_fraction(c0, plant.place[1], plant.size.numerator, plant.size.denominator)
            hints.append(pack(c0))
            self.said.append((s, r, mask, t))
        self._expected = (Challenges,)
        return (Hints(tuple(hints)),)

    def _show_products(self, message: Challenges) -> Sequence[Message]:
        w = [self.liar.products(s, r, chi, m, t) for chi, (s, r, m, t) in zip(message.chi, self.said, strict=True)]
        self._expected = (ZeroQueries,)
        return (MaskedProducts(pack_values(np.stack(w))),)


def other_key(task: TaskContext) -> SecretKey:
    return generate_keys(PARAMS, key_context(task.chain_id, task.task_id), RNG)


def audit_misses(world: World, liar: Liar) -> bool:
    """Whether the audit of what she scored ends otherwise than with her fault."""
    world = with_plants(world, liar)
    body = world.body
    for plant in liar.plants:
        if plant.kind is PlantKind.MODEL:
            decoded = decode(VmBody, body)
            residues = unpack(decoded.ciphertexts, 2)
            add_fraction(residues, plant.place[1], plant.size.numerator, plant.size.denominator)
            body = encode(replace(decoded, ciphertexts=pack(residues)))
    model = world.case.model
    scored = _Scored(model.shape, model.weights, model.biases)
    object.__setattr__(scored, "liar", liar)
    with patch.object(bodies, "decrypt_body", lambda *_: scored):
        finding = audit(world, world.claim(liar.answer()[1], body), type("Liar", (LyingAudit,), {"liar": liar})).finding
    return not isinstance(finding, RequesterFault)


def with_plants(world: World, liar: Liar) -> World:
    """The world in which this liar has published the test set."""
    published = (PlantKind.FEATURE, PlantKind.LABEL)
    if not liar.features_key_is_another and not any(plant.kind in published for plant in liar.plants):
        return world
    task, encrypted = publish(world.task, other_key(world.task) if liar.features_key_is_another else world.sk, liar)
    return replace(world, task=task, encrypted=encrypted)


def audit(world: World, claim: AuditedClaim, requester: type[AuditRequester] = AuditRequester) -> AuditNode:
    task, session, node = world.task, RNG.bytes(32), NodeId(NODE.public_key)
    plain = TestSet(world.case.features, world.case.labels, world.case.dims[-1])
    book = AnswerBook(task, world.sk, plain, world.signer)
    asked = AuditNode(task, session, NODE, world.pk, world.encrypted, claim, RNG)
    answers = requester(task, session, node, world.sk, plain, world.signer, book, Standing(), Marks(), RNG)
    converse(asked, answers, asked.start())
    return asked


class LyingEvaluation(EvaluationRequester):
    liar: Liar

    def _answer(self, message: MaskedModel) -> Sequence[Message]:
        (reply,) = super()._answer(message)
        assert isinstance(reply, TransferRequest)
        v = unpack_values(reply.v, (self.task.first_width, self.task.samples))
        v = np.remainder(v + (self.liar.first_layer() - self.liar.truth[0]).T, T)
        return (replace(reply, v=pack_values(v)),)


def evaluation_misses(world: World, liar: Liar) -> bool:
    world = with_plants(world, liar)
    case, session = world.case, RNG.bytes(32)
    chosen = case.model.forward_from(liar.first_layer())[1]
    plain = TestSet(case.features, liar.fed_labels(chosen), case.dims[-1])
    standing = Standing(commitment(CHAIN, world.task.task_id, POOL, world.body))
    kind = type("Liar", (LyingEvaluation,), {"liar": liar})
    pool = EvaluationPool(world.task, session, POOL, world.pk, world.encrypted, RNG)
    requester = kind(world.task, session, POOL, world.sk, plain, world.signer, standing, Marks(), RNG)
    try:
        converse(pool, requester, pool.start())
        assert standing.committed is not None
        converse(pool, requester, pool.evaluate(case.model, standing.committed))
    except PoflError:
        return False
    return pool.result is not None


def stored_misses(world: World, liar: Liar) -> bool:
    task, encrypted = publish(world.task, world.sk, liar)
    session, node = RNG.bytes(32), NodeId(NODE.public_key)
    asked = StoredNode(task, session, node, world.pk, encrypted, RNG)
    answers = StoredRequester(task, session, node, world.sk, world.signer, Standing(), Marks(), RNG)
    try:
        converse(asked, answers, asked.start())
    except PoflError:
        return False
    return asked.is_passed


# Pools who lie, and requesters who lie about more than numbers


def pool_is_blamed(world: World, claim: AuditedClaim, opening: bytes | None = None) -> bool:
    node = audit(world, claim)
    finding = node.judge(opening) if isinstance(node.finding, Undecided) else node.finding
    return isinstance(finding, PoolFault)


def spoiled(world: World, size: int) -> bytes:
    """The body with ``size`` added to one coefficient."""
    decoded = decode(VmBody, world.body)
    residues = unpack(decoded.ciphertexts, 2)
    place = int(np.random.default_rng().integers(world.case.model.encode().size))
    for limb, prime in enumerate(PARAMS.primes):
        residues[0, limb, place] = (int(residues[0, limb, place]) + size) % prime
    return encode(replace(decoded, ciphertexts=pack(residues)))


def out_of_range(world: World) -> tuple[bytes, bytes]:
    """A well encrypted body of a weight that the family does not have, and its opening."""
    values = unpack_values(world.opening.values, (world.case.model.encode().size,))
    values[0] = 512
    opening = replace(world.opening, values=pack_values(values))
    changed = bodies._encrypt(world.pk, world.case.model.shape, opening)
    return encode(replace(decode(VmBody, world.body), ciphertexts=changed)), encode(opening)


class _Openings(AuditRequester):
    """Lies at the very end of a check that would pass."""

    def lie(self, reply: ZeroOpenings, message: ZeroNumbers) -> ZeroOpenings:
        raise NotImplementedError

    def _open_runs(self, message: ZeroNumbers) -> Sequence[Message]:
        (reply,) = super()._open_runs(message)
        assert isinstance(reply, ZeroOpenings)
        return (self.lie(reply, message),)


class Refuses(_Openings):
    def lie(self, reply: ZeroOpenings, message: ZeroNumbers) -> ZeroOpenings:
        return sign_openings(self._key, self.transcript.head, (None, *reply.openings[1:]))


class OpensAnother(_Openings):
    def lie(self, reply: ZeroOpenings, message: ZeroNumbers) -> ZeroOpenings:
        first = reply.openings[0]
        assert first is not None
        return sign_openings(self._key, self.transcript.head, (replace(first, salt=bytes(32)), *reply.openings[1:]))


class SignsAsAnother(_Openings):
    def lie(self, reply: ZeroOpenings, message: ZeroNumbers) -> ZeroOpenings:
        return sign_openings(KeyPair.generate(RNG), self.transcript.head, reply.openings)


class SignsElsewhere(_Openings):
    def lie(self, reply: ZeroOpenings, message: ZeroNumbers) -> ZeroOpenings:
        return sign_openings(self._key, Digest(RNG.bytes(32)), reply.openings)


def _true(world: World) -> int:
    return int(world.case.model.count(world.case.features, world.case.labels))


def _other_count(world: World, wanted: int) -> int:
    """``wanted``, or the next count that is false."""
    true, samples = _true(world), world.case.samples
    return wanted if 0 <= wanted <= samples and wanted != true else (true + 2) % (samples + 1)


def _falsely_malformed(world: World, _: np.random.Generator) -> bool:
    model = world.case.model

    def refuse(*_: object) -> ScoredModel:
        return ScoredModel.decode(model.shape, np.zeros(0, dtype=np.int64))

    with patch.object(bodies, "decrypt_body", refuse):
        node = audit(world, world.claim(_true(world)))
    return not isinstance(node.judge(encode(world.opening)), RequesterFault)


def _another_model(world: World, rng: np.random.Generator) -> bool:
    while True:
        other = new_model(rng, world.case.dims)
        if other.count(world.case.features, world.case.labels) != _true(world):
            break
    return not pool_is_blamed(world, world.claim(_true(world), make_body(world.pk, other, RNG)[0]))


def _blamed(make: Callable[[World], AuditedClaim]) -> Special:
    return lambda world, _: not pool_is_blamed(world, make(world), encode(world.opening))


def _out_of_range(world: World, _: np.random.Generator) -> bool:
    body, opening = out_of_range(world)
    return not pool_is_blamed(world, world.claim(_true(world), body), opening)


def _by_openings(requester: type[AuditRequester]) -> Special:
    return lambda world, _: not isinstance(audit(world, world.claim(_true(world)), requester).finding, RequesterFault)


Special = Callable[[World, np.random.Generator], bool]
HALF: Final = PARAMS.modulus // (2 * T)
SPECIAL_LIES: Final[dict[str, Special]] = {
    "pool: N + 1": _blamed(lambda w: w.claim(_other_count(w, _true(w) + 1))),
    "pool: N - 1": _blamed(lambda w: w.claim(_other_count(w, _true(w) - 1))),
    "pool: N = I": _blamed(lambda w: w.claim(_other_count(w, w.case.samples))),
    "pool: more than I": _blamed(lambda w: w.claim(w.case.samples + 1)),
    "pool: another model in the body": _another_model,
    "pool: a body half way between two": _blamed(lambda w: w.claim(_true(w), spoiled(w, HALF))),
    "pool: a body with one unit of noise": _blamed(lambda w: w.claim(_true(w), spoiled(w, 1))),
    "pool: a weight out of range": _out_of_range,
    "pool: a receipt of another pool": _blamed(lambda w: w.claim(_true(w), pool=RNG.bytes(32))),
    "pool: a receipt of another task": _blamed(lambda w: w.claim(_true(w), task_id=RNG.bytes(32))),
    "pool: a receipt of another chain": _blamed(lambda w: w.claim(_true(w), chain_id=RNG.bytes(32))),
    'audit: a false "malformed"': _falsely_malformed,
    "audit: an equal run called unequal": _by_openings(Refuses),
    "audit: another opening than committed to": _by_openings(OpensAnother),
    "audit: openings signed by another": _by_openings(SignsAsAnother),
    "audit: openings of another session": _by_openings(SignsElsewhere),
}

_CHECKS: Final[list[tuple[dict[str, type[Liar]], Callable[[World, Liar], bool]]]] = [
    (AUDIT_LIES, audit_misses), (EVALUATION_LIES, evaluation_misses), (STORED_LIES, stored_misses),
]  # fmt: skip


def honest_refused(tries: int) -> int:
    """How often the same harness refuses an honest requester: 0, or what it counts means nothing."""
    rng = np.random.default_rng()
    refused = 0
    for _ in range(tries):
        world = new_world(new_case(rng))
        refused += sum(not misses(world, Liar(world.case, rng)) for _, misses in _CHECKS)
    return refused


def run_protocol(tries: int, seed: int, kinds: Sequence[str] | None = None) -> list[Tally]:
    """``tries`` of each kind through whole sessions. ``seed``: of the liars, not of coins."""
    rng = np.random.default_rng([seed, 1])
    world: World | None = None
    tellers: dict[str, Special] = {
        kind: lambda w, g, lie=lie, misses=misses: misses(w, lie(w.case, g))  # type: ignore[misc]
        for lies, misses in _CHECKS
        for kind, lie in lies.items()
    }
    found = []
    for kind, misses in {**tellers, **SPECIAL_LIES}.items():
        if kinds is not None and kind not in kinds:
            continue
        start, missed = time.process_time(), 0
        for number in range(tries):
            if world is None or number % CASE_TRIES == 0:
                world = new_world(new_case(rng))
            missed += misses(world, rng)
        found.append(Tally(kind, "protocol", tries, missed, round(time.process_time() - start, 3)))
    return found
