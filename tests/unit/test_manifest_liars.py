"""Liars replace methods of the product's programs: each takes what the method takes, or it would break instead of lying."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import pytest

from bench import leaking_miner, lying_pool, lying_requester
from core.verification.audit_requester import AnswerBook, AuditRequester
from pool.manager.season import Season
from pool.miner.rows import TrainingRows


@pytest.mark.parametrize(
    ("replaced", "by"),
    [
        (TrainingRows.add, leaking_miner._add_and_keep),
        (Season._evaluate, lying_pool._evaluate_and_lie),
        (AuditRequester._reply, lying_requester._malformed_to_others),
        (AnswerBook._answer, lying_requester._one_value_off),
    ],
)
def test_a_liar_takes_what_the_method_takes_that_it_replaces(
    replaced: Callable[..., object], by: Callable[..., object]
) -> None:
    def takes(function: Callable[..., object]) -> list[tuple[str, object]]:
        return [(p.name, p.annotation) for p in inspect.signature(function).parameters.values()][1:]

    assert takes(by) == takes(replaced)
    assert inspect.iscoroutinefunction(by) == inspect.iscoroutinefunction(replaced)
