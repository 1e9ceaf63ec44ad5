"""A network for measurements: a chain whose phases the bench sets, certificates, and a real requester process on loopback.

The chain is the only part that is not the product's: it takes PublishTask and shows the task in whatever phase it is put.
Everything that is measured runs in processes of its own, over gRPC with mutual TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from grpc import aio
from pofl.chain.v1 import chain_pb2 as pb
from pofl.chain.v1 import chain_pb2_grpc as rpc

from core.chain.transaction import PublishTask, SignedTransaction
from core.chain.transaction import task_id as make_task_id
from core.codec import decode, encode
from core.crypto.signing import KeyPair
from core.errors import DeadlineError, NotFoundError, PoflError, UnavailableError
from core.ids import AccountId, Amount, BlockHash, Height, Milliseconds, NodeId, StateRoot, TaskId
from core.params import ChainParams, Genesis, GenesisAccount, GenesisValidator
from services.rpc import convert_chain as convert
from services.rpc import tls
from services.rpc.channel import connect
from services.rpc.server import RpcServer
from services.rpc.views import AccountView, TaskPhase, TaskView, Tip
from services.runtime.startup import PARENT

__all__ = ["HOST", "Client", "Network", "end", "environment", "key", "network"]

HOST = "127.0.0.1"
ROOT = Path(__file__).resolve().parent.parent
CHAIN = "pofl.chain.v1.ChainService"
LONGEST_S = 600.0
"""No step of a measurement takes longer."""


def key(name: str) -> KeyPair:
    """A participant's key: a function of its name, on this throw-away network."""
    return KeyPair.from_seed(name.encode().ljust(32, b"."))


def environment() -> dict[str, str]:
    """One thread of linear algebra a process, as the services are run. It ends when this process does, however that ends."""
    return {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")]), "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1", PARENT: str(os.getpid()),
    }  # fmt: skip


def genesis(nodes: int) -> Genesis:
    validators = tuple(GenesisValidator(NodeId(key(f"node{i}").public_key), 1, f"node{i}") for i in range(nodes))
    rich = GenesisAccount(AccountId(key("requester").public_key), Amount(10**9), "requester")
    # Windows as wide as so many validators need; nothing here waits for them.
    params = ChainParams(
        entry_ms=60_000, commit_ms=120_000, claim_ms=180_000, settle_ms=60_000, audit_ms=60_000, delivery_ms=300_000
    )
    made = Genesis("bench", 1, Milliseconds(1), validators, (rich,), params)
    made.check()
    return made


class Chain(rpc.ChainServiceServicer):
    """As much of a chain as a requester looks at."""

    def __init__(self, start: Genesis) -> None:
        self.tasks: dict[TaskId, TaskView] = {}
        self.transaction_bytes = 0
        """Of the last transaction that came."""
        self._genesis, self._height = start, 1
        self._final: dict[bytes, int] = {}
        self._changed = asyncio.Condition()

    async def change(self, task_id: TaskId, **values: Any) -> None:
        """A block that changes one task."""
        self._height += 1
        self.tasks[task_id] = replace(self.tasks[task_id], **values)
        async with self._changed:
            self._changed.notify_all()

    async def GetGenesis(self, request: Any, context: Any) -> pb.GetGenesisResponse:  # noqa: N802
        return pb.GetGenesisResponse(chain_id=self._genesis.chain_id, genesis_json=self._genesis.to_json())

    async def GetTip(self, request: Any, context: Any) -> pb.GetTipResponse:  # noqa: N802
        zero, none = bytes(32), Amount(0)
        deciding = next((task.task_id for task in self.tasks.values() if task.phase is TaskPhase.WORK), None)
        tip = Tip(
            Height(self._height), BlockHash(zero), StateRoot(zero), None, Milliseconds(1000), deciding, deciding is not None,
            none, none, 0, 0, self._genesis.protocol_version,
        )  # fmt: skip
        return convert.tip_to_proto(tip)

    async def GetLightBlock(self, request: Any, context: Any) -> pb.GetLightBlockResponse:  # noqa: N802
        raise NotFoundError("this chain has no certificates: the validators are those of the genesis document")

    async def GetAccount(self, request: Any, context: Any) -> pb.GetAccountResponse:  # noqa: N802
        return convert.account_to_proto(AccountView(Amount(10**9), len(self.tasks), 0, "", Height(self._height)))  # type: ignore[arg-type]

    async def SubmitTransaction(self, request: Any, context: Any) -> pb.SubmitTransactionResponse:  # noqa: N802
        self.transaction_bytes = len(request.signed_transaction)
        signed = decode(SignedTransaction, request.signed_transaction)
        tx = signed.decoded()
        assert isinstance(tx.payload, PublishTask)
        task, payload = make_task_id(tx.chain_id, tx.sender, tx.payload.task_nonce), tx.payload
        self.tasks[task] = TaskView(
            task, tx.sender, payload.spec, payload.reward, payload.bond, payload.min_pool_bond, payload.task_nonce,
            Height(self._height + 1), TaskPhase.PENDING, payload.expires_ms,
        )  # fmt: skip
        self._final[signed.tx_id] = self._height + 1
        await self.change(task)
        return pb.SubmitTransactionResponse(tx_id=signed.tx_id)

    async def GetTransaction(self, request: Any, context: Any) -> pb.GetTransactionResponse:  # noqa: N802
        height = self._final.get(request.tx_id)
        if height is None:
            return pb.GetTransactionResponse(status=pb.TRANSACTION_STATUS_UNKNOWN)
        return pb.GetTransactionResponse(status=pb.TRANSACTION_STATUS_FINAL, height=height)

    async def GetTask(self, request: Any, context: Any) -> pb.GetTaskResponse:  # noqa: N802
        if request.task_id not in self.tasks:
            raise NotFoundError("no such task")
        return pb.GetTaskResponse(task=convert.task_to_proto(self.tasks[TaskId(request.task_id)]), height=self._height)

    async def WatchTasks(self, request: Any, context: Any) -> AsyncIterator[pb.WatchTasksResponse]:  # noqa: N802
        while True:
            seen = self._height
            unfinished = [convert.task_to_proto(task) for task in self.tasks.values() if not task.phase.is_ended]
            yield pb.WatchTasksResponse(height=seen, block_time_ms=seen, tasks=unfinished)
            async with self._changed:
                await self._changed.wait_for(lambda seen=seen: self._height > seen)  # type: ignore[misc]


class Client:
    """A process of one or more participants: a JSON object in, a JSON object out, one line each."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process, self._log = process, log

    async def ask(self, **request: object) -> Any:
        """Raises PoflError with what the process said."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        await self._process.stdin.drain()
        try:
            async with asyncio.timeout(LONGEST_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise DeadlineError(f"{request.get('do')}: no result within {LONGEST_S:g} s") from None
        reply = json.loads(line) if line else {"error": f"the process ended; {_last_line(self._log)}"}
        if "error" in reply:
            raise UnavailableError(f"{request.get('do')}: {reply['error']}")
        return reply

    @property
    def pid(self) -> int:
        return self._process.pid

    async def close(self) -> None:
        await end(self._process)


@dataclass
class Network:
    """Chain, certificates and requester."""

    folder: Path
    start: Genesis
    chain: Chain
    authority: tls.Authority
    chain_address: str
    port: int
    requester_pid: int = 0
    processes: list[asyncio.subprocess.Process] = field(default_factory=list)
    channels: list[aio.Channel] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def files(self, role: str, name: str) -> tls.TlsFiles:
        folder = self.folder / f"{role}-{name}"
        if not folder.exists():
            tls.issue(self.authority, role, name, [HOST, "localhost"], key(name).public_key).write(folder)
        return tls.TlsFiles(folder / "ca.pem", folder / "tls.pem", folder / "tls.key")

    def channel(self, role: str, name: str) -> aio.Channel:
        channel = connect(self.address, self.files(role, name), expect_role="requester")
        self.channels.append(channel)
        return channel

    async def spawn_requester(self) -> None:
        files = self.files("requester", "requester")
        account = self.folder / "account.key"
        account.touch(0o600)
        account.write_text(key("requester").seed.hex())
        (self.folder / "genesis.json").write_text(self.start.to_json())
        path = self.folder / "requester.toml"
        path.write_text(
            f'name = "requester"\nlisten = "{self.address}"\ndata_dir = "data"\nkey = "account.key"\n'
            f'[tls]\nca = "{files.ca}"\ncert = "{files.cert}"\nkey = "{files.key}"\n[chain]\ngenesis = "genesis.json"\n'
            f'[peers]\nnodes = ["{self.chain_address}"]\n'
        )
        with (self.folder / "requester.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "requester", "--config", str(path), stdin=asyncio.subprocess.DEVNULL,
                stdout=log, stderr=log, env=environment(), cwd=ROOT, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        self.requester_pid = process.pid
        ready = asyncio.ensure_future(self.channel("user", "user").channel_ready())
        ended = asyncio.ensure_future(process.wait())
        try:
            done, _ = await asyncio.wait((ready, ended), timeout=60, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in (ready, ended):
                one.cancel()
            await asyncio.gather(ready, ended, return_exceptions=True)
        if ready not in done:
            raise TimeoutError("the requester did not come up")

    async def spawn_client(self, task: TaskView, *who: tuple[str, str]) -> Client:
        """A process that speaks as each of ``who`` (role, name) to the requester about one task."""
        file = self.folder / "task.bin"
        file.write_bytes(encode(task.spec))
        for role, name in who:
            self.files(role, name)
        # A session of its own: Ctrl-C comes to this process alone, which then ends the others.
        with (self.folder / "clients.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "bench.verification_client", str(self.folder), self.address, self.start.chain_id.hex(),
                task.task_id.hex(), task.requester.hex(), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                stderr=log, env=environment(), cwd=ROOT, limit=1 << 24, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return Client(process, self.folder / "clients.log")

    async def close(self) -> None:
        for channel in self.channels:
            with contextlib.suppress(PoflError):
                await channel.close(None)
        await asyncio.gather(*(end(process) for process in self.processes))


async def end(process: asyncio.subprocess.Process) -> None:
    """Politely, then by force."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)  # terminate() would reap one that has just ended, under asyncio's feet
        try:
            async with asyncio.timeout(10):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


@contextlib.asynccontextmanager
async def network(folder: Path, nodes: int) -> AsyncIterator[Network]:
    """Chain and certificates in this process, the requester in her own."""
    start = genesis(nodes)
    chain = Chain(start)  # type: ignore[abstract]
    authority = tls.make_authority(folder / "ca")
    tls.issue(authority, "node", "chain", [HOST], key("chain").public_key).write(folder / "node-chain")
    files = tls.TlsFiles(*(folder / "node-chain" / name for name in ("ca.pem", "tls.pem", "tls.key")))
    server = RpcServer(f"{HOST}:0", files, f"{HOST}:0", role_rules={CHAIN: ["*"]})
    server.add(rpc.add_ChainServiceServicer_to_server, chain, CHAIN)
    await server.start()
    await server.ready()
    with socket.socket() as held:
        held.bind((HOST, 0))
        port = int(held.getsockname()[1])
    made = Network(folder, start, chain, authority, server.address, port)
    try:
        await made.spawn_requester()
        yield made
    except TimeoutError as error:
        log = (folder / "requester.log").read_text(errors="replace")[-2000:]
        raise UnavailableError(f"a step took too long; the requester's log ends: {log}") from error
    finally:
        # Shielded: a second Ctrl-C must not leave a process behind.
        await asyncio.shield(_close(made, server))


async def _close(made: Network, server: RpcServer) -> None:
    await made.close()
    await server.stop(0)
