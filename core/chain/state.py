"""The chain's state: what every node computes from the genesis document and the finalised blocks.

A ``State`` is frozen; rules make new ones. Its root is an RFC 6962 tree over a leaf for the scalars and one for each
table's own root, so that a record is provable with two audit paths. Money is conserved: the balances, what is locked
and what is burned sum to the genesis supply (``total_supply``).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Final

from core.chain import merkle
from core.chain.block import BlockKind
from core.chain.records import (
    MAX_ENDED,
    MAX_ENTRANTS,
    MAX_LIVE,
    Account,
    ClaimRecord,
    Entry,
    Evidence,
    High,
    LastCredit,
    LeakReport,
    Membership,
    Pot,
    Provider,
    ReportOutcome,
    Reputation,
    Standing,
    Task,
    TaskEnd,
    TaskPhase,
    Tip,
    Trade,
    TradePhase,
    Upgrade,
    Validator,
    ValidatorSet,
    Windows,
)
from core.chain.table import Table
from core.codec import DIGEST, I64, U16, Maybe, Reader, Record, Seq, encode
from core.crypto.hashing import digest
from core.errors import MalformedError, NotFoundError, WrongChainError
from core.ids import (
    AccountId,
    Amount,
    BlockHash,
    Digest,
    Height,
    Milliseconds,
    PartsPerMillion,
    StateRoot,
    TaskId,
    short,
)
from core.params import ChainParams, Genesis

__all__ = [
    "MAX_ENTRANTS", "Account", "ClaimRecord", "Entry", "Evidence", "High", "LastCredit", "LeakReport", "Membership", "Pot",
    "Provider", "ReportOutcome", "Reputation", "Standing", "State", "Task", "TaskEnd", "TaskPhase", "Tip", "Trade",
    "TradePhase", "Validator", "ValidatorSet", "Windows", "DOMAIN_STATE", "TABLES", "decode_state", "encode_state",
    "encode_scalars", "entry_key", "genesis_state", "genesis_validators", "height_key", "state_leaves", "state_root",
    "state_tree", "total_supply", "Upgrade",
]  # fmt: skip

DOMAIN_TIE: Final = b"pofl/claim-tie/1"
DOMAIN_STATE: Final = b"pofl/state/1"
STATE_VERSION: Final = 1
_SCALARS, _VALIDATORS, _NEXT_VALIDATORS = b"scalars/", b"validators/", b"next-validators/"


@dataclass(frozen=True, slots=True)
class _Scalars:
    form: Annotated[int, U16]
    chain_id: Annotated[Digest, DIGEST]
    tip: Tip
    burned: Annotated[Amount, I64]
    current: Annotated[TaskId | None, Maybe(DIGEST)]
    pot: Annotated[Pot | None, Maybe(Record(Pot))]
    live: Annotated[tuple[TaskId, ...], Seq(DIGEST, MAX_LIVE)]
    ended: Annotated[tuple[TaskId, ...], Seq(DIGEST, MAX_ENDED)]
    version: Annotated[int, U16]
    upgrade: Annotated[Upgrade | None, Maybe(Record(Upgrade))]
    settling: Annotated[tuple[TaskId, ...], Seq(DIGEST, 1 << 20)]
    trading: Annotated[tuple[Digest, ...], Seq(DIGEST, 1 << 20)]


@dataclass(frozen=True, slots=True)
class _Sets:
    validators: ValidatorSet
    next_validators: ValidatorSet


_Leaves = tuple[tuple[bytes, ...], merkle.Tree]


# Without slots: a copy with other accounts is one copy of a dictionary.
@dataclass(frozen=True)
class State:
    """After block ``tip``. Iterating a table is in key order, so every rule is deterministic."""

    genesis: Genesis
    chain_id: Digest
    tip: Tip
    burned: Amount
    current: TaskId | None
    """The task being mined for: open, highest reward, earliest; sticky until won or void."""
    pot: Pot | None
    validators: tuple[Validator, ...]
    """Who votes at the next height, ascending by node id."""
    next_validators: tuple[Validator, ...]
    """Who votes at the height after that: what this block changed."""
    live: tuple[TaskId, ...]
    """Pending, open and current tasks, in order of publication."""
    ended: tuple[TaskId, ...]
    """Ended tasks that are not forgotten yet, earliest end first."""
    version: int
    """Of the protocol, at this height."""
    upgrade: Upgrade | None
    settling: tuple[TaskId, ...]
    """Ended tasks whose claimants' bonds are still locked."""
    trading: tuple[Digest, ...]
    """Trades that wait for a draw, a delivery, a credit or the opening of marks."""
    accounts: Table[Account]
    tasks: Table[Task]
    entries: Table[Entry]
    """By task id ‖ pool."""
    providers: Table[Provider]
    trades: Table[Trade]
    reports: Table[LeakReport]
    """By ``report_key``: trade id ‖ miner."""
    reputations: Table[Reputation]
    credits: Table[LastCredit]
    """By pool ‖ provider."""
    evidence: Table[Evidence]
    memberships: Table[Membership]
    """By node id."""
    sets: Table[ValidatorSet]
    """By ``height_key`` of the first height that it votes at: as far back as rules still ask."""
    _tree: _Leaves | None = field(default=None, init=False, repr=False, compare=False)
    """Leaves of the state and their tree, once they are known: block, store and proofs ask for them. ``replace`` forgets."""
    _older: _Leaves | None = field(default=None, init=False, repr=False, compare=False)
    """Those of the state before, most of which are the same."""

    @property
    def params(self) -> ChainParams:
        return self.genesis.params

    @property
    def height(self) -> Height:
        return self.tip.height

    @property
    def total_power(self) -> int:
        return sum(v.power for v in self.validators)

    def validators_at(self, height: int) -> tuple[Validator, ...]:
        """Who voted at a height of the recent past, back to that of the oldest task that is being settled."""
        rows = [key for key in self.sets if key <= height_key(max(height, 1))]
        if not rows:
            raise NotFoundError(f"the validators of height {height} are no longer kept", height=height)
        return self.sets[rows[-1]].validators

    def with_accounts(self, accounts: Table[Account]) -> State:
        """``replace(self, accounts=accounts)``, which every transaction does some times, at a tenth of its cost."""
        new: State = State.__new__(State)
        new.__dict__.update(self.__dict__, accounts=accounts, _tree=None, _older=self._tree or self._older)
        return new

    def after(self, parent: State, tip: Tip) -> State:
        """``replace(self, tip=tip)``: what a block has made of ``parent``, whose tree its own is made from."""
        new: State = State.__new__(State)
        new.__dict__.update(self.__dict__, tip=tip, _tree=None, _older=parent._tree)
        return new

    def account(self, account: bytes) -> Account:
        """An account nobody paid yet is empty."""
        return self.accounts.get(account, _EMPTY)

    def task(self, task_id: bytes) -> Task:
        """Raises NotFoundError."""
        task = self.tasks.get(task_id)
        if task is None:
            raise NotFoundError(f"no task {short(task_id)} on this chain at height {self.height}", task_id=task_id)
        return task

    @property
    def current_task(self) -> Task | None:
        return None if self.current is None else self.tasks[self.current]

    def phase(self, task_id: bytes) -> TaskPhase:
        """Raises NotFoundError."""
        return self.task(task_id).phase

    def windows(self, task_id: bytes) -> Windows | None:
        """When entry, commits and claims of a task close; None while T0 is unknown. Raises NotFoundError."""
        start = self.task(task_id).start_ms
        if start is None:
            return None
        p = self.params
        return Windows(
            start, Milliseconds(start + p.entry_ms), Milliseconds(start + p.commit_ms), Milliseconds(start + p.claim_ms)
        )

    def entry(self, task_id: bytes, pool: bytes) -> Entry | None:
        return self.entries.get(entry_key(task_id, pool))

    def entries_of(self, task_id: bytes) -> tuple[Entry, ...]:
        """A task's entries, earliest first. Raises NotFoundError."""
        return tuple(self.entries[entry_key(task_id, pool)] for pool in self.task(task_id).pools)

    def ranking(self, task_id: bytes) -> tuple[Entry, ...]:
        """The entries with a claim, best first: N descending, then ``SHA-256(closing block ‖ c_W)`` ascending.

        Before claims close there is no tie-break, and equal claims stand in order of entry. Raises NotFoundError.
        """
        closing = self.task(task_id).closing_hash
        claimed = [(e, e.claim) for e in self.entries_of(task_id) if e.claim is not None]

        def place(pair: tuple[Entry, ClaimRecord]) -> tuple[int, bytes]:
            tie = b"" if closing is None else digest(DOMAIN_TIE, closing, pair[1].vm.model_commitment)
            return -pair[1].correct, tie

        return tuple(entry for entry, _ in sorted(claimed, key=place))

    def work_claims(self) -> tuple[Entry, ...] | None:
        """The claims in rank order if the next height is a work height, else None."""
        task = self.current_task
        if task is None or task.claim_closed is None:
            return None
        return self.ranking(task.task_id)

    def reputation(self, pool: bytes) -> PartsPerMillion:
        known = self.reputations.get(pool)
        return PartsPerMillion(self.params.initial_reputation_ppm) if known is None else known.ppm


_EMPTY: Final = Account(Amount(0), 0)
TABLES: Final[tuple[tuple[str, type], ...]] = (
    ("accounts", Account), ("tasks", Task), ("entries", Entry), ("providers", Provider), ("trades", Trade),
    ("reports", LeakReport), ("reputations", Reputation), ("credits", LastCredit), ("evidence", Evidence),
    ("memberships", Membership), ("sets", ValidatorSet),
)  # fmt: skip
_LABELS: Final = tuple((name, name.encode() + b"/") for name, _ in TABLES)


def height_key(height: int) -> bytes:
    return height.to_bytes(8, "big")


def entry_key(task_id: bytes, pool: bytes) -> bytes:
    return task_id + pool


def genesis_validators(genesis: Genesis) -> tuple[Validator, ...]:
    """Who votes at height 1, by node id."""
    return tuple(sorted((Validator(v.node_id, v.power, Amount(0), False) for v in genesis.validators), key=lambda v: v.node_id))


def report_key(trade_id: bytes, miner: bytes) -> bytes:
    return trade_id + miner


def genesis_state(genesis: Genesis) -> State:
    """The state before block 1. Raises ConfigError if the document is not usable."""
    genesis.check()
    chain_id = genesis.chain_id
    validators = genesis_validators(genesis)
    return State(
        genesis=genesis,
        chain_id=chain_id,
        tip=Tip(Height(0), BlockHash(chain_id), genesis.time_ms, BlockKind.TRANSACTION, AccountId(bytes(32))),
        burned=Amount(0),
        current=None,
        pot=None,
        validators=validators,
        next_validators=validators,
        live=(),
        ended=(),
        version=genesis.protocol_version,
        upgrade=None,
        settling=(),
        trading=(),
        accounts=Table(Account, {a.account: Account(a.balance, 0) for a in genesis.accounts if a.balance}),
        tasks=Table(Task),
        entries=Table(Entry),
        providers=Table(Provider),
        trades=Table(Trade),
        reports=Table(LeakReport),
        reputations=Table(Reputation),
        credits=Table(LastCredit),
        evidence=Table(Evidence),
        memberships=Table(Membership, {v.node_id: Membership(Height(1), Amount(0), "", None) for v in validators}),
        sets=Table(ValidatorSet, {height_key(1): ValidatorSet(validators)}),
    )


def state_root(state: State) -> StateRoot:
    """``SHA-256(domain ‖ RFC 6962 root over state_leaves)``."""
    return StateRoot(digest(DOMAIN_STATE, state_tree(state)[1].root))


def state_leaves(state: State) -> list[bytes]:
    """``scalars ‖ record``, the two validator sets, and for each table ``name ‖ root``: in this order, each ``name/…``."""
    return list(state_tree(state)[0])


def state_tree(state: State) -> tuple[tuple[bytes, ...], merkle.Tree]:
    """``state_leaves`` and the tree over them, made once for a state."""
    if state._tree is None:
        heads = zip((_SCALARS, _VALIDATORS, _NEXT_VALIDATORS), _heads(state), strict=True)
        tables = (label + getattr(state, name).root for name, label in _LABELS)
        leaves = (*(name + data for name, data in heads), *tables)
        older = state._older
        if older is None:
            tree = merkle.Tree([merkle.leaf_hash(leaf) for leaf in leaves])
        else:
            before, tree = older
            pairs = enumerate(zip(before, leaves, strict=True))
            tree = tree.replaced({place: merkle.leaf_hash(leaf) for place, (old, leaf) in pairs if old != leaf})
        object.__setattr__(state, "_tree", (leaves, tree))
        object.__setattr__(state, "_older", None)
    assert state._tree is not None
    return state._tree


def encode_state(state: State) -> bytes:
    """The whole state but the genesis document, canonically."""
    out = bytearray(b"".join(_heads(state)))
    for name, _ in TABLES:
        out += getattr(state, name).to_bytes()
    return bytes(out)


def encode_scalars(state: State) -> bytes:
    """As ``encode_state``, with empty tables."""
    return b"".join(_heads(state)) + bytes(4 * len(TABLES))


def decode_state(data: bytes, genesis: Genesis) -> State:
    """The state that ``encode_state`` wrote, on the chain of ``genesis``.

    Raises:
        MalformedError, LimitError: not the canonical encoding of a state.
        WrongChainError: of another chain or another version of the state's form.
    """
    reader = Reader(data)
    scalars: _Scalars = Record(_Scalars).read(reader)
    sets: _Sets = Record(_Sets).read(reader)
    chain_id = genesis.chain_id
    if scalars.form != STATE_VERSION or scalars.chain_id != chain_id:
        raise WrongChainError(
            f"stored state: version {scalars.form} of chain {short(scalars.chain_id)}; this software reads version "
            f"{STATE_VERSION}, and the genesis document is of chain {short(chain_id)}"
        )
    tables: dict[str, Table[object]] = {name: Table.read(kind, reader) for name, kind in TABLES}
    if reader.remaining:
        raise MalformedError(f"{reader.remaining} bytes follow the state", extra=reader.remaining)
    return State(
        genesis=genesis,
        chain_id=chain_id,
        tip=scalars.tip,
        burned=scalars.burned,
        current=scalars.current,
        pot=scalars.pot,
        validators=sets.validators.validators,
        next_validators=sets.next_validators.validators,
        live=scalars.live,
        ended=scalars.ended,
        version=scalars.version,
        upgrade=scalars.upgrade,
        settling=scalars.settling,
        trading=scalars.trading,
        **tables,  # type: ignore[arg-type]
    )


def total_supply(state: State) -> Amount:
    """Balances, locked money and burned money together: the genesis supply, always."""
    return Amount(sum(_holdings(state)) + state.burned)


def _holdings(state: State) -> Iterator[int]:
    yield from (a.balance for a in state.accounts.values())
    yield from (t.locked for t in state.tasks.values())
    yield from (e.held for e in state.entries.values())
    yield from (t.held for t in state.trades.values())
    yield from (r.held for r in state.reports.values())
    yield from (m.bond for m in state.memberships.values())
    if state.pot is not None:
        yield state.pot.amount


def _heads(state: State) -> tuple[bytes, bytes, bytes]:
    """Scalars and the two validator sets, encoded."""
    if state._tree is not None:
        scalars, voters, following = state._tree[0][:3]
        return scalars[len(_SCALARS) :], voters[len(_VALIDATORS) :], following[len(_NEXT_VALIDATORS) :]
    return encode(_scalars(state)), _encode_set(state.validators), _encode_set(state.next_validators)


@functools.lru_cache(maxsize=16)
def _encode_set(validators: tuple[Validator, ...]) -> bytes:
    return encode(ValidatorSet(validators))


def _scalars(state: State) -> _Scalars:
    return _Scalars(
        STATE_VERSION,
        state.chain_id,
        state.tip,
        state.burned,
        state.current,
        state.pot,
        state.live,
        state.ended,
        state.version,
        state.upgrade,
        state.settling,
        state.trading,
    )
