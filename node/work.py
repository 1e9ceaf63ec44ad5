"""Work heights: what pools offer, the top remaining claim's block and body, and this node's audit of it.

core.chain.consensus names the claim to look at and times it; here its work block and ``Vm`` body are fetched, from the pool
or from other nodes, and audited. What is found goes back as events. Whatever is here is served to other nodes.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Final

from grpc import aio

from core.chain import rules
from core.chain.block import Block
from core.chain.claims import Undecided as UndecidedClaims
from core.chain.messages import AuditDone, AuditFailed, BlockAvailable, BodyHeld, OpeningAwaited
from core.chain.state import Entry, State
from core.chain.vote import SignedVerdict, Verdict, VerdictKind
from core.codec import decode, encode
from core.errors import BlockError, CryptoError, NotFoundError, PoflError
from core.ids import Correct, Digest, Height, ModelCommitment, short
from core.verification.audit_node import AuditedClaim, Finding, PoolFault, RequesterFault, Undecided, Valid
from core.verification.body import Blame, judge_opening
from core.verification.body import commitment as commitment_of
from core.verification.messages import MAX_HIGHER
from core.verification.receipt import AnswerKind, SignedAnswer, verify_answer
from core.verification.task import TaskContext
from node.answers import Answers, Heard
from node.auditor import Auditor
from node.driver import Driver
from node.held import WorkPart
from node.keeping import Keeping
from node.links import Acceptance
from node.outside import Channels
from node.queries import describe
from node.signal import Signal
from node.store import AuditTime
from node.task_sets import LoadedSet, TaskSets
from node.transcripts import TranscriptStore
from services.rpc.peer_client import fetch_opening, fetch_vm, fetch_work
from services.rpc.views import WorkView
from services.runtime.logging import claim_id, logger, scope
from services.runtime.metrics import counter

__all__ = ["WorkHeights"]

log = logger(__name__)

AUDITS = counter("node_audits", "Audits of claims that ended, by finding.", ("finding",))

PAUSE_SECONDS: Final = 0.25
FETCH_SECONDS: Final = 10.0
KEPT_BODIES: Final = 8
"""Vm bodies that stay here after their height: the requester fetches the one she paid for."""


@dataclass(slots=True)
class _Place:
    """What is here of the height being decided."""

    state: State
    blocks: dict[ModelCommitment, Block] = field(default_factory=dict)
    doubled: set[ModelCommitment] = field(default_factory=set)
    """Claims whose pool signed two work blocks."""
    jobs: dict[object, asyncio.Task[None]] = field(default_factory=dict)
    times: dict[ModelCommitment, int] = field(default_factory=dict)
    digests: dict[bytes, Digest] = field(default_factory=dict)
    openings: dict[ModelCommitment, bytes] = field(default_factory=dict)
    answers: Answers | None = None
    """At a work height."""
    restored: asyncio.Event = field(default_factory=asyncio.Event)
    """What a former life of this node held of this height is in memory."""

    @property
    def height(self) -> Height:
        return Height(self.state.height + 1)


class WorkHeights:
    """node.driver.WorkHooks, and what pools, requesters and nodes ask about a work height."""

    def __init__(
        self,
        driver: Driver,
        task_sets: TaskSets,
        auditor: Auditor,
        channels: Channels,
        peers: Callable[[], Sequence[tuple[str, aio.Channel]]],
        transcripts: TranscriptStore,
        kept: Keeping,
    ) -> None:
        self._driver = driver
        self._task_sets = task_sets
        self._auditor = auditor
        self._channels = channels
        self._peers = peers
        self._transcripts = transcripts
        self._kept = kept
        self._place = _open(driver.state)
        self._bodies: OrderedDict[ModelCommitment, bytes] = OrderedDict()
        self._entered: list[Callable[[State], None]] = []
        self.changed = Signal()

    def on_height(self, callback: Callable[[State], None]) -> None:
        """Call at the start of every height."""
        self._entered.append(callback)

    # What the driver asks (node.driver.WorkHooks)

    def enter(self, state: State) -> None:
        for job in self._place.jobs.values():
            job.cancel()
        self._place = place = _open(state)
        if place.answers is None:
            place.restored.set()
        else:
            self._start("restore", lambda: self._restore(place))
        for callback in self._entered:
            callback(state)
        self.changed.notify()

    def noted(self) -> None:
        self.changed.notify()

    def examine(self, index: int, claim: Entry) -> None:
        log.info(
            "top remaining claim", height=self._place.height, claim=claim_id(claim.task_id, claim.pool), rank=index + 1,
            pool=claim.pool,
        )  # fmt: skip
        self.changed.notify()
        place = self._place
        self._start(("examine", claim.pool), lambda: self._examine(place, claim))

    def need_block(self, claim: Entry) -> None:
        place = self._place
        self._start(("block", claim.pool), lambda: self._get_block(place, claim))

    def audits(self) -> tuple[tuple[AuditTime, ...], dict[bytes, Digest]]:
        place = self._place
        return tuple(AuditTime(c, ms) for c, ms in place.times.items()), place.digests

    def hear(self, signed: SignedAnswer) -> Acceptance:
        """An answer of the requester that a node passes on. Raises WrongChainError, CryptoError: no honest node does that."""
        place = self._place
        if place.answers is None:
            # Where this node will be in a moment, a peer that says again where it is gets it again.
            return Acceptance.LATER if signed.answer.task_id == place.state.current else Acceptance.DROP
        try:
            heard = place.answers.take(signed)
        except NotFoundError:
            return Acceptance.DROP
        if heard is Heard.CONTRADICTS:
            self._convict(place, signed.answer.model_commitment)
        return Acceptance.DROP if heard is Heard.KNOWN else Acceptance.RELAY

    async def stop(self) -> None:
        jobs = list(self._place.jobs.values())
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        await self._kept.settled()

    # What others ask

    def view(self) -> WorkView:
        state, machine = self._place.state, self._driver.machine
        task = state.current_task
        if not rules.is_work_height(state) or task is None:
            return WorkView(self._place.height, False, None, None)
        found = machine.work.found
        top = found.claim.claim if isinstance(found, UndecidedClaims) else None
        verdicts = tuple(encode(signed) for signed in machine.work.all_signed())
        return WorkView(self._place.height, True, task.task_id, None if top is None else top.vm.model_commitment, verdicts)

    async def offer(self, block: Block) -> bool:
        """A pool's work block for this height; whether its claim is the top remaining one. Raises BlockError."""
        place = self._place
        header = block.header.decoded()
        if header.vm is None:
            raise BlockError(f"block {short(block.block_hash)} is no work block")
        commitment = header.vm.model_commitment
        known = place.blocks.get(commitment)
        if known is None:
            await asyncio.to_thread(rules.apply_block, place.state, block)
            await self._keep_block(place, commitment, block)
        elif known.block_hash != block.block_hash:
            # The second is evidence against the pool; more would only fill the memory.
            if commitment in place.doubled:
                raise BlockError(f"pool {short(header.author_id)} offers a third work block on one parent")
            await asyncio.to_thread(rules.apply_block, place.state, block)
            place.doubled.add(commitment)
            self._driver.tell(BlockAvailable(block), place.height)
        return self.view().top_remaining == commitment

    def block(self, height: Height, commitment: ModelCommitment) -> Block | None:
        return self._place.blocks.get(commitment) if height == self._place.height else None

    async def body(self, commitment: ModelCommitment) -> bytes | None:
        """Also of a height decided some time ago: the requester fetches the one she paid for."""
        known = self._bodies.get(commitment)
        return known if known is not None else await self._kept.get(WorkPart.BODY, commitment)

    def body_bytes(self, commitment: ModelCommitment) -> int:
        """The size of a body; 0 if it is not here."""
        known = self._bodies.get(commitment)
        return len(known) if known is not None else self._kept.size(WorkPart.BODY, commitment)

    def opening(self, commitment: ModelCommitment, malformed: SignedAnswer) -> bytes | None:
        """What the pool showed after the requester's answer "malformed". Raises CryptoError without that answer."""
        answer, task = malformed.answer, self._place.state.current_task
        opening = self._place.openings.get(commitment)
        if opening is None or task is None:
            return None
        verify_answer(task.requester, malformed)
        if (answer.task_id, answer.model_commitment, answer.kind) != (task.task_id, commitment, AnswerKind.MALFORMED):
            raise CryptoError(f"the answer is not one of 'malformed' about model {short(commitment)}")
        return opening

    # What survives a restart

    async def _restore(self, place: _Place) -> None:
        """What a former life held of this height. It was checked then; what does not fit any more is fetched again."""
        try:
            for entry in place.state.work_claims() or ():
                assert entry.claim is not None
                commitment = entry.claim.vm.model_commitment
                opening = await self._kept.get(WorkPart.OPENING, commitment)
                if opening is not None:
                    place.openings[commitment] = opening
                data = await self._kept.get(WorkPart.BLOCK, commitment)
                if data is not None and commitment not in place.blocks:
                    await self._restore_block(place, commitment, data)
        finally:
            place.restored.set()

    async def _restore_block(self, place: _Place, commitment: ModelCommitment, data: bytes) -> None:
        try:
            block = decode(Block, data)
            await asyncio.to_thread(rules.apply_block, place.state, block)
        except PoflError as error:
            log.error("a work block that was held here does not apply", height=place.height, model=commitment, error=error)
            return
        if commitment not in place.blocks:
            log.info("work block is here from before the restart", height=place.height, model=commitment)
            place.blocks[commitment] = block
            self._driver.tell(BlockAvailable(block), place.height)

    # One claim

    def _start(self, key: object, job: Callable[[], Coroutine[None, None, None]]) -> None:
        place = self._place
        running = place.jobs.get(key)
        if running is None or running.done():
            place.jobs[key] = asyncio.create_task(self._guarded(job), name=f"work height {place.height}")

    async def _guarded(self, job: Callable[[], Coroutine[None, None, None]]) -> None:
        try:
            await job()
        except PoflError as error:
            log.error("gave up on a claim", height=self._place.height, error=error)
        except Exception:
            # What hostile bytes may find in our own code: say so here and now, not when the task is collected.
            log.exception("gave up on a claim by a fault of this node", height=self._place.height)

    async def _examine(self, place: _Place, entry: Entry) -> None:
        """Fetch, check, audit; until the height is decided, which cancels this."""
        with scope(height=place.height, claim=claim_id(entry.task_id, entry.pool), pool=entry.pool):
            started = time.monotonic()
            # The block is wanted, but an audit needs the body only.
            self._start(("block", entry.pool), lambda: self._get_block(place, entry))
            body = await self._get_body(place, entry)
            log.info("body of the claim is here", bytes=len(body), seconds=round(time.monotonic() - started, 2))
            if not self._driver.is_validator:
                return
            # Without the test set nothing can be audited, and that is not the requester's fault: her time runs from the
            # moment at which the body is said to be held.
            loaded = await self._load(place, entry)
            assert entry.claim is not None
            self._driver.tell(BodyHeld(entry.claim.vm.model_commitment), place.height)
            await self._audit(place, entry, body, loaded)

    async def _load(self, place: _Place, entry: Entry) -> LoadedSet:
        """The task's test set, as soon as it is here."""
        task = place.state.tasks[entry.task_id]
        context = TaskContext(place.state.chain_id, task.task_id, task.requester, task.published.spec)
        while True:
            try:
                return await self._task_sets.load(context)
            except PoflError as error:
                log.warning("cannot audit yet: the test set is not here", error=error)
                await asyncio.sleep(1.0)

    def _heard_ours(self, place: _Place, signed: SignedAnswer) -> None:
        """What the requester answered to this node: others must get the same. After "malformed" the time is the pool's."""
        if signed.answer.kind is AnswerKind.MALFORMED:
            self._driver.tell(OpeningAwaited(signed.answer.model_commitment), place.height)
        if place is self._place and self.hear(signed) is Acceptance.RELAY:
            self._driver.share(signed)

    def _convict(self, place: _Place, commitment: ModelCommitment) -> None:
        """Two answers about one claim: the requester's fault on sight. Whoever has given its verdict keeps the evidence."""
        assert place.answers is not None
        found = place.answers.contradiction(commitment)
        assert found is not None
        reason = f"the requester signed two answers: {describe(found.first)}, and {describe(found.second)}"
        log.warning("the requester contradicts herself", model=commitment, reason=reason)
        self._driver.tell(AuditDone(commitment, VerdictKind.REQUESTER_FAULT, Correct(0), reason, None), place.height)
        try:
            self._transcripts.put_contradiction(place.height, found)
        except PoflError as error:
            log.error("the evidence against the requester is not kept", error=error)

    def _higher(self, place: _Place, entry: Entry) -> tuple[SignedVerdict, ...]:
        """The verdicts known here on the claims above one: what shows the requester that it is the top remaining one."""
        if place is not self._place:
            return ()
        above = set()
        for claim in self._driver.machine.work.claims:
            if claim.pool == entry.pool:
                break
            if claim.claim is not None:
                above.add(claim.claim.vm.model_commitment)
        if not above:
            return ()
        signed = self._driver.machine.work.all_signed()
        return tuple(s for s in signed if decode(Verdict, s.verdict, 1024).model_commitment in above)[:MAX_HIGHER]

    async def _audit(self, place: _Place, entry: Entry, body: bytes, loaded: LoadedSet) -> None:
        """What was found goes to the consensus; also that nothing could be, by a fault of this node."""
        assert entry.claim is not None
        try:
            done = await self._find_out(place, entry, body, loaded)
        except Exception:
            # Not the requester's fault and not the pool's, whatever it was: others' verdicts decide (docs/adr/0064).
            log.exception("could not audit a claim by a fault of this node", height=place.height)
            self._driver.tell(AuditFailed(entry.claim.vm.model_commitment), place.height)
        else:
            self._driver.tell(done, place.height)

    async def _find_out(self, place: _Place, entry: Entry, body: bytes, loaded: LoadedSet) -> AuditDone:
        assert entry.claim is not None
        state, claim = place.state, entry.claim
        timeout = state.params.audit_ms / 1000
        audited = AuditedClaim(entry.pool, claim.correct, claim.vm, body)
        started = time.monotonic()
        finding, machine = await self._auditor.audit(
            loaded.task, loaded.public_key, loaded.test_set, audited, timeout, place.height,
            lambda: self._higher(place, entry), lambda signed: self._heard_ours(place, signed),
        )  # fmt: skip
        milliseconds = round(1000 * (time.monotonic() - started))
        if isinstance(finding, Undecided):
            assert finding.malformed is not None
            opening = await self._get_opening(place, entry, finding.malformed, body, loaded)
            finding = await asyncio.to_thread(machine.judge, opening)
            await self._auditor.keep(machine, place.height)
        AUDITS.labels(type(finding).__name__).inc()
        log.info("audit finished", finding=type(finding).__name__, milliseconds=milliseconds)
        place.times[claim.vm.model_commitment] = milliseconds
        done = _done(claim.vm.model_commitment, finding)
        if done.z_digest is not None:
            place.digests[claim.vm.model_commitment] = done.z_digest
        return done

    async def _get_opening(
        self, place: _Place, entry: Entry, malformed: SignedAnswer, body: bytes, loaded: LoadedSet
    ) -> bytes | None:
        """What makes the body again, within open_ms; None if nobody shows it. Whoever shows something else, the pool or a
        node that wants to frame it, is passed over."""
        assert entry.claim is not None
        commitment = entry.claim.vm.model_commitment
        log.warning("the requester says that the body is malformed, asking for its opening")
        await place.restored.wait()
        try:
            async with asyncio.timeout(place.state.params.open_ms / 1000):
                while commitment not in place.openings:
                    async for name, channel in self._sources(entry):
                        try:
                            shown = await fetch_opening(channel, commitment, malformed, FETCH_SECONDS, peer=name)
                        except PoflError as error:
                            log.debug("no opening", source=name, error=error)
                            continue
                        blame = await asyncio.to_thread(judge_opening, loaded.public_key, body, loaded.task.family, shown)
                        if blame is not Blame.REQUESTER:
                            log.warning("an opening does not make the body", source=name)
                            continue
                        await self._kept.put(place.height, WorkPart.OPENING, commitment, shown)
                        place.openings[commitment] = shown
                        break
                    else:
                        await asyncio.sleep(PAUSE_SECONDS)
        except TimeoutError:
            return None
        return place.openings[commitment]

    async def _get_block(self, place: _Place, entry: Entry) -> None:
        """The claim's work block, from the pool or whoever has it."""
        assert entry.claim is not None
        commitment = entry.claim.vm.model_commitment
        await place.restored.wait()
        while commitment not in place.blocks:
            async for name, channel in self._sources(entry):
                try:
                    block = await fetch_work(channel, place.height, commitment, FETCH_SECONDS, peer=name)
                    header = block.header.decoded()
                    if header.vm != entry.claim.vm or header.author_id != entry.pool:
                        raise BlockError(f"{name} gave the work block of another claim")
                    await asyncio.to_thread(rules.apply_block, place.state, block)
                except PoflError as error:
                    log.debug("no work block", source=name, error=error)
                    continue
                await self._keep_block(place, commitment, block)
                return
            await asyncio.sleep(PAUSE_SECONDS)

    async def _get_body(self, place: _Place, entry: Entry) -> bytes:
        """The claim's Vm body, checked against its commitment."""
        assert entry.claim is not None
        commitment = entry.claim.vm.model_commitment
        held = None if commitment in self._bodies else await self._kept.get(WorkPart.BODY, commitment)
        if held is not None:
            self._remember(commitment, held)
        while commitment not in self._bodies:
            async for name, channel in self._sources(entry):
                try:
                    body = await fetch_vm(channel, commitment, FETCH_SECONDS, peer=name)
                    made = commitment_of(place.state.chain_id, entry.task_id, entry.pool, body)
                    if made != commitment:
                        raise NotFoundError(f"{name} gave a body that is not the one under {short(commitment)}")
                except PoflError as error:
                    log.debug("no body", source=name, error=error)
                    continue
                await self._kept.put(place.height, WorkPart.BODY, commitment, body)
                self._remember(commitment, body)
                break
            else:
                await asyncio.sleep(PAUSE_SECONDS)
        return self._bodies[commitment]

    async def _sources(self, entry: Entry) -> AsyncIterator[tuple[str, aio.Channel]]:
        """The pool, then nodes."""
        try:
            yield entry.endpoint, await self._channels.get(entry.endpoint, "pool")
        except PoflError as error:
            log.debug("the pool's address cannot be used", endpoint=entry.endpoint, error=error)
        for peer in self._peers():
            yield peer

    def _remember(self, commitment: ModelCommitment, body: bytes) -> None:
        self._bodies[commitment] = body
        while len(self._bodies) > KEPT_BODIES:
            self._bodies.popitem(last=False)

    async def _keep_block(self, place: _Place, commitment: ModelCommitment, block: Block) -> None:
        """On disk first: a verdict 'valid' that this makes possible must not outlive the block."""
        await self._kept.put(place.height, WorkPart.BLOCK, commitment, block.to_bytes())
        first = place.blocks.setdefault(commitment, block)
        if first is not block:
            if first.block_hash == block.block_hash or commitment in place.doubled:
                return
            place.doubled.add(commitment)
        self._driver.tell(BlockAvailable(block), place.height)


def _open(state: State) -> _Place:
    """An empty place for the height after ``state``."""
    task, claims = state.current_task, state.work_claims()
    if task is None or claims is None:
        return _Place(state)
    return _Place(state, answers=Answers(state.chain_id, task.task_id, task.requester, claims))


def _done(commitment: ModelCommitment, finding: Finding) -> AuditDone:
    match finding:
        case Valid():
            return AuditDone(commitment, VerdictKind.VALID, finding.correct, "", finding.z_digest)
        case PoolFault():
            correct = finding.correct if finding.correct is not None else Correct(0)
            return AuditDone(commitment, VerdictKind.POOL_FAULT, correct, finding.reason, finding.z_digest)
        case RequesterFault() | Undecided():
            return AuditDone(commitment, VerdictKind.REQUESTER_FAULT, Correct(0), finding.reason, None)
