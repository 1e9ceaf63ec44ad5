"""One evaluation between pool and requester: exact, and closed to every lie that either side can tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from core.chain.transaction import Activation
from core.codec import decode_as
from core.crypto import garbling
from core.crypto.homomorphic import PARAMS, NumberMask, PublicKey, add, generate_keys, number_mask, pack, public_key, sub
from core.crypto.homomorphic.params import Residues
from core.errors import (
    AuthError,
    BudgetError,
    CheatingError,
    InconclusiveError,
    LimitError,
    MalformedError,
    SequenceError,
    UnavailableError,
    WrongChainError,
)
from core.ids import AccountId, Correct, Digest, TaskId
from core.ports import Rng
from core.verification import evaluation_pool
from core.verification.evaluation_pool import EvaluationPool
from core.verification.evaluation_requester import EVALUATION_CHECKS, EVALUATION_RUNS, EvaluationRequester
from core.verification.field import T, pack_values, unpack_values
from core.verification.messages import (
    EXTRA_ROWS,
    MESSAGE,
    BaseTransfer,
    BatchAccepted,
    Envelope,
    EvaluationOpen,
    GarbledLabels,
    KnowledgeChallenge,
    KnowledgeCommitment,
    KnowledgeOpening,
    KnowledgeShares,
    MaskedModel,
    MaskedRows,
    Message,
    Part,
    TransferRequest,
    ZeroNumbers,
    ZeroOpenings,
    ZeroQueries,
)
from core.verification.receipt import verify_receipt
from core.verification.session import sign_openings
from core.verification.test_set import TestSet
from tests.models import random_model
from tests.seeded import SeededRng
from tests.verification import POOL, exchange, make_evaluation, make_world, small_world
from tests.wire_fuzz import fuzzed_exchange

WORLD = small_world()
MODEL = random_model(WORLD.task.family.dims, WORLD.task.family.activation, 0)
TRUE_N = MODEL.count(WORLD.plain.features, WORLD.plain.labels)


def test_both_sides_find_the_plaintext_count() -> None:
    run = make_evaluation(WORLD, MODEL)
    run.offline()
    result = run.online()
    assert result.correct == TRUE_N
    verify_receipt(WORLD.task.requester, WORLD.task.chain_id, WORLD.task.task_id, POOL, result.vm)
    assert run.pool.transcript.head == run.requester.transcript.head
    assert run.pool.is_over
    assert run.requester.is_over


def test_the_digits_size_takes_under_two_seconds() -> None:
    """64-16-10 on 360 rows, both sides in this process."""
    world = make_world((64, 16, 10), 360, Activation.SIGMOID, seed=3)
    model = random_model((64, 16, 10), Activation.SIGMOID, 5, shift=8)
    run = make_evaluation(world, model)
    run.offline()
    assert run.online().correct == model.count(world.plain.features, world.plain.labels)


# What the pool asks to decrypt


class RowThief(EvaluationPool):
    """Asks for ciphertexts of its choice instead of masked rows, and opens as if its own masks were in them."""

    def stolen(self) -> tuple[Residues, Residues]:
        raise NotImplementedError

    def start(self) -> tuple[Envelope, ...]:
        rows = self.task.first_width + EXTRA_ROWS
        self._masks = np.zeros((rows, self.task.features), dtype=np.int64)
        self._shares = np.zeros((rows, self.task.samples), dtype=np.int64)
        self._expected = (BaseTransfer,)
        halves = [pack(np.repeat(half[None], rows, axis=0)) for half in self.stolen()]
        return self._send(
            (
                EvaluationOpen(self.task.chain_id, self.task.task_id, self._pool, self._batch),
                BaseTransfer(self._transfer.request().encode()),
                MaskedRows(b"".join(halves)),
            )
        )

    def _accept(self, message: BatchAccepted) -> Sequence[Message]:
        self._is_prepared, self._expected = True, ()
        return ()


class KeyThief(RowThief):
    """(0, q/t) decrypts to the secret key."""

    def stolen(self) -> tuple[Residues, Residues]:
        c0 = np.zeros((PARAMS.limbs, PARAMS.degree), dtype=np.uint64)
        c1 = c0.copy()
        delta = PARAMS.modulus // T
        c1[:, 0] = [delta % prime for prime in PARAMS.primes]
        return c0, c1


class LabelThief(RowThief):
    """The encrypted labels themselves."""

    def stolen(self) -> tuple[Residues, Residues]:
        return self._test_set.labels0[0, 0], self._test_set.labels1[0, 0]


class Trusting(EvaluationRequester):
    """A requester without the knowledge check."""

    def _check_knowledge(self, message: KnowledgeShares) -> Sequence[Message]:
        assert self._shares is not None
        self._shares = self._shares[: self.task.first_width]
        self._expected = (MaskedModel,)
        return (BatchAccepted(self._salt),)


@pytest.mark.parametrize("thief", [KeyThief, LabelThief])
def test_the_pool_must_know_what_it_asks_to_decrypt(thief: type[EvaluationPool]) -> None:
    """Attack 3. Defence: the knowledge check. test_without_the_knowledge_check shows what happens when it is taken out."""
    run = make_evaluation(WORLD, MODEL, pool=thief)
    with pytest.raises(CheatingError, match="knowledge check"):
        run.offline()
    assert run.requester.is_over


@pytest.mark.parametrize("thief", [KeyThief, LabelThief])
def test_without_the_knowledge_check_the_secrets_leave(thief: type[EvaluationPool]) -> None:
    """The attack itself works: with a trusting requester V holds the first coefficients of her key, or her labels."""
    run = make_evaluation(WORLD, MODEL, pool=thief, requester=Trusting)
    run.offline()
    run.standing.committed = run.c_w
    zero = MaskedModel(run.c_w, pack_values(np.zeros((WORLD.task.first_width, WORLD.task.features), np.int64)))
    replies = [reply.message for envelope in run.pool._send((zero,)) for reply in run.requester.step(envelope)]
    assert isinstance(replies[0], TransferRequest)
    row = unpack_values(replies[0].v, (WORLD.task.first_width, WORLD.task.samples))[0]
    if thief is KeyThief:
        assert (row == WORLD.sk.s[: WORLD.task.samples] % T).all()
    else:
        assert (row == (WORLD.plain.labels == 0)).all()


def _off_by_one(packed: bytes, shape: tuple[int, int], place: int) -> bytes:
    values = unpack_values(packed, shape)
    values[place % 2, place] = (values[place % 2, place] + 1) % T
    return pack_values(values)


@pytest.mark.parametrize("lie", range(6))
def test_wrong_openings_of_known_rows_are_refused(lie: int) -> None:
    """Attack 3, rows the pool knows in part: one value of h or g is off."""

    class Liar(EvaluationPool):
        def _show_knowledge(self, message: KnowledgeChallenge) -> Sequence[Message]:
            (opening,) = super()._show_knowledge(message)
            assert isinstance(opening, KnowledgeOpening)
            if lie % 2:
                return (KnowledgeOpening(_off_by_one(opening.h, (2, 8), lie)),)
            self._opened_shares = _off_by_one(self._opened_shares, (2, 20), lie)
            return (opening,)

    with pytest.raises(CheatingError, match="knowledge check"):
        make_evaluation(WORLD, MODEL, pool=Liar, seed=lie).offline()


@pytest.mark.parametrize("kind", ["c1 = 0", "residue over its prime"])
def test_ciphertexts_that_hide_nothing_or_are_out_of_range_are_refused(kind: str) -> None:
    """Attack 12. Defence: unpack's range check, and the refusal of c1 = 0."""

    class Odd(EvaluationPool):
        def start(self) -> tuple[Envelope, ...]:
            envelopes = super().start()
            whole = decode_as(MESSAGE, b"".join(e.message.data for e in envelopes if isinstance(e.message, Part)))
            half = len(whole.ciphertexts) // 2
            bad = whole.ciphertexts[:half] + bytes(half) if kind == "c1 = 0" else b"\xff" * 25 + whole.ciphertexts[25:]
            self._sent = 2
            return (*envelopes[:2], *self._send((MaskedRows(bad),)))

    run = make_evaluation(WORLD, MODEL, pool=Odd)
    with pytest.raises(MalformedError, match=r"c1 is zero|prime"):
        run.offline()


# Who lies about z, labels, keys


class ShiftedV(EvaluationRequester):
    def _answer(self, message: MaskedModel) -> Sequence[Message]:
        (reply,) = super()._answer(message)
        assert isinstance(reply, TransferRequest)
        v = unpack_values(reply.v, (4, 20))
        v[2, 5] = (v[2, 5] + 1) % T
        return (replace(reply, v=pack_values(v)),)


class SwappedRows(EvaluationRequester):
    def _answer(self, message: MaskedModel) -> Sequence[Message]:
        (reply,) = super()._answer(message)
        assert isinstance(reply, TransferRequest)
        v = unpack_values(reply.v, (4, 20))
        return (replace(reply, v=pack_values(v[:, ::-1])),)


@pytest.mark.parametrize("liar", [ShiftedV, SwappedRows])
def test_a_requester_who_lies_about_z_is_caught_before_the_claim(liar: type[EvaluationRequester]) -> None:
    """Attack 5. Defence: the pool's zero check on z_1, and the bound on |z_1|; with both taken out of _garble and _check the
    pool ends with a result."""
    run = make_evaluation(WORLD, MODEL, requester=liar)
    run.offline()
    with pytest.raises(CheatingError):
        run.online()
    assert run.pool.result is None


@pytest.mark.parametrize("kind", ["swap two", "change one", "all equal"])
def test_other_labels_in_the_transfer_are_caught(kind: str) -> None:
    """Attack 5. Defence: the label part of the pool's zero check, on the committed labels. Without it (c4 = 0) the test fails
    wherever the count differs; labels that leave the count as it is harm nobody."""
    predictions = MODEL.forward(WORLD.plain.features)[1]
    labels = WORLD.plain.labels.copy()
    if kind == "swap two":
        gain = (labels[None, :] == predictions[:, None]).astype(int)
        right = np.diag(gain)
        change = gain + gain.T - right[:, None] - right[None, :]
        first, second = np.argwhere(change != 0)[0]
        labels[[first, second]] = labels[[second, first]]
    elif kind == "change one":
        wrong = int(np.flatnonzero(predictions != labels)[0])
        labels[wrong] = predictions[wrong]
    else:
        labels[:] = predictions
    assert MODEL.count(WORLD.plain.features, labels) != TRUE_N
    run = make_evaluation(WORLD, MODEL, plain=TestSet(WORLD.plain.features, labels, 3))
    run.offline()
    with pytest.raises(CheatingError, match="not zero"):
        run.online()


def test_a_key_of_another_task_is_caught() -> None:
    """Attack 2. Defence: everyone expands ``a`` from the task's own context: a key made for another ``a`` fits nothing."""
    world = make_world(seed=5)
    other = generate_keys(PARAMS, b"an a of her own", SeededRng("own a"))
    assert other.a_context != world.sk.a_context
    pk = world.task.public_key(public_key(other).to_bytes())
    assert pk.a_context == world.sk.a_context
    run = make_evaluation(replace(world, pk=pk, sk=other), MODEL)
    with pytest.raises(CheatingError, match="knowledge check"):
        run.offline()


def test_a_garbler_with_unlisted_keys_meets_one_fixed_abort() -> None:
    """Attack 7. Defence: listed output digests. Different tampering, the same words."""

    class Tampering(EvaluationPool):
        mask = 0

        def _garble(self, message: TransferRequest) -> Sequence[Message]:
            (reply,) = super()._garble(message)
            assert isinstance(reply, GarbledLabels)
            tables = slice(48, 48 + 32 * self._circuit.ands)
            broken = bytes(byte ^ self.mask for byte in reply.circuit[tables])
            return (replace(reply, circuit=reply.circuit[:48] + broken + reply.circuit[tables.stop :]),)

    said = set()
    for mask in (1, 128):
        run = make_evaluation(WORLD, MODEL, pool=type("Broken", (Tampering,), {"mask": mask}), seed=mask)
        run.offline()
        with pytest.raises(CheatingError) as caught:
            run.online()
        said.add(caught.value.message)
    assert said == {garbling.UNLISTED}


# Order, replay, budgets


def test_a_resumed_session_gives_the_stored_replies() -> None:
    run = make_evaluation(WORLD, MODEL)
    log: list[Envelope] = []
    exchange(run.pool, run.requester, run.pool.start(), log)
    sent = [e for e in log if isinstance(e.message, KnowledgeOpening)]
    assert run.requester.step(sent[0]) == run.requester.step(sent[0])
    assert isinstance(run.requester.step(sent[0])[0].message, KnowledgeCommitment)


def test_two_openings_for_one_challenge_and_two_models_for_one_batch_are_refused() -> None:
    """Attack 9. Defence: one message for one number, shares cleared on use. Without the digest comparison in Session.step the
    second E is answered."""
    run = make_evaluation(WORLD, MODEL)
    run.offline()
    run.standing.committed = run.c_w
    (first,) = run.pool.evaluate(MODEL, run.c_w)
    replies = run.requester.step(first)
    assert isinstance(first.message, MaskedModel)
    other = replace(first.message, e=pack_values(np.ones((4, 8), np.int64)))
    for index in (first.index, first.index + 1):
        with pytest.raises(SequenceError):
            run.requester.step(Envelope(first.session, index, other))
    assert run.requester.step(first) == replies
    with pytest.raises(SequenceError, match="sent once"):
        run.pool.evaluate(MODEL, run.c_w)
    with pytest.raises(SequenceError, match="started"):
        run.pool.start()


def test_a_batch_is_charged_when_it_opens_and_there_is_one_spare() -> None:
    """Attacks 9 and 14. Defence: marks written before the first reply; a restarted requester refuses the batch."""
    first = make_evaluation(WORLD, MODEL)
    opening = first.pool.start()[0]
    first.requester.step(opening)
    again = make_evaluation(WORLD, MODEL, marks=first.marks, seed=1)
    with pytest.raises(BudgetError):
        again.requester.step(again.pool.start()[0])
    spare = make_evaluation(WORLD, MODEL, marks=first.marks, seed=2, batch=1)
    spare.offline()
    third = make_evaluation(WORLD, MODEL, marks=first.marks, seed=3, batch=2)
    with pytest.raises(MalformedError, match="batch 2"):
        third.requester.step(third.pool.start()[0])


def test_one_evaluation_for_each_pool() -> None:
    """The spare batch gives no second look at the test set once V was sent."""
    first = make_evaluation(WORLD, MODEL)
    first.offline()
    first.online()
    spare = make_evaluation(WORLD, MODEL, marks=first.marks, seed=4, batch=1)
    spare.offline()
    with pytest.raises(BudgetError):
        spare.online()


def test_only_committed_models_after_commits_close() -> None:
    run = make_evaluation(WORLD, MODEL)
    run.offline()
    (envelope,) = run.pool.evaluate(MODEL, run.c_w)
    with pytest.raises(UnavailableError):
        run.requester.step(envelope)
    run.standing.committed = type(run.c_w)(b"\x09" * 32)
    with pytest.raises(MalformedError, match="the chain has"):
        run.requester.step(envelope)
    run.standing.committed = run.c_w
    exchange(run.pool, run.requester, (envelope,))
    assert run.pool.result is not None
    assert run.pool.result.correct == TRUE_N


def test_who_may_open() -> None:
    run = make_evaluation(WORLD, MODEL)
    task = WORLD.task
    good = EvaluationOpen(task.chain_id, task.task_id, POOL, 0)
    session = run.requester.session
    run.standing.entered = False
    with pytest.raises(UnavailableError):
        run.requester.step(Envelope(session, 0, good))
    run.standing.entered = True
    with pytest.raises(WrongChainError):
        run.requester.step(Envelope(session, 0, replace(good, chain_id=Digest(bytes(32)))))
    with pytest.raises(MalformedError):
        run.requester.step(Envelope(session, 0, replace(good, task_id=TaskId(bytes(32)))))
    with pytest.raises(AuthError):
        run.requester.step(Envelope(session, 0, replace(good, pool=AccountId(bytes(32)))))
    assert run.marks.used == set()


def test_every_state_refuses_what_does_not_belong() -> None:
    """Attack 12: truncated, longer, reordered, repeated, foreign messages in every state of both sides; then the right one, and
    the evaluation ends with the right N. Defence: sizes from the task, one number for one message, rollback on refusal."""
    run = make_evaluation(WORLD, MODEL)
    refused = fuzzed_exchange(run.pool, run.requester, run.pool.start())
    run.standing.committed = run.c_w
    refused += fuzzed_exchange(run.pool, run.requester, run.pool.evaluate(MODEL, run.c_w))
    assert run.pool.result is not None
    assert run.pool.result.correct == TRUE_N
    assert refused > 100


def test_parts_are_bounded_before_they_are_kept() -> None:
    """Attack 12, memory. Defence: the session's limit, which follows from the task."""
    run = make_evaluation(WORLD, MODEL)
    opening = run.pool.start()
    for envelope in opening[:2]:
        run.requester.step(envelope)
    with pytest.raises(LimitError):
        run.requester.step(Envelope(run.requester.session, 2, Part(0, 1000, bytes(1 << 20))))


def test_two_batches_of_samples() -> None:
    """More samples than coefficients: the second ciphertext of each row counts, its padding does not."""
    world = make_world((3, 2, 2), PARAMS.degree + 5, Activation.RELU, seed=8)
    model = random_model((3, 2, 2), Activation.RELU, 1)
    run = make_evaluation(world, model)
    run.offline()
    assert run.online().correct == model.count(world.plain.features, world.plain.labels)


# A zero check that chance spoils


def at_a_boundary(pk: PublicKey, rng: Rng) -> NumberMask:
    """A mask that rounds up by a hair: noise below zero makes her number one less. By chance it happens once in 2^26 runs."""
    made = number_mask(pk, rng)
    q, t = PARAMS.modulus, PARAMS.plain_modulus
    mask = -(-(2 * 7 - 1) * q // (2 * t))
    limbs = np.array([[mask % prime] for prime in PARAMS.primes], dtype=np.uint64)
    head = add(made.head[:, None], sub(limbs, made.mask[:, None]))
    return NumberMask(head[:, 0], made.tail, limbs[:, 0])


class Spoiled:
    """``number_mask`` of a pool whose first ``checks`` zero checks lie on a boundary."""

    def __init__(self, checks: int) -> None:
        self.left = checks * EVALUATION_RUNS

    def __call__(self, pk: PublicKey, rng: Rng) -> NumberMask:
        self.left -= 1
        return at_a_boundary(pk, rng) if self.left >= 0 else number_mask(pk, rng)


@pytest.mark.parametrize("checks", [1, 2])
def test_a_spoiled_zero_check_is_repeated_and_nobody_is_blamed(checks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, InconclusiveError ended the pool's only evaluation."""
    spoiled = 0
    for seed in range(40):
        monkeypatch.setattr(evaluation_pool, "number_mask", Spoiled(checks))
        run = make_evaluation(WORLD, MODEL, seed=100 + seed)
        run.offline()
        assert run.online().correct == TRUE_N
        assert run.requester.is_over
        assert run.pool.transcript.head == run.requester.transcript.head
        spoiled = max(spoiled, run.pool._checks - 1)
        if spoiled == checks:
            break
    assert spoiled == checks


class AlwaysUnequal(EvaluationRequester):
    """Says of every run that it is not equal, and signs it."""

    def _handle(self, message: Message) -> Sequence[Message]:
        replies = super()._handle(message)
        if not isinstance(message, ZeroNumbers):
            return replies
        if self._checks < EVALUATION_CHECKS:
            self._ended, self._expected = None, (ZeroQueries,)
        return (sign_openings(self._key, self.transcript.head, (None,) * EVALUATION_RUNS),)


def test_a_requester_who_denies_is_blamed_at_once_unless_chance_may_have_done_it(monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_evaluation(WORLD, MODEL, requester=AlwaysUnequal)
    run.offline()
    with pytest.raises(CheatingError, match="not zero"):
        run.online()
    assert run.pool._checks == 1
    monkeypatch.setattr(evaluation_pool, "number_mask", Spoiled(EVALUATION_CHECKS))
    run = make_evaluation(WORLD, MODEL, seed=1, requester=AlwaysUnequal)
    run.offline()
    with pytest.raises(InconclusiveError, match="repeat"):
        run.online()
    assert run.pool._checks == EVALUATION_CHECKS


def test_a_pool_gets_no_more_checks_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that makes its own runs unequal to ask again. Defence: she counts; and after a passed check none is granted."""

    class Asker(EvaluationPool):
        def _conclude(self, message: ZeroOpenings) -> Sequence[Message]:
            return self._ask_again()

    run = make_evaluation(WORLD, MODEL, pool=Asker)
    run.offline()
    with pytest.raises(SequenceError, match="complete"):
        run.online()

    class WrongAsker(Asker):
        def _ask(self) -> Sequence[Message]:
            assert self._pending is not None
            self._pending = replace(self._pending, correct=Correct(self._pending.correct + 1))
            return super()._ask()

    run = make_evaluation(WORLD, MODEL, seed=1, pool=WrongAsker)
    run.offline()
    with pytest.raises(SequenceError, match="complete"):
        run.online()
    assert run.requester._checks == EVALUATION_CHECKS
