"""The miner process: its owner's rows, torch, and membership of one pool."""

from __future__ import annotations

import asyncio
import logging

from pofl.mining.v1 import mining_pb2_grpc

from core.errors import ConfigError, InputError
from pool.miner.config import MinerConfig
from pool.miner.member import Membership, warm_up
from pool.miner.rows import TrainingRows
from pool.miner.servicer import MINER, RULES, MinerServicer
from services.rpc.role import Role, open_server
from services.runtime.clock import SystemClock
from services.runtime.lifecycle import Lifecycle
from services.runtime.logging import logger
from services.runtime.metrics import gauge

__all__ = ["main"]

log = logger(__name__)

OWN = gauge("miner_own_rows", "Rows of this miner's owner that it trains on.")


async def main(role: Role[MinerConfig], life: Lifecycle) -> None:
    """Mine until told to stop."""
    cfg = role.cfg
    if role.tls is None:
        raise ConfigError("a miner needs tls.ca, tls.cert and tls.key: its pool speaks TLS only")
    try:
        rows = await asyncio.to_thread(TrainingRows.load, cfg.data, cfg.descriptor)
    except InputError as error:
        raise ConfigError(f"data: {error.message}") from None
    OWN.set(rows.own)
    log.info("own rows loaded", rows=rows.own, features=rows.features, y=rows.kind, file=str(cfg.data))
    # It logs each request of the Flower client at INFO.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    membership = Membership(role, rows, SystemClock())
    server = await open_server(role, life, RULES)
    server.add(mining_pb2_grpc.add_MinerServiceServicer_to_server, MinerServicer(membership), MINER)
    await server.start()
    await asyncio.sleep(cfg.start_delay_ms / 1000)
    await asyncio.to_thread(warm_up)
    life.spawn(membership.run(), "pool membership")
    await membership.joined.wait()
    await server.ready()
    await life.wait()
