"""The state transition: ``apply_block(state, block) -> State`` (design: consensus).

Everything is a function of the parent's state and the block's bytes: no clock, no verdicts. At a work height the verdicts
that justify a block travel outside it and are core.chain.consensus's to judge; a node that syncs needs certificates only.
An invalid block or transaction raises and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from core.chain import evidence, rules_leaks, rules_market, rules_tasks, rules_validators, verify, versions
from core.chain.block import MAX_BODY, MAX_HEADER, Accuracy, Block, BlockKind, Body, Certificate, Header, OutcomeKind
from core.chain.ledger import credit, debit, work_payout_total
from core.chain.state import Entry, State, Task, TaskEnd, TaskPhase, Tip, state_root
from core.chain.transaction import (
    DOMAIN_TRANSACTION_SIGNATURE,
    Bid,
    ChunkReceipt,
    Claim,
    Commit,
    EnterTask,
    Equivocation,
    JoinValidator,
    LeaveValidator,
    OpenMarks,
    Payload,
    PoolFault,
    PublishTask,
    Refusal,
    RegisterProvider,
    ReportLeak,
    ScheduleUpgrade,
    SignedTransaction,
    Stored,
    Transaction,
    Transfer,
    VerdictEquivocation,
    Verdicts,
)
from core.crypto import signing
from core.errors import BlockError, CryptoError, InputError, TransactionError, WrongChainError
from core.ids import AccountId, Amount, Height, Milliseconds, short

__all__ = [
    "Context", "apply_block", "apply_transaction", "check_transaction", "check_waiting", "decode_transaction", "due",
    "due_ms", "is_fee_free", "is_work_height", "next_time",
]  # fmt: skip

MAX_NONCE_AHEAD: Final = 64
"""How far a waiting transaction's nonce may be ahead of its account's."""
MAX_REMEMBERED: Final = 2048
"""Bytes of a transaction whose good signature is remembered."""
SIGNATURES: Final = signing.Remembered(8192)
"""Of small transactions: each is checked for the mempool, again for every block while it waits, and in its own."""
_NOBODY: Final = AccountId(bytes(32))
"""Author of no block: a fee that is tried comes back to nobody."""
_FEE_FREE: Final = (Stored, Verdicts, PoolFault, Equivocation, VerdictEquivocation)


@dataclass(frozen=True, slots=True)
class Context:
    """Where a transaction stands."""

    parent: State
    """Before the block."""
    height: Height
    index: int
    time_ms: Milliseconds
    author: AccountId
    """Of the block: the fee is hers."""


def apply_block(state: State, block: Block) -> State:
    """The state after ``block``, a child of the block that ``state`` is after.

    Raises:
        BlockError: a rule is broken; the message says which, with both values.
        WrongChainError: it is a block of another chain.
    """
    header, body = _decode(block)
    check_header(state, header)
    verify.check_body(header, body)
    _check_time(state, header, body)
    verify.check_header_signature(block.header)
    root = state_root(state)
    if header.parent_state_root != root:
        raise BlockError(
            f"block at height {header.height}: parent_state_root {header.parent_state_root.hex()}, here it is {root.hex()}"
        )
    return _transition(state, header, body, block)


def next_time(state: State, certificate: Certificate | None) -> Milliseconds:
    """The timestamp of a block on this state's tip, which ``certificate`` finalised (None at height 0). Raises BlockError."""
    return verify.block_time(state.tip.height, state.tip.timestamp_ms, certificate, state.validators_at(state.tip.height))


def is_work_height(state: State) -> bool:
    """Whether the next block must be a work or void block."""
    task = state.current_task
    return task is not None and task.claim_closed is not None


def check_header(state: State, header: Header) -> None:
    """The checks that need neither body nor signatures: place, kind, author, fields. Raises BlockError, WrongChainError."""
    where = f"block at height {header.height}"
    if header.chain_id != state.chain_id:
        raise WrongChainError(f"{where}: of chain {short(header.chain_id)}, this is {short(state.chain_id)}")
    if header.height != state.height + 1 or header.prev_hash != state.tip.block_hash:
        raise BlockError(
            f"{where} on {short(header.prev_hash)}; the tip is {short(state.tip.block_hash)} at height {state.height}"
        )
    versions.check_known(state)
    version = versions.version_at(state, header.height)
    if header.version != version:
        raise BlockError(f"{where}: protocol version {header.version}, at this height it is {version}")
    is_work = is_work_height(state)
    if (header.kind is not BlockKind.TRANSACTION) != is_work:
        raise BlockError(f"{where}: a {header.kind.name.lower()} block, but it is {'a' if is_work else 'no'} work height")
    has_work_fields = (header.accuracy is not None, header.vm is not None, header.task_id is not None, bool(header.outcome))
    wanted = {
        BlockKind.TRANSACTION: (False, False, False, False),
        BlockKind.WORK: (True, True, True, False),
        BlockKind.VOID: (False, False, True, True),
    }[header.kind]
    if has_work_fields != wanted:
        raise BlockError(f"{where}: a {header.kind.name.lower()} block has fields of another kind, or lacks its own")
    if header.task_id is not None and header.task_id != state.current:
        raise BlockError(f"{where}: for task {short(header.task_id)}, which is not the current one")
    if header.kind is BlockKind.WORK:
        _claim_of(state, header)
    elif bytes(header.author_id) not in {bytes(v.node_id) for v in state.validators}:
        raise BlockError(f"{where}: its author {short(header.author_id)} is no validator")
    if header.kind is BlockKind.VOID:
        _check_outcome(state, header)


def _claim_of(state: State, header: Header) -> Entry:
    """The claim that a work header is for. Raises BlockError unless it says exactly what the claim says."""
    task = state.current_task
    entry = None if task is None else state.entry(task.task_id, header.author_id)
    if task is None or entry is None or entry.claim is None:
        raise BlockError(f"work block by {short(header.author_id)}, who has no claim in the current task")
    right = Accuracy(entry.claim.correct, task.published.spec.samples)
    if header.accuracy != right:
        raise BlockError(f"work block by {short(header.author_id)}: accuracy {header.accuracy}, the claim says {right}")
    if header.vm != entry.claim.vm:
        raise BlockError(f"work block by {short(header.author_id)}: its vm is not that of the claim")
    return entry


def _check_outcome(state: State, header: Header) -> None:
    claims = state.work_claims() or ()
    ranked = [e.claim.vm.model_commitment for e in claims if e.claim is not None]
    listed = [o.model_commitment for o in header.outcome]
    is_dead = header.outcome[-1].kind is OutcomeKind.DEAD
    if listed != (ranked[: len(listed)] if is_dead else ranked):
        raise BlockError(f"void block at height {header.height}: its outcome does not list the claims in rank order")
    if any(o.kind is OutcomeKind.DEAD for o in header.outcome[:-1]):
        raise BlockError(f"void block at height {header.height}: its outcome goes on after a dead claim")


def _check_time(state: State, header: Header, body: Body) -> None:
    certificate = body.parent_certificate
    if certificate is not None:
        if (certificate.height, certificate.block_hash) != (state.height, state.tip.block_hash):
            raise BlockError(f"block at height {header.height}: its certificate is for another block than its parent")
        verify.check_certificate(certificate, state.chain_id, state.validators_at(state.height))
    expected = next_time(state, certificate)
    if header.timestamp_ms != expected:
        raise BlockError(
            f"block at height {header.height}: time {header.timestamp_ms}, its certificate gives {expected}",
            time_ms=header.timestamp_ms, expected=expected,
        )  # fmt: skip


def _decode(block: Block) -> tuple[Header, Body]:
    for name, data, limit in (("header", block.header.header, MAX_HEADER), ("body", block.body, MAX_BODY)):
        if len(data) > limit:
            raise BlockError(f"block {short(block.block_hash)}: {name} of {len(data)} bytes, at most {limit}")
    try:
        return block.header.decoded(), block.decoded_body()
    except InputError as error:
        raise BlockError(f"block {short(block.block_hash)}: {error.message}") from None


def _transition(state: State, header: Header, body: Body, block: Block) -> State:
    """What the block does. Nothing before its own hash's first use depends on it, so builders need not know it."""
    height, time_ms, parent = header.height, header.timestamp_ms, state
    if header.kind is not BlockKind.WORK and body.payouts:
        raise BlockError(f"block at height {height}: only work blocks have payouts")
    if header.kind is not BlockKind.TRANSACTION and body.transactions:
        raise BlockError(f"block at height {height}: transactions wait while a work height is decided")
    state = open_block(state, header.height, time_ms)
    if header.kind is BlockKind.TRANSACTION:
        state = rules_tasks.close_windows(state, height, block.block_hash, time_ms)
        for index, data in enumerate(body.transactions):
            context = Context(parent, height, index, time_ms, header.author_id)
            try:
                state = apply_transaction(state, decode_transaction(data), context)
            except TransactionError as error:
                raise BlockError(
                    f"block at height {height}, transaction {index}: {error.message}", reason=error.reason
                ) from error
        state = rules_tasks.select_current(state, height)
    else:
        task = state.current_task
        assert task is not None
        state = _work(state, header, body, task) if header.kind is BlockKind.WORK else _void(state, header, task)
    if parent.pot is not None:
        state = evidence.close_pot(state)
    state = rules_market.run_trades(state, parent, header.kind, height, block.block_hash, time_ms)
    state = rules_validators.rotate(versions.advance(state, height), parent)
    return state.after(parent, Tip(height, block.block_hash, time_ms, header.kind, header.author_id))


def open_block(state: State, height: Height, time_ms: Milliseconds) -> State:
    """What time does at the start of any block: T0, bonds given back, tasks expired."""
    state = rules_tasks.set_start(state, height, time_ms)
    state = rules_tasks.settle_claimants(state, time_ms)
    state = rules_validators.release_bonds(state, time_ms)
    return rules_tasks.expire_tasks(state, height, time_ms)


def _work(state: State, header: Header, body: Body, task: Task) -> State:
    entry = _claim_of(state, header)
    total = work_payout_total(task.reward, state.params)
    paid = sum(p.amount for p in body.payouts)
    if paid != total or any(p.amount <= 0 for p in body.payouts):
        raise BlockError(
            f"work block at height {header.height}: payouts sum to {paid}, must be positive and sum to {total}",
            paid=paid, total=total,
        )  # fmt: skip
    if len({p.account for p in body.payouts}) != len(body.payouts):
        raise BlockError(f"work block at height {header.height}: an account is paid twice")
    state = rules_tasks.win(state, entry, header.height, header.timestamp_ms)
    for payout in body.payouts:
        state = credit(state, payout.account, payout.amount)
    return state


def _void(state: State, header: Header, task: Task) -> State:
    end = TaskEnd.DEAD if header.outcome[-1].kind is OutcomeKind.DEAD else TaskEnd.VOID_BLOCK
    state = rules_tasks.apply_outcomes(state, task, header.outcome)
    return rules_tasks.end_task(state, state.tasks[task.task_id], end, header.height, header.timestamp_ms)


# -- transactions ------------------------------------------------------------------------------------------------------


def decode_transaction(data: bytes) -> SignedTransaction:
    """Raises TransactionError."""
    try:
        return SignedTransaction.from_bytes(data)
    except InputError as error:
        raise TransactionError(f"transaction: {error.message}", Refusal.MALFORMED) from None


def is_fee_free(payload: Payload) -> bool:
    """Duties and evidence, which limit themselves, cost nothing: a validator without money can still do them."""
    return isinstance(payload, _FEE_FREE)


def apply_transaction(state: State, signed: SignedTransaction, context: Context) -> State:
    """The state after one transaction. Raises TransactionError with a Refusal."""
    tx = _verified(state, signed)
    account = state.account(tx.sender)
    if tx.nonce != account.nonce:
        raise TransactionError(
            f"nonce {tx.nonce}; the next of {short(tx.sender)} is {account.nonce}",
            Refusal.BAD_NONCE, nonce=tx.nonce, expected=account.nonce,
        )  # fmt: skip
    state = debit(state, tx.sender, tx.fee, used=1)
    return _dispatch(credit(state, context.author, tx.fee), tx, context)


def check_transaction(state: State, signed: SignedTransaction) -> Transaction:
    """Whether the transaction may wait for a block on ``state``'s tip.

    If its nonce is the account's next it is tried on ``state``; a later one is checked for form, signature and whether its
    sender could pay the fee. Without a fee only a validator's waits for another one: whoever has no money could otherwise
    fill every mempool.

    Raises:
        TransactionError: ``reason`` TOO_EARLY if it may become good, another Refusal if it will not.
    """
    tx = _verified(state, signed)
    check_waiting(state, signed, tx)
    return tx


def check_waiting(state: State, signed: SignedTransaction, tx: Transaction) -> None:
    """As ``check_transaction`` for one that passed it on an earlier tip; ``tx``: what it decodes to. Form and signature do not
    change with the tip."""
    account = state.account(tx.sender)
    if not account.nonce <= tx.nonce < account.nonce + MAX_NONCE_AHEAD:
        raise TransactionError(
            f"nonce {tx.nonce}; the next of {short(tx.sender)} is {account.nonce}, and at most {MAX_NONCE_AHEAD} may wait",
            Refusal.BAD_NONCE, nonce=tx.nonce, expected=account.nonce,
        )  # fmt: skip
    if tx.nonce == account.nonce:
        index = 0 if isinstance(tx.payload, Verdicts) else 1
        time_ms = Milliseconds(state.tip.timestamp_ms + 1)
        apply_transaction(state, signed, Context(state, Height(state.height + 1), index, time_ms, _NOBODY))
    elif tx.fee > account.balance or (tx.fee == 0 and tx.sender not in {bytes(v.node_id) for v in state.validators}):
        raise TransactionError(
            f"account {short(tx.sender)} has {account.balance}: it cannot pay for a transaction that must wait for others",
            Refusal.INSUFFICIENT_FUNDS, balance=account.balance, needed=max(tx.fee, state.params.min_fee),
        )  # fmt: skip


def _verified(state: State, signed: SignedTransaction) -> Transaction:
    try:
        tx = signed.decoded()
    except InputError as error:
        raise TransactionError(f"transaction: {error.message}", Refusal.MALFORMED) from None
    if tx.chain_id != state.chain_id:
        raise TransactionError(
            f"transaction for chain {short(tx.chain_id)}, this is {short(state.chain_id)}", Refusal.WRONG_CHAIN
        )
    least = Amount(0) if is_fee_free(tx.payload) else state.params.least_fee(len(signed.transaction))
    if tx.fee < least:
        raise TransactionError(f"a fee of {tx.fee}; at least {least} is asked", Refusal.FEE_TOO_LOW, fee=tx.fee, least=least)
    try:
        if len(signed.transaction) <= MAX_REMEMBERED:
            SIGNATURES.verify(tx.sender, DOMAIN_TRANSACTION_SIGNATURE, signed.transaction, signed.signature)
        else:
            signing.verify(tx.sender, DOMAIN_TRANSACTION_SIGNATURE, signed.transaction, signed.signature)
    except CryptoError as error:
        raise TransactionError(f"transaction: {error.message}", Refusal.BAD_SIGNATURE) from None
    return tx


def _dispatch(state: State, tx: Transaction, context: Context) -> State:
    match tx.payload:
        case Transfer() as p:
            if p.amount <= 0:
                raise TransactionError(f"a transfer of {p.amount}", Refusal.OUT_OF_RANGE)
            return credit(debit(state, tx.sender, p.amount), p.to, p.amount)
        case PublishTask() as p:
            return rules_tasks.publish(state, tx, p, context.index, context.time_ms)
        case Stored() as p:
            return rules_tasks.stored(state, tx, p)
        case EnterTask() as p:
            return rules_tasks.enter(state, tx, p, context.index)
        case Commit() as p:
            return rules_tasks.commit(state, tx, p)
        case Claim() as p:
            return rules_tasks.claim(state, tx, p)
        case RegisterProvider() as p:
            return rules_market.register(state, tx, p)
        case Bid() as p:
            return rules_market.bid(state, context.parent, tx, p, context.time_ms)
        case ChunkReceipt() as p:
            return rules_market.chunk_receipt(state, p, context.time_ms)
        case ReportLeak() as p:
            return rules_leaks.report_leak(state, tx, p, context.height, context.time_ms)
        case OpenMarks() as p:
            return rules_leaks.open_marks(state, context.parent, p)
        case Verdicts() as p:
            return evidence.verdicts(state, p, context.index, context.height)
        case PoolFault() as p:
            return evidence.pool_fault(state, p)
        case Equivocation() as p:
            return evidence.equivocation(state, p, context.height)
        case VerdictEquivocation() as p:
            return evidence.verdict_equivocation(state, p, context.height)
        case JoinValidator() as p:
            return rules_validators.join(state, tx, p, context.height)
        case LeaveValidator() as p:
            return rules_validators.leave(state, p, context.height, context.time_ms)
        case ScheduleUpgrade() as p:
            return versions.schedule(state, p, context.height)


# -- when the next block is due ----------------------------------------------------------------------------------------


def due_ms(state: State, has_transactions: bool) -> Milliseconds:
    """The instant on a node's clock from which a transaction block on ``state`` is due.

    At once if transactions wait. Else when T0, a close, a settlement, an expiry, a draw or a selection is to be made, but
    not before one tick after the tip; and when the chain was idle for idle_ms. At height 0: genesis time.
    """
    tip, p = state.tip, state.params
    if tip.height == 0:
        return tip.timestamp_ms
    if has_transactions:
        return Milliseconds(0)
    instants = [tip.timestamp_ms + p.idle_ms]
    task = state.current_task
    windows = None if task is None else state.windows(task.task_id)
    if task is not None and windows is None:
        instants.append(0)
    if task is not None and windows is not None:
        closes = (
            (task.entry_closed, windows.entry_close_ms),
            (task.commit_closed, windows.commit_close_ms),
            (task.claim_closed, windows.claim_close_ms),
        )
        instants += [at for closed, at in closes if closed is None][:1]
    for live in (state.tasks[i] for i in state.live):
        if live.phase is TaskPhase.OPEN and task is None:
            instants.append(0)
        if live.phase is TaskPhase.PENDING:
            instants.append(live.published_ms + p.pending_ms)
        if live.phase in (TaskPhase.PENDING, TaskPhase.OPEN):
            instants.append(live.published.expires_ms)
    instants += [at for at in (state.tasks[i].settle_ms for i in state.settling) if at is not None]
    instants += [at for at in (rules_market.next_instant(state, i) for i in state.trading) if at is not None]
    return Milliseconds(max(min(instants), tip.timestamp_ms + p.tick_ms))


def due(state: State, now_ms: Milliseconds, has_transactions: bool) -> bool:
    """Whether a transaction block is due on a clock that shows ``now_ms``."""
    return now_ms >= due_ms(state, has_transactions)
