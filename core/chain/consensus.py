"""Tendermint's algorithm (arXiv 1807.04938, Algorithm 1) with verdicts at work heights, without I/O.

One ``Consensus`` decides one height. Feed it events with ``step``; do the actions it returns, in order. It signs with the
key it is given. Line numbers in comments are those of Algorithm 1. It differs from the paper in these points
(design: consensus, "Work height"):

- ``is_valid`` (the paper's valid) is: the block applies to the parent's state and, at a work height, verdicts justify it;
- a fresh proposal (validRound = -1) must also be *preferred*; until it is, the prevote waits, at most until the timeout;
- round 0 starts when a block is due, or at a work height when this node can justify an outcome, or when more than 1/3 of
  the power votes already;
- a block that 2/3 voted for is asked for by its hash, if its proposal got lost; messages are sent again periodically.

An invalid event raises VoteError, BlockError or WrongChainError and changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from core.chain import build, rules, verify
from core.chain import messages as msg
from core.chain.auditing import Auditing
from core.chain.block import NIL, Block, Certificate
from core.chain.candidates import Candidates
from core.chain.claims import Adopted, Void
from core.chain.messages import Action, Event, RoundStep, Timer, TimerKind
from core.chain.outbox import Outbox
from core.chain.state import State
from core.chain.transaction import Equivocation, VerdictEquivocation
from core.chain.turns import proposer
from core.chain.vote import Proposal, SignedProposal, SignedVerdict, SignedVote, Step, Verdict, Vote
from core.chain.vote_book import VoteBook
from core.chain.work_height import WorkHeight, commitment_of
from core.codec import decode, encode
from core.crypto.signing import KeyPair
from core.errors import VoteError
from core.ids import BlockHash, Digest, Height, Milliseconds, ModelCommitment, NodeId, short

__all__ = ["Consensus", "proposer"]

MAX_PROPOSAL_AHEAD: Final = 4
"""Proposals of later rounds are dropped; they are sent again."""
KEPT_ROUNDS: Final = 3
RESEND_MS: Final = 1_000


class Consensus:
    """Decides the height after ``state``.

    Args:
        state: after the parent; its validators vote.
        certificate: of the parent; None only at height 0. Own proposals are built on it.
        key: this validator's.
        record: what the last ``Persist`` of a former life wrote; of another height it is ignored.
        audited: the z_digest that this node's own audit found for the parent's winner; a Verdicts transaction with another
            one is not preferred.
    """

    def __init__(
        self,
        state: State,
        certificate: Certificate | None,
        key: KeyPair,
        record: bytes | None = None,
        audited: Digest | None = None,
    ) -> None:
        self.state = state
        self.height = Height(state.height + 1)
        self.me = NodeId(key.public_key)
        self.round = -1
        self.phase = RoundStep.WAITING
        self.is_decided = False
        self._params = state.params
        self._certificate = certificate
        self._key = key
        self._power = verify.powers(state.validators)
        self._is_validator = bytes(self.me) in self._power
        self._votes = VoteBook(self._power)
        self._is_work = rules.is_work_height(state)
        self.work = WorkHeight(state, self.me)
        self._blocks = Candidates(state, self.work, audited)
        self._auditing = Auditing(state, key, self.work, self._blocks)
        self._proposals: dict[int, tuple[Proposal, SignedProposal]] = {}
        self._own_votes: dict[tuple[int, Step], SignedVote] = {}
        self._locked: tuple[int, BlockHash] | None = None
        self._valid: tuple[int, BlockHash] | None = None
        self._polka: tuple[SignedVote, ...] = ()
        self._accused = {v.node_id for v in state.validators if v.has_equivocated}
        self._has_transactions = False
        self._now = Milliseconds(0)
        self._out = Outbox(state.params.delta_ms)
        self._dirty = False
        if record is not None:
            self._restore(record)

    # -- the one entry -------------------------------------------------------------------------------------------------

    def step(self, event: Event, now_ms: Milliseconds) -> list[Action]:
        """What ``event`` at ``now_ms`` on this node's clock leads to. After the decision: nothing.

        Raises:
            VoteError, BlockError, WrongChainError: the event's content breaks a rule; nothing changed.
        """
        if self.is_decided:
            return []
        self._now = max(self._now, now_ms)
        match event:
            case msg.Start():
                self._on_start()
            case msg.Timeout(timer):
                self._on_timeout(timer)
            case msg.TransactionsWaiting(waiting):
                self._has_transactions = waiting
            case msg.ReceivedVote(signed_vote):
                self._on_vote(signed_vote)
            case msg.ReceivedProposal(signed_proposal):
                self._on_proposal(signed_proposal)
            case msg.ReceivedVerdict(signed_verdict):
                self._on_verdict(signed_verdict)
            case msg.BlockAvailable(block, verdicts):
                self._take(block, verdicts)
            case msg.BlockBuilt(round_, block):
                self._on_built(round_, block)
            case msg.BodyHeld(commitment):
                self._auditing.hold_body(commitment)
            case msg.AuditDone():
                self._give(self._auditing.on_done(event, self._now))
            case msg.AuditFailed(commitment):
                self._auditing.note_failed(commitment)
            case msg.OpeningAwaited(commitment):
                self._auditing.await_opening(commitment, self._now)
        while not self.is_decided and self._advance():
            pass
        persist: list[Action] = [msg.Persist(self.record())] if self._dirty else []
        self._dirty = False
        return persist + self._out.take()

    def proposer(self, round_: int) -> NodeId:
        return proposer(self.state.validators, self.height, round_)

    # -- events --------------------------------------------------------------------------------------------------------

    def _on_start(self) -> None:
        for entry in self.work.claims:
            if self.work.own_kinds(commitment_of(entry)):
                self.work.note_given(commitment_of(entry), self._now)
        self._resend()
        if self.phase is not RoundStep.WAITING:
            self._out.time(TimerKind.PROPOSE, self.round, self._params.propose_ms)
        self._out.add(msg.SetTimer(Timer(TimerKind.RESEND, 0), RESEND_MS))

    def _on_timeout(self, timer: Timer) -> None:
        kind, key = timer.kind, timer.key
        if kind is TimerKind.RESEND:
            self._out.ask_again()
            self._resend()
            self._out.add(msg.SetTimer(timer, RESEND_MS))
        elif kind is TimerKind.PROPOSE and key == self.round and self.phase is RoundStep.PROPOSE:
            self._prevote(NIL)  # line 57
        elif kind is TimerKind.PREVOTE and key == self.round and self.phase is RoundStep.PREVOTE:
            self._precommit(NIL)  # line 61
        elif kind is TimerKind.PRECOMMIT and key == self.round:
            self._start_round(self.round + 1)  # line 65
        elif kind in (TimerKind.BODY, TimerKind.AUDIT):
            for action in self._auditing.on_timeout(timer, self._now):
                if isinstance(action, msg.SetTimer):
                    self._out.add(action)
                else:
                    self._give([action])
        elif kind is TimerKind.DUE:
            self._out.woke(self._now)

    def _on_vote(self, signed: SignedVote) -> None:
        if self._votes.is_known(signed):
            return
        vote = verify.check_vote(signed, self.state.chain_id, self.height, self._power)
        is_new, evidence = self._votes.add(vote, signed, max(self.round, 0))
        if evidence is not None:
            self._accuse(vote.validator, evidence)
        if is_new:
            self._out.add(msg.Relay(signed))

    def _accuse(self, who: NodeId, evidence: Equivocation | VerdictEquivocation) -> None:
        """Once a height, and only who can still be punished: nobody makes honest nodes flood the chain with reports."""
        if who not in self._accused:
            self._accused.add(who)
            self._out.add(msg.Faulty(evidence))

    def _on_verdict(self, signed: SignedVerdict) -> None:
        if self.work.is_known(signed):
            return
        verdict = self.work.check(signed)
        is_new, evidence = self.work.add(verdict, signed)
        if evidence is not None:
            self._accuse(verdict.validator, evidence)
        if is_new:
            self._out.add(msg.Relay(signed))

    def _give(self, verdicts: list[Action]) -> None:
        """Own verdicts: on disk, then out; a skip of theirs becomes proposable gossip_ms later."""
        if verdicts:
            self._dirty = True
            self._out.extend(verdicts)
            self._out.wake(self._now + self._params.gossip_ms, self._now)

    def _on_proposal(self, signed: SignedProposal) -> None:
        proposal = verify.check_proposal(signed, self.state.chain_id, self.height, self._power)
        if proposal.validator != self.proposer(proposal.round):
            raise VoteError(
                f"a proposal by {short(proposal.validator)}; round {proposal.round} of height {self.height} is "
                f"{short(self.proposer(proposal.round))}'s"
            )
        known = self._proposals.get(proposal.round)
        if proposal.round > self.round + MAX_PROPOSAL_AHEAD:
            return
        if known is not None and known[0].block_hash in self._blocks:
            same = self._blocks.get(proposal.block_hash)
            if same is not None and any(not self.work.is_known(s) for s in signed.verdicts):
                # Verdicts are not signed with the proposal: a first copy may have lost some on its way.
                self._take(same.block, signed.verdicts)
            return
        block = verify.proposed_block(signed, proposal)
        self._take(block, signed.verdicts)
        self._proposals[proposal.round] = (proposal, signed)
        self._out.add(msg.Relay(signed))
        if self.phase is RoundStep.WAITING and proposal.round == 0 and not self._is_work:
            self._start_round(0)

    def _take(self, block: Block, verdicts: Iterable[SignedVerdict] = ()) -> None:
        _, evidence = self._blocks.take(block, verdicts)
        for found in evidence:
            if isinstance(found, VerdictEquivocation):
                self._accuse(decode(Verdict, found.first.verdict, 1024).validator, found)
            else:
                self._out.add(msg.Faulty(found))

    def _on_built(self, round_: int, block: Block) -> None:
        if round_ == self.round and self.phase is RoundStep.PROPOSE and self._may_propose():
            self._take(block)
            self._propose(block.block_hash, -1)

    # -- rules that fire whenever they can -----------------------------------------------------------------------------

    def _advance(self) -> bool:
        """Fires at most one rule; True if one fired."""
        if self._decide():
            return True
        self._follow_claims()
        if self.phase is RoundStep.WAITING:
            return self._begin()
        later = self._votes.busiest_round_after(self.round)
        if later is not None:
            self._start_round(later)  # line 55
            return True
        if self.phase is RoundStep.PROPOSE:
            return self._try_propose() or self._try_prevote()
        return self._after_prevote()

    def _decide(self) -> bool:
        """Line 49: 2/3 precommits of any round for a valid block."""
        for round_ in self._votes.rounds():
            block_hash = self._votes.quorum_block(round_, Step.PRECOMMIT)
            if block_hash is None or block_hash == NIL:
                continue
            known = self._blocks.get(block_hash)
            if known is not None:  # among 2/3 that precommitted more than 1/3 are honest and saw it justified
                self._blocks.is_valid(block_hash)
                certificate = build.make_certificate(self._votes.votes(round_, Step.PRECOMMIT, block_hash))
                self.is_decided = True
                justified = self._blocks.verdicts_for(block_hash)
                self._out.add(msg.Finalise(known.block, certificate, known.state, justified, self.work.all_signed()))
                return True
            self._out.ask(msg.RequestBlock(block_hash))
        return False

    def _follow_claims(self) -> None:
        self._give(self._auditing.waiting(self._now))
        self._out.extend(self._auditing.follow())
        wanted = self._auditing.wanted_work()
        if wanted is not None:
            self._out.ask(wanted)

    def _begin(self) -> bool:
        """Whether round 0 starts now; at other heights than work heights, sets a timer for when it may."""
        if self._votes.has_third():
            self._start_round(0)
            return True
        if self._is_work:
            if self.work.is_ripe(self._now, self._params.gossip_ms):
                self._start_round(0)
                return True
            return False
        at = rules.due_ms(self.state, self._has_transactions)
        if self._now >= at:
            self._start_round(0)
            return True
        self._out.wake(at, self._now)
        return False

    def _start_round(self, round_: int) -> None:
        """Line 11."""
        self.round, self.phase = round_, RoundStep.PROPOSE
        self._out.time(TimerKind.PROPOSE, round_, self._params.propose_ms)
        self._dirty = True
        self._own_votes = {k: v for k, v in self._own_votes.items() if k[0] > round_ - KEPT_ROUNDS}

    def _may_propose(self) -> bool:
        return self._is_validator and self.proposer(self.round) == self.me and self.round not in self._proposals

    def _try_propose(self) -> bool:
        """Lines 14 to 19: the valid block of an earlier round, else a new one."""
        if not self._may_propose():
            return False
        if self._valid is not None:
            self._propose(self._valid[1], self._valid[0])
            return True
        if not self._is_work:
            self._out.ask(msg.NeedBlock(self.round))
            return False
        if not self.work.is_ripe(self._now, self._params.gossip_ms):
            return False
        found = self.work.found
        if isinstance(found, Adopted):
            work_block = self._blocks.work_block(commitment_of(found.claim))
            if work_block is None:
                return False
            block_hash = work_block
        elif isinstance(found, Void) and self._certificate is not None:
            block = build.build_void_block(self.state, self._key, self._certificate, found.outcomes)
            self._take(block)
            block_hash = block.block_hash
        else:
            return False
        if not self._blocks.is_valid(block_hash):
            return False
        self._propose(block_hash, -1)
        return True

    def _propose(self, block_hash: BlockHash, valid_round: int) -> None:
        proposal = Proposal(self.state.chain_id, self.height, self.round, valid_round, block_hash, self.me)
        known = self._blocks.get(block_hash)
        assert known is not None
        signed = build.make_proposal(self._key, proposal, known.block, self._blocks.verdicts_for(block_hash))
        self._proposals[self.round] = (proposal, signed)
        self._dirty = True
        self._out.add(msg.Broadcast(signed))
        if valid_round >= 0:
            self._out.extend(msg.Broadcast(v) for v in self._polka)

    def _try_prevote(self) -> bool:
        """Lines 22 and 28. A fresh proposal that is not valid or preferred yet waits until the propose timeout."""
        if self.round not in self._proposals:
            return False
        proposal = self._proposals[self.round][0]
        block_hash, valid_round = proposal.block_hash, proposal.valid_round
        locked_round, locked = self._locked if self._locked is not None else (-1, NIL)
        if valid_round < 0:
            if locked_round >= 0 and locked != block_hash:
                self._prevote(NIL)
            elif self._blocks.is_valid(block_hash) and (locked == block_hash or self._is_preferred(block_hash)):
                self._prevote(block_hash)
            else:
                return False
            return True
        if not self._votes.has_quorum(valid_round, Step.PREVOTE, block_hash) or not self._blocks.is_valid(block_hash):
            return False
        self._prevote(block_hash if locked_round <= valid_round or locked == block_hash else NIL)
        return True

    def _is_preferred(self, block_hash: BlockHash) -> bool:
        at = self._blocks.preferred_from(block_hash, self._now)
        if at is not None and at > self._now:
            self._out.wake(at, self._now)
        return at is not None and at <= self._now

    def _after_prevote(self) -> bool:
        """Lines 34 to 47."""
        round_ = self.round
        chosen = self._votes.quorum_block(round_, Step.PREVOTE)
        if chosen is not None and chosen != NIL:
            if self._blocks.is_valid(chosen):
                if self.phase is RoundStep.PREVOTE:
                    self._locked = (round_, chosen)
                    self._set_valid(round_, chosen)
                    self._precommit(chosen)
                    return True
                if self._valid is None or self._valid[0] < round_:
                    self._set_valid(round_, chosen)
                    return True
            else:
                self._out.ask(msg.RequestBlock(chosen))
        elif chosen == NIL and self.phase is RoundStep.PREVOTE:
            self._precommit(NIL)
            return True
        if self.phase is RoundStep.PREVOTE and self._votes.has_quorum(round_, Step.PREVOTE):
            self._out.time_once(TimerKind.PREVOTE, round_, self._params.prevote_ms)
        if self._votes.has_quorum(round_, Step.PRECOMMIT):
            self._out.time_once(TimerKind.PRECOMMIT, round_, self._params.precommit_ms)
        return False

    def _set_valid(self, round_: int, block_hash: BlockHash) -> None:
        self._valid = (round_, block_hash)
        by_signer = {v.validator: s for v, s in self._votes.votes(round_, Step.PREVOTE, block_hash)}
        self._polka = tuple(by_signer[v] for v in sorted(by_signer))
        self._dirty = True

    # -- sending -------------------------------------------------------------------------------------------------------

    def _prevote(self, block_hash: BlockHash) -> None:
        self.phase = RoundStep.PREVOTE
        self._vote(Step.PREVOTE, block_hash, Milliseconds(0))

    def _precommit(self, block_hash: BlockHash) -> None:
        self.phase = RoundStep.PRECOMMIT
        self._vote(Step.PRECOMMIT, block_hash, Milliseconds(max(self._now, self.state.tip.timestamp_ms + 1)))

    def _vote(self, step: Step, block_hash: BlockHash, time_ms: Milliseconds) -> None:
        self._dirty = True
        if not self._is_validator or (self.round, step) in self._own_votes:
            return
        vote = Vote(self.state.chain_id, self.height, self.round, step, block_hash, time_ms, self.me)
        signed = build.make_vote(self._key, vote)
        self._own_votes[(self.round, step)] = signed
        self._votes.add(vote, signed, self.round)
        self._out.add(msg.Broadcast(signed))

    def _resend(self) -> None:
        """What others may lack: of this round all votes and the proposal, own votes before, own verdicts, the polka."""
        for signed_verdict in self.work.all_signed():
            self._out.add(msg.Broadcast(signed_verdict))
        if self.round < 0:
            return
        for _, signed in sorted(self._own_votes.items()):
            self._out.add(msg.Broadcast(signed))
        own = {s.vote for s in self._own_votes.values()}
        for step in Step:
            self._out.extend(msg.Broadcast(s) for _, s in self._votes.votes(self.round, step) if s.vote not in own)
        if self.round in self._proposals:
            proposal, signed_proposal = self._proposals[self.round]
            self._out.add(msg.Broadcast(signed_proposal))
            if proposal.valid_round >= 0:
                votes = self._votes.votes(proposal.valid_round, Step.PREVOTE, proposal.block_hash)
                self._out.extend(msg.Broadcast(s) for _, s in votes)

    # -- for the node --------------------------------------------------------------------------------------------------

    def block(self, block_hash: BlockHash) -> tuple[Block, tuple[SignedVerdict, ...]] | None:
        """A block that applies at this height, and what justified it: for peers that ask."""
        known = self._blocks.get(block_hash)
        return None if known is None else (known.block, self._blocks.verdicts_for(block_hash))

    def work_block(self, commitment: ModelCommitment) -> Block | None:
        """The work block that came for a claim: for peers that ask."""
        block_hash = self._blocks.work_block(commitment)
        known = None if block_hash is None else self._blocks.get(block_hash)
        return None if known is None else known.block

    # -- what survives a restart ---------------------------------------------------------------------------------------

    def record(self) -> bytes:
        """The bytes of ``Persist``."""
        own = self._proposals.get(self.round)
        locked, valid = self._blocks.pack(self._locked), self._blocks.pack(self._valid)
        return encode(
            msg.ConsensusRecord(
                self.state.chain_id, self.height, self.round, int(self.phase),
                own[1] if own is not None and own[0].validator == self.me else None,
                tuple(s for _, s in sorted(self._own_votes.items())), self.work.own(), *locked, *valid, self._polka,
            )
        )  # fmt: skip

    def _restore(self, data: bytes) -> None:
        """Goes on where the record was written. Raises MalformedError, or what its parts raise: they were checked then."""
        old = decode(msg.ConsensusRecord, data)
        if old.chain_id != self.state.chain_id or old.height != self.height:
            return
        self.round, self.phase = old.round, RoundStep(old.step)
        for signed_verdict in old.verdicts:
            self.work.add(self.work.check(signed_verdict), signed_verdict)
        self._locked = self._blocks.unpack(old.locked_round, old.locked_block, old.locked_verdicts)
        self._valid = self._blocks.unpack(old.valid_round, old.valid_block, old.valid_verdicts)
        for signed in (*old.votes, *old.polka):
            vote = verify.check_vote(signed, self.state.chain_id, self.height, self._power)
            self._votes.add(vote, signed, self.round)
            if vote.validator == self.me:
                self._own_votes[(vote.round, vote.step)] = signed
        self._polka = old.polka
        if old.proposal is not None:
            proposal = verify.check_proposal(old.proposal, self.state.chain_id, self.height, self._power)
            self._blocks.take(verify.proposed_block(old.proposal, proposal), old.proposal.verdicts)
            self._proposals[proposal.round] = (proposal, old.proposal)
