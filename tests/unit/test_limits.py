"""Rates and counts per caller, on a clock that the test moves."""

from __future__ import annotations

import contextlib

import pytest

from core.errors import AuthError, ConfigError, LimitError
from services.rpc.auth import ANYONE, Caller, RoleRules
from services.rpc.limits import CallerLimits, Limiter


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def calls(limiter: Limiter, caller: str, most: int = 100) -> int:
    """How many calls in a row are let in."""
    for count in range(most):
        try:
            with limiter.enter(caller):
                pass
        except LimitError:
            return count
    return most


def test_a_burst_then_the_rate() -> None:
    time = Time()
    limiter = Limiter(CallerLimits(rate=2.0, burst=5, concurrent=9), monotonic=time)
    assert calls(limiter, "a") == 5
    time.now += 1.0
    assert calls(limiter, "a") == 2
    time.now += 1000.0
    assert calls(limiter, "a") == 5


def test_callers_do_not_share() -> None:
    limiter = Limiter(CallerLimits(rate=1.0, burst=3, concurrent=9), monotonic=Time())
    assert calls(limiter, "a") == 3
    assert calls(limiter, "b") == 3


def test_open_calls_are_counted_also_when_they_fail() -> None:
    limiter = Limiter(CallerLimits(rate=1000.0, burst=1000, concurrent=2), monotonic=Time())
    with contextlib.ExitStack() as stack:
        stack.enter_context(limiter.enter("a"))
        stack.enter_context(limiter.enter("a"))
        with pytest.raises(LimitError, match="a has 2 calls open, the limit is 2"), limiter.enter("a"):
            pass
    with pytest.raises(ZeroDivisionError), limiter.enter("a"):
        raise ZeroDivisionError
    assert calls(limiter, "a", 10) == 10


def test_memory_is_bounded_and_no_open_call_is_forgotten() -> None:
    limiter = Limiter(CallerLimits(rate=1.0, burst=1, concurrent=1), callers=10, monotonic=Time())
    with limiter.enter("open"):
        for number in range(1000):
            calls(limiter, str(number), 1)
        assert len(limiter._usage) == 10
        with pytest.raises(LimitError), limiter.enter("open"):
            pass


RULES = RoleRules({"pofl.a.v1.A": ["node", "pool"], "pofl.a.v1.A/Write": ["node"], "pofl.b.v1.B": [ANYONE]})


@pytest.mark.parametrize(
    ("method", "role", "allowed"),
    [
        ("/pofl.a.v1.A/Read", "pool", True),
        ("/pofl.a.v1.A/Read", "miner", False),
        ("/pofl.a.v1.A/Write", "node", True),
        ("/pofl.a.v1.A/Write", "pool", False),
        ("/pofl.b.v1.B/Anything", "miner", True),
        ("/pofl.c.v1.C/Anything", "node", False),
        ("/pofl.a.v1.A/Read", ANYONE, False),
    ],
)
def test_rules(method: str, role: str, allowed: bool) -> None:
    if allowed:
        RULES.check(method, Caller(role, "x"))
    else:
        with pytest.raises(AuthError, match=f"{role}/x may not call".replace("*", r"\*")):
            RULES.check(method, Caller(role, "x"))


def test_a_rule_of_letters_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="collection of roles"):
        RoleRules({"pofl.a.v1.A": "node"})
