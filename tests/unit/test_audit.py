"""Audits and stored checks: honest pairs always agree, and every lie is put down to the one who told it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from core.chain import merkle
from core.codec import decode, encode
from core.crypto.homomorphic import PARAMS, SecretKey, encrypt_symmetric, pack, unpack
from core.crypto.signing import KeyPair
from core.crypto.zero_check import LinearForm, ZeroCheckVerifier
from core.errors import AuthError, BudgetError, CheatingError, CryptoError, MalformedError, SequenceError, UnavailableError
from core.ids import AccountId, Correct, Digest, ModelCommitment, NodeId, TaskId
from core.verification import body as bodies
from core.verification.audit_node import AuditNode, PoolFault, RequesterFault, StoredNode, Undecided, Valid
from core.verification.audit_requester import AnswerBook, AuditRequester, ModelAnswer, StoredRequester, hint_session, run_coins
from core.verification.body import VmBody, make_body
from core.verification.field import T, dot, matmul, pack_values, unpack_values
from core.verification.messages import (
    Challenges,
    Envelope,
    Hints,
    MaskedProducts,
    Message,
    ModelBody,
    RunSeeds,
    ZeroCommitments,
    ZeroNumbers,
    ZeroOpenings,
    ZeroQueries,
)
from core.verification.receipt import Answer, AnswerKind, contradict, sign_answer, tag, z_digest, z_mark
from core.verification.scored_model import ScoredModel, count_correct, predict
from core.verification.session import sign_openings
from core.verification.task import PublicKind
from core.verification.test_set import EncryptedTestSet
from core.verification.transcript import verify_transcript
from tests.models import random_model
from tests.seeded import SeededRng
from tests.verification import (
    POOL,
    VALIDATOR,
    Claims,
    Marks,
    World,
    claim_of,
    exchange,
    make_audit,
    make_evaluation,
    make_world,
    small_world,
)
from tests.wire_fuzz import fuzzed_exchange

WORLD = small_world()
MODEL = random_model(WORLD.task.family.dims, WORLD.task.family.activation, 0)
TRUE_N = MODEL.count(WORLD.plain.features, WORLD.plain.labels)
BODY, OPENING = make_body(WORLD.pk, MODEL, SeededRng("audited body"))
CLAIM = claim_of(WORLD, BODY, TRUE_N)


def test_an_honest_claim_is_valid_and_its_tag_follows_from_z() -> None:
    audit = make_audit(WORLD, CLAIM)
    finding = audit.run()
    digest = z_digest(MODEL.forward(WORLD.plain.features)[0])
    assert finding == Valid(TRUE_N, digest)
    task = WORLD.task
    mine = tag(task.chain_id, task.task_id, CLAIM.vm.model_commitment, digest, NodeId(VALIDATOR.public_key))
    assert mine != tag(task.chain_id, task.task_id, CLAIM.vm.model_commitment, digest, NodeId(bytes(32)))
    assert audit.node.transcript.head == audit.requester.transcript.head
    assert audit.book.model(CLAIM.vm.model_commitment) is not None


def test_an_evaluated_claim_is_audited_in_under_two_seconds() -> None:
    """64-16-10 on 360 rows: evaluation, claim, audit."""
    world = make_world((64, 16, 10), 360, seed=3)
    model = random_model((64, 16, 10), world.task.family.activation, 5, shift=8)
    run = make_evaluation(world, model)
    run.offline()
    result = run.online()
    claim = replace(CLAIM, correct=result.correct, vm=result.vm, body=run.body)
    assert isinstance(make_audit(world, claim).run(), Valid)
    assert make_audit(world, replace(claim, correct=Correct(result.correct + 1))).run() == PoolFault(
        f"claimed {result.correct + 1}, the committed model scores {result.correct} of 360",
        result.correct,
        z_digest(model.forward(world.plain.features)[0]),
    )


def test_the_transcript_is_signed_and_without_plaintext() -> None:
    audit = make_audit(WORLD, CLAIM)
    with pytest.raises(SequenceError):
        audit.node.export()
    audit.run()
    data = audit.node.export()
    exported = verify_transcript(data, VALIDATOR.public_key)
    assert exported.result == f"Valid: {TRUE_N} of 20"
    assert exported.head == audit.node.transcript.head
    assert len(data) < 4096
    assert pack_values(MODEL.forward(WORLD.plain.features)[0][0] % T)[:20] not in data
    with pytest.raises(CryptoError):
        verify_transcript(data, bytes(32))
    with pytest.raises(CryptoError):
        verify_transcript(data[:-1] + bytes([data[-1] ^ 1]), VALIDATOR.public_key)


# Claims that are not what they seem


@pytest.mark.parametrize("claimed", [TRUE_N + 1, TRUE_N - 1, 20, 0])
def test_another_count_is_the_pools_fault(claimed: int) -> None:
    """Attacks 6 and 7 ("N := I" garbled): the audit scores the committed model, whatever the circuit said."""
    finding = make_audit(WORLD, claim_of(WORLD, BODY, claimed)).run()
    assert isinstance(finding, PoolFault)
    assert finding.correct == TRUE_N


def test_what_everyone_can_see_needs_no_requester() -> None:
    """Attacks 6 and 8: another body, more than I, receipts of another task, pool, chain, circuit. Defence: c_W's preimage and
    the receipt's message; with verify_receipt taken out of start the replayed ones go through."""
    other_world = make_world(seed=9)
    other_pool = claim_of(WORLD, BODY, TRUE_N, AccountId(b"\x24" * 32))
    other_body, _ = make_body(WORLD.pk, MODEL, SeededRng("again"))
    other_circuit = replace(CLAIM.vm, garbled_circuit_digest=Digest(b"\x05" * 32))
    for claim in (
        replace(CLAIM, body=other_body),
        replace(CLAIM, body=BODY[:-1]),
        replace(CLAIM, correct=Correct(21)),
        replace(CLAIM, vm=other_pool.vm),
        replace(CLAIM, vm=other_circuit),
        replace(CLAIM, vm=claim_of(other_world, BODY, TRUE_N).vm),
    ):
        audit = make_audit(WORLD, claim)
        assert audit.node.start() == ()
        assert isinstance(audit.node.finding, PoolFault), claim
        assert verify_transcript(audit.node.export(), VALIDATOR.public_key).entries == ()


def half_way_body() -> bytes:
    decoded = decode(VmBody, BODY)
    residues = unpack(decoded.ciphertexts, 2)
    quotient = PARAMS.modulus // (2 * T)
    residues[0, :, 0] = [(int(v) + quotient) % p for v, p in zip(residues[0, :, 0], PARAMS.primes, strict=True)]
    return encode(replace(decoded, ciphertexts=pack(residues)))


@pytest.mark.parametrize("with_opening", [True, False])
def test_a_malformed_body_is_the_pools_fault_after_its_opening(with_opening: bool) -> None:
    """Attack 6, a body half way between messages. Defence: re-encryption and opening; the requester is not blamed."""
    audit = make_audit(WORLD, claim_of(WORLD, half_way_body(), TRUE_N))
    finding = audit.run()
    assert isinstance(finding, Undecided)
    assert finding.malformed is not None
    assert finding.malformed.answer.kind is AnswerKind.MALFORMED
    assert isinstance(audit.node.judge(encode(OPENING) if with_opening else None), PoolFault)


class CryingBook(AnswerBook):
    """Calls every body malformed."""

    def _answer(self, pool: AccountId, model_commitment: ModelCommitment, body: bytes) -> ModelAnswer:
        task = self._task
        answer = Answer(
            task.chain_id, task.task_id, pool, model_commitment, AnswerKind.MALFORMED, Digest(bytes(32)), Correct(0)
        )
        return ModelAnswer(sign_answer(self._key, answer), None, ())


def test_a_false_malformed_is_the_requesters_fault() -> None:
    """Attack 6. Defence: the pool's opening makes the body again."""
    book = CryingBook(WORLD.task, WORLD.sk, WORLD.plain, WORLD.signer)
    audit = make_audit(WORLD, CLAIM, book=book)
    assert isinstance(audit.run(), Undecided)
    assert isinstance(audit.node.judge(encode(OPENING)), RequesterFault)


def test_two_answers_about_one_claim_are_evidence() -> None:
    """Attack 6. Defence: the answer names no session, so two different ones are comparable."""
    honest = AnswerBook(WORLD.task, WORLD.sk, WORLD.plain, WORLD.signer).decide(POOL, CLAIM.vm.model_commitment, BODY).signed
    again = AnswerBook(WORLD.task, WORLD.sk, WORLD.plain, WORLD.signer).decide(POOL, CLAIM.vm.model_commitment, BODY).signed
    assert honest == again
    crying = CryingBook(WORLD.task, WORLD.sk, WORLD.plain, WORLD.signer).decide(POOL, CLAIM.vm.model_commitment, BODY).signed
    requester = WORLD.task.requester
    contradict(requester, honest, crying)
    with pytest.raises(CryptoError, match="agree"):
        contradict(requester, honest, again)
    stranger = KeyPair.generate(SeededRng("stranger"))
    with pytest.raises(CryptoError):
        contradict(requester, honest, sign_answer(stranger, crying.answer))
    elsewhere = sign_answer(WORLD.signer, replace(crying.answer, task_id=TaskId(bytes(32))))
    with pytest.raises(CryptoError, match="different claims"):
        contradict(requester, honest, elsewhere)


# Requesters who lie


class LyingBook(AnswerBook):
    """Scores another Z than the model's, and signs it."""

    kind = "none"

    def _answer(self, pool: AccountId, model_commitment: ModelCommitment, body: bytes) -> ModelAnswer:
        honest = super()._answer(pool, model_commitment, body)
        z = [layer.copy() for layer in honest.z]
        correct = honest.signed.answer.correct
        if self.kind == "z1":
            z[0][3, 1] += 1
        elif self.kind == "z2":
            z[1][0, 2] -= 1
        elif self.kind == "rows":
            z = [layer[::-1] for layer in z]
        elif self.kind == "far":
            z[0][0, 0] = T // 2 - 1
        elif self.kind == "fitted":
            assert honest.model is not None
            z[0][3] += 1000
            z = list(honest.model.forward_from(z[0])[0])
        if self.kind == "count":
            correct = Correct(correct + 1)
        elif self.kind != "far":
            correct = count_correct(predict(z[-1]), self._test_set.labels)
        if self.kind == "labels":
            correct = count_correct(predict(z[-1]), np.roll(self._test_set.labels, 1))
            assert correct != honest.signed.answer.correct
        layers = tuple(np.ascontiguousarray(layer) for layer in z)
        mark = z_mark(self._task.task_id, model_commitment, z_digest(layers))
        answer = replace(honest.signed.answer, z_mark=mark, correct=correct)
        if self.kind == "digest":
            answer = replace(answer, z_mark=Digest(bytes(32)))
        if self.kind == "too many":
            answer = replace(answer, correct=Correct(21))
        return ModelAnswer(sign_answer(self._key, answer), honest.model, layers)


@pytest.mark.parametrize("kind", ["z1", "z2", "rows", "far", "count", "labels", "digest", "too many"])
def test_a_wrong_answer_is_the_requesters_fault(kind: str) -> None:
    """Attacks 5 and 13: one z shifted by one in any layer, rows permuted, z beyond the bound, another count, other labels.
    Defence: the node's forms, bounds and digest. Seen to fail without: the c2 part (z1), the bound (far), the range of N* (too
    many), the digest (digest). The other parts of the form: tests/property/test_audit_forms.py."""
    book = type("Book", (LyingBook,), {"kind": kind})(WORLD.task, WORLD.sk, WORLD.plain, WORLD.signer)
    claim = CLAIM if kind not in ("count", "labels") else claim_of(WORLD, BODY, _lied(book))
    finding = make_audit(WORLD, claim, book=book).run()
    assert isinstance(finding, RequesterFault)
    reasons = {"far": "beyond every model's bound", "too many": "N* = 21", "digest": "digest"}
    assert reasons.get(kind, "not zero") in finding.reason


def _lied(book: AnswerBook) -> int:
    return book.decide(POOL, CLAIM.vm.model_commitment, BODY).signed.answer.correct


class WrongHint(AuditRequester):
    """T is off by one, or the hint is that of another mask, or w is off, or all w are zero."""

    kind = "T"

    def _hint(self, message: RunSeeds) -> Sequence[Message]:
        replies = super()._hint(message)
        if self.kind == "m":
            self._hidden = [(v, np.remainder(m + 1, T)) for v, m in self._hidden]
        if self.kind == "T":
            assert self._open is not None
            session = hint_session(self._open, self.session)
            hints = []
            for run in range(len(message.seeds)):
                plain = np.zeros((1, PARAMS.degree), dtype=np.int64)
                plain[0, : self.task.features] = self._hidden[run][1]
                plain[0, self.task.features] = 12345
                context = self.task.public(PublicKind.HINT, run, session)
                hints.append(pack(encrypt_symmetric(self._sk, context, plain, self._rng)))
            return (Hints(tuple(hints)),)
        return replies

    def _show_products(self, message: Challenges) -> Sequence[Message]:
        (reply,) = super()._show_products(message)
        assert isinstance(reply, MaskedProducts)
        w = unpack_values(reply.w, (3, self.task.features))
        if self.kind == "w":
            w[1, 2] = (w[1, 2] + 1) % T
        if self.kind == "zero w":
            w[:] = 0
        return (MaskedProducts(pack_values(w)),)


class WrongZero(AuditRequester):
    """Opens other numbers, says "not equal" without cause, or signs with another key."""

    kind = "refuse"

    def _open_runs(self, message: ZeroNumbers) -> Sequence[Message]:
        (reply,) = super()._open_runs(message)
        assert isinstance(reply, ZeroOpenings)
        opened = reply.openings
        if self.kind == "refuse":
            opened = (None, *opened[1:])
        elif self.kind == "other":
            first = opened[0]
            assert first is not None
            opened = (replace(first, value=(first.value + 1) % T), *opened[1:])
        key = KeyPair.generate(SeededRng("not hers")) if self.kind == "signature" else self._key
        return (sign_openings(key, self.transcript.head, opened),)


@pytest.mark.parametrize("kind", ["T", "m", "w", "zero w"])
def test_wrong_hints_and_products_are_the_requesters_fault(kind: str) -> None:
    """Attack 5. Defence: the ω and c2 parts of the form, each taken out in tests/property/test_audit_forms.py."""
    liar = type("Liar", (WrongHint,), {"kind": kind})
    assert isinstance(make_audit(WORLD, CLAIM, requester=liar).run(), RequesterFault)


class FittedProducts(AuditRequester):
    """Has signed another Z_1, and moves w until <w, u> is what the layer-one equation asks for."""

    def _hint(self, message: RunSeeds) -> Sequence[Message]:
        self.seeds = message.seeds
        return super()._hint(message)

    def _show_products(self, message: Challenges) -> Sequence[Message]:
        (reply,) = super()._show_products(message)
        assert isinstance(reply, MaskedProducts)
        assert self._answer is not None
        w = unpack_values(reply.w, (3, self.task.features))
        wrong = self._answer.z[0] - MODEL.first_layer(self._test_set.features)
        for run, seed in enumerate(self.seeds):
            s, r = run_coins(seed, self.task.samples, self.task.first_width)
            u = matmul(s, self._test_set.features.astype(np.int64))
            owed = message.chi[run] * dot(matmul(s, wrong), r)
            w[run, 0] = (int(w[run, 0]) + owed * pow(int(u[0]), -1, T)) % T
        return (MaskedProducts(pack_values(w)),)


def test_products_fitted_to_another_first_layer_are_the_requesters_fault() -> None:
    """Attack 5. Defence: the ω part ties w to the committed weights and the hint; with ω = 0 this passes as Valid."""
    book = type("Book", (LyingBook,), {"kind": "fitted"})(WORLD.task, WORLD.sk, WORLD.plain, WORLD.signer)
    claim = claim_of(WORLD, BODY, _lied(book))
    assert isinstance(make_audit(WORLD, claim, book=book, requester=FittedProducts).run(), RequesterFault)


@pytest.mark.parametrize("kind", ["refuse", "other", "signature"])
def test_wrong_openings_are_the_requesters_fault(kind: str) -> None:
    """Attack 5. Defence: commitments before μ, openings signed over the transcript; "signature" passes without the check."""
    liar = type("Liar", (WrongZero,), {"kind": kind})
    assert isinstance(make_audit(WORLD, CLAIM, requester=liar).run(), RequesterFault)


def test_she_cannot_commit_after_she_has_seen_the_numbers() -> None:
    """Attack 5. A requester who answers with μ itself fails at the commitment."""

    class Echo(AuditRequester):
        def _open_runs(self, message: ZeroNumbers) -> Sequence[Message]:
            (reply,) = super()._open_runs(message)
            assert isinstance(reply, ZeroOpenings)
            opened = tuple(
                None if one is None else replace(one, value=number)
                for one, number in zip(reply.openings, message.numbers, strict=True)
            )
            return (sign_openings(self._key, self.transcript.head, opened),)

    book = type("Book", (LyingBook,), {"kind": "z1"})(WORLD.task, WORLD.sk, WORLD.plain, WORLD.signer)
    assert isinstance(make_audit(WORLD, CLAIM, book=book, requester=Echo).run(), RequesterFault)


def test_other_features_than_the_committed_ones_are_the_requesters_fault() -> None:
    features = WORLD.plain.features.copy()
    features[4, 4] += 1 if features[4, 4] < 127 else -1
    plain = replace(WORLD.plain, features=features)
    assert isinstance(make_audit(WORLD, CLAIM, plain=plain).run(), RequesterFault)


# Planted ciphertexts


def planted_world(sk: SecretKey, plain: np.ndarray, noise: int = 0) -> World:
    """The small world with other plaintexts (rows, N) in its blobs, and noise added to every coefficient of c0."""
    rows, task = len(plain), WORLD.task
    blobs = []
    for row in range(rows):
        kind, index = (PublicKind.FEATURE, row) if row < 8 else (PublicKind.LABEL, row - 8)
        c0 = encrypt_symmetric(sk, task.public(kind, index), np.remainder(plain[row : row + 1], T), SeededRng(f"planted {row}"))
        extra = np.array([noise % prime for prime in PARAMS.primes], dtype=np.uint64)[:, None]
        primes = np.array(PARAMS.primes, dtype=np.uint64)[:, None]
        blobs.append(pack((c0 + extra) % primes))
    digests = tuple(Digest(hashlib.sha256(blob).digest()) for blob in blobs)
    spec = replace(task.spec, test_blobs=digests, test_root=merkle.root(digests))
    context = replace(task, spec=spec)
    return replace(WORLD, task=context, encrypted=EncryptedTestSet.load(context, blobs), blobs=tuple(blobs))


def honest_rows() -> np.ndarray:
    rows = np.zeros((11, PARAMS.degree), dtype=np.int64)
    rows[:, :20] = WORLD.plain.rows()
    return rows


def test_padding_carries_nothing() -> None:
    """Attack 13. Defence: weights of padding are zero. With np.ones in the place of np.zeros in TaskContext.spread the audit of
    an honest claim fails here."""
    rows = honest_rows()
    rows[:, 20:] = 1
    world = planted_world(WORLD.sk, rows)
    assert isinstance(make_audit(world, CLAIM).run(), Valid)


@pytest.mark.parametrize("fraction", [2, 3, 7])
def test_fractions_planted_in_the_features_never_make_a_false_answer_pass(fraction: int) -> None:
    """Attack 5, malformed ciphertexts: q/(2t), q/(3t), … added to every feature coefficient, with an honest and with a lying
    requester. Defence: exact forms; a planted fraction acts as another fixed feature, never as what suits a lie."""
    world = planted_world(WORLD.sk, honest_rows(), PARAMS.modulus // (fraction * T))
    assert not isinstance(make_audit(world, CLAIM, seed=fraction).run(), Valid)
    book = type("Book", (LyingBook,), {"kind": "z1"})(world.task, world.sk, world.plain, world.signer)
    assert isinstance(make_audit(world, CLAIM, seed=fraction, book=book).run(), RequesterFault)


# Nodes who use the requester


class Asking(AuditNode):
    """Asks about a number of its choice instead of the audit's form: here one feature, with a guess."""

    guess = 0

    def _ask(self, message: MaskedProducts) -> Sequence[Message]:
        c0, c1 = self._test_set.features0[0, 0], self._test_set.features1[0, 0]
        form = LinearForm(np.ascontiguousarray(c0[:, 0]), c1, -self.guess % T)
        self._verifier = ZeroCheckVerifier(self._pk, [form] * 3, self._rng, self.transcript.head)
        self._expected = (ZeroCommitments,)
        return (ZeroQueries(tuple(self._verifier.queries())),)


@pytest.mark.parametrize("right", [True, False])
def test_a_node_that_asks_about_a_feature_gets_one_bit_and_is_charged(right: bool) -> None:
    """Attack 4. Defence: commitments instead of decryptions, and the attempt charged at its opening, whatever the answer is:
    a validator gets three sessions for a claim."""
    true = int(WORLD.plain.features[0, 0])
    kind = type("Asking", (Asking,), {"guess": true if right else true + 1})
    marks = Marks()
    audit = make_audit(WORLD, CLAIM, node=kind, marks=marks)
    log: list[Envelope] = []
    exchange(audit.node, audit.requester, audit.node.start(), log)
    (openings,) = (e.message for e in log if isinstance(e.message, ZeroOpenings))
    assert all((one is not None) is right for one in openings.openings)
    if not right:
        assert (true + 1) % T not in [getattr(one, "value", None) for one in openings.openings]
    assert audit.requester.is_over
    with pytest.raises(BudgetError):
        make_audit(WORLD, CLAIM, marks=marks, seed=1).run()
    for attempt in (1, 2):
        assert isinstance(make_audit(WORLD, CLAIM, marks=marks, seed=1 + attempt, attempt=attempt).run(), Valid)
    with pytest.raises(MalformedError, match="attempt 3"):
        make_audit(WORLD, CLAIM, marks=marks, seed=4, attempt=3).run()


def test_two_challenges_for_one_hint_are_refused() -> None:
    """Attack 9. Two χ for one m would show W_1 r. Defence: one message for one number, masks dropped on use."""
    audit = make_audit(WORLD, CLAIM)
    log: list[Envelope] = []
    exchange(audit.node, audit.requester, audit.node.start(), log)
    audit = make_audit(WORLD, CLAIM)
    sent = [e for e in log if type(e.message).__name__ in ("AuditOpen", "ModelBody", "RunSeeds", "Challenges", "ZeroQueries")]
    for envelope in sent[:4]:
        audit.requester.step(envelope)
    for index in (sent[3].index, sent[3].index + 1):
        with pytest.raises(SequenceError):
            audit.requester.step(Envelope(sent[0].session, index, Challenges((1, 2, 3))))


def test_seeds_shared_between_runs_are_refused() -> None:
    """Attack 5, runs that share s and r. Defence: different seeds; the node draws 32 fresh bytes for each."""
    audit = make_audit(WORLD, CLAIM)

    class Same(AuditNode):
        def _take_layer(self, message: object) -> Sequence[Message]:
            replies = super()._take_layer(message)  # type: ignore[arg-type]
            return tuple(RunSeeds((bytes(32),) * 3) if isinstance(one, RunSeeds) else one for one in replies)

    audit = make_audit(WORLD, CLAIM, node=Same)
    with pytest.raises(MalformedError, match="different seeds"):
        audit.run()


def test_sessions_have_their_own_coins_and_masks() -> None:
    """Attack 15 in small: the same claim audited twice shares no hint, no query, no number."""
    seen: set[bytes] = set()
    count = 0
    for seed in range(2):
        audit = make_audit(WORLD, CLAIM, seed=seed)
        log: list[Envelope] = []
        exchange(audit.node, audit.requester, audit.node.start(), log)
        for envelope in log:
            match envelope.message:
                case Hints(hints=hints):
                    seen.update(hints)
                    count += 3
                case ZeroQueries(queries=queries):
                    seen.update(query.x1 for query in queries)
                    count += 3
                case MaskedProducts(w=w):
                    seen.update(w[i : i + 40] for i in range(0, 120, 40))
                    count += 3
    assert len(seen) == count == 18


def test_who_may_audit_what() -> None:
    task = WORLD.task
    book = AnswerBook(task, WORLD.sk, WORLD.plain, WORLD.signer)
    session = bytes(32)

    def requester(claims: Claims, caller: bytes = VALIDATOR.public_key) -> AuditRequester:
        return AuditRequester(
            task, session, NodeId(caller), WORLD.sk, WORLD.plain, WORLD.signer, book, claims, Marks(), SeededRng("who")
        )

    node = AuditNode(task, session, VALIDATOR, WORLD.pk, WORLD.encrypted, CLAIM, SeededRng("who asks"))
    (opening,) = node.start()
    with pytest.raises(UnavailableError):
        requester(Claims(claimed=False)).step(opening)
    with pytest.raises(AuthError):
        requester(Claims(validator=False)).step(opening)
    with pytest.raises(AuthError):
        requester(Claims(), bytes(32)).step(opening)
    assert requester(Claims()).step(opening)


def test_a_wrong_body_is_refused_before_anything_is_decrypted() -> None:
    audit = make_audit(WORLD, CLAIM)
    (opening,) = audit.node.start()
    audit.requester.step(opening)
    other, _ = make_body(WORLD.pk, MODEL, SeededRng("other"))
    with pytest.raises(MalformedError, match="not the one under"):
        audit.requester.step(Envelope(opening.session, 1, ModelBody(other)))
    assert audit.book.find(CLAIM.vm.model_commitment) is None


def test_every_state_refuses_what_does_not_belong() -> None:
    """Attack 12, audit: see tests/wire_fuzz.py."""
    audit = make_audit(WORLD, CLAIM)
    refused = fuzzed_exchange(audit.node, audit.requester, audit.node.start())
    assert isinstance(audit.node.finding, Valid)
    assert refused > 60


def test_a_requester_who_stops_answering() -> None:
    audit = make_audit(WORLD, CLAIM)
    audit.node.start()
    assert audit.node.give_up("no answer by audit_ms") == RequesterFault("no answer by audit_ms")
    assert verify_transcript(audit.node.export(), VALIDATOR.public_key).result == "RequesterFault: no answer by audit_ms"


# Stored check


def stored(world: World, marks: Marks | None = None, attempt: int = 0) -> tuple[StoredNode, StoredRequester]:
    validator = NodeId(VALIDATOR.public_key)
    session = hashlib.sha256(b"stored %d" % attempt).digest()
    node = StoredNode(world.task, session, validator, world.pk, world.encrypted, SeededRng("stored"), attempt)
    requester = StoredRequester(
        world.task, session, validator, world.sk, world.signer, Claims(), marks or Marks(), SeededRng("proves")
    )
    return node, requester


def test_one_hot_labels_pass_the_stored_check_and_each_attempt_is_charged() -> None:
    marks = Marks()
    node, requester = stored(WORLD, marks)
    fuzzed_exchange(node, requester, node.start())
    assert node.is_passed
    node, requester = stored(WORLD, marks)
    with pytest.raises(BudgetError):
        exchange(node, requester, node.start())


@pytest.mark.parametrize("kind", ["two ones", "none", "half"])
def test_labels_that_are_not_one_hot_fail_the_stored_check(kind: str) -> None:
    """Defence: the form Σ_i s_i (Σ_c Y[c, i] - 1) with fresh s for each run."""
    rows = honest_rows()
    if kind == "two ones":
        rows[8:, 3] = [1, 1, 0]
    elif kind == "none":
        rows[8:, 19] = 0
    else:
        rows[8:, 0] = [pow(2, -1, T), 0, 0]
    node, requester = stored(planted_world(WORLD.sk, rows))
    with pytest.raises(CheatingError):
        exchange(node, requester, node.start())
    assert not node.is_passed


def test_an_out_of_range_model_is_the_pools_fault() -> None:
    """Attacks 6 and 13: well encrypted, but a weight of 512 in a 10-bit family."""
    values = OPENING.values
    big = unpack_values(values, (WORLD.task.family.parameters,))
    big[0] = 512
    opening = replace(OPENING, values=pack_values(big))
    body = encode(replace(decode(VmBody, BODY), ciphertexts=bodies._encrypt(WORLD.pk, MODEL.shape, opening)))
    audit = make_audit(WORLD, claim_of(WORLD, body, TRUE_N))
    assert isinstance(audit.run(), Undecided)
    assert isinstance(audit.node.judge(encode(opening)), PoolFault)


def test_another_model_in_the_body_is_scored_as_it_is() -> None:
    """Attack 6: the pool evaluated one model and committed to another; what counts is the committed one."""
    other = random_model(WORLD.task.family.dims, WORLD.task.family.activation, 8)
    assert isinstance(other, ScoredModel)
    body, _ = make_body(WORLD.pk, other, SeededRng("other model"))
    finding = make_audit(WORLD, claim_of(WORLD, body, TRUE_N)).run()
    assert isinstance(finding, PoolFault)
    assert finding.correct == other.count(WORLD.plain.features, WORLD.plain.labels) != TRUE_N
