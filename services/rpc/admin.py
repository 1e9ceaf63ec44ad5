"""The operator's service, on the local port of every process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

from grpc import aio
from pofl.admin.v1 import admin_pb2, admin_pb2_grpc

from services.runtime.metrics import render

__all__ = ["AdminServicer", "program_version"]

Details = Callable[[], Mapping[str, object]]


def program_version() -> str:
    """The installed version of PoFL, or ``unknown`` in a bare source tree."""
    try:
        return metadata.version("pofl")
    except metadata.PackageNotFoundError:
        return "unknown"


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """Status and metrics of this process."""

    def __init__(self, role: str, name: str) -> None:
        self.ready = False
        self.listen = ""
        self.details: Details = dict
        self._role = role
        self._name = name
        self._started = time.monotonic()

    async def Status(  # noqa: N802 - the contract's name
        self, request: admin_pb2.StatusRequest, context: aio.ServicerContext[Any, Any]
    ) -> admin_pb2.StatusResponse:
        return admin_pb2.StatusResponse(
            role=self._role, name=self._name, version=program_version(), ready=self.ready, listen=self.listen,
            uptime_ms=int(1000 * (time.monotonic() - self._started)),
            details={key: str(value) for key, value in self.details().items()},
        )  # fmt: skip

    async def Metrics(  # noqa: N802 - the contract's name
        self, request: admin_pb2.MetricsRequest, context: aio.ServicerContext[Any, Any]
    ) -> admin_pb2.MetricsResponse:
        return admin_pb2.MetricsResponse(text=render())
