"""The platform process: a front end to the nodes it is configured with."""

from __future__ import annotations

from pofl.task.v1 import task_pb2_grpc as rpc

from services.platform.config import PlatformConfig
from services.platform.servicer import SERVICE, PlatformServicer
from services.rpc.auth import ANYONE
from services.rpc.role import Role, open_chain, open_server, wait_for_chain
from services.runtime.lifecycle import Lifecycle

__all__ = ["main"]


async def main(role: Role[PlatformConfig], life: Lifecycle) -> None:
    """Serve until told to stop."""
    chain = open_chain(role, life)
    server = await open_server(role, life, {SERVICE: [ANYONE]})
    server.add(rpc.add_PlatformServiceServicer_to_server, PlatformServicer(chain), SERVICE)
    await server.start()
    await wait_for_chain(role, chain)
    await server.ready()
    await life.wait()
