"""Traces of a claim, received by a collector that speaks OTLP over gRPC: real exporters, real servers, real headers."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
from pofl.blob.v1 import blob_pb2, blob_pb2_grpc

from core.errors import NotFoundError
from services.rpc import auth, tls
from services.rpc.channel import call, connect
from services.rpc.server import RpcServer
from services.runtime import tracing
from services.runtime.logging import claim_id, logger, scope

ROOT = Path(__file__).resolve().parents[2]
BLOBS = "pofl.blob.v1.BlobService"
CLAIM = claim_id(b"\xaa" * 32, b"\xbb" * 32)
log = logger(__name__)

try:
    protos: Any = importlib.import_module("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    importlib.import_module("opentelemetry.sdk.trace")
    missing = False
except ImportError:
    missing = True
wanted = pytest.mark.skipif(missing, reason="the extra `tracing` is not installed")


class Collector:
    """What a collector is to an exporter: one method."""

    def __init__(self) -> None:
        self.spans: list[tuple[dict[str, str], Any]] = []
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        method = grpc.unary_unary_rpc_method_handler(
            self._export, protos.ExportTraceServiceRequest.FromString, lambda answer: answer.SerializeToString()
        )
        name = "opentelemetry.proto.collector.trace.v1.TraceService"
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {"Export": method}),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def _export(self, request: Any, context: Any) -> Any:
        for group in request.resource_spans:
            resource = {pair.key: pair.value.string_value for pair in group.resource.attributes}
            self.spans += [(resource, span) for scoped in group.scope_spans for span in scoped.spans]
        return protos.ExportTraceServiceResponse()

    def named(self, name: str) -> list[Any]:
        return [span for _, span in self.spans if span.name == name]

    def stop(self) -> None:
        self._server.stop(0).wait()


def attributes(of: Any) -> dict[str, str]:
    return {pair.key: pair.value.string_value for pair in of.attributes}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    made = Collector()
    endpoint = f"http://127.0.0.1:{made.port}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    # This collector answers, when it has its turn.
    monkeypatch.setattr(tracing, "FLUSH_MS", 60_000)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    assert tracing.setup("pool", "p-1", "1.0", {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}) == ""
    yield made
    tracing.close()
    made.stop()


class Blobs(blob_pb2_grpc.BlobServiceServicer):
    async def Stat(self, request: blob_pb2.StatRequest, context: Any) -> blob_pb2.StatResponse:  # noqa: N802
        log.info("looked for a blob", signing_key=b"never shown", caller_name=auth.caller(context).name)
        if request.digest:
            raise NotFoundError("no such blob")
        return blob_pb2.StatResponse(size=7)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[tuple[RpcServer, tls.TlsFiles]]:
    authority = tls.make_authority(tmp_path / "ca")
    files = [tls.issue(authority, role, "x-1", ["127.0.0.1"]).write(tmp_path / role) for role in ("node", "pool")]
    server = RpcServer("127.0.0.1:0", files[0], "127.0.0.1:0", role_rules={BLOBS: ["pool"]})
    server.add(blob_pb2_grpc.add_BlobServiceServicer_to_server, Blobs(), BLOBS)  # type: ignore[abstract]
    await server.start()
    yield server, files[1]
    await server.stop(0)


@wanted
async def test_a_claim_is_one_trace_through_a_call(
    world: tuple[RpcServer, tls.TlsFiles], collector: Collector, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    server, files = world
    caplog.set_level(logging.INFO)
    # The one call that is made too often to be shown is all that this server has.
    monkeypatch.setattr("services.rpc.channel.UNTRACED", frozenset())
    async with connect(server.address, files, expect_role="node") as channel:
        stub = blob_pb2_grpc.BlobServiceStub(channel)
        # Outside of a claim nothing is recorded, at either side.
        await call(stub.Stat, blob_pb2.StatRequest(), 60, idempotent=True)
        with scope(claim=CLAIM, height=7):
            log.info("the season begins")
            await call(stub.Stat, blob_pb2.StatRequest(), 60, peer="node-0", idempotent=True)
            with pytest.raises(NotFoundError):
                await call(stub.Stat, blob_pb2.StatRequest(digest=bytes(32)), 60, peer="node-0")
    await asyncio.to_thread(tracing.close)
    (season,) = collector.named("claim")
    calls, serves = collector.named("StatRequest"), collector.named(f"{BLOBS}/Stat")
    assert len(calls) == len(serves) == 2
    trace = tracing.trace_id_of(CLAIM).to_bytes(16, "big")
    assert {span.trace_id for span in (season, *calls, *serves)} == {trace}
    assert season.parent_span_id == b""
    assert {span.parent_span_id for span in calls} == {season.span_id}
    assert {span.parent_span_id for span in serves} == {span.span_id for span in calls}
    assert attributes(season)["pofl.claim"] == CLAIM
    assert [event.name for event in season.events] == ["the season begins"]
    assert {attributes(span)["pofl.caller"] for span in serves} == {"pool/x-1"}
    assert sorted(attributes(span).get("error.type", "") for span in calls) == ["", "NotFoundError"]
    (line, *_) = [event for span in serves for event in span.events if event.name == "looked for a blob"]
    assert attributes(line)["pofl.signing_key"] == "(secret)"
    resource = collector.spans[0][0]
    assert (resource["service.name"], resource["service.instance.id"]) == ("pofl-pool", "p-1")


@wanted
@pytest.mark.parametrize(
    "header",
    [
        "", "00", "00-" + "0" * 32 + "-" + "1" * 16 + "-01", "00-" + "1" * 32 + "-" + "0" * 16 + "-01",
        "01-" + "1" * 32 + "-" + "1" * 16 + "-01", "00-" + "g" * 32 + "-" + "1" * 16 + "-01",
        "00-" + "1" * 32 + "-" + "1" * 16 + "-01-more", "00-" + "1" * 32 + "-" + "1" * 16 + "-01" + " " * 4_000,
        # Well-formed, and says that it is not to be recorded.
        "00-" + "1" * 32 + "-" + "1" * 16 + "-00",
    ],
)  # fmt: skip
async def test_a_header_that_is_not_the_standards_changes_nothing(
    world: tuple[RpcServer, tls.TlsFiles], collector: Collector, header: str
) -> None:
    server, files = world
    async with connect(server.address, files, expect_role="node") as channel:
        stub = blob_pb2_grpc.BlobServiceStub(channel)
        metadata = ((tracing.HEADER, header), ("tracestate", "k=" + "v" * 200), ("baggage", "secret=1"))
        answer = await stub.Stat(blob_pb2.StatRequest(), timeout=60, metadata=metadata, wait_for_ready=True)
    assert answer.size == 7
    await asyncio.to_thread(tracing.close)
    assert collector.spans == []


@wanted
async def test_a_caller_cannot_have_more_recorded_than_the_own_sampler_would(
    world: tuple[RpcServer, tls.TlsFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    made = Collector()
    endpoint = f"http://127.0.0.1:{made.port}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
    assert tracing.setup("node", "n-1", "1.0", {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}) == ""
    server, files = world
    try:
        async with connect(server.address, files, expect_role="node") as channel:
            stub = blob_pb2_grpc.BlobServiceStub(channel)
            header = ((tracing.HEADER, "00-" + "1" * 32 + "-" + "1" * 16 + "-01"),)
            await stub.Stat(blob_pb2.StatRequest(), timeout=60, metadata=header, wait_for_ready=True)
    finally:
        await asyncio.to_thread(tracing.close)
        made.stop()
    assert made.spans == []


@wanted
async def test_a_collector_that_is_not_there_holds_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections and never answers. Each export would wait a second for it, 200 of them more than three minutes."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        # One span to an export.
        monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        others = set(threading.enumerate())
        assert tracing.setup("pool", "p-1", "1.0", {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}) == ""
        began = time.monotonic()
        for _ in range(200):
            with scope(claim=CLAIM):
                log.info("a line")
            assert time.monotonic() - began < 60
        began = time.monotonic()
        await asyncio.to_thread(tracing.close)
        # It says three seconds; the rest is for a machine that does much else.
        assert time.monotonic() - began < 60
        # And nothing goes on trying behind one's back.
        while left := [t.name for t in set(threading.enumerate()) - others if not t.name.startswith("asyncio_")]:
            assert time.monotonic() - began < 60, left
            await asyncio.sleep(0.1)


def test_nothing_is_loaded_when_nobody_asks() -> None:
    code = (
        "import sys, services.rpc.role, services.runtime.tracing as t\n"
        "assert t.setup('node', 'n', '1', {}) == '' and not t.is_on()\n"
        "assert t.setup('node', 'n', '1', {'OTEL_SDK_DISABLED': 'true', 'OTEL_EXPORTER_OTLP_ENDPOINT': 'http://x'}) == ''\n"
        "assert t.outgoing() is None\n"
        "assert not [m for m in sys.modules if m.startswith('opentelemetry.sdk')]\n"
    )
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}:{os.environ.get('PYTHONPATH', '')}"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=env, timeout=110)


def test_what_hinders_tracing_is_one_sentence() -> None:
    """A setting meant for other programs on the machine does not keep a role from starting."""
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "carrier-pigeon"}
    assert tracing.setup("node", "n", "1", env) == (
        "OTEL_EXPORTER_OTLP_PROTOCOL is carrier-pigeon, known are grpc, http/protobuf: no traces"
    )
    assert not tracing.is_on()


@pytest.mark.skipif(not missing, reason="the extra `tracing` is installed")
def test_a_missing_package_is_named() -> None:
    said = tracing.setup("node", "n", "1", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"})
    assert "is not installed: `pip install 'pofl[tracing]'`" in said
    assert not tracing.is_on()
