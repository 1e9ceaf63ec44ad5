"""Where the processes of a network run: one container each, or the hosts of a file.

::

    # hosts.toml: at least one host
    [[host]]
    name = "alpha"                   # names the bundle
    address = "alpha.example.org"    # what the others dial: a name, or an address
    processes = ["node0", "pool0"]   # optional: those that no host names are dealt in turn to the hosts without a list
    listen = "0.0.0.0"               # optional: where its processes listen
    first_port = 7000                # optional: four ports a process from here on; two of them on loopback only
"""

from __future__ import annotations

import ipaddress
import itertools
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from core.errors import ConfigError
from services.testnet.layout import Place, Places

__all__ = [
    "ADMIN_PORT", "LAST_PORT", "METRICS_PORT", "PORT", "PORTS_EACH", "Host", "containers", "on_hosts", "place", "read_hosts",
]  # fmt: skip

PORT: Final = 7000
"""Of every process in a container of its own; then the operator's, the metrics', and Flower's."""
ADMIN_PORT: Final = PORT + 1
METRICS_PORT: Final = PORT + 2
LOOPBACK: Final = "127.0.0.1"
ANYWHERE: Final = "0.0.0.0"  # noqa: S104 - listened on, never advertised
PORTS_EACH: Final = 4
LAST_PORT: Final = 65_535
MOST_HOSTS: Final = 256
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_LABEL: Final = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS: Final = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")
RESERVED: Final = ("operator", "user", "ca")


@dataclass(frozen=True, slots=True)
class Host:
    """A machine."""

    name: str
    address: str
    processes: tuple[str, ...] = ()
    """Empty: its share of those that no host names."""
    listen: str = ANYWHERE
    first_port: int = PORT

    def check(self) -> None:
        """Raises ConfigError naming host, key and value."""
        if not _NAME.fullmatch(self.name) or self.name in RESERVED:
            raise ConfigError(f"host name {self.name!r} must be lower-case letters, digits, hyphens, and none of {RESERVED}")
        if not _is_dialled(self.address):
            raise ConfigError(
                f"host {self.name}: address {self.address!r} cannot be dialled: give the name or address that others use"
            )
        try:
            ipaddress.ip_address(self.listen.strip("[]"))
        except ValueError:
            raise ConfigError(f"host {self.name}: listen is {self.listen!r}, it must be an address of the host") from None
        if not 1 <= self.first_port <= LAST_PORT:
            raise ConfigError(f"host {self.name}: first_port is {self.first_port}, it must be from 1 to 65535")


def containers(names: Sequence[tuple[str, str]]) -> list[Place]:
    """Each process in a container whose name in the network is the process's own."""
    # Prometheus is a container beside them. Nothing of this port is published, and no secret is in it.
    return [replace(_place(name, name, ANYWHERE, PORT), metrics=f"{ANYWHERE}:{METRICS_PORT}") for name, _ in names]


def place(address: str, port: int) -> Place:
    """Of one process, reached at ``address`` from outside: it listens there if that is an address, everywhere if it is a name.

    Raises ConfigError for what nobody can dial.
    """
    if not _is_dialled(address):
        raise ConfigError(f"{address!r} cannot be dialled: give the name or address that others use")
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return _place("", address, ANYWHERE, port)
    return replace(_place("", address, address, port), bind="", fleet_bind="")


def read_hosts(path: Path) -> tuple[Host, ...]:
    """The hosts of a file. Raises ConfigError."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    listed = table.pop("host", None)
    if table or not isinstance(listed, list) or not listed:
        raise ConfigError(f"{path} must hold [[host]] tables and nothing else")
    if len(listed) > MOST_HOSTS:
        raise ConfigError(f"{path} has {len(listed)} hosts, at most {MOST_HOSTS}")
    hosts = tuple(_host(item, path) for item in listed)
    for what, values in (("name", [h.name for h in hosts]), ("address", [f"{h.address}, port {h.first_port}" for h in hosts])):
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice is not None:
            raise ConfigError(f"{path}: two hosts have the {what} {twice}")
    return hosts


def on_hosts(hosts: Sequence[Host]) -> Places:
    """Places on these hosts. They raise ConfigError: a process that there is not, one in two places, or one that has none."""

    def places(names: Sequence[tuple[str, str]]) -> list[Place]:
        home = _deal([name for name, _ in names], hosts)
        numbers = {host.name: itertools.count() for host in hosts}
        made = []
        for name, _ in names:
            host = home[name]
            port = host.first_port + PORTS_EACH * next(numbers[host.name])
            if port + PORTS_EACH - 1 > LAST_PORT:
                raise ConfigError(f"host {host.name}: no port is left for {name}: lower first_port")
            made.append(_place(host.name, host.address, host.listen, port))
        return made

    return places


def _deal(names: list[str], hosts: Sequence[Host]) -> dict[str, Host]:
    home: dict[str, Host] = {}
    for host in hosts:
        for name in host.processes:
            if name not in names:
                raise ConfigError(f"host {host.name}: this network has no process {name!r}; it has {', '.join(names)}")
            if name in home:
                raise ConfigError(f"{name} is on two hosts, {home[name].name} and {host.name}")
            home[name] = host
    open_hosts = [host for host in hosts if not host.processes]
    rest = [name for name in names if name not in home]
    if rest and not open_hosts:
        raise ConfigError(f"no host runs {', '.join(rest)}: list them, or leave out `processes` of a host")
    home.update(zip(rest, itertools.cycle(open_hosts), strict=False))
    idle = [host.name for host in hosts if host not in home.values()]
    if idle:
        raise ConfigError(f"nothing is left to run on {', '.join(idle)}: leave it out")
    return home


def _place(host: str, address: str, listen: str, port: int) -> Place:
    dialled, bound = _bracketed(address), _bracketed(listen)
    return Place(
        f"{dialled}:{port}", f"{LOOPBACK}:{port + 1}", f"{LOOPBACK}:{port + 2}", f"{dialled}:{port + 3}",
        f"{bound}:{port}", f"{bound}:{port + 3}", host,
    )  # fmt: skip


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address and not address.startswith("[") else address


def _is_dialled(address: str) -> bool:
    """A name, or an address that is neither a wildcard nor a group's."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return _DNS.fullmatch(address) is not None
    return not (parsed.is_unspecified or parsed.is_multicast)


def _host(item: object, path: Path) -> Host:
    kinds: dict[str, type] = {"name": str, "address": str, "processes": list, "listen": str, "first_port": int}
    if not isinstance(item, dict):
        raise ConfigError(f"{path} must hold [[host]] tables and nothing else")
    if unknown := [key for key in item if key not in kinds]:
        raise ConfigError(f"{path}: unknown key {unknown[0]!r} of a host; there are {', '.join(kinds)}")
    if missing := [key for key in ("name", "address") if key not in item]:
        raise ConfigError(f"{path}: a host has no {missing[0]}")
    for key, value in item.items():
        if not isinstance(value, kinds[key]) or isinstance(value, bool):
            raise ConfigError(f"{path}: {key} of a host is {value!r}")
    processes = item.get("processes", [])
    if not all(isinstance(name, str) for name in processes):
        raise ConfigError(f"{path}: processes of host {item['name']} must be a list of names")
    host = Host(**{**item, "processes": tuple(processes)})
    host.check()
    return host
