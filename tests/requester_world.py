"""A requester's surroundings for tests: a chain whose phases the test sets, certificates, and callers of every role."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from grpc import aio
from pofl.chain.v1 import chain_pb2 as pb
from pofl.chain.v1 import chain_pb2_grpc as rpc
from pofl.peer.v1 import peer_pb2 as peer_pb
from pofl.peer.v1 import peer_pb2_grpc as peer_rpc

from core.chain.block import Vm
from core.chain.rules_tasks import least_leak_bits
from core.chain.transaction import Activation, PublishTask, Refusal, SignedTransaction
from core.chain.transaction import task_id as make_task_id
from core.codec import decode
from core.crypto.homomorphic import PublicKey
from core.crypto.signing import KeyPair
from core.errors import NotFoundError, TransactionError, UnavailableError
from core.ids import AccountId, Amount, BlockHash, Correct, Height, Milliseconds, ModelCommitment, NodeId, StateRoot, TaskId
from core.params import ChainParams, Genesis, GenesisAccount, GenesisValidator
from core.ports import SystemRng
from core.verification.audit_node import AuditedClaim, AuditNode, StoredNode
from core.verification.body import commitment, make_body
from core.verification.evaluation_pool import EvaluationPool
from core.verification.scored_model import ScoredModel
from core.verification.task import TaskContext
from core.verification.test_set import EncryptedTestSet
from requester import app
from requester.config import RequesterConfig
from services.rpc import blobs, tls
from services.rpc import convert_chain as convert
from services.rpc.channel import connect
from services.rpc.limits import CHUNK
from services.rpc.role import open_role
from services.rpc.server import RpcServer
from services.rpc.views import AccountView, EntryView, TaskPhase, TaskView, Tip
from services.runtime import config
from services.runtime.lifecycle import Lifecycle
from tests.models import random_model

HOST = "127.0.0.1"
ROOT = Path(__file__).resolve().parent.parent
CHAIN = "pofl.chain.v1.ChainService"
CLAIM = "pofl.peer.v1.ClaimService"
RNG = SystemRng()


def key(name: str) -> KeyPair:
    return KeyPair.from_seed(name.encode().ljust(32, b"."))


REQUESTER = key("requester")
PARAMS = ChainParams()
GENESIS = Genesis(
    "test", 1, Milliseconds(1), tuple(GenesisValidator(NodeId(key(f"node{i}").public_key), 1, f"node{i}") for i in range(4)),
    (GenesisAccount(AccountId(REQUESTER.public_key), Amount(10**9), "requester"),), PARAMS,
)  # fmt: skip


class FakeChain(rpc.ChainServiceServicer):
    """ChainService with one rule: PublishTask makes a pending task. The test moves everything else."""

    def __init__(self) -> None:
        self.tasks: dict[TaskId, TaskView] = {}
        self.final: dict[bytes, int] = {}
        self.height = 1
        self.refuse: TransactionError | None = None
        self.lose_answers = 0
        """So many submissions are taken, but the answer is lost."""
        self.nonce = 0
        self.bodies: dict[bytes, bytes] = {}
        self._changed = asyncio.Condition()

    async def change(self, task_id: TaskId, **values: Any) -> TaskView:
        """A block that changes one task."""
        self.height += 1
        self.tasks[task_id] = replace(self.tasks[task_id], **values)
        async with self._changed:
            self._changed.notify_all()
        return self.tasks[task_id]

    async def published(self, number: int = 1, timeout: float = 20.0) -> TaskView:
        """The task of this number, when it is there."""
        async with asyncio.timeout(timeout), self._changed:
            await self._changed.wait_for(lambda: len(self.tasks) >= number)
        return list(self.tasks.values())[number - 1]

    async def GetGenesis(self, request: Any, context: Any) -> pb.GetGenesisResponse:  # noqa: N802
        return pb.GetGenesisResponse(chain_id=GENESIS.chain_id, genesis_json=GENESIS.to_json())

    async def GetTip(self, request: Any, context: Any) -> pb.GetTipResponse:  # noqa: N802
        zero = bytes(32)
        work = next((task.task_id for task in self.tasks.values() if task.phase is TaskPhase.WORK), None)
        tip = Tip(
            Height(self.height), BlockHash(zero), StateRoot(zero), None, Milliseconds(1000), work, work is not None, Amount(0),
            Amount(0), 0, 0, GENESIS.protocol_version,
        )  # fmt: skip
        return convert.tip_to_proto(tip)

    async def GetLightBlock(self, request: Any, context: Any) -> pb.GetLightBlockResponse:  # noqa: N802
        raise NotFoundError("no block yet: those who vote are the validators of the genesis document")

    async def GetAccount(self, request: Any, context: Any) -> pb.GetAccountResponse:  # noqa: N802
        return convert.account_to_proto(AccountView(Amount(10**9), self.nonce, 0, "", Height(self.height)))  # type: ignore[arg-type]

    async def SubmitTransaction(self, request: Any, context: Any) -> pb.SubmitTransactionResponse:  # noqa: N802
        if self.refuse is not None:
            raise self.refuse
        signed = decode(SignedTransaction, request.signed_transaction)
        tx = signed.decoded()
        payload = tx.payload
        assert isinstance(payload, PublishTask)
        task = make_task_id(tx.chain_id, tx.sender, payload.task_nonce)
        if task in self.tasks and signed.tx_id not in self.final:
            raise TransactionError("it is there already", Refusal.DUPLICATE)
        assert payload.spec.leak_bits >= least_leak_bits(payload.spec, PARAMS)
        self.tasks[task] = TaskView(
            task, tx.sender, payload.spec, payload.reward, payload.bond, payload.min_pool_bond, payload.task_nonce,
            Height(self.height + 1), TaskPhase.PENDING, payload.expires_ms,
        )  # fmt: skip
        self.final[signed.tx_id] = self.height + 1
        self.nonce += 1
        await self.change(task)
        if self.lose_answers:
            self.lose_answers -= 1
            raise UnavailableError("gone")
        return pb.SubmitTransactionResponse(tx_id=signed.tx_id)

    async def GetTransaction(self, request: Any, context: Any) -> pb.GetTransactionResponse:  # noqa: N802
        height = self.final.get(request.tx_id)
        if height is None:
            return pb.GetTransactionResponse(status=pb.TRANSACTION_STATUS_UNKNOWN)
        return pb.GetTransactionResponse(status=pb.TRANSACTION_STATUS_FINAL, height=height)

    async def GetTask(self, request: Any, context: Any) -> pb.GetTaskResponse:  # noqa: N802
        if request.task_id not in self.tasks:
            raise NotFoundError("no such task")
        return pb.GetTaskResponse(task=convert.task_to_proto(self.tasks[TaskId(request.task_id)]), height=self.height)

    async def WatchTasks(self, request: Any, context: Any) -> AsyncIterator[pb.WatchTasksResponse]:  # noqa: N802
        while True:
            seen = self.height
            unfinished = [convert.task_to_proto(task) for task in self.tasks.values() if not task.phase.is_ended]
            yield pb.WatchTasksResponse(height=seen, block_time_ms=seen, tasks=unfinished)
            async with self._changed:
                await self._changed.wait_for(lambda seen=seen: self.height > seen)  # type: ignore[misc]


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
class World:
    """A chain, certificates, and one requester, in this process or in one of its own."""

    folder: Path
    chain: FakeChain
    authority: tls.Authority
    chain_address: str
    port: int
    settings: dict[str, object]
    channels: list[aio.Channel] = field(default_factory=list)
    process: asyncio.subprocess.Process | None = None
    life: Lifecycle | None = None
    running: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def files(self, role: str, name: str) -> tls.TlsFiles:
        folder = self.folder / f"{role}-{name}"
        if not folder.exists():
            tls.issue(self.authority, role, name, [HOST, "localhost"], key(name).public_key).write(folder)
        return tls.TlsFiles(folder / "ca.pem", folder / "tls.pem", folder / "tls.key")

    def channel(self, role: str, name: str) -> aio.Channel:
        """To the requester, as this caller."""
        channel = connect(self.address, self.files(role, name), expect_role="requester")
        self.channels.append(channel)
        return channel

    def write_config(self) -> Path:
        files = self.files("requester", "requester")
        account = self.folder / "account.key"
        if not account.exists():
            descriptor = os.open(account, os.O_WRONLY | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(REQUESTER.seed.hex())
        (self.folder / "genesis.json").write_text(GENESIS.to_json())
        path = self.folder / "requester.toml"
        auto = "".join(f"{name} = {value!r}\n" for name, value in self.settings.items())
        path.write_text(
            f'name = "requester"\nlisten = "{self.address}"\ndata_dir = "data"\nkey = "account.key"\n'
            f'[tls]\nca = "{files.ca}"\ncert = "{files.cert}"\nkey = "{files.key}"\n[chain]\ngenesis = "genesis.json"\n'
            f'[peers]\nnodes = ["{self.chain_address}"]\n[auto]\n{auto}'
        )
        return path

    async def start(self) -> None:
        """The requester in this process."""
        role = open_role(config.load(RequesterConfig, self.write_config(), {}))
        self.life = Lifecycle()
        self.running = asyncio.create_task(app.main(role, self.life))
        await asyncio.sleep(0)

    async def stop(self) -> None:
        if self.life is not None and self.running is not None:
            self.life.stop()
            self.running.cancel()
            await asyncio.wait((self.running,))
            await self.life.close(time.monotonic() + 5)
            self.life = self.running = None

    async def spawn(self) -> None:
        """The requester in a process of its own."""
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "OMP_NUM_THREADS": "1"}
        with (self.folder / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "requester", "--config", str(self.write_config()), stdout=log, stderr=log,
                env=environment, cwd=ROOT,
            )  # fmt: skip
        async with asyncio.timeout(30):
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
            await blobs.fetch(channel, digest, 1 << 24, store, 20.0)
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
        await self.chain.change(
            task.task_id, phase=TaskPhase.WON, winner=AccountId(key(pool).public_key), ended_height=height
        )

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


def stored_machine(
    loaded: tuple[TaskContext, PublicKey, EncryptedTestSet], node: str, attempt: int = 0
) -> StoredNode:
    context, pk, test_set = loaded
    return StoredNode(context, RNG.bytes(32), NodeId(key(node).public_key), pk, test_set, RNG, attempt)


def write_rows(folder: Path, rows: int = 40, features: int = 8, classes: int = 3) -> tuple[Path, Path]:
    """A secret and a public data set of random rows."""
    rng = np.random.default_rng(7)
    paths = folder / "test.npz", folder / "practice.npz"
    for path in paths:
        np.savez(path, x=rng.random((rows, features)).astype(np.float32), y=np.arange(rows) % classes)
    return paths


def free_port() -> Iterator[int]:
    with socket.socket() as held:
        held.bind((HOST, 0))
        yield held.getsockname()[1]


@contextlib.asynccontextmanager
async def make_world(folder: Path, **settings: object) -> AsyncIterator[World]:
    """Nothing but the chain runs yet. ``settings``: the requester's [auto] table."""
    authority = tls.make_authority(folder / "ca")
    chain = FakeChain()  # type: ignore[abstract]
    tls.issue(authority, "node", "node0", [HOST], key("node0").public_key).write(folder / "node-node0")
    files = tls.TlsFiles(*(folder / "node-node0" / name for name in ("ca.pem", "tls.pem", "tls.key")))
    server = RpcServer(f"{HOST}:0", files, f"{HOST}:0", role_rules={CHAIN: ["*"], CLAIM: ["requester"]})
    server.add(rpc.add_ChainServiceServicer_to_server, chain, CHAIN)
    server.add(peer_rpc.add_ClaimServiceServicer_to_server, FakeClaims(chain), CLAIM)  # type: ignore[abstract]
    await server.start()
    await server.ready()
    world = World(folder, chain, authority, server.address, next(free_port()), settings)
    try:
        yield world
    finally:
        await world.close()
        await server.stop(0)
