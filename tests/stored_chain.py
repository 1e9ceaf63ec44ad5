"""A chain with every kind of row that a node stores: transactions, a work height with its verdicts, votes, claims held."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from core.chain import rules, verify
from core.chain.block import Block, Certificate
from core.chain.messages import ConsensusRecord
from core.chain.state import State, genesis_state
from core.chain.vote import SignedVote, VerdictKind
from core.codec import encode
from core.ids import Digest, Height, ModelCommitment, Signature, TxId
from core.params import Genesis
from node.held import WorkPart
from node.rows import AuditTime, transaction_ids
from node.store import ChainStore, WorkRecord
from services.storage import KeyValueStore
from tests.chainkit import Chain, key, make_certificate, make_genesis, make_verdict, signed_verdict

GENESIS: Genesis = make_genesis()
NODE = key("v0").public_key
WORK_PARTS = ((WorkPart.BLOCK, b"block" * 50), (WorkPart.BODY, b"body" * 500))


@dataclass(frozen=True)
class Step:
    """A finalised block with what a node writes at its height."""

    block: Block
    certificate: Certificate
    state: State
    """After it."""
    votes: bytes
    work: WorkRecord | None

    @property
    def height(self) -> Height:
        return self.state.height

    @property
    def transactions(self) -> list[TxId]:
        return transaction_ids(self.block)


@functools.cache
def steps(transfers: int = 0) -> tuple[Step, ...]:
    """Blocks up to a won work height, one more, and some empty ones."""
    chain = Chain(GENESIS)
    states = [genesis_state(GENESIS)]
    chain.to_work_height(pool0=900, pool1=800)
    entry = chain.state.work_claims()
    assert entry is not None
    verdicts = tuple(signed_verdict(make_verdict(chain.state, entry[0], v, VerdictKind.VALID), v) for v in chain.names)
    work = WorkRecord(Digest(b"z" * 32), verdicts, (AuditTime(ModelCommitment(b"c" * 32), 500),), chain.state.validators)
    work_height = chain.state.height + 1
    chain.apply(chain.work_block("pool0"))
    for _ in range(2 + transfers):
        chain.block()
    last = make_certificate(chain.state, chain.clock + 1000, chain.names)
    certificates = [verified(b.decoded_body().parent_certificate) for b in chain.blocks[1:]] + [last]
    found = []
    for block, certificate in zip(chain.blocks, certificates, strict=True):
        states.append(rules.apply_block(states[-1], block))
        height = states[-1].height
        found.append(Step(block, certificate, states[-1], record(height), work if height == work_height else None))
    return tuple(found)


def verified(certificate: Certificate | None) -> Certificate:
    assert certificate is not None
    verify.check_certificate(certificate, GENESIS.chain_id, GENESIS.validators)
    return certificate


def record(height: int, round_: int = 0) -> bytes:
    """What a node writes before it votes."""
    vote = SignedVote(b"vote %d" % height, Signature(bytes(64)))
    empty: tuple[()] = ()
    return encode(
        ConsensusRecord(
            GENESIS.chain_id, Height(height), round_, 1, None, (vote,), empty, -1, b"", empty, -1, b"", empty, empty
        )
    )


def commit(store: ChainStore, step: Step) -> None:
    store.commit(step.block, step.certificate, step.state, step.transactions, step.work)


def live(kv: KeyValueStore, sent: list[bytes], keep: int, last: Callable[[int], None] = lambda _: None) -> ChainStore:
    """As a node runs: votes on disk before they are sent, what it holds of a work height, then the block. Goes on where it
    was. ``sent`` gets what was sent; ``last`` is told the height before its block is stored."""
    store = ChainStore(kv, GENESIS, keep)
    for step in steps()[store.state.height :]:
        store.put_consensus(step.votes)
        sent.append(step.votes)
        if step.work is not None:
            for part, data in WORK_PARTS:
                store.held.put(step.height, part, ModelCommitment(b"c" * 32), data)
        last(step.height)
        commit(store, step)
    return store


def fill(kv: KeyValueStore, keep: int = 0) -> ChainStore:
    return live(kv, [], keep)


__all__ = [
    "GENESIS", "NODE", "WORK_PARTS", "Step", "commit", "fill", "live", "record", "steps",
]  # fmt: skip
