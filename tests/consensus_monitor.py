"""Watches a simulated network from outside and judges it by the design's rules, with logic of its own.

Nothing of the machine's bookkeeping is used: only what honest nodes hear, sign and finalise. Every rule raises
AssertionError with a sentence that says who broke it.
"""

from __future__ import annotations

import functools
import hashlib
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

from core.chain import verify
from core.chain.block import NIL, Block, BlockKind, Certificate, Header, OutcomeKind
from core.chain.consensus import MAX_PROPOSAL_AHEAD
from core.chain.messages import (
    AuditDone,
    BlockAvailable,
    BlockBuilt,
    BodyHeld,
    Event,
    Message,
    ReceivedProposal,
    ReceivedVerdict,
)
from core.chain.state import Entry, State, total_supply
from core.chain.transaction import Payload, SignedTransaction, Verdicts
from core.chain.vote import (
    DOMAIN_PROPOSAL,
    DOMAIN_VOTE,
    Proposal,
    SignedProposal,
    SignedVerdict,
    SignedVote,
    Step,
    Verdict,
    VerdictKind,
    Vote,
)
from core.chain.work_height import commitment_of
from core.codec import decode
from core.crypto import signing
from core.crypto.hashing import digest
from core.errors import CryptoError, InputError
from core.ids import BlockHash, ModelCommitment
from tests.chainkit import key, some
from tests.consensus_sim import Sim, SimNode, accused, remembered

Known = dict[ModelCommitment, dict[VerdictKind, set[bytes]]]
"""Signers of each kind of verdict on each claim."""
Result = tuple[str, ...]
"""What a set of verdicts leads to: ("won", pool) or ("void", end, end, ...)."""


def is_signed(domain: bytes, data: bytes, signature: bytes, keys: Container[bytes]) -> bool:
    """By a validator, whose key every signed message ends with."""
    try:
        signing.verify(data[-32:], domain, data, signature)
    except CryptoError:
        return False
    return data[-32:] in keys


@functools.lru_cache(maxsize=256)
def readable(data: bytes) -> Block:
    block = decode(Block, data)
    block.decoded_body()
    return block


def whole(signed: SignedProposal) -> Block | None:
    """The block of a proposal. A machine that has the block already does not look at what else claims to be it."""
    try:
        block = readable(signed.block)
    except InputError:
        return None
    return block if block.block_hash == remembered(Proposal, signed.proposal).block_hash else None


def ends_of(known: Known, commitment: ModelCommitment, powers: Mapping[bytes, int]) -> str:
    """adopted, refuted, dead, skipped or open: the design's table, written a second time."""
    total, kinds = sum(powers.values()), known.get(commitment, {})

    def power(*wanted: VerdictKind) -> int:
        return sum(powers[v] for v in set().union(*(kinds.get(k, set()) for k in wanted)))

    for kind, end in (
        (VerdictKind.VALID, "adopted"), (VerdictKind.POOL_FAULT, "refuted"), (VerdictKind.REQUESTER_FAULT, "dead"),
    ):  # fmt: skip
        if power(kind) * 3 > total:
            return end
    return "skipped" if power(*VerdictKind) * 3 >= total * 2 else "open"


def result_of(known: Known, state: State) -> Result | None:
    powers, ends = verify.powers(state.validators), list[str]()
    for entry in ranking(state):
        end = ends_of(known, commitment_of(entry), powers)
        if end == "adopted":
            return ("won", entry.pool.hex())
        if end == "open":
            return None
        ends.append(end)
        if end == "dead":
            break
    return ("void", *ends)


def ranking(state: State) -> list[Entry]:
    """N descending, ties by SHA-256(hash of the claim-closing block, c_W), from the design's words."""
    task = state.current_task
    assert task is not None
    assert task.closing_hash is not None
    closing = task.closing_hash
    claimed = [e for e in state.entries_of(task.task_id) if e.claim is not None]
    return sorted(
        claimed,
        key=lambda e: (-e.claim.correct, digest(b"pofl/claim-tie/1", closing, commitment_of(e))),  # type: ignore[union-attr]
    )


def claim_of(header: Header) -> Result:
    if header.kind is BlockKind.WORK:
        return ("won", header.author_id.hex())
    names = {OutcomeKind.REFUTED: "refuted", OutcomeKind.SKIPPED: "skipped", OutcomeKind.DEAD: "dead"}
    return ("void", *(names[o.kind] for o in header.outcome))


@dataclass
class View:
    """What one honest node heard and signed at its height."""

    known: Known = field(default_factory=dict)
    """In this life."""
    ever: Known = field(default_factory=dict)
    results: set[Result] = field(default_factory=set)
    brought: dict[BlockHash, list[tuple[SignedVerdict, ...]]] = field(default_factory=lambda: defaultdict(list))
    headers: dict[BlockHash, Header] = field(default_factory=dict)
    blocks: dict[BlockHash, Block] = field(default_factory=dict)
    votes: dict[tuple[int, Step], bytes] = field(default_factory=dict)
    proposals: dict[int, bytes] = field(default_factory=dict)
    locked: tuple[int, BlockHash] = (-1, NIL)
    verdicts: dict[ModelCommitment, dict[VerdictKind, bytes]] = field(default_factory=lambda: defaultdict(dict))
    given_ms: dict[ModelCommitment, int] = field(default_factory=dict)
    adopted_unseen: set[ModelCommitment] = field(default_factory=set)
    bodies: set[ModelCommitment] = field(default_factory=set)
    audits: set[ModelCommitment] = field(default_factory=set)


class RuleMonitor:
    """``lies``: the pools whose claims are false. ``quick``: whether the requester answers every honest node in time."""

    def __init__(self, sim: Sim, lies: Iterable[bytes] = (), quick: bool = False) -> None:
        self.sim, self.lies, self.quick = sim, frozenset(lies), quick
        self.supply = total_supply(sim.state)
        self.keys = {bytes(key(n).public_key) for n in sim.names}
        self.views: dict[tuple[str, int], View] = defaultdict(View)
        self.signed: dict[tuple[int, int, Step, BlockHash], set[bytes]] = defaultdict(set)
        """Validators that ever signed a vote, by height, round, step and block."""
        self.proposed: dict[tuple[int, int, BlockHash], set[int]] = defaultdict(set)
        self.certificates: list[tuple[int, int, int]] = []
        """Instant, height, round of every decision of an honest node."""
        self.evidence: set[bytes] = set()
        self.auditors: dict[int, set[str]] = defaultdict(set)
        """Who had audited the winner when its height ended, by the height after it."""

    def fail(self, name: str, text: str) -> None:
        raise AssertionError(f"{name}: {text}")

    # -- what is heard -------------------------------------------------------------------------------------------------

    def booted(self, node: SimNode) -> None:
        view = self.views[node.name, node.state.height + 1]
        view.known = {}
        view.given_ms.clear()
        for commitment, kinds in view.verdicts.items():
            for kind in kinds:
                view.known.setdefault(commitment, {}).setdefault(kind, set()).add(key(node.name).public_key)

    def heard(self, node: SimNode, event: Event) -> None:
        view = self.views[node.name, node.state.height + 1]
        match event:
            case ReceivedVerdict(signed):
                self._learn(node, view, [signed])
            case ReceivedProposal(signed):
                proposal, machine = remembered(Proposal, signed.proposal), node.machine
                # A second proposal of one round, and one of a far round, are dropped with all they bring.
                if machine and machine.block(proposal.block_hash) and proposal.round <= machine.round + MAX_PROPOSAL_AHEAD:
                    self._learn(node, view, signed.verdicts, whole(signed))
            case BlockAvailable(block, verdicts):
                self._learn(node, view, verdicts, block)
            case BlockBuilt(_, block):
                self._learn(node, view, (), block)
            case BodyHeld(commitment):
                view.bodies.add(commitment)
            case AuditDone():
                view.audits.add(event.model_commitment)

    def _learn(self, node: SimNode, view: View, verdicts: Iterable[SignedVerdict], block: Block | None = None) -> None:
        verdicts = tuple(verdicts)
        if block is not None:
            view.headers[block.block_hash] = remembered(Header, block.header.header)
            view.blocks[block.block_hash] = block
            view.brought[block.block_hash].append(verdicts)
        is_new = False
        for verdict in (remembered(Verdict, s.verdict) for s in verdicts):
            view.known.setdefault(verdict.model_commitment, {}).setdefault(verdict.kind, set()).add(verdict.validator)
            signers = view.ever.setdefault(verdict.model_commitment, {}).setdefault(verdict.kind, set())
            is_new |= verdict.validator not in signers
            signers.add(verdict.validator)
        if is_new and node.state.work_claims():
            found = result_of(view.ever, node.state)
            if found is not None:
                view.results.add(found)

    # -- what is signed ------------------------------------------------------------------------------------------------

    def sent(self, name: str, message: Message) -> None:
        """An honest node's broadcast. Of others' messages it only notes that they exist."""
        self.exists(message)
        node, me = self.sim.nodes[name], key(name).public_key
        match message:
            case SignedVote(vote=data):
                vote = remembered(Vote, data)
                if vote.validator == me and vote.height == node.state.height + 1:
                    self._vote(node, self.views[name, vote.height], vote, data)
            case SignedVerdict(verdict=data):
                verdict = remembered(Verdict, data)
                if verdict.validator == me and verdict.height == node.state.height + 1:
                    self._verdict(node, self.views[name, verdict.height], verdict, message)
            case SignedProposal(proposal=data):
                proposal = remembered(Proposal, data)
                if proposal.validator == me:
                    view = self.views[name, proposal.height]
                    first = view.proposals.setdefault(proposal.round, data)
                    if first != data:
                        self.fail(name, f"proposes twice in round {proposal.round} of height {proposal.height}")
                    self._learn(node, view, message.verdicts, readable(message.block))

    def exists(self, message: Message) -> None:
        match message:
            case SignedVote(vote=data, signature=signature):
                if is_signed(DOMAIN_VOTE, data, signature, self.keys):
                    vote = remembered(Vote, data)
                    self.signed[vote.height, vote.round, vote.step, vote.block_hash].add(vote.validator)
            case SignedProposal(proposal=data, signature=signature):
                if is_signed(DOMAIN_PROPOSAL, data, signature, self.keys):
                    proposal = remembered(Proposal, data)
                    self.proposed[proposal.height, proposal.round, proposal.block_hash].add(proposal.valid_round)

    def _quorum(self, state: State, round_: int, step: Step, block_hash: BlockHash) -> bool:
        powers = verify.powers(state.validators)
        power = sum(powers.get(v, 0) for v in self.signed[state.height + 1, round_, step, block_hash])
        return 3 * power >= 2 * sum(powers.values())

    def _vote(self, node: SimNode, view: View, vote: Vote, data: bytes) -> None:
        place = (vote.round, vote.step)
        if place in view.votes:
            if view.votes[place] != data:
                what = f"{vote.step.name.lower()}s in round {vote.round} of height {vote.height}"
                self.fail(node.name, f"signs two different {what}")
            return
        if any(place < other for other in view.votes):
            self.fail(node.name, f"votes in round {vote.round} of height {vote.height} after it voted in a later place")
        view.votes[place] = data
        if vote.block_hash == NIL:
            return
        if vote.step is Step.PRECOMMIT:
            if not self._quorum(node.state, vote.round, Step.PREVOTE, vote.block_hash):
                self.fail(node.name, f"precommits in round {vote.round} what 2/3 did not prevote there")
            view.locked = (vote.round, vote.block_hash)
            return
        valid_rounds = self.proposed[vote.height, vote.round, vote.block_hash]
        if not valid_rounds and node.machine and node.machine.proposer(vote.round) == vote.validator:
            return  # it died between writing its proposal and sending it, and sends votes again first
        if not valid_rounds:
            self.fail(node.name, f"prevotes in round {vote.round} for what nobody proposed there")
        round_, block_hash = view.locked
        if round_ >= 0 and block_hash != vote.block_hash:
            freed = (
                round_ <= r < vote.round and self._quorum(node.state, r, Step.PREVOTE, vote.block_hash) for r in valid_rounds
            )
            if not any(freed):
                self.fail(node.name, f"is locked in round {round_} and prevotes for another block in round {vote.round}")
        is_fresh = valid_rounds == {-1} and block_hash != vote.block_hash
        if node.state.work_claims():
            self._work_vote(node, view, vote, is_fresh)
        elif is_fresh:
            self._plain_vote(node, view, vote)

    def _plain_vote(self, node: SimNode, view: View, vote: Vote) -> None:
        """An empty block waits for the tick; auditors are paid by the digest that this node's audit found, if it audited."""
        state, block = node.state, view.blocks[vote.block_hash]
        transactions = block.decoded_body().transactions
        if not transactions and state.height and node.clock < state.tip.timestamp_ms + state.params.tick_ms:
            self.fail(node.name, f"votes for an empty block {node.clock - state.tip.timestamp_ms} ms after the last one")
        if transactions and node.audited is not None and state.pot is not None:
            payload = decode(SignedTransaction, transactions[0]).decoded().payload
            if isinstance(payload, Verdicts) and payload.z_digest != node.audited:
                self.fail(node.name, "votes for a block that pays auditors by a digest that is not its own audit's")

    def _work_vote(self, node: SimNode, view: View, vote: Vote, is_fresh: bool) -> None:
        state, header = node.state, view.headers.get(vote.block_hash)
        if header is None:
            return self.fail(node.name, "prevotes for a block that it does not have")
        wanted = claim_of(header)
        sets = view.brought[vote.block_hash]
        if wanted not in view.results and not any(self._leads(state, s) == wanted for s in sets):
            self.fail(node.name, f"prevotes for {wanted}, which no verdicts it heard justify")
        if not is_fresh:
            return None
        claims, now = ranking(state), node.clock
        passed = claims[: next((i for i, e in enumerate(claims) if wanted == ("won", e.pool.hex())), len(claims))]
        if wanted[0] == "void":
            passed = passed[: len(wanted) - 1]
        for index, entry in enumerate(passed):
            commitment = commitment_of(entry)
            end = ends_of(view.known, commitment, verify.powers(state.validators))
            said = wanted[index + 1] if wanted[0] == "void" else None
            if end == "adopted" or (end == "dead" and said != "dead"):
                self.fail(node.name, f"prevotes for {wanted} and knows claim {index} {end}")
            if said == "skipped" and end == "refuted":
                self.fail(node.name, f"prevotes to skip claim {index}, which it knows refuted")
            is_skip = said == "skipped" or (said is None and end != "refuted")
            if is_skip and now < view.given_ms.get(commitment, -1) + state.params.gossip_ms:
                self.fail(node.name, f"prevotes to skip claim {index} too soon after its own verdict")
        return None

    def _leads(self, state: State, verdicts: Iterable[SignedVerdict]) -> Result | None:
        known: Known = {}
        for verdict in (remembered(Verdict, s.verdict) for s in verdicts):
            known.setdefault(verdict.model_commitment, {}).setdefault(verdict.kind, set()).add(verdict.validator)
        return result_of(known, state)

    def _verdict(self, node: SimNode, view: View, verdict: Verdict, signed: SignedVerdict) -> None:
        mine, kind = view.verdicts[verdict.model_commitment], verdict.kind
        if mine.get(kind, signed.verdict) != signed.verdict:
            self.fail(node.name, f"signs two different verdicts '{kind.name.lower()}' on one claim")
        if kind in mine:
            return
        if set(mine) - {VerdictKind.UNAVAILABLE}:
            self.fail(node.name, f"gives the verdict '{kind.name.lower()}' after another one that is final")
        is_lie = bytes(verdict.pool) in self.lies
        if kind is (VerdictKind.VALID if is_lie else VerdictKind.POOL_FAULT):
            self.fail(node.name, f"gives the verdict '{kind.name.lower()}' on a claim that is {'false' if is_lie else 'true'}")
        if kind is VerdictKind.REQUESTER_FAULT and self.quick:
            self.fail(node.name, "blames a requester who answers in time")
        if kind is VerdictKind.VALID and not any(
            h.vm is not None and h.vm.model_commitment == verdict.model_commitment for h in view.headers.values()
        ):
            self.fail(node.name, "calls a claim valid whose work block it never had")
        mine[kind] = signed.verdict
        view.given_ms[verdict.model_commitment] = node.clock
        self._learn(node, view, [signed])

    # -- what comes of it ----------------------------------------------------------------------------------------------

    def accused(self, node: SimNode, evidence: Payload) -> None:
        who = accused(evidence)
        names = {key(n).public_key: n for n in self.sim.names}
        if who in names and self.sim.is_honest(names[who]):
            self.fail(node.name, f"has evidence against {names[who]}, who is honest")
        if who in names:
            self.evidence.add(who)

    def final(self, node: SimNode, block: Block, certificate: Certificate, state: State) -> None:
        before, header = node.state, block.header.decoded()
        verify.check_certificate(certificate, before.chain_id, before.validators)
        self.certificates.append((self.sim.now, header.height, certificate.round))
        if total_supply(state) != self.supply:
            self.fail(node.name, f"the supply was {self.supply} and is {total_supply(state)} at height {header.height}")
        if header.kind is BlockKind.WORK and bytes(header.author_id) in self.lies:
            self.fail(node.name, "a false claim is final")
        clocks = [n.clock for n in self.sim.nodes.values() if self.sim.is_honest(n.name)]
        if header.timestamp_ms > max(max(clocks), before.tip.timestamp_ms + 1):
            self.fail(node.name, f"block {header.height} is {header.timestamp_ms - max(clocks)} ms ahead of every honest clock")
        if header.vm is not None and header.vm.model_commitment in node.passed:
            self.auditors[header.height + 1].add(node.name)
        self._pay(node, before, block)

    def _pay(self, node: SimNode, before: State, block: Block) -> None:
        """A block that pays auditors by a wrong digest cannot be final if more than 1/3 of the power is honest and audited."""
        transactions = block.decoded_body().transactions
        if before.pot is None or not transactions:
            return
        payload = decode(SignedTransaction, transactions[0]).decoded().payload
        powers = verify.powers(before.validators)
        power = sum(powers.get(key(n).public_key, 0) for n in self.auditors[before.height + 1])
        if isinstance(payload, Verdicts) and payload.z_digest != some("z") and 3 * power > sum(powers.values()):
            self.fail(node.name, "auditors are paid by a made-up digest")


def fingerprint(sim: Sim) -> str:
    """Of everything that was decided: two runs of one seed must agree."""
    decided = b"".join(h.to_bytes(8, "big") + sim.decided[h] for h in sorted(sim.decided))
    return hashlib.sha256(decided).hexdigest()[:16]
