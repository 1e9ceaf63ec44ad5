"""Work heights with real nodes and a real requester: a claim that lies is refuted, the next one is adopted and paid."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from core.chain.block import BlockKind, OutcomeKind
from core.errors import NotFoundError
from core.ids import Digest, Height
from core.params import ChainParams
from core.verification.audit_evidence import read_record
from core.verification.transcript import Purpose
from services.cli.connection import Connection
from services.cli.transcripts import write_all
from services.rpc.chain_client import ChainClient
from services.rpc.channel import connect
from services.rpc.views import TaskPhase, TaskView
from services.testnet.layout import free_ports
from tests.led_node import Led
from tests.node_network import HOST, ROOT, Network, make_network, wait_height
from tests.node_pool import SmallPool
from tests.node_world import keys
from tests.requester_world import write_rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LONG = 120.0
"""Seconds, for what takes a few on a machine that does nothing else."""
PARAMS = ChainParams(
    entry_ms=300_000, commit_ms=600_000, claim_ms=900_000, session_ms=10_000, audit_ms=100_000, body_ms=100_000,
    open_ms=100_000, idle_ms=1_000,
).outlasting_stalls()  # fmt: skip
"""No window is short: `Run.lead` ends it. At the work height nobody waits for the end of his time, but for who is silent."""


@pytest.fixture
async def network(tmp_path: Path) -> AsyncIterator[Network]:
    made = make_network(tmp_path, 4, params=PARAMS, users=keys(3, "user"))
    for node in made.nodes:
        node.program = ("-m", "tests.led_node", str(tmp_path / "clock"))
    yield made
    await made.close()
    for node in made.nodes:
        if node.log.exists():
            print(f"--- {node.name}\n{node.log.read_text()[-8000:]}")


TWO_FACED = """
from core.ids import Correct, Digest
from core.verification import audit_requester as module
from core.verification.receipt import Answer, AnswerKind, sign_answer

honest = module.AuditRequester._reply

def reply(self, message):
    replies = honest(self, message)
    task, opened = self.task, self._open
    if self._validator == bytes.fromhex("%s"):
        return replies
    zero = Digest(bytes(32))
    answer = Answer(task.chain_id, task.task_id, opened.pool, opened.model_commitment, AnswerKind.MALFORMED, zero, Correct(0))
    self._end("malformed, she says")
    return (module.AuditAnswer(sign_answer(self._key, answer)),)

module.AuditRequester._reply = reply
import runpy
runpy.run_module("requester", run_name="__main__", alter_sys=True)
"""
"""A requester who tells one validator the truth and all others that the body is malformed."""


async def start_requester(network: Network, program: str = "") -> tuple[asyncio.subprocess.Process, str]:
    """Publishes one task by herself; her account is the first user's. ``program``: Python that runs her otherwise."""
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
            sys.executable, *(("-c", program) if program else ("-m", "requester")), "--config", str(home / "config.toml"),
            stdout=log, stderr=log,
            env=environment, cwd=ROOT,
        )  # fmt: skip
    return process, address


@dataclass
class Run:
    """All nodes, the requester and her task, and pools that serve."""

    network: Network
    client: ChainClient
    requester: asyncio.subprocess.Process
    address: str
    """Hers."""
    pools: list[SmallPool] = field(default_factory=list)

    async def pool(self, number: int, says: Callable[[int, int], int]) -> SmallPool:
        pool = SmallPool(self.network, f"pool{number}", self.network.users[number], self.client, says)
        self.pools.append(pool)
        await pool.server.start()
        await pool.server.ready()
        return pool

    async def task(self) -> TaskView:
        async with asyncio.timeout(LONG):
            tasks: tuple[TaskView, ...] = ()
            while not tasks:
                await asyncio.sleep(0.1)
                tasks = await self.client.tasks()
        return tasks[0]

    async def lead(self, task: TaskView, pools: int) -> None:
        """Ends each window of the task as soon as all the pools have done in it what is theirs."""
        clock = Led(self.network.folder / "clock")
        async for update in self.client.watch_tasks():
            view = next((t for t in update.tasks if t.task_id == task.task_id), None)
            if view is None or view.phase is TaskPhase.WORK:
                return
            done = {
                TaskPhase.ENTRY: (view.entry_close_ms, len(view.entries)),
                TaskPhase.TRAINING: (view.commit_close_ms, sum(e.model_commitment is not None for e in view.entries)),
                TaskPhase.EVALUATION: (view.claim_close_ms, sum(e.correct is not None for e in view.entries)),
            }
            close_ms, count = done.get(view.phase, (None, 0))
            if close_ms is not None and count == pools:
                clock.lead_to(close_ms)

    async def play(self, task: TaskView, *pools: SmallPool) -> None:
        """The pools' part, up to the offer of their work blocks to every node."""
        leading = asyncio.create_task(self.lead(task, len(pools)))
        try:
            await asyncio.gather(*(self._play(pool, task) for pool in pools))
        finally:
            leading.cancel()
            await asyncio.gather(leading, return_exceptions=True)

    async def _play(self, pool: SmallPool, task: TaskView) -> None:
        requester = connect(self.address, pool.files, expect_role="requester")
        offers = [connect(n.address, pool.files, expect_role="node") for n in self.network.nodes]
        self.network.channels += [requester, *offers]
        await pool.play(task, requester, offers)


@asynccontextmanager
async def running(network: Network, program: str = "") -> AsyncIterator[Run]:
    """``program``: as for ``start_requester``."""
    for node in network.nodes:
        await node.start()
    client = network.client()
    await wait_height(client, 1)
    run = Run(network, client, *await start_requester(network, program))
    try:
        yield run
    finally:
        for pool in run.pools:
            await pool.server.stop(0)
        run.requester.kill()
        await run.requester.wait()
        print((network.folder / "requester" / "log").read_text()[-3000:])


async def test_a_false_claim_is_refuted_and_the_true_one_wins(network: Network) -> None:
    async with running(network) as run:
        liar = await run.pool(1, lambda correct, total: total)
        honest = await run.pool(2, lambda correct, total: correct)
        task = await run.task()
        await run.play(task, liar, honest)
        ended = await honest.until(task, TaskPhase.WON)
        assert ended.phase is TaskPhase.WON
        assert ended.winner == honest.account
        assert ended.ended_height is not None
        for node in network.nodes:
            await wait_height(network.client(node), ended.ended_height + 1)
        shown = [await network.client(node).explain(ended.ended_height) for node in network.nodes]
        assert {view.block.header.kind for view in shown} == {BlockKind.WORK}
        assert len({view.block.state_root for view in shown}) == 1
        print("\n".join(shown[0].lines))
        kinds = {(v.pool, v.kind) for view in shown for v in view.verdicts}
        assert (liar.account, "pool-fault") in kinds
        assert (honest.account, "valid") in kinds
        # On a busy machine a height may be decided before all have audited.
        assert sum(any(v.audit_ms for v in view.verdicts) for view in shown) >= 2
        proofs = []
        # One that had no turn in all that time has the block from the others.
        assert sum(view.took_part for view in shown) >= 3
        for node, view in zip(network.nodes, shown, strict=True):
            if not view.took_part:
                continue
            assert view.task is not None
            assert {t.purpose for t in view.transcripts} <= {"audit", "stored-check"}
            assert any(t.purpose == "stored-check" for t in view.transcripts) or len(view.task.stored_by) < 4
            proofs += [read_record(await network.client(node).transcript(t.digest)) for t in view.transcripts]
        assert {p.pool for p in proofs if p.is_proved} == {None, liar.account, honest.account}
        with pytest.raises(NotFoundError):
            await run.client.transcript(Digest(bytes(32)))
        after = await run.client.block(Height(ended.ended_height + 1))
        assert [t.kind for t in after.transactions][:1] == ["Verdicts"]


async def test_a_two_faced_requester_is_convicted_on_sight_and_not_the_pool(network: Network) -> None:
    """She calls an honest pool's body malformed to three of four validators, and the pool shows them no opening. Without the
    exchange of answers the three hold the pool guilty, and its bond burns."""
    told_truth = network.genesis.validators[0].node_id
    async with running(network, TWO_FACED % told_truth.hex()) as run:
        pool = await run.pool(1, lambda correct, total: correct)
        task = await run.task()
        await run.play(task, pool)
        ended = await pool.until(task, TaskPhase.VOID)
        assert ended.phase is TaskPhase.VOID
        assert ended.ended_height is not None
        for node in network.nodes:
            await wait_height(network.client(node), ended.ended_height)
        shown = [await network.client(node).explain(ended.ended_height) for node in network.nodes]
        print("\n".join(shown[1].lines))
        assert {o.kind for view in shown for o in view.block.header.outcome} == {OutcomeKind.DEAD}
        said = {(v.validator, v.kind) for view in shown for v in view.verdicts}
        guilty = {who for who, kind in said if kind == "requester-fault"}
        assert len(guilty) >= 2
        assert not any(kind == "pool-fault" for _, kind in said)
        reasons = {v.reason for view in shown for v in view.verdicts if v.kind == "requester-fault"}
        assert any("two answers" in reason for reason in reasons), reasons
        assert all(view.contradictions for view in shown)
        assert any("Both together are proof against her" in line for line in shown[1].lines)
        # Who was told the truth keeps the evidence too, after a kill as well.
        first = network.nodes[0]
        await first.kill()
        await first.start()
        restarted = network.client(first)
        await wait_height(restarted, ended.ended_height)
        again = await restarted.explain(ended.ended_height)
        assert again.contradictions == shown[0].contradictions
        transcripts = [read_record(await restarted.transcript(t.digest)) for t in again.transcripts]
        assert {t.purpose for t in transcripts} >= {Purpose.AUDIT}
        assert all(t.validator == told_truth for t in transcripts)
        # As `pofl explain HEIGHT --transcripts DIR` does it, with one node that is down.
        await network.nodes[3].kill()
        async with AsyncExitStack() as stack:
            addresses = tuple(node.address for node in network.nodes)
            connection = Connection(run.client, None, network.files("user", "tester"), stack, addresses)
            written = await write_all(connection, ended.ended_height, network.folder / "proofs")
        signers = {read_record(path.read_bytes()).validator for path in written}
        assert told_truth in signers
        assert network.genesis.validators[3].node_id not in signers


async def test_all_nodes_die_at_a_work_height_the_pool_is_gone_and_they_still_finalise(network: Network) -> None:
    """They hold block and body, and have not heard from the requester yet. Without what is on disk nobody could ever give the
    winner's block again, and an honest pool's claim would be skipped."""
    async with running(network) as run:

        def evaluated(correct: int, total: int) -> int:
            """She sleeps from now on: nobody can audit."""
            run.requester.send_signal(signal.SIGSTOP)
            return correct

        pool = await run.pool(1, evaluated)
        task = await run.task()
        await run.play(task, pool)
        async with asyncio.timeout(LONG):
            for node in network.nodes:
                while "body of the claim is here" not in node.log.read_text():  # noqa: ASYNC110  # another process
                    await asyncio.sleep(0.1)
        height = (await run.client.tip()).height
        await asyncio.gather(*(node.kill() for node in network.nodes))
        await pool.server.stop(0)
        run.requester.send_signal(signal.SIGCONT)
        for node in network.nodes:
            await node.start()
        again = network.client()
        await wait_height(again, height + 1)
        ended = await again.task(task.task_id)
        assert (ended.phase, ended.winner, ended.ended_height) == (TaskPhase.WON, pool.account, height + 1)
        async with asyncio.timeout(LONG):
            for node in network.nodes:
                # Three of them are enough for the block; the last one may still be starting.
                while "work block is here from before the restart" not in node.log.read_text():  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
