"""The pool manager process: admits miners, runs Flower for them, and plays each task of the chain."""

from __future__ import annotations

import asyncio
from typing import Final

from grpc import aio
from pofl.mining.v1 import mining_pb2_grpc
from pofl.peer.v1 import peer_pb2_grpc

from core.crypto.masking import Aggregation
from core.crypto.sealing import Suite
from core.errors import ConfigError
from pool.flower.engine import MiningEngine
from pool.manager.board import Board
from pool.manager.books import Books
from pool.manager.claims import Shelf
from pool.manager.config import PoolConfig
from pool.manager.context import Pool
from pool.manager.follower import Follower
from pool.manager.key_owners import KeyOwners
from pool.manager.marks import MarksDesk
from pool.manager.members import Members
from pool.manager.receipts import ReceiptDesk
from pool.manager.season import Season
from pool.manager.servicer import CLAIM, POOL, RULES, ClaimServicer, PoolServicer
from services.rpc.blobs import BlobStore
from services.rpc.chain_client import Wallet
from services.rpc.channel import connect
from services.rpc.role import Role, open_chain, open_server, wait_for_chain
from services.rpc.validator_watch import ValidatorWatch
from services.runtime.clock import SystemClock
from services.runtime.config import advertised
from services.runtime.cpu import CpuPool
from services.runtime.lifecycle import Lifecycle

__all__ = ["main"]

BLOB_QUOTA: Final = 4 << 30
"""Bytes of encrypted test sets and practice sets."""


async def main(role: Role[PoolConfig], life: Lifecycle) -> None:
    """Serve until told to stop."""
    cfg, genesis, clock = role.cfg, role.genesis, SystemClock()
    chain = open_chain(role, life)
    wallet = Wallet.of(chain, genesis, role.key)
    engine = _engine(role)
    cpu = CpuPool(1, queue=64)
    life.on_stop(cpu.close)
    board, shelf = Board(), Shelf()
    known = await asyncio.to_thread(KeyOwners, cfg.data_dir / "flower-keys.log")
    members = Members(engine, role.key, genesis.chain_id, cfg.admission, clock, known.owners, known.remember)
    books = Books(
        cfg.data_dir / "tasks", role.key, genesis.chain_id, members.show, cfg.training.weight_factor, cfg.owner_cut_ppm
    )
    members.greeting = books.greeting
    receipts = ReceiptDesk(cfg.data_dir / "receipts", chain, wallet, genesis.chain_id)
    marks = MarksDesk(cfg.data_dir / "marks", chain, wallet, genesis.chain_id, clock, genesis.params.report_window_ms)
    blobs = BlobStore(cfg.data_dir / "blobs", BLOB_QUOTA)

    life.on_stop(engine.stop)
    # It takes seconds to load; what does not need it yet goes on, and joins wait for it.
    engine_started = life.spawn(engine.start(), "start Flower")
    server = await open_server(role, life, RULES)
    servicer = PoolServicer(genesis.chain_id, members, receipts, board, books)
    server.add(mining_pb2_grpc.add_PoolServiceServicer_to_server, servicer, POOL)
    server.add(peer_pb2_grpc.add_ClaimServiceServicer_to_server, ClaimServicer(shelf), CLAIM)
    await server.start()

    pool = Pool(
        role=role, endpoint=advertised(cfg, server.address), chain=chain, wallet=wallet, nodes=_nodes(role, life),
        engine=engine, members=members, books=books, board=board, shelf=shelf, blobs=blobs, cpu=cpu, clock=clock,
        marks=marks, voters=ValidatorWatch(chain, genesis),
    )  # fmt: skip
    await wait_for_chain(role, chain)
    follower = Follower(chain, board, lambda feed: Season(pool, feed).run())
    life.spawn(receipts.run(), "put receipts on chain")
    life.spawn(marks.run(), "answer leak reports")
    life.spawn(follower.run(), "follow tasks")
    life.spawn(pool.voters.run(), "follow the validators")
    await engine_started
    await server.ready()
    await life.wait()


def _engine(role: Role[PoolConfig]) -> MiningEngine:
    """Raises ConfigError: Flower's fleet speaks TLS only, with this process's own certificate."""
    cfg, tls = role.cfg, role.tls
    if tls is None:
        raise ConfigError("a pool needs tls.ca, tls.cert and tls.key: miners' Flower clients speak TLS only")
    advertise = cfg.fleet_advertise or cfg.fleet_listen
    return MiningEngine(
        cfg.data_dir / "flower", cfg.fleet_listen, advertise, (tls.cert, tls.key, tls.ca),
        suite=Suite[cfg.training.sealing.upper()], aggregation=Aggregation[cfg.training.aggregation.upper()],
    )  # fmt: skip


def _nodes(role: Role[PoolConfig], life: Lifecycle) -> list[tuple[str, aio.Channel]]:
    """One channel to every node of ``peers.nodes``."""
    nodes = []
    for target in role.cfg.peers.nodes:
        channel = connect(target, role.tls, expect_role="node", caller=role.identity.caller)
        life.on_stop(lambda channel=channel: channel.close(None))  # type: ignore[misc]
        nodes.append((target, channel))
    return nodes
