"""A requester who plants fractions in her encrypted features and reads the pool's first layer from how its shares round.

Masks are uniform modulo q, so what she decrypts hides H. But she knows the masked phases, and ``g`` tells how ``t mask / q``
was rounded, which depends on H times the fraction. With ``E = W_1^T - H`` she then finds every weight of the columns she asked
for. So she commits to g before she sees it, and E leaves only after the commitment opened right (docs/adr/0067).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from core.chain import merkle
from core.chain.transaction import Activation
from core.crypto.homomorphic import PARAMS, pack, unpack
from core.crypto.homomorphic.encryption import _phase
from core.crypto.homomorphic.rounding import compose
from core.errors import CheatingError
from core.verification.evaluation_pool import EvaluationPool
from core.verification.evaluation_requester import EvaluationRequester, foreseen_commitment
from core.verification.field import T, pack_values, unpack_values
from core.verification.messages import (
    BatchAccepted,
    KnowledgeChallenge,
    KnowledgeCommitment,
    KnowledgeShares,
    MaskedModel,
    MaskedRows,
    Message,
)
from core.verification.task import TaskContext
from core.verification.test_set import EncryptedTestSet, TestSet
from tests.models import random_model
from tests.verification import World, make_evaluation, make_world

DIMS = (2, 4, 3)
PER_FEATURE = 39
ROWS = PER_FEATURE * DIMS[0]
FRACTIONS = (2, 4, 16, 64, 256, 1023, 2048, 7, 31, 127)
MODEL = random_model(DIMS, Activation.SIGMOID, 5)


def planted(place: int) -> tuple[int, int]:
    """Which feature row ``place`` of the test set spoils, and by which residue: ``q / (t b)``, the fraction 1/b."""
    share = Fraction(PARAMS.modulus, T * FRACTIONS[place % PER_FEATURE % len(FRACTIONS)])
    return place // PER_FEATURE, round(share)


def malformed_world() -> World:
    """A test set of zeros, with one fraction planted in one feature of each row."""
    plain = TestSet(np.zeros((ROWS, DIMS[0]), dtype=np.int8), np.arange(ROWS, dtype=np.int64) % DIMS[-1], DIMS[-1])
    world = make_world(DIMS, ROWS, Activation.SIGMOID, 1, plain)
    blobs = list(world.blobs)
    for feature in range(DIMS[0]):
        residues = unpack(blobs[feature], world.task.batches).copy()
        for place in range(feature * PER_FEATURE, (feature + 1) * PER_FEATURE):
            for limb, prime in enumerate(PARAMS.primes):
                residues[0, limb, place] = (int(residues[0, limb, place]) + planted(place)[1]) % prime
        blobs[feature] = pack(residues)
    digests = tuple(type(world.task.spec.test_blobs[0])(hashlib.sha256(blob).digest()) for blob in blobs)
    spec = replace(world.task.spec, test_blobs=digests, test_root=merkle.root(digests))
    task = TaskContext(world.task.chain_id, world.task.task_id, world.task.requester, spec)
    return replace(world, task=task, blobs=tuple(blobs), encrypted=EncryptedTestSet.load(task, blobs))


class Thief(EvaluationRequester):
    """Asks for two columns, keeps the phases, and solves for the weights when E comes."""

    stolen: dict[tuple[int, int], int]

    def _decrypt(self, message: MaskedRows) -> Sequence[Message]:
        rows = DIMS[1] + 2
        residues = unpack(message.ciphertexts, 2 * rows * self.task.batches)
        half = rows * self.task.batches
        phases = _phase(self._sk, residues[:half], residues[half:])
        self._phases = [[compose([int(limb) for limb in row[:, i]], PARAMS) for i in range(ROWS)] for row in phases]
        reply, _ = super()._decrypt(message)
        gamma = np.zeros((2, DIMS[1]), dtype=np.int64)
        gamma[0, 0] = gamma[1, 1] = 1
        self._gamma = gamma
        return (reply, KnowledgeChallenge(pack_values(gamma)))

    def _foresee(self, message: Message) -> Sequence[Message]:
        self._h = unpack_values(message.h, (2, DIMS[0]))  # type: ignore[union-attr]
        return super()._foresee(message)  # type: ignore[arg-type]

    def _check_knowledge(self, message: KnowledgeShares) -> Sequence[Message]:
        assert self._shares is not None
        self._g = unpack_values(message.g, (2, ROWS))
        self._shares, self._expected = self._shares[: DIMS[1]], (MaskedModel,)
        return (BatchAccepted(self._salt),)

    def _answer(self, message: MaskedModel) -> Sequence[Message]:
        e = unpack_values(message.e, (DIMS[1], DIMS[0]))
        self.stolen = {(row, j): self._solve(row, j, int(e[row, j])) for row in range(2) for j in range(DIMS[0])}
        return super()._answer(message)

    def _solve(self, row: int, feature: int, e: int) -> int:
        """The weight whose roundings and wrap-arounds fit g best."""

        def misfits(weight: int) -> int:
            mask = centred(weight - e)
            extra = centred(int(self._h[row, feature]) - mask)
            return sum(
                (-rounded(self._phases[row][i] - mask * shift) - rounded(self._phases[DIMS[1] + row][i] - extra * shift)
                 - int(self._g[row, i])) % T != 0
                for i in range(feature * PER_FEATURE, (feature + 1) * PER_FEATURE)
                for shift in (planted(i)[1],)
            )  # fmt: skip

        return min(range(-511, 512), key=misfits)


def centred(value: int) -> int:
    return (value + T // 2) % T - T // 2


def rounded(phase: int) -> int:
    q = PARAMS.modulus
    return (2 * T * (phase % q) + q) // (2 * q)


class Careless(EvaluationPool):
    """A pool that sends its model whatever the requester knew."""

    def _accept(self, message: BatchAccepted) -> Sequence[Message]:
        self._is_prepared, self._expected = True, ()
        return ()


def test_without_the_commitment_the_first_layer_leaves() -> None:
    """What the attack does when the defence is taken out: all weights of two columns, exactly."""
    run = make_evaluation(malformed_world(), MODEL, pool=Careless, requester=Thief)
    run.offline()
    with pytest.raises(CheatingError):
        run.online()  # the pool notices now, and its first layer is gone
    thief = run.requester
    assert isinstance(thief, Thief)
    assert thief.stolen == {(row, j): int(MODEL.weights[0][j, row]) for row in range(2) for j in range(DIMS[0])}


def test_a_malformed_test_set_ends_before_the_model_leaves() -> None:
    """Defence: EvaluationPool._accept. She cannot have known g, so E is never sent."""
    run = make_evaluation(malformed_world(), MODEL, requester=Thief)
    with pytest.raises(CheatingError, match="no model was sent"):
        run.offline()
    assert not run.pool.is_prepared
    assert not hasattr(run.requester, "stolen")


class Incurious(Thief):
    """Asks about the extra rows alone: then she knows g, because h is H' itself, and learns nothing about H."""

    has_e = False

    def _decrypt(self, message: MaskedRows) -> Sequence[Message]:
        reply, _ = super()._decrypt(message)
        self._gamma = np.zeros((2, DIMS[1]), dtype=np.int64)
        return (reply, KnowledgeChallenge(pack_values(self._gamma)))

    def _foresee(self, message: Message) -> Sequence[Message]:
        super()._foresee(message)
        g = np.zeros((2, ROWS), dtype=np.int64)
        for row in range(2):
            for i in range(ROWS):
                feature, shift = planted(i)
                g[row, i] = -rounded(self._phases[DIMS[1] + row][i] - centred(int(self._h[row, feature])) * shift) % T
        self._foreseen = pack_values(g)
        return (KnowledgeCommitment(foreseen_commitment(self.transcript.head, self._salt, self._foreseen)),)

    def _check_knowledge(self, message: KnowledgeShares) -> Sequence[Message]:
        return EvaluationRequester._check_knowledge(self, message)

    def _answer(self, message: MaskedModel) -> Sequence[Message]:
        self.has_e = True
        return EvaluationRequester._answer(self, message)


def test_a_requester_who_asks_nothing_is_found_out_after_the_model_left() -> None:
    """What the knowledge check does not promise (docs/threat-model.md): E leaves, H stays unknown to her, the bounds tell."""
    run = make_evaluation(malformed_world(), MODEL, requester=Incurious)
    run.offline()
    assert run.pool.is_prepared
    with pytest.raises(CheatingError, match="beyond every model's bound"):
        run.online()
    assert isinstance(run.requester, Incurious)
    assert run.requester.has_e


def test_an_honest_requester_of_a_malformed_test_set_refuses() -> None:
    """Her own words about it are those for a pool that does not know: she cannot tell the two apart."""
    run = make_evaluation(malformed_world(), MODEL)
    with pytest.raises(CheatingError, match="knowledge check failed"):
        run.offline()


@pytest.mark.parametrize("what", ["salt", "commitment"])
def test_another_opening_is_refused(what: str) -> None:
    class Liar(EvaluationRequester):
        def _foresee(self, message: Message) -> Sequence[Message]:
            (commitment,) = super()._foresee(message)  # type: ignore[arg-type]
            return (replace(commitment, commitment=bytes(32)) if what == "commitment" else commitment,)  # type: ignore[call-arg]

        def _check_knowledge(self, message: KnowledgeShares) -> Sequence[Message]:
            (accepted,) = super()._check_knowledge(message)
            return (BatchAccepted(bytes(32)),) if what == "salt" else (accepted,)

    run = make_evaluation(make_world(DIMS, 20, Activation.SIGMOID, 2), MODEL, requester=Liar)
    with pytest.raises(CheatingError, match="no model was sent"):
        run.offline()
