"""Real node processes over mutual TLS: finality, restart, late joiners, and the client that other roles use."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.chain.transaction import Transfer
from core.crypto.signing import KeyPair
from core.ids import AccountId, Amount, Height
from services.rpc.chain_client import Wallet
from tests.node_network import ROOT, Network, make_network, wait_height


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[Network]:
    made = make_network(tmp_path, validators=4, followers=1)
    yield made
    await made.close()
    for node in made.nodes:
        if node.log.exists():
            print(f"--- {node.name}\n{node.log.read_text()[-6000:]}")


async def agree(network: Network, height: int, count: int) -> None:
    """The first ``count`` nodes have the same block and state at ``height``."""
    views = [await network.client(node).block(Height(height)) for node in network.nodes[:count]]
    assert len({view.block_hash for view in views}) == 1
    assert len({view.state_root for view in views}) == 1


async def pofl_transfer(network: Network, payer: KeyPair, payee: AccountId, amount: int) -> Height:
    """``pofl transfer`` as a user runs it."""
    key = network.folder / "payer.key"
    key.write_text(payer.seed.hex())
    key.chmod(0o600)
    folder = network.files("user", "tester").ca.parent
    run = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.cli.main", "transfer", payee.hex(), str(amount), "--key", str(key),
        "--node", network.nodes[0].address, "--tls", str(folder), "--json",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"},
    )  # fmt: skip
    out, err = await asyncio.wait_for(run.communicate(), 150)
    assert run.returncode == 0, err
    paid = json.loads(out)
    assert (paid["to"], paid["amount"]) == (payee.hex(), amount)
    return Height(paid["height"])


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_four_nodes_finalise_transfers_survive_a_kill_and_let_a_late_node_join(network: Network) -> None:
    for node in network.nodes[:4]:
        await node.start()
    client = network.client(*network.nodes[:4])
    await wait_height(client, 1)
    payer, payee = network.users[0], AccountId(network.users[1].public_key)
    wallet = Wallet(client, network.genesis.chain_id, payer)
    before = (await client.account(payee)).balance
    for amount in (5, 7, 11):
        _, height = await wallet.send_and_wait(Transfer(payee, Amount(amount)), 120)
    for node in network.nodes[:4]:
        await wait_height(network.client(node), height)
    await agree(network, height, 4)
    assert (await client.account(payee)).balance == before + 23

    victim = network.nodes[3]
    await victim.kill()
    _, while_away = await wallet.send_and_wait(Transfer(payee, Amount(1)), 120)
    await victim.start()
    await wait_height(network.client(victim), while_away)
    await network.nodes[4].start()
    await wait_height(network.client(network.nodes[4]), while_away)
    last = await pofl_transfer(network, payer, payee, 2)
    for node in network.nodes:
        await wait_height(network.client(node), last)
    await agree(network, last, 5)
    # Not before: the first node had that block, and another one is asked here.
    assert (await client.account(payee)).balance == before + 26
    assert [await node.stop() for node in network.nodes] == [0] * 5
    await asyncio.sleep(0)
