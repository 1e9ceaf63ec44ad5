"""A task's life: publication, entries, commits, claims, the closing of its windows, and its end (design: consensus).

``pending -> open -> current -> won | void``. Functions take a state and give a new one; they raise before they change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final

from core.chain import merkle
from core.chain.block import Outcome, OutcomeKind
from core.chain.claims import check_receipt, model_commitment
from core.chain.ledger import burn, credit, debit, divide_reward, part
from core.chain.records import MAX_LIVE
from core.chain.state import (
    MAX_ENTRANTS,
    ClaimRecord,
    Entry,
    Pot,
    Standing,
    State,
    Task,
    TaskEnd,
    TaskPhase,
    entry_key,
)
from core.chain.transaction import MAX_CUT, Claim, Commit, EnterTask, PublishTask, Refusal, Stored, TaskSpec, Transaction
from core.chain.transaction import task_id as make_task_id
from core.chain.verify import is_quorum
from core.errors import CryptoError, TransactionError
from core.ids import AccountId, Amount, BlockHash, Height, Milliseconds, NodeId, TaskId, short
from core.params import ChainParams

__all__ = [
    "apply_outcomes", "burn_bond", "claim", "close_windows", "commit", "end_task", "enter", "expire_tasks", "least_leak_bits",
    "publish", "select_current", "set_start", "settle_claimants", "stored", "win",
]  # fmt: skip

PLAINTEXT_BITS: Final = 33
"""``ceil(log2 t)`` of the plaintext modulus (design: verification, section 2)."""


_NEVER_CURRENT: Final = (TaskEnd.NOT_STORED, TaskEnd.EXPIRED, TaskEnd.DISPLACED)


def least_leak_bits(spec: TaskSpec, params: ChainParams) -> int:
    """What pools together may learn of a test row at most: ``max_pools * 2 K * ceil(log2 t)``; a task must declare it.

    ``K`` is the width of the first layer (design: verification, section 8).
    """
    first = spec.hidden[0] if spec.hidden else spec.classes
    return params.max_pools * 2 * first * PLAINTEXT_BITS


# -- transactions ------------------------------------------------------------------------------------------------------


def publish(state: State, tx: Transaction, published: PublishTask, index: int, time_ms: Milliseconds) -> State:
    """PublishTask: locks reward and bond. Raises TransactionError."""
    spec, params = published.spec, state.params
    least_bond = -(-published.reward * params.min_pool_bond_ppm // 1_000_000)
    for ok, problem in (
        (published.reward >= params.min_reward, f"the reward is {published.reward}, must be at least {params.min_reward}"),
        (published.bond >= published.reward, f"the bond {published.bond} is below the reward {published.reward}"),
        (
            published.min_pool_bond >= least_bond,
            f"min_pool_bond {published.min_pool_bond} is below {least_bond}, the least share of the reward",
        ),
        (published.expires_ms > time_ms, f"it expired at {published.expires_ms}, block time is {time_ms}"),
        (spec.features >= 1 and spec.samples >= 1, "it needs at least one feature and one test row"),
        (spec.classes >= 2, f"it needs at least two classes, has {spec.classes}"),
        (min(spec.hidden, default=1) >= 1, "a hidden layer has no units"),
        (2 <= spec.weight_bits <= 32, f"weights of {spec.weight_bits} bits, must be 2 to 32"),
        (spec.feature_scale_micro > 0, "the feature scale is 0"),
        (
            len(spec.cuts_micro) in (0, spec.classes - 1),
            f"{len(spec.cuts_micro)} cut points for {spec.classes} classes, must be one fewer than classes, or none",
        ),
        (all(first < second for first, second in pairwise(spec.cuts_micro)), "its cut points do not rise"),
        (
            all(abs(cut) <= MAX_CUT for cut in spec.cuts_micro[:1] + spec.cuts_micro[-1:]),
            f"a cut point is beyond {MAX_CUT} millionths",
        ),
        (
            spec.leak_bits >= least_leak_bits(spec, params),
            f"leak_bits is {spec.leak_bits}; {params.max_pools} pools may learn {least_leak_bits(spec, params)} bits of a "
            "test row of this model: declare that, or narrow the first layer",
        ),
        (len(spec.test_blobs) > 0, "it lists no blobs of a test set"),
        (merkle.root(spec.test_blobs) == spec.test_root, "test_root is not the root over test_blobs"),
    ):
        if not ok:
            raise TransactionError(f"task {spec.name!r}: {problem}", Refusal.OUT_OF_RANGE)
    task_id = make_task_id(state.chain_id, tx.sender, published.task_nonce)
    if task_id in state.tasks:
        raise TransactionError(f"task {short(task_id)} exists: choose another nonce", Refusal.DUPLICATE)
    locked = Amount(published.reward + published.bond)
    if len(state.live) >= MAX_LIVE:
        state = _displace(state, published.reward, time_ms)
    state = debit(state, tx.sender, locked)
    task = Task(
        task_id, tx.sender, published, Height(state.height + 1), index, time_ms, TaskPhase.PENDING, (), (), None, None,
        None, None, None, None, locked, None, None, None, None,
    )  # fmt: skip
    return replace(state, tasks=state.tasks.put(task_id, task), live=(*state.live, task_id))


def _displace(state: State, reward: Amount, time_ms: Milliseconds) -> State:
    """Makes room for a task: of those that nobody mines for yet the one with the least reward, the latest of several, goes."""
    waiting = [t for t in (state.tasks[i] for i in state.live) if t.phase is not TaskPhase.CURRENT]
    least = min(waiting, key=lambda t: (t.reward, -t.height, -t.index))
    if least.reward >= reward:
        raise TransactionError(
            f"{len(state.live)} tasks wait, the most there may be: offer a reward above {least.reward}", Refusal.LIMIT,
            reward=reward, least=least.reward,
        )  # fmt: skip
    return end_task(state, least, TaskEnd.DISPLACED, Height(state.height + 1), time_ms)


def stored(state: State, tx: Transaction, payload: Stored) -> State:
    """Stored: with those of 2/3 of the power the task is open. Raises TransactionError."""
    task = _task(state, payload.task_id)
    power = {v.node_id: v.power for v in state.validators}
    signer = NodeId(tx.sender)
    if signer not in power:
        raise TransactionError(f"{short(tx.sender)} is no validator", Refusal.NOT_A_VALIDATOR)
    if signer in task.stored_by:
        raise TransactionError(f"{short(tx.sender)} has already stored task {short(task.task_id)}", Refusal.DUPLICATE)
    if task.phase is not TaskPhase.PENDING:
        raise TransactionError(f"task {short(task.task_id)} is {task.phase.name.lower()}", Refusal.WRONG_PHASE)
    signers = (*task.stored_by, signer)
    is_open = is_quorum(sum(power.get(v, 0) for v in signers), state.total_power)
    return _put(state, replace(task, stored_by=signers, phase=TaskPhase.OPEN if is_open else task.phase))


def enter(state: State, tx: Transaction, payload: EnterTask, index: int) -> State:
    """EnterTask: locks the pool's bond until the entries close or the task ends. Raises TransactionError."""
    task = _current(state, payload.task_id)
    name = short(task.task_id)
    if task.start_ms is None:
        raise TransactionError(f"task {name}: entries open with the next block", Refusal.TOO_EARLY)
    if task.entry_closed is not None:
        raise TransactionError(f"task {name}: entries closed at height {task.entry_closed}", Refusal.WRONG_PHASE)
    if state.entry(task.task_id, tx.sender) is not None:
        raise TransactionError(f"pool {short(tx.sender)} has already entered task {name}", Refusal.DUPLICATE)
    if payload.bond < task.published.min_pool_bond:
        raise TransactionError(
            f"a bond of {payload.bond}; task {name} asks at least {task.published.min_pool_bond}", Refusal.OUT_OF_RANGE
        )
    state = debit(state, tx.sender, payload.bond)
    if len(task.pools) >= MAX_ENTRANTS:
        state, task = _outbid(state, task, payload.bond)
    entry = Entry(
        task.task_id, tx.sender, payload.bond, payload.endpoint, Height(state.height + 1), index, Standing.OFFERED,
        payload.bond, None, None,
    )  # fmt: skip
    return _put(_put_entry(state, entry), replace(task, pools=(*task.pools, tx.sender)))


def _outbid(state: State, task: Task, bond: Amount) -> tuple[State, Task]:
    """Makes room for an entrant: who would be admitted last goes, and gets its bond back at once.

    Only ``max_pools`` of those that stay are admitted, so nobody with a chance is shut out by many cheap entries.
    """
    last = max(state.entries_of(task.task_id), key=lambda e: (-e.bond, e.height, e.index))
    if last.bond >= bond:
        raise TransactionError(
            f"task {short(task.task_id)} has {MAX_ENTRANTS} entrants, the most there may be: lock more than {last.bond}",
            Refusal.LIMIT, bond=bond, least=last.bond,
        )  # fmt: skip
    state = credit(state, last.pool, last.held)
    state = replace(state, entries=state.entries.drop(entry_key(task.task_id, last.pool)))
    return state, replace(task, pools=tuple(p for p in task.pools if p != last.pool))


def commit(state: State, tx: Transaction, payload: Commit) -> State:
    """Commit: an admitted pool names its one model, before any test row is used. Raises TransactionError."""
    task = _current(state, payload.task_id)
    name = short(task.task_id)
    if task.entry_closed is None:
        raise TransactionError(f"task {name}: commits open when entries close", Refusal.TOO_EARLY)
    if task.commit_closed is not None:
        raise TransactionError(f"task {name}: commits closed at height {task.commit_closed}", Refusal.WRONG_PHASE)
    entry = _admitted(state, task, tx.sender)
    if entry.commitment is not None:
        raise TransactionError(f"pool {short(tx.sender)} has committed already in task {name}", Refusal.DUPLICATE)
    return _put_entry(state, replace(entry, commitment=payload.model_commitment))


def claim(state: State, tx: Transaction, payload: Claim) -> State:
    """Claim: the count N of the committed model, with the requester's receipt. Raises TransactionError."""
    task = _current(state, payload.task_id)
    name = short(task.task_id)
    if task.commit_closed is None:
        raise TransactionError(f"task {name}: claims open when commits close", Refusal.TOO_EARLY)
    if task.claim_closed is not None:
        raise TransactionError(f"task {name}: claims closed at height {task.claim_closed}", Refusal.WRONG_PHASE)
    entry = _admitted(state, task, tx.sender)
    vm = payload.vm
    if entry.commitment != vm.model_commitment:
        raise TransactionError(
            f"pool {short(tx.sender)} claims for model {short(vm.model_commitment)}, but committed "
            + ("none" if entry.commitment is None else short(entry.commitment)),
            Refusal.NOT_COMMITTED,
        )
    if entry.claim is not None:
        raise TransactionError(f"pool {short(tx.sender)} has claimed already in task {name}", Refusal.DUPLICATE)
    if model_commitment(state.chain_id, task.task_id, tx.sender, payload.body_digest) != vm.model_commitment:
        # Commitments are public before anyone claims: without this a pool copies another's, is evaluated honestly and claims
        # first. Verdicts name a claim by its commitment, so no two claims share one.
        raise TransactionError(
            f"model {short(vm.model_commitment)} is no commitment of pool {short(tx.sender)} to this body",
            Refusal.NOT_COMMITTED,
        )
    if payload.correct > task.published.spec.samples:
        raise TransactionError(f"{payload.correct} correct of {task.published.spec.samples} samples", Refusal.OUT_OF_RANGE)
    try:
        check_receipt(
            vm.receipt, task.requester, state.chain_id, task.task_id, tx.sender, vm.model_commitment,
            vm.garbled_circuit_digest,
        )  # fmt: skip
    except CryptoError as error:
        raise TransactionError(f"the receipt is not the requester's: {error.message}", Refusal.BAD_RECEIPT) from None
    return _put_entry(state, replace(entry, claim=ClaimRecord(payload.correct, vm, Height(state.height + 1))))


# -- what time does ----------------------------------------------------------------------------------------------------


def set_start(state: State, height: Height, time_ms: Milliseconds) -> State:
    """T0: the time of the block after the one in which the task became current."""
    task = state.current_task
    if task is None or task.start_ms is not None or task.activated_height != height - 1:
        return state
    return _put(state, replace(task, start_ms=time_ms))


def close_windows(state: State, height: Height, block_hash: BlockHash, time_ms: Milliseconds) -> State:
    """Closes entry, commits and claims of the current task whose time has come; nobody in one of them: void."""
    task = state.current_task
    windows = None if task is None else state.windows(task.task_id)
    if task is None or windows is None:
        return state
    if task.entry_closed is None and time_ms >= windows.entry_close_ms:
        state, task = _close_entries(state, replace(task, entry_closed=height))
        if not task.pools:
            return end_task(state, task, TaskEnd.NO_ENTRIES, height, time_ms)
    if task.entry_closed is not None and task.commit_closed is None and time_ms >= windows.commit_close_ms:
        task = replace(task, commit_closed=height)
        state = _put(state, task)
        if all(e.commitment is None for e in state.entries_of(task.task_id)):
            return end_task(state, task, TaskEnd.NO_COMMITS, height, time_ms)
    if task.commit_closed is not None and task.claim_closed is None and time_ms >= windows.claim_close_ms:
        task = replace(task, claim_closed=height, closing_hash=block_hash)
        state = _put(state, task)
        if all(e.claim is None for e in state.entries_of(task.task_id)):
            return end_task(state, task, TaskEnd.NO_CLAIMS, height, time_ms)
    return state


def _close_entries(state: State, task: Task) -> tuple[State, Task]:
    """Admits the ``max_pools`` highest bonds, ties to the earlier; the others' bonds go back."""
    entries = state.entries_of(task.task_id)
    by_bond = sorted(entries, key=lambda e: (-e.bond, e.height, e.index))
    for place, entry in enumerate(by_bond):
        if place < state.params.max_pools:
            state = _put_entry(state, replace(entry, standing=Standing.ADMITTED))
        else:
            state = credit(state, entry.pool, entry.held)
            state = _put_entry(state, replace(entry, standing=Standing.OUTBID, held=Amount(0)))
    return _put(state, task), task


def expire_tasks(state: State, height: Height, time_ms: Milliseconds) -> State:
    """Ends pending tasks not stored in time and open tasks not current in time: reward and bond go back."""
    for task_id in state.live:
        task = state.tasks[task_id]
        if task.phase is TaskPhase.PENDING and time_ms >= task.published_ms + state.params.pending_ms:
            state = end_task(state, task, TaskEnd.NOT_STORED, height, time_ms)
        elif task.phase in (TaskPhase.PENDING, TaskPhase.OPEN) and time_ms >= task.published.expires_ms:
            state = end_task(state, task, TaskEnd.EXPIRED, height, time_ms)
    return state


def select_current(state: State, height: Height) -> State:
    """Current becomes the open task with the highest reward, ties to the earliest PublishTask; sticky."""
    if state.current is not None:
        return state
    opened = [t for t in (state.tasks[i] for i in state.live) if t.phase is TaskPhase.OPEN]
    if not opened:
        return state
    task = min(opened, key=lambda t: (-t.reward, t.height, t.index))
    state = _put(state, replace(task, phase=TaskPhase.CURRENT, activated_height=height))
    return replace(state, current=task.task_id)


# -- the end -----------------------------------------------------------------------------------------------------------


def win(state: State, winner: Entry, height: Height, time_ms: Milliseconds) -> State:
    """Ends the current task in favour of ``winner``: burns and sets aside the shares that are not the payout list's.

    The caller credits the payouts, ``divide_reward(reward).payouts`` in all. Claims ranked above the winner were refuted or
    skipped; the block does not say which, so they stand as skipped until verdicts on the chain refute them.
    """
    task = state.tasks[winner.task_id]
    parts = divide_reward(task.reward, state.params)
    for entry in state.ranking(task.task_id):
        if entry.pool == winner.pool:
            state = _put_entry(state, replace(entry, standing=Standing.WON))
            break
        if entry.standing is Standing.ADMITTED:
            state = _put_entry(state, replace(entry, standing=Standing.SKIPPED))
    state = end_task(state, replace(task, winner=winner.pool), TaskEnd.WON, height, time_ms)
    assert winner.claim is not None
    pot = Pot(height, task.task_id, winner.claim.vm.model_commitment, parts.auditors)
    return replace(burn(state, parts.burned), pot=pot)


def apply_outcomes(state: State, task: Task, outcomes: Sequence[Outcome]) -> State:
    """Marks the claims of a void block as refuted (the bond burns at once) or skipped."""
    for entry, end in zip(state.ranking(task.task_id), outcomes, strict=False):
        if end.kind is OutcomeKind.REFUTED:
            state = burn_bond(state, entry, Standing.REFUTED)
        elif end.kind is OutcomeKind.SKIPPED and entry.standing is Standing.ADMITTED:
            state = _put_entry(state, replace(entry, standing=Standing.SKIPPED))
    return state


def burn_bond(state: State, entry: Entry, standing: Standing) -> State:
    """Burns what is still locked of a pool's bond."""
    state = burn(state, entry.held)
    return _put_entry(state, replace(entry, standing=standing, held=Amount(0)))


def end_task(state: State, task: Task, end: TaskEnd, height: Height, time_ms: Milliseconds) -> State:
    """Ends a live task: what happens to reward and bond, and to the bonds of pools without a claim.

    Won: the bond goes back, the reward is the caller's to distribute. Dead: reward back, bond burned. Void otherwise,
    once it was current: reward back, 5 % of the bond burned unless a claim was refuted. Never current: all back.
    """
    entries = state.entries_of(task.task_id)
    bond, reward = task.published.bond, task.reward
    if end is TaskEnd.WON:
        back, lost = bond, 0
    elif end is TaskEnd.DEAD:
        back, lost = reward, bond
    elif end in _NEVER_CURRENT or any(e.standing is Standing.REFUTED for e in entries):
        back, lost = Amount(reward + bond), 0
    else:
        lost = part(bond, state.params.void_bond_ppm)
        back = Amount(reward + bond - lost)
    state = burn(credit(state, task.requester, back), lost)
    for entry in entries:
        if entry.claim is None and entry.held:
            idle = entry.standing is Standing.ADMITTED and entry.commitment is None
            state = _release(state, entry, part(entry.bond, state.params.idle_bond_ppm) if idle else 0)
    has_claims = any(e.claim is not None for e in entries)
    task = replace(
        task,
        phase=TaskPhase.WON if end is TaskEnd.WON else TaskPhase.VOID,
        locked=Amount(0),
        ended=end,
        ended_height=height,
        settle_ms=Milliseconds(time_ms + state.params.settle_ms) if has_claims else None,
    )
    return replace(
        _forget(_put(state, task)),
        live=tuple(i for i in state.live if i != task.task_id),
        ended=(*_kept(state), task.task_id),
        settling=(*state.settling, task.task_id) if has_claims else state.settling,
        current=None if state.current == task.task_id else state.current,
    )


def _forget(state: State) -> State:
    """Drops the records of the tasks that ended first, so that one more can be kept; not while a bond is still locked."""
    for task_id in state.ended[: len(state.ended) - len(_kept(state))]:
        for entry in state.entries_of(task_id):
            state = replace(state, entries=state.entries.drop(entry_key(task_id, entry.pool)))
        state = replace(state, tasks=state.tasks.drop(task_id))
    return state


def _kept(state: State) -> tuple[TaskId, ...]:
    ended, most = state.ended, state.params.kept_tasks - 1
    first = 0
    while len(ended) - first > most and ended[first] not in state.settling:
        first += 1
    return ended[first:]


def settle_claimants(state: State, time_ms: Milliseconds) -> State:
    """Gives claimants' bonds back once no evidence can touch them any more; a skipped claim costs 10 %."""
    for task_id in state.settling:
        task = state.tasks[task_id]
        if task.settle_ms is None or time_ms < task.settle_ms:
            continue
        for entry in state.entries_of(task_id):
            if entry.held:
                skipped = entry.standing is Standing.SKIPPED
                state = _release(state, entry, part(entry.bond, state.params.idle_bond_ppm) if skipped else 0)
        state = _put(state, replace(task, settle_ms=None))
        state = replace(state, settling=tuple(i for i in state.settling if i != task_id))
    return state


def _release(state: State, entry: Entry, lost: int) -> State:
    state = burn(credit(state, entry.pool, entry.held - lost), lost)
    return _put_entry(state, replace(entry, held=Amount(0)))


# -- small helpers -----------------------------------------------------------------------------------------------------


def _task(state: State, task_id: TaskId) -> Task:
    task = state.tasks.get(task_id)
    if task is None:
        raise TransactionError(f"task {short(task_id)} is not on this chain", Refusal.UNKNOWN_TASK)
    return task


def _current(state: State, task_id: TaskId) -> Task:
    task = _task(state, task_id)
    if task.phase in (TaskPhase.PENDING, TaskPhase.OPEN):
        raise TransactionError(f"task {short(task_id)} is {task.phase.name.lower()}, not current yet", Refusal.TOO_EARLY)
    if task.phase is not TaskPhase.CURRENT:
        raise TransactionError(f"task {short(task_id)} is over: {task.phase.name.lower()}", Refusal.WRONG_PHASE)
    return task


def _admitted(state: State, task: Task, pool: AccountId) -> Entry:
    entry = state.entry(task.task_id, pool)
    if entry is None or entry.standing is not Standing.ADMITTED:
        what = "did not enter" if entry is None else "was outbid in"
        raise TransactionError(f"pool {short(pool)} {what} task {short(task.task_id)}", Refusal.NOT_ENTERED)
    return entry


def _put(state: State, task: Task) -> State:
    return replace(state, tasks=state.tasks.put(task.task_id, task))


def _put_entry(state: State, entry: Entry) -> State:
    return replace(state, entries=state.entries.put(entry_key(entry.task_id, entry.pool), entry))
