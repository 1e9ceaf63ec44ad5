"""Builders for tests of the node: keys, a genesis document, and finalised blocks made without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.chain import build, rules
from core.chain.block import Block, Certificate
from core.chain.state import State, genesis_state
from core.chain.transaction import Payload, SignedTransaction
from core.chain.vote import Step, Vote
from core.crypto.signing import KeyPair
from core.ids import AccountId, Amount, Height, Milliseconds, NodeId, Signature
from core.params import PROTOCOL_VERSION, ChainParams, Genesis, GenesisAccount, GenesisValidator
from tests.seeded import SeededRng

GENESIS_MS = Milliseconds(1_700_000_000_000)


def keys(count: int, label: str = "validator") -> tuple[KeyPair, ...]:
    rng = SeededRng(label)
    return tuple(KeyPair.generate(rng) for _ in range(count))


def make_genesis(
    validators: Sequence[KeyPair],
    accounts: Sequence[KeyPair] = (),
    time_ms: int = GENESIS_MS,
    params: ChainParams | None = None,
) -> Genesis:
    return Genesis(
        "pofl-test", PROTOCOL_VERSION, Milliseconds(time_ms),
        tuple(GenesisValidator(NodeId(k.public_key), 1, f"node{i}") for i, k in enumerate(validators)),
        tuple(GenesisAccount(AccountId(k.public_key), Amount(1_000_000), f"user{i}") for i, k in enumerate(accounts)),
        params or ChainParams(),
    )  # fmt: skip


@dataclass(frozen=True)
class Made:
    block: Block
    certificate: Certificate
    state: State
    transactions: tuple[SignedTransaction, ...]


class Maker:
    """Makes finalised transaction blocks, one after another, with every validator's precommit."""

    def __init__(self, genesis: Genesis, validators: Sequence[KeyPair]) -> None:
        self.genesis = genesis
        self.validators = tuple(validators)
        self.state = genesis_state(genesis)
        self.certificate: Certificate | None = None

    def transaction(self, key: KeyPair, payload: Payload, nonce: int | None = None) -> SignedTransaction:
        at = self.state.account(key.public_key).nonce if nonce is None else nonce
        return build.make_transaction(key, self.state.chain_id, at, Amount(1), payload)

    def next(self, *transactions: SignedTransaction) -> Made:
        author = self.validators[self.state.height % len(self.validators)]
        built = build.build_transaction_block(self.state, author, self.certificate, transactions)
        assert not built.dropped
        state = rules.apply_block(self.state, built.block)
        self.certificate = self.certify(built.block, state.height, state.tip.timestamp_ms + 500)
        self.state = state
        return Made(built.block, self.certificate, state, transactions)

    def certify(self, block: Block, height: Height, time_ms: int) -> Certificate:
        votes = []
        for key in self.validators:
            vote = Vote(
                self.state.chain_id, height, 0, Step.PRECOMMIT, block.block_hash, Milliseconds(time_ms), NodeId(key.public_key)
            )
            votes.append((vote, build.make_vote(key, vote)))
        return build.make_certificate(votes)


def tampered(certificate: Certificate) -> Certificate:
    """The same certificate with one signature changed."""
    first = certificate.signatures[0]
    broken = replace(first, signature=Signature(bytes(64)))
    return replace(certificate, signatures=(broken, *certificate.signatures[1:]))
