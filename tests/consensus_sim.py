"""A seeded network of consensus machines: delays, drops, reorders, duplicates, crashes, partitions, lies.

Time is simulated. Every node is a ``Consensus`` with what a real node puts around it: a disk (the last Persist), a chain
(synced from whoever is ahead), a mempool of a few transfers, and at a work height a body and an audit per claim.
"""

from __future__ import annotations

import functools
import heapq
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar

from core.chain import build, rules
from core.chain.block import NIL, Block, Certificate
from core.chain.consensus import Consensus
from core.chain.messages import (
    Action,
    AuditClaim,
    AuditDone,
    BlockAvailable,
    BlockBuilt,
    BodyHeld,
    Broadcast,
    Event,
    Faulty,
    Finalise,
    Message,
    NeedBlock,
    OpeningAwaited,
    Persist,
    ReceivedProposal,
    ReceivedVerdict,
    ReceivedVote,
    Relay,
    RequestBlock,
    RequestWork,
    SetTimer,
    Start,
    Timeout,
    Timer,
    TransactionsWaiting,
)
from core.chain.rules_validators import is_punished
from core.chain.state import Entry, State
from core.chain.transaction import (
    Equivocation,
    Payload,
    PoolFault,
    SignedTransaction,
    Transfer,
    VerdictEquivocation,
    Verdicts,
)
from core.chain.vote import Proposal, SignedProposal, SignedVerdict, SignedVote, Step, Verdict, VerdictKind, Vote
from core.chain.work_height import commitment_of
from core.codec import decode
from core.crypto import signing
from core.errors import ChainError
from core.ids import Amount, BlockHash, Correct, Digest, Height, Milliseconds, ModelCommitment
from tests.chainkit import account, key, some

T = TypeVar("T")
Answer = Literal["valid", "pool_fault", "no body", "no answer", "silent", "late malformed"]


class Patch(Protocol):
    """pytest.MonkeyPatch, or what does as it does."""

    def setattr(self, target: Any, name: str, value: Any) -> None: ...


class Monitor(Protocol):
    """Watches a run from outside: what honest nodes hear, sign and finalise. Raises AssertionError."""

    def heard(self, node: SimNode, event: Event) -> None: ...
    def sent(self, name: str, message: Message) -> None: ...
    def exists(self, message: Message) -> None: ...
    def booted(self, node: SimNode) -> None: ...
    def accused(self, node: SimNode, evidence: Payload) -> None: ...
    def final(self, node: SimNode, block: Block, certificate: Certificate, state: State) -> None: ...


class Adversary(Protocol):
    """What liars send instead of what an honest machine would, and in answer to what they overhear."""

    def twist(self, node: SimNode, peer: SimNode, message: Message) -> Sequence[Message]: ...
    def overhear(self, sender: SimNode, message: Message) -> None: ...


class Blobs(Protocol):
    """Who gets a claim's work block and body when, and what the requester answers."""

    def serve(self, node: SimNode, claim: Entry) -> None: ...
    def serve_work(self, node: SimNode, claim: Entry) -> None: ...


def remember_signatures(monkeypatch: Patch) -> None:
    """All nodes of a simulation verify the same signatures and apply the same blocks: each is computed once."""
    verify, good = signing.verify, set[tuple[bytes, bytes, bytes, bytes]]()
    apply, after = rules.apply_block, dict[tuple[BlockHash, Block], State]()

    def applying(state: State, block: Block) -> State:
        found = after.get((state.tip.block_hash, block))
        if found is None:
            found = apply(state, block)
            if len(after) >= 64:
                after.clear()
            after[(state.tip.block_hash, block)] = found
        return found

    monkeypatch.setattr(rules, "apply_block", applying)

    def remembering(public_key: bytes, domain: bytes, message: bytes, signature: bytes) -> None:
        if (public_key, domain, message, signature) not in good:
            verify(public_key, domain, message, signature)
            good.add((public_key, domain, message, signature))

    monkeypatch.setattr(signing, "verify", remembering)


@dataclass
class Link:
    """How bad the network is until ``calm_ms``; afterwards messages arrive within 40 ms."""

    drop: float = 0.0
    duplicate: float = 0.0
    delay_ms: int = 40
    calm_ms: int = 0
    crash: float = 0.0
    """Chance per handled event that the node dies somewhere in the middle of its actions."""
    crash_locked: float = 0.0
    """Chance that it dies when it has precommitted a block."""


@dataclass
class SimNode:
    name: str
    sim: Sim
    skew_ms: int
    state: State
    certificate: Certificate | None
    disk: bytes | None = None
    life: int = 0
    is_up: bool = True
    machine: Consensus | None = None
    audited: Digest | None = None
    """The z_digest that this node's own audit found for the tip's winner."""
    chain: dict[int, tuple[Block, Certificate]] = field(default_factory=dict)
    faults: list[Payload] = field(default_factory=list)
    outcomes: list[Finalise] = field(default_factory=list)
    timers: dict[Timer, int] = field(default_factory=dict)
    passed: set[ModelCommitment] = field(default_factory=set)
    """Claims whose zero check passed here."""

    @property
    def clock(self) -> Milliseconds:
        return Milliseconds(self.sim.now + self.skew_ms)

    def boot(self) -> None:
        self.is_up, self.life = True, self.life + 1
        self.timers.clear()
        self.machine = Consensus(self.state, self.certificate, key(self.name), self.disk, self.audited)
        self.sim.log(self, f"boots at height {self.state.height + 1}" + (" with a record" if self.disk else ""))
        if self.sim.monitor is not None:
            self.sim.monitor.booted(self)
        self.feed(Start())
        self.feed(TransactionsWaiting(bool(self.sim.waiting(self.state, self.name))))
        for block in self.sim.work_blocks:
            if block.header.decoded().height == self.state.height + 1 and self.sim.blobs is None:
                self.sim.later(self, self.sim.random.randint(1, 200), BlockAvailable(block))

    def crash(self) -> None:
        self.sim.log(self, "dies")
        self.is_up, self.life, self.machine = False, self.life + 1, None
        if self.name in self.sim.forgetful:
            self.disk = None
        self.sim.at(self.sim.now + self.sim.random.randint(50, 3000), self.boot)

    def feed(self, event: Event) -> None:
        if not self.is_up or self.machine is None:
            return
        try:
            actions = self.machine.step(event, self.clock)
        except ChainError as error:
            if self.sim.is_honest(self.name) and not self.sim.liars:
                raise
            self.sim.log(self, f"refuses a {type(event).__name__}: {error}")
            return
        if self.sim.monitor is not None and self.sim.is_honest(self.name):
            self.sim.monitor.heard(self, event)
        survive = len(actions)
        if self.sim.now < self.sim.link.calm_ms and self.sim.random.random() < self.sim.link.crash:
            survive = self.sim.random.randint(0, len(actions))
        dies = self.sim.now < self.sim.link.calm_ms and self._is_locking(actions)
        for action in actions[:survive]:
            self.do(action)
        if dies and survive == len(actions) and self.is_up and self.machine is not None:
            survive = -1
        if survive < len(actions) and self.is_up:
            self.crash()

    def _is_locking(self, actions: Sequence[Action]) -> bool:
        """Whether a precommit for a block is among them, and the dice say that this kills the node."""
        if not self.sim.link.crash_locked:
            return False
        for action in actions:
            if isinstance(action, Broadcast) and isinstance(action.message, SignedVote):
                vote = remembered(Vote, action.message.vote)
                if vote.step is Step.PRECOMMIT and vote.block_hash != NIL and vote.validator == key(self.name).public_key:
                    return self.sim.random.random() < self.sim.link.crash_locked
        return False

    def do(self, action: Action) -> None:
        sim = self.sim
        match action:
            case Persist(record):
                self.disk = record
            case Broadcast(message):
                if sim.monitor is not None and sim.is_honest(self.name):
                    sim.monitor.sent(self.name, message)
                sim.send(self, message)
            case Relay(message):
                sim.send(self, message)
            case SetTimer(timer, delay_ms):
                self.set_timer(timer, delay_ms)
            case NeedBlock(round_):
                waiting = sim.waiting(self.state, self.name)
                built = build.build_transaction_block(self.state, key(self.name), self.certificate, waiting)
                sim.later(self, 5, BlockBuilt(round_, built.block))
            case RequestBlock(block_hash):
                sim.fetch(self, block_hash)
            case RequestWork(claim):
                sim.fetch_work(self, claim)
            case AuditClaim(_, claim):
                sim.audit(self, claim)
            case Finalise():
                self.outcomes.append(action)
                self.finish(action.block, action.certificate, action.state, action.verdicts)
            case Faulty(evidence):
                sim.log(self, f"has evidence: {type(evidence).__name__} of {accused(evidence).hex()[:8]}")
                if sim.monitor is not None and sim.is_honest(self.name):
                    sim.monitor.accused(self, evidence)
                self.faults.append(evidence)

    def set_timer(self, timer: Timer, delay_ms: int) -> None:
        """A second timer of the same kind and key replaces the first."""
        self.timers[timer] = number = self.timers.get(timer, 0) + 1
        life, height = self.life, self.state.height

        def fire() -> None:
            if (self.life, self.state.height) == (life, height) and self.timers.get(timer) == number:
                self.feed(Timeout(timer))

        self.sim.at(self.sim.now + max(0, delay_ms), fire)

    def finish(self, block: Block, certificate: Certificate, state: State, verdicts: tuple[SignedVerdict, ...] = ()) -> None:
        """The height is decided: on disk, and on to the next one."""
        self.sim.note(self, block, certificate, state)
        self.chain[state.height] = (block, certificate)
        header = block.header.decoded()
        won = None if header.vm is None else header.vm.model_commitment
        self.audited = some("z") if won in self.passed else None
        self.state, self.certificate, self.disk = state, certificate, None
        self.sim.decided_verdicts.setdefault(int(state.height), verdicts)
        if state.height < self.sim.stop_height:
            self.boot()
        else:
            self.machine = None


@dataclass
class Sim:
    """A run over ``names``. ``answers[node][pool]`` says what its audit of that pool's claim finds."""

    seed: int
    state: State
    certificate: Certificate | None
    names: list[str]
    stop_height: int
    start_ms: int
    link: Link = field(default_factory=Link)
    liars: frozenset[str] = frozenset()
    answers: dict[str, dict[str, Answer]] = field(default_factory=dict)
    work_blocks: list[Block] = field(default_factory=list)
    audit_delay_ms: int = 300
    skew_ms: int = 0
    transactions: list[SignedTransaction] = field(default_factory=list)
    cut: Callable[[str, str, int], bool] | None = None
    """Whether the link between two nodes is cut at an instant."""
    lost: Callable[[str, str, Message], bool] | None = None
    """Whether a message gets lost between two nodes, however often it is sent, until calm_ms."""
    forgetful: frozenset[str] = frozenset()
    """Liars who lose their disk when they die."""
    monitor: Monitor | None = None
    adversary: Adversary | None = None
    blobs: Blobs | None = None
    reports: bool = False
    """Whether proposers put evidence and the auditors' verdicts on the chain."""
    trace: list[str] | None = None

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.now = self.start_ms
        self.queue: list[tuple[int, int, Callable[[], None]]] = []
        self.count = 0
        self.decided: dict[int, BlockHash] = {}
        self.decided_verdicts: dict[int, tuple[SignedVerdict, ...]] = {}
        self.nodes = {
            n: SimNode(n, self, self.random.randint(-self.skew_ms, self.skew_ms), self.state, self.certificate)
            for n in self.names
        }

    def is_honest(self, name: str) -> bool:
        return name not in self.liars

    def at(self, when: int, call: Callable[[], None]) -> None:
        self.count += 1
        heapq.heappush(self.queue, (when, self.count, call))

    def later(self, node: SimNode, delay_ms: int, event: Event) -> None:
        life, height = node.life, node.state.height

        def arrive() -> None:
            if node.life == life and node.state.height == height:
                node.feed(event)

        self.at(self.now + max(0, delay_ms), arrive)

    def log(self, node: SimNode | None, text: str) -> None:
        if self.trace is not None:
            self.trace.append(f"{self.now - self.start_ms:7d} ms  {'' if node is None else node.name:4} {text}")

    def waiting(self, state: State, proposer: str = "") -> list[SignedTransaction]:
        pairs = [(t, t.decoded()) for t in self.transactions]
        found = [t for t, content in pairs if content.nonce >= state.account(content.sender).nonce]
        if not self.reports or not proposer:
            return found
        return [*self.duties(state, proposer), *found]

    def duties(self, state: State, proposer: str) -> list[SignedTransaction]:
        """What a proposer adds: the verdicts that pay the parent's auditors, and evidence that anybody honest has."""
        payloads: list[Payload] = []
        node = self.nodes[proposer]
        audits = self.decided_verdicts.get(int(state.height), ())
        if state.pot is not None and audits and (node.audited is not None or not self.is_honest(proposer)):
            z_digest = some("z") if self.is_honest(proposer) else some("a guess")
            payloads.append(Verdicts(state.height, z_digest, audits))
        done: set[bytes] = set()
        for peer in self.nodes.values():
            for evidence in peer.faults if self.is_honest(peer.name) else ():
                who = accused(evidence)
                is_open = _has_bond(state, evidence) if isinstance(evidence, PoolFault) else not is_punished(state, who)
                if is_open and who not in done:
                    done.add(who)
                    payloads.append(evidence)
        nonce = state.account(account(proposer)).nonce
        return [build.make_transaction(key(proposer), state.chain_id, nonce + i, Amount(0), p) for i, p in enumerate(payloads)]

    def send(self, node: SimNode, message: Message) -> None:
        self.log(node, f"sends {describe(message)}") if self.trace is not None and _signer_is(message, node.name) else None
        for peer in self.nodes.values():
            if peer is node:
                continue
            if self.adversary is None or self.is_honest(node.name):
                self.deliver(node, peer, self.twist(node, peer, message) if self.adversary is None else message)
            else:
                for other in self.adversary.twist(node, peer, message):
                    self.deliver(node, peer, other)
        if self.adversary is not None and self.is_honest(node.name):
            self.adversary.overhear(node, message)

    def twist(self, node: SimNode, peer: SimNode, message: Message) -> Message:
        """A liar tells every second peer something else."""
        if self.is_honest(node.name) or self.names.index(peer.name) % 2:
            return message
        if isinstance(message, SignedVote):
            vote = decode(Vote, message.vote)
            if vote.validator == key(node.name).public_key:
                known = [h for h in self.seen_blocks(node) if h != vote.block_hash]
                other = NIL if vote.block_hash != NIL or not known else self.random.choice(known)
                return build.make_vote(key(node.name), replace(vote, block_hash=other))
        if isinstance(message, SignedProposal) and node.certificate is not None and not rules.is_work_height(node.state):
            proposal = decode(Proposal, message.proposal)
            if proposal.validator == key(node.name).public_key and proposal.valid_round < 0:
                block = build.build_transaction_block(node.state, key(node.name), node.certificate, []).block
                changed = replace(proposal, block_hash=block.block_hash)
                return build.make_proposal(key(node.name), changed, block)
        return message

    def seen_blocks(self, node: SimNode) -> list[BlockHash]:
        machine = node.machine
        return [] if machine is None else [p.block_hash for p, _ in machine._proposals.values()]

    def deliver(self, node: SimNode, peer: SimNode, message: Message) -> None:
        bad = self.now < self.link.calm_ms
        if self.monitor is not None and not self.is_honest(node.name):
            self.monitor.exists(message)
        if self.cut is not None and self.cut(node.name, peer.name, self.now):
            return
        if bad and (self.random.random() < self.link.drop or (self.lost and self.lost(node.name, peer.name, message))):
            return
        copies = 2 if bad and self.random.random() < self.link.duplicate else 1
        for _ in range(copies):
            delay = self.random.randint(1, self.link.delay_ms if bad else 40)
            self.at(self.now + delay, lambda: self.arrive(node, peer, message))

    def arrive(self, node: SimNode, peer: SimNode, message: Message) -> None:
        if not peer.is_up:
            return
        height = _height(message)
        if height == peer.state.height + 1:
            peer.feed(_event(message))
        elif height > peer.state.height + 1:
            self.sync(peer, node)
        elif node.is_up:
            self.sync(node, peer)

    def compare(self) -> None:
        """Now and then every node asks another one for blocks that it lacks."""
        for node in self.nodes.values():
            peer = self.nodes[self.random.choice(self.names)]
            if node.is_up and peer.is_up and self.is_honest(peer.name):
                self.sync(node, peer)
        self.at(self.now + 2_000, self.compare)

    def sync(self, behind: SimNode, ahead: SimNode) -> None:
        if self.cut is not None and self.cut(behind.name, ahead.name, self.now):
            return
        while (pair := ahead.chain.get(behind.state.height + 1)) is not None and behind.is_up:
            block, certificate = pair
            behind.finish(block, certificate, rules.apply_block(behind.state, block))

    def fetch(self, node: SimNode, block_hash: BlockHash) -> None:
        for peer in self.nodes.values():
            known = None if peer.machine is None else peer.machine.block(block_hash)
            if known is not None and peer is not node:
                self.later(node, 30, BlockAvailable(*known))

    def fetch_work(self, node: SimNode, claim: Entry) -> None:
        if self.blobs is not None:
            return self.blobs.serve_work(node, claim)
        for block in self.work_blocks:
            if block.header.decoded().author_id == claim.pool:
                self.later(node, 50, BlockAvailable(block))
        return None

    def audit(self, node: SimNode, claim: Entry) -> None:
        if self.blobs is not None:
            return self.blobs.serve(node, claim)
        answer = self.answers.get(node.name, {}).get(_pool(claim), "valid")
        if answer in ("no body", "silent"):
            return None
        self.later(node, 20, BodyHeld(commitment_of(claim)))
        if answer == "late malformed":
            # Within audit_ms, and no opening comes: the pool's fault, open_ms later.
            params = node.state.params
            at = self.random.randint(params.audit_ms - 500, params.audit_ms - 1)
            self.later(node, at, OpeningAwaited(commitment_of(claim)))
            fault = replace(found(claim, False), z_digest=None)
            self.later(node, at + params.open_ms + self.random.randint(0, 300), fault)
        elif answer != "no answer":
            self.later(node, self.random.randint(1, self.audit_delay_ms), found(claim, answer == "valid"))
        return None

    def note(self, node: SimNode, block: Block, certificate: Certificate, state: State) -> None:
        height = block.header.decoded().height
        self.log(node, f"finalises {block.block_hash.hex()[:8]} at height {height}, round {certificate.round}")
        if self.is_honest(node.name):
            first = self.decided.setdefault(height, block.block_hash)
            assert first == block.block_hash, f"two blocks are final at height {height} (seed {self.seed})"
            if self.monitor is not None:
                self.monitor.final(node, block, certificate, state)
        assert certificate.block_hash == block.block_hash

    def run(self, limit_ms: int = 120_000) -> int:
        """Until every honest node reached ``stop_height``; returns how long it took. Fails at the limit."""
        for node in self.nodes.values():
            self.at(self.now + self.random.randint(0, 100), node.boot)
        self.at(self.now + 2_000, self.compare)
        self._until(self.start_ms + limit_ms)
        return self.now - self.start_ms

    def go_on(self, limit_ms: int) -> None:
        """One height more."""
        self.stop_height += 1
        for node in self.nodes.values():
            if node.machine is None and node.is_up:
                node.boot()
        self._until(self.now + limit_ms)

    def _until(self, end: int) -> None:
        while self.queue and self.now <= end:
            self.now, _, call = heapq.heappop(self.queue)
            call()
            if all(n.state.height >= self.stop_height for n in self.nodes.values() if self.is_honest(n.name)):
                return
        heights = {n.name: (n.state.height, n.machine.round if n.machine else None) for n in self.nodes.values()}
        raise AssertionError(f"no progress by {end - self.start_ms} ms (seed {self.seed}): {heights}")


def transfers(state: State, count: int) -> list[SignedTransaction]:
    return [
        build.make_transaction(key("other"), state.chain_id, i, Amount(1), Transfer(account("pool5"), Amount(1)))
        for i in range(count)
    ]


def found(claim: Entry, is_true: bool) -> AuditDone:
    """What an audit finds that got its answers."""
    assert claim.claim is not None
    correct = claim.claim.correct if is_true else claim.claim.correct - 1
    kind = VerdictKind.VALID if is_true else VerdictKind.POOL_FAULT
    return AuditDone(commitment_of(claim), kind, Correct(correct), f"N* = {correct}", some("z"))


def accused(evidence: Payload) -> bytes:
    """Whom a fault's evidence is against."""
    match evidence:
        case Equivocation(first=vote):
            return decode(Vote, vote.vote).validator
        case VerdictEquivocation(first=verdict):
            return decode(Verdict, verdict.verdict).validator
        case PoolFault(first=header):
            return header.decoded().author_id
    raise AssertionError(f"{type(evidence).__name__} is no evidence")


def _has_bond(state: State, evidence: PoolFault) -> bool:
    header = evidence.first.decoded()
    entry = None if header.task_id is None else state.entry(header.task_id, header.author_id)
    return entry is not None and entry.held > 0


def decoded(message: Message) -> Vote | Verdict | Proposal:
    match message:
        case SignedVote(vote=data):
            return remembered(Vote, data)
        case SignedVerdict(verdict=data):
            return remembered(Verdict, data)
        case SignedProposal(proposal=data):
            return remembered(Proposal, data)


@functools.lru_cache(maxsize=1 << 14)
def remembered(kind: type[T], data: bytes) -> T:
    """core.codec.decode: every node and every watcher gets the same bytes."""
    return decode(kind, data)


def _signer_is(message: Message, name: str) -> bool:
    return decoded(message).validator == key(name).public_key


def describe(message: Message) -> str:
    match decoded(message):
        case Vote() as v:
            block = "nil" if v.block_hash == NIL else v.block_hash.hex()[:8]
            return f"{v.step.name.lower()} {block}, height {v.height}, round {v.round}"
        case Verdict() as v:
            return f"verdict {v.kind.name.lower()} on {v.model_commitment.hex()[:8]}"
        case Proposal() as p:
            return f"proposal {p.block_hash.hex()[:8]}, height {p.height}, round {p.round}, valid round {p.valid_round}"


def _event(message: Message) -> Event:
    if isinstance(message, SignedVote):
        return ReceivedVote(message)
    return ReceivedProposal(message) if isinstance(message, SignedProposal) else ReceivedVerdict(message)


def _height(message: Message) -> Height:
    """All three start with chain id and height."""
    match message:
        case SignedVote(vote=data) | SignedVerdict(verdict=data) | SignedProposal(proposal=data):
            return Height(int.from_bytes(data[32:40], "big"))


def _pool(claim: Entry) -> str:
    return next(n for n in (f"pool{i}" for i in range(6)) if account(n) == claim.pool)


def audited_by(names: Iterable[str], **answers: Answer) -> dict[str, dict[str, Answer]]:
    return {name: dict(answers) for name in names}
