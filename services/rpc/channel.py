"""Calling other processes: channels that check who answers, calls with a deadline, dialling until someone is there."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import quote

from grpc import aio

from core.endpoint import is_endpoint
from core.errors import ConfigError, DeadlineError, UnavailableError
from services.rpc import tls
from services.rpc.auth import Caller
from services.rpc.errors import translate
from services.rpc.handshake import LocalIdentity, Remote, shake_hands
from services.rpc.limits import MAX_MESSAGE
from services.rpc.server import is_loopback, message_options
from services.runtime import tracing
from services.runtime.logging import logger

__all__ = ["Connection", "backoff", "call", "connect", "dial", "dial_forever"]

log = logger(__name__)

Q = TypeVar("Q")
R = TypeVar("R")

FIRST_DELAY = 0.2
LARGEST_DELAY = 10.0
RETRIES = 4
UNTRACED = frozenset({"StatRequest"})
"""Asked of each of a test set's blobs: hundreds of spans that say nothing."""
_random = secrets.SystemRandom()


def connect(
    target: str,
    tls_files: tls.TlsFiles | None,
    *,
    expect_role: str | None,
    expect_name: str | None = None,
    caller: Caller | None = None,
    max_message: int = MAX_MESSAGE,
) -> aio.Channel:
    """A channel to ``target`` (``host:port``); nothing is sent yet.

    TLS refuses a server whose certificate is not of ``expect_role`` (and ``expect_name``); with ``expect_role`` None the
    certificate must be for the target's host name. Without ``tls_files`` the connection is plaintext, on loopback only,
    and ``caller`` is who we say we are. Close the channel when done. Raises ConfigError.
    """
    options = [
        *message_options(max_message),
        ("grpc.enable_http_proxy", 0),
        # Calls are retried by `call` alone, which knows what may be sent twice.
        ("grpc.enable_retries", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 200),
        # In spite of its name the time for one attempt: TCP, TLS and the first frame are three or four ways to and fro.
        ("grpc.min_reconnect_backoff_ms", 2_000),
        ("grpc.max_reconnect_backoff_ms", 5_000),
    ]
    if tls_files is None:
        if not is_loopback(target):
            raise ConfigError(f"plaintext is spoken on loopback only, not to {target}: give tls.ca, tls.cert, tls.key")
        if caller is not None:
            options.append(("grpc.primary_user_agent", caller.user_agent))
        return aio.insecure_channel(_uri(target), options=options)
    if expect_role is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name(expect_role, expect_name)))
    return aio.secure_channel(_uri(target), tls.channel_credentials(tls_files), options=options)


def _uri(target: str) -> str:
    """``target`` for gRPC: a host that is called like one of its schemes ("unix", "ipv4") is a host all the same."""
    return f"dns:///{quote(target, safe=':')}" if is_endpoint(target) else target


async def call(
    method: aio.UnaryUnaryMultiCallable[Q, R], request: Q, timeout: float, *, peer: str = "", idempotent: bool = False
) -> R:
    """One call, within ``timeout`` seconds in all.

    Only an ``idempotent`` call is tried again, and only while the peer cannot be reached. Raises the error that the peer
    raised (same type and message), UnavailableError, DeadlineError.
    """
    end = time.monotonic() + timeout
    attempt = 0
    while True:
        try:
            name = type(request).__name__
            left = max(0.0, end - time.monotonic())
            if name in UNTRACED:
                with translate(peer):
                    return await method(request, timeout=left)
            with tracing.calling(name, peer), translate(peer):
                return await method(request, timeout=left, metadata=tracing.outgoing())
        except UnavailableError:
            delay = backoff(attempt)
            attempt += 1
            if not idempotent or attempt > RETRIES or time.monotonic() + delay >= end:
                raise
            await asyncio.sleep(delay)


@dataclass(frozen=True, slots=True)
class Connection:
    """A channel after its handshake. gRPC reconnects it by itself; the certificate is checked each time."""

    channel: aio.Channel
    target: str
    remote: Remote

    async def close(self) -> None:
        await self.channel.close(None)


async def dial(
    target: str,
    tls_files: tls.TlsFiles | None,
    identity: LocalIdentity,
    *,
    expect_role: str,
    expect_name: str | None = None,
    timeout: float = 5.0,
) -> Connection:
    """Connect and shake hands, once. Raises what `shake_hands` raises."""
    channel = connect(target, tls_files, expect_role=expect_role, expect_name=expect_name, caller=identity.caller)
    try:
        remote = await shake_hands(channel, identity, tls_files, target=target, timeout=timeout)
    except BaseException:
        await channel.close(None)
        raise
    return Connection(channel, target, remote)


async def dial_forever(
    target: str,
    tls_files: tls.TlsFiles | None,
    identity: LocalIdentity,
    *,
    expect_role: str,
    expect_name: str | None = None,
    timeout: float = 5.0,
) -> Connection:
    """As `dial`, again and again while the target cannot be reached, and the log says so.

    Ends by success, by cancellation, or with an error that trying again does not mend (AuthError, WrongChainError,
    ConfigError).
    """
    attempt = 0
    while True:
        try:
            connection = await dial(
                target, tls_files, identity, expect_role=expect_role, expect_name=expect_name, timeout=timeout
            )
        except (UnavailableError, DeadlineError) as error:
            delay = backoff(attempt)
            attempt += 1
            log.warning(
                "cannot reach peer, trying again", target=target, role=expect_role, attempt=attempt,
                seconds=round(delay, 1), error=error.message,
            )  # fmt: skip
            await asyncio.sleep(delay)
        else:
            log.info("connected", target=target, peer=str(connection.remote), attempts=attempt + 1)
            return connection


def backoff(attempt: int) -> float:
    """Seconds to wait after failure number ``attempt`` (from 0): doubling, at most 10, each drawn from its upper half.

    The draw keeps processes that failed together from coming back together.
    """
    ceiling = min(LARGEST_DELAY, FIRST_DELAY * 2 ** min(attempt, 16))
    return _random.uniform(ceiling / 2, ceiling)
