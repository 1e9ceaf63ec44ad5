"""The manager's own round loop: rounds until the deadline, a round never longer than its timeout.

``Strategy.start`` of Flower has no deadline and ``sample_nodes`` waits for ever. A round here ends when everyone
answered, or when a quorum and most of them did and the rest take much longer than those, or at its timeout. A miner
that owes an answer gets no new instruction; one that dies is dropped when Flower notices.

The loop knows no Flower and no wall clock: it drives a Fleet, so tests run it in memory.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from core.codec import decode, encode
from core.errors import PoflError, UnavailableError
from pool.flower.checks import WEIGHT_FACTOR, Accepted, cap_weights, check_update, refuse_outliers
from pool.flower.wire import Answer, Instruction, Outcome, Update, vector_to_bytes
from pool.learning.model_spec import Floats, ModelSpec, Score, Weights, add, flatten, unflatten

__all__ = ["Fleet", "LoopState", "OpenRound", "Reply", "RoundLog", "RoundLoop", "Rules", "StopWhen", "is_harm"]

HOLD_S = 0.25
TTL_MARGIN_S = 10.0
TRANSFER_SHARE = 0.15
"""Part of a round kept back from the miners' training budget, for sending."""
JUDGING_SHARE = 0.25
"""How much longer than its timeout a round may take, to find out whose updates ruin the model."""
MOST_BLAMED_APART = 32
"""Up to so many updates, each is judged by what the step is without it: as many aggregations as updates, for each refused."""
SHORTENED = tuple(0.5**power for power in range(1, 6))
"""Parts of a step that are tried where no whole one is fit: a half to a thirty-second."""
MOST_SHORTENED = 8
"""Of so many sets of updates shortened steps are tried."""
BLAME_SHARE = 0.6
"""Part of the time for judging in which the guilty are looked for; the rest is for shortened steps."""
MIN_ROUND_S = 0.05
MAX_EXAMPLES = 1 << 31


@dataclass(frozen=True, slots=True)
class Reply:
    instruction_id: str
    blob: bytes
    error: str


class Fleet(Protocol):
    """The miners, as the loop sees them. Every call returns soon; UnavailableError means try again."""

    def online(self) -> set[bytes]: ...

    def instruct(self, blob: bytes, miners: list[bytes], round_number: int, ttl_s: float) -> dict[str, bytes]: ...

    def collect(self, instruction_ids: set[str], hold_s: float) -> list[Reply]: ...

    def open(self, answer: Answer, instruction_id: str, miner: bytes, round_number: int) -> Update: ...


@dataclass(frozen=True, slots=True)
class Rules:
    """How a round is run. ``straggler_factor``: after the quorum, wait until this many medians of its answer times.
    ``weight_factor``: no miner counts for more than this many times the median of the others' examples. ``practice_floor``: a
    step after which less than this part of the best practice score is left is not taken (0: every step is); the updates
    without which the rest scores best are left out until it is fit.
    """

    template: Instruction
    round_timeout_s: float
    quorum: int
    straggler_factor: float = 3.0
    straggler_floor_s: float = 0.5
    weight_factor: int = WEIGHT_FACTOR
    practice_floor: float = 0.0


@dataclass(frozen=True, slots=True)
class StopWhen:
    """Reasons to stop before the deadline; None is never."""

    correct: int | None = None
    patience: int | None = None
    rounds: int | None = None


@dataclass(frozen=True, slots=True)
class RoundLog:
    """One round, for the progress stream. ``accepted``: miner -> examples counted for it, after the weight cap.

    ``refused``: miner -> reason. ``claimed``: miner -> examples by its own update, for the accepted ones. ``silent``: who was
    asked and sent no usable update in time. ``heard``: who sent one, whatever the round made of it. Who was not asked is
    neither.
    """

    number: int
    seconds: float
    participants: int
    accepted: Mapping[bytes, int]
    refused: Mapping[bytes, str]
    score: Score
    train_loss: float
    bytes_up: int
    bytes_down: int
    claimed: Mapping[bytes, int] = field(default_factory=dict)
    silent: frozenset[bytes] = frozenset()
    heard: frozenset[bytes] = frozenset()


@dataclass(slots=True)
class LoopState:
    """What a manager needs to go on after a restart."""

    round: int
    weights: Weights
    best: Weights
    best_score: Score | None = None
    since_best: int = 0
    accepted_rounds: int = 0
    registered: dict[bytes, int] = field(default_factory=dict)


@dataclass(slots=True)
class OpenRound:
    """A round that goes on. ``asked``: instruction -> miner, for those who have not answered."""

    number: int
    started: float
    ends: float
    asked: dict[str, bytes]
    participants: int
    bytes_down: int
    answered_after: list[float] = field(default_factory=list)
    accepted: list[Accepted] = field(default_factory=list)
    refused: dict[bytes, str] = field(default_factory=dict)
    silent: set[bytes] = field(default_factory=set)
    heard: set[bytes] = field(default_factory=set)
    bytes_up: int = 0


class RoundLoop:
    """``now``: monotonic seconds. ``deadline``: on the same clock. ``pause``: sleep, for an unreachable fleet. ``fallback``: a
    robust aggregation, asked where the other one's step does not bring the model forward on the practice set.
    """

    def __init__(
        self,
        spec: ModelSpec,
        rules: Rules,
        fleet: Fleet,
        state: LoopState,
        *,
        members: Callable[[], set[bytes]],
        evaluate: Callable[[Weights], Score],
        aggregate: Callable[[int, list[Accepted]], NDArray[np.float64]],
        now: Callable[[], float],
        pause: Callable[[float], None],
        deadline: float,
        fallback: Callable[[int, list[Accepted]], NDArray[np.float64]] | None = None,
    ) -> None:
        self.spec, self.rules, self.fleet, self.state = spec, rules, fleet, state
        self._members, self._evaluate, self._aggregate = members, evaluate, aggregate
        self._now, self._pause, self._deadline = now, pause, deadline
        self._fallback = fallback
        self._owed: dict[str, tuple[bytes, int]] = {}
        self._present: Score | None = None
        """Of the weights as they are."""

    def run(self, stop: StopWhen, on_round: Callable[[RoundLog], None]) -> None:
        """Rounds until the deadline or a reason to stop. A round without a quorum of accepted updates is repeated."""
        if self.state.accepted_rounds and self._enough(stop):
            # Started again after its last round.
            return
        while self._deadline - self._now() > MIN_ROUND_S:
            log = self._attempt()
            if log is None:
                self._pause(min(0.2, max(0.0, self._deadline - self._now())))
                continue
            on_round(log)
            if self._enough(stop):
                return

    def _enough(self, stop: StopWhen) -> bool:
        best = self.state.best_score
        return (
            (stop.correct is not None and best is not None and best.correct >= stop.correct)
            or (stop.patience is not None and self.state.since_best >= stop.patience)
            or (stop.rounds is not None and self.state.accepted_rounds >= stop.rounds)
        )

    def _attempt(self) -> RoundLog | None:
        """One round; None when nobody could be asked."""
        try:
            self._settle_debts(0.0)
            busy = {miner for miner, _ in self._owed.values()}
            free = sorted((self.fleet.online() & self._members()) - busy)
            if len(free) < self.rules.quorum:
                if self._owed:
                    self._settle_debts(HOLD_S)
                return None
            current = self._begin(free)
        except UnavailableError:
            return None
        while self._is_open(current):
            try:
                self._gather(current)
            except UnavailableError:
                self._pause(0.1)
        for instruction_id, miner in current.asked.items():
            self._owed[instruction_id] = (miner, current.number)
            current.refused.setdefault(miner, "no answer in time")
            current.silent.add(miner)
        return self._finish(current)

    def _begin(self, free: list[bytes]) -> OpenRound:
        started = self._now()
        ends = min(self._deadline, started + self.rules.round_timeout_s)
        number = self.state.round + 1
        blob = encode(
            replace(
                self.rules.template,
                round=number,
                seed=(self.rules.template.seed + number) % (1 << 63),
                budget_s=(ends - started) * (1 - TRANSFER_SHARE),
                vector=vector_to_bytes(flatten(self.state.weights)),
            )
        )
        asked = self.fleet.instruct(blob, free, number, ends - started + TTL_MARGIN_S)
        if not asked:
            raise UnavailableError("no instruction was taken")
        self.state.round = number
        return OpenRound(number, started, ends, dict(asked), len(asked), len(blob) * len(asked))

    def _is_open(self, current: OpenRound) -> bool:
        if not current.asked or self._now() >= current.ends:
            return False
        # More than half of them: with half, whoever sends nothing at once has the pay of all who train.
        if len(current.accepted) < max(self.rules.quorum, current.participants // 2 + 1):
            return True
        patience = self.rules.straggler_factor * statistics.median(current.answered_after)
        return self._now() - current.started < max(self.rules.straggler_floor_s, patience)

    def _gather(self, current: OpenRound) -> None:
        left = max(0.0, current.ends - self._now())
        for reply in self.fleet.collect(set(current.asked) | set(self._owed), min(HOLD_S, left)):
            if reply.instruction_id in self._owed:
                # An answer to a round that is over: only the debt is settled.
                del self._owed[reply.instruction_id]
                continue
            miner = current.asked.pop(reply.instruction_id, None)
            if miner is None:
                continue
            current.bytes_up += len(reply.blob)
            try:
                update = self._opened(reply, miner, current.number)
                current.accepted.append(self._accept(update, miner))
                current.answered_after.append(self._now() - current.started)
                current.heard.add(miner)
            except PoflError as error:
                # What no round can use brings none about: it is no better than silence.
                current.refused[miner] = error.message
                current.silent.add(miner)

    def _opened(self, reply: Reply, miner: bytes, number: int) -> Update:
        if reply.error:
            raise UnavailableError(reply.error)
        answer = decode(Answer, reply.blob)
        if answer.outcome is not Outcome.TRAINED:
            raise UnavailableError(f"{answer.outcome.name.lower()}: {answer.reason}")
        return self.fleet.open(answer, reply.instruction_id, miner, number)

    def _accept(self, update: Update, miner: bytes) -> Accepted:
        registered = self.state.registered.get(miner, MAX_EXAMPLES)
        accepted = check_update(miner, update, self.spec.parameters, registered)
        # A miner whose count nobody registered is held to the count of its first answer.
        self.state.registered.setdefault(miner, accepted.examples)
        return accepted

    def _settle_debts(self, hold_s: float) -> None:
        if self._owed:
            for reply in self.fleet.collect(set(self._owed), hold_s):
                self._owed.pop(reply.instruction_id, None)

    def _finish(self, current: OpenRound) -> RoundLog:
        kept, outliers = refuse_outliers(current.accepted)
        current.refused |= {miner: error.message for miner, error in outliers.items()}
        if len(kept) < self.rules.quorum:
            current.refused |= {u.miner: f"the round had {len(kept)} of {self.rules.quorum} updates" for u in kept}
            return self._conclude(current, None, {}, {}, float("nan"))
        kept = cap_weights(kept, self.rules.weight_factor)
        kept, delta = self._without_harm(current, kept)
        if delta is None:
            return self._conclude(current, None, {}, {}, float("nan"))
        loss = sum(u.loss * u.weight for u in kept) / sum(u.weight for u in kept)
        return self._conclude(current, delta, {u.miner: u.weight for u in kept}, {u.miner: u.examples for u in kept}, loss)

    def _without_harm(self, current: OpenRound, kept: list[Accepted]) -> tuple[list[Accepted], NDArray[np.float64] | None]:
        """The updates of a step that does not ruin the model on the practice set, and the step; None if there is none.

        The others are refused. An update is blamed only for a step that does harm, and the worst first: the one without which
        the step is best. What an update scores alone says less: miners whose rows are of few classes score badly, and the mean
        with theirs is good; a good model with its hidden units in another order scores well, and ruins every mean.
        Where nobody is left to blame, shortened steps are tried (docs/adr/0143).
        """
        if not self.rules.practice_floor:
            return kept, self._aggregate(current.number, kept)
        before = self.state.best_score or self._score_now()
        until = self._judged_until(current)
        blaming = self._now() + BLAME_SHARE * (until - self._now())
        blamed: dict[bytes, str] = {}
        sets: list[list[Accepted]] = []
        while len(kept) >= max(1, self.rules.quorum) and (not sets or self._now() < blaming):
            delta = self._aggregate(current.number, kept)
            after = self._score_after(delta)
            if not is_harm(before, after, self.rules.practice_floor):
                current.refused |= blamed
                return kept, self._better_of(current.number, kept, delta, after, until)
            sets.append(kept)
            worst, why = self._worst(current.number, kept, blaming)
            kept = cap_weights([u for u in kept if u is not worst], self.rules.weight_factor)
            blamed[worst.miner] = (
                f"harm: the round's step left {after.correct} of {after.total} practice rows right, {before.correct} were; "
                f"{why}"
            )
        found, shorter = self._shortened(current.number, sets, until)
        if shorter is None:
            current.refused |= {u.miner: "no step of this round was fit to be taken" for u in kept} | blamed
        else:
            counted = {u.miner for u in found}
            current.refused |= {miner: why for miner, why in blamed.items() if miner not in counted}
        return found, shorter

    def _judged_until(self, current: OpenRound) -> float:
        """A round that waited for its timeout has some time left, and no round goes on for ever."""
        return min(self._deadline, max(current.ends, self._now() + JUDGING_SHARE * self.rules.round_timeout_s))

    def _shortened(
        self, number: int, sets: list[list[Accepted]], until: float
    ) -> tuple[list[Accepted], NDArray[np.float64] | None]:
        """A part of the step of one of these sets, and the set: the best that brings the model forward; None if none does.

        A whole step may do harm although its direction is right: gradients are for short steps. Without this a model from which
        every whole step does harm would stay as it is for ever, for the next round begins at the same weights.
        """
        best, found = self._score_now(), list[Accepted]()
        step: NDArray[np.float64] | None = None
        for kept in _spread(sets, MOST_SHORTENED):
            if self._now() >= until:
                break
            robust = self._fallback if len(kept) >= 3 else None
            score, part = self._best_part((robust or self._aggregate)(number, kept), best, until)
            if part is not None:
                best, found, step = score, kept, part
        return found, step

    def _best_part(self, whole: NDArray[np.float64], best: Score, until: float) -> tuple[Score, NDArray[np.float64] | None]:
        """The part of a step that scores best, if it scores better than ``best``."""
        step = None
        for part in SHORTENED:
            if self._now() >= until:
                break
            if _is_better(score := self._score_after(part * whole), best):
                best, step = score, part * whole
        return best, step

    def _worst(self, number: int, kept: list[Accepted], until: float) -> tuple[Accepted, str]:
        """Whose update to leave out, and its score. After ``until`` the choice is among those judged by then."""
        rest_counts = max(self.rules.quorum, 1) < len(kept) <= MOST_BLAMED_APART
        judged: list[tuple[tuple[int, float], Accepted, Score]] = []
        for update in kept:
            if judged and self._now() >= until:
                break
            if rest_counts:
                others = cap_weights([u for u in kept if u is not update], self.rules.weight_factor)
                score = self._score_after(self._aggregate(number, others))
                judged.append(((-score.correct, _or_infinite(score.loss)), update, score))
            else:
                score = self._score_after(update.vector)
                judged.append(((score.correct, -_or_infinite(score.loss)), update, score))
        _, worst, score = min(judged, key=lambda entry: entry[0])
        return worst, f"{'without this update it' if rest_counts else 'this update alone'} leaves {score.correct}"

    def _better_of(
        self, number: int, kept: list[Accepted], delta: NDArray[np.float64], after: Score, until: float
    ) -> NDArray[np.float64]:
        """The step; where it does not bring the model forward, the fallback's or a part of that, if it does more."""
        if self._fallback is None or len(kept) < 3 or _is_better(after, self._score_now()):
            return delta
        other = self._fallback(number, kept)
        if _is_better(score := self._score_after(other), after):
            delta, after = other, score
        if not _is_better(after, self._score_now()):
            _, shorter = self._shortened(number, [kept], until)
            delta = delta if shorter is None else shorter
        return delta

    def _score_now(self) -> Score:
        if self._present is None:
            self._present = self._evaluate(self.state.weights)
        return self._present

    def _score_after(self, delta: Floats) -> Score:
        # A step may be too long for the forward pass: what overflows scores nothing, and that is all that counts.
        with np.errstate(over="ignore", invalid="ignore"):
            return self._evaluate(add(self.state.weights, unflatten(self.spec, delta)))

    def _conclude(
        self,
        current: OpenRound,
        delta: NDArray[np.float64] | None,
        accepted: Mapping[bytes, int],
        claimed: Mapping[bytes, int],
        loss: float,
    ) -> RoundLog:
        """The model after the round, its score, and the round's log. ``delta``: None for a round that does not count."""
        state = self.state
        if delta is not None:
            state.weights = add(state.weights, unflatten(self.spec, delta))
            state.accepted_rounds += 1
        score = self._present = self._evaluate(state.weights)
        if delta is not None:
            better = state.best_score is None or _is_better(score, state.best_score)
            if better:
                state.best, state.best_score = state.weights, score
            state.since_best = 0 if better else state.since_best + 1
        return RoundLog(
            current.number, self._now() - current.started, current.participants, accepted, current.refused, score, loss,
            current.bytes_up, current.bytes_down, claimed, frozenset(current.silent),
            frozenset(current.heard - current.silent),
        )  # fmt: skip


def _spread(sets: list[list[Accepted]], most: int) -> list[list[Accepted]]:
    """At most so many of them, evenly, with the first and the last."""
    if len(sets) <= most:
        return sets
    return [sets[round(index * (len(sets) - 1) / (most - 1))] for index in range(most)]


def is_harm(before: Score, after: Score, floor: float) -> bool:
    """Whether a step ruins the model: it loses rows beyond the floor while the loss grows, or wins none and doubles the loss.

    Rows alone say little at first, when nearly all are wrong: a good step may lose some and lower the loss.
    """
    if not np.isfinite(after.loss):
        return True
    is_lost = after.correct < floor * before.correct and after.loss > before.loss
    return is_lost or (after.correct <= before.correct and after.loss > 2 * before.loss)


def _or_infinite(loss: float) -> float:
    return loss if np.isfinite(loss) else float("inf")


def _is_better(score: Score, best: Score) -> bool:
    return (score.correct, -score.loss) > (best.correct, -best.loss)
