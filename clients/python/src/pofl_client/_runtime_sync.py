"""What the blocking client does its input and output with. The stubs beside the contracts are typed for asyncio; generated code
works with both kinds of channel, so three casts suffice."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar, cast

import grpc
from grpc import aio

__all__ = ["Channel", "Lock", "connect", "in_thread", "invoke", "shut", "sleep", "start", "stub_of"]

P = ParamSpec("P")
Q = TypeVar("Q")
R = TypeVar("R")
S = TypeVar("S")
A = TypeVar("A", covariant=True)

Channel = grpc.Channel
Lock = threading.Lock
sleep = time.sleep


class Answers(Protocol[A]):
    """A stream of answers, to be iterated and cancelled."""

    def __iter__(self) -> Iterator[A]: ...

    def cancel(self) -> bool: ...


def connect(target: str, credentials: grpc.ChannelCredentials | None, options: Sequence[tuple[str, Any]]) -> Channel:
    if credentials is None:
        return grpc.insecure_channel(target, options=options)
    return grpc.secure_channel(target, credentials, options=options)


def stub_of(kind: Callable[[aio.Channel], S], channel: Channel) -> S:
    return kind(cast("aio.Channel", channel))


def shut(channel: Channel) -> None:
    """Calls that are running end."""
    channel.close()


def invoke(method: aio.UnaryUnaryMultiCallable[Q, R], request: Q, timeout: float) -> R:
    return cast("R", method(request, timeout=timeout))


def start(method: aio.UnaryStreamMultiCallable[Q, R], request: Q, timeout: float) -> Answers[R]:
    return cast("Answers[R]", method(request, timeout=timeout))


def in_thread(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What blocks: here it may."""
    return function(*args, **kwargs)
