"""The consensus driver: one task that feeds core.chain.consensus and does what it says, in order.

Everything that changes the chain goes through one queue: messages of peers, timers, built blocks, results of audits, blocks
that were fetched. A record is on disk before a message that it makes binding is sent. A block, its state and what the node
knows of its height are one write; then the next height's machine starts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from core.chain import rules, versions
from core.chain.block import Block, Certificate
from core.chain.consensus import Consensus
from core.chain.messages import (
    Action,
    AuditClaim,
    BlockAvailable,
    BlockBuilt,
    Broadcast,
    Event,
    Faulty,
    Finalise,
    Message,
    NeedBlock,
    Persist,
    ReceivedProposal,
    ReceivedVerdict,
    Relay,
    RequestBlock,
    RequestWork,
    SetTimer,
    Start,
    Timeout,
    Timer,
    TransactionsWaiting,
)
from core.chain.records import Upgrade
from core.chain.state import State
from core.chain.transaction import Payload, SignedTransaction
from core.chain.vote import SignedProposal, SignedVerdict, SignedVote
from core.crypto.signing import KeyPair
from core.errors import MalformedError, PoflError, StorageError, TransactionError
from core.ids import Digest, Height, NodeId, TxId
from core.params import PROTOCOL_VERSION
from core.ports import Clock, SystemRng
from core.verification.receipt import SignedAnswer
from node.author import BlockAuthor
from node.catch_up import catch_up, final_state
from node.early import Early
from node.events import FROM_PEERS, Fetched, Item, WorkHooks, height_of, received
from node.history import TaskHistory
from node.light import LightService
from node.links import Acceptance, Links
from node.pending import Pending
from node.rows import transaction_ids
from node.said import Said
from node.signal import Signal
from node.store import ChainStore, WorkRecord
from node.submissions import MEMPOOL, Submissions
from services.rpc.convert_peer import Gossip, Hello, Progress, Transactions
from services.rpc.views import TransactionStatus
from services.runtime.logging import logger
from services.runtime.metrics import counter, gauge, histogram

__all__ = ["Driver", "WorkHooks"]

log = logger(__name__)

HEIGHT = gauge("node_height", "Height of the last finalised block.")
ROUND = gauge("node_round", "Round of the last finalised block.")
INTERVAL = gauge("node_block_interval_seconds", "Block time between the last two blocks.")
FINALISE = histogram("node_finalise_seconds", "From the start of a height here to its finalised block on disk.")
TIME = gauge("node_block_timestamp_seconds", "Block time of the last finalised block, Unix time.")
VALIDATORS = gauge("node_validators", "Validators of the next height.")
VALIDATES = gauge("node_is_validator", "1 if this node is one of them, else 0.")
TASKS = gauge("node_tasks", "Tasks on the chain that have not ended: pending, open, current.")
TRANSACTIONS = counter("node_transactions", "Transactions in finalised blocks that this node committed.")
FAULTS = counter("node_faults_found", "Faults of validators that their own signatures prove, by kind.", ("kind",))
BLOCKS = counter("node_blocks", "Finalised blocks, by kind.", ("kind",))

SOFTWARE: Final = "pofl"
HEARTBEAT_SECONDS: Final = 2.0
SEND_AGAIN_SECONDS: Final = 1.0
"""Least time between two sendings of all that is kept to one peer at one height: what it asks with is 50 bytes."""


class Driver:
    """Decides one height after another."""

    def __init__(
        self, store: ChainStore, key: KeyPair, pending: Pending, clock: Clock, light: LightService | None = None
    ) -> None:
        self._store = store
        self.light = light
        self._key = key
        self._observer = KeyPair.generate(SystemRng())
        self._clock = clock
        self._node = NodeId(key.public_key)
        self._queue: asyncio.Queue[Item] = asyncio.Queue()
        self._timers: dict[Timer, asyncio.TimerHandle] = {}
        self._early = Early()
        self._caught_up: dict[NodeId, tuple[Height, float]] = {}
        """At which height, and when, a peer was sent all that is kept."""
        self._kept = Said()
        self._sent: set[Message] = set()
        self._entered = 0.0
        self._waiting = False
        self._building: asyncio.Task[None] | None = None
        self._links: Links | None = None
        self._work: WorkHooks | None = None
        self._progressed: Callable[[NodeId, Progress], None] | None = None
        self.pending = pending
        self._submissions = Submissions(self, key, pending, self._broadcast, self._transactions_wait)
        self.author = BlockAuthor(store, key, pending)
        self.finalised = Signal()
        self.history = TaskHistory(store.state)
        self.machine = self._machine()

    def connect(self, links: Links, work: WorkHooks, progressed: Callable[[NodeId, Progress], None]) -> None:
        """The parts that this one and they need of one another; once, before `run`."""
        self._links, self._work, self._progressed = links, work, progressed

    @property
    def state(self) -> State:
        return self._store.state

    @property
    def height(self) -> Height:
        """Of the last finalised block."""
        return self._store.state.height

    @property
    def is_validator(self) -> bool:
        return any(v.node_id == self._node for v in self.state.validators)

    # What peers say (node.links.Handler)

    def hello(self) -> Hello:
        return Hello(self.state.chain_id, PROTOCOL_VERSION, self._node, self.height, SOFTWARE)

    def joined(self, node: NodeId) -> None:
        """A link came up: the peer gets everything of this height, it may lack any of it."""
        assert self._links is not None
        self._caught_up[node] = (self.height, time.monotonic())
        self._links.send(node, [self._progress(), *self._kept])

    async def receive(self, node: NodeId, message: Gossip) -> Acceptance:
        """A peer's message. Raises what is wrong with one that no honest node sends."""
        match message:
            case Progress():
                self._note_progress(node, message)
                return Acceptance.DROP
            case SignedTransaction():
                return self._submissions.take(message)
            case SignedVote() | SignedProposal() | SignedVerdict():
                return await self._take_message(node, message)
            case SignedAnswer():
                return self._take_answer(message)
            case Hello() | Transactions():
                # The links have taken them apart.
                return Acceptance.DROP

    def share(self, answer: SignedAnswer) -> None:
        """What the requester answered to this node: to every peer, now and when one comes to this height."""
        assert self._links is not None
        self._keep(answer)
        self._links.broadcast(answer)

    def _take_answer(self, answer: SignedAnswer) -> Acceptance:
        assert self._work is not None
        accepted = self._work.hear(answer)
        if accepted is Acceptance.RELAY:
            self._keep(answer)
        return accepted

    def _note_progress(self, node: NodeId, progress: Progress) -> None:
        assert self._links is not None
        assert self._progressed is not None
        # A peer that has just come to this height lacks what was said before; one that says so again may be stuck.
        height, at = self._caught_up.get(node, (-1, 0.0))
        now = time.monotonic()
        if progress.height == self.height + 1 and (height != self.height or now >= at + SEND_AGAIN_SECONDS):
            self._caught_up[node] = (self.height, now)
            self._links.send(node, list(self._kept))
        self._progressed(node, progress)

    async def _take_message(self, node: NodeId, message: Message) -> Acceptance:
        height = height_of(message)
        if height > self.height + 1:
            if height == self.height + 2:
                self._early.put(node, message)
            return Acceptance.LATER
        if height <= self.height:
            return Acceptance.DROP
        done: asyncio.Future[Acceptance] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(Item(received(message), height, done))
        return await done

    # Transactions

    def pending_status(self, tx_id: TxId) -> TransactionStatus:
        return self._submissions.status(tx_id)

    def submit(self, transaction: SignedTransaction) -> None:
        """Into the mempool and to every peer. Raises TransactionError."""
        self._submissions.submit(transaction)

    def submit_own(self, payload: Payload) -> TxId:
        """A transaction of this node's account. Raises TransactionError."""
        return self._submissions.submit_own(payload)

    def _broadcast(self, message: Gossip) -> None:
        if self._links is not None:
            self._links.broadcast(message)

    def _transactions_wait(self) -> None:
        if not self._waiting and self.pending.is_due(self.state):
            self._waiting = True
            self.tell(TransactionsWaiting(True))

    # The queue

    def tell(self, event: Event, height: Height | None = None) -> None:
        """Queue an event; dropped if ``height`` is no longer being decided when its turn comes."""
        self._queue.put_nowait(Item(event, height))

    async def take_final(self, blocks: Sequence[tuple[Block, Certificate]]) -> None:
        """Finalised blocks from a peer, in order; what is here is passed over. Raises ChainError, InputError at the first that
        is not the next one, or not final; those before it are kept."""
        done: asyncio.Future[Acceptance] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(Item(Fetched(tuple(blocks)), None, done))
        await done

    async def run(self) -> None:
        """For ever. Ends with StorageError when what must be on disk cannot be written."""
        self._begin()
        heartbeat = asyncio.create_task(self._heartbeat(), name="heartbeat")
        try:
            while True:
                # Before anything is voted, built or followed by rules that are not the chain's.
                versions.check_known(self.state)
                await self._handle(await self._queue.get())
        finally:
            heartbeat.cancel()
            self._cancel_timers()

    async def _handle(self, item: Item) -> None:
        accepted, failure = Acceptance.DROP, None
        try:
            if isinstance(item.what, Fetched):
                await self._take_fetched(item.what)
            elif item.height is None or item.height == self.height + 1:
                await self._step(item.what)
                if isinstance(item.what, FROM_PEERS) and item.what.signed not in self._kept:
                    # The machine had no place for it: the links must not take it for done with.
                    accepted = Acceptance.LATER
        except StorageError:
            raise
        except PoflError as error:
            failure = error
            if item.done is None:
                log.warning("an event was refused", event=type(item.what).__name__, height=self.height + 1, error=error)
        if item.done is not None and not item.done.done():
            if failure is None:
                item.done.set_result(accepted)
            else:
                item.done.set_exception(failure)

    async def _step(self, event: Event) -> None:
        now = self._clock.now_ms()
        try:
            if isinstance(event, ReceivedProposal | BlockAvailable | BlockBuilt):
                # These apply a whole block.
                actions = await asyncio.to_thread(self.machine.step, event, now)
            else:
                actions = self.machine.step(event, now)
        except PoflError:
            raise
        except Exception as error:
            if not isinstance(event, (*FROM_PEERS, BlockAvailable)):
                raise
            # A fault of ours that a peer has found. It must not be one message that ends every node of the network.
            log.exception("a message could not be handled", event=type(event).__name__, height=self.height + 1)
            raise MalformedError(f"the message could not be handled: {type(error).__name__}: {error}") from error
        for action in actions:
            await self._do(action)
        if isinstance(event, ReceivedVerdict) and self._work is not None:
            self._work.noted()

    async def _do(self, action: Action) -> None:
        assert self._links is not None
        assert self._work is not None
        match action:
            case Persist():
                await asyncio.to_thread(self._store.put_consensus, action.record)
            case Broadcast():
                self._keep(action.message)
                again = action.message in self._sent
                self._sent.add(action.message)
                self._links.broadcast(action.message, again=again)
            case Relay():
                self._keep(action.message)
                self._links.broadcast(action.message)
            case SetTimer():
                self._set_timer(action)
            case NeedBlock():
                self._building = asyncio.create_task(self._build(action.round), name="build a block")
            case RequestBlock():
                # Whoever voted for it has it, and sends all it has to a peer that says again where it is.
                self._links.broadcast(self._progress())
            case RequestWork():
                self._work.need_block(action.claim)
            case AuditClaim():
                self._work.examine(action.index, action.claim)
            case Finalise():
                await self._finalise(action)
            case Faulty():
                FAULTS.labels(type(action.evidence).__name__).inc()
                log.warning("found a fault that signatures prove", kind=type(action.evidence).__name__)
                self._report(action.evidence)

    def _keep(self, message: Message | SignedAnswer) -> None:
        self._kept.put(message, self.machine.round)

    def _set_timer(self, action: SetTimer) -> None:
        old = self._timers.pop(action.timer, None)
        if old is not None:
            old.cancel()
        height = Height(self.height + 1)

        def fire() -> None:
            self._timers.pop(action.timer, None)
            self.tell(Timeout(action.timer), height)

        delay = max(0, action.delay_ms) / 1000
        self._timers[action.timer] = asyncio.get_running_loop().call_later(delay, fire)

    def _cancel_timers(self) -> None:
        for handle in self._timers.values():
            handle.cancel()
        self._timers.clear()

    # Blocks

    async def _build(self, round_: int) -> None:
        """Build and propose, beside the queue: what comes in meanwhile is still handled."""
        height = Height(self.height + 1)
        self.tell(BlockBuilt(round_, await self.author.build()), height)

    async def _finalise(self, action: Finalise) -> None:
        assert self._work is not None
        record = None
        if rules.is_work_height(self.state):
            times, digests = self._work.audits()
            vm = action.block.header.decoded().vm
            z_digest = digests.get(vm.model_commitment) if vm is not None else None
            record = WorkRecord(z_digest or Digest(bytes(32)), action.verdicts, times, self.state.validators)
        await self._commit(action.block, action.certificate, action.state, record)
        found = self.author.own_verdicts()
        if found is not None:
            # Whoever proposes the next block may not have audited this one.
            self._report(found)

    async def _take_fetched(self, fetched: Fetched) -> None:
        blocks = [pair for pair in fetched.blocks if pair[1].height > self.height]
        if len(blocks) == 1:
            block, certificate = blocks[0]
            after = await asyncio.to_thread(final_state, self.state, block, certificate)
            await self._commit(block, certificate, after, None)
        elif blocks:
            before = self.state
            states, failure = await asyncio.to_thread(catch_up, self._store, self.light, blocks)
            if states:
                await self._advance(before, states, blocks[len(states) - 1][1].round)
            if failure is not None:
                raise failure

    async def _commit(self, block: Block, certificate: Certificate, state: State, record: WorkRecord | None) -> None:
        transactions = transaction_ids(block)
        before = self.state
        if self.light is not None:
            await asyncio.to_thread(self.light.note, self.state)
        await asyncio.to_thread(self._store.commit, block, certificate, state, transactions, record)
        TRANSACTIONS.inc(len(transactions))
        if self._entered:
            FINALISE.observe(time.monotonic() - self._entered)
        log.info(
            "block finalised", height=state.height, kind=state.tip.kind.name.lower(), hash=block.block_hash,
            transactions=len(transactions), round=certificate.round, author=state.tip.author,
        )  # fmt: skip
        await self._advance(before, [state], certificate.round)

    async def _advance(self, before: State, states: Sequence[State], round_: int) -> None:
        """Onto the last of ``states``, which are stored, one after another since ``before``."""
        for state in states:
            _announce(before.upgrade, state.upgrade)
            INTERVAL.set((state.tip.timestamp_ms - before.tip.timestamp_ms) / 1000)
            BLOCKS.labels(state.tip.kind.name.lower()).inc()
            self.history.note(state)
            before = state
        ROUND.set(round_)
        await self.pending.advance(before)
        MEMPOOL.set(len(self.pending))
        self._begin()
        self.finalised.notify()

    def _show(self, state: State) -> None:
        """What metrics say of the chain."""
        HEIGHT.set(state.height)
        TIME.set(state.tip.timestamp_ms / 1000)
        VALIDATORS.set(len(state.validators))
        VALIDATES.set(self.is_validator)
        TASKS.set(len(state.live))

    def _begin(self) -> None:
        """Start the next height."""
        self._show(self.state)
        assert self._links is not None
        assert self._work is not None
        self._cancel_timers()
        if self._building is not None:
            self._building.cancel()
        self._kept.clear()
        self._sent.clear()
        self._entered = time.monotonic()
        self._work.enter(self.state)
        self.machine = self._machine()
        self._waiting = self.pending.is_due(self.state)
        height = Height(self.height + 1)
        self.tell(Start(), height)
        self.tell(TransactionsWaiting(self._waiting), height)
        for node, message in self._early.take():
            if height_of(message) == height:
                self.tell(received(message), height)
            elif height_of(message) == height + 1:
                self._early.put(node, message)
        self._links.broadcast(self._progress())

    def _machine(self) -> Consensus:
        state = self.state
        work = self._store.work(state.height)
        audited = work.z_digest if work is not None and any(work.z_digest) else None
        # What this node voted here may be lost: another vote could contradict it. It follows, and signs nothing.
        is_silent = state.height < self._store.silent_until
        key = self._observer if is_silent else self._key
        return Consensus(state, self._store.tip_certificate, key, self._store.consensus, audited)

    def _progress(self) -> Progress:
        return Progress(Height(self.height + 1), max(0, self.machine.round), self.state.tip.block_hash)

    async def _heartbeat(self) -> None:
        assert self._links is not None
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            self._links.broadcast(self._progress())

    def _report(self, evidence: Payload) -> None:
        try:
            self.submit_own(evidence)
        except TransactionError as error:
            log.info("a report was refused", kind=type(evidence).__name__, error=error)


def _announce(old: Upgrade | None, new: Upgrade | None) -> None:
    if new is None or new == old:
        return
    if new.version in versions.KNOWN_VERSIONS:
        log.info("a new protocol version is agreed", version=new.version, first_height=new.height)
    else:
        log.warning(
            "a new protocol version is agreed that this software does not know: this node stops before its first height; "
            "install a release that knows it", version=new.version, first_height=new.height,
        )  # fmt: skip
