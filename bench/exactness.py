"""Does everyone count the same? ``pofl bench exactness --cases 1000 --json`` plays whole evaluations and audits on random
models and test sets, with the protocol's own state machines, and compares N of the pool, the requester, the node and a plain
computation in integers; and the digest of all ``Z_l`` that the node accepts with the one of that computation.

A case is a function of (seed, number). Everything in it is seeded but the requester's secret key, which SEAL draws: no N and
no ``Z`` depends on it. The digest of the run covers every N and every ``Z``, and a second one matrix products that are large
enough for BLAS to use all its threads; both are the same on every machine and for any number of threads.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np

from core.chain.transaction import Activation, TaskSpec, task_id
from core.chain.vote import SignedVerdict
from core.crypto.homomorphic import (
    PARAMS,
    RowsBuilder,
    combine,
    decrypt,
    encrypt_public,
    expand_uniform,
    generate_keys,
    linear_forms,
    multiply_poly,
    public_key,
    scale_down,
)
from core.crypto.homomorphic.params import Ints
from core.crypto.signing import KeyPair
from core.errors import BudgetError, PoflError
from core.ids import AccountId, Digest, ModelCommitment, NodeId
from core.verification import activations
from core.verification.audit_node import AuditedClaim, AuditNode, Valid
from core.verification.audit_requester import AnswerBook, AuditRequester
from core.verification.body import commitment, make_body
from core.verification.evaluation_pool import EvaluationPool
from core.verification.evaluation_requester import EvaluationRequester
from core.verification.field import T, matmul, matmul_small
from core.verification.messages import Envelope
from core.verification.receipt import z_digest, z_mark
from core.verification.scored_model import BIAS_BOUND, FEATURE_BOUND, Features, ModelFamily, ModelShape, ScoredModel
from core.verification.session import Session
from core.verification.task import TaskContext, key_context
from core.verification.test_set import EncryptedTestSet, TestSet, encrypt_test_set

__all__ = ["Case", "Outcome", "draw_case", "measure", "play", "products_digest", "reference"]

Json = dict[str, Any]
CHAIN: Final = Digest(hashlib.sha256(b"pofl/bench/exactness").digest())
POOL: Final = AccountId(bytes(range(32)))


@dataclass(frozen=True)
class Case:
    """One task with one model. ``number`` seeds weights, features, labels and every coin of the protocol."""

    seed: int
    number: int
    dims: tuple[int, ...]
    activation: Activation
    weight_bits: int
    samples: int
    agreement: float
    """Share of labels that are made to equal the model's prediction, so that N is anything from 0 to I."""


@dataclass(frozen=True)
class Outcome:
    """Four counts of the same thing, and whether the layers that the node accepted are those of the plain computation."""

    plain: int
    pool: int
    requester: int
    node: int
    same_layers: bool
    z_digest: bytes

    @property
    def is_exact(self) -> bool:
        return self.plain == self.pool == self.requester == self.node and self.same_layers


def draw_case(seed: int, number: int) -> Case:
    """Depths 1 to 9, widths 1 to 12 (now and then 64), 1 to 60 samples (now and then around one full batch)."""
    random = np.random.default_rng([seed, number])
    layers = int(random.choice([1, 2, 3, 4, 5, 6, 7, 8, 9], p=[0.2, 0.2, 0.2, 0.15, 0.15, 0.025, 0.025, 0.025, 0.025]))
    hidden = [int(width) for width in random.integers(1, 9, layers - 1)]
    features, classes = int(random.integers(1, 13)), int(random.choice([2, 3, int(random.integers(2, 13))]))
    samples = int(random.choice([1, int(random.integers(2, 61))], p=[0.1, 0.9]))
    special = random.random()
    if special < 0.02:
        samples = PARAMS.degree + int(random.integers(-2, 3))
        hidden = [min(width, 3) for width in hidden]
    elif special < 0.04:
        features, classes = 64, 17
    return Case(
        seed, number, (features, *hidden, classes), Activation(int(random.choice([a.value for a in Activation]))),
        int(random.integers(2, 13)), samples, float(random.choice([0.0, 0.3, 0.9, 1.0])),
    )  # fmt: skip


def draw_model(case: Case) -> ScoredModel:
    """Weights over their whole range or at its ends; some biases at the bound; any shifts."""
    random = np.random.default_rng([case.seed, case.number, 1])
    family = ModelFamily(case.dims, case.activation, case.weight_bits)
    bound, weights, biases = family.weight_bound, [], []
    for rows, columns in pairwise(case.dims):
        drawn = random.integers(-bound, bound, (rows, columns), endpoint=True)
        if random.random() < 0.2:
            drawn = np.where(drawn < 0, -bound, bound)
        weights.append(drawn.astype(np.int64))
        reach = int(random.choice([0, 1000, 1 << 20, BIAS_BOUND]))
        biases.append(random.integers(-reach, reach, columns, endpoint=True))
    shifts = tuple(int(shift) for shift in random.integers(0, 21, len(case.dims) - 2))
    return ScoredModel(ModelShape(case.dims, case.activation, case.weight_bits, shifts), tuple(weights), tuple(biases))


def reference(model: ScoredModel, features: Features) -> tuple[Ints, ...]:
    """``Z_1 … Z_L`` in int64 without BLAS and without the library's forward pass; the tables alone are shared."""
    x, found = features.astype(np.int64), list[Ints]()
    for layer, (weights, bias) in enumerate(zip(model.weights, model.biases, strict=True)):
        z = (x[:, :, None] * weights[None]).sum(axis=1) + bias
        found.append(z)
        if layer < model.layers - 1:
            index = np.minimum(np.maximum(z >> model.shape.shifts[layer], -2048), 2047)
            x = activations.table(model.shape.activation).astype(np.int64)[index + 2048]
    return tuple(found)


def play(case: Case) -> Outcome:
    """One whole life of a claim: publication, evaluation, audit; every message through the state machines.

    Raises:
        PoflError: an honest run was refused.
    """
    rng = _Seeded(f"{case.seed}/{case.number}")
    random = np.random.default_rng([case.seed, case.number, 2])
    model = draw_model(case)
    features = random.integers(-FEATURE_BOUND, FEATURE_BOUND, (case.samples, case.dims[0]), dtype=np.int8, endpoint=True)
    if random.random() < 0.2:
        features = np.where(features < 0, np.int8(-FEATURE_BOUND), np.int8(FEATURE_BOUND))
    z = reference(model, features)
    top = z[-1].max(axis=1, keepdims=True)
    predictions = np.array([int(np.flatnonzero(row)[0]) for row in z[-1] == top])
    labels = np.where(
        random.random(case.samples) < case.agreement, predictions, random.integers(0, case.dims[-1], case.samples)
    )
    plain = TestSet(features, labels.astype(np.int64), case.dims[-1])
    count = sum(int(p) == int(y) for p, y in zip(predictions, labels, strict=True))

    signer = KeyPair.generate(rng)
    requester = AccountId(signer.public_key)
    task = task_id(CHAIN, requester, rng.bytes(32))
    sk = generate_keys(PARAMS, key_context(CHAIN, task), rng)
    pk = public_key(sk)
    blobs, digests, root = encrypt_test_set(sk, CHAIN, task, plain, rng)
    spec = TaskSpec(
        name="exactness", features=case.dims[0], classes=case.dims[-1], samples=case.samples, hidden=case.dims[1:-1],
        activation=case.activation, weight_bits=case.weight_bits, feature_scale_micro=1_000_000, test_root=root,
        test_blobs=digests, public_key_blob=Digest(bytes(32)), practice_blob=Digest(bytes(32)), endpoint="127.0.0.1:1",
        leak_bits=(1 << 32) - 1,
    )  # fmt: skip
    context = TaskContext(CHAIN, task, requester, spec)
    encrypted = EncryptedTestSet.load(context, blobs)

    body, _ = make_body(pk, model, rng)
    c_w = commitment(CHAIN, task, POOL, body)
    chain, marks, session = _Chain(c_w), _Marks(), rng.bytes(32)
    pool = EvaluationPool(context, session, POOL, pk, encrypted, rng)
    answers = EvaluationRequester(context, session, POOL, sk, plain, signer, chain, marks, rng)
    _exchange(pool, answers, pool.start())
    _exchange(pool, answers, pool.evaluate(model, c_w))
    assert pool.result is not None

    validator = KeyPair.generate(rng)
    claim = AuditedClaim(POOL, pool.result.correct, pool.result.vm, body)
    book, session = AnswerBook(context, sk, plain, signer), rng.bytes(32)
    node = AuditNode(context, session, validator, pk, encrypted, claim, rng)
    audited = AuditRequester(
        context, session, NodeId(validator.public_key), sk, plain, signer, book, chain, marks, rng
    )  # fmt: skip
    _exchange(node, audited, node.start())
    answer = book.find(c_w)
    assert answer is not None
    found, expected, hers = node.finding, z_digest(z), answer.signed.answer
    nodes = int(found.correct) if isinstance(found, Valid) else -1
    same = isinstance(found, Valid) and found.z_digest == expected and hers.z_mark == z_mark(task, c_w, expected)
    return Outcome(count, int(pool.result.correct), int(hers.correct), nodes, same, bytes(expected))


def products_digest(seed: int) -> str:
    """SHA-256 over every kind of product that BLAS takes part in, at sizes where it uses all its threads, over one forward
    pass, and over decryptions. The inputs are a function of the seed alone."""
    random = np.random.default_rng([seed, 3])
    hasher = hashlib.sha256()

    def add(*arrays: Ints | np.ndarray[Any, Any]) -> None:
        for array in arrays:
            hasher.update(np.ascontiguousarray(array).tobytes())

    polynomials = expand_uniform(PARAMS, b"bench/exactness %d" % seed, 40)
    matrix = random.integers(0, T, (24, 40))
    builder = RowsBuilder(40)
    for polynomial in polynomials:
        builder.add(polynomial)
    rows, vectors = builder.rows(), random.integers(0, T, (3, PARAMS.degree))
    add(combine(matrix, polynomials), rows.combine(matrix), rows.dots(vectors), multiply_poly(polynomials[:2], vectors[0]))
    add(*linear_forms(polynomials[:3], polynomials[3:6], vectors[None, :3]))
    left, right = random.integers(0, T, (300, 700)), random.integers(0, T, (700, 200))
    add(matmul(left, right), matmul_small(left, random.integers(-127, 128, (700, 256)).astype(np.float64)))
    case = Case(seed, -1, (500, 120, 60, 10), Activation.SIGMOID, 10, 4000, 0.0)
    model = ScoredModel(
        ModelShape(case.dims, case.activation, 10, (9, 9)),
        tuple(random.integers(-511, 512, pair) for pair in pairwise(case.dims)),
        tuple(random.integers(-5000, 5000, width) for width in case.dims[1:]),
    )
    z, predictions = model.forward(random.integers(-127, 128, (case.samples, 500), dtype=np.int8))
    add(*z, predictions)
    # The key is SEAL's and fresh; what decrypts does not depend on it.
    sk = generate_keys(PARAMS, b"bench/exactness", _Seeded("key"))
    add(decrypt(sk, *encrypt_public(public_key(sk), vectors[:2], bytes(32))), scale_down(polynomials))
    return hasher.hexdigest()


def measure(cases: int, seed: int, report: Callable[[str], None] | None = None) -> Json:
    """Play cases 0 to ``cases - 1`` of a seed. A difference is listed with what replays it, and does not end the run."""
    say = report or (lambda line: print(line, file=sys.stderr, flush=True))
    started, spent = time.perf_counter(), time.process_time()
    hasher, failures, samples, widths_of_one, partial = hashlib.sha256(), list[Json](), 0, 0, 0
    by_layers, by_activation = Counter[int](), Counter[str]()
    say(f"exactness: {cases} cases of seed {seed}")
    for number in range(cases):
        case = draw_case(seed, number)
        try:
            outcome = play(case)
        except PoflError as error:
            failures.append(_failure(case, f"{type(error).__name__}: {error}"))
        else:
            if not outcome.is_exact:
                failures.append(_failure(case, repr(outcome)))
            hasher.update(outcome.z_digest + outcome.pool.to_bytes(4, "big"))
            partial += 0 < outcome.plain < case.samples
        samples += case.samples
        by_layers[len(case.dims) - 1] += 1
        by_activation[case.activation.name.lower()] += 1
        widths_of_one += 1 in case.dims
        if (number + 1) % 50 == 0:
            say(f"exactness: {number + 1} of {cases}, {len(failures)} differ, {time.perf_counter() - started:.0f} s")
    return {
        "seed": seed, "cases": cases, "differences": len(failures), "failures": failures[:20],
        "samples": samples, "layers": {str(depth): by_layers[depth] for depth in sorted(by_layers)},
        "activations": dict(sorted(by_activation.items())), "with_a_width_of_one": widths_of_one,
        "n_strictly_between_0_and_all": partial,
        "results_digest": hasher.hexdigest(), "products_digest": products_digest(seed),
        "seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - spent,
    }  # fmt: skip


def _failure(case: Case, what: str) -> Json:
    return {"seed": case.seed, "case": case.number, "dims": list(case.dims), "samples": case.samples, "what": what}


class _Seeded:
    """Coins that can be replayed: SHAKE-256 over a name and a counter. For measurements only."""

    def __init__(self, name: str) -> None:
        self._name, self._counter = name.encode(), 0

    def bytes(self, count: int) -> bytes:
        self._counter += 1
        return hashlib.shake_256(self._name + b"/%d" % self._counter).digest(count)


class _Chain:
    """A chain on which the pool entered, committed and claimed, and everyone is a validator."""

    def __init__(self, committed: ModelCommitment) -> None:
        self._committed = committed

    def has_entered(self, pool: AccountId) -> bool:
        return True

    def commitment(self, pool: AccountId) -> ModelCommitment | None:
        return self._committed

    def is_claimed(self, pool: AccountId, model_commitment: ModelCommitment) -> bool:
        return True

    def check_turn(self, pool: AccountId, model_commitment: ModelCommitment, higher: tuple[SignedVerdict, ...]) -> None:
        """There is one claim, so it is the top one."""

    def is_validator(self, validator: NodeId) -> bool:
        return True


class _Marks:
    """One-use marks in memory."""

    def __init__(self) -> None:
        self._used: set[bytes] = set()

    def mark(self, key: bytes) -> None:
        if key in self._used:
            raise BudgetError("already used")
        self._used.add(key)


def _exchange(caller: Session, requester: Session, opening: Sequence[Envelope]) -> None:
    """Carries messages to and fro until both sides are silent, or the caller is done."""
    waiting = list(opening)
    while waiting:
        replies = [reply for envelope in waiting for reply in requester.step(envelope)]
        waiting = []
        for envelope in replies:
            if caller.is_over:
                return
            waiting += caller.step(envelope)
