"""A pool's miner leaks what it bought: traced, reported, judged by every node, and dearer for its pool from then on.

Real node processes; the provider's own main function and its report command; a pool's buyer and its desk of marks; miners'
deliveries. All over TLS.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.crypto.signing import KeyPair
from core.ids import AccountId, Digest
from core.market import delivery, marks
from core.market.reverse_game import PoolPrivate
from core.market.rows import Features
from pool.manager.marks import MarksDesk
from provider.app import main
from provider.config import DataConfig, ProviderConfig
from services.rpc.chain_client import ChainClient, Wallet
from services.rpc.channel import connect
from services.rpc.market_client import Buyer, Deal, MarketClient, receive_rows
from services.rpc.role import open_role
from services.rpc.views import ProviderView, ReportOutcome, TradePhase
from services.runtime.clock import SystemClock
from services.runtime.config import ChainConfig, PeersConfig, TlsConfig
from services.runtime.lifecycle import Lifecycle
from tests.market_kit import SCALE_MICRO, no_receipt, write_npz
from tests.node_network import FAST, ROOT, Network, make_network, wait_height
from tests.node_world import keys

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROWS, FEATURES = 600, 16
PROVIDER, POOL = keys(2, "leak-users")
MINERS = keys(2, "leak-miners")
# A draw is certain at this profit, and a second bid need not wait.
PRIVATE = PoolPrivate(60_000.0, 0.0, 0.0)
PARAMS = replace(FAST, draw_window_ms=1_000, leak_window_ms=600_000)


def account(key: KeyPair) -> AccountId:
    return AccountId(key.public_key)


@dataclass
class World:
    network: Network
    life: Lifecycle

    def chain(self, role: str = "user", name: str = "tester") -> ChainClient:
        return ChainClient([(n.name, self.network.channel(n, role, name)) for n in self.network.nodes])

    def market(self, role: str, name: str, key: KeyPair, target: str) -> MarketClient:
        channel = connect(target, self.network.files(role, name, key.public_key), expect_role="provider")
        self.network.channels.append(channel)
        return MarketClient(channel, target)

    def config_file(self, cfg: ProviderConfig) -> Path:
        path = self.network.folder / "provider" / "config.toml"
        path.write_text(
            f'name = "provider"\nlisten = "127.0.0.1:0"\ndata_dir = "{cfg.data_dir}"\nkey = "{cfg.key}"\n'
            f'[tls]\nca = "{cfg.tls.ca}"\ncert = "{cfg.tls.cert}"\nkey = "{cfg.tls.key}"\n'
            f'[chain]\ngenesis = "{cfg.chain.genesis}"\n[peers]\nnodes = {list(cfg.peers.nodes)!r}\n'
            f'[data]\npath = "{cfg.data.path}"\nfeature_scale_micro = {SCALE_MICRO}\n'
        )
        return path


def provider_config(network: Network) -> ProviderConfig:
    home = network.folder / "provider"
    home.mkdir()
    files = network.files("provider", "provider", PROVIDER.public_key)
    (home / "account.key").touch(0o600)
    (home / "account.key").write_text(PROVIDER.seed.hex())
    rng = np.random.default_rng(3)
    x = np.clip(rng.normal(0.5, 0.2, (ROWS, FEATURES)), 0, 1).astype(np.float32)
    data = write_npz(home / "rows.npz", x, rng.integers(0, 3, ROWS))
    return ProviderConfig(
        name="provider", listen="127.0.0.1:0", data_dir=home / "data", key=home / "account.key",
        tls=TlsConfig(ca=files.ca, cert=files.cert, key=files.key),
        chain=ChainConfig(genesis=network.folder / "genesis.json"),
        peers=PeersConfig(nodes=tuple(n.address for n in network.nodes)),
        data=DataConfig(path=data, feature_scale_micro=SCALE_MICRO),
    )  # fmt: skip


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    network = make_network(tmp_path, 3, params=PARAMS, users=(PROVIDER, POOL))
    life = Lifecycle()
    try:
        for node in network.nodes:
            await node.start()
        made = World(network, life)
        await wait_height(made.chain(), 1)
        running = asyncio.create_task(main(open_role(provider_config(network)), life))
        yield made
        life.stop()
        await running
    finally:
        await life.close(time.monotonic() + 60)
        await network.close()


async def eventually(what: str, probe: Any, seconds: float = 150.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (found := await probe()) is not None:
            return found
        await asyncio.sleep(0.2)
    raise AssertionError(f"{what}: not in {seconds:g} s")


async def fetch(world: World, provider: ProviderView, deal: Deal, number: int, seed: bytes) -> Features:
    key, trade = MINERS[number], deal.trade
    market = world.market("miner", f"miner{number}", key, provider.endpoint)
    chain_id = world.network.genesis.chain_id
    session = marks.session_id(chain_id, trade.provider, trade.pool, trade.data_root, account(key))
    share = deal.shares()[number][1]
    marking = marks.commit(seed, session, share.marks)
    x, _ = await receive_rows(market, chain_id, trade.trade_id, key, share, marking, session, no_receipt, timeout=150)
    return x


async def report(config: Path, copy: Path, *more: str) -> dict[str, Any]:
    """The command that a provider's operator runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "provider.report_leak", str(copy), "--config", str(config), "--json", *more,
        stdout=asyncio.subprocess.PIPE, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 240)
    return {"code": process.returncode, **(json.loads(out) if out else {})}


async def test_a_leak_is_traced_reported_judged_by_every_node_and_paid_with_reputation(world: World) -> None:
    chain, chain_id, folder = world.chain(), world.network.genesis.chain_id, world.network.folder

    async def registered() -> ProviderView | None:
        return next(iter(await chain.providers()), None)

    provider: ProviderView = await eventually("the provider registers", registered)
    wallet = Wallet(world.chain("pool", "pool0"), chain_id, POOL)
    clock = SystemClock()
    desk = MarksDesk(folder / "marks", world.chain("pool", "pool0"), wallet, chain_id, clock, PARAMS.report_window_ms)
    buyer = Buyer(world.chain("pool", "pool0"), wallet, POOL, chain_id, PRIVATE, desk)
    seller = world.market("pool", "pool0", POOL, provider.endpoint)
    deal = await buyer.buy(seller, provider, [account(key) for key in MINERS], timeout=150)
    assert isinstance(deal, Deal), deal
    seeds = desk.seeds(deal.trade.trade_id)
    held = [await fetch(world, provider, deal, i, seeds[account(MINERS[i])]) for i in range(2)]

    async def settled() -> bool | None:
        return True if (await chain.trade(deal.trade.trade_id)).phase is TradePhase.SETTLED else None

    await eventually("the trade settles", settled)
    before = (await chain.market(provider.provider, account(POOL))).pool_reputation_ppm

    # Miner 1 gives away half of its rows, in another order, with the two lowest bits rounded away.
    rng = np.random.default_rng(5)
    leaked = np.rint(held[1][rng.permutation(len(held[1]))[: len(held[1]) // 2]] / 4) * 4
    copy = write_npz(folder / "found.npz", delivery.to_floats(leaked.astype(np.int8), SCALE_MICRO), np.zeros(len(leaked)))
    config = world.config_file(provider_config_again(world))
    dry = await report(config, copy, "--dry-run")
    assert (dry["code"], dry["miner"], dry["trade"]) == (0, MINERS[1].public_key.hex(), deal.trade.trade_id.hex())
    stranger = write_npz(folder / "stranger.npz", rng.random((300, FEATURES)), np.zeros(300))
    assert (await report(config, stranger))["code"] != 0, "rows that nobody was sold"

    # The pool answers by itself, from what is on its disk: another process after a restart.
    again = MarksDesk(folder / "marks", world.chain("pool", "pool0"), wallet, chain_id, clock, PARAMS.report_window_ms)
    answering = asyncio.create_task(again.run())
    found = await report(config, copy, "--wait", "180")
    assert found["outcome"] == "leaked"
    assert found["agreeing"] >= 0.9 * found["marks_found"]
    expected = before - before * PARAMS.leak_penalty_ppm // 10**6
    assert found["pool_reputation_ppm"] == expected
    answering.cancel()
    await asyncio.gather(answering, return_exceptions=True)

    for node in world.network.nodes:
        each = world.network.client(node)

        # The command asked one node; the others come to that block when they come.
        async def judged(each: ChainClient = each) -> bool | None:
            return (await each.trade(deal.trade.trade_id)).is_leaked or None

        await eventually(f"{node.name} judges the report", judged)
        assert (await each.market(provider.provider, account(POOL))).pool_reputation_ppm == expected
        trade = await each.trade(deal.trade.trade_id)
        assert [(r.miner, r.outcome, r.copy) for r in trade.reports] == [
            (account(MINERS[1]), ReportOutcome.LEAKED, Digest(bytes.fromhex(found["copy"])))
        ]
    second = await report(config, copy)
    assert second["code"] != 0, "once"
    # What the provider offers now is worse, and a new bid pays for it.
    offer = await eventually("a new offer", lambda: offered(seller, provider))
    assert offer.reputation_ppm == expected


async def offered(seller: MarketClient, provider: ProviderView) -> Any:
    return (await seller.request_offer(account(POOL), provider.data_root)).offer


def provider_config_again(world: World) -> ProviderConfig:
    """As `provider_config`, from what is there."""
    home, files = world.network.folder / "provider", world.network.files("provider", "provider", PROVIDER.public_key)
    return ProviderConfig(
        name="provider", listen="127.0.0.1:0", data_dir=home / "data", key=home / "account.key",
        tls=TlsConfig(ca=files.ca, cert=files.cert, key=files.key),
        chain=ChainConfig(genesis=world.network.folder / "genesis.json"),
        peers=PeersConfig(nodes=tuple(n.address for n in world.network.nodes)),
        data=DataConfig(path=home / "rows.npz", feature_scale_micro=SCALE_MICRO),
    )  # fmt: skip
