"""Real node processes: a follower becomes a validator, a dead one is voted out, and an unknown version stops all."""

from __future__ import annotations

import asyncio
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
from core.ids import Amount, Height, NodeId
from services.rpc.chain_client import Wallet
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
    for _ in range(150):
        if any("connected" in line and f"target={address}" in line for line in node.log.read_text().splitlines()):
            return
        await asyncio.sleep(0.2)
    raise AssertionError(f"{node.name} did not dial {address}")


@pytest.mark.slow
async def test_a_follower_joins_a_dead_validator_is_voted_out_and_an_unknown_version_stops_all(network: Network) -> None:
    for node in network.nodes:
        await node.start()
    client = network.client(*network.nodes)
    await wait_height(client, 2, 60)
    me, dead = NodeId(KEYS[4].public_key), NodeId(KEYS[3].public_key)
    wallet = Wallet(client, network.genesis.chain_id, network.users[0])

    join = JoinValidator(me, 1, BOND, network.nodes[4].address, 0, Height(10_000), ())
    own = Wallet(client, network.genesis.chain_id, KEYS[4])
    _, height = await own.send_and_wait(approved(network, join, *KEYS[:3]), 30)
    await wait_height(client, height + 4, 60)
    authors, signers = set(), set()
    for at in range(height + 2, (await client.tip()).height + 1):
        view = await client.block(Height(at))
        authors.add(view.header.author_id)
        signers |= {s.validator for s in view.certificate.signatures}
    assert me in signers
    # Nobody has it in a list: its address is on the chain.
    for node in network.nodes[:4]:
        await dialled(node, network.nodes[4].address)

    # With four of five the chain goes on, and the fifth is voted out; then three of four are enough again.
    await network.nodes[3].kill()
    alive = network.client(*(network.nodes[i] for i in (0, 1, 2, 4)))
    wallet = Wallet(alive, network.genesis.chain_id, network.users[0])
    leave = LeaveValidator(dead, Height(1), "dead", Height(10_000), ())
    _, height = await wallet.send_and_wait(approved(network, leave, *KEYS[:3], KEYS[4]), 60)
    await wait_height(alive, height + 3, 60)
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
    await wait_height(network.client(network.nodes[3]), at_block.height, 60)

    first = Height((await alive.tip()).height + 8)
    upgrade = ScheduleUpgrade(2, first, Height(10_000), ())
    await wallet.send_and_wait(approved(network, upgrade, *KEYS[:3]), 60)
    async with asyncio.timeout(90):
        codes = [await node.process.wait() for node in network.nodes if node.process is not None]
    assert codes == [2] * 5
    for node in network.nodes:
        assert f"It has stopped at height {first - 1} and loses nothing" in node.log.read_text()
        node.process = None
