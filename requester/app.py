"""The requester process: she publishes tasks, helps pools to evaluate and validators to audit, and receives the model."""

from __future__ import annotations

from typing import Final

from pofl.blob.v1 import blob_pb2_grpc
from pofl.task.v1 import task_pb2_grpc
from pofl.verify.v1 import verify_pb2_grpc

from core.chain.state import genesis_validators
from core.errors import PoflError
from core.ports import SystemRng
from requester.agreement import Agreement
from requester.config import RequesterConfig
from requester.models import BodySource, TaskBooks
from requester.servicer import OWNER, RULES, VERIFY, OwnerServicer, VerifyServicer
from requester.sessions import SessionLimits, Sessions
from requester.standing import Follower
from requester.store import RequesterStore, TaskSecrets
from requester.tasks import Desk, Platforms, TaskMaker
from services.rpc import blobs
from services.rpc.chain_client import ChainClient, Wallet
from services.rpc.channel import connect
from services.rpc.role import Role, open_chain, open_server, wait_for_chain
from services.rpc.validator_watch import ValidatorWatch
from services.runtime.clock import SystemClock
from services.runtime.config import advertised
from services.runtime.lifecycle import Lifecycle
from services.runtime.logging import logger
from services.storage import LevelDb, StoreMeta

__all__ = ["main", "session_limits"]

log = logger(__name__)

SCHEMA: Final = 1
BLOB_QUOTA: Final = 16 << 30
"""Bytes of encrypted test sets; those of ended tasks are removed."""


async def main(role: Role[RequesterConfig], life: Lifecycle) -> None:
    """Serve until told to stop."""
    cfg, genesis, rng = role.cfg, role.genesis, SystemRng()
    database = LevelDb(cfg.data_dir / "db", StoreMeta(SCHEMA, genesis.name, genesis.chain_id, role.account))
    life.on_stop(database.close)
    store, secrets = RequesterStore(database), TaskSecrets(cfg.data_dir / "secrets")
    blob_store = blobs.BlobStore(cfg.data_dir / "blobs", BLOB_QUOTA)
    chain = open_chain(role, life)
    validators = genesis_validators(genesis)
    follower = Follower(chain, genesis.chain_id, validators, Agreement(_each_node(role, life), len(validators)))
    books = TaskBooks(genesis.chain_id, role.key, store, secrets)
    sessions = Sessions(books, follower, store, role.key, rng, session_limits(role))
    life.on_stop(sessions.close)
    desk = Desk(
        TaskMaker(genesis, role.account, blob_store, secrets, rng),
        store, secrets, books, blob_store, chain,
        Wallet.of(chain, genesis, role.key),
        Platforms(role.identity, role.tls, cfg.peers.platforms, chain),
        follower, sessions,
        BodySource(role.identity, role.tls, cfg.peers.nodes),
        SystemClock(), cfg.auto,
    )  # fmt: skip
    desk.resume()

    server = await open_server(role, life, RULES)
    server.add(verify_pb2_grpc.add_VerifyServiceServicer_to_server, VerifyServicer(sessions), VERIFY)
    server.add(blob_pb2_grpc.add_BlobServiceServicer_to_server, blobs.BlobServicer(blob_store), blobs.SERVICE)
    server.add(task_pb2_grpc.add_RequesterServiceServicer_to_server, OwnerServicer(desk, store, sessions), OWNER)
    await server.start()
    desk.endpoint = advertised(cfg, server.address)
    await wait_for_chain(role, chain)
    watch = ValidatorWatch(chain, genesis, follower.replace_validators)
    try:
        # Before the first ranking is believed: genesis may name fewer validators than there are by now.
        await watch.refresh()
    except PoflError as error:
        log.info("could not see who votes yet", error=error)
    life.spawn(follower.run(), "follow the chain")
    life.spawn(watch.run(), "follow the validators")
    life.spawn(desk.run(), "see to the tasks")
    await server.ready()
    await life.wait()


def _each_node(role: Role[RequesterConfig], life: Lifecycle) -> list[tuple[str, ChainClient]]:
    """A client of each configured node alone."""
    nodes = []
    for target in role.cfg.peers.nodes:
        channel = connect(target, role.tls, expect_role="node", caller=role.identity.caller)
        life.on_stop(lambda channel=channel: channel.close(None))  # type: ignore[misc]
        nodes.append((target, ChainClient([(target, channel)])))
    return nodes


def session_limits(role: Role[RequesterConfig]) -> SessionLimits:
    """Places from the configuration, times from the genesis document, where validators read them too."""
    params = role.genesis.params
    return SessionLimits(
        audit_slots=role.cfg.audit_slots,
        audit_queue=role.cfg.audit_queue,
        evaluation_slots=role.cfg.evaluation_slots,
        slot_s=params.session_ms / 1000,
        audit_s=params.audit_ms / 1000,
    )
