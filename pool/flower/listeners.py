"""The guard's two doors to Flower's SuperLink app: ASGI filters around it.

On the stock port anyone may start and stop runs, register nodes and claim tasks. Here the public door knows the
fleet's paths only (each call is signed by a registered node key), the loopback door the manager's paths only (each
call carries the run's token). Both cap the body before Flower reads it, and hold an empty pull open until there is
something to fetch, so that neither side polls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

__all__ = ["FLEET_PATHS", "HOLD_HEADER", "MANAGER_BODY", "RUNTIME_PATHS", "Bell", "Door"]

Scope: TypeAlias = MutableMapping[str, Any]
Event: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Event]]
Send: TypeAlias = Callable[[Event], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

FLEET_PATHS = frozenset(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node", "deactivate-node", "send-node-heartbeat", "pull-messages", "push-messages",
        "push-object", "pull-object", "confirm-message-received",
    )
)  # fmt: skip
RUNTIME_PATHS = frozenset(
    f"/v1/runtime/{name}"
    for name in (
        "get-nodes", "push-messages", "pull-messages", "push-object", "pull-object", "confirm-message-received",
        "send-task-heartbeat",
    )
)  # fmt: skip

HOLD_HEADER = b"x-pofl-hold-ms"
MAX_HOLD_S = 10.0
LARGE_BODY = 6 << 20
"""A chunk of an array is 5 MiB."""
SMALL_BODY = 256 << 10
MANAGER_BODY = 32 << 20
"""The manager names all its miners in one call; its door is on the loopback interface and wants its token."""
BODY_DEADLINE_S = 30.0


class Bell:
    """Wakes everyone who waits; a ring that nobody waits for is not kept."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        event, self._event = self._event, asyncio.Event()
        event.set()

    def ticket(self) -> asyncio.Event:
        """Take it before looking, wait on it after: a ring between the two is not missed."""
        return self._event


class Door:
    """``listens``: the bell that ends a held pull. ``rings``: the bell rung when something was pushed."""

    def __init__(self, app: App, paths: frozenset[str], *, listens: Bell, rings: Bell, body_limit: int = SMALL_BODY) -> None:
        self._app = app
        self._paths = paths
        self._listens = listens
        self._rings = rings
        self._body_limit = body_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path, method = scope["path"], scope["method"]
        if path == "/health" and method == "GET":
            await self._app(scope, receive, send)
            return
        if path not in self._paths or method != "POST":
            await _refuse(send, 404, b"not served here")
            return
        limit = LARGE_BODY if path.endswith("/push-object") else self._body_limit
        headers = dict(scope["headers"])
        try:
            if int(headers.get(b"content-length", b"0")) > limit:
                await _refuse(send, 413, b"body too large")
                return
            hold = min(MAX_HOLD_S, max(0, int(headers.get(HOLD_HEADER, b"0"))) / 1000)
        except ValueError:
            await _refuse(send, 400, b"bad header")
            return
        body = await _read(receive, limit)
        if body is None:
            await _refuse(send, 413, b"body too large, too slow or cut off")
            return
        if path.endswith("/pull-messages"):
            await self._held(scope, body, send, hold)
            return
        await self._app(scope, _replay(body), send)
        # Only messages change what a pull finds. Their parts are many, and each ring makes everyone who waits look again.
        if path.endswith("/push-messages"):
            self._rings.ring()

    async def _held(self, scope: Scope, body: bytes, send: Send, hold: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + hold
        while True:
            ticket = self._listens.ticket()
            captured: list[Event] = []
            await self._app(dict(scope), _replay(body), _into(captured))
            status = next((e["status"] for e in captured if e["type"] == "http.response.start"), 500)
            empty = not any(e.get("body") for e in captured if e["type"] == "http.response.body")
            if status != 200 or not empty or loop.time() >= until:
                break
            try:
                await asyncio.wait_for(ticket.wait(), until - loop.time())
            except TimeoutError:
                break
        for event in captured:
            await send(event)


def _replay(body: bytes) -> Receive:
    parts: list[Event] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Event:
        if parts:
            return parts.pop()
        # A second read means the app waits for the client to go away; it does not, for all that is known here.
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    return receive


def _into(captured: list[Event]) -> Send:
    async def send(event: Event) -> None:
        captured.append(event)

    return send


async def _read(receive: Receive, limit: int) -> bytes | None:
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            while True:
                event = await receive()
                if event["type"] != "http.request":
                    return None
                body += event.get("body", b"")
                if len(body) > limit:
                    return None
                if not event.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        return None


async def _refuse(send: Send, status: int, reason: bytes) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(reason)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": reason})
