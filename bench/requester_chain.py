"""What a requester sees around her: a chain whose phases a measurement or a test sets, certificates, her configuration.

The chain is the only part that is not the product's: it takes PublishTask and shows the task in whatever phase it is put.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from grpc import aio
from pofl.chain.v1 import chain_pb2 as pb
from pofl.chain.v1 import chain_pb2_grpc as rpc

from core.chain.transaction import PublishTask, SignedTransaction
from core.chain.transaction import task_id as make_task_id
from core.codec import decode
from core.crypto.signing import KeyPair
from core.errors import NotFoundError
from core.ids import AccountId, Amount, BlockHash, Height, Milliseconds, NodeId, StateRoot, TaskId
from core.params import ChainParams, Genesis, GenesisAccount, GenesisValidator
from services.rpc import convert_chain as convert
from services.rpc import tls
from services.rpc.channel import connect
from services.rpc.server import RpcServer
from services.rpc.views import AccountView, TaskPhase, TaskView, Tip
from services.testnet.layout import free_ports

__all__ = ["CHAIN", "HOST", "ROOT", "Chain", "Surroundings", "genesis", "key"]

HOST = "127.0.0.1"
ROOT = Path(__file__).resolve().parent.parent
CHAIN = "pofl.chain.v1.ChainService"


def key(name: str) -> KeyPair:
    """A participant's key: a function of its name, on this throw-away network."""
    return KeyPair.from_seed(name.encode().ljust(32, b"."))


def genesis(name: str, nodes: int, params: ChainParams) -> Genesis:
    """``nodes`` validators, and a requester with money."""
    validators = tuple(GenesisValidator(NodeId(key(f"node{i}").public_key), 1, f"node{i}") for i in range(nodes))
    rich = GenesisAccount(AccountId(key("requester").public_key), Amount(10**9), "requester")
    made = Genesis(name, 1, Milliseconds(1), validators, (rich,), params)
    made.check()
    return made


class Chain(rpc.ChainServiceServicer):
    """As much of a chain as a requester looks at."""

    def __init__(self, start: Genesis) -> None:
        self.tasks: dict[TaskId, TaskView] = {}
        self.transaction_bytes = 0
        """Of the last transaction that came."""
        self.genesis, self.height = start, 1
        self.final: dict[bytes, int] = {}
        self.changed = asyncio.Condition()

    async def change(self, task_id: TaskId, **values: Any) -> TaskView:
        """A block that changes one task."""
        self.height += 1
        self.tasks[task_id] = replace(self.tasks[task_id], **values)
        async with self.changed:
            self.changed.notify_all()
        return self.tasks[task_id]

    async def GetGenesis(self, request: Any, context: Any) -> pb.GetGenesisResponse:  # noqa: N802
        return pb.GetGenesisResponse(chain_id=self.genesis.chain_id, genesis_json=self.genesis.to_json())

    async def GetTip(self, request: Any, context: Any) -> pb.GetTipResponse:  # noqa: N802
        zero, none = bytes(32), Amount(0)
        deciding = next((task.task_id for task in self.tasks.values() if task.phase is TaskPhase.WORK), None)
        tip = Tip(
            Height(self.height), BlockHash(zero), StateRoot(zero), None, Milliseconds(1000), deciding, deciding is not None,
            none, none, 0, 0, self.genesis.protocol_version,
        )  # fmt: skip
        return convert.tip_to_proto(tip)

    async def GetLightBlock(self, request: Any, context: Any) -> pb.GetLightBlockResponse:  # noqa: N802
        raise NotFoundError("this chain has no certificates: the validators are those of the genesis document")

    async def GetAccount(self, request: Any, context: Any) -> pb.GetAccountResponse:  # noqa: N802
        return convert.account_to_proto(AccountView(Amount(10**9), len(self.tasks), 0, "", Height(self.height)))  # type: ignore[arg-type]

    async def SubmitTransaction(self, request: Any, context: Any) -> pb.SubmitTransactionResponse:  # noqa: N802
        self.transaction_bytes = len(request.signed_transaction)
        signed = decode(SignedTransaction, request.signed_transaction)
        tx = signed.decoded()
        assert isinstance(tx.payload, PublishTask)
        task, payload = make_task_id(tx.chain_id, tx.sender, tx.payload.task_nonce), tx.payload
        self.tasks[task] = TaskView(
            task, tx.sender, payload.spec, payload.reward, payload.bond, payload.min_pool_bond, payload.task_nonce,
            Height(self.height + 1), TaskPhase.PENDING, payload.expires_ms,
        )  # fmt: skip
        self.final[signed.tx_id] = self.height + 1
        await self.change(task)
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
            async with self.changed:
                await self.changed.wait_for(lambda seen=seen: self.height > seen)  # type: ignore[misc]


@dataclass
class Surroundings:
    """Certificates, and where the chain and the requester are."""

    folder: Path
    chain: Chain
    authority: tls.Authority
    server: RpcServer
    """The chain's."""
    port: int
    """The requester's."""
    channels: list[aio.Channel] = field(default_factory=list)

    @classmethod
    def make(cls, folder: Path, chain: Chain, name: str, rules: Mapping[str, list[str]] | None = None) -> Self:
        """The chain's server is a node called ``name``, and does not run yet. ``rules``: of what it serves beside the chain."""
        authority = tls.make_authority(folder / "ca")
        home = folder / f"node-{name}"
        tls.issue(authority, "node", name, [HOST], key(name).public_key).write(home)
        files = tls.TlsFiles(*(home / file for file in ("ca.pem", "tls.pem", "tls.key")))
        server = RpcServer(f"{HOST}:0", files, f"{HOST}:0", role_rules={CHAIN: ["*"], **(rules or {})})
        server.add(rpc.add_ChainServiceServicer_to_server, chain, CHAIN)
        return cls(folder, chain, authority, server, free_ports(1)[0])

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

    def write_config(self, more: str = "") -> Path:
        """The requester's configuration, with her key and the genesis document. ``more``: further TOML."""
        files = self.files("requester", "requester")
        account = self.folder / "account.key"
        if not account.exists():
            descriptor = os.open(account, os.O_WRONLY | os.O_CREAT, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(key("requester").seed.hex())
        (self.folder / "genesis.json").write_text(self.chain.genesis.to_json())
        path = self.folder / "requester.toml"
        path.write_text(
            f'name = "requester"\nlisten = "{self.address}"\ndata_dir = "data"\nkey = "account.key"\n'
            f'[tls]\nca = "{files.ca}"\ncert = "{files.cert}"\nkey = "{files.key}"\n[chain]\ngenesis = "genesis.json"\n'
            f'[peers]\nnodes = ["{self.server.address}"]\n{more}'
        )
        return path
