"""The guard process: Flower's SuperLink behind two doors (listeners.py), ruled over a pipe.

It reads JSON lines from standard input, the first one being its settings, and answers on standard output. The pipe is
the only way to register a node or to start a run, so neither needs a network route or a secret; when the pipe closes,
because the parent asked or died, the guard ends. Its state is in memory: after a kill the engine starts a new one on
the same ports and registers its members again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import uvicorn
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.constant import NOOP_FEDERATION_ID, NodeStatus, TaskType

from core.errors import MalformedError, PoflError, UnavailableError
from pool.flower.connections import Gate
from pool.flower.keys import node_public_pem
from pool.flower.listeners import FLEET_PATHS, MANAGER_BODY, RUNTIME_PATHS, Bell, Door
from pool.flower.pipe import read_settings, say
from pool.flower.superlink import SuperLink

__all__ = ["main"]

APP_ID = "pofl/mining"
HEARTBEAT_S = 10
"""The shortest that Flower allows: a dead node is noticed after twice this."""

MAX_ENDED = 16_384
"""Deregistered keys that are refused; the pool itself knows as many of its members' former keys."""


class Registry:
    """The guard's few privileged operations on Flower's state."""

    def __init__(self, superlink: SuperLink) -> None:
        self._state: Callable[[], LinkState] = superlink.state
        self._uploads = superlink.uploads
        self._ended: dict[bytes, None] = {}
        """Keys that were deregistered, oldest first."""

    def register(self, public: bytes) -> int:
        """Node id of a fresh key; of a known key its node id again."""
        state, pem = self._state(), node_public_pem(public)
        if public in self._ended:
            raise UnavailableError("this node key was deregistered; join again with a fresh one")
        known = state.get_node_id_by_public_key(pem)
        if known is not None:
            return known
        return state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, pem, HEARTBEAT_S)

    def unregister(self, public: bytes) -> None:
        """Flower keeps a node that it was told to delete for ever. Here only its key is remembered, and the newest of those:
        members who come and go would else fill the memory."""
        memory: Any = self._state()
        pem = node_public_pem(public)
        node_id = memory.get_node_id_by_public_key(pem)
        if node_id is None:
            return
        memory.delete_node(NOOP_FLWR_AID, node_id)
        with memory.lock:
            memory.nodes.pop(node_id, None)
            memory.node_public_key_to_node_id.pop(pem, None)
            memory.owner_to_node_ids.get(NOOP_FLWR_AID, set()).discard(node_id)
        self._ended[public] = None
        while len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]

    def online(self) -> list[int]:
        """Node ids of members whose Flower client is there."""
        return [node.node_id for node in self._state().get_node_info(statuses=[NodeStatus.ONLINE])]

    def start_run(self, size_limit: int) -> tuple[int, str]:
        """(run id, task token) of a run that is already claimed and running. There is no app code in it.

        ``size_limit``: bytes of one member's answer to one instruction.
        """
        state = self._state()
        run_id = state.create_run(APP_ID, "1.0.0", None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP)
        runs = state.get_run_info(run_ids=[run_id]) if run_id else []
        task_id = runs[0].primary_task_id if runs else None
        token = state.claim_task(task_id) if task_id is not None else None
        if task_id is None or token is None or not state.activate_task(task_id):
            raise UnavailableError(f"Flower did not start a run (run {run_id}, task {task_id})")
        self._uploads.open_run(run_id, size_limit)
        return run_id, token

    def stop_run(self, run_id: int) -> None:
        self._uploads.close_run(run_id)
        self._state().stop_run(run_id)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns off Nagle only on sockets that name their protocol; without, each reply waits 40 ms for an ACK.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    # A guard started anew must get its port back although old connections linger in TIME_WAIT.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise UnavailableError(f"cannot listen on {host}:{port}: {error.strerror}; is the port taken?") from None
    return sock


def _server(app: Any, tls: tuple[Path, Path] | None, gate: Gate | None = None) -> uvicorn.Server:
    config = uvicorn.Config(
        app, lifespan="off", access_log=False, log_level="warning", timeout_graceful_shutdown=1,
        timeout_keep_alive=30, server_header=False,
        ssl_certfile=str(tls[0]) if tls else None, ssl_keyfile=str(tls[1]) if tls else None,
    )  # fmt: skip
    config.load()
    if gate is not None:
        config.http_protocol_class = gate.wrap(config.http_protocol_class)
    if config.ssl is not None:
        config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    server = uvicorn.Server(config)
    # The pipe ends this process; uvicorn's own signal handling would swallow a Ctrl-C meant for the parent.
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    return server


def _obey(registry: Registry, request: Mapping[str, Any], moves: Callable[[], None]) -> dict[str, object]:
    name = request.get("op")
    if name == "ping":
        moves()
        return {}
    if name == "register":
        return {"node_id": registry.register(bytes.fromhex(request["key"]))}
    if name == "unregister":
        registry.unregister(bytes.fromhex(request["key"]))
        return {}
    if name == "online":
        return {"nodes": registry.online()}
    if name == "start_run":
        run_id, token = registry.start_run(int(request["size_limit"]))
        return {"run_id": run_id, "token": token}
    if name == "stop_run":
        registry.stop_run(int(request["run_id"]))
        return {}
    raise MalformedError(f"unknown operation {name!r}")


def _serve_pipe(registry: Registry, on_end: Callable[[], None], moves: Callable[[], None]) -> None:
    """``moves``: returns when the listeners' loop has had its turn. One that hangs answers nothing, and is then killed."""
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, object] = {"id": request.get("id")}
        try:
            answer |= _obey(registry, request, moves)
        except PoflError as error:
            answer["error"] = error.message
        # Whatever Flower raises is one failed request, not the end of the guard.
        except Exception as error:  # noqa: BLE001
            answer["error"] = f"{type(error).__name__}: {error}"
        say(answer)
    on_end()


async def _run(settings: Mapping[str, Any]) -> None:
    host, port = settings["fleet_host"], int(settings["fleet_port"])
    app = SuperLink()
    to_fleet, to_manager = Bell(), Bell()
    gate = Gate()
    public = _server(
        Door(app, FLEET_PATHS, listens=to_fleet, rings=to_manager), (Path(settings["cert"]), Path(settings["key"])), gate
    )
    inner = _server(Door(app, RUNTIME_PATHS, listens=to_manager, rings=to_fleet, body_limit=MANAGER_BODY), None)
    fleet, loopback = _listen(host, port), _listen("127.0.0.1", int(settings["loopback_port"]))
    loop = asyncio.get_running_loop()

    def end() -> None:
        public.should_exit = inner.should_exit = True
        to_fleet.ring()
        to_manager.ring()

    serving = asyncio.gather(public.serve([fleet]), inner.serve([loopback]))
    # uvicorn has a flag, no event
    while not (public.started and inner.started) and not serving.done():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    registry = Registry(app)
    members = {key: registry.register(bytes.fromhex(key)) for key in settings["members"]}
    if not serving.done():

        def moves() -> None:
            turn = threading.Event()
            loop.call_soon_threadsafe(turn.set)
            turn.wait()

        pipe = threading.Thread(
            target=_serve_pipe, args=(registry, lambda: loop.call_soon_threadsafe(end), moves), name="pipe", daemon=True
        )
        pipe.start()
        say(
            {
                "ready": True,
                "fleet_port": fleet.getsockname()[1],
                "loopback_port": loopback.getsockname()[1],
                "members": members,
            }
        )
    cutting = asyncio.create_task(gate.run())
    await serving
    cutting.cancel()


def _allow_files() -> None:
    """As many open files as this user may have: connections whose TLS is not done yet have one each, and are not counted."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def main() -> None:
    """Entry point of ``python -m pool.flower.guard``."""
    settings = read_settings()
    if settings is None:
        return
    _allow_files()
    try:
        asyncio.run(_run(settings))
    except PoflError as error:
        say({"ready": False, "error": error.message})
        sys.exit(1)


if __name__ == "__main__":
    main()
