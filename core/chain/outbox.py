"""What a consensus machine does in one step: its actions in order, each question and each timer once."""

from __future__ import annotations

from collections.abc import Iterable

from core.chain.messages import Action, NeedBlock, RequestBlock, RequestWork, SetTimer, Timer, TimerKind
from core.ids import Milliseconds

__all__ = ["Outbox"]


class Outbox:
    def __init__(self, delta_ms: int) -> None:
        """``delta_ms``: by how much a round's timers are longer than those of the round before."""
        self._delta_ms = delta_ms
        self._actions: list[Action] = []
        self._asked: set[object] = set()
        self._scheduled: set[Timer] = set()
        self._wakes: set[int] = set()
        """Instants to look again at; a timer runs for the first."""

    def add(self, *actions: Action) -> None:
        self._actions += actions

    def extend(self, actions: Iterable[Action]) -> None:
        self._actions.extend(actions)

    def take(self) -> list[Action]:
        """All that has come since the last call."""
        actions, self._actions = self._actions, []
        return actions

    def ask(self, action: NeedBlock | RequestBlock | RequestWork) -> None:
        """Once, until ``ask_again``."""
        key: object = action if not isinstance(action, RequestWork) else ("work", action.claim.pool)
        if key not in self._asked:
            self._asked.add(key)
            self.add(action)

    def ask_again(self) -> None:
        """What was asked for may have got lost: from now on it is asked for once more."""
        self._asked.clear()

    def time(self, kind: TimerKind, round_: int, base_ms: int) -> None:
        self.add(SetTimer(Timer(kind, round_), base_ms + round_ * self._delta_ms))

    def time_once(self, kind: TimerKind, round_: int, base_ms: int) -> None:
        if Timer(kind, round_) not in self._scheduled:
            self._scheduled.add(Timer(kind, round_))
            self.time(kind, round_, base_ms)

    def wake(self, at: int, now_ms: Milliseconds) -> None:
        """Looks again at the instant ``at``, or before."""
        if at not in self._wakes:
            self._wakes.add(at)
            if at == min(self._wakes):
                self._set_wake(now_ms)

    def woke(self, now_ms: Milliseconds) -> None:
        """The timer for the first instant has run."""
        self._wakes = {at for at in self._wakes if at > now_ms}
        self._set_wake(now_ms)

    def _set_wake(self, now_ms: Milliseconds) -> None:
        if self._wakes:
            self.add(SetTimer(Timer(TimerKind.DUE, 0), min(self._wakes) - now_ms))
