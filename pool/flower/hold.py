"""The client's side of the guard's held pulls (listeners.py). A module of its own: miners import no grid."""

from __future__ import annotations

import httpx
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

from pool.flower.listeners import HOLD_HEADER

__all__ = ["HoldInterceptor"]


class HoldInterceptor:
    """Asks the guard to keep an empty pull open for a while."""

    def __init__(self, milliseconds: int) -> None:
        self.milliseconds = milliseconds

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        if context.rpc_method.endswith("/PullMessages"):
            context.request.headers[HOLD_HEADER.decode()] = str(self.milliseconds)
        return call_next(context)
