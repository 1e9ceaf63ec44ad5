"""Nodes in network namespaces of their own, on a switch that can be split: partitions as the kernel makes them.

Each node has two interfaces: ``peers``, on the switch, and ``watch``, a line to the test alone, which a partition leaves.
Splitting moves the interfaces of a group to a second bridge: packets are dropped without a word, connections stay.
Needs root, ``ip``, and a kernel with namespaces, veth and bridges; `why_not` says what is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from typing import Final

__all__ = ["Namespaces", "why_not"]

NET: Final = "10.213"
"""``NET.0.x`` among nodes, ``NET.1.x`` to the test."""
BRIDGES: Final = ("br0", "br1")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def why_not() -> str:
    """Why there can be no namespaces here; "" if there can."""
    if os.geteuid() != 0:
        return "network namespaces take root"
    if shutil.which("ip") is None:
        return "the tool `ip` (iproute2) is not installed"
    routes = subprocess.run(["ip", "-o", "addr"], check=True, capture_output=True, text=True).stdout
    if f" {NET}." in routes:
        return f"addresses {NET}.x.x are in use on this machine"
    try:
        with Namespaces(1):
            return ""
    except subprocess.CalledProcessError as error:
        return f"`{' '.join(error.cmd)}` failed: {error.stderr.strip()}"


class Namespaces:
    """For ``count`` nodes; use as a context manager, which takes everything away again."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._tag = f"pofl{os.getpid() % 100_000}"
        self._switch = f"{self._tag}s"

    def __enter__(self) -> Namespaces:
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in range(self._count):
            # At once: with its namespace it goes some time later, and its address is in use until then.
            subprocess.run(["ip", "link", "del", self._line(node)], capture_output=True, check=False)
        for name in (self._switch, *(self.name(i) for i in range(self._count))):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)

    def name(self, node: int) -> str:
        return f"{self._tag}n{node}"

    def _line(self, node: int) -> str:
        return f"{self._tag}w{node}"

    def run_in(self, node: int) -> tuple[str, ...]:
        """Words before a command that runs in the node's namespace."""
        return ("ip", "netns", "exec", self.name(node))

    @staticmethod
    def peer_host(node: int) -> str:
        """Where other nodes reach it."""
        return f"{NET}.0.{node + 1}"

    @staticmethod
    def watch_host(node: int) -> str:
        """Where the test reaches it."""
        return f"{NET}.1.{4 * node + 2}"

    def split(self, group: Iterable[int]) -> None:
        """These nodes are cut off from all others."""
        for node in group:
            _ip("-n", self._switch, "link", "set", f"p{node}", "master", BRIDGES[1])

    def heal(self) -> None:
        for node in range(self._count):
            _ip("-n", self._switch, "link", "set", f"p{node}", "master", BRIDGES[0])

    def _make(self) -> None:
        _ip("netns", "add", self._switch)
        for bridge in BRIDGES:
            _ip("-n", self._switch, "link", "add", bridge, "type", "bridge")
            _ip("-n", self._switch, "link", "set", bridge, "up")
        for node in range(self._count):
            name, outer = self.name(node), self._line(node)
            _ip("netns", "add", name)
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "add", "peers", "type", "veth", "peer", "name", f"p{node}", "netns", self._switch)
            _ip("-n", self._switch, "link", "set", f"p{node}", "master", BRIDGES[0], "up")
            _ip("-n", name, "addr", "add", f"{self.peer_host(node)}/24", "dev", "peers")
            _ip("-n", name, "link", "set", "peers", "up")
            _ip("link", "add", outer, "type", "veth", "peer", "name", "watch", "netns", name)
            _ip("addr", "add", f"{NET}.1.{4 * node + 1}/30", "dev", outer)
            _ip("link", "set", outer, "up")
            _ip("-n", name, "addr", "add", f"{self.watch_host(node)}/30", "dev", "watch")
            _ip("-n", name, "link", "set", "watch", "up")
