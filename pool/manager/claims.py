"""The pool's claim at a work height: which verdicts are in, what may be served, and offering the work block.

Losers publish nothing, not even an encrypted model: the ``Vm`` body leaves this process only when signed verdicts refute or
skip every higher claim (design: verification, section 5).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from grpc import aio

from core.chain.block import Block
from core.chain.claims import Adopted, Found, Undecided, Void, check_verdict_claim, outcome_of, tally
from core.chain.state import ClaimRecord, Entry, Standing, Validator
from core.chain.verify import check_verdict, powers
from core.chain.vote import SignedVerdict, Verdict, VerdictKind
from core.codec import decode
from core.errors import (
    ChainError,
    CryptoError,
    InputError,
    MalformedError,
    NotFoundError,
    PoflError,
    SequenceError,
    VoteError,
)
from core.ids import AccountId, Amount, Correct, Digest, Height, ModelCommitment, NodeId, TaskId, short
from core.verification.receipt import Answer, AnswerKind, SignedAnswer, verify_answer
from services.rpc import peer_client
from services.rpc.chain_client import ChainClient
from services.rpc.channel import backoff
from services.rpc.views import TaskPhase, TaskView
from services.runtime.logging import logger

__all__ = ["Shelf", "Shown", "WorkWatch", "agreed_ranking", "malformed", "offer_everywhere"]

log = logger(__name__)

ZERO: Final = Digest(bytes(32))
MAX_VERDICT: Final = 2048
MAX_ANSWER: Final = 1024
OFFER_SECONDS: Final = 5.0
AGAIN_SECONDS: Final = 0.25
KEPT: Final = 4
"""Work heights whose block stays here: nodes that are behind may still ask."""


class WorkWatch:
    """What the verdicts heard so far say of the claims at one height. Knows no node: it checks every signature."""

    def __init__(
        self, chain_id: Digest, height: Height, task: TaskView, validators: Sequence[Validator], own: ModelCommitment
    ) -> None:
        """``task``: seen after claims closed, so that its entries are in rank order. Raises NotFoundError if ``own`` is no
        claim of it."""
        self.height = height
        self._chain_id = chain_id
        self._task_id = task.task_id
        self._validators = tuple(validators)
        self._powers = powers(self._validators)
        self._claims = tuple(_entry(task, index) for index, e in enumerate(task.entries) if e.vm is not None)
        ranks = [i for i, entry in enumerate(self._claims) if entry.commitment == own]
        if not ranks:
            raise NotFoundError(f"model {short(own)} is no claim of task {short(task.task_id)}")
        self.rank = ranks[0]
        """0 is the best."""
        self._verdicts: dict[tuple[NodeId, ModelCommitment, VerdictKind], Verdict] = {}
        """One of each kind of a signer on a claim: what is counted. More would let one signer fill the room of all."""

    def hear(self, encoded: Iterable[bytes]) -> bool:
        """Add verdicts; whether one of them was new. Those that nobody may sign are left out, and logged."""
        is_new = False
        for data in encoded:
            try:
                verdict = check_verdict(decode(SignedVerdict, data, MAX_VERDICT), self._chain_id, self.height, self._powers)
                check_verdict_claim(verdict, self._task_id, self._claims)
            except (ChainError, InputError) as error:
                log.warning("a node sent a verdict that does not count", height=self.height, error=error)
                continue
            place = (verdict.validator, verdict.model_commitment, verdict.kind)
            is_new |= self._verdicts.setdefault(place, verdict) is verdict
        return is_new

    @property
    def found(self) -> Found:
        return outcome_of(self._claims, tally(self._verdicts.values(), self._validators))

    @property
    def is_ours_to_show(self) -> bool:
        """Whether every higher claim is refuted or skipped."""
        found = self.found
        return not isinstance(found, Void) and found.index >= self.rank

    def describe(self) -> str:
        """One line for a person."""
        match self.found:
            case Undecided(index, entry):
                return f"claim {index + 1} of {len(self._claims)} is being audited (pool {short(entry.pool)})"
            case Adopted(index, entry, _):
                return f"claim {index + 1} of {len(self._claims)} is adopted (pool {short(entry.pool)})"
            case Void(outcomes):
                return f"no claim is left of {len(outcomes)}"


def _entry(task: TaskView, index: int) -> Entry:
    """A claim in the state's own form, as far as verdicts concern it."""
    view = task.entries[index]
    assert view.vm is not None
    if view.correct is None:
        raise VoteError(f"the claim of pool {short(view.pool)} has no count")
    record = ClaimRecord(view.correct, view.vm, Height(0))
    return Entry(
        task.task_id, view.pool, view.bond, view.endpoint, Height(0), index, Standing.ADMITTED, Amount(0),
        view.vm.model_commitment, record,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shown:
    """One claim of this pool, as it may be asked for."""

    watch: WorkWatch
    block: Block
    body: bytes
    opening: bytes
    """Encoded core.verification.body.ModelOpening: the model itself."""
    answer: Answer
    """What the requester must have signed before the opening leaves: that this body is malformed."""
    requester: AccountId

    @property
    def commitment(self) -> ModelCommitment:
        return self.answer.model_commitment


def malformed(chain_id: Digest, task_id: TaskId, pool: AccountId, commitment: ModelCommitment) -> Answer:
    """The one answer of the requester that calls this claim's body malformed."""
    return Answer(chain_id, task_id, pool, commitment, AnswerKind.MALFORMED, ZERO, Correct(0))


class Shelf:
    """What this pool serves of its claims (ClaimService)."""

    def __init__(self) -> None:
        self._shown: dict[ModelCommitment, Shown] = {}

    def put(self, shown: Shown) -> None:
        self._shown[shown.commitment] = shown
        while len(self._shown) > KEPT:
            del self._shown[next(iter(self._shown))]

    def block(self, height: Height, commitment: ModelCommitment) -> Block:
        """Raises NotFoundError."""
        found = self._find(commitment)
        if found.watch.height != height:
            raise NotFoundError(f"the work block for model {short(commitment)} is of height {found.watch.height}, not {height}")
        return found.block

    def body(self, commitment: ModelCommitment) -> bytes:
        """Raises NotFoundError, SequenceError while a higher claim is not refuted or skipped."""
        found = self._find(commitment)
        _check_turn(found)
        return found.body

    def opening(self, commitment: ModelCommitment, answer: bytes) -> bytes:
        """The model and the seed that make the body again, for validators to see that the requester lied about it.

        Raises:
            MalformedError: ``answer`` is not the requester's signed word that this body is malformed.
            NotFoundError, SequenceError: as ``body``.
        """
        found = self._find(commitment)
        _check_turn(found)
        signed = decode(SignedAnswer, answer, MAX_ANSWER)
        if signed.answer != found.answer:
            raise MalformedError(f"the answer shown does not call the body of {short(commitment)} malformed")
        try:
            verify_answer(found.requester, signed)
        except CryptoError as error:
            raise MalformedError(f"the answer shown is not the requester's: {error.message}") from None
        log.warning("the requester calls this pool's body malformed: showing what it is made of", model=commitment)
        return found.opening

    def _find(self, commitment: ModelCommitment) -> Shown:
        found = self._shown.get(commitment)
        if found is None:
            raise NotFoundError(f"no claim of this pool for model {short(commitment)}")
        return found


def _check_turn(shown: Shown) -> None:
    watch = shown.watch
    if not watch.is_ours_to_show:
        raise SequenceError(
            f"model {short(shown.commitment)} is claim {watch.rank + 1} of its height and stays here until every higher one "
            f"is refuted or skipped; now {watch.describe()}",
            rank=watch.rank + 1,
        )


async def agreed_ranking(nodes: Sequence[tuple[str, aio.Channel]], validators: int, task_id: TaskId) -> TaskView:
    """The task, closed for claims, with the ranking that more than a third of the validators tell alike.

    One node could leave out the claims above ours, and so make this pool show its model; a third of them do not lie. Where
    fewer nodes are configured, all of them must agree. Asks until enough do: the chain moves on without us otherwise.
    """
    needed = min(len(nodes), validators // 3 + 1)
    while True:
        views = await asyncio.gather(*(_closed_task(name, channel, task_id) for name, channel in nodes))
        told: dict[tuple[object, ...], list[TaskView]] = {}
        for view in views:
            if view is not None:
                told.setdefault(tuple((e.pool, e.correct, e.vm) for e in view.entries if e.vm is not None), []).append(view)
        agreed = max(told.values(), key=len, default=[])
        if len(agreed) >= needed:
            return agreed[0]
        if len(told) > 1:
            log.warning("nodes tell different claims", task=task_id, tellings=len(told), needed=needed)
        await asyncio.sleep(AGAIN_SECONDS)


async def _closed_task(name: str, channel: aio.Channel, task_id: TaskId) -> TaskView | None:
    try:
        view = await ChainClient([(name, channel)]).task(task_id)
    except PoflError as error:
        log.debug("a node does not tell the ranking", node=name, error=error)
        return None
    return view if view.phase >= TaskPhase.WORK else None


async def offer_everywhere(nodes: Sequence[tuple[str, aio.Channel]], block: Block, watch: WorkWatch) -> None:
    """Offer the block to every node, again where one lost it, and hear verdicts from all, until cancelled."""
    await asyncio.gather(*(_offer_to(name, channel, block, watch) for name, channel in nodes))


async def _offer_to(name: str, channel: aio.Channel, block: Block, watch: WorkWatch) -> None:
    failures = 0
    while True:
        try:
            top = await peer_client.offer_work(channel, block, OFFER_SECONDS, peer=name)
            log.info("work block offered", node=name, height=watch.height, top_remaining=top)
            async for view in peer_client.watch_work(channel, peer=name):
                failures = 0
                if view.height > watch.height:
                    return
                if view.height == watch.height and watch.hear(view.verdicts):
                    log.info("verdicts came in", height=watch.height, state=watch.describe())
        except PoflError as error:
            # The node may be behind this parent, or down: it is asked again.
            log.debug("a node does not take the work block yet", node=name, error=error)
            if failures == 3:
                log.warning("a node does not take the work block", node=name, error=error)
        await asyncio.sleep(min(backoff(failures), 2.0))
        failures += 1
