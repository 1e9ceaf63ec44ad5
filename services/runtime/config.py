"""Configuration of a role: a frozen dataclass, filled from a TOML file, the environment and flags, in that order.

::

    @dataclass(frozen=True, kw_only=True)
    class NodeConfig(CommonConfig):
        ROLE: ClassVar[str] = "node"
        idle_ms: int = option("Longest time between two blocks, milliseconds.", default=10_000, low=100)

    cfg = load(NodeConfig, Path("node.toml"), os.environ, ["log.level=debug"])

Nested dataclasses are TOML tables. The environment spells ``log.level`` as ``POFL_LOG__LEVEL``, or
``POFL_NODE_LOG__LEVEL`` for one role only, which wins. A key that nothing knows is an error, wherever it comes from.
Paths in a file are relative to that file; elsewhere they are relative to the working directory.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar, Literal

from core.endpoint import is_endpoint
from core.errors import ConfigError
from services.runtime.settings import dump, load, option, required, section

__all__ = [
    "ChainConfig", "CommonConfig", "LogConfig", "PeersConfig", "TlsConfig",
    "advertised", "dump", "load", "option", "required", "section",
]  # fmt: skip

WILDCARDS = frozenset({"0.0.0.0", "::", "[::]", "*", ""})  # noqa: S104 - what is refused


@dataclasses.dataclass(frozen=True, kw_only=True)
class TlsConfig:
    """Who this process proves to be."""

    ca: Path | None = option("Certificate of the network's authority, PEM.", default=None)
    cert: Path | None = option("Certificate of this process, PEM.", default=None)
    key: Path | None = option("Private key of this process, PEM, readable by its owner only.", default=None)
    insecure_loopback: bool = option("Speak plaintext; only ever on loopback, for experiments.", default=False)

    def check(self) -> None:
        """Either all three files or the explicit flag."""
        given = [name for name in ("ca", "cert", "key") if getattr(self, name) is not None]
        if self.insecure_loopback and given:
            raise ConfigError(f"tls.insecure_loopback and tls.{given[0]} exclude one another: remove one of them")
        if not self.insecure_loopback and len(given) != 3:
            missing = ", ".join(f"tls.{name}" for name in ("ca", "cert", "key") if name not in given)
            raise ConfigError(f"{missing} must be set (`pofl testnet init` makes them), or tls.insecure_loopback = true")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Where the log goes and how it looks."""

    level: Literal["debug", "info", "warning", "error"] = option("Least level that is logged.", default="info")
    format: Literal["json", "console"] = option("json for machines, console for people.", default="console")
    file: Path | None = option("Log file, rotated at 20 MiB; standard error if not set.", default=None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChainConfig:
    """Which network."""

    genesis: Path | None = option("The genesis file; the same on every process of a network.", default=None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeersConfig:
    """Addresses, host:port, of the processes that this one dials."""

    nodes: tuple[str, ...] = option("Nodes.", default=())
    platforms: tuple[str, ...] = option("Platforms.", default=())
    requesters: tuple[str, ...] = option("Requesters.", default=())
    providers: tuple[str, ...] = option("Providers.", default=())
    pools: tuple[str, ...] = option("Pool managers.", default=())
    miners: tuple[str, ...] = option("Miners.", default=())

    def check(self) -> None:
        for field in dataclasses.fields(self):
            for address in getattr(self, field.name):
                _check_address(address, f"peers.{field.name}", port_zero=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonConfig:
    """What every role has. A role's own configuration extends it and sets ROLE."""

    ROLE: ClassVar[str] = ""

    name: str = required("Name of this process, as in its certificate.")
    listen: str = required("Address to serve roles and users on, host:port; port 0 takes a free one.")
    advertise: str = option("Address that others reach this process at; `listen` if empty.", default="")
    admin_listen: str = option("Loopback address for the operator: health, status, metrics.", default="127.0.0.1:0")
    metrics_listen: str = option("Address of the Prometheus exporter over HTTP; none if empty.", default="")
    data_dir: Path = required("Folder for everything this process stores.")
    tls: TlsConfig = section(TlsConfig, "Certificates.")
    log: LogConfig = section(LogConfig, "Logging.")
    chain: ChainConfig = section(ChainConfig, "The network.")
    peers: PeersConfig = section(PeersConfig, "Whom this process dials.")

    def check(self) -> None:
        """Rules that span keys. A role that adds its own calls this one too."""
        _check_address(self.listen, "listen", port_zero=True)
        _check_address(self.admin_listen, "admin_listen", port_zero=True)
        if self.metrics_listen:
            _check_address(self.metrics_listen, "metrics_listen", port_zero=True)
        if self.advertise:
            advertised(self, self.listen)


def advertised(cfg: CommonConfig, bound: str) -> str:
    """The address to tell others, given the one really bound. Raises ConfigError for what nobody can dial."""
    address, key = (cfg.advertise, "advertise") if cfg.advertise else (bound, "listen")
    _check_address(address, key, port_zero=bool(cfg.advertise))
    host, _, port = address.rpartition(":")
    if host in WILDCARDS:
        raise ConfigError(f"{host or 'an empty host'} cannot be dialled: set advertise to this machine's name or address")
    if not is_endpoint(f"{host}:{1 if port == '0' else port}"):
        raise ConfigError(
            f"{key} is {address!r}, which others cannot dial: set advertise to host:port, this machine's name or address"
        )
    # A port of 0 says "the one that was taken".
    return f"{host}:{bound.rpartition(':')[2]}" if port == "0" else address


def _check_address(address: str, name: str, *, port_zero: bool) -> None:
    host, colon, port = address.rpartition(":")
    if address.startswith("unix:"):
        return
    valid = colon and port.isascii() and port.isdigit() and int(port) <= 65_535 and (port_zero or int(port) > 0)
    if not valid or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        raise ConfigError(f"{name} must be host:port (an IPv6 host in brackets), got {address!r}")
