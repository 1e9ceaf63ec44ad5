"""The gRPC server of a process: one port for roles and users, one on loopback for the operator."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from grpc import aio
from grpc_health.v1 import _async as health_aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from pofl.admin.v1 import admin_pb2, admin_pb2_grpc

from core.errors import ConfigError, UnavailableError
from services.rpc import tls
from services.rpc.admin import AdminServicer, Details
from services.rpc.auth import ANYONE, RoleRules
from services.rpc.handshake import IdentityServicer, LocalIdentity
from services.rpc.interceptor import Interceptor
from services.rpc.limits import MAX_MESSAGE, CallerLimits, ConnectionLimits, Limiter
from services.runtime.logging import logger

__all__ = ["RpcServer", "is_loopback", "message_options"]

log = logger(__name__)

Register = Callable[[Any, aio.Server], None]
"""A generated ``add_…Servicer_to_server``."""

IDENTITY = admin_pb2.DESCRIPTOR.services_by_name["IdentityService"].full_name
ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name
COMMON_RULES = {health.SERVICE_NAME: [ANYONE], reflection.SERVICE_NAME: [ANYONE], IDENTITY: [ANYONE]}


class RpcServer:
    """Serves a role.

    ``listen`` and ``admin_listen`` are ``host:port``; port 0 takes a free one, readable from `address` and
    `admin_address` after `start`. ``tls`` is None only for plaintext on loopback. ``role_rules`` says which roles may
    call which service or method (services.rpc.auth.RoleRules); what it does not name is refused. With ``identity`` the
    server answers handshakes. Health says NOT_SERVING until `ready`.
    """

    def __init__(
        self,
        listen: str,
        tls_files: tls.TlsFiles | None,
        admin_listen: str,
        *,
        role_rules: Mapping[str, Iterable[str]],
        identity: LocalIdentity | None = None,
        limits: CallerLimits | None = None,
        max_message: int = MAX_MESSAGE,
        connections: ConnectionLimits = ConnectionLimits(),  # noqa: B008 - frozen
    ) -> None:
        if tls_files is None and not is_loopback(listen):
            raise ConfigError(f"plaintext is served on loopback only, not on {listen}: give tls.ca, tls.cert, tls.key")
        if not is_loopback(admin_listen):
            raise ConfigError(f"admin_listen is for this machine only, {admin_listen} is not a loopback address")
        self._listen = listen
        self._admin_listen = admin_listen
        self._tls = tls_files
        self._connections = connections
        self._interceptor = Interceptor(
            RoleRules({**COMMON_RULES, **role_rules}), Limiter(limits or CallerLimits()), connections.request_ms
        )
        self._options = [*message_options(max_message), *_connection_options(connections)]
        self._health = health_aio.HealthServicer()
        self._services: list[tuple[Register, object, str]] = []
        self._servers: list[aio.Server] = []
        role, name = self._who(identity)
        self._admin = AdminServicer(role, name)
        self.address = ""
        """Bound address of the main port, after `start`."""
        self.admin_address = ""
        """Bound address of the local port, after `start`."""
        if identity is not None:
            self.add(admin_pb2_grpc.add_IdentityServiceServicer_to_server, IdentityServicer(identity), IDENTITY)

    def add(self, register: Register, servicer: object, service: str) -> None:
        """Serve a service on the main port: its generated ``add_…_to_server``, the servicer, its full name."""
        self._services.append((register, servicer, service))

    def details(self, source: Details) -> None:
        """Where `Status` takes what the role knows of itself, for example its height."""
        self._admin.details = source

    async def start(self) -> None:
        """Bind both ports and serve. Raises ConfigError, or UnavailableError if a port is taken."""
        if self._servers:
            raise ConfigError("this server was started already")
        credentials = None if self._tls is None else tls.server_credentials(self._tls)
        await self._set_health(serving=False)
        main = self._make(self._interceptor, self._services)
        admin_service: tuple[Register, object, str] = (
            admin_pb2_grpc.add_AdminServiceServicer_to_server, self._admin, ADMIN,
        )  # fmt: skip
        local = self._make(Interceptor(None, None, self._connections.request_ms), [admin_service])
        try:
            self.address = _bind(main, self._listen, credentials, "listen")
            self.admin_address = _bind(local, self._admin_listen, None, "admin_listen")
            self._admin.listen = self.address
            await main.start()
            await local.start()
        except BaseException:
            await self.stop(0)
            raise
        log.info("listening", address=self.address, admin=self.admin_address, tls=self._tls is not None)

    async def ready(self) -> None:
        """From now on health says SERVING."""
        self._admin.ready = True
        await self._set_health(serving=True)
        log.info("ready", address=self.address)

    async def not_ready(self) -> None:
        """From now on health says NOT_SERVING; calls are still answered."""
        self._admin.ready = False
        await self._set_health(serving=False)

    async def stop(self, grace: float = 3.0) -> None:
        """Health off, no new calls, ``grace`` seconds for the running ones, then they are cancelled."""
        self._admin.ready = False
        await self._health.enter_graceful_shutdown()
        main_first = list(self._servers)
        self._servers.clear()
        for server, wait in zip(main_first, (grace, 0.0), strict=False):
            await server.stop(wait)

    def _make(self, interceptor: Interceptor, services: Iterable[tuple[Register, object, str]]) -> aio.Server:
        server = aio.server(interceptors=[interceptor], options=self._options)
        self._servers.append(server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = [health.SERVICE_NAME, reflection.SERVICE_NAME]
        for register, servicer, name in services:
            register(servicer, server)
            names.append(name)
        reflection.enable_server_reflection(names, server)
        return server

    async def _set_health(self, serving: bool) -> None:
        kind = health_pb2.HealthCheckResponse
        status = kind.SERVING if serving else kind.NOT_SERVING
        for name in ("", *(name for _, _, name in self._services)):
            await self._health.set(name, status)

    def _who(self, identity: LocalIdentity | None) -> tuple[str, str]:
        if identity is not None:
            return identity.role, identity.name
        if self._tls is None:
            return "", ""
        certified = tls.identity_of(self._tls.read()[1])
        return certified.role, certified.name


def message_options(max_message: int) -> list[tuple[str, Any]]:
    """gRPC settings that both sides of every connection share."""
    return [
        ("grpc.max_receive_message_length", max_message),
        ("grpc.max_send_message_length", max_message),
        # Without this a second process binds the same port and takes half of the calls.
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # Pings on a silent stream that come more often than this are strikes, and the third one ends the connection.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.max_concurrent_streams", 256),
        # Identity only: a few compressed kilobytes could be gigabytes, and are counted after they were unpacked.
        ("grpc.compression_enabled_algorithms_bitset", 1),
    ]


def _connection_options(limits: ConnectionLimits) -> list[tuple[str, Any]]:
    """What a server has beside `message_options`; of a name that is in both the last one counts."""
    return [
        ("grpc.max_allowed_incoming_connections", limits.most),
        ("grpc.server_handshake_timeout_ms", limits.handshake_ms),
        ("grpc.keepalive_time_ms", limits.ping_ms),
        ("grpc.keepalive_timeout_ms", limits.pong_ms),
        # The later of the two ends the connection.
        ("grpc.http2.ping_timeout_ms", limits.pong_ms),
        ("grpc.max_connection_idle_ms", limits.idle_ms),
    ]


def is_loopback(address: str) -> bool:
    """Whether ``host:port`` can only be reached from this machine."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bind(server: aio.Server, address: str, credentials: Any, key: str) -> str:
    """Bind and return the address with the port that was really taken."""
    host, _, port = address.rpartition(":")
    if not address.startswith("unix:") and (not host or not port.isdigit() or int(port) > 65_535):
        raise ConfigError(f"{key} must be host:port, got {address!r}")
    try:
        plain = credentials is None
        bound = server.add_insecure_port(address) if plain else server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise UnavailableError(
            f"cannot listen on {address}: another process has the port, or the address is not this machine's. "
            f"Choose another {key}",
            address=address,
        ) from error
    return address if address.startswith("unix:") else f"{host}:{bound}"
