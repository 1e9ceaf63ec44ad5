"""OpenTelemetry traces of claims, for who wants them: spans for a collector, beside the log and with the log's ids.

Off, and nothing of OpenTelemetry loaded, unless its own environment variables name a collector::

    OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4317

and the extra ``tracing`` is installed. What a process does for one claim is in one trace, the same in every process: its
number is computed from the claim's id, as that is from the chain (docs/adr/0154). Calls made meanwhile carry the standard
header ``traceparent``, and a call that carries one has a span at the other side. A peer's header is 55 characters of a fixed
form or is not looked at; it cannot make a process record what its own sampler would not.
"""

from __future__ import annotations

import hashlib
import importlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Final

__all__ = ["HEADER", "calling", "claimed", "close", "is_on", "note", "outgoing", "served", "setup", "trace_id_of"]

HEADER: Final = "traceparent"
_FORM: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_DOMAIN: Final = b"pofl/trace/1"
_EXPORTERS: Final = {
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
}
MAX_TEXT: Final = 256
"""Characters of one attribute."""
MAX_EVENTS: Final = 128
"""Of one span: the lines of the log that it has."""
FLUSH_MS: Final = 2_000

Plain = Callable[[str, object], object]

_current: ContextVar[Any] = ContextVar("pofl_span", default=None)
_root: ContextVar[int | None] = ContextVar("pofl_trace_id", default=None)
_live: _Live | None = None


class _Live:
    """The parts of OpenTelemetry that are used, loaded when tracing is on."""

    def __init__(self, exporter: Any, resource: Mapping[str, str]) -> None:
        self.trace: Any = importlib.import_module("opentelemetry.trace")
        self._context: Any = importlib.import_module("opentelemetry.context")
        sdk: Any = importlib.import_module("opentelemetry.sdk.trace")
        export: Any = importlib.import_module("opentelemetry.sdk.trace.export")
        resources: Any = importlib.import_module("opentelemetry.sdk.resources")
        numbers: Any = importlib.import_module("opentelemetry.sdk.trace.id_generator")

        class Ids(numbers.RandomIdGenerator):  # type: ignore[misc]
            def generate_trace_id(self) -> int:
                return _root.get() or int(super().generate_trace_id())

        limits = sdk.SpanLimits(max_events=MAX_EVENTS, max_span_attribute_length=MAX_TEXT, max_attribute_length=MAX_TEXT)
        # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say wins.
        self.provider = sdk.TracerProvider(
            resource=resources.Resource(resource).merge(resources.OTELResourceDetector().detect()),
            id_generator=Ids(), span_limits=limits, shutdown_on_exit=False,
        )  # fmt: skip
        self.exporter = exporter
        self.provider.add_span_processor(export.BatchSpanProcessor(exporter))
        self._tracer = self.provider.get_tracer("pofl")

    def root(self, name: str, trace_id: int) -> Any:
        """A span without a parent in the trace of this number."""
        token = _root.set(trace_id)
        try:
            return self._tracer.start_span(name, context=self._context.Context())
        finally:
            _root.reset(token)

    def child(self, name: str, parent: Any, kind: Any) -> Any:
        return self._tracer.start_span(name, context=self.trace.set_span_in_context(parent), kind=kind)

    def remote(self, trace_id: int, span_id: int, wanted: bool, name: str) -> Any:
        """The span of a caller. Its wish to be recorded counts no more than our own sampler would have decided."""
        sampled = wanted and self.provider.sampler.should_sample(None, trace_id, name).decision.is_sampled()
        flags = self.trace.TraceFlags(int(sampled))
        return self.trace.NonRecordingSpan(self.trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=flags))


def setup(role: str, name: str, version: str, env: Mapping[str, str]) -> str:
    """Begin, if the environment names a collector. Returns what hinders it, in one sentence, or an empty text.

    ``OTEL_SDK_DISABLED``, ``OTEL_TRACES_EXPORTER=none``, ``OTEL_TRACES_SAMPLER``, ``OTEL_BSP_*``, ``OTEL_SERVICE_NAME`` and
    those of the exporter mean what OpenTelemetry says they mean.
    """
    global _live
    endpoint = env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    is_off = env.get("OTEL_SDK_DISABLED", "").lower() == "true" or env.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp"
    if not endpoint or is_off:
        return ""
    protocol = env.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or env.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "grpc"
    if protocol not in _EXPORTERS:
        return f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol}, known are {', '.join(_EXPORTERS)}: no traces"
    try:
        exporter = importlib.import_module(_EXPORTERS[protocol]).OTLPSpanExporter()
        _live = _Live(exporter, {"service.name": f"pofl-{role}", "service.instance.id": name, "service.version": version})
    except ImportError as error:
        return f"no traces: OTEL_EXPORTER_OTLP_ENDPOINT is set, {error.name} is not installed: `pip install 'pofl[tracing]'`"
    except Exception as error:  # noqa: BLE001 - whatever a setting of others does, the role goes on without traces
        return f"OpenTelemetry does not start ({type(error).__name__}: {error}): no traces"
    return ""


def close() -> None:
    """Send what is left, for a few seconds at most, and end. What a silent collector has not taken by then is lost."""
    global _live
    if _live is not None:
        live, _live = _live, None

        def end() -> None:
            live.provider.force_flush(FLUSH_MS)
            live.provider.shutdown()

        ending = threading.Thread(target=end, daemon=True)
        ending.start()
        ending.join(FLUSH_MS / 1000)
        if ending.is_alive():  # flushing knows no time: without its exporter it fails for each span that is left, at once
            live.exporter.shutdown()
            ending.join(1)


def is_on() -> bool:
    """Whether spans are made."""
    return _live is not None


def trace_id_of(claim: str) -> int:
    """The trace of a claim, from its id in the log (`services.runtime.logging.claim_id`): the same in every process."""
    return int.from_bytes(hashlib.sha256(_DOMAIN + claim.encode()).digest()[:16], "big")


@contextmanager
def claimed(claim: str, fields: Mapping[str, object]) -> Iterator[None]:
    """Around what this process does for one claim. ``fields`` have been made plain."""
    live = _live
    if live is None:
        yield
        return
    number, above = trace_id_of(claim), _current.get()
    if above is not None and above.get_span_context().trace_id == number:
        span = live.child("claim", above, live.trace.SpanKind.INTERNAL)
    else:
        span = live.root("claim", number)
    with _within(span, {"claim": claim, **fields}):
        yield


@contextmanager
def calling(method: str, peer: str) -> Iterator[None]:
    """Around a call to another process; a span called ``method`` if there is one to be its parent."""
    live, above = _live, _current.get()
    if live is None or above is None:
        yield
        return
    with _within(live.child(method, above, live.trace.SpanKind.CLIENT), {"peer": peer}):
        yield


@contextmanager
def served(method: str, metadata: Iterable[tuple[str, str | bytes]] | None, caller: str) -> Iterator[None]:
    """Around a call that is served; a span if its header names a good parent."""
    live = _live
    header = next((value for key, value in metadata or () if key == HEADER), None) if live is not None else None
    match = _FORM.fullmatch(header) if isinstance(header, str) else None
    if live is None or match is None or not int(match[1], 16) or not int(match[2], 16):
        yield
        return
    parent = live.remote(int(match[1], 16), int(match[2], 16), bool(int(match[3], 16) & 1), method)
    with _within(live.child(method.strip("/"), parent, live.trace.SpanKind.SERVER), {"caller": caller}):
        yield


def outgoing() -> tuple[tuple[str, str], ...] | None:
    """Metadata for a call: the header of the span that is open here, or None."""
    span = _current.get()
    if _live is None or span is None:
        return None
    found = span.get_span_context()
    return ((HEADER, f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags & 1:02x}"),)


def note(message: str, level: str, fields: Mapping[str, object], plain: Plain) -> None:
    """A line of the log, as an event of the span that is open here. ``plain`` makes a field fit to be shown."""
    span = _current.get()
    if _live is not None and span is not None and span.is_recording():
        span.add_event(message[:MAX_TEXT], {"level": level, **_attributes({k: plain(k, v) for k, v in fields.items()})})


@contextmanager
def _within(span: Any, fields: Mapping[str, object]) -> Iterator[None]:
    token = _current.set(span)
    span.set_attributes(_attributes(fields))
    try:
        yield
    except BaseException as error:
        # The kind alone: what an error says may be a peer's text.
        span.set_attribute("error.type", type(error).__name__)
        raise
    finally:
        span.end()
        # A stream whose caller has gone is closed by the event loop, in another context, where nothing was set.
        with suppress(ValueError):
            _current.reset(token)


def _attributes(fields: Mapping[str, object]) -> dict[str, str | bool | int | float]:
    return {
        f"pofl.{key}": value if isinstance(value, str | bool | int | float) else str(value)
        for key, value in fields.items()
        if value is not None
    }
