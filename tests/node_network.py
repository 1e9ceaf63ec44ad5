"""A network of real node processes on loopback, with mutual TLS, for integration tests."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from grpc import aio

from core.crypto.signing import KeyPair
from core.errors import PoflError
from core.params import ChainParams, Genesis
from services.rpc import tls
from services.rpc.chain_client import ChainClient
from services.rpc.channel import connect
from services.rpc.handshake import ChainIdentity, LocalIdentity
from services.runtime.startup import PARENT
from services.testnet.layout import free_ports
from tests.node_world import keys, make_genesis

HOST = "127.0.0.1"
ROOT = Path(__file__).resolve().parent.parent
FAST = ChainParams(idle_ms=1_500)


@dataclass
class NodeProcess:
    name: str
    address: str
    config: Path
    log: Path
    process: asyncio.subprocess.Process | None = None
    program: tuple[str, ...] = ("-m", "node")
    """What Python runs, before ``--config``."""
    before: tuple[str, ...] = ()
    """What starts Python, as ``ip netns exec NAME``."""
    options: tuple[str, ...] = ()
    """After ``--config FILE``."""

    async def start(self) -> None:
        extra = {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
        # A test run that is killed leaves no nodes behind.
        environment = {**os.environ, **extra, PARENT: str(os.getpid())}
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.before, sys.executable, *self.program, "--config", str(self.config), *self.options,
                stdout=log, stderr=log, env=environment, cwd=ROOT,
            )  # fmt: skip

    async def kill(self) -> None:
        """As a power failure ends it."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()
        self.process = None

    async def stop(self, timeout: float = 100.0) -> int:
        """As an operator ends it; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return await self.ended(timeout)

    async def ended(self, timeout: float) -> int:
        """The exit code, once it has ended by itself."""
        assert self.process is not None
        async with asyncio.timeout(timeout):
            code = await self.process.wait()
        self.process = None
        return code


@dataclass
class Network:
    folder: Path
    genesis: Genesis
    authority: tls.Authority
    nodes: list[NodeProcess]
    users: tuple[KeyPair, ...]
    channels: list[aio.Channel] = field(default_factory=list)

    def files(self, role: str, name: str, account: bytes | None = None) -> tls.TlsFiles:
        folder = self.folder / f"{role}-{name}"
        if not folder.exists():
            tls.issue(self.authority, role, name, [HOST, "localhost"], account).write(folder)
        return tls.TlsFiles(folder / "ca.pem", folder / "tls.pem", folder / "tls.key")

    def identity(self, role: str, name: str, key: KeyPair) -> LocalIdentity:
        return LocalIdentity(role, name, ChainIdentity(self.genesis.name, self.genesis.chain_id, 1), key)

    def channel(self, node: NodeProcess, role: str = "user", name: str = "tester") -> aio.Channel:
        channel = connect(node.address, self.files(role, name), expect_role="node")
        self.channels.append(channel)
        return channel

    def client(self, *nodes: NodeProcess) -> ChainClient:
        return ChainClient([(n.name, self.channel(n)) for n in nodes or self.nodes])

    async def close(self) -> None:
        for channel in self.channels:
            await channel.close(None)
        running = [n for n in self.nodes if n.process is not None]
        for node in running:
            await node.kill()


def make_network(
    folder: Path, validators: int, followers: int = 0, params: ChainParams = FAST, users: Sequence[KeyPair] | None = None
) -> Network:
    """Files for ``validators`` and ``followers`` nodes; nothing runs yet. Followers are in nobody's list of peers."""
    node_keys = keys(validators + followers, "network")
    user_keys = tuple(users) if users is not None else keys(3, "user")
    genesis = make_genesis(node_keys[:validators], user_keys, time.time_ns() // 1_000_000, params)
    (folder / "genesis.json").write_text(genesis.to_json())
    authority = tls.make_authority(folder / "ca")
    ports = free_ports(2 * (validators + followers))
    nodes: list[NodeProcess] = []
    network = Network(folder, genesis, authority, nodes, user_keys)
    for index, key in enumerate(node_keys):
        name = f"node{index}"
        files = network.files("node", name, key.public_key)
        home = folder / name
        home.mkdir()
        descriptor = os.open(home / "account.key", os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(key.seed.hex())
        peers = [f"{HOST}:{ports[2 * i]}" for i in range(validators) if i != index]
        (home / "config.toml").write_text(
            f'name = "{name}"\nlisten = "{HOST}:{ports[2 * index]}"\nadmin_listen = "{HOST}:{ports[2 * index + 1]}"\n'
            f'data_dir = "data"\nkey = "account.key"\n'
            f'[tls]\nca = "{files.ca}"\ncert = "{files.cert}"\nkey = "{files.key}"\n'
            f'[chain]\ngenesis = "../genesis.json"\n[log]\nlevel = "debug"\n[peers]\nnodes = {peers!r}\n'
        )
        nodes.append(NodeProcess(name, f"{HOST}:{ports[2 * index]}", home / "config.toml", home / "log"))
    return network


async def wait_height(client: ChainClient, height: int, timeout: float = 120.0) -> None:
    """Until a node has finalised ``height``; an assertion error after ``timeout`` seconds, far more than it ever takes."""
    end = time.monotonic() + timeout
    seen = -1
    while time.monotonic() < end:
        with contextlib.suppress(PoflError):
            seen = (await client.tip()).height
        if seen >= height:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"height {seen} after {timeout:g} s, expected {height}")
