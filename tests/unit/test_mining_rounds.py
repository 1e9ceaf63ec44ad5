"""The round loop in memory, with a clock that only moves when someone waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from core.codec import decode, encode
from core.errors import AuthError, PoflError, UnavailableError
from pool.flower.checks import Accepted
from pool.flower.grid import _refusal
from pool.flower.rounds import MOST_SHORTENED, SHORTENED, LoopState, Reply, RoundLog, RoundLoop, Rules, StopWhen, is_harm
from pool.flower.wire import Answer, Instruction, Outcome, Update, vector_to_bytes
from pool.learning.model_spec import ModelSpec, Score, Weights, flatten, initial_weights

SPEC = ModelSpec(2, 2)
TEMPLATE = Instruction(bytes(32), 0, 2, 2, (), "relu", "sgd", 1, 0.1, 8, 5, 0.0, b"")


def key(number: int) -> bytes:
    return bytes([number]) * 33


@dataclass
class Behaviour:
    """Seconds until the answer (None: never) and the update's value, examples or refusal."""

    after: float | None = 0.1
    value: float = 1.0
    examples: int = 10
    garbage: bool = False
    error: str = ""


@dataclass
class MemoryFleet:
    behaviours: dict[bytes, Behaviour]
    now: float = 0.0
    sent: list[tuple[float, bytes, int, Instruction]] = field(default_factory=list)
    pending: dict[str, tuple[float, Reply]] = field(default_factory=dict)
    down: Callable[[float], bool] = lambda _: False
    calls: int = 0

    def _check(self) -> None:
        self.calls += 1
        assert self.calls < 20_000, "the loop spins"
        if self.down(self.now):
            raise UnavailableError("the guard is down")

    def online(self) -> set[bytes]:
        self._check()
        return set(self.behaviours)

    def instruct(self, blob: bytes, miners: list[bytes], round_number: int, ttl_s: float) -> dict[str, bytes]:
        self._check()
        assert ttl_s > 0
        asked = {}
        for miner in miners:
            behaviour, instruction_id = self.behaviours[miner], f"{round_number}/{miner[0]}"
            self.sent.append((self.now, miner, round_number, decode(Instruction, blob)))
            asked[instruction_id] = miner
            update = Update(behaviour.examples, 0.5, 1, 1, 1, vector_to_bytes(np.full(6, behaviour.value)))
            answer = b"garbage" if behaviour.garbage else encode(Answer(Outcome.TRAINED, "", encode(update), b""))
            if behaviour.after is not None:
                reply = Reply(instruction_id, b"" if behaviour.error else answer, behaviour.error)
                self.pending[instruction_id] = (self.now + behaviour.after, reply)
        return asked

    def collect(self, instruction_ids: set[str], hold_s: float) -> list[Reply]:
        self._check()
        until = self.now + max(hold_s, 0.001)
        wanted = {i: self.pending[i] for i in instruction_ids if i in self.pending}
        due = min((at for at, _ in wanted.values()), default=until)
        self.now = max(self.now + 0.001, min(until, due))
        ready = [i for i, (at, _) in wanted.items() if at <= self.now]
        return [self.pending.pop(i)[1] for i in ready]

    def open(self, answer: Answer, instruction_id: str, miner: bytes, round_number: int) -> Update:
        assert instruction_id == f"{round_number}/{miner[0]}"
        return decode(Update, answer.sealed)

    def pause(self, seconds: float) -> None:
        self.now += max(seconds, 0.001)


def total(weights: Weights) -> int:
    return round(float(flatten(weights)[0]) * 10)


def run(
    fleet: MemoryFleet, *, deadline: float = 10.0, stop: StopWhen | None = None, quorum: int = 1, timeout: float = 2.0,
    scores: Callable[[Weights], Score] = lambda w: Score(total(w), 1000, 1.0), registered: dict[bytes, int] | None = None,
    floor: float = 0.0, fallback: Callable[[int, list[Accepted]], NDArray[np.float64]] | None = None,
) -> tuple[list[RoundLog], LoopState]:  # fmt: skip
    first = initial_weights(SPEC, 0)
    state = LoopState(0, first, first, registered=registered or {})
    logs: list[RoundLog] = []
    loop = RoundLoop(
        SPEC, Rules(TEMPLATE, timeout, quorum, practice_floor=floor), fleet, state, members=lambda: set(fleet.behaviours),
        evaluate=scores,
        aggregate=lambda _, updates: np.average([u.vector for u in updates], axis=0, weights=[u.weight for u in updates]),
        now=lambda: fleet.now, pause=fleet.pause, deadline=deadline, fallback=fallback,
    )  # fmt: skip
    loop.run(stop or StopWhen(), logs.append)
    return logs, state


def honest(count: int) -> dict[bytes, Behaviour]:
    return {key(i): Behaviour() for i in range(1, count + 1)}


def test_rounds_follow_one_another_and_add_up() -> None:
    logs, state = run(MemoryFleet(honest(3)), stop=StopWhen(rounds=4))
    assert [log.number for log in logs] == [1, 2, 3, 4]
    assert all(log.accepted == dict.fromkeys(map(key, (1, 2, 3)), 10) for log in logs)
    np.testing.assert_allclose(flatten(state.weights), 4.0)


def test_nothing_happens_after_the_deadline() -> None:
    fleet = MemoryFleet(honest(2))
    logs, _ = run(fleet, deadline=1.0)
    assert 5 < len(logs) < 12
    assert fleet.now <= 1.0 + 0.3
    assert all(order.budget_s <= 1.0 - at for at, _, _, order in fleet.sent)


def test_a_round_ends_at_its_timeout_without_a_quorum() -> None:
    fleet = MemoryFleet({key(1): Behaviour(), key(2): Behaviour(after=None)})
    logs, state = run(fleet, deadline=3.0, quorum=2)
    assert logs[0].seconds == pytest.approx(2.0, abs=0.3)
    assert not logs[0].accepted
    assert "1 of 2" in logs[0].refused[key(1)]
    assert logs[0].refused[key(2)] == "no answer in time"
    np.testing.assert_array_equal(flatten(state.weights), 0.0)
    assert state.best_score is None


def test_a_straggler_is_not_waited_for_and_gets_no_second_instruction() -> None:
    fleet = MemoryFleet({**honest(3), key(9): Behaviour(after=1.5)})
    logs, _ = run(fleet, deadline=4.0, quorum=2)
    assert logs[0].seconds < 1.0
    times = [at for at, miner, _, _ in fleet.sent if miner == key(9)]
    assert all(later - earlier >= 1.5 for earlier, later in pairwise(times))
    assert len(times) >= 2, "a miner that paid its debt takes part again"


def test_one_fast_miner_does_not_end_the_round_of_the_others() -> None:
    """Else whoever answers at once, with next to nothing, has the round and its pay for itself."""
    fleet = MemoryFleet(honest(3))
    fleet.behaviours[key(1)].after = 0.01
    fleet.behaviours[key(2)].after = fleet.behaviours[key(3)].after = 1.0
    logs, _ = run(fleet, stop=StopWhen(rounds=2))
    assert [set(log.accepted) for log in logs] == [{key(1), key(2), key(3)}] * 2


@pytest.mark.parametrize("each", [1, 2, 4])
def test_a_fast_half_does_not_end_the_round_of_the_other_half(each: int) -> None:
    """Of two miners one that answers at once with nothing would else be alone in every round."""
    fleet = MemoryFleet(honest(2 * each))
    for number in range(1, each + 1):
        fleet.behaviours[key(number)] = Behaviour(after=0.01, value=0.0)
        fleet.behaviours[key(each + number)].after = 1.0
    logs, state = run(fleet, stop=StopWhen(rounds=3))
    assert all(set(log.accepted) == set(fleet.behaviours) for log in logs)
    np.testing.assert_allclose(flatten(state.weights), 1.5)


def test_who_sends_nothing_usable_is_silent_whatever_becomes_of_the_round() -> None:
    fleet = MemoryFleet(
        {
            **honest(2),
            key(5): Behaviour(value=float("nan")),
            key(6): Behaviour(garbage=True),
            key(7): Behaviour(error="gone"),
            key(8): Behaviour(examples=0),
            key(9): Behaviour(after=None),
        }
    )
    logs, _ = run(fleet, deadline=3.0, quorum=3)
    assert logs[0].accepted == {}, "no quorum"
    assert logs[0].silent == {key(5), key(6), key(7), key(8), key(9)}
    assert logs[1].silent == {key(5), key(6), key(7), key(8)}, "who owes an answer was not asked"
    assert [log.heard for log in logs[:2]] == [{key(1), key(2)}] * 2, "the quorum is not their fault"


def test_who_is_refused_in_comparison_with_others_was_heard() -> None:
    fleet = MemoryFleet({**honest(3), key(9): Behaviour(value=500.0)})
    logs, _ = run(fleet, stop=StopWhen(rounds=1))
    assert "median" in logs[0].refused[key(9)]
    fleet = MemoryFleet({**honest(3), key(9): Behaviour(value=-9.0)})
    harmed, _ = run(fleet, stop=StopWhen(rounds=1), scores=scored, floor=0.8)
    assert "harm" in harmed[0].refused[key(9)]
    for log in (logs[0], harmed[0]):
        assert (log.heard, log.silent) == (set(fleet.behaviours), set())


def test_a_dead_miner_stays_out_until_its_instruction_ends_in_an_error() -> None:
    fleet = MemoryFleet({**honest(2), key(9): Behaviour(after=None)})
    logs, _ = run(fleet, stop=StopWhen(rounds=5))
    assert [log.participants for log in logs] == [3, 2, 2, 2, 2]


def test_garbage_and_errors_cost_only_their_sender() -> None:
    fleet = MemoryFleet(
        {
            **honest(3),
            key(6): Behaviour(garbage=True),
            key(7): Behaviour(error="gone"),
            key(8): Behaviour(value=float("nan")),
            key(9): Behaviour(value=500.0),
        }
    )
    logs, state = run(fleet, stop=StopWhen(rounds=1))
    assert set(logs[0].accepted) == {key(1), key(2), key(3)}
    reasons = logs[0].refused
    assert reasons[key(7)] == "gone"
    assert "not finite" in reasons[key(8)]
    assert "median" in reasons[key(9)]
    assert key(6) in reasons
    np.testing.assert_allclose(flatten(state.weights), 1.0)


def test_claims_are_held_to_the_registered_or_first_count() -> None:
    fleet = MemoryFleet(honest(2))
    fleet.behaviours[key(1)].examples = 11
    logs, _ = run(fleet, stop=StopWhen(rounds=1), registered={key(1): 10})
    assert "registered 10" in logs[0].refused[key(1)]

    fleet = MemoryFleet(honest(2))
    grown: list[int] = []

    def growing(weights: Weights) -> Score:
        fleet.behaviours[key(1)].examples += 5
        grown.append(1)
        return Score(0, 1000, 1.0)

    logs, _ = run(fleet, stop=StopWhen(rounds=2), scores=growing)
    assert logs[0].accepted[key(1)] == 10
    assert "15 examples, registered 10" in logs[1].refused[key(1)]


def test_pay_follows_what_counted_not_what_was_said() -> None:
    """Rows declared when joining are nobody's proof: contributions have the same cap as the weights."""
    fleet = MemoryFleet(honest(4))
    fleet.behaviours[key(4)].examples = 1 << 30
    logs, _ = run(fleet, stop=StopWhen(rounds=2), registered={key(4): 1 << 30})
    assert logs[0].accepted == {key(1): 10, key(2): 10, key(3): 10, key(4): 40}
    assert logs[0].claimed == {key(1): 10, key(2): 10, key(3): 10, key(4): 1 << 30}


def test_in_a_group_of_two_a_liar_counts_for_four_times_the_other_at_most() -> None:
    fleet = MemoryFleet(honest(2))
    fleet.behaviours[key(2)].examples = 1 << 30
    logs, _ = run(fleet, stop=StopWhen(rounds=1), registered={key(2): 1 << 30})
    assert logs[0].accepted == {key(1): 10, key(2): 40}


def test_the_best_model_is_kept() -> None:
    hill = [3, 9, 4, 2]
    rounds = iter(hill)
    logs, state = run(MemoryFleet(honest(1)), stop=StopWhen(rounds=4), scores=lambda _: Score(next(rounds), 10, 1.0))
    assert [log.score.correct for log in logs] == hill
    assert state.best_score == Score(9, 10, 1.0)
    np.testing.assert_allclose(flatten(state.best), 2.0)
    np.testing.assert_allclose(flatten(state.weights), 4.0)


def scored(weights: Weights) -> Score:
    """Rows right by the first weight: more is better, below zero is ruin."""
    value = total(weights)
    return Score(max(0, 100 + value), 1000, 1.0 if value >= 0 else 5.0)


@pytest.mark.parametrize("hostile", [[9], [8, 9], [7, 8, 9]])
def test_the_updates_that_ruin_the_model_are_left_out_and_named(hostile: list[int]) -> None:
    """Also where the liars are the majority: the practice set is nobody's vote."""
    fleet = MemoryFleet(honest(2))
    fleet.behaviours |= {key(i): Behaviour(value=-9.0) for i in hostile}
    logs, state = run(fleet, stop=StopWhen(rounds=3), scores=scored, floor=0.8)
    for log in logs:
        assert set(log.accepted) == {key(1), key(2)}
        assert all("harm: the round's step left" in log.refused[key(i)] for i in hostile)
    np.testing.assert_allclose(flatten(state.weights), 3.0)
    assert run(MemoryFleet(fleet.behaviours), stop=StopWhen(rounds=1), scores=scored)[1].best_score == Score(
        max(0, 100 + round(10 * (2 - 9 * len(hostile)) / (2 + len(hostile)))), 1000, 5.0
    ), "without the floor the step is taken"


def test_an_update_that_is_bad_alone_and_good_with_the_others_is_kept() -> None:
    """Miners whose rows are of few classes."""
    fleet = MemoryFleet({**honest(3), key(9): Behaviour(value=-2.0)})
    logs, _ = run(fleet, stop=StopWhen(rounds=2), scores=scored, floor=0.8)
    assert [set(log.accepted) for log in logs] == [{key(1), key(2), key(3), key(9)}] * 2


def test_an_update_that_is_good_alone_and_ruins_the_mean_is_the_one_to_blame() -> None:
    """A good model with its hidden units in another order: it scores better alone than any honest step does."""

    def judge(weights: Weights) -> Score:
        value = total(weights)
        right = 190 if value == 90 else 0 if value > 20 else 100 + value
        return Score(right, 1000, 1.0 if right >= 100 else 5.0)

    fleet = MemoryFleet({**honest(3), key(9): Behaviour(value=9.0)})
    logs, _ = run(fleet, stop=StopWhen(rounds=1), scores=judge, floor=0.8)
    assert set(logs[-1].accepted) == {key(1), key(2), key(3)}
    assert "without this update it leaves" in logs[-1].refused[key(9)]


def test_finding_who_does_harm_takes_a_part_of_the_timeout_at_most() -> None:
    """Each judgement takes half a second here; a round has two."""
    fleet = MemoryFleet({key(i): Behaviour(value=-9.0) for i in range(1, 31)})

    def slow(weights: Weights) -> Score:
        fleet.now += 0.5
        return scored(weights)

    logs, _ = run(fleet, deadline=60.0, scores=slow, floor=0.8)
    assert logs
    assert all(log.seconds <= 2.0 * 1.25 + 4 * 0.5 for log in logs)
    assert all(log.accepted == {} for log in logs)


def test_a_round_of_nothing_but_harm_changes_nothing_and_pays_nobody() -> None:
    fleet = MemoryFleet({key(i): Behaviour(value=-9.0) for i in (1, 2, 3)})
    logs, state = run(fleet, deadline=1.0, scores=scored, floor=0.8, quorum=2)
    assert len(logs) > 3
    assert all(log.accepted == {} and len(log.refused) == 3 for log in logs)
    np.testing.assert_array_equal(flatten(state.weights), 0.0)


def hill(weights: Weights) -> Score:
    """A gradient's landscape: best at a first weight of 0.5, ruined from 1 on and below 0."""
    value = total(weights) / 10
    right = round(1000 - 800 * abs(value - 0.5))
    return Score(right, 1000, 1.0 if 0 <= value < 1 else 9.0)


def robust(_: int, updates: list[Accepted]) -> NDArray[np.float64]:
    return np.asarray(np.median([u.vector for u in updates], axis=0), dtype=np.float64)


def test_a_step_that_is_only_too_long_is_shortened_and_nobody_is_blamed() -> None:
    """Else the next round begins at the same weights, takes the same gradients, and so for ever."""
    logs, state = run(MemoryFleet(honest(3)), stop=StopWhen(rounds=1), scores=hill, floor=0.8, deadline=20.0)
    np.testing.assert_allclose(flatten(state.weights), 0.5)
    assert logs[0].accepted == dict.fromkeys(map(key, (1, 2, 3)), 10)
    assert logs[0].refused == {}


def test_a_shortened_step_pays_those_whose_step_it_is() -> None:
    """One of four goes back nine times as far. Without it the step is right and too long: it is named, the others are not."""
    fleet = MemoryFleet({**honest(3), key(9): Behaviour(value=-9.0)})
    logs, state = run(fleet, stop=StopWhen(rounds=1), scores=hill, floor=0.8, deadline=20.0)
    np.testing.assert_allclose(flatten(state.weights), 0.5)
    assert set(logs[-1].accepted) == {key(1), key(2), key(3)}
    assert set(logs[-1].refused) == {key(9)}
    assert "harm" in logs[-1].refused[key(9)]


def test_the_part_of_a_large_group_is_of_its_median() -> None:
    """Heavy liars turn the mean around, whoever of them is left out; the median of all goes where most of them go."""
    fleet = MemoryFleet({**honest(4), **{key(i): Behaviour(value=-9.0, examples=40) for i in (8, 9)}})
    logs, state = run(fleet, stop=StopWhen(rounds=1), scores=hill, floor=0.8, deadline=20.0, quorum=6, fallback=robust)
    np.testing.assert_allclose(flatten(state.weights), 0.5)
    assert set(logs[-1].accepted) == set(fleet.behaviours), "the quorum lets nobody be left out"


@pytest.mark.parametrize("count", [1, 3, 12, 32])
def test_judging_a_round_takes_a_bounded_number_of_scores(count: int) -> None:
    fleet = MemoryFleet({key(i): Behaviour(value=-9.0) for i in range(1, count + 1)})
    asked: list[int] = []

    def counting(weights: Weights) -> Score:
        """Every step is harm but the shortest, which is tried last."""
        asked.append(1)
        return Score(101, 1000, 1.0) if total(weights) == round(-90 * SHORTENED[-1]) else scored(weights)

    logs, _ = run(fleet, deadline=20.0, stop=StopWhen(rounds=1), scores=counting, floor=0.8)
    assert len(logs) == 1
    assert logs[0].accepted
    blame = sum(left + 1 for left in range(1, count + 1))
    assert 2 + blame < len(asked) <= 2 + blame + MOST_SHORTENED * len(SHORTENED)


def test_shortened_steps_end_with_the_time_for_judging() -> None:
    """Each score takes a third of a second, a round has two seconds."""
    fleet = MemoryFleet(honest(20))

    def slow(weights: Weights) -> Score:
        fleet.now += 1 / 3
        return Score(0 if total(weights) else 100, 1000, 9.0 if total(weights) else 1.0)

    logs, _ = run(fleet, deadline=30.0, scores=slow, floor=0.8)
    assert logs
    assert all(log.seconds <= 2.0 * 1.25 + 4 / 3 for log in logs)


def test_where_no_whole_step_helps_a_part_of_the_medians_is_asked() -> None:
    """A heavy liar goes back by little, which is no harm, and the others' whole step is too long."""
    fleet = MemoryFleet({**honest(3), key(9): Behaviour(value=-0.76, examples=40)})

    def judge(weights: Weights) -> Score:
        value = float(flatten(weights)[0])
        return Score(round(1000 - 800 * abs(value - 0.5)), 1000, 1.0)

    _, state = run(fleet, stop=StopWhen(rounds=1), scores=judge, floor=0.3, deadline=20.0, fallback=robust)
    np.testing.assert_allclose(flatten(state.weights), 0.5)


def test_where_the_mean_does_not_bring_the_model_forward_the_fallback_is_asked() -> None:
    """A liar with the weight of four goes backwards by little: never harm, and nothing would ever be learnt."""
    fleet = MemoryFleet({**honest(3), key(9): Behaviour(value=-1.0, examples=40)})
    first = initial_weights(SPEC, 0)
    for fallback, learnt in ((None, False), (lambda _, u: np.median([x.vector for x in u], axis=0), True)):
        state = LoopState(0, first, first, registered={})
        loop = RoundLoop(
            SPEC, Rules(TEMPLATE, 2.0, 1, practice_floor=0.8), fleet, state, members=lambda: set(fleet.behaviours),
            evaluate=lambda w: Score(500 + total(w), 1000, 1.0 - 0.001 * total(w)),
            aggregate=lambda _, u: np.average([x.vector for x in u], axis=0, weights=[x.weight for x in u]),
            now=lambda: fleet.now, pause=fleet.pause, deadline=fleet.now + 100.0, fallback=fallback,
        )  # fmt: skip
        loop.run(StopWhen(rounds=4), lambda _: None)
        assert (total(state.weights) > 0) is learnt


def test_a_step_that_overflows_is_harm() -> None:
    assert is_harm(Score(10, 100, 2.0), Score(50, 100, float("nan")), 0.8)
    assert is_harm(Score(10, 100, 2.0), Score(10, 100, 4.1), 0.8)
    assert not is_harm(Score(10, 100, 2.0), Score(11, 100, 9.0), 0.8)
    assert is_harm(Score(100, 100, 2.0), Score(79, 100, 2.1), 0.8)
    assert not is_harm(Score(10, 100, 2.3), Score(5, 100, 2.2), 0.8), "an early step may lose rows and lower the loss"
    assert not is_harm(Score(100, 100, 2.0), Score(80, 100, 3.9), 0.8)


def test_reasons_to_stop() -> None:
    assert len(run(MemoryFleet(honest(1)), stop=StopWhen(correct=30))[0]) == 3
    flat = run(MemoryFleet(honest(1)), stop=StopWhen(patience=4), scores=lambda _: Score(1, 10, 1.0))[0]
    assert len(flat) == 5


def test_an_unreachable_guard_is_waited_for() -> None:
    fleet = MemoryFleet(honest(2), down=lambda now: 0.35 < now < 2.0)
    logs, _ = run(fleet, deadline=5.0)
    assert len(logs) > 10
    assert fleet.calls < 1000


def test_seeds_differ_by_round_and_weights_are_sent() -> None:
    fleet = MemoryFleet(honest(1))
    run(fleet, stop=StopWhen(rounds=3))
    orders = [order for *_, order in fleet.sent]
    assert [order.seed for order in orders] == [6, 7, 8]
    assert orders[1].vector == vector_to_bytes(np.ones(6))


def test_nobody_online_is_not_a_round() -> None:
    fleet = MemoryFleet({})
    logs, _ = run(fleet, deadline=3.0)
    assert logs == []
    assert fleet.calls < 100


def test_a_manager_started_again_after_its_last_round_does_no_other() -> None:
    fleet = MemoryFleet(honest(2))
    _, state = run(fleet, stop=StopWhen(rounds=2))
    loop = RoundLoop(
        SPEC, Rules(TEMPLATE, 2.0, 1), fleet, state, members=lambda: set(fleet.behaviours),
        evaluate=lambda _: pytest.fail("another round"), aggregate=lambda _, __: pytest.fail("another round"),
        now=lambda: fleet.now, pause=fleet.pause, deadline=100.0,
    )  # fmt: skip
    loop.run(StopWhen(rounds=2), pytest.fail)


@pytest.mark.parametrize(
    ("status", "kind"), [(401, AuthError), (403, AuthError), (503, UnavailableError), (500, UnavailableError)]
)
def test_a_guard_that_does_not_know_the_run_ends_its_manager(status: int, kind: type[PoflError]) -> None:
    """A guard that was killed knows no run of its former life. A manager that went on asking would lose the task's time."""
    request = httpx.Request("POST", "http://127.0.0.1:1/v1/runtime/get-nodes")
    error = httpx.HTTPStatusError("refused", request=request, response=httpx.Response(status, request=request))
    assert type(_refusal("the guard does not answer", error)) is kind
    assert type(_refusal("the guard does not answer", httpx.ConnectError("refused"))) is UnavailableError
