"""Real node processes: a follower becomes a validator, a dead one is voted out, and an unknown version stops all."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from core.chain.light import trust_genesis
from core.chain.state import Membership
from core.chain.transaction import (
    DOMAIN_APPROVAL,
    Approval,
    JoinValidator,
    LeaveValidator,
    ScheduleUpgrade,
    approval_message,
)
from core.crypto.signing import KeyPair, sign
from core.errors import PoflError, TransactionError
from core.ids import Amount, Height, NodeId
from services.rpc.chain_client import ChainClient, Wallet
from tests.node_network import FAST, Network, NodeProcess, make_network, wait_height
from tests.node_world import keys

KEYS = keys(5, "network")
BOND = Amount(500_000)
PARAMS = replace(FAST, audit_ms=12_000, validator_bond=BOND, upgrade_notice=2, idle_ms=700)
Change = TypeVar("Change", JoinValidator, LeaveValidator, ScheduleUpgrade)


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[Network]:
    made = make_network(tmp_path, validators=4, followers=1, params=PARAMS, users=(*keys(1, "user"), KEYS[4]))
    yield made
    await made.close()
    for node in made.nodes:
        if node.log.exists():
            print(f"--- {node.name}\n{node.log.read_text()[-6000:]}")


def approved(network: Network, change: Change, *signers: KeyPair) -> Change:
    message = approval_message(network.genesis.chain_id, change)
    made = (Approval(NodeId(k.public_key), sign(k, DOMAIN_APPROVAL, message)) for k in signers)
    return replace(change, approvals=tuple(sorted(made, key=lambda a: a.validator)))


async def dialled(node: NodeProcess, address: str) -> None:
    def is_connected() -> bool:
        return any("connected" in line and f"target={address}" in line for line in node.log.read_text().splitlines())

    async with asyncio.timeout(120):
        while not is_connected():  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.2)


async def signs(client: ChainClient, validator: NodeId, at: int) -> None:
    """Until a certificate from height ``at`` on has its signature: each has those of two thirds, whoever came first."""
    async with asyncio.timeout(120):
        async for view in client.watch_blocks(Height(at)):
            if validator in {s.validator for s in view.certificate.signatures}:
                return


async def stops(network: Network, node: NodeProcess, first: Height) -> bool:
    """Whether it stops before height ``first``, by itself. False: short of that it has nobody left to ask."""
    process = node.process
    assert process is not None
    while True:
        with contextlib.suppress(TimeoutError):
            assert await asyncio.wait_for(process.wait(), 30) == 2
            node.process = None
            return True
        if sum(each.process is None or each.process.returncode is not None for each in network.nodes) >= 2:
            with contextlib.suppress(PoflError):
                assert (await network.client(node).tip()).height < first - 1
                return False


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_follower_joins_a_dead_validator_is_voted_out_and_an_unknown_version_stops_all(network: Network) -> None:
    for node in network.nodes:
        await node.start()
    client = network.client(*network.nodes)
    await wait_height(client, 2)
    me, dead = NodeId(KEYS[4].public_key), NodeId(KEYS[3].public_key)
    wallet = Wallet(client, network.genesis.chain_id, network.users[0])

    join = JoinValidator(me, 1, BOND, network.nodes[4].address, 0, Height(10_000), ())
    own = Wallet(client, network.genesis.chain_id, KEYS[4])
    _, height = await own.send_and_wait(approved(network, join, *KEYS[:3]), 120)
    await signs(client, me, height + 2)
    # Nobody has it in a list: its address is on the chain.
    for node in network.nodes[:4]:
        await dialled(node, network.nodes[4].address)

    # With four of five the chain goes on, and the fifth is voted out; then three of four are enough again.
    await network.nodes[3].kill()
    alive = network.client(*(network.nodes[i] for i in (0, 1, 2, 4)))
    wallet = Wallet(alive, network.genesis.chain_id, network.users[0])
    leave = LeaveValidator(dead, Height(1), "dead", Height(10_000), ())
    _, height = await wallet.send_and_wait(approved(network, leave, *KEYS[:3], KEYS[4]), 120)
    await wait_height(alive, height + 3)
    shown, _ = await alive.validators()
    assert {v.node_id for v in shown if v.power} == {NodeId(KEYS[i].public_key) for i in (0, 1, 2, 4)}

    # Who knows only the genesis document follows over both changes.
    trusted = trust_genesis(network.genesis)
    member, at_block = await alive.prove(Membership, "memberships", me, trusted)
    assert member is not None
    assert member.bond == BOND
    assert {v.node_id for v in at_block.validators} == {v.node_id for v in shown if v.power}

    # The dead one comes back as a follower, over both changes of the validators.
    await network.nodes[3].start()
    await wait_height(network.client(network.nodes[3]), at_block.height)

    for ahead in (8, 32, 128):
        first = Height((await alive.tip()).height + ahead)
        upgrade = ScheduleUpgrade(2, first, Height(10_000), ())
        # A machine that is busy enough makes the blocks of the notice before it hands this in.
        with contextlib.suppress(TransactionError):
            await wallet.send_and_wait(approved(network, upgrade, *KEYS[:3]), 120)
            break
    async with asyncio.timeout(240):
        stopped = [node for node in network.nodes if await stops(network, node, first)]
    # Those whose votes made the last block at least: who has that block is gone, and does not hand it on to who has it not.
    assert len(stopped) >= 2
    for node in stopped:
        assert f"It has stopped at height {first - 1} and loses nothing" in node.log.read_text()
