"""Noise of every step that the protocol takes: measured <= calculated <= limit; and what the limits are good for."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import log2

import numpy as np
import pytest

from core.chain.transaction import Activation
from core.crypto.homomorphic import (
    PARAMS,
    Ints,
    SecretKey,
    compose,
    decrypt,
    encrypt_symmetric,
    expand_uniform,
    measure_noise,
    number_mask,
    scale_up,
)
from core.crypto.homomorphic.encryption import product_head
from core.crypto.homomorphic.params import ERROR_BOUND, MODULUS_BITS_AT_128, check_security
from core.crypto.homomorphic.seal import security_bits_allowed, security_bits_used
from core.crypto.zero_check import MARGIN_BITS, LinearForm
from core.errors import CryptoError, LimitError
from core.verification.audit_node import AuditNode, Valid
from core.verification.evaluation_pool import EvaluationPool
from core.verification.field import T
from core.verification.noise import StepNoise, check_noise, noise_of_steps
from core.verification.task import MAX_ROWS, MAX_SAMPLES, check_spec
from tests.models import random_model
from tests.seeded import SeededRng
from tests.verification import World, claim_of, make_audit, make_evaluation, make_world

LIMIT, MARGIN, Q = PARAMS.noise_limit, 1 << MARGIN_BITS, PARAMS.modulus
LARGEST = [(MAX_ROWS - 2, 2), (2, MAX_ROWS - 2), (256, 256, 256), (MAX_ROWS - 10, 800, 10), (1, 65535, 2)]


def steps(dims: tuple[int, ...], samples: int) -> dict[str, StepNoise]:
    parameters = sum((rows + 1) * columns for rows, columns in pairwise(dims))
    return {step.step: step for step in noise_of_steps(dims, parameters, samples)}


@pytest.mark.parametrize("dims", LARGEST)
def test_the_largest_tasks_stay_within_every_limit(dims: tuple[int, ...]) -> None:
    for step in steps(dims, MAX_SAMPLES).values():
        assert step.likely <= step.worst <= LIMIT, step
        assert step.likely <= step.limit <= LIMIT, step


def test_a_task_that_could_pass_a_limit_is_refused() -> None:
    with pytest.raises(LimitError, match="zero check: noise"):
        check_noise((1024, 2), 2050, 1 << 20)
    with pytest.raises(LimitError, match="rounded wrongly"):
        check_noise((510, 1 << 24, 2), 1, MAX_SAMPLES)


def test_publication_asks_for_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """``check_spec`` is what requester, pool and node call before anything is encrypted, bought or stored."""
    import core.verification.task as task

    world = make_world((3, 2), 4)
    check_spec(world.task.spec)
    monkeypatch.setattr(task, "MAX_SAMPLES", 1 << 40)
    with pytest.raises(LimitError, match="noise"):
        check_spec(replace(world.task.spec, samples=1 << 32))


def test_security_is_what_seal_allows() -> None:
    for degree, bits in MODULUS_BITS_AT_128.items():
        assert security_bits_allowed(replace(PARAMS, degree=degree)) == bits
    assert PARAMS.security_bits_used <= security_bits_used() == 200 <= MODULUS_BITS_AT_128[8192] == 218
    with pytest.raises(CryptoError, match="218 are secure"):
        check_security(replace(PARAMS, primes=(*PARAMS.primes, *PARAMS.primes[:1])))
    with pytest.raises(CryptoError):
        check_security(replace(PARAMS, degree=4096))


def test_the_errors_have_the_bound_and_spread_that_the_calculation_takes(sk: SecretKey) -> None:
    """Subgaussian with proxy 21/2: 42 fair coins of a half each. Every value of -21 to 21 is allowed, none beyond."""
    from core.crypto.homomorphic.sampling import Stream, binomial

    errors = np.concatenate([binomial(Stream(b"test", b"key", i, PARAMS), PARAMS.degree) for i in range(40)])
    assert np.abs(errors).max() <= ERROR_BOUND
    assert abs(float(errors.mean())) < 0.05
    assert 10.2 < float(errors.var()) < 10.8
    for scale in (0.1, 0.3, 0.6):
        assert float(np.exp(scale * errors).mean()) <= np.exp(scale**2 * 10.5 / 2) * 1.02


@pytest.fixture(scope="module")
def world() -> World:
    return make_world((40, 6, 5, 3), 900, Activation.SIGMOID, seed=12)


@pytest.fixture(scope="module")
def sk(world: World) -> SecretKey:
    return world.sk


def number_noise(sk: SecretKey, head: Ints, tail: Ints) -> int:
    """``|phase - round(q m / t)|`` of coefficient 0, m being what it decrypts to."""
    limbs = [(int(head[i]) + product_head(tail[i], sk.s)) % prime for i, prime in enumerate(PARAMS.primes)]
    phase = compose(limbs)
    nearest = (2 * T * phase + Q) // (2 * Q)
    rest = (phase - (2 * nearest * Q + T) // (2 * T)) % Q
    return min(rest, Q - rest)


def measured(world: World, form: LinearForm, seed: int) -> int:
    """Noise of a form with the encryption of zero that hides it."""
    mask = number_mask(world.pk, SeededRng(seed))
    head, tail = [], form.c1.copy()
    for limb, prime in enumerate(PARAMS.primes):
        head.append((int(form.c0_0[limb]) + int(mask.head[limb]) - int(mask.mask[limb])) % prime)
        tail[limb] = (tail[limb] + mask.tail[limb]) % np.uint64(prime)
    return number_noise(world.sk, np.array(head, dtype=np.int64), tail)


def test_fresh_rows_and_bodies(world: World) -> None:
    found = steps(world.task.family.dims, world.task.samples)
    c0, c1 = world.encrypted.features0[0][:4], world.encrypted.features1[0][:4]
    assert 10 < measure_noise(world.sk, c0, c1) <= found["a test row or a hint"].worst
    model = random_model(world.task.family.dims, Activation.SIGMOID, 1)
    from core.verification.body import make_body, read_body

    read = read_body(make_body(world.pk, model, SeededRng(1))[0], world.task.family)
    assert 100 < measure_noise(world.sk, read.c0, read.c1) <= found["a model body"].worst


def test_masked_rows(world: World) -> None:
    """What she decrypts in the offline part: exactly the pool's combination, with noise within the calculated bound."""
    bound = steps(world.task.family.dims, world.task.samples)["evaluation: masked rows"].worst
    matrix = np.random.default_rng(3).integers(0, T, (2, 40))
    matrix[1] = T // 2
    c0, c1 = world.encrypted.rows0[0].combine(matrix), world.encrypted.rows1[0].combine(matrix)
    noise = measure_noise(world.sk, c0, c1)
    assert 1 << 32 < noise <= bound
    rows = np.zeros((40, PARAMS.degree), dtype=np.int64)
    rows[:, : world.task.samples] = world.plain.features.T
    wanted = (matrix.astype(object) @ rows.astype(object) % T).astype(np.int64)
    assert np.array_equal(decrypt(world.sk, c0, c1), wanted)


def test_forms_of_evaluation_and_audit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The forms that the machines really make, in one honest life of a claim, one by one: measured <= likely <= 2^90."""
    import core.verification.audit_node as audit_node
    import core.verification.evaluation_pool as evaluation_pool
    from core.crypto.zero_check import ZeroCheckVerifier

    forms: list[LinearForm] = []

    class Watched(ZeroCheckVerifier):
        def _prepare(self, form: LinearForm, mask: object) -> None:
            forms.append(form)
            super()._prepare(form, mask)  # type: ignore[arg-type]

    for module in (audit_node, evaluation_pool):
        monkeypatch.setattr(module, "ZeroCheckVerifier", Watched)
    model = random_model(world.task.family.dims, Activation.SIGMOID, 5, shift=8)
    run = make_evaluation(world, model, pool=EvaluationPool)
    run.offline()
    result = run.online()
    found = steps(world.task.family.dims, world.task.samples)
    _expect(world, forms, found["evaluation: zero check"])
    forms.clear()
    claim = replace(claim_of(world, run.body, result.correct), vm=result.vm)
    assert isinstance(make_audit(world, claim, node=AuditNode).run(), Valid)
    _expect(world, forms, found["audit: zero check"])


def test_forms_of_the_stored_check(world: World) -> None:
    from core.verification.forms import stored_number

    samples = np.random.default_rng(4).integers(0, T, world.task.samples)
    form = stored_number(world.task, world.encrypted, samples).equals(0)
    _expect(world, [form], steps(world.task.family.dims, world.task.samples)["stored check"], slack=20)


def _expect(world: World, forms: list[LinearForm], step: StepNoise, slack: int = 12) -> None:
    """Within the bound, and the bound is not idle: no more than ``slack`` bits above what is measured."""
    assert forms
    noise = [measured(world, form, seed) for seed, form in enumerate(forms)]
    assert max(noise) <= step.likely <= step.worst <= LIMIT
    assert step.likely <= step.limit
    assert log2(step.likely) - log2(max(noise)) < slack, (step, noise)


def test_beyond_the_limit_decryption_is_wrong(sk: SecretKey) -> None:
    """The limit is where it is said to be: noise just below it is harmless, just above it is not."""
    plain = np.zeros((1, PARAMS.degree), dtype=np.int64)
    c1 = expand_uniform(PARAMS, b"limit", 1)
    c0 = encrypt_symmetric(sk, b"limit", plain, SeededRng(9))
    for offset, wanted in ((LIMIT - 2 * PARAMS.noise_fresh, 0), (LIMIT + 2 * PARAMS.noise_fresh, 1)):
        moved = c0.copy()
        for limb, prime in enumerate(PARAMS.primes):
            moved[0, limb, 7] = (int(moved[0, limb, 7]) + offset) % prime
        assert decrypt(sk, moved, c1)[0, 7] == wanted
    assert not scale_up(plain[0]).any()
