"""Nodes in network namespaces of their own, on a switch that can be split: partitions as the kernel makes them.

Each node has two interfaces: ``peers``, on the switch, and ``watch``, a line to the test alone, which a partition leaves.
Splitting moves the interfaces of a group to a second bridge: packets are dropped without a word, connections stay.
Needs root, ``ip``, and a kernel with namespaces, veth and bridges; `why_not` says what is missing.

Without the lines nothing of it touches the machine's own addresses; then all questions are asked from a namespace too.
`Namespaces.delay` makes every packet late, with whatever this machine has for that.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

__all__ = ["Namespaces", "why_not"]

NET: Final = "10.213"
"""``NET.0.x`` among nodes, ``NET.1.x`` to the test."""
BRIDGES: Final = ("br0", "br1")


NETDELAY: Final = Path(__file__).resolve().parents[2] / "shared" / "tools" / "netdelay"
"""For kernels without netem: a program that holds packets back; else one of this name on the path."""
SET_UP: Final = 60.0
NAME: Final = re.compile(r"pofl(\d{1,5})(s|n\d+)")


def _sweep() -> None:
    """Take away what tests left that were killed: the number in a name is no process any more."""
    listed = subprocess.run(["ip", "-o", "netns", "list"], capture_output=True, text=True, check=False).stdout
    alive = {int(entry.name) % 100_000 for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    for line in listed.splitlines():
        found = NAME.fullmatch(line.split()[0])
        if found is None or int(found[1]) in alive:
            continue
        for pid in _inside(found[0]):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        subprocess.run(["ip", "netns", "del", found[0]], capture_output=True, check=False)


def _inside(name: str) -> list[int]:
    listed = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False).stdout
    return [int(pid) for pid in listed.split()]


def _rules(before: tuple[str, ...]) -> str:
    words = [*before, "iptables", "-w", "-t", "mangle", "-S", "INPUT"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


def _netem(name: str, milliseconds: int, jitter: int) -> int:
    words = ["tc", "-n", name, "qdisc", "add", "dev", "peers", "root", "netem", "delay", f"{milliseconds}ms", f"{jitter}ms"]
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode
    except FileNotFoundError:
        return 127


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def why_not(watch: bool = True) -> str:
    """Why there can be no namespaces here; "" if there can. ``watch`` as in `Namespaces`."""
    if os.geteuid() != 0:
        return "network namespaces take root"
    if shutil.which("ip") is None:
        return "the tool `ip` (iproute2) is not installed"
    routes = subprocess.run(["ip", "-o", "addr"], check=True, capture_output=True, text=True).stdout
    if watch and f" {NET}." in routes:
        return f"addresses {NET}.x.x are in use on this machine"
    try:
        with Namespaces(1, watch):
            return ""
    except subprocess.CalledProcessError as error:
        return f"`{' '.join(error.cmd)}` failed: {error.stderr.strip()}"


class Namespaces:
    """For ``count`` nodes; use as a context manager, which takes everything away again, and what still runs inside.

    ``watch``: with lines to the test.
    """

    def __init__(self, count: int, watch: bool = True) -> None:
        self._count = count
        self._watch = watch
        self._delays: list[subprocess.Popen[bytes]] = []
        self._tag = f"pofl{os.getpid() % 100_000}"
        self._switch = f"{self._tag}s"

    def __enter__(self) -> Namespaces:
        _sweep()
        try:
            self._make()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._delays:
            process.terminate()
        for process in self._delays:
            process.wait(10)
        for node in range(self._count):
            for pid in self.inside(node):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
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

    def inside(self, node: int) -> list[int]:
        """Processes in the node's namespace."""
        return _inside(self.name(node))

    def delay(self, milliseconds: int, jitter: int) -> str:
        """Every packet between the namespaces comes so much later. What does it; "" where this machine has nothing for it."""
        if _netem(self.name(0), milliseconds, jitter) == 0:
            for node in range(1, self._count):
                _netem(self.name(node), milliseconds, jitter)
            return "tc netem"
        tool = shutil.which("netdelay") or str(NETDELAY)
        if not os.access(tool, os.X_OK) or shutil.which("iptables") is None:
            return ""
        for node in range(self._count):
            words = [*self.run_in(node), tool, "--delay", str(milliseconds), "--jitter", str(jitter), "--match", "-i peers"]
            self._delays.append(subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        end = time.monotonic() + SET_UP
        for node, process in enumerate(self._delays):
            while "NFQUEUE" not in _rules(self.run_in(node)):
                if process.poll() is not None or time.monotonic() > end:
                    return ""
                time.sleep(0.2)
        return "netdelay"

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
            if not self._watch:
                continue
            _ip("link", "add", outer, "type", "veth", "peer", "name", "watch", "netns", name)
            _ip("addr", "add", f"{NET}.1.{4 * node + 1}/30", "dev", outer)
            _ip("link", "set", outer, "up")
            _ip("-n", name, "addr", "add", f"{self.watch_host(node)}/30", "dev", "watch")
            _ip("-n", name, "link", "set", "watch", "up")
