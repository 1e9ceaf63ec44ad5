"""A full node, put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from grpc import aio
from pofl.blob.v1 import blob_pb2_grpc
from pofl.chain.v1 import chain_pb2_grpc
from pofl.peer.v1 import peer_pb2_grpc

from core.ids import Height, NodeId
from core.ports import Clock, SystemRng
from node.api import NodeApi
from node.auditor import Auditor
from node.blob_room import spare_blobs
from node.config import NodeConfig
from node.driver import Driver
from node.folder import open_chain_folder
from node.keeping import Keeping
from node.light import LightService
from node.links import Links
from node.outside import Channels
from node.pending import Pending
from node.servicer import CHAIN, CLAIM, PEER, RULES, ChainServicer, ClaimServicer, PeerServicer
from node.store import ChainStore
from node.sync import Sync
from node.task_sets import TaskSets
from node.transcripts import open_transcripts
from node.work import WorkHeights
from services.rpc import blobs, peer_client
from services.rpc.blob_store import BlobStore
from services.rpc.limits import CallerLimits
from services.rpc.role import Role, open_server
from services.rpc.server import RpcServer
from services.runtime.clock import SystemClock
from services.runtime.cpu import CpuPool
from services.runtime.lifecycle import Lifecycle
from services.runtime.logging import logger

__all__ = ["Node", "main", "open_node"]

log = logger(__name__)

BLOB_READERS: Final = ["node", "pool", "requester", "user"]
LIMITS: Final = CallerLimits(rate=400.0, burst=2_000, concurrent=128)
"""Of one caller: a platform or an explorer asks for many of its own users."""


@dataclass(frozen=True)
class Node:
    """The parts of a running node."""

    store: ChainStore
    driver: Driver
    links: Links
    sync: Sync
    work: WorkHeights
    task_sets: TaskSets
    api: NodeApi
    blobs: BlobStore

    def details(self) -> Mapping[str, object]:
        """What the operator's status shows."""
        state = self.store.state
        return {
            "height": state.height,
            "hash": state.tip.block_hash.hex(),
            "state_root": self.store.tip_root.hex(),
            "round": self.driver.machine.round,
            "validator": self.driver.is_validator,
            "peers": len(self.links.peers),
            "oldest_block": self.store.pruning.floor,
            "mempool": len(self.driver.pending),
            "current_task": "" if state.current is None else state.current.hex(),
            "behind": max(0, self.sync.best - state.height),
        }


def open_node(role: Role[NodeConfig], life: Lifecycle, clock: Clock) -> Node:
    """Open the data folder and connect the parts; nothing runs yet.

    Raises LockedError, WrongChainError, CorruptError, StorageFullError, ConfigError.
    """
    cfg, key, genesis = role.cfg, role.key, role.genesis
    me = NodeId(key.public_key)
    kv = open_chain_folder(cfg.data_dir, genesis, me)
    life.on_stop(kv.close)
    store = ChainStore(kv, genesis, cfg.keep_blocks)
    store.be_silent(Height(cfg.silent_until))
    blob_store = BlobStore(cfg.data_dir / "blobs", cfg.blob_mib << 20)
    blob_store.spare = lambda: spare_blobs(store.state, blob_store.digests())
    channels = Channels(role.identity, role.tls)
    life.on_stop(channels.close)
    driver = Driver(store, key, Pending(clock, cfg.mempool), clock, LightService(kv, store))
    links = Links(role.identity, role.tls, cfg.peers.nodes, driver, peer_client.gossip)

    def peers() -> Sequence[tuple[str, aio.Channel]]:
        return [(c.target, c.channel) for c in links.connections()]

    transcripts = open_transcripts(cfg.data_dir, genesis, me)
    life.on_stop(transcripts.close)
    auditor = Auditor(key, channels, SystemRng(), transcripts)
    cpu = CpuPool(cfg.audit_threads, queue=64)
    task_sets = TaskSets(me, blob_store, channels, auditor, cpu, peers, driver.submit_own)
    work = WorkHeights(driver, task_sets, auditor, channels, peers, transcripts, Keeping(store.held))
    work.on_height(task_sets.follow)
    work.on_height(links.follow)
    sync = Sync(driver, links.connection)
    driver.connect(links, work, sync.progress)
    life.on_stop(work.stop)
    life.on_stop(task_sets.stop)
    api = NodeApi(genesis, me, store, driver, work, links, transcripts)
    return Node(store, driver, links, sync, work, task_sets, api, blob_store)


def add_services(server: RpcServer, node: Node) -> None:
    server.add(chain_pb2_grpc.add_ChainServiceServicer_to_server, ChainServicer(node.api), CHAIN)
    server.add(peer_pb2_grpc.add_PeerServiceServicer_to_server, PeerServicer(node.api, node.links), PEER)
    server.add(peer_pb2_grpc.add_ClaimServiceServicer_to_server, ClaimServicer(node.api), CLAIM)
    servicer = blobs.BlobServicer(node.blobs)
    server.add(blob_pb2_grpc.add_BlobServiceServicer_to_server, servicer, blobs.SERVICE)


async def main(role: Role[NodeConfig], life: Lifecycle, clock: Clock | None = None) -> None:
    """Run until told to stop. ``clock``: of another machine than this one, for tests; there is no setting for it."""
    node = open_node(role, life, clock or SystemClock())
    rules = {**RULES, f"{blobs.SERVICE}/Stat": BLOB_READERS, f"{blobs.SERVICE}/Read": BLOB_READERS}
    server = await open_server(role, life, rules, limits=LIMITS)
    add_services(server, node)
    # Before the server's own stop, which would wait for the links that peers opened.
    life.on_stop(node.links.stop)
    server.details(node.details)
    await server.start()
    log.info("node is at", height=node.store.state.height, validator=node.driver.is_validator, node=role.account)
    life.spawn(node.driver.run(), "consensus")
    life.spawn(node.sync.run(), "sync")
    node.links.start()
    await server.ready()
    await life.wait()
