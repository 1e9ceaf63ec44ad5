"""A requester's surroundings for tests: a chain whose phases the test sets, certificates, and callers of every role."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from pofl.chain.v1 import chain_pb2 as pb
from pofl.peer.v1 import peer_pb2 as peer_pb
from pofl.peer.v1 import peer_pb2_grpc as peer_rpc

from bench.requester_chain import ROOT, Chain, Surroundings, genesis, key
from core.chain.block import Vm
from core.chain.rules_tasks import least_leak_bits
from core.chain.transaction import Activation, PublishTask, Refusal, SignedTransaction
from core.chain.transaction import task_id as make_task_id
from core.codec import decode
from core.crypto.homomorphic import PublicKey
from core.errors import NotFoundError, TransactionError, UnavailableError
from core.ids import AccountId, Amount, Correct, Height, ModelCommitment, NodeId
from core.params import ChainParams
from core.ports import SystemRng
from core.verification.audit_node import AuditedClaim, AuditNode, StoredNode
from core.verification.body import commitment, make_body
from core.verification.evaluation_pool import EvaluationPool
from core.verification.scored_model import ScoredModel
from core.verification.task import TaskContext
from core.verification.test_set import EncryptedTestSet
from requester import app
from requester.config import RequesterConfig
from services.rpc import blobs
from services.rpc.limits import CHUNK
from services.rpc.role import open_role
from services.rpc.views import EntryView, TaskPhase, TaskView
from services.runtime import config
from services.runtime.lifecycle import Lifecycle
from tests.models import random_model

CLAIM = "pofl.peer.v1.ClaimService"
RNG = SystemRng()
PARAMS = ChainParams(session_ms=30_000, audit_ms=120_000).outlasting_stalls()
"""Nobody loses a place or an audit for the machine's slowness."""
GENESIS = genesis("test", 4, PARAMS)


class FakeChain(Chain):
    """Refuses, or loses its answer, when the test says so."""

    def __init__(self) -> None:
        super().__init__(GENESIS)
        self.refuse: TransactionError | None = None
        self.lose_answers = 0
        """So many submissions are taken, but the answer is lost."""
        self.bodies: dict[bytes, bytes] = {}

    async def published(self, number: int = 1, timeout: float = 120.0) -> TaskView:
        """The task of this number, when it is there."""
        async with asyncio.timeout(timeout), self.changed:
            await self.changed.wait_for(lambda: len(self.tasks) >= number)
        return list(self.tasks.values())[number - 1]

    async def SubmitTransaction(self, request: Any, context: Any) -> pb.SubmitTransactionResponse:  # noqa: N802
        if self.refuse is not None:
            raise self.refuse
        signed = decode(SignedTransaction, request.signed_transaction)
        tx = signed.decoded()
        assert isinstance(tx.payload, PublishTask)
        if make_task_id(tx.chain_id, tx.sender, tx.payload.task_nonce) in self.tasks and signed.tx_id not in self.final:
            raise TransactionError("it is there already", Refusal.DUPLICATE)
        assert tx.payload.spec.leak_bits >= least_leak_bits(tx.payload.spec, PARAMS)
        answer = await super().SubmitTransaction(request, context)
        if self.lose_answers:
            self.lose_answers -= 1
            raise UnavailableError("gone")
        return answer


class FakeClaims(peer_rpc.ClaimServiceServicer):
    """The bodies that the test gives it, as nodes serve them."""

    def __init__(self, chain: FakeChain) -> None:
        self._chain = chain

    async def FetchVm(self, request: Any, context: Any) -> AsyncIterator[peer_pb.FetchVmResponse]:  # noqa: N802
        body = self._chain.bodies.get(request.model_commitment)
        if body is None:
            raise NotFoundError("no body here")
        for offset in range(0, len(body), CHUNK):
            yield peer_pb.FetchVmResponse(chunk=body[offset : offset + CHUNK], total_bytes=0 if offset else len(body))


@dataclass
class Ready:
    """A committed pool: its model, body and commitment."""

    name: str
    model: ScoredModel
    body: bytes
    c_w: ModelCommitment


@dataclass
class World(Surroundings):
    """One requester, in this process or in one of its own."""

    chain: FakeChain
    settings: dict[str, object] = field(default_factory=dict)
    """Her [auto] table."""
    process: asyncio.subprocess.Process | None = None
    life: Lifecycle | None = None
    running: asyncio.Task[None] | None = None

    def configured(self) -> Path:
        return self.write_config("[auto]\n" + "".join(f"{name} = {value!r}\n" for name, value in self.settings.items()))

    async def start(self) -> None:
        """The requester in this process."""
        role = open_role(config.load(RequesterConfig, self.configured(), {}))
        self.life = Lifecycle()
        self.running = asyncio.create_task(app.main(role, self.life))
        await asyncio.sleep(0)

    async def stop(self) -> None:
        if self.life is not None and self.running is not None:
            self.life.stop()
            self.running.cancel()
            await asyncio.wait((self.running,))
            await self.life.close(time.monotonic() + 60)
            self.life = self.running = None

    async def spawn(self) -> None:
        """The requester in a process of its own."""
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "OMP_NUM_THREADS": "1"}
        with (self.folder / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "requester", "--config", str(self.configured()), stdout=log, stderr=log,
                env=environment, cwd=ROOT,
            )  # fmt: skip
        async with asyncio.timeout(150):
            await self.channel("user", "user").channel_ready()

    async def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGKILL)
            await self.process.wait()
            self.process = None

    # What callers know

    async def load(self, task: TaskView, role: str, name: str) -> tuple[TaskContext, PublicKey, EncryptedTestSet]:
        """Blobs as this caller fetches them."""
        context = TaskContext(GENESIS.chain_id, task.task_id, task.requester, task.spec)
        store = blobs.BlobStore(self.folder / f"blobs-{name}", 1 << 30)
        channel = self.channel(role, name)
        for digest in (*task.spec.test_blobs, task.spec.public_key_blob, task.spec.practice_blob):
            await blobs.fetch(channel, digest, 1 << 24, store, 120.0)
        pk = context.public_key(store.get(task.spec.public_key_blob))
        return context, pk, EncryptedTestSet.load(context, [store.get(d) for d in task.spec.test_blobs])

    def model(self, task: TaskView, pool: str, pk: PublicKey, seed: int = 1) -> Ready:
        spec = task.spec
        model = random_model((spec.features, *spec.hidden, spec.classes), Activation.SIGMOID, seed)
        body, _ = make_body(pk, model, RNG)
        return Ready(pool, model, body, commitment(GENESIS.chain_id, task.task_id, AccountId(key(pool).public_key), body))

    async def enter(self, task: TaskView, *pools: str) -> None:
        entries = tuple(EntryView(AccountId(key(p).public_key), Amount(1), "127.0.0.1:1") for p in pools)
        await self.chain.change(task.task_id, phase=TaskPhase.TRAINING, entries=entries)

    async def commit(self, task: TaskView, *ready: Ready) -> None:
        commits = {key(r.name).public_key: r.c_w for r in ready}
        entries = tuple(replace(e, model_commitment=commits.get(e.pool)) for e in self.chain.tasks[task.task_id].entries)
        await self.chain.change(task.task_id, phase=TaskPhase.EVALUATION, entries=entries)

    async def claim(self, task: TaskView, pool: str, correct: Correct, vm: Vm) -> None:
        account = key(pool).public_key
        entries = tuple(
            replace(e, correct=correct, vm=vm) if e.pool == account else e for e in self.chain.tasks[task.task_id].entries
        )
        await self.chain.change(task.task_id, phase=TaskPhase.WORK, entries=entries)

    async def win(self, task: TaskView, pool: str) -> None:
        height = Height(self.chain.height + 1)
        await self.chain.change(task.task_id, phase=TaskPhase.WON, winner=AccountId(key(pool).public_key), ended_height=height)

    async def close(self) -> None:
        for channel in self.channels:
            await channel.close(None)
        await self.stop()
        await self.kill()


def evaluation_machine(loaded: tuple[TaskContext, PublicKey, EncryptedTestSet], pool: str, batch: int = 0) -> EvaluationPool:
    context, pk, test_set = loaded
    return EvaluationPool(context, RNG.bytes(32), AccountId(key(pool).public_key), pk, test_set, RNG, batch)


def audit_machine(
    loaded: tuple[TaskContext, PublicKey, EncryptedTestSet], node: str, claim: AuditedClaim, attempt: int = 0
) -> AuditNode:
    context, pk, test_set = loaded
    return AuditNode(context, RNG.bytes(32), key(node), pk, test_set, claim, RNG, attempt)


def stored_machine(loaded: tuple[TaskContext, PublicKey, EncryptedTestSet], node: str, attempt: int = 0) -> StoredNode:
    context, pk, test_set = loaded
    return StoredNode(context, RNG.bytes(32), NodeId(key(node).public_key), pk, test_set, RNG, attempt)


def write_rows(folder: Path, rows: int = 40, features: int = 8, classes: int = 3) -> tuple[Path, Path]:
    """A secret and a public data set of random rows."""
    rng = np.random.default_rng(7)
    paths = folder / "test.npz", folder / "practice.npz"
    for path in paths:
        np.savez(path, x=rng.random((rows, features)).astype(np.float32), y=np.arange(rows) % classes)
    return paths


@contextlib.asynccontextmanager
async def make_world(folder: Path, **settings: object) -> AsyncIterator[World]:
    """Nothing but the chain runs yet. ``settings``: the requester's [auto] table."""
    chain = FakeChain()  # type: ignore[abstract]
    world = World.make(folder, chain, "node0", {CLAIM: ["requester"]})
    world.settings = settings
    world.server.add(peer_rpc.add_ClaimServiceServicer_to_server, FakeClaims(chain), CLAIM)  # type: ignore[abstract]
    await world.server.start()
    await world.server.ready()
    try:
        yield world
    finally:
        await world.close()
        await world.server.stop(0)
