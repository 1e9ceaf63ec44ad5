"""What all parts of a pool manager share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grpc import aio

from core.chain.state import Validator
from core.ids import AccountId, Digest
from core.ports import Clock
from pool.flower.engine import MiningEngine
from pool.manager.board import Board
from pool.manager.books import Books
from pool.manager.claims import Shelf
from pool.manager.config import PoolConfig
from pool.manager.marks import MarksDesk
from pool.manager.members import Members
from services.rpc.blobs import BlobStore
from services.rpc.chain_client import ChainClient, Wallet
from services.rpc.channel import connect
from services.rpc.role import Role
from services.rpc.validator_watch import ValidatorWatch
from services.runtime.cpu import CpuPool

__all__ = ["Pool"]


@dataclass(frozen=True, slots=True)
class Pool:
    """A running pool manager. ``endpoint``: where others reach it."""

    role: Role[PoolConfig]
    endpoint: str
    chain: ChainClient
    wallet: Wallet
    nodes: Sequence[tuple[str, aio.Channel]]
    engine: MiningEngine
    members: Members
    books: Books
    board: Board
    shelf: Shelf
    blobs: BlobStore
    cpu: CpuPool
    clock: Clock
    marks: MarksDesk
    voters: ValidatorWatch

    @property
    def cfg(self) -> PoolConfig:
        return self.role.cfg

    @property
    def account(self) -> AccountId:
        return self.role.account

    @property
    def chain_id(self) -> Digest:
        return self.role.genesis.chain_id

    @property
    def validators(self) -> tuple[Validator, ...]:
        """Who votes at the next height."""
        return self.voters.validators

    def open(self, target: str, role: str) -> aio.Channel:
        """A channel to a process of this role; the caller closes it. Raises ConfigError."""
        return connect(target, self.role.tls, expect_role=role, caller=self.role.identity.caller)

    def seconds_until(self, instant_ms: int) -> float:
        """On this machine's clock, not below zero."""
        return max(0.0, (instant_ms - self.clock.now_ms()) / 1000)
