"""Work heights with real nodes and a real requester: a claim that lies is refuted, the next one is adopted and paid."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.chain.block import BlockKind
from core.ids import Height
from core.params import ChainParams
from services.rpc.channel import connect
from services.rpc.views import TaskPhase, TaskView
from tests.node_network import HOST, ROOT, Network, free_ports, make_network, wait_height
from tests.node_pool import SmallPool
from tests.node_world import keys
from tests.requester_world import write_rows

QUICK = ChainParams(
    entry_ms=4_200, commit_ms=8_400, claim_ms=14_500, session_ms=800, audit_ms=3_200, body_ms=2_500, idle_ms=2_000,
)  # fmt: skip


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[Network]:
    made = make_network(tmp_path, 4, params=QUICK, users=keys(3, "user"))
    yield made
    await made.close()
    for node in made.nodes:
        if node.log.exists():
            print(f"--- {node.name}\n{node.log.read_text()[-8000:]}")


async def start_requester(network: Network) -> tuple[asyncio.subprocess.Process, str]:
    """Publishes one task by herself; her account is the first user's."""
    key = network.users[0]
    files = network.files("requester", "requester0", key.public_key)
    test, practice = write_rows(network.folder)
    home = network.folder / "requester"
    home.mkdir()
    descriptor = os.open(home / "account.key", os.O_WRONLY | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(key.seed.hex())
    address = f"{HOST}:{free_ports(1)[0]}"
    (home / "config.toml").write_text(
        f'name = "requester0"\nlisten = "{address}"\ndata_dir = "data"\nkey = "account.key"\n'
        f'[tls]\nca = "{files.ca}"\ncert = "{files.cert}"\nkey = "{files.key}"\n[chain]\ngenesis = "../genesis.json"\n'
        f"[peers]\nnodes = {[n.address for n in network.nodes]!r}\n"
        f'[auto]\ntasks = 1\ntest_set = "{test}"\npractice_set = "{practice}"\nhidden = [4]\nreward = 1000\n'
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "OMP_NUM_THREADS": "1"}
    with (home / "log").open("ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "requester", "--config", str(home / "config.toml"), stdout=log, stderr=log,
            env=environment, cwd=ROOT,
        )  # fmt: skip
    return process, address


@pytest.mark.slow
async def test_a_false_claim_is_refuted_and_the_true_one_wins(network: Network) -> None:
    for node in network.nodes:
        await node.start()
    client = network.client()
    await wait_height(client, 1, 30)
    process, address = await start_requester(network)
    liar = SmallPool(network, "pool1", network.users[1], client, lambda correct, total: total)
    honest = SmallPool(network, "pool2", network.users[2], client, lambda correct, total: correct)
    try:
        for pool in (liar, honest):
            await pool.server.start()
            await pool.server.ready()
        async with asyncio.timeout(30):
            tasks: tuple[TaskView, ...] = ()
            while not tasks:
                tasks = await client.tasks()
                await asyncio.sleep(0.1)
        plays = []
        for pool in (liar, honest):
            requester = connect(address, pool.files, expect_role="requester")
            network.channels.append(requester)
            offers = [connect(n.address, pool.files, expect_role="node") for n in network.nodes]
            network.channels.extend(offers)
            plays.append(pool.play(tasks[0], requester, offers))
        await asyncio.gather(*plays)
        ended = await honest.until(tasks[0], TaskPhase.WON)
        assert ended.phase is TaskPhase.WON
        assert ended.winner == honest.account
        assert ended.ended_height is not None
        for node in network.nodes:
            await wait_height(network.client(node), ended.ended_height + 1, 10)
        shown = [await network.client(node).explain(ended.ended_height) for node in network.nodes]
        assert {view.block.header.kind for view in shown} == {BlockKind.WORK}
        assert len({view.block.state_root for view in shown}) == 1
        print("\n".join(shown[0].lines))
        kinds = {(v.pool, v.kind) for view in shown for v in view.verdicts}
        assert (liar.account, "pool-fault") in kinds
        assert (honest.account, "valid") in kinds
        assert all(any(v.audit_ms for v in view.verdicts) for view in shown)
        after = await client.block(Height(ended.ended_height + 1))
        assert [t.kind for t in after.transactions][:1] == ["Verdicts"]
    finally:
        for pool in (liar, honest):
            await pool.server.stop(0)
        process.kill()
        await process.wait()
        print((network.folder / "requester" / "log").read_text()[-3000:])
