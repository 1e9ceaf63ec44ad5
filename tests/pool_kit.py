"""Builders for tests of the pool: a task as the chain shows it, and verdicts on its claims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from core.chain.block import Receipt, Vm
from core.chain.build import make_verdict
from core.chain.state import Validator
from core.chain.transaction import Activation, TaskSpec
from core.chain.vote import Verdict, VerdictKind
from core.codec import encode
from core.crypto.signing import KeyPair
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
from services.rpc.views import EntryView, TaskPhase, TaskView
from tests.seeded import SeededRng

CHAIN = Digest(b"c" * 32)
HEIGHT = Height(9)
TASK = TaskId(b"t" * 32)
T0 = 1_700_000_000_000


def keys(count: int, label: str) -> tuple[KeyPair, ...]:
    rng = SeededRng(label)
    return tuple(KeyPair.generate(rng) for _ in range(count))


NODES = keys(4, "validators")
VALIDATORS = tuple(Validator(NodeId(k.public_key), 1, Amount(0), False) for k in NODES)


def spec() -> TaskSpec:
    none = Digest(bytes(32))
    return TaskSpec(
        "digits", 64, 10, 400, (16,), Activation.SIGMOID, 10, 127_000_000, none, (), none, none, "127.0.0.1:1", 4224
    )


def entry(number: int, correct: int | None = None, bond: int = 50_000) -> EntryView:
    """Pool ``number`` (1, 2, ...), with a claim if ``correct`` is given."""
    c_w = ModelCommitment(bytes([number]) * 32)
    vm = Vm(c_w, Digest(bytes(32)), Receipt(Digest(bytes(32)), Signature(bytes(64))))
    view = EntryView(AccountId(bytes([100 + number]) * 32), Amount(bond), "127.0.0.1:2")
    if correct is None:
        return view
    return replace(view, model_commitment=c_w, correct=Correct(correct), vm=vm)


def task(phase: TaskPhase = TaskPhase.WORK, entries: Sequence[EntryView] = ()) -> TaskView:
    return TaskView(
        task_id=TASK, requester=AccountId(b"r" * 32), spec=spec(), reward=Amount(1_000_000), bond=Amount(1_000_000),
        min_pool_bond=Amount(50_000), task_nonce=b"n" * 32, published_height=Height(2), phase=phase,
        expires_ms=Milliseconds(T0 + 10**6), start_ms=Milliseconds(T0), entry_close_ms=Milliseconds(T0 + 5_000),
        commit_close_ms=Milliseconds(T0 + 24_000), claim_close_ms=Milliseconds(T0 + 31_000), entries=tuple(entries),
    )  # fmt: skip


def verdict(
    node: int, claim: EntryView, kind: VerdictKind, height: Height = HEIGHT, chain: Digest = CHAIN, reason: str = ""
) -> bytes:
    """An encoded, signed verdict of validator number ``node`` on a claim."""
    assert claim.vm is not None
    assert claim.correct is not None
    is_valid = kind is VerdictKind.VALID
    content = Verdict(
        chain, height, TASK, claim.pool, claim.vm.model_commitment, kind, claim.correct if is_valid else Correct(0), reason,
        Digest(b"g" * 32 if is_valid else bytes(32)), NodeId(NODES[node].public_key),
    )  # fmt: skip
    return encode(make_verdict(NODES[node], content))
