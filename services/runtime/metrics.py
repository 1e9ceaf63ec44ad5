"""Prometheus metrics of this process. Names start with ``pofl_`` and stay the same from release to release.

Labels are of few values that are known beforehand: methods, kinds, reasons. Never a peer, an account or a task: whoever can
make those could fill the memory of this process and of whoever collects. docs/operations.md lists every metric.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
    start_http_server,
)

from core.errors import ConfigError, UnavailableError

__all__ = ["CERTIFICATE_ENDS", "REGISTRY", "Exporter", "counter", "describe_process", "gauge", "histogram", "render"]

REGISTRY = CollectorRegistry()
"""Everything this process counts; apart from the library's global registry, which other libraries write into."""

ProcessCollector(registry=REGISTRY)  # process_cpu_seconds_total, process_resident_memory_bytes, process_open_fds, ...

SECONDS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


def counter(name: str, doc: str, labels: Sequence[str] = ()) -> Counter:
    """A count that only grows; exported as ``pofl_<name>_total``. Make it once, at module level."""
    return Counter(f"pofl_{name}", doc, labels, registry=REGISTRY)


def gauge(name: str, doc: str, labels: Sequence[str] = ()) -> Gauge:
    """A value that goes up and down, ``pofl_<name>``."""
    return Gauge(f"pofl_{name}", doc, labels, registry=REGISTRY)


def histogram(name: str, doc: str, labels: Sequence[str] = (), buckets: Sequence[float] = SECONDS) -> Histogram:
    """A distribution, ``pofl_<name>``; the buckets are for seconds unless given."""
    return Histogram(f"pofl_{name}", doc, labels, registry=REGISTRY, buckets=buckets)


BUILD = gauge("build_info", "1; the labels say which process and release this is.", ("role", "name", "version"))
FREE = gauge("data_free_bytes", "Room left on the disk of this process's data folder.")
CERTIFICATE_ENDS = gauge("certificate_expiry_timestamp_seconds", "Unix time at which this process's certificate ends.")


def describe_process(role: str, name: str, version: str, data_dir: Path) -> None:
    """What every role says of itself; once, when it opens."""
    BUILD.labels(role, name, version).set(1)

    def free() -> float:
        try:
            return float(shutil.disk_usage(data_dir).free)
        except OSError:  # the folder went away: the other metrics are read all the same
            return float("nan")

    FREE.set_function(free)


def render() -> str:
    """All metrics in the Prometheus text format."""
    return generate_latest(REGISTRY).decode()


class Exporter:
    """Serves the metrics over HTTP on the operator's side. Port 0 takes a free one."""

    def __init__(self, listen: str) -> None:
        """Binds and starts. Raises ConfigError (not host:port) or UnavailableError (the port is taken)."""
        host, _, port = listen.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(f"metrics_listen must be host:port, got {listen!r}")
        try:
            self._server, self._thread = start_http_server(int(port), host.strip("[]"), registry=REGISTRY)
        except (OSError, OverflowError) as error:
            raise UnavailableError(f"cannot serve metrics on {listen}: {error}. Choose another metrics_listen") from error
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)
