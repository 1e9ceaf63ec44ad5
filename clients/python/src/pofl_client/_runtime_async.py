"""What the client over asyncio does its input and output with. ``_runtime_sync`` has the same names for blocking calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import grpc
from grpc import aio

__all__ = ["Channel", "Lock", "connect", "in_thread", "invoke", "shut", "sleep", "start", "stub_of"]

P = ParamSpec("P")
Q = TypeVar("Q")
R = TypeVar("R")
S = TypeVar("S")

Channel = aio.Channel
Lock = asyncio.Lock
sleep = asyncio.sleep


def connect(target: str, credentials: grpc.ChannelCredentials | None, options: Sequence[tuple[str, Any]]) -> Channel:
    if credentials is None:
        return aio.insecure_channel(target, options=options)
    return aio.secure_channel(target, credentials, options=options)


def stub_of(kind: Callable[[aio.Channel], S], channel: Channel) -> S:
    return kind(channel)


async def shut(channel: Channel) -> None:
    """Calls that are running end."""
    await channel.close(None)


async def invoke(method: aio.UnaryUnaryMultiCallable[Q, R], request: Q, timeout: float) -> R:
    return await method(request, timeout=timeout)


def start(method: aio.UnaryStreamMultiCallable[Q, R], request: Q, timeout: float) -> aio.UnaryStreamCall[Q, R]:
    """A stream of answers, to be iterated and cancelled."""
    return method(request, timeout=timeout)


async def in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What blocks."""
    return await asyncio.to_thread(function, *args, **kwargs)
