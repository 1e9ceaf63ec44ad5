"""A small chain to test on: keys, a genesis document, and a driver that makes certified blocks."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from core.chain import build, claims, ledger, merkle, rules
from core.chain.block import Accuracy, Block, Certificate, Outcome, Payout, Receipt, Vm
from core.chain.rules_tasks import least_leak_bits
from core.chain.state import Entry, State, genesis_state, state_root, total_supply
from core.chain.transaction import (
    DOMAIN_APPROVAL,
    Activation,
    Approval,
    Claim,
    Commit,
    EnterTask,
    JoinValidator,
    LeaveValidator,
    Payload,
    PublishTask,
    ScheduleUpgrade,
    SignedTransaction,
    Stored,
    TaskSpec,
    approval_message,
    task_id,
)
from core.chain.versions import version_at
from core.chain.vote import SignedVerdict, Step, Verdict, VerdictKind, Vote
from core.crypto.signing import KeyPair, sign
from core.ids import (
    AccountId,
    Amount,
    Correct,
    Digest,
    Height,
    Milliseconds,
    ModelCommitment,
    NodeId,
    Signature,
    TaskId,
)
from core.params import PROTOCOL_VERSION, ChainParams, Genesis, GenesisAccount, GenesisValidator

GENESIS_MS = 1_800_000_000_000
FUNDS = 10_000_000
Change = TypeVar("Change", JoinValidator, LeaveValidator, ScheduleUpgrade)


@functools.cache
def key(name: str) -> KeyPair:
    return KeyPair.from_seed(hashlib.sha256(name.encode()).digest())


def account(name: str) -> AccountId:
    return AccountId(key(name).public_key)


def some(name: str) -> Digest:
    return Digest(hashlib.sha256(name.encode()).digest())


@functools.cache
def make_genesis(validators: int = 4, params: ChainParams | None = None) -> Genesis:
    names = [f"v{i}" for i in range(validators)]
    people = ["requester", "other", "provider", *(f"pool{i}" for i in range(6))]
    return Genesis(
        "test",
        PROTOCOL_VERSION,
        Milliseconds(GENESIS_MS),
        tuple(GenesisValidator(NodeId(key(n).public_key), 1, n) for n in names),
        tuple(GenesisAccount(account(n), Amount(FUNDS), n) for n in people),
        ChainParams() if params is None else params,
    )


def make_spec(params: ChainParams, name: str = "digits") -> TaskSpec:
    blobs = (some("features"), some("labels"))
    spec = TaskSpec(
        name, 64, 10, 1000, (16,), Activation.RELU, 10, 1_000_000, merkle.root(blobs), blobs, some("pk"), some("practice"),
        "127.0.0.1:1", 0,
    )  # fmt: skip
    return replace(spec, leak_bits=least_leak_bits(spec, params))


def make_commitment(state: State, task: TaskId, pool: str, model: str) -> ModelCommitment:
    """Of the body whose digest is ``some(model)``."""
    return claims.model_commitment(state.chain_id, task, account(pool), some(model))


def make_claim(state: State, task: TaskId, pool: str, model: str, correct: int) -> Claim:
    return Claim(task, Correct(correct), make_vm(state, task, pool, model), some(model))


def make_vm(state: State, task: TaskId, pool: str, model: str, requester: str = "requester") -> Vm:
    commitment, circuit, keys = make_commitment(state, task, pool, model), some(model + "/circuit"), some(model + "/keys")
    message = claims.receipt_message(state.chain_id, task, account(pool), commitment, circuit, keys)
    return Vm(commitment, circuit, Receipt(keys, sign(key(requester), b"pofl/receipt/1", message)))


def make_certificate(state: State, time_ms: int, signers: Sequence[str], round_: int = 0) -> Certificate:
    votes = []
    for name in signers:
        vote = Vote(
            state.chain_id, state.height, round_, Step.PRECOMMIT, state.tip.block_hash, Milliseconds(time_ms),
            NodeId(key(name).public_key),
        )  # fmt: skip
        votes.append((vote, build.make_vote(key(name), vote)))
    return build.make_certificate(votes)


def make_verdict(
    state: State, entry: Entry, validator: str, kind: VerdictKind, audited: bytes = b"z", correct: int | None = None
) -> Verdict:
    assert entry.claim is not None
    passed = kind in (VerdictKind.VALID, VerdictKind.POOL_FAULT)
    node = NodeId(key(validator).public_key)
    commitment = entry.claim.vm.model_commitment
    mark = claims.tag(state.chain_id, entry.task_id, commitment, some(audited.hex()), node)
    found = correct if correct is not None else entry.claim.correct if kind is VerdictKind.VALID else 0
    return Verdict(
        state.chain_id, Height(state.height + 1), entry.task_id, entry.pool, commitment, kind, Correct(found),
        kind.name.lower(), mark if passed else Digest(bytes(32)), node,
    )  # fmt: skip


def signed_verdict(verdict: Verdict, validator: str) -> SignedVerdict:
    return build.make_verdict(key(validator), verdict)


@dataclass
class Chain:
    """Applies certified blocks one after another and checks after each that no money appeared or vanished."""

    genesis: Genesis = field(default_factory=make_genesis)
    state: State = field(init=False)
    blocks: list[Block] = field(default_factory=list)
    clock: int = GENESIS_MS
    nonces: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.state = genesis_state(self.genesis)
        self.supply = total_supply(self.state)

    @property
    def names(self) -> list[str]:
        return [v.name for v in self.genesis.validators]

    def certificate(self) -> Certificate | None:
        return None if self.state.height == 0 else make_certificate(self.state, self.clock, self.voters)

    @property
    def voters(self) -> list[str]:
        """Who votes for the tip."""
        return [self.name_of(v.node_id) for v in self.state.validators_at(self.state.height)]

    def name_of(self, node: bytes) -> str:
        known = {bytes(account(name)): name for name in (*self.names, "other", *(f"pool{i}" for i in range(6)))}
        return known[node]

    def approved(self, payload: Change, *signers: str) -> Change:
        """A change of the validators with these signatures."""
        message = approval_message(self.state.chain_id, replace(payload, approvals=()))
        made = [Approval(NodeId(key(s).public_key), sign(key(s), DOMAIN_APPROVAL, message)) for s in signers]
        return replace(payload, approvals=tuple(sorted(made, key=lambda a: a.validator)))

    def tx(self, sender: str, payload: Payload, fee: int = 1, nonce: int | None = None) -> SignedTransaction:
        if nonce is None:
            nonce = self.nonces.get(sender, self.state.account(account(sender)).nonce)
            self.nonces[sender] = nonce + 1
        return build.make_transaction(key(sender), self.state.chain_id, nonce, Amount(fee), payload)

    def apply(self, block: Block) -> State:
        before = state_root(self.state)
        old = self.state
        self.state = rules.apply_block(old, block)
        assert state_root(old) == before
        assert total_supply(self.state) == self.supply
        self.blocks.append(block)
        self.nonces.clear()
        return self.state

    def block(self, *transactions: SignedTransaction, author: str = "v0", after_ms: int = 1000) -> State:
        """A transaction block in which every transaction must apply; its parent was final ``after_ms`` later."""
        self.clock += after_ms
        built = build.build_transaction_block(self.state, key(author), self.certificate(), transactions)
        for dropped in built.dropped:
            raise dropped.error
        return self.apply(built.block)

    def refused(self, transaction: SignedTransaction, after_ms: int = 1000) -> str:
        """Why a block would drop this transaction; the chain does not move."""
        self.clock += after_ms
        built = build.build_transaction_block(self.state, key("v0"), self.certificate(), [transaction])
        self.clock -= after_ms
        self.nonces.clear()
        assert len(built.dropped) == 1, "it was taken"
        return built.dropped[0].error.reason

    def until(self, time_ms: int) -> State:
        """An empty block of the time ``time_ms``."""
        self.clock = time_ms
        return self.block(after_ms=0)

    # -- a task's life -------------------------------------------------------------------------------------------------

    def publish(self, reward: int = 1_000_000, name: str = "digits", requester: str = "requester") -> TaskId:
        """Published and stored by all: current after the second block, T0 in the third."""
        payload = PublishTask(
            make_spec(self.state.params, name), Amount(reward), Amount(reward), Amount(reward // 20), some(name),
            Milliseconds(self.clock + 10_000_000),
        )  # fmt: skip
        self.block(self.tx(requester, payload))
        found = task_id(self.state.chain_id, account(requester), some(name))
        self.block(*(self.tx(v, Stored(found), fee=0) for v in self.names[: -(-2 * len(self.names) // 3)]))
        return found

    def enter(self, task: TaskId, *pools: str, bond: int = 100_000) -> None:
        self.block()
        self.block(*(self.tx(p, EnterTask(task, Amount(bond), "127.0.0.1:2")) for p in pools))
        windows = self.state.windows(task)
        assert windows is not None
        self.until(windows.entry_close_ms)

    def commit(self, task: TaskId, **models: str) -> None:
        self.block(*(self.tx(p, Commit(task, make_commitment(self.state, task, p, m))) for p, m in models.items()))
        windows = self.state.windows(task)
        assert windows is not None
        self.until(windows.commit_close_ms)

    def claim(self, task: TaskId, models: dict[str, str], **correct: int) -> None:
        self.block(*(self.tx(p, make_claim(self.state, task, p, models[p], n)) for p, n in correct.items()))
        windows = self.state.windows(task)
        assert windows is not None
        self.until(windows.claim_close_ms)

    def to_work_height(self, **correct: int) -> TaskId:
        """A task with these claims whose next height is the work height."""
        task = self.publish()
        models = {pool: f"model of {pool}" for pool in correct}
        self.enter(task, *correct)
        self.commit(task, **models)
        self.claim(task, models, **correct)
        assert rules.is_work_height(self.state)
        return task

    def work_block(self, pool: str, change: Callable[[dict[str, object]], None] | None = None, after_ms: int = 1000) -> Block:
        """The pool's work block on the tip; ``change`` may spoil its parts."""
        self.clock += after_ms
        state, certificate = self.state, self.certificate()
        assert state.current is not None
        assert certificate is not None
        entry = state.entry(state.current, account(pool))
        assert entry is not None
        assert entry.claim is not None
        task = state.tasks[state.current]
        shares = ledger.split_payout(ledger.work_payout_total(task.reward, state.params), (1, 1, 1))
        parts: dict[str, object] = {
            "version": version_at(state, state.height + 1),
            "chain_id": state.chain_id,
            "height": Height(state.height + 1),
            "parent_hash": state.tip.block_hash,
            "parent_state_root": state_root(state),
            "certificate": certificate,
            "time_ms": rules.next_time(state, certificate),
            "task_id": task.task_id,
            "accuracy": Accuracy(entry.claim.correct, task.published.spec.samples),
            "vm": entry.claim.vm,
            "payouts": tuple(Payout(account(f"{pool}/miner{i}"), share) for i, share in enumerate(shares)),
        }
        if change is not None:
            change(parts)
        return build.build_work_block(key(pool), **parts)  # type: ignore[arg-type]

    def void_block(self, outcomes: Sequence[Outcome], author: str = "v0") -> Block:
        self.clock += 1000
        certificate = self.certificate()
        assert certificate is not None
        return build.build_void_block(self.state, key(author), certificate, outcomes)


def unsigned() -> Signature:
    return Signature(bytes(64))
