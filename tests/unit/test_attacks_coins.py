"""Attacks 1, 3, 5, 8, 9 and 13 that the files of each part do not try: what is fixed when, and whose it is."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from core.chain import merkle
from core.chain.transaction import Activation
from core.crypto.homomorphic import PARAMS, add, combine, encrypt_public, encrypt_symmetric, mask_for_decryption, pack, unpack
from core.crypto.homomorphic.combine import multiply_poly
from core.crypto.homomorphic.modular import centre
from core.crypto.homomorphic.params import Residues
from core.crypto.homomorphic.rounding import compose
from core.errors import CheatingError, PoflError, SequenceError
from core.ids import Digest
from core.verification.audit_node import PoolFault, RequesterFault, Valid
from core.verification.audit_requester import AuditRequester
from core.verification.body import make_body
from core.verification.evaluation_pool import EvaluationPool
from core.verification.evaluation_requester import EvaluationRequester
from core.verification.field import T, pack_values, unpack_values
from core.verification.messages import (
    AuditAnswer,
    BaseTransfer,
    Envelope,
    EvaluationOpen,
    Hints,
    KnowledgeChallenge,
    MaskedModel,
    MaskedRows,
    Message,
    RunSeeds,
    TransferRequest,
    ZeroOpenings,
    ZeroQueries,
)
from core.verification.receipt import ReceiptMessage, sign_answer, sign_receipt
from core.verification.scored_model import ModelFamily
from core.verification.task import PublicKind
from core.verification.test_set import EncryptedTestSet
from tests.models import random_model
from tests.seeded import SeededRng
from tests.verification import POOL, World, claim_of, exchange, make_audit, make_evaluation, make_world, small_world

WORLD = small_world()
MODEL = random_model(WORLD.task.family.dims, WORLD.task.family.activation, 0)
TRUE_N = MODEL.count(WORLD.plain.features, WORLD.plain.labels)
BODY, _ = make_body(WORLD.pk, MODEL, SeededRng("coins body"))
CLAIM = claim_of(WORLD, BODY, TRUE_N)
PLANT = 1 << 76
"""An offset in a phase that changes no decryption of what it is planted in; times a 33-bit multiplier it is far above noise."""


def planted(c0: Residues) -> Residues:
    out = c0.copy()
    for limb, prime in enumerate(PARAMS.primes):
        out[limb, 0] = (int(out[limb, 0]) + PLANT) % prime
    return out


def multiplier_read(c0_head: Sequence[int], c1: Residues) -> int:
    """What the planter computes from a ciphertext that comes back: the noise of coefficient 0 in units of her plant."""
    q, product = PARAMS.modulus, multiply_poly(c1, WORLD.sk.s)[:, 0]
    residues = [(int(a) + int(b)) % p for a, b, p in zip(c0_head, product, PARAMS.primes, strict=True)]
    phase = compose(residues)
    nearest = (2 * T * phase + q) // (2 * q)
    rest = (phase - (2 * nearest * q + T) // (2 * T)) % q
    return round((rest - q if rest > q // 2 else rest) / PLANT)


def test_offsets_planted_in_a_hint_do_not_show_the_nodes_weights() -> None:
    """Attack 1, a hint. Fails without the mask modulo q in x0: she reads ω_0 of every run from the noise of her own plant."""

    class Planter(AuditRequester):
        def _hint(self, message: RunSeeds) -> Sequence[Message]:
            (reply,) = super()._hint(message)
            assert isinstance(reply, Hints)
            return (Hints(tuple(pack(planted(unpack(hint, 1)[0])[None]) for hint in reply.hints)),)

    audit = make_audit(WORLD, CLAIM, requester=Planter)
    log: list[Envelope] = []
    exchange(audit.node, audit.requester, audit.node.start(), log)
    (asked,) = (one.message for one in log if isinstance(one.message, ZeroQueries))
    assert isinstance(audit.node.finding, Valid)  # the plant is below the noise that decrypts
    for query, coins in zip(asked.queries, audit.node._coins, strict=True):
        x0, x1 = query.residues()
        weight = int(centre(np.array([-coins.omega[0] % T], dtype=np.int64), T)[0])
        assert multiplier_read([int(v) for v in x0], x1) != weight


def test_offsets_planted_in_a_feature_do_not_show_the_pools_masks() -> None:
    """Attack 1, the rows: fails without the mask modulo q on c0 (then H, hence the model from E, is read entry by entry)."""
    run = make_evaluation(WORLD, MODEL)
    batch = run.pool._test_set
    c0, c1 = batch.features0[0].copy(), batch.features1[0]
    c0[0] = planted(c0[0])
    masks = SeededRng("H")
    h = np.frombuffer(masks.bytes(8 * 4 * 8), dtype="<u8").astype(np.int64).reshape(4, 8) % T
    signed = centre(h, T)
    masked0, masked1, _ = mask_for_decryption(WORLD.pk, combine(signed, c0), combine(signed, c1), SeededRng("mask"))
    read = [multiplier_read([int(v) for v in masked0[k, :, 0]], masked1[k]) for k in range(4)]
    products = zip(combine(signed, c0), combine(signed, c1), strict=True)
    bare = [multiplier_read([int(v) for v in row[:, 0]], tail) for row, tail in products]
    assert bare == [int(v) for v in signed[:, 0]]  # the attack works where nothing masks
    assert not set(read) & {int(v) for v in signed[:, 0]}


class RandomisedLabels(EvaluationPool):
    """Asks for encrypted labels, with an encryption of zero on top, so that the requester cannot know them again."""

    def start(self) -> tuple[Envelope, ...]:
        rows = self.task.first_width + 2
        zero0, zero1 = encrypt_public(self._pk, np.zeros((rows, PARAMS.degree), dtype=np.int64), b"\x07" * 32)
        c0, c1 = self._test_set.labels0[0, 0], self._test_set.labels1[0, 0]
        data = pack(np.stack([add(c0, zero) for zero in zero0])) + pack(np.stack([add(c1, zero) for zero in zero1]))
        self._masks = np.zeros((rows, self.task.features), dtype=np.int64)
        self._shares = np.zeros((rows, self.task.samples), dtype=np.int64)
        self._expected = (BaseTransfer,)
        opening = EvaluationOpen(self.task.chain_id, self.task.task_id, self._pool, self._batch)
        return self._send((opening, BaseTransfer(self._transfer.request().encode()), MaskedRows(data)))


def test_labels_randomised_anew_are_refused_like_any_row_that_the_pool_does_not_know() -> None:
    """Attack 3. Fails without the knowledge check: V would hold the labels of class 0."""
    run = make_evaluation(WORLD, MODEL, pool=RandomisedLabels)
    with pytest.raises(CheatingError, match="knowledge check"):
        run.offline()
    assert run.requester.is_over


# Attack 5: coins of the runs


def small(coins: object, prime: int) -> list[int]:
    """All coins of a run, modulo a small prime."""
    values: list[int] = []
    for value in dataclasses.astuple(coins):  # type: ignore[call-overload]
        for one in value if isinstance(value, tuple) else (value,):
            for array in one if isinstance(one, tuple) else (one,):
                values += [int(v) % prime for v in np.atleast_1d(array)]
    return values


def test_runs_share_no_coins_seen_through_a_small_t() -> None:
    """Attack 5: with t = 7 a lie of one unit in one z passes a run when its coin s_i r_k χ c2 is zero, three runs with (about)
    (1 - (6/7)^4)^3 = 0.1 when their coins are their own, and with 0.46 when they are shared. Fails when AuditNode draws the
    secret coins once for all runs, or sends one seed for all."""
    passed = runs = 0
    for number in range(60):
        node = make_audit(WORLD, CLAIM, seed=number).node
        node._seeds = ()
        node.start()
        node._coins = tuple(node._draw(run) for run in range(3))
        for place in range(4):
            products = [
                int(one.s[place]) % 7 * (int(one.r[place]) % 7) * (one.chi % 7) * (one.c2 % 7) % 7 for one in node._coins
            ]
            passed += not any(products)
            runs += 1
    assert passed / runs < 0.25


def test_every_coin_of_every_run_is_its_own() -> None:
    """Attack 5, exactly: no s, r, ω, χ, c2, c4, s_l, r_l of one run appears in another. Fails when any of them is shared."""
    audit = make_audit(WORLD, CLAIM)
    assert isinstance(audit.run(), Valid)
    one, two, three = (set(wide(coins)) for coins in audit.node._coins)
    assert not one & two
    assert not two & three
    assert not one & three


def wide(coins: object) -> list[int]:
    return small(coins, T)


def noisy_world(noise: int) -> World:
    """The small world with noise on every coefficient of every feature."""
    task, rows = WORLD.task, WORLD.plain.rows()
    blobs = list(WORLD.blobs)
    for row in range(task.features):
        plain = task.spread(np.remainder(rows[row], T))
        c0 = encrypt_symmetric(WORLD.sk, task.public(PublicKind.FEATURE, row), plain, SeededRng(f"noisy {row}"))
        extra = np.array([noise % prime for prime in PARAMS.primes], dtype=np.uint64)[:, None]
        blobs[row] = pack((c0 + extra) % np.array(PARAMS.primes, dtype=np.uint64)[:, None])
    digests = tuple(Digest(hashlib.sha256(blob).digest()) for blob in blobs)
    context = replace(task, spec=replace(task.spec, test_blobs=digests, test_root=merkle.root(digests)))
    return replace(WORLD, task=context, encrypted=EncryptedTestSet.load(context, blobs), blobs=tuple(blobs))


def test_noise_near_the_limit_makes_no_false_answer_pass() -> None:
    """Attack 5: noise of 0.49 units of plaintext on every feature, with the truth and with a z_1 by one. A vote may go against
    her; a lie never passes."""
    world = noisy_world(PARAMS.modulus * 49 // (100 * T))
    finding = make_audit(world, CLAIM).run()
    assert not isinstance(finding, PoolFault)

    class ByOne(AuditRequester):
        """Moves w for one run only, which no other run forgives."""

        def _hint(self, message: RunSeeds) -> Sequence[Message]:
            replies = super()._hint(message)
            self._hidden = [(np.remainder(v + 1, T), m) for v, m in self._hidden]
            return replies

    assert isinstance(make_audit(world, CLAIM, requester=ByOne).run(), RequesterFault)


def test_answers_under_another_key_are_the_requesters_fault() -> None:
    """Attack 5. She proves with a key that is not the task's: her numbers are not what the queries hold. Fails without the
    comparison with μ."""
    other = make_world(seed=44).sk

    class OtherKey(AuditRequester):
        def _commit(self, message: ZeroQueries) -> Sequence[Message]:
            self._sk = other
            return super()._commit(message)

    assert isinstance(make_audit(WORLD, CLAIM, requester=OtherKey).run(), RequesterFault)


# Attack 8


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ReceiptMessage)])
def test_a_receipt_is_good_for_one_thing_only(field: str) -> None:
    """Attack 8: a true signature of the same requester, about another chain, task, pool, model, circuit or keys. Fails without
    verify_receipt in AuditNode.start."""
    vm = CLAIM.vm
    true = ReceiptMessage(
        WORLD.task.chain_id, WORLD.task.task_id, POOL, vm.model_commitment, vm.garbled_circuit_digest,
        vm.receipt.output_keys_digest,
    )  # fmt: skip
    assert sign_receipt(WORLD.signer, true) == vm.receipt
    signed = sign_receipt(WORLD.signer, replace(true, **{field: b"\x5a" * 32}))  # type: ignore[arg-type]
    receipt = replace(vm.receipt, signature=signed.signature)
    node = make_audit(WORLD, replace(CLAIM, vm=replace(vm, receipt=receipt))).node
    assert node.start() == ()
    assert isinstance(node.finding, PoolFault)


@pytest.mark.parametrize("field", ["chain_id", "task_id", "pool", "model_commitment"])
def test_an_answer_about_another_claim_is_not_taken(field: str) -> None:
    """Attack 8, answers: signed by her, about something else. Fails without the comparison in _take_answer."""

    class Elsewhere(AuditRequester):
        def _reply(self, message: object) -> Sequence[Message]:
            first, *rest = super()._reply(message)  # type: ignore[arg-type]
            assert isinstance(first, AuditAnswer)
            moved = sign_answer(self._key, replace(first.answer.answer, **{field: b"\x5a" * 32}))  # type: ignore[arg-type]
            return (AuditAnswer(moved), *rest)

    finding = make_audit(WORLD, CLAIM, requester=Elsewhere).run()
    assert isinstance(finding, RequesterFault)
    assert "another claim" in finding.reason


def test_openings_of_one_session_are_worth_nothing_in_another() -> None:
    """Attack 8 for openings: what she signed in one audit, shown in the next. Fails without the transcript's head under their
    signature and in the commitments."""
    first = make_audit(WORLD, CLAIM, seed=1)
    log: list[Envelope] = []
    exchange(first.node, first.requester, first.node.start(), log)
    (old,) = (one.message for one in log if isinstance(one.message, ZeroOpenings))

    class Replays(AuditRequester):
        def _open_runs(self, message: object) -> Sequence[Message]:
            super()._open_runs(message)  # type: ignore[arg-type]
            return (old,)

    finding = make_audit(WORLD, CLAIM, seed=2, requester=Replays).run()
    assert isinstance(finding, RequesterFault)
    assert "not signed" in finding.reason


# Attack 9


def test_two_challenges_for_one_batch_are_refused_by_the_pool() -> None:
    """Attack 9: γ and γ' for the same extra rows give Σ (γ_k - γ'_k) H_k, hence the model from E. Fails without the digests of
    taken messages in Session.step. At the next number two things refuse it, the order and the state of the transfer; each alone
    is enough, and the extra rows are gone in any case."""
    run = make_evaluation(WORLD, MODEL)
    log: list[Envelope] = []
    exchange(run.pool, run.requester, run.pool.start(), log)
    (asked,) = (one for one in log if isinstance(one.message, KnowledgeChallenge))
    assert run.pool.step(asked) == run.pool.step(asked)
    other = KnowledgeChallenge(pack_values(np.ones((2, 4), dtype=np.int64)))
    for index in (asked.index, asked.index + 1, asked.index + 2):
        with pytest.raises(SequenceError):
            run.pool.step(Envelope(asked.session, index, other))
    assert run.pool._masks is not None
    assert len(run.pool._masks) == 4


def test_one_mask_serves_one_model() -> None:
    """Attack 9: H for two models shows their difference. Fails without ``_masks = None`` after use."""
    run = make_evaluation(WORLD, MODEL)
    run.offline()
    run.pool.evaluate(MODEL, run.c_w)
    assert run.pool._masks is None
    other = random_model(WORLD.task.family.dims, WORLD.task.family.activation, 3)
    with pytest.raises(SequenceError, match="sent once"):
        run.pool.evaluate(other, run.c_w)


# Attack 13


@pytest.mark.parametrize("size", [T // 2, T // 2 - 1, 1 << 31])
def test_a_first_layer_beyond_every_models_bound_is_refused_by_the_pool(size: int) -> None:
    """Attack 13, wrap-around: V moved so far that z_1 wraps modulo t. Fails without the bound in _garble; the zero check behind
    it is taken out here."""

    class Far(EvaluationRequester):
        def _answer(self, message: MaskedModel) -> Sequence[Message]:
            (reply,) = super()._answer(message)
            assert isinstance(reply, TransferRequest)
            v = unpack_values(reply.v, (4, 20))
            v[0, 0] = (v[0, 0] + size) % T
            return (replace(reply, v=pack_values(v)),)

    run = make_evaluation(WORLD, MODEL, requester=Far)
    run.offline()
    with pytest.raises(CheatingError, match="beyond every model's bound"):
        run.online()


def test_a_family_whose_values_could_wrap_is_refused_before_anything_is_trained() -> None:
    """Attack 13. Fails without the comparison with t/2 in ModelFamily."""
    ModelFamily((255, 16, 10), Activation.SIGMOID, 12)
    with pytest.raises(PoflError, match="not below t/2"):
        ModelFamily((65535, 16, 10), Activation.SIGMOID, 12)
