"""Makes signed things: transactions, votes, verdicts, headers, blocks, certificates.

The twin of core.chain.verify and core.chain.rules: what is built here passes there. A pool builds its work block from a
tip's public data alone, without a State.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from core.chain import rules, rules_tasks, verify
from core.chain.block import (
    DOMAIN_HEADER_SIGNATURE,
    MAX_BODY,
    NIL,
    Accuracy,
    Block,
    BlockKind,
    Body,
    Certificate,
    CommitSignature,
    Header,
    Outcome,
    Payout,
    SignedHeader,
    Vm,
)
from core.chain.state import State, state_root
from core.chain.transaction import (
    DOMAIN_TRANSACTION_SIGNATURE,
    Payload,
    SignedTransaction,
    Transaction,
    Verdicts,
)
from core.chain.versions import version_at
from core.chain.vote import (
    DOMAIN_PROPOSAL,
    DOMAIN_VERDICT,
    DOMAIN_VOTE,
    Proposal,
    SignedProposal,
    SignedVerdict,
    SignedVote,
    Step,
    Verdict,
    Vote,
)
from core.codec import encode
from core.crypto.signing import KeyPair, sign
from core.errors import BlockError, InputError, TransactionError
from core.ids import AccountId, Amount, BlockHash, Digest, Height, Milliseconds, StateRoot, TaskId, TxId

__all__ = [
    "BuiltBlock", "Dropped", "build_transaction_block", "build_void_block", "build_work_block", "make_block",
    "make_certificate", "make_proposal", "make_transaction", "make_verdict", "make_vote", "sign_header",
]  # fmt: skip

BODY_RESERVE: Final = 64 * 1024
"""Kept free of transactions for the parent's certificate."""
MAX_TAKEN: Final = 500
"""Transactions of one block: every voter applies them within propose_ms."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """A transaction that does not apply in the block being built. TOO_EARLY and BAD_NONCE ones may later."""

    tx_id: TxId
    error: TransactionError


@dataclass(frozen=True, slots=True)
class BuiltBlock:
    block: Block
    dropped: tuple[Dropped, ...]
    left_out: int
    """Transactions for which there was no room."""


def make_transaction(key: KeyPair, chain_id: Digest, nonce: int, fee: Amount, payload: Payload) -> SignedTransaction:
    """A transaction of ``key``'s account."""
    data = encode(Transaction(chain_id, AccountId(key.public_key), nonce, fee, payload))
    return SignedTransaction(data, sign(key, DOMAIN_TRANSACTION_SIGNATURE, data))


def make_vote(key: KeyPair, vote: Vote) -> SignedVote:
    data = encode(vote)
    return SignedVote(data, sign(key, DOMAIN_VOTE, data))


def make_verdict(key: KeyPair, verdict: Verdict) -> SignedVerdict:
    data = encode(verdict)
    return SignedVerdict(data, sign(key, DOMAIN_VERDICT, data))


def make_proposal(key: KeyPair, proposal: Proposal, block: Block, verdicts: Sequence[SignedVerdict] = ()) -> SignedProposal:
    data = encode(proposal)
    return SignedProposal(data, sign(key, DOMAIN_PROPOSAL, data), block.to_bytes(), tuple(verdicts))


def make_certificate(votes: Iterable[tuple[Vote, SignedVote]]) -> Certificate:
    """The certificate of precommits that agree on height, round and block, one a validator.

    Raises:
        BlockError: there is none, or they do not agree.
    """
    chosen = {vote.validator: (vote, signed) for vote, signed in votes}
    places = {(v.height, v.round, v.block_hash, v.step) for v, _ in chosen.values()}
    if len(places) != 1:
        raise BlockError(f"a certificate needs precommits for one block, got {len(places)} different ones")
    height, round_, block_hash, step = places.pop()
    if step is not Step.PRECOMMIT or block_hash == NIL:
        raise BlockError("a certificate is made of precommits for a block")
    signatures = tuple(
        CommitSignature(validator, vote.time_ms, signed.signature) for validator, (vote, signed) in sorted(chosen.items())
    )
    return Certificate(height, round_, block_hash, signatures)


def sign_header(key: KeyPair, header: Header) -> SignedHeader:
    data = encode(header)
    return SignedHeader(data, sign(key, DOMAIN_HEADER_SIGNATURE, data))


def make_block(key: KeyPair, header: Header, body: Body) -> Block:
    return Block(sign_header(key, header), encode(body))


def build_transaction_block(
    state: State, key: KeyPair, certificate: Certificate | None, transactions: Sequence[SignedTransaction]
) -> BuiltBlock:
    """A transaction block on ``state``, which ``certificate`` made final, with those transactions that apply, in order.

    A Verdicts transaction for the parent goes first. Raises BlockError if it is a work height.
    """
    if rules.is_work_height(state):
        raise BlockError(f"height {state.height + 1} is a work height: it takes a work or void block")
    height, time_ms, author = Height(state.height + 1), rules.next_time(state, certificate), AccountId(key.public_key)
    # The block's hash is not known yet; no transaction's fate depends on it (rules._transition).
    trial = rules_tasks.close_windows(rules.open_block(state, height, time_ms), height, NIL, time_ms)
    taken: list[bytes] = []
    dropped: list[Dropped] = []
    room = MAX_BODY - BODY_RESERVE
    left_out = 0
    for signed in sorted(transactions, key=lambda s: not _pays_auditors(s, state)):
        data = signed.to_bytes()
        if len(data) + 4 > room or len(taken) >= MAX_TAKEN:
            left_out += 1
            continue
        try:
            trial = rules.apply_transaction(trial, signed, rules.Context(state, height, len(taken), time_ms, author))
        except TransactionError as error:
            dropped.append(Dropped(signed.tx_id, error))
            continue
        taken.append(data)
        room -= len(data) + 4
    body = Body(certificate, (), tuple(taken))
    header = Header(
        version_at(state, height), state.chain_id, height, state.tip.block_hash, verify.body_root((), body.transactions),
        state_root(state), time_ms, BlockKind.TRANSACTION, None, None, None, (), author,
    )  # fmt: skip
    return BuiltBlock(make_block(key, header, body), tuple(dropped), left_out)


def _pays_auditors(signed: SignedTransaction, state: State) -> bool:
    if state.pot is None:
        return False
    try:
        payload = signed.decoded().payload
    except InputError:
        return False
    return isinstance(payload, Verdicts) and payload.height == state.pot.height


def build_void_block(state: State, key: KeyPair, certificate: Certificate, outcomes: Sequence[Outcome]) -> Block:
    """The void block that ends the current task with these ends of its claims, in rank order."""
    body = Body(certificate, (), ())
    height = Height(state.height + 1)
    header = Header(
        version_at(state, height), state.chain_id, height, state.tip.block_hash, verify.body_root((), ()),
        state_root(state), rules.next_time(state, certificate), BlockKind.VOID, state.current, None, None,
        tuple(outcomes), AccountId(key.public_key),
    )  # fmt: skip
    return make_block(key, header, body)


def build_work_block(
    key: KeyPair,
    *,
    chain_id: Digest,
    height: Height,
    parent_hash: BlockHash,
    parent_state_root: StateRoot,
    certificate: Certificate,
    time_ms: Milliseconds,
    task_id: TaskId,
    accuracy: Accuracy,
    vm: Vm,
    payouts: Sequence[Payout],
    version: int,
) -> Block:
    """A pool's work block, from what a node says of its tip; ``version``: of the protocol at its height.

    ``time_ms`` is ``verify.block_time`` of the parent and ``certificate``; ``payouts`` are positive, one an account, and sum
    to ``ledger.work_payout_total``. Keep the block: a second one on the same parent burns the pool's bond (PoolFault).
    """
    body = Body(certificate, tuple(payouts), ())
    header = Header(
        version, chain_id, height, parent_hash, verify.body_root(payouts, ()), parent_state_root, time_ms,
        BlockKind.WORK, task_id, accuracy, vm, (), AccountId(key.public_key),
    )  # fmt: skip
    return make_block(key, header, body)
