"""Which claims of a task may be audited now: the top remaining one, and those that were it before (docs/adr/0063).

Validators bring the verdicts that refute or skip every higher claim; they are checked here and kept, so that who leaves some
out is answered by what others brought. Used from several threads.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from core.chain.claims import Adopted, Void
from core.chain.heard import HeardVerdicts
from core.chain.state import ClaimRecord, Entry, Standing, Validator
from core.chain.vote import SignedVerdict, VerdictKind
from core.errors import ChainError, InputError, MalformedError, TurnError, UnavailableError
from core.ids import Amount, Digest, Height, ModelCommitment, TaskId, short
from services.rpc.views import EntryView, TaskView

__all__ = ["ClaimTurns", "ranking_of"]

MAX_TASKS: Final = 8
Ranking = tuple[tuple[object, ...], ...]


def ranking_of(task: TaskView) -> Ranking:
    """The claims in rank order, as far as two tellings of them must be alike."""
    return tuple((e.pool, e.model_commitment, e.correct) for e in task.entries if e.vm is not None)


@dataclass(frozen=True, slots=True)
class _Place:
    height: Height
    ranking: Ranking
    heard: HeardVerdicts


class ClaimTurns:
    """For all tasks of one requester."""

    def __init__(self, chain_id: Digest, validators: Sequence[Validator]) -> None:
        self._chain_id, self._validators = chain_id, tuple(validators)
        self._places: dict[TaskId, _Place] = {}
        self._lock = threading.Lock()

    def replace_validators(self, validators: Sequence[Validator]) -> None:
        """For work heights that begin from now on."""
        with self._lock:
            self._validators = tuple(validators)

    def check(self, height: Height, task: TaskView, commitment: ModelCommitment, higher: Sequence[SignedVerdict]) -> None:
        """``height`` is the task's work height, ``task`` has its claims in rank order.

        Raises:
            TurnError: a higher claim is neither refuted nor skipped, by these verdicts and those that were brought before.
            MalformedError: a verdict that no validator signed, or of another chain, height or task.
            UnavailableError: no such claim is known here.
        """
        most = len(VerdictKind) * len(self._validators) * len(task.entries)
        if len(higher) > most:
            raise MalformedError(f"{len(higher)} verdicts on the higher claims; at most {most} count", most=most)
        with self._lock:
            heard = self._place(height, task).heard
            try:
                rank = heard.rank(commitment)
            except ChainError as error:
                raise UnavailableError(error.message) from None
            try:
                heard.hear(higher)
            except (ChainError, InputError) as error:
                raise MalformedError(f"a verdict on the higher claims does not count: {error.message}") from None
            if heard.has_had_its_turn(commitment):
                return
            found = heard.found
        match found:
            case Adopted(index, entry):
                stands = f"claim {index + 1} of pool {short(entry.pool)} is adopted"
            case Void(outcomes):
                stands = f"claim {len(outcomes)} is dead"
            case _:
                stands = f"claim {found.index + 1} of pool {short(found.claim.pool)} is neither refuted nor skipped"
        raise TurnError(
            f"model {short(commitment)} is claim {rank + 1}, not the top remaining one: {stands} by the verdicts shown here. "
            "Nothing is used up: bring those that refute or skip every higher claim",
            rank=rank + 1,
        )

    def _place(self, height: Height, task: TaskView) -> _Place:
        ranking = ranking_of(task)
        place = self._places.get(task.task_id)
        if place is None or (place.height, place.ranking) != (height, ranking):
            entries = [_entry(task, index, view) for index, view in enumerate(task.entries) if view.vm is not None]
            place = _Place(height, ranking, HeardVerdicts(self._chain_id, height, entries, self._validators))
            self._places.pop(task.task_id, None)
            self._places[task.task_id] = place
            while len(self._places) > MAX_TASKS:
                del self._places[next(iter(self._places))]
        return place


def _entry(task: TaskView, index: int, view: EntryView) -> Entry:
    """A claim in the state's own form, as far as verdicts concern it."""
    assert view.vm is not None
    if view.correct is None:
        raise UnavailableError(f"the claim of pool {short(view.pool)} has no count")
    record = ClaimRecord(view.correct, view.vm, Height(0))
    return Entry(
        task.task_id, view.pool, view.bond, view.endpoint, Height(0), index, Standing.ADMITTED, Amount(0),
        view.vm.model_commitment, record,
    )  # fmt: skip
