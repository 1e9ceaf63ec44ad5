"""The provider process: rows on sale, offers and bids, delivery to miners, receipts to the chain."""

from __future__ import annotations

import asyncio

from pofl.market.v1 import market_pb2_grpc as rpc

from core.ports import SystemRng
from provider.config import ProviderConfig
from provider.deliveries import Deliveries
from provider.goods import load_goods, row_secret
from provider.ledger import SCHEMA, SalesLedger
from provider.onchain import register, settle
from provider.seller import Seller
from provider.servicer import RULES, SERVICE, ProviderServicer
from services.rpc.chain_client import Wallet
from services.rpc.role import Role, open_chain, open_server, wait_for_chain
from services.runtime.config import advertised
from services.runtime.cpu import run_cpu
from services.runtime.lifecycle import Lifecycle, SystemClock
from services.runtime.logging import logger
from services.storage import LevelDb, StoreMeta

__all__ = ["main"]

log = logger(__name__)


async def main(role: Role[ProviderConfig], life: Lifecycle) -> None:
    """Serve until told to stop. Ready once the chain knows this provider, its data set and its address."""
    cfg, rng, chain_id = role.cfg, SystemRng(), role.genesis.chain_id
    secret = row_secret(cfg.data_dir, rng)
    goods = await run_cpu(load_goods, cfg.data, secret)
    log.info("on sale", path=str(cfg.data.path), rows=goods.data.rows, data_root=goods.data.root)
    store = LevelDb(cfg.data_dir / "sales", StoreMeta(SCHEMA, role.genesis.name, chain_id, role.account))
    life.on_stop(store.close)
    ledger = SalesLedger(store)
    chain = open_chain(role, life)
    wallet = Wallet.of(chain, role.genesis, role.key)

    receipts, clock = asyncio.Event(), SystemClock()
    seller = Seller(
        role.key, chain_id, chain, goods, cfg.rule.rule(), ledger, offer_ms=cfg.offer_ms,
        draw_window_ms=role.genesis.params.draw_window_ms, clock=clock, rng=rng,
    )  # fmt: skip
    deliveries = Deliveries(role.account, chain_id, chain, goods, ledger, receipts, clock=clock)
    servicer = ProviderServicer(goods, chain_id, seller, deliveries, receipt_wait=cfg.receipt_ms / 1000)
    server = await open_server(role, life, RULES)
    server.add(rpc.add_ProviderServiceServicer_to_server, servicer, SERVICE)
    await server.start()
    await wait_for_chain(role, chain)
    await register(chain, wallet, role.account, goods, advertised(cfg, server.address))
    life.spawn(settle(chain, wallet, ledger, receipts), "put receipts on the chain")
    await server.ready()
    await life.wait()
