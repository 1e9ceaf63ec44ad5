"""For random small models and test sets, everyone finds the plaintext count."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.chain.transaction import Activation
from core.verification.audit_node import Valid
from tests.models import random_model
from tests.verification import claim_of, make_audit, make_evaluation, make_world


@settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    dims=st.lists(st.integers(1, 9), min_size=1, max_size=3).flatmap(lambda d: st.integers(2, 6).map(lambda c: (*d, c))),
    samples=st.integers(1, 40),
    activation=st.sampled_from(Activation),
    seed=st.integers(0, 1000),
)
def test_pool_requester_and_node_agree(dims: tuple[int, ...], samples: int, activation: Activation, seed: int) -> None:
    world = make_world(dims, samples, activation, seed)
    model = random_model(dims, activation, seed, shift=seed % 10)
    plain = model.count(world.plain.features, world.plain.labels)
    run = make_evaluation(world, model, seed)
    run.offline()
    result = run.online()
    assert result.correct == plain
    claim = replace(claim_of(world, run.body, result.correct), vm=result.vm)
    audit = make_audit(world, claim, seed)
    finding = audit.run()
    assert isinstance(finding, Valid)
    assert finding.correct == plain
    answer = audit.book.find(result.vm.model_commitment)
    assert answer is not None
    assert answer.signed.answer.correct == plain
