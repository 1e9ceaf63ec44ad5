"""What a node tells its clients: views of a state, of blocks, and why a block won."""

from __future__ import annotations

import dataclasses
import heapq
import json
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any, Final

from core.chain import rules_validators
from core.chain.block import Block, BlockKind, Certificate, Outcome, OutcomeKind
from core.chain.claims import ClaimStatus, tally
from core.chain.ledger import divide_reward
from core.chain.rules_market import highs
from core.chain.state import Entry, Provider, State, Task, Trade, Validator, report_key
from core.chain.state import TaskPhase as StatePhase
from core.chain.transaction import Claim, SignedTransaction
from core.chain.vote import SignedVerdict, Verdict, VerdictKind
from core.codec import decode
from core.errors import NotFoundError
from core.ids import AccountId, Amount, Digest, Height, ModelCommitment, NodeId, StateRoot, TaskId, short
from core.params import ChainParams, Genesis
from core.verification.receipt import AnswerKind, SignedAnswer
from core.verification.transcript import Purpose
from node.transcripts import Contradiction, KeptTranscript
from services.rpc.views import (
    AccountView,
    BlockView,
    ClaimsView,
    ClaimView,
    EntryView,
    Explanation,
    LeakReportView,
    MarketView,
    ProviderView,
    ReportOutcome,
    TaskPhase,
    TaskView,
    TradePhase,
    TradeView,
    TransactionView,
    TranscriptView,
    ValidatorView,
    VerdictView,
)

__all__ = [
    "claims_view", "validator_views",
    "Names", "account_view", "block_view", "contradiction_lines", "describe", "explanation", "market_view", "provider_views",
    "task_view", "task_views", "trade_view", "trade_views", "transcript_view",
]  # fmt: skip

MAX_DETAILS: Final = 16 * 1024
KINDS: Final = {
    VerdictKind.VALID: "valid",
    VerdictKind.POOL_FAULT: "pool-fault",
    VerdictKind.UNAVAILABLE: "unavailable",
    VerdictKind.REQUESTER_FAULT: "requester-fault",
}


class Names:
    """How the genesis document calls accounts; others are shown by their first eight hex digits."""

    def __init__(self, genesis: Genesis) -> None:
        self._known: dict[bytes, str] = {a.account: a.name for a in genesis.accounts}
        self._known.update({v.node_id: v.name for v in genesis.validators})

    def find(self, account: bytes) -> str:
        """The name, or an empty text."""
        return self._known.get(account, "")

    def __call__(self, account: bytes) -> str:
        return self._known.get(account) or short(account)


# Accounts, tasks, trades


def account_view(state: State, names: Names, account: AccountId, next_nonce: int) -> AccountView:
    """``next_nonce`` counts the transactions of this account that wait."""
    known = state.account(account)
    return AccountView(known.balance, next_nonce, state.reputation(account), names.find(account), state.height)


def phase_of(task: Task) -> TaskPhase:
    """The phase as clients see it: a current task's window is told apart."""
    match task.phase:
        case StatePhase.PENDING:
            return TaskPhase.PENDING
        case StatePhase.OPEN:
            return TaskPhase.OPEN
        case StatePhase.WON:
            return TaskPhase.WON
        case StatePhase.VOID:
            return TaskPhase.VOID
        case StatePhase.CURRENT:
            if task.claim_closed is not None:
                return TaskPhase.WORK
            if task.commit_closed is not None:
                return TaskPhase.EVALUATION
            return TaskPhase.TRAINING if task.entry_closed is not None else TaskPhase.ENTRY


def task_view(state: State, task: Task) -> TaskView:
    windows = state.windows(task.task_id)
    entries: Sequence[Entry] = state.entries_of(task.task_id)
    if task.claim_closed is not None:
        ranked = state.ranking(task.task_id)
        entries = (*ranked, *(e for e in entries if e.claim is None))
    published = task.published
    return TaskView(
        task_id=task.task_id,
        requester=task.requester,
        spec=published.spec,
        reward=published.reward,
        bond=published.bond,
        min_pool_bond=published.min_pool_bond,
        task_nonce=published.task_nonce,
        published_height=task.height,
        phase=phase_of(task),
        expires_ms=published.expires_ms,
        stored_by=task.stored_by,
        start_ms=None if windows is None else windows.start_ms,
        entry_close_ms=None if windows is None else windows.entry_close_ms,
        commit_close_ms=None if windows is None else windows.commit_close_ms,
        claim_close_ms=None if windows is None else windows.claim_close_ms,
        entries=tuple(_entry_view(e) for e in entries),
        ended_height=task.ended_height,
        winner=task.winner,
    )


def _entry_view(entry: Entry) -> EntryView:
    claim = entry.claim
    return EntryView(
        entry.pool, entry.bond, entry.endpoint, entry.commitment,
        None if claim is None else claim.correct, None if claim is None else claim.vm,
    )  # fmt: skip


def task_views(state: State, phases: Iterable[TaskPhase], limit: int, after: TaskId | None) -> tuple[TaskView, ...]:
    """Tasks in order of publication, newest last. Raises NotFoundError for an unknown ``after``."""
    wanted = frozenset(phases)
    ordered = sorted(state.tasks.values(), key=lambda t: (t.height, t.index))
    if after is not None:
        place = next((i for i, t in enumerate(ordered) if t.task_id == after), None)
        if place is None:
            raise NotFoundError(f"no task {short(after)} to continue after", task_id=after)
        ordered = ordered[place + 1 :]
    found = [t for t in ordered if not wanted or phase_of(t) in wanted]
    return tuple(task_view(state, t) for t in found[:limit])


def provider_views(state: State) -> tuple[ProviderView, ...]:
    def view(account: bytes, provider: Provider) -> ProviderView:
        return ProviderView(AccountId(account), provider.data_root, provider.rows, provider.endpoint)

    return tuple(view(account, provider) for account, provider in state.providers.items())


def trade_view(state: State, trade_id: Digest) -> TradeView:
    """Raises NotFoundError."""
    trade = state.trades.get(trade_id)
    if trade is None:
        raise NotFoundError(f"no trade {short(trade_id)} at height {state.height}", trade_id=trade_id)
    return TradeView(
        trade_id=trade_id,
        provider=trade.provider,
        pool=trade.pool,
        data_root=trade.data_root,
        bid=trade.bid,
        markup=trade.markup,
        p_ppm=trade.p_ppm,
        reputation_ppm=trade.reputation_ppm,
        phase=TradePhase(trade.phase),
        bid_height=trade.height,
        draw_height=trade.draw_height,
        miners=trade.miners,
        chunks_total=len(trade.miners) * state.params.chunks,
        chunks_delivered=_delivered(trade),
        delivery_deadline_ms=trade.deadline_ms,
        rows=trade.rows,
        marks=trade.marks,
        reports=_reports(state, trade_id, trade),
        is_leaked=trade.is_leaked,
    )


def trade_views(
    state: State, provider: AccountId | None, pool: AccountId | None, limit: int, after: Digest | None
) -> tuple[TradeView, ...]:
    """Newest bid first, without what grows with the number of miners. Raises NotFoundError for an unknown ``after``."""
    last = None if after is None else state.trades.get(after)
    if after is not None and last is None:
        raise NotFoundError(f"no trade {short(after)} to continue after", trade_id=after)
    end = None if after is None or last is None else (last.height, after)
    found = (
        (trade.height, trade_id)
        for trade_id, trade in state.trades.items()
        if provider in (None, trade.provider) and pool in (None, trade.pool) and (end is None or (trade.height, trade_id) < end)
    )
    newest = heapq.nlargest(limit, found)
    views = (trade_view(state, Digest(trade_id)) for _, trade_id in newest)
    return tuple(dataclasses.replace(view, miners=(), marks=(), reports=()) for view in views)


def _reports(state: State, trade_id: Digest, trade: Trade) -> tuple[LeakReportView, ...]:
    """In order of the miners."""
    known = ((miner, state.reports.get(report_key(trade_id, miner))) for miner in trade.miners)
    return tuple(
        LeakReportView(
            miner, ReportOutcome(report.outcome), int.from_bytes(report.found, "little").bit_count(), report.agreeing,
            report.copy, report.height, report.deadline_ms,
        )
        for miner, report in known
        if report is not None
    )  # fmt: skip


def _delivered(trade: Trade) -> int:
    return sum(byte.bit_count() for byte in trade.delivered)


def market_view(state: State, provider: AccountId, pool: AccountId) -> MarketView:
    """The highs are 0 before the provider's first settled trade."""
    D_bar, m_bar = highs(state, provider) or (Amount(0), Amount(0))
    return MarketView(state.height, m_bar, D_bar, state.reputation(pool))


def validator_views(state: State, names: Names) -> tuple[ValidatorView, ...]:
    """Ascending by node id; also who has left and whose bond evidence can still burn."""
    now = {v.node_id: v for v in state.validators}
    following = {v.node_id: v.power for v in state.next_validators}
    views = []
    for node in sorted({*now, *following, *map(NodeId, state.memberships)}):
        member, voter = state.memberships.get(node), now.get(node)
        views.append(
            ValidatorView(
                node, 0 if voter is None else voter.power, following.get(node, 0),
                Amount(0) if member is None else member.bond, "" if member is None else member.endpoint,
                Height(0) if member is None else member.since_height, None if member is None else member.release_ms,
                rules_validators.is_punished(state, node), names.find(node),
            )
        )  # fmt: skip
    return tuple(views)


# Blocks


def claims_view(block: Block) -> ClaimsView:
    """The claims that a finalised block took."""
    header = block.header.decoded()
    found = []
    for data in block.decoded_body().transactions:
        transaction = decode(SignedTransaction, data).decoded()
        if isinstance(transaction.payload, Claim):
            claim = transaction.payload
            found.append(ClaimView(claim.task_id, transaction.sender, claim.correct, claim.vm))
    return ClaimsView(header.height, header.timestamp_ms, tuple(found))


def transaction_view(encoded: bytes) -> TransactionView:
    signed = decode(SignedTransaction, encoded)
    transaction = signed.decoded()
    details = json.dumps(_plain(transaction.payload))
    if len(details) > MAX_DETAILS:
        details = json.dumps({"bytes": len(encoded), "shown": False})
    return TransactionView(
        signed.tx_id, transaction.sender, transaction.nonce, transaction.fee, type(transaction.payload).__name__,
        details, encoded,
    )  # fmt: skip


def _plain(value: object) -> Any:
    """A record as JSON can hold it: bytes as hex, enumerations by name."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, IntEnum):
        return value.name.lower()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value


def block_view(block: Block, certificate: Certificate, state_root: StateRoot) -> BlockView:
    body = block.decoded_body()
    return BlockView(
        block=block,
        header=block.header.decoded(),
        payouts=body.payouts,
        transactions=tuple(transaction_view(t) for t in body.transactions),
        certificate=certificate,
        state_root=state_root,
    )


# Why


def explanation(
    block: BlockView,
    task: TaskView | None,
    verdicts: Sequence[SignedVerdict],
    audits: Mapping[ModelCommitment, int],
    validators: Sequence[Validator],
    names: Names,
    own: NodeId,
    took_part: bool = True,
    params: ChainParams | None = None,
) -> Explanation:
    """Why a block is what it is.

    ``verdicts`` are those that this node, ``own``, has of the block's height, ``audits`` the milliseconds of its own
    audits, and ``validators`` those of that height. ``took_part``: False where the node got the block from others. With
    ``params`` it tells where all of a won reward goes.
    """
    decoded = [decode(Verdict, signed.verdict) for signed in verdicts]
    views = tuple(
        VerdictView(
            v.validator, v.pool, v.model_commitment, KINDS[v.kind], v.correct, v.reason,
            audits.get(v.model_commitment, 0) if v.validator == own else 0,
        )
        for v in decoded
    )  # fmt: skip
    lines = [_headline(block, task, names)]
    if task is not None:
        lines += _own_lines(task, decoded, validators, names, own, took_part)
        lines += _claim_lines(block, task, decoded, validators, names, took_part)
        lines += [f"{names(p.account)} is paid {p.amount}." for p in block.payouts]
        if params is not None and block.header.kind is BlockKind.WORK:
            parts = divide_reward(task.reward, params)
            lines.append(
                f"Of the reward of {task.reward}, {parts.payouts} are paid here and {parts.burned} burnt; {parts.auditors} go "
                f"to the validators whose audits block {block.header.height + 1} shows, and what none of them gets burns."
            )
    signers = [names(s.validator) for s in block.certificate.signatures]
    lines.append(f"Final in round {block.certificate.round}, by the precommits of {', '.join(signers)}.")
    return Explanation(block, task, views, tuple(lines))


def _own_lines(
    task: TaskView, verdicts: Sequence[Verdict], validators: Sequence[Validator], names: Names, own: NodeId, took_part: bool
) -> list[str]:
    """What this node itself had to do with the height, where that explains what is missing below."""
    if not took_part:
        return [
            f"{names(own)}, which tells this, did not take part in deciding this height: it got the finished block from other "
            "nodes, checked its certificate, and knows no verdicts. Ask a node that was there for them."
        ]
    if any(v.node_id == own for v in validators) and not any(v.validator == own for v in verdicts):
        return [f"{names(own)}, which tells this, gave no verdict itself; those below are others'."]
    return []


def transcript_view(kept: KeptTranscript, own: NodeId) -> TranscriptView:
    purpose = Purpose(kept.purpose).name.lower().replace("_", "-")
    return TranscriptView(kept.digest, own, purpose, kept.task_id, kept.model_commitment, kept.size, kept.head, kept.result)


def contradiction_lines(found: Iterable[Contradiction], names: Names) -> list[str]:
    return [
        f"The requester signed two answers about the claim of {names(one.first.answer.pool)}: {describe(one.first)}, and "
        f"{describe(one.second)}. Both together are proof against her."
        for one in found
    ]


def describe(signed: SignedAnswer) -> str:
    """An answer of the requester in a few words."""
    answer = signed.answer
    if answer.kind is AnswerKind.MALFORMED:
        return "malformed"
    return f"{answer.correct} correct with layers {short(answer.z_mark)}"


def _headline(block: BlockView, task: TaskView | None, names: Names) -> str:
    header = block.header
    author = names(header.author_id)
    if header.kind is BlockKind.TRANSACTION or task is None:
        count = len(block.transactions)
        return f"Block {header.height} is a transaction block by {author} with {count} transaction{'s' * (count != 1)}."
    name = task.spec.name
    if header.kind is BlockKind.VOID:
        return f"Block {header.height} ends task {name!r} without a winner; {author} proposed it."
    accuracy = header.accuracy
    score = "" if accuracy is None else f": {accuracy.correct} of {accuracy.total} test rows correct"
    return f"Block {header.height} was won by {author} for task {name!r}{score}."


def _claim_lines(
    block: BlockView,
    task: TaskView,
    verdicts: Sequence[Verdict],
    validators: Sequence[Validator],
    names: Names,
    took_part: bool,
) -> list[str]:
    tallies = tally(verdicts, validators)
    ends: dict[bytes, Outcome] = {o.model_commitment: o for o in block.header.outcome}
    total = sum(v.power for v in validators)
    lines = []
    for rank, entry in enumerate(task.entries, 1):
        pool = names(entry.pool)
        if entry.correct is None or entry.model_commitment is None:
            done = "did not claim" if entry.model_commitment is not None else "did not commit a model"
            lines.append(f"{pool} entered with a bond of {entry.bond} and {done}.")
            continue
        text = f"Claim {rank}: {pool} claimed {entry.correct} of {task.spec.samples}"
        if entry.pool == task.winner:
            text += " and won"
        elif (end := ends.get(entry.model_commitment)) is not None:
            text += f" and was {_ENDED[end.kind]}"
        elif (found := tallies.get(entry.model_commitment)) is not None and found.status is not ClaimStatus.UNDECIDED:
            text += f" and was {found.status.name.lower()}"
        elif not took_part:
            text += "; how it ended is not known here"
        else:
            text += "; a better claim decided the height before this one was looked at"
        counted = [v for v in verdicts if v.model_commitment == entry.model_commitment]
        lines.append(f"{text}.")
        lines += [f"  {names(v.validator)}: {_sentence(v)}" for v in counted]
        if counted:
            known = tallies[entry.model_commitment]
            lines.append(
                f"  Power: valid {known.valid}, pool at fault {known.pool_fault}, requester at fault "
                f"{known.requester_fault}, any {known.total_in}, of {total}."
            )
    return lines


_ENDED: Final = {
    OutcomeKind.REFUTED: "refuted",
    OutcomeKind.SKIPPED: "skipped",
    OutcomeKind.DEAD: "dead: the requester did not let it be audited",
}


def _sentence(verdict: Verdict) -> str:
    reason = f" ({verdict.reason})" if verdict.reason else ""
    match verdict.kind:
        case VerdictKind.VALID:
            return f"audited, the model scores {verdict.correct} as claimed{reason}."
        case VerdictKind.POOL_FAULT:
            return f"the pool is at fault{reason}."
        case VerdictKind.UNAVAILABLE:
            return f"its block or model was not to be had in time{reason}."
        case VerdictKind.REQUESTER_FAULT:
            return f"the requester did not answer, or not correctly{reason}."
