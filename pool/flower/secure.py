"""Rounds of secure aggregation: the manager's loop for a pool whose manager shall see sums only.

A round is one session of core.crypto.secure_sum over those miners who are free, in five steps. Each step has a deadline of its
own; who does not answer it is out of the round, and owes an answer like in any other round (rounds.py). The round counts when
the last step brings the sum, else it is repeated with whoever is there. In step 3 miners train, which has the most time.

What this loop cannot do is look at an update: no norm bound, no robust rule, no outlier. A sum that is out of range, or that
ruins the model on the practice set, is not taken, and then nobody knows whose fault it was (docs/adr/0099).
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from core.codec import decode, decode_as, encode_as
from core.crypto.masking import MAX_PARTICIPANTS
from core.crypto.sealing import Suite
from core.crypto.secure_collector import Collector
from core.crypto.secure_messages import LEAST, Advert, Consent, Dealt, Reveal, Sum
from core.errors import CheatingError, InternalError, LimitError, MalformedError, PoflError, UnavailableError
from core.market.contributions import counted
from pool.flower import keys
from pool.flower.checks import Accepted
from pool.flower.rounds import (
    HOLD_S,
    MAX_EXAMPLES,
    TRANSFER_SHARE,
    TTL_MARGIN_S,
    Fleet,
    LoopState,
    OpenRound,
    Reply,
    RoundLog,
    RoundLoop,
    Rules,
    is_harm,
)
from pool.flower.secure_wire import (
    ORDER,
    REPLY,
    Agree,
    Disclose,
    Invite,
    MaskedUpdate,
    Order,
    Roster,
    TrainMasked,
    session_of,
    weigh_by,
)
from pool.flower.wire import Answer, Outcome, Precision, vector_to_bytes
from pool.learning.model_spec import ModelSpec, Score, Weights, flatten

__all__ = ["SecureFleet", "SecureLoop"]

ENDS: Final = {"keys": 0.25, "shares": 0.4, "training": 0.65, "consent": 0.83, "reveal": 1.0}
"""When each step ends at the latest, as a part of the round. Where all answer, training has the time of the short ones."""
REPEAT_S: Final = 0.5
"""Pause after a round without a sum."""
SUSPENDED_ROUNDS: Final = 10
"""Rounds without a miner that broke the protocol; twice as many each time that it does it again."""
MOST_DOUBLINGS: Final = 10

T = TypeVar("T", Advert, Dealt, MaskedUpdate, Consent, Reveal)


class SecureFleet(Fleet, Protocol):
    """A Fleet that also opens answers of other kinds than updates."""

    @property
    def run_id(self) -> int: ...

    def open_bytes(self, answer: Answer, instruction_id: str, miner: bytes, round_number: int) -> bytes: ...


@dataclass(slots=True)
class _Step:
    """``enough``: answers after which stragglers are not waited for much longer; None: all are waited for until it ends."""

    name: str
    ends: float
    enough: int | None = None


@dataclass(slots=True)
class _LeftOut:
    """``until``: the last round without this miner. ``times``: how often it was left out."""

    until: int
    times: int
    reason: str


class SecureLoop(RoundLoop):
    """RoundLoop by secure aggregation. ``suite``: what miners seal shares to one another with, as updates to the pool."""

    fleet: SecureFleet

    def __init__(
        self,
        spec: ModelSpec,
        rules: Rules,
        fleet: SecureFleet,
        state: LoopState,
        suite: Suite,
        *,
        members: Callable[[], set[bytes]],
        evaluate: Callable[[Weights], Score],
        now: Callable[[], float],
        pause: Callable[[float], None],
        deadline: float,
    ) -> None:
        super().__init__(
            spec, rules, fleet, state, members=members, evaluate=evaluate, aggregate=_no_single_update, now=now, pause=pause,
            deadline=deadline,
        )  # fmt: skip
        self._suite = suite
        self._left_out: dict[bytes, _LeftOut] = {}

    def _attempt(self) -> RoundLog | None:
        try:
            self._settle_debts(0.0)
            free = self._free()
            if len(free) < max(self.rules.quorum, LEAST):
                if self._owed:
                    self._settle_debts(HOLD_S)
                return None
        except UnavailableError:
            return None
        started = self._now()
        self.state.round += 1
        current = OpenRound(
            self.state.round, started, min(self._deadline, started + self.rules.round_timeout_s), {}, len(free), 0
        )
        for miner in self._left_out_of(current.number) & self._members():
            current.refused[miner] = self._left_out[miner].reason
        collector = self._collector(current.number)
        try:
            total = self._sum(current, collector, free)
        except PoflError as error:
            at_fault = error.values.get("names")
            if isinstance(at_fault, tuple):
                self._after_lost_secrets(current.number, at_fault, collector.conflicts)
            for miner in free:
                current.refused.setdefault(miner, f"the round has no sum: {error.message}")
            # What failed at once would fail at once again, and again.
            self._pause(min(REPEAT_S, max(0.0, self._deadline - self._now())))
            return self._conclude(current, None, {}, {}, float("nan"))
        floor, delta = self.rules.practice_floor, total.mean[:-1]
        before = self.state.best_score or self._score_now()
        if floor and is_harm(before, after := self._score_after(delta), floor):
            _, shorter = self._best_part(delta, self._score_now(), self._judged_until(current))
            if shorter is None:
                for miner in free:
                    current.refused.setdefault(
                        miner,
                        f"harm: the sum's step left {after.correct} of {after.total} practice rows right, {before.correct} "
                        "were, and no part of it does better; nobody can say whose update did it",
                    )
                return self._conclude(current, None, {}, {}, float("nan"))
            delta = shorter
        examples = {advert.name: advert.examples for advert in collector.roster}
        claimed = {name: examples[name] for name in total.survivors}
        # Who sent its vector and was gone for the rest has its part in the sum.
        current.refused = {miner: reason for miner, reason in current.refused.items() if miner not in claimed}
        # Paid is by the rule of all rounds, over those whose updates are in the sum.
        accepted = dict(zip(claimed, counted(list(claimed.values()), self.rules.weight_factor), strict=True))
        return self._conclude(current, delta, accepted, claimed, float(total.mean[-1]))

    def _free(self) -> list[bytes]:
        """Who can be asked, at most as many as a sum may have; with more, each in its turn."""
        busy = {miner for miner, _ in self._owed.values()}
        number = self.state.round + 1
        free = sorted((self.fleet.online() & self._members()) - busy - self._left_out_of(number))
        if len(free) <= MAX_PARTICIPANTS:
            return free
        first = number * MAX_PARTICIPANTS % len(free)
        return sorted((free[first:] + free[:first])[:MAX_PARTICIPANTS])

    def _left_out_of(self, number: int) -> set[bytes]:
        return {miner for miner, left_out in self._left_out.items() if left_out.until >= number}

    def _leave_out(self, miner: bytes, number: int, reason: str) -> None:
        times = self._left_out[miner].times + 1 if miner in self._left_out else 1
        until = number + SUSPENDED_ROUNDS * 2 ** min(times - 1, MOST_DOUBLINGS)
        self._left_out[miner] = _LeftOut(until, times, f"left out of rounds {number + 1} to {until}: {reason}")

    def _after_lost_secrets(self, number: int, at_fault: tuple[bytes, ...], conflicts: frozenset[tuple[bytes, bytes]]) -> None:
        """Who is certainly at fault is named. Of two whose word is against each other's, one is: nobody is named, but the next
        rounds are without those who are against most others, until no two are left that are."""
        for miner in at_fault:
            self._leave_out(miner, number, f"it dealt wrong shares in round {number}")
        open_ones = {(a, b) for a, b in conflicts if not {a, b} & set(at_fault)}
        while open_ones:
            against = Counter(miner for pair in open_ones for miner in set(pair))
            most = max(against.values())
            # Of two with as many against them, either could be the one.
            for miner in [miner for miner, count in against.items() if count == most]:
                self._leave_out(miner, number, f"its word of shares is against {most} others', nobody can say who is right")
                open_ones = {pair for pair in open_ones if miner not in pair}

    def _collector(self, number: int) -> Collector:
        session = session_of(self.fleet.run_id, number, self.rules.template.job_id, self.rules.weight_factor)
        return Collector(session, self.spec.parameters + 1, self._suite, weigh_by(self.rules.weight_factor), keys.verify)

    def _sum(self, current: OpenRound, collector: Collector, free: Sequence[bytes]) -> Sum:
        """The five steps. Raises LimitError (too few are left) or CryptoError."""
        rules, number = self.rules, current.number
        invite: Order = Invite(rules.template.job_id, rules.weight_factor)
        for miner, advert in self._ask(current, self._step(current, "keys"), dict.fromkeys(free, invite), Advert):
            self._take(current, miner, partial(collector.take_advert, miner, advert, self._most(miner)))
        roster = collector.close_roster()
        for advert in roster:
            # Whose count nobody registered is held to its first.
            self.state.registered.setdefault(advert.name, advert.examples)
        names = [advert.name for advert in roster]

        def ask(step: _Step, orders: Mapping[int, Order], kind: type[T], take: Callable[[int, T], None]) -> None:
            for miner, reply in self._ask(current, step, {names[index]: order for index, order in orders.items()}, kind):
                self._take(current, miner, partial(take, names.index(miner), reply))

        everybody: dict[int, Order] = dict.fromkeys(range(len(roster)), Roster(roster))
        ask(self._step(current, "shares"), everybody, Dealt, collector.take_shares)

        inboxes = collector.inboxes()
        step = self._step(current, "training", max(rules.quorum, collector.needed))
        instruction = replace(
            rules.template,
            round=number,
            seed=(rules.template.seed + number) % (1 << 63),
            budget_s=max(0.0, step.ends - self._now()) * (1 - TRANSFER_SHARE),
            vector=vector_to_bytes(flatten(self.state.weights)),
            precision=Precision.FLOAT32,
        )
        training: dict[int, Order] = {index: TrainMasked(instruction, inbox) for index, inbox in inboxes.items()}
        ask(step, training, MaskedUpdate, lambda i, r: collector.take_masked(i, r.vector, r.held))

        survivors = collector.close_masked()
        if len(survivors) < rules.quorum:
            raise LimitError(f"the round had {len(survivors)} of {rules.quorum} updates")
        agree: dict[int, Order] = dict.fromkeys(survivors, Agree(bytes(survivors)))
        ask(self._step(current, "consent"), agree, Consent, collector.take_consent)

        consents = collector.consents()
        disclose: dict[int, Order] = dict.fromkeys((consent.index for consent in consents), Disclose(consents))

        def take_reveal(index: int, reveal: Reveal) -> None:
            try:
                collector.take_reveal(index, reveal)
            except CheatingError as error:
                self._leave_out(names[index], number, f"reveal of round {number}: {error.message}")
                raise

        ask(self._step(current, "reveal"), disclose, Reveal, take_reveal)
        return collector.total()

    def _most(self, miner: bytes) -> int:
        return self.state.registered.get(miner, MAX_EXAMPLES)

    def _step(self, current: OpenRound, name: str, enough: int | None = None) -> _Step:
        return _Step(name, current.started + ENDS[name] * (current.ends - current.started), enough)

    def _ask(self, current: OpenRound, step: _Step, orders: Mapping[bytes, Order], kind: type[T]) -> list[tuple[bytes, T]]:
        """Send orders and gather the replies to them, until all are there, or enough and the rest take much longer, or the step
        is over. Who did not answer owes an answer and is out of the round."""
        started, answered = self._now(), list[float]()
        asked = self._send(current, orders, step.ends - started)
        for miner in set(orders) - set(asked.values()):
            # Not its silence: nothing was asked of it.
            current.refused.setdefault(miner, f"not reached ({step.name})")
            current.heard.discard(miner)
        current.asked = asked
        replies: list[tuple[bytes, T]] = []
        while asked and self._now() < step.ends:
            if step.enough is not None and len(replies) >= step.enough:
                patience = self.rules.straggler_factor * statistics.median(answered)
                if self._now() - started >= max(self.rules.straggler_floor_s, patience):
                    break
            try:
                collected = self.fleet.collect(set(asked) | set(self._owed), min(HOLD_S, max(0.0, step.ends - self._now())))
            except UnavailableError:
                self._pause(0.1)
                continue
            for reply in collected:
                if self._owed.pop(reply.instruction_id, None) is not None:
                    continue
                found = asked.pop(reply.instruction_id, None)
                if found is None:
                    continue
                current.bytes_up += len(reply.blob)
                answered.append(self._now() - started)
                try:
                    replies.append((found, self._open(reply, found, current.number, kind)))
                except PoflError as error:
                    current.refused.setdefault(found, f"{step.name}: {error.message}")
                    current.silent.add(found)
        for instruction_id, miner in asked.items():
            self._owed[instruction_id] = (miner, current.number)
            current.refused.setdefault(miner, f"no answer in time ({step.name})")
            current.silent.add(miner)
        current.asked = {}
        return replies

    def _send(self, current: OpenRound, orders: Mapping[bytes, Order], left: float) -> dict[str, bytes]:
        """Orders that are one and the same go in one call. Raises UnavailableError if the first is not taken."""
        groups: dict[int, tuple[Order, list[bytes]]] = {}
        for miner, order in orders.items():
            groups.setdefault(id(order), (order, []))[1].append(miner)
        asked: dict[str, bytes] = {}
        for order, miners in groups.values():
            blob = encode_as(ORDER, order)
            asked |= self.fleet.instruct(blob, miners, current.number, max(0.0, left) + TTL_MARGIN_S)
            current.bytes_down += len(blob) * len(miners)
        return asked

    def _open(self, reply: Reply, miner: bytes, number: int, kind: type[T]) -> T:
        if reply.error:
            raise UnavailableError(reply.error)
        answer = decode(Answer, reply.blob)
        if answer.outcome is not Outcome.TRAINED:
            raise UnavailableError(f"{answer.outcome.name.lower()}: {answer.reason}")
        value = decode_as(REPLY, self.fleet.open_bytes(answer, reply.instruction_id, miner, number))
        if not isinstance(value, kind):
            raise MalformedError(f"the answer is a {type(value).__name__}, expected a {kind.__name__}")
        return value

    def _take(self, current: OpenRound, miner: bytes, take: Callable[[], None]) -> None:
        try:
            take()
            current.heard.add(miner)
        except PoflError as error:
            current.refused.setdefault(miner, error.message)
            current.silent.add(miner)


def _no_single_update(_: int, __: list[Accepted]) -> NDArray[np.float64]:
    raise InternalError("secure aggregation has no single update to aggregate")
