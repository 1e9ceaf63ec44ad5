"""Liars of a simulated network: up to f validators that act together, pools and a requester who help them.

A liar runs an honest machine and changes what it sends; it also answers what it overhears. All choices come from the
run's seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from core.chain import build, rules, verify
from core.chain.block import NIL, Block
from core.chain.claims import Adopted, Void, outcome_of, tally
from core.chain.messages import BlockAvailable, BodyHeld, Message
from core.chain.state import Entry
from core.chain.verify import is_quorum
from core.chain.vote import Proposal, SignedProposal, SignedVerdict, SignedVote, Step, Verdict, VerdictKind, Vote
from core.chain.work_height import commitment_of
from core.codec import decode
from core.crypto.signing import KeyPair
from core.errors import ChainError
from core.ids import BlockHash, Height, Milliseconds, NodeId, Signature
from tests.chainkit import key, make_verdict, signed_verdict
from tests.consensus_sim import Sim, SimNode, decoded, found, remembered

Trick = Literal["silent", "two votes", "yes", "garbage", "any verdict", "wrong verdict", "own block", "worst", "stale", "clock"]
TRICKS: tuple[Trick, ...] = (
    "silent", "two votes", "yes", "garbage", "any verdict", "wrong verdict", "own block", "worst", "stale", "clock",
)  # fmt: skip
KEPT_SETS = 40


class Liars:
    """``tricks`` by liar. Peers with an odd place hear the truth where a trick tells two things."""

    def __init__(self, sim: Sim, tricks: dict[str, frozenset[Trick]], lies: frozenset[bytes]) -> None:
        self.sim, self.tricks, self.lies = sim, tricks, lies
        self.random = random.Random(sim.seed ^ 0x5EED)
        self.blocks: dict[Height, dict[BlockHash, Block]] = {}
        self.verdicts: dict[Height, dict[SignedVerdict, Verdict]] = {}
        self.said: set[tuple[str, str, int, int, Step]] = set()
        self.proposed: set[tuple[str, int, int]] = set()
        self.prevotes: dict[tuple[int, int, BlockHash], set[bytes]] = {}

    # -- instead of what an honest machine sends ------------------------------------------------------------------------

    def twist(self, node: SimNode, peer: SimNode, message: Message) -> Sequence[Message]:
        mine, tricks = decoded(message), self.tricks[node.name]
        if mine.validator != key(node.name).public_key:
            return [] if "silent" in tricks else [message]
        if "silent" in tricks and self.random.random() < 0.6:
            return []
        is_fooled = self.sim.names.index(peer.name) % 2 == 0
        signer, out = key(node.name), [message]
        match mine:
            case Vote():
                if "clock" in tricks and mine.step is Step.PRECOMMIT:
                    mine = replace(mine, time_ms=Milliseconds(self.random.choice((1, node.clock + 10**9, 2**62))))
                    out = [build.make_vote(signer, mine)]
                if "two votes" in tricks and is_fooled:
                    others = [h for h in (NIL, *self.blocks.get(mine.height, ())) if h != mine.block_hash]
                    out = [build.make_vote(signer, replace(mine, block_hash=self.random.choice(others or [NIL])))]
            case Verdict():
                if "wrong verdict" in tricks or "any verdict" in tricks:
                    out = self._verdicts(node, mine)
            case Proposal() if isinstance(message, SignedProposal):
                self._note(mine.height, message)
                if "own block" in tricks and is_fooled and not rules.is_work_height(node.state):
                    out = [self._other_block(node, mine)]
                if "worst" in tricks:
                    out = [self._worst(node, mine.round) or message]
        if "garbage" in tricks and self.random.random() < 0.3:
            out = [*out, self._garbage(message)]
        if "stale" in tricks and isinstance(mine, Vote) and mine.round:
            old = replace(mine, round=self.random.randrange(mine.round), time_ms=Milliseconds(0), step=Step.PREVOTE)
            out = [*out, build.make_vote(signer, old)]
        return out

    def _verdicts(self, node: SimNode, mine: Verdict) -> list[Message]:
        entry = next(e for e in node.state.work_claims() or () if e.pool == mine.pool)
        is_lie = bytes(entry.pool) in self.lies
        if "any verdict" in self.tricks[node.name]:
            kinds = self.random.sample(list(VerdictKind), self.random.randint(0, 3))
        else:
            kinds = [VerdictKind.VALID if is_lie else VerdictKind.POOL_FAULT]
        audited = self.random.choice((b"z", b"made up"))
        return [signed_verdict(make_verdict(node.state, entry, node.name, k, audited), node.name) for k in kinds]

    def _other_block(self, node: SimNode, proposal: Proposal) -> Message:
        block = build.build_transaction_block(node.state, key(node.name), node.certificate, []).block
        if block.block_hash == proposal.block_hash:
            block = build.build_transaction_block(
                node.state, key(node.name), node.certificate, self.sim.waiting(node.state)
            ).block
        changed = replace(proposal, block_hash=block.block_hash, valid_round=-1)
        self._keep(proposal.height, block)
        return build.make_proposal(key(node.name), changed, block)

    def _worst(self, node: SimNode, round_: int) -> Message | None:
        """The lowest claim, or nobody, that some of the verdicts in the world justify: those that hurt are left out."""
        machine, claims = node.machine, node.state.work_claims()
        height = Height(node.state.height + 1)
        if machine is None or not claims or node.certificate is None or machine.proposer(round_) != key(node.name).public_key:
            return None
        signed = self.verdicts.get(height, {})
        own = [
            signed_verdict(make_verdict(node.state, e, liar, kind), liar)
            for e in claims for liar in self.tricks for kind in (VerdictKind.UNAVAILABLE, VerdictKind.POOL_FAULT)
        ]  # fmt: skip
        validator = NodeId(key(node.name).public_key)
        unproven = self._work_block(node, self.random.choice(claims))
        if unproven is not None and self.random.random() < 0.35:
            proposal = Proposal(node.state.chain_id, height, round_, -1, unproven.block_hash, validator)
            return build.make_proposal(key(node.name), proposal, unproven, tuple(own[:2]))
        for count in range(len(claims), -1, -1):
            # Of the claims that are passed over, verdicts 'valid' are left out, and of one more of them than last time.
            above = {bytes(e.pool) for e in claims[:count]}
            left = [s for s, v in signed.items() if bytes(v.pool) not in above or v.kind is not VerdictKind.VALID]
            chosen = tuple(dict.fromkeys((*left, *own)))
            result = outcome_of(claims, tally((remembered(Verdict, s.verdict) for s in chosen), node.state.validators))
            block = None
            if isinstance(result, Void):
                block = build.build_void_block(node.state, key(node.name), node.certificate, result.outcomes)
            elif isinstance(result, Adopted):
                block = self._work_block(node, result.claim)
            if block is not None:
                proposal = Proposal(node.state.chain_id, height, round_, -1, block.block_hash, validator)
                return build.make_proposal(key(node.name), proposal, block, chosen)
        return None

    def _work_block(self, node: SimNode, entry: Entry) -> Block | None:
        return next((b for b in self.sim.work_blocks if b.header.decoded().author_id == entry.pool), None)

    def _garbage(self, message: Message) -> Message:
        choice = self.random.randrange(4)
        match message:
            case SignedVote(vote, signature):
                if choice == 0:
                    return SignedVote(vote, Signature(bytes(64)))
                if choice == 1:
                    return SignedVote(vote[:-1] + b"\x00", signature)
                return SignedVote(vote[:48] + bytes([self.random.randrange(256)]) + vote[49:], signature)
            case SignedVerdict(verdict, signature):
                return SignedVerdict(verdict + b"\x00", signature) if choice else SignedVerdict(verdict, Signature(bytes(64)))
            case SignedProposal():
                if choice == 0:
                    return replace(message, block=message.block[:-1])
                if choice == 1:
                    return replace(message, signature=Signature(bytes(64)))
                if choice == 2:
                    return replace(message, verdicts=())
                return replace(message, block=message.block[:-7] + bytes([message.block[-7] ^ 1]) + message.block[-6:])

    # -- in answer to what honest nodes send ----------------------------------------------------------------------------

    def overhear(self, sender: SimNode, message: Message) -> None:
        mine = decoded(message)
        if isinstance(message, SignedProposal):
            self._note(mine.height, message)
        if isinstance(message, SignedVerdict) and isinstance(mine, Verdict):
            self.verdicts.setdefault(mine.height, {})[message] = mine
        if mine.validator != key(sender.name).public_key:
            return
        if isinstance(mine, Vote) and mine.step is Step.PREVOTE and mine.block_hash != NIL:
            self.prevotes.setdefault((mine.height, mine.round, mine.block_hash), set()).add(mine.validator)
        for name, tricks in self.tricks.items():
            liar = self.sim.nodes[name]
            if liar.state.height + 1 != mine.height:
                continue
            if "yes" in tricks and isinstance(mine, Vote) and mine.block_hash != NIL:
                self._agree(liar, sender, mine)
            if isinstance(mine, Vote) and ("worst" in tricks or "own block" in tricks):
                self._propose(liar, mine.round + 1)

    def _agree(self, liar: SimNode, peer: SimNode, vote: Vote) -> None:
        """Both votes for what the peer likes, to it, and sometimes to nobody else."""
        for step in Step:
            place = (liar.name, peer.name, vote.height, vote.round, step)
            if place in self.said:
                continue
            self.said.add(place)
            time_ms = Milliseconds(0 if step is Step.PREVOTE else liar.clock)
            changed = replace(vote, step=step, time_ms=time_ms, validator=NodeId(key(liar.name).public_key))
            if self.random.random() < 0.8:
                self._tell(liar, peer, lambda signer, changed=changed: build.make_vote(signer, changed))  # type: ignore[misc]

    def _propose(self, liar: SimNode, round_: int) -> None:
        """A fresh block in a round of its own, whatever is locked: some peers get this one, some that one, some none."""
        machine, height = liar.machine, Height(liar.state.height + 1)
        place = (liar.name, height, round_)
        if machine is None or place in self.proposed or machine.proposer(round_) != key(liar.name).public_key:
            return
        self.proposed.add(place)
        validator = NodeId(key(liar.name).public_key)
        for peer in self.sim.nodes.values():
            if peer is liar or self.random.random() < 0.2:
                continue
            if rules.is_work_height(liar.state):
                message = self._worst(liar, round_)
            else:
                again = self._old_polka(liar, round_, peer)
                known = list(self.blocks.get(height, {}).values())
                block = self.random.choice(known) if known and self.random.random() < 0.3 else self._fresh(liar)
                valid_round = self.random.choice((-1, -1, *range(round_)))
                if again is not None:
                    block, valid_round = again
                proposal = Proposal(liar.state.chain_id, height, round_, valid_round, block.block_hash, validator)
                self._keep(height, block)
                message = build.make_proposal(key(liar.name), proposal, block)
            if message is not None:
                self._tell(liar, peer, lambda _, message=message: message)  # type: ignore[misc]

    def _old_polka(self, liar: SimNode, round_: int, peer: SimNode) -> tuple[Block, int] | None:
        """The earliest block that 2/3 prevoted for in an earlier round, if the liars help: what a later lock is against."""
        powers = verify.powers(liar.state.validators)
        helpers = {key(name).public_key for name in self.tricks}
        for (height, r, block_hash), voters in sorted(self.prevotes.items()):
            block = self.blocks.get(Height(height), {}).get(block_hash)
            power = sum(powers.get(v, 0) for v in voters | helpers)
            if height != liar.state.height + 1 or r >= round_ or block is None or not is_quorum(power, sum(powers.values())):
                continue
            for name in self.tricks:
                helper = NodeId(key(name).public_key)
                vote = Vote(liar.state.chain_id, Height(height), r, Step.PREVOTE, block_hash, Milliseconds(0), helper)
                self.sim.deliver(liar, peer, build.make_vote(key(name), vote))
            return block, r
        return None

    def _fresh(self, liar: SimNode) -> Block:
        waiting = self.sim.waiting(liar.state)
        try:
            return build.build_transaction_block(
                liar.state, key(liar.name), liar.certificate, waiting[: self.random.randint(0, len(waiting))]
            ).block
        except ChainError as error:
            raise AssertionError(f"a liar cannot build a block: {error}") from error

    def _tell(self, liar: SimNode, peer: SimNode, make: Callable[[KeyPair], Message]) -> None:
        self.sim.deliver(liar, peer, make(key(liar.name)))

    def _note(self, height: Height, message: SignedProposal) -> None:
        self._keep(height, decode(Block, message.block))

    def _keep(self, height: Height, block: Block) -> None:
        known = self.blocks.setdefault(height, {})
        if len(known) < KEPT_SETS:
            known.setdefault(block.block_hash, block)


Style = Literal["all", "none", "half", "third", "late", "two"]
Answers = Literal["all", "none", "half", "third", "until", "late"]


@dataclass
class Supply:
    """One claim: is it true, who gets its body and its work block, and when."""

    is_true: bool = True
    body: Style = "all"
    work: Style = "all"
    body_late_ms: int = 0


class Accomplices:
    """Pools and requester. Bodies, work blocks and answers come outside the validators' gossip, and survive its faults."""

    def __init__(self, sim: Sim, supplies: dict[bytes, Supply], answers: Answers, blocks: dict[bytes, list[Block]]) -> None:
        self.sim, self.supplies, self.answers, self.blocks = sim, supplies, answers, blocks
        self.random = random.Random(sim.seed ^ 0xB10B)
        self.order = self.random.sample(sim.names, len(sim.names))
        self.until_ms = sim.start_ms + self.random.randint(0, 12_000)

    def _among(self, style: str, name: str) -> bool:
        """Whether ``name`` is served: all; exactly half; f + 1; nobody."""
        count, place = len(self.order), self.order.index(name)
        if style in ("half", "third"):
            return place < (-(-count // 2) if style == "half" else (count - 1) // 3 + 1)
        return style != "none"

    def serve(self, node: SimNode, claim: Entry) -> None:
        """Work block, body and answers to a node that audits this claim now."""
        supply, sim = self.supplies[bytes(claim.pool)], self.sim
        self.serve_work(node, claim)
        delay = self.random.randint(20, 300)
        if supply.body == "late":
            delay = supply.body_late_ms + self.random.randint(0, 200)
        if not self._among(supply.body, node.name):
            return
        sim.later(node, delay, BodyHeld(commitment_of(claim)))
        delay += self.random.randint(1, sim.audit_delay_ms)
        if self.answers == "late":
            delay += self.random.randint(0, sim.state.params.audit_ms + 500)
        is_served = self._among(self.answers, node.name) and not (self.answers == "until" and sim.now + delay > self.until_ms)
        # Who lies about a model cannot make the requester's answers wrong: without them there is no finding.
        if is_served:
            life, height = node.life, node.state.height

            def end() -> None:
                if (node.life, node.state.height) == (life, height):
                    node.passed.add(commitment_of(claim)) if supply.is_true else None
                    node.feed(found(claim, supply.is_true))

            sim.at(sim.now + delay, end)

    def serve_work(self, node: SimNode, claim: Entry) -> None:
        supply, blocks = self.supplies[bytes(claim.pool)], self.blocks[bytes(claim.pool)]
        for peer in self.sim.nodes.values():
            held = None if peer.machine is None or peer is node else peer.machine.work_block(commitment_of(claim))
            if held is not None and self.sim.is_honest(peer.name):
                self.sim.later(node, self.random.randint(30, 150), BlockAvailable(held))
                break
        if not self._among(supply.work, node.name):
            return
        block = blocks[self.order.index(node.name) % 2 if supply.work == "two" else 0]
        late = supply.body_late_ms if supply.work == "late" else 0
        self.sim.later(node, late + self.random.randint(10, 200), BlockAvailable(block))
