"""Prometheus metrics of this process. Names start with ``pofl_`` and stay the same from release to release."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, start_http_server

from core.errors import ConfigError, UnavailableError

__all__ = ["REGISTRY", "Exporter", "counter", "gauge", "histogram", "render"]

REGISTRY = CollectorRegistry()
"""Everything this process counts; apart from the library's global registry, which other libraries write into."""

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
