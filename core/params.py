"""The genesis document: everything that all nodes of a chain agree on before its first block.

It is kept as JSON for people; its hash, which is the chain id, covers the canonical encoding of its values.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field, replace
from typing import Annotated, Final, get_type_hints

from core.chain.block import MAX_CLAIMS, MAX_VALIDATORS
from core.codec import I64, PUBLIC_KEY, U16, U32, U64, Record, Seq, Text, encode
from core.crypto.hashing import digest
from core.errors import ConfigError
from core.ids import AccountId, Amount, Digest, Milliseconds, NodeId

__all__ = [
    "ChainParams", "Genesis", "GenesisAccount", "GenesisValidator", "kib_begun",
    "DOMAIN_GENESIS", "MAX_GENESIS", "PROTOCOL_VERSION",
]  # fmt: skip

DOMAIN_GENESIS: Final = b"pofl/genesis/1"
PROTOCOL_VERSION: Final = 1
MAX_SUPPLY: Final = 2**63 - 1
MAX_GENESIS: Final = 4 * 1024 * 1024
_OUTLAST_STALLS: Final = ("unbond_ms", "delivery_ms", "answer_ms")
"""No transaction gets on the chain while a work height stalls: who owes one by then must not lose for it."""


@dataclass(frozen=True, slots=True)
class ChainParams:
    """Times in milliseconds, money in the smallest unit, shares in parts per million (design: consensus)."""

    # Voting
    propose_ms: Annotated[int, U32] = 500
    prevote_ms: Annotated[int, U32] = 250
    precommit_ms: Annotated[int, U32] = 250
    delta_ms: Annotated[int, U32] = 125
    """Each round's timeouts are longer by this much."""
    tick_ms: Annotated[int, U32] = 500
    """At most one empty block is preferred per tick."""
    idle_ms: Annotated[int, U32] = 10_000
    gossip_ms: Annotated[int, U32] = 1_500
    # A task's life
    entry_ms: Annotated[int, U32] = 5_000
    commit_ms: Annotated[int, U32] = 24_000
    claim_ms: Annotated[int, U32] = 31_000
    pending_ms: Annotated[int, U32] = 60_000
    max_pools: Annotated[int, U32] = 4
    settle_ms: Annotated[int, U32] = 10_000
    """After a task ended: how long evidence can still burn the bonds of its claimants."""
    # The work height
    body_ms: Annotated[int, U32] = 4_000
    open_ms: Annotated[int, U32] = 4_000
    session_ms: Annotated[int, U32] = 2_000
    audit_slots: Annotated[int, U32] = 2
    """Audits that a requester serves at a time."""
    audit_ms: Annotated[int, U32] = 8_000
    # Money
    min_fee: Annotated[int, I64] = 1
    """For each KiB begun of a transaction: what is stored for ever is paid by its size."""
    min_reward: Annotated[int, I64] = 1_000
    """The least reward of a task, which every validator stores a test set for."""
    kept_tasks: Annotated[int, U32] = 1_024
    """Ended tasks in the state; older ones are forgotten, their blocks are not."""
    burn_ppm: Annotated[int, U32] = 100_000
    """Of a reward."""
    auditors_ppm: Annotated[int, U32] = 50_000
    """Of a reward: to the validators with right tags."""
    idle_bond_ppm: Annotated[int, U32] = 100_000
    """Of a pool's bond: entered without a commit, or claim skipped."""
    void_bond_ppm: Annotated[int, U32] = 50_000
    """Of a requester's bond: void without a dead or refuted claim."""
    min_pool_bond_ppm: Annotated[int, U32] = 50_000
    """Of the reward: the least bond a task may ask of a pool."""
    validator_bond: Annotated[int, I64] = 1_000_000
    """The least bond of a validator that joins, for each unit of its power."""
    unbond_ms: Annotated[int, U64] = 600_000
    """After a validator left: how long evidence can still burn its bond, and how long a light client may be away."""
    upgrade_notice: Annotated[int, U32] = 100
    """Heights between the agreement on a new protocol version and its first block, at least."""
    # The market
    draw_window_ms: Annotated[int, U32] = 30_000
    """One bid per pool, provider and data root in this much block time."""
    leak_window_ms: Annotated[int, U32] = 60_000
    delivery_ms: Annotated[int, U32] = 120_000
    """After a drawn deal: undelivered chunks are refunded. At least the longest stall of a work height."""
    market_burn_ppm: Annotated[int, U32] = 50_000
    """Of each price paid: what a trade costs somebody who sells to himself."""
    chunks: Annotated[int, U16] = 10
    highs_window: Annotated[int, U16] = 16
    """m_bar and D_bar: second highest over this many settled trades, one per pool."""
    report_window_ms: Annotated[int, U64] = 30 * 24 * 3_600_000
    """After the delivery deadline of a trade: how long a leak of its rows can be reported, and its seeds must be kept."""
    answer_ms: Annotated[int, U32] = 120_000
    """After a report: how long the marks may be opened. At least the longest stall of a work height."""
    report_bond: Annotated[int, I64] = 5_000
    """Locked by a report; to the accused pool if its marks clear it."""
    provider_fee: Annotated[int, I64] = 1_000
    initial_reputation_ppm: Annotated[int, U32] = 100_000
    """Below clean_trade_ppm: a fresh name stands below a punished one after its next clean trade."""
    clean_trade_ppm: Annotated[int, U32] = 120_000
    """Share of the missing reputation that a clean trade gives."""
    clean_trade_burn: Annotated[int, I64] = 500
    """Coins that clean trades of an epoch must have burned to count for a whole one; less counts in proportion."""
    leak_penalty_ppm: Annotated[int, U32] = 600_000
    """Share of the reputation that a proven leak takes."""

    def least_fee(self, size: int) -> Amount:
        """Of a transaction of ``size`` bytes, its signature not counted."""
        return Amount(self.min_fee * kib_begun(size))

    def min_window_ms(self, validators: int) -> int:
        """Shortest window that f + 1 failed rounds cannot swallow (design: consensus, "A task's life").

        ``Σ_{r=0..f+1} (propose + prevote + precommit + 3 r delta)`` with f = (validators - 1) // 3.
        """
        base = self.propose_ms + self.prevote_ms + self.precommit_ms
        rounds = (validators - 1) // 3 + 2
        return sum(base + 3 * r * self.delta_ms for r in range(rounds))

    @property
    def stall_ms(self) -> int:
        """The longest that a work height can take: every pool's claim is audited to the end of its time."""
        return self.max_pools * (self.body_ms + self.audit_ms + self.open_ms)

    def outlasting_stalls(self) -> ChainParams:
        """The same with delivery, answer and unbonding no shorter than the longest stall."""
        return replace(self, **{name: max(getattr(self, name), self.stall_ms) for name in _OUTLAST_STALLS})

    def check(self, validators: int) -> None:
        """Raises ConfigError naming the parameter and the bound it breaks."""
        self._check_bounds()
        least = self.min_window_ms(validators)
        windows = {
            "entry_ms": self.entry_ms,
            "commit_ms - entry_ms": self.commit_ms - self.entry_ms,
            "claim_ms - commit_ms": self.claim_ms - self.commit_ms,
            "settle_ms": self.settle_ms,
        }
        for name, window in windows.items():
            if window < least:
                raise ConfigError(
                    f"genesis: {name} is {window} ms, but {validators} validators need windows of at least {least} ms",
                    parameter=name, value=window, least=least,
                )  # fmt: skip
        waves = -(-validators // self.audit_slots)
        if self.audit_ms < 2 * waves * self.session_ms:
            raise ConfigError(
                f"genesis: audit_ms is {self.audit_ms}, but {validators} validators in {self.audit_slots} slots of "
                f"{self.session_ms} ms need at least {2 * waves * self.session_ms}",
                parameter="audit_ms",
            )
        for name in _OUTLAST_STALLS:
            if getattr(self, name) < self.stall_ms:
                raise ConfigError(
                    f"genesis: {name} is {getattr(self, name)}, shorter than the longest stall, {self.stall_ms} ms"
                )

    def _check_bounds(self) -> None:
        shares = (
            "auditors_ppm", "burn_ppm", "clean_trade_ppm", "idle_bond_ppm", "initial_reputation_ppm", "leak_penalty_ppm",
            "market_burn_ppm", "min_pool_bond_ppm", "void_bond_ppm",
        )  # fmt: skip
        bounds = {
            # Claims are listed in a header, and highs in a record, of limited size.
            "max_pools": (1, MAX_CLAIMS), "highs_window": (1, 256), "audit_slots": (1, 1 << 16),
            "min_reward": (1, MAX_SUPPLY), "kept_tasks": (16, 65_536), "upgrade_notice": (2, 1 << 31),
            "min_fee": (0, MAX_SUPPLY), "provider_fee": (0, MAX_SUPPLY), "report_bond": (0, MAX_SUPPLY),
            "validator_bond": (0, MAX_SUPPLY), "clean_trade_burn": (1, MAX_SUPPLY), **dict.fromkeys(shares, (0, 1000000)),
        }  # fmt: skip
        for name, (low, high) in bounds.items():
            value = int(getattr(self, name))
            if not low <= value <= high:
                raise ConfigError(f"genesis: {name} is {value}, must be {low} to {high}", parameter=name, value=value)
        if self.initial_reputation_ppm >= self.clean_trade_ppm:
            raise ConfigError(
                f"genesis: initial_reputation_ppm is {self.initial_reputation_ppm}, clean_trade_ppm {self.clean_trade_ppm}: "
                "a new name must start below what a punished one recovers to by one clean trade, or leaking under "
                "throw-away names pays",
                parameter="initial_reputation_ppm",
            )
        if self.burn_ppm + self.auditors_ppm > 1_000_000:
            raise ConfigError(
                f"genesis: burn_ppm and auditors_ppm are {self.burn_ppm + self.auditors_ppm} together: more than the reward"
            )


@dataclass(frozen=True, slots=True)
class GenesisValidator:
    node_id: Annotated[NodeId, PUBLIC_KEY]
    """Also the validator's account."""
    power: Annotated[int, U32]
    name: Annotated[str, Text(64)]


@dataclass(frozen=True, slots=True)
class GenesisAccount:
    account: Annotated[AccountId, PUBLIC_KEY]
    balance: Annotated[Amount, I64]
    name: Annotated[str, Text(64)]


@dataclass(frozen=True, slots=True)
class Genesis:
    name: Annotated[str, Text(64)]
    protocol_version: Annotated[int, U16]
    time_ms: Annotated[Milliseconds, U64]
    validators: Annotated[tuple[GenesisValidator, ...], Seq(Record(GenesisValidator), MAX_VALIDATORS)]
    accounts: Annotated[tuple[GenesisAccount, ...], Seq(Record(GenesisAccount), 65536)]
    params: ChainParams = field(default_factory=ChainParams)

    @property
    def chain_id(self) -> Digest:
        """The genesis hash."""
        return Digest(digest(DOMAIN_GENESIS, encode(self)))

    def check(self) -> None:
        """Raises ConfigError naming what is wrong."""
        if self.protocol_version != PROTOCOL_VERSION:
            raise ConfigError(f"genesis: protocol version {self.protocol_version}, this software speaks {PROTOCOL_VERSION}")
        if not self.validators:
            raise ConfigError("genesis: at least one validator is needed")
        for label, keys in (
            ("validator", [v.node_id for v in self.validators]),
            ("account", [a.account for a in self.accounts]),
        ):
            if len(set(keys)) != len(keys):
                raise ConfigError(f"genesis: a {label} is listed twice")
        if any(v.power < 1 for v in self.validators):
            raise ConfigError("genesis: every validator needs a power of at least 1")
        if any(a.balance < 0 for a in self.accounts):
            raise ConfigError("genesis: a balance is negative")
        if sum(a.balance for a in self.accounts) > MAX_SUPPLY:
            raise ConfigError(f"genesis: the balances sum to more than {MAX_SUPPLY}")
        self.params.check(len(self.validators))

    def to_json(self) -> str:
        document = {
            "name": self.name,
            "protocol_version": self.protocol_version,
            "time_ms": self.time_ms,
            "validators": [{"node_id": v.node_id.hex(), "power": v.power, "name": v.name} for v in self.validators],
            "accounts": [{"account": a.account.hex(), "balance": a.balance, "name": a.name} for a in self.accounts],
            "params": dataclasses.asdict(self.params),
        }
        return json.dumps(document, indent=2) + "\n"

    @staticmethod
    def from_json(text: str) -> Genesis:
        """Raises ConfigError for anything but a document of the form that to_json writes."""
        if len(text) > MAX_GENESIS:
            raise ConfigError(f"genesis: {len(text)} characters, at most {MAX_GENESIS}")
        try:
            document = json.loads(text)
            known = set(get_type_hints(ChainParams))
            unknown = set(document["params"]) - known
            if unknown:
                raise ConfigError(f"genesis: unknown parameter {sorted(unknown)[0]!r}; known are {', '.join(sorted(known))}")
            genesis = Genesis(
                name=str(document["name"]),
                protocol_version=int(document["protocol_version"]),
                time_ms=Milliseconds(int(document["time_ms"])),
                validators=tuple(
                    GenesisValidator(NodeId(bytes.fromhex(v["node_id"])), int(v["power"]), str(v["name"]))
                    for v in document["validators"]
                ),
                accounts=tuple(
                    GenesisAccount(AccountId(bytes.fromhex(a["account"])), Amount(int(a["balance"])), str(a["name"]))
                    for a in document["accounts"]
                ),
                params=ChainParams(**{key: int(value) for key, value in document["params"].items()}),
            )
        except json.JSONDecodeError as error:
            where = f"line {error.lineno}, column {error.colno}"
            raise ConfigError(f"genesis: not a genesis document: no JSON at {where}") from None
        except KeyError as error:
            raise ConfigError(f"genesis: not a genesis document: it lacks {error}") from None
        except (TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise ConfigError(f"genesis: not a genesis document: a value of a wrong form ({error})") from None
        genesis.check()
        return genesis


def kib_begun(size: int) -> int:
    """What fees are counted by: the KiB that a transaction of ``size`` bytes, its signature not counted, has begun."""
    return 1 + size // 1024
