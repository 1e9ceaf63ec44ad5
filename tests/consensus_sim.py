"""A seeded network of consensus machines: delays, drops, reorders, duplicates, crashes, partitions, lies.

Time is simulated. Every node is a ``Consensus`` with what a real node puts around it: a disk (the last Persist), a chain
(synced from whoever is ahead), a mempool of a few transfers, and at a work height a body and an audit per claim.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

import pytest

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
    TransactionsWaiting,
)
from core.chain.state import Entry, State
from core.chain.transaction import Payload, SignedTransaction, Transfer
from core.chain.vote import Proposal, SignedProposal, SignedVerdict, SignedVote, VerdictKind, Vote
from core.chain.work_height import commitment_of
from core.codec import decode
from core.crypto import signing
from core.errors import ChainError
from core.ids import Amount, BlockHash, Correct, Height, Milliseconds
from tests.chainkit import account, key, some

Answer = Literal["valid", "pool_fault", "no body", "no answer", "silent"]


def remember_signatures(monkeypatch: pytest.MonkeyPatch) -> None:
    """All nodes of a simulation verify the same signatures: each is computed once."""
    verify, good = signing.verify, set[tuple[bytes, bytes, bytes, bytes]]()

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
    chain: dict[int, tuple[Block, Certificate]] = field(default_factory=dict)
    faults: list[Payload] = field(default_factory=list)
    outcomes: list[Finalise] = field(default_factory=list)

    @property
    def clock(self) -> Milliseconds:
        return Milliseconds(self.sim.now + self.skew_ms)

    def boot(self) -> None:
        self.is_up, self.life = True, self.life + 1
        self.machine = Consensus(self.state, self.certificate, key(self.name), self.disk)
        self.feed(Start())
        self.feed(TransactionsWaiting(bool(self.sim.waiting(self.state))))
        for block in self.sim.work_blocks:
            if block.header.decoded().height == self.state.height + 1:
                self.sim.later(self, self.sim.random.randint(1, 200), BlockAvailable(block))

    def crash(self) -> None:
        self.is_up, self.life, self.machine = False, self.life + 1, None
        self.sim.at(self.sim.now + self.sim.random.randint(50, 3000), self.boot)

    def feed(self, event: Event) -> None:
        if not self.is_up or self.machine is None:
            return
        try:
            actions = self.machine.step(event, self.clock)
        except ChainError:
            if self.sim.is_honest(self.name) and not self.sim.liars:
                raise
            return
        survive = len(actions)
        if self.sim.now < self.sim.link.calm_ms and self.sim.random.random() < self.sim.link.crash:
            survive = self.sim.random.randint(0, len(actions))
        for action in actions[:survive]:
            self.do(action)
        if survive < len(actions) and self.is_up:
            self.crash()

    def do(self, action: Action) -> None:
        sim = self.sim
        match action:
            case Persist(record):
                self.disk = record
            case Broadcast(message) | Relay(message):
                sim.send(self, message)
            case SetTimer(timer, delay_ms):
                sim.later(self, delay_ms, Timeout(timer))
            case NeedBlock(round_):
                built = build.build_transaction_block(self.state, key(self.name), self.certificate, sim.waiting(self.state))
                sim.later(self, 5, BlockBuilt(round_, built.block))
            case RequestBlock(block_hash):
                sim.fetch(self, block_hash)
            case RequestWork(claim):
                for block in sim.work_blocks:
                    if block.header.decoded().author_id == claim.pool:
                        sim.later(self, 50, BlockAvailable(block))
            case AuditClaim(_, claim):
                sim.audit(self, claim)
            case Finalise():
                self.outcomes.append(action)
                self.finish(action.block, action.certificate, action.state)
            case Faulty(evidence):
                self.faults.append(evidence)

    def finish(self, block: Block, certificate: Certificate, state: State) -> None:
        """The height is decided: on disk, and on to the next one."""
        self.sim.note(self, block, certificate)
        self.chain[state.height] = (block, certificate)
        self.state, self.certificate, self.disk = state, certificate, None
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

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.now = self.start_ms
        self.queue: list[tuple[int, int, Callable[[], None]]] = []
        self.count = 0
        self.decided: dict[int, BlockHash] = {}
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

    def waiting(self, state: State) -> list[SignedTransaction]:
        nonce = state.account(account("other")).nonce
        return [t for t in self.transactions if t.decoded().nonce >= nonce]

    def send(self, node: SimNode, message: Message) -> None:
        for peer in self.nodes.values():
            if peer is not node:
                self.deliver(node, peer, self.twist(node, peer, message))

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
        if self.cut is not None and self.cut(node.name, peer.name, self.now):
            return
        if bad and self.random.random() < self.link.drop:
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
        elif isinstance(message, SignedVote) and node.is_up:
            self.sync(node, peer)

    def sync(self, behind: SimNode, ahead: SimNode) -> None:
        while (pair := ahead.chain.get(behind.state.height + 1)) is not None and behind.is_up:
            block, certificate = pair
            behind.finish(block, certificate, rules.apply_block(behind.state, block))

    def fetch(self, node: SimNode, block_hash: BlockHash) -> None:
        for peer in self.nodes.values():
            known = None if peer.machine is None else peer.machine.block(block_hash)
            if known is not None and peer is not node:
                self.later(node, 30, BlockAvailable(*known))

    def audit(self, node: SimNode, claim: Entry) -> None:
        answer = self.answers.get(node.name, {}).get(_pool(claim), "valid")
        if answer in ("no body", "silent"):
            return
        self.later(node, 20, BodyHeld(commitment_of(claim)))
        if answer == "no answer":
            return
        assert claim.claim is not None
        passed = answer == "valid"
        correct = claim.claim.correct if passed else claim.claim.correct - 1
        kind = VerdictKind.VALID if passed else VerdictKind.POOL_FAULT
        done = AuditDone(commitment_of(claim), kind, Correct(correct), f"N* = {correct}", some("z"))
        self.later(node, self.random.randint(1, self.audit_delay_ms), done)

    def note(self, node: SimNode, block: Block, certificate: Certificate) -> None:
        height = block.header.decoded().height
        if self.is_honest(node.name):
            first = self.decided.setdefault(height, block.block_hash)
            assert first == block.block_hash, f"two blocks are final at height {height} (seed {self.seed})"
        assert certificate.block_hash == block.block_hash

    def run(self, limit_ms: int = 120_000) -> int:
        """Until every honest node reached ``stop_height``; returns how long it took. Fails at the limit."""
        for node in self.nodes.values():
            self.at(self.now + self.random.randint(0, 100), node.boot)
        end = self.start_ms + limit_ms
        while self.queue and self.now <= end:
            self.now, _, call = heapq.heappop(self.queue)
            call()
            if all(n.state.height >= self.stop_height for n in self.nodes.values() if self.is_honest(n.name)):
                return self.now - self.start_ms
        heights = {n.name: (n.state.height, n.machine.round if n.machine else None) for n in self.nodes.values()}
        raise AssertionError(f"no progress in {limit_ms} ms (seed {self.seed}): {heights}")


def transfers(state: State, count: int) -> list[SignedTransaction]:
    return [
        build.make_transaction(key("other"), state.chain_id, i, Amount(1), Transfer(account("pool5"), Amount(1)))
        for i in range(count)
    ]


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
