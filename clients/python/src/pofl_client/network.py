"""A local testnet's folder, as `pofl testnet up` makes it: a script needs to know neither addresses nor certificates."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pofl_client._async import AsyncNode, AsyncPlatform, AsyncProvider, AsyncRequester
from pofl_client._sync import Node, Platform, Provider, Requester
from pofl_client.errors import ConfigError
from pofl_client.tls import Tls

__all__ = ["LocalNetwork", "local_network"]


@dataclass(frozen=True, slots=True)
class LocalNetwork:
    """Each method makes a client, as its class does; nothing is sent yet."""

    folder: Path
    tls: Tls
    addresses: dict[str, list[str]]
    """By role."""

    def node(self, **options: Any) -> Node:
        """All nodes: the next one is asked when one cannot be reached."""
        return Node(self._of("node"), self.tls, **options)

    def async_node(self, **options: Any) -> AsyncNode:
        return AsyncNode(self._of("node"), self.tls, **options)

    def platform(self, **options: Any) -> Platform:
        return Platform(self._of("platform"), self.tls, **options)

    def async_platform(self, **options: Any) -> AsyncPlatform:
        return AsyncPlatform(self._of("platform"), self.tls, **options)

    def requester(self, number: int = 0, **options: Any) -> Requester:
        return Requester(self._of("requester")[number], self.tls, **options)

    def async_requester(self, number: int = 0, **options: Any) -> AsyncRequester:
        return AsyncRequester(self._of("requester")[number], self.tls, **options)

    def provider(self, number: int = 0, **options: Any) -> Provider:
        return Provider(self._of("provider")[number], self.tls, **options)

    def async_provider(self, number: int = 0, **options: Any) -> AsyncProvider:
        return AsyncProvider(self._of("provider")[number], self.tls, **options)

    def _of(self, role: str) -> list[str]:
        if not self.addresses.get(role):
            raise ConfigError(f"the testnet in {self.folder} has no {role}")
        return self.addresses[role]


def local_network(folder: Path | str | None = None) -> LocalNetwork:
    """The testnet in ``folder``; else that of POFL_NET, or the newest below ``testnet-data`` here. Raises ConfigError."""
    chosen = Path(folder or os.environ.get("POFL_NET") or _newest(Path("testnet-data")))
    try:
        members = json.loads((chosen / "testnet.json").read_text(encoding="utf-8"))["members"]
        found: dict[str, list[str]] = {}
        for member in members:
            found.setdefault(str(member["role"]), []).append(str(member["listen"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{chosen} is no testnet: {error!r}") from error
    return LocalNetwork(chosen, Tls.of(chosen / "user" / "tls"), found)


def _newest(below: Path) -> Path:
    found = [path.parent for path in below.glob("*/testnet.json")]
    if not found:
        raise ConfigError("no testnet here: start one with `pofl testnet up`, or name its folder")
    return max(found, key=lambda path: path.stat().st_mtime)
