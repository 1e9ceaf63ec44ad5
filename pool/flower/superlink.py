"""Flower's SuperLink without its web framework: its state, its handlers and its authentication behind plain ASGI.

The stock app sends each request through ten middlewares and a thread; with small models that is most of a round. The
handlers and the checks of who calls are Flower's own functions, unchanged (docs/adr/0021).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from fastapi import HTTPException, Request
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest, PushObjectResponse
from flwr.proto.runtime_pb2 import (
    GetNodesRequest,
    PullAppMessagesRequest,
    PushAppMessagesRequest,
    SendTaskHeartbeatRequest,
)
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, TASK_TOKEN_HEADER
from flwr.supercore.dependencies.task import authenticate_task
from flwr.supercore.error import FlowerError
from flwr.supercore.error.catalog import API_ERROR_MAP
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.servicer.runtime import runtime_handlers as core_handlers
from flwr.superlink.config_loader import get_objectstore_linkstate_factories
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.routers.fleet.node_auth import authenticate_node
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.superlink.servicer.runtime import runtime_handlers
from google.protobuf.message import DecodeError, Message

from core.errors import PoflError
from pool.flower.listeners import FLEET_PATHS, RUNTIME_PATHS, Receive, Scope, Send
from pool.flower.uploads import Uploads

__all__ = ["SuperLink"]

_log = logging.getLogger(__name__)

Handler = Callable[[Any, LinkState, Any], Message]

_FLEET: dict[str, tuple[type[Message], Handler]] = {
    "activate-node": (ActivateNodeRequest, lambda r, s, _: fleet_handlers.activate_node(r, s)),
    "deactivate-node": (DeactivateNodeRequest, lambda r, s, _: fleet_handlers.deactivate_node(r, s)),
    "send-node-heartbeat": (SendNodeHeartbeatRequest, lambda r, s, _: fleet_handlers.send_node_heartbeat(r, s)),
    "pull-messages": (PullMessagesRequest, lambda r, s, _: fleet_handlers.pull_messages(r, s, s.object_store)),
    "push-messages": (PushMessagesRequest, lambda r, s, _: fleet_handlers.push_messages(r, s)),
    "push-object": (PushObjectRequest, lambda r, s, _: fleet_handlers.push_object(r, s)),
    "pull-object": (PullObjectRequest, lambda r, s, _: fleet_handlers.pull_object(r, s)),
    "confirm-message-received": (
        ConfirmMessageReceivedRequest,
        lambda r, s, _: fleet_handlers.confirm_message_received(r, s, s.object_store),
    ),
}
_RUNTIME: dict[str, tuple[type[Message], Handler]] = {
    "get-nodes": (GetNodesRequest, runtime_handlers.get_nodes),
    "push-messages": (PushAppMessagesRequest, runtime_handlers.push_messages),
    "pull-messages": (PullAppMessagesRequest, runtime_handlers.pull_messages),
    "push-object": (PushObjectRequest, runtime_handlers.push_object),
    "pull-object": (PullObjectRequest, runtime_handlers.pull_object),
    "confirm-message-received": (ConfirmMessageReceivedRequest, runtime_handlers.confirm_message_received),
    "send-task-heartbeat": (SendTaskHeartbeatRequest, core_handlers.send_task_heartbeat),
}
_ROUTES: Mapping[str, tuple[type[Message], Handler]] = {
    **{f"/v1/fleet/{name}": entry for name, entry in _FLEET.items()},
    **{f"/v1/runtime/{name}": entry for name, entry in _RUNTIME.items()},
}
assert set(_ROUTES) == FLEET_PATHS | RUNTIME_PATHS


class SuperLink:
    """ASGI app. State is in memory: the engine registers its members again with a guard started anew."""

    def __init__(self) -> None:
        self.uploads = Uploads()
        _, self._factory = get_objectstore_linkstate_factories(FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager())
        # What Flower's authentication reaches through a request.
        self._app = SimpleNamespace(state=SimpleNamespace(linkstate_factory=self._factory))

    def state(self) -> LinkState:
        return self._factory.state()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/health":
            await _send(send, 200, "application/json", b'{"status":"ok"}')
            return
        body = (await receive())["body"]
        status, kind, answer = self._answer(scope, body)
        await _send(send, status, kind, answer)

    def _answer(self, scope: Scope, body: bytes) -> tuple[int, str, bytes]:
        path = scope["path"]
        kind, handler = _ROUTES[path]
        try:
            request = kind()
            request.ParseFromString(body)
            http = Request({**scope, "app": self._app, "state": {"protobuf_request": request}})
            state = self.state()
            task = None
            if path in FLEET_PATHS:
                authenticate_node(http)
            else:
                task = authenticate_task(http, http.headers.get(TASK_TOKEN_HEADER), state)
            if path in FLEET_PATHS:
                return 200, PROTOBUF_MEDIA_TYPE, self._bounded(request, state, handler).SerializeToString()
            return 200, PROTOBUF_MEDIA_TYPE, handler(request, state, task).SerializeToString()
        except DecodeError:
            return _error(400, "not the protobuf message of this path")
        except PoflError as error:
            return _error(409, error.message)
        except HTTPException as error:
            return _error(error.status_code, str(error.detail))
        except FlowerError as error:
            spec = API_ERROR_MAP.get(error.code)
            _log.warning("%s: Flower error %s: %s", path, error.code, error.message)
            return _error(spec.http_status_code if spec else 500, spec.public_message if spec else "internal error")
        # A handler that meets bytes it did not expect fails this request only.
        except Exception as error:  # noqa: BLE001
            _log.warning("%s: %s: %s", path, type(error).__name__, error)
            return _error(500, "internal error")

    def _bounded(self, request: Message, state: LinkState, handler: Handler) -> Message:
        """A member's request within what it may leave here. Raises PoflError before Flower's state has changed."""
        if isinstance(request, PushMessagesRequest):
            self.uploads.admit(request, state)
            response = handler(request, state, None)
            assert isinstance(response, PushMessagesResponse)
            self.uploads.note(request, response, state)
            return response
        if isinstance(request, PushObjectRequest):
            upload = self.uploads.charge(request, state)
            stored = handler(request, state, None)
            assert isinstance(stored, PushObjectResponse)
            if stored.stored:
                self.uploads.spent(upload, len(request.object_content))
            return stored
        return handler(request, state, None)


def _error(status: int, detail: str) -> tuple[int, str, bytes]:
    return status, "application/json", json.dumps({"detail": detail}).encode()


async def _send(send: Send, status: int, kind: str, body: bytes) -> None:
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
