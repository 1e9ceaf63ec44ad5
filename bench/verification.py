"""Times model verification: ``python -m bench.verification [samples] [width ...]``, by default 10000 256 16 16 10.

Both sides run in this process, one after the other, without a network; each line says which side computes for how long and
how many bytes travel. ``... lies 20`` at the end tries a lie about each layer twenty times.
"""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from core.chain.block import Vm
from core.chain.transaction import Activation, TaskSpec, task_id
from core.chain.vote import SignedVerdict
from core.codec import encode
from core.crypto.homomorphic import PARAMS, generate_keys, public_key
from core.crypto.signing import KeyPair
from core.ids import AccountId, Correct, Digest, ModelCommitment, NodeId
from core.ports import SystemRng
from core.verification.audit_node import AuditedClaim, AuditNode, RequesterFault, Valid
from core.verification.audit_requester import AnswerBook, AuditRequester, ModelAnswer
from core.verification.body import commitment, make_body
from core.verification.evaluation_pool import EvaluationPool
from core.verification.evaluation_requester import EvaluationRequester
from core.verification.messages import Envelope
from core.verification.receipt import sign_answer, z_digest, z_mark
from core.verification.scored_model import ModelShape, ScoredModel, count_correct, predict
from core.verification.session import Session
from core.verification.task import TaskContext, key_context
from core.verification.test_set import EncryptedTestSet, TestSet, encrypt_test_set

RNG = SystemRng()
CHAIN = Digest(bytes(32))
POOL = AccountId(b"\x01" * 32)
Times = dict[str, float]


class Open:
    """Everyone may, once each."""

    committed: ModelCommitment | None = None

    def has_entered(self, pool: AccountId) -> bool:
        return True

    def commitment(self, pool: AccountId) -> ModelCommitment | None:
        return self.committed

    def is_claimed(self, pool: AccountId, model_commitment: ModelCommitment) -> bool:
        return True

    def check_turn(self, pool: AccountId, model_commitment: ModelCommitment, higher: tuple[SignedVerdict, ...]) -> None:
        return None

    def is_validator(self, validator: NodeId) -> bool:
        return True

    def mark(self, key: bytes) -> None:
        return None


def timed(times: Times, name: str, step: Callable[[], tuple[Envelope, ...]]) -> tuple[Envelope, ...]:
    start = time.perf_counter()
    replies = step()
    times[name] += time.perf_counter() - start
    return replies


def ahead(session: Session) -> tuple[Envelope, ...]:
    session.work_ahead()
    return ()


def converse(caller: Session, requester: Session, opening: Callable[[], tuple[Envelope, ...]]) -> Times:
    """Seconds of each side, and MB that travel. ``ahead``: what the caller computes while the other side is busy."""
    times: Times = defaultdict(float)
    outgoing = timed(times, "caller", opening)
    while outgoing:
        incoming: list[Envelope] = []
        for envelope in outgoing:
            times["MB"] += len(encode(envelope)) / 1e6
            incoming += timed(times, "requester", lambda envelope=envelope: requester.step(envelope))  # type: ignore[misc]
        answers: list[Envelope] = []
        for envelope in incoming:
            times["MB"] += len(encode(envelope)) / 1e6
            if not caller.is_over:
                answers += timed(times, "caller", lambda envelope=envelope: caller.step(envelope))  # type: ignore[misc]
        outgoing = tuple(answers)
        timed(times, "ahead", lambda: ahead(caller))
    return times


def show(name: str, times: Times) -> None:
    total = times["caller"] + times["ahead"] + times["requester"]
    print(
        f"{name:12s} {1e3 * total:9.0f} ms: caller {1e3 * times['caller']:7.0f}, ahead {1e3 * times['ahead']:5.0f}, "
        f"requester {1e3 * times['requester']:7.0f}, "
        f"{times['MB']:6.1f} MB"
    )


class Lying(AnswerBook):
    """Shifts one value of one layer by one, and signs it."""

    layer = 0

    def _answer(self, pool: AccountId, model_commitment: ModelCommitment, body: bytes) -> ModelAnswer:
        honest = super()._answer(pool, model_commitment, body)
        z = [layer.copy() for layer in honest.z]
        row, column = (int.from_bytes(RNG.bytes(4), "big") % size for size in z[self.layer].shape)
        z[self.layer][row, column] += 1
        correct = count_correct(predict(z[-1]), self._test_set.labels)
        mark = z_mark(self._task.task_id, model_commitment, z_digest(tuple(z)))
        answer = replace(honest.signed.answer, z_mark=mark, correct=correct)
        return ModelAnswer(sign_answer(self._key, answer), honest.model, tuple(z))


def main(samples: int, dims: tuple[int, ...], lies: int) -> None:
    print(f"{samples} samples, {'-'.join(map(str, dims))}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    random = np.random.default_rng(1)
    plain = TestSet(
        random.integers(-127, 127, (samples, dims[0]), dtype=np.int8), random.integers(0, dims[-1], samples), dims[-1]
    )
    signer, validator = KeyPair.generate(RNG), KeyPair.generate(RNG)
    task = task_id(CHAIN, AccountId(signer.public_key), RNG.bytes(32))
    sk = generate_keys(PARAMS, key_context(CHAIN, task), RNG)
    start = time.perf_counter()
    blobs, digests, root = encrypt_test_set(sk, CHAIN, task, plain, RNG)
    print(f"encrypt      {time.perf_counter() - start:9.2f} s, {sum(map(len, blobs)) / 1e6:.0f} MB, once for a task")
    spec = TaskSpec(
        "bench", dims[0], dims[-1], samples, dims[1:-1], Activation.SIGMOID, 10, 127_000_000, root, digests, root, root, "-", 0
    )
    context = TaskContext(CHAIN, task, AccountId(signer.public_key), spec)
    start = time.perf_counter()
    encrypted = EncryptedTestSet.load(context, blobs)
    print(f"load         {time.perf_counter() - start:9.2f} s, once for a task, pool and node")
    pairs = list(pairwise(dims))
    model = ScoredModel(
        ModelShape(dims, Activation.SIGMOID, 10, (9,) * (len(dims) - 2)),
        tuple(random.integers(-511, 511, pair) for pair in pairs),
        tuple(random.integers(-5000, 5000, width) for _, width in pairs),
    )
    pk, ports, session = public_key(sk), Open(), RNG.bytes(32)
    body, _ = make_body(pk, model, RNG)
    ports.committed = commitment(CHAIN, task, POOL, body)
    pool = EvaluationPool(context, session, POOL, pk, encrypted, RNG)
    requester = EvaluationRequester(context, session, POOL, sk, plain, signer, ports, ports, RNG)
    show("offline", converse(pool, requester, pool.start))
    committed = ports.committed
    show("online", converse(pool, requester, lambda: pool.evaluate(model, committed)))
    assert pool.result is not None
    assert pool.result.correct == model.count(plain.features, plain.labels)
    vm, correct = pool.result.vm, pool.result.correct
    book = AnswerBook(context, sk, plain, signer)

    def audit(book: AnswerBook) -> tuple[AuditNode, Times]:
        session = RNG.bytes(32)
        claim = claim_of(vm, correct, body)
        node = AuditNode(context, session, validator, pk, encrypted, claim, RNG)
        named = NodeId(validator.public_key)
        other = AuditRequester(context, session, named, sk, plain, signer, book, ports, ports, RNG)
        return node, converse(node, other, node.start)

    for name in ("first audit", "audit", "audit"):
        node, times = audit(book)
        assert isinstance(node.finding, Valid)
        show(name, times)
    for layer in range(len(pairs)) if lies else ():
        kind = type("Lie", (Lying,), {"layer": layer})
        found = [audit(kind(context, sk, plain, signer))[0].finding for _ in range(lies)]
        print(f"lies about Z_{layer + 1}: {sum(isinstance(one, RequesterFault) for one in found)} of {lies} caught")


def claim_of(vm: Vm, correct: Correct, body: bytes) -> AuditedClaim:
    return AuditedClaim(POOL, correct, vm, body)


def _arguments(words: Sequence[str]) -> tuple[int, tuple[int, ...], int]:
    numbers, _, tries = " ".join(words).partition("lies")
    values = [int(word) for word in numbers.split()] or [10_000, 256, 16, 16, 10]
    return values[0], tuple(values[1:]), int(tries or 0)


if __name__ == "__main__":
    main(*_arguments(sys.argv[1:]))
