"""Who may call what: every method of every contract, on every kind of server, by every role, over real connections.

`TABLE` is written by hand and from nothing else: a method that is added to a contract, or a rule that is changed, fails here
until somebody has said who is meant to call it.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import ServiceDescriptor
from grpc import aio

import node.app
import node.servicer
import pool.manager.servicer
import pool.miner.servicer
import provider.servicer
import requester.servicer
import services.platform.servicer
from core.errors import AuthError
from services.rpc import auth, blobs, tls
from services.rpc.channel import connect
from services.rpc.errors import translate
from services.rpc.limits import CallerLimits
from services.rpc.server import COMMON_RULES, RpcServer

AREAS = ("admin", "blob", "chain", "market", "mining", "peer", "task", "verify")
ROLES = ("node", "pool", "miner", "requester", "provider", "platform", "explorer", "user")
ALL = " ".join(ROLES)

CHAIN, PEER, CLAIM = "pofl.chain.v1.ChainService", "pofl.peer.v1.PeerService", "pofl.peer.v1.ClaimService"
BLOB, IDENTITY = "pofl.blob.v1.BlobService", "pofl.admin.v1.IdentityService"

TABLE: Mapping[str, Mapping[str, str]] = {
    "node": {
        **{
            f"{CHAIN}/{method}": ALL
            for method in (
                "GetGenesis",
                "GetTip",
                "GetBlock",
                "WatchBlocks",
                "SubmitTransaction",
                "SubmitTransactions",
                "GetTransaction",
                "GetAccount",
                "ListTasks",
                "GetTask",
                "WatchTasks",
                "ListProviders",
                "GetTrade",
                "ListTrades",
                "GetMarket",
                "ListValidators",
                "GetLightBlock",
                "GetProof",
                "WatchClaims",
                "Explain",
                "GetTranscript",
            )
        },
        f"{PEER}/Gossip": "node",
        f"{PEER}/FetchBlocks": "node",
        f"{PEER}/FetchHeaders": "node",
        f"{PEER}/OfferWork": "pool",
        f"{PEER}/WatchWork": "pool requester",
        f"{CLAIM}/FetchWork": "node requester",
        f"{CLAIM}/FetchVm": "node requester",
        f"{CLAIM}/FetchOpening": "node",
        f"{BLOB}/Stat": "node pool requester user",
        f"{BLOB}/Read": "node pool requester user",
        f"{IDENTITY}/Handshake": ALL,
    },
    "pool": {
        "pofl.mining.v1.PoolService/Join": "miner",
        "pofl.mining.v1.PoolService/Attend": "miner",
        "pofl.mining.v1.PoolService/HandInReceipt": "miner",
        "pofl.mining.v1.PoolService/Leave": "miner",
        "pofl.mining.v1.PoolService/Countersign": "miner",
        "pofl.mining.v1.PoolService/ListContributions": ALL,
        "pofl.mining.v1.PoolService/ListMinedTasks": ALL,
        "pofl.mining.v1.PoolService/ListMembers": ALL,
        "pofl.mining.v1.PoolService/WatchProgress": ALL,
        f"{CLAIM}/FetchWork": "node requester",
        f"{CLAIM}/FetchVm": "node requester",
        f"{CLAIM}/FetchOpening": "node",
        f"{IDENTITY}/Handshake": ALL,
    },
    "miner": {
        "pofl.mining.v1.MinerService/GetStatus": "user",
        f"{IDENTITY}/Handshake": ALL,
    },
    "requester": {
        "pofl.verify.v1.VerifyService/Evaluate": "pool",
        "pofl.verify.v1.VerifyService/Audit": "node",
        "pofl.verify.v1.VerifyService/CheckStored": "node",
        "pofl.task.v1.RequesterService/PublishTask": "user",
        "pofl.task.v1.RequesterService/ListOwnTasks": "user",
        "pofl.task.v1.RequesterService/FetchModel": "user",
        "pofl.task.v1.RequesterService/WatchActivity": "user",
        f"{BLOB}/Stat": "node pool requester",
        f"{BLOB}/Read": "node pool requester",
        f"{IDENTITY}/Handshake": ALL,
    },
    "provider": {
        "pofl.market.v1.ProviderService/ListDataSets": ALL,
        "pofl.market.v1.ProviderService/RequestOffer": "pool",
        "pofl.market.v1.ProviderService/AcceptBid": "pool",
        "pofl.market.v1.ProviderService/Deliver": "miner",
        f"{IDENTITY}/Handshake": ALL,
    },
    "platform": {
        "pofl.task.v1.PlatformService/SubmitTask": ALL,
        "pofl.task.v1.PlatformService/ListTasks": ALL,
        "pofl.task.v1.PlatformService/GetTask": ALL,
        "pofl.task.v1.PlatformService/GetCurrentTask": ALL,
        "pofl.task.v1.PlatformService/WatchTasks": ALL,
        f"{IDENTITY}/Handshake": ALL,
    },
}
"""Of each kind of server: who may call which method. What is not here is refused to everybody."""

RULES: Mapping[str, Mapping[str, list[str]]] = {
    "node": {**node.servicer.RULES, **{f"{blobs.SERVICE}/{method}": node.app.BLOB_READERS for method in ("Stat", "Read")}},
    "pool": pool.manager.servicer.RULES,
    "miner": pool.miner.servicer.RULES,
    "requester": requester.servicer.RULES,
    "provider": provider.servicer.RULES,
    "platform": {services.platform.servicer.SERVICE: [auth.ANYONE]},
}
"""What each role's composition root gives its server."""

# Served on the operator's loopback port, and nowhere else.
OPERATORS = {"pofl.admin.v1.AdminService/Status", "pofl.admin.v1.AdminService/Metrics"}
# A blob is only ever fetched: no process takes one that others bring.
NOWHERE = {f"{BLOB}/Write"}


def contracts() -> dict[str, ServiceDescriptor]:
    found = {}
    for area in AREAS:
        module = importlib.import_module(f"pofl.{area}.v1.{area}_pb2")
        found.update({service.full_name: service for service in module.DESCRIPTOR.services_by_name.values()})
    return found


def every_method() -> set[str]:
    return {f"{name}/{method.name}" for name, service in contracts().items() for method in service.methods}


def test_every_contract_is_looked_at() -> None:
    contracts = Path(__file__).resolve().parents[2] / "proto" / "pofl"
    assert {path.parent.name for path in contracts.glob("*/v1")} == set(AREAS)


def test_every_method_of_every_contract_has_its_line() -> None:
    listed = {method for rows in TABLE.values() for method in rows} | OPERATORS | NOWHERE
    assert every_method() - listed == set(), "nobody has said who may call these: add them to TABLE"
    assert listed - every_method() == set(), "these are in no contract any more"


@pytest.mark.parametrize("server", TABLE)
def test_the_rules_of_each_server_are_its_table_for_every_method_there_is(server: str) -> None:
    rules = auth.RoleRules({**COMMON_RULES, **RULES[server]})
    wrong = []
    for method in sorted(every_method()):
        for role in ROLES:
            try:
                rules.check(f"/{method}", auth.Caller(role, "x"))
                may = True
            except AuthError:
                may = False
            if may != (role in TABLE[server].get(method, "").split()):
                wrong.append((method, role, may))
    assert wrong == []


class Counted:
    """Serves whole services with methods that take any bytes and answer with none."""

    def __init__(self) -> None:
        self.reached: set[tuple[str, str]] = set()

    def add_to(self, server: RpcServer, service: ServiceDescriptor) -> None:
        def method(name: str) -> Any:
            async def served(requests: Any, context: aio.ServicerContext[Any, Any]) -> Any:
                self.reached.add((name, auth.caller(context).role))
                yield b""

            return grpc.stream_stream_rpc_method_handler(served)

        handlers = {each.name: method(f"{service.full_name}/{each.name}") for each in service.methods}
        generic = grpc.method_handlers_generic_handler(service.full_name, handlers)
        server.add(lambda _, on: on.add_generic_rpc_handlers((generic,)), None, service.full_name)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("server", TABLE)
async def test_no_certificate_of_another_role_reaches_a_method(server: str, tmp_path: Path) -> None:
    authority = tls.make_authority(tmp_path / "ca")

    def files(role: str, name: str = "x-1") -> tls.TlsFiles:
        return tls.issue(authority, role, name, ["127.0.0.1"]).write(tmp_path / f"{role}-{name}")

    everything = contracts()
    counted = Counted()
    real = RpcServer(
        "127.0.0.1:0", files(server, "served"), "127.0.0.1:0", role_rules=RULES[server],
        limits=CallerLimits(rate=1e6, burst=10**6, concurrent=10**4),
    )  # fmt: skip
    names = {method.partition("/")[0] for method in TABLE[server]}
    for name in sorted(names):
        counted.add_to(real, everything[name])
    await real.start()
    try:
        refused: set[tuple[str, str]] = set()

        async def one(channel: aio.Channel, role: str, method: str) -> None:
            # The same bytes travel whatever kind of method it is.
            call = channel.unary_unary(f"/{method}", bytes, bytes)
            try:
                with translate(server):
                    await call(b"", timeout=100, wait_for_ready=True)
            except AuthError:
                refused.add((method, role))

        for role in (*ROLES, "intruder"):
            async with connect(real.address, files(role), expect_role=server) as channel:
                methods = [f"{name}/{each.name}" for name in sorted(names) for each in everything[name].methods]
                await asyncio.gather(*(one(channel, role, method) for method in methods))
    finally:
        await real.stop(0)
    meant = {(method, role) for method, roles in TABLE[server].items() for role in roles.split()}
    # Whoever the authority has certified is "anyone", also under a role that has no program here.
    meant |= {(method, "intruder") for method, roles in TABLE[server].items() if roles == ALL}
    assert counted.reached == meant
    assert refused == {(method, role) for method in methods for role in (*ROLES, "intruder")} - meant


async def test_the_operators_methods_are_not_on_the_port_for_roles(tmp_path: Path) -> None:
    """Not refused by a rule: they are not there, whatever a rule says."""
    authority = tls.make_authority(tmp_path / "ca")
    files = tls.issue(authority, "node", "x-1", ["127.0.0.1"]).write(tmp_path / "node")
    server = RpcServer("127.0.0.1:0", files, "127.0.0.1:0", role_rules={"pofl.admin.v1.AdminService": [auth.ANYONE]})
    await server.start()
    try:
        async with connect(server.address, files, expect_role="node") as channel:
            for method in sorted(OPERATORS):
                raw = channel.unary_unary(f"/{method}", bytes, bytes)
                with pytest.raises(aio.AioRpcError) as caught:
                    await raw(b"", timeout=60, wait_for_ready=True)
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    finally:
        await server.stop(0)
