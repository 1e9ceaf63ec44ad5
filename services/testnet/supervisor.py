"""Starts the processes of a testnet, notices when one ends, and leaves none behind.

Each process leads its own process group, so stopping it stops its children too. Output goes to one log file each.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from core.errors import ConfigError, NotFoundError, PoflError, UnavailableError
from services.runtime.startup import PARENT

__all__ = ["Child", "ProcessSpec", "Supervisor"]

STOP_TIMEOUT: Final = 10.0
"""Seconds a process has after SIGTERM before its group is killed."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One role's process: ``python -m module arguments --config file``."""

    name: str
    role: str
    module: str
    config: Path
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()


@dataclass(slots=True)
class Child:
    """A started process."""

    spec: ProcessSpec
    process: asyncio.subprocess.Process
    log: IO[bytes]
    started: float

    @property
    def is_running(self) -> bool:
        return self.process.returncode is None


class Supervisor:
    """The processes of one testnet.

    Use as an async context manager: leaving it, by whatever way, stops everything that was started.
    """

    def __init__(self, python: str = sys.executable) -> None:
        self._python = python
        self._children: dict[str, Child] = {}
        self._watchers: set[asyncio.Task[None]] = set()
        self._stopping = False
        self.failed: asyncio.Future[str] | None = None

    async def __aenter__(self) -> Supervisor:
        self.failed = asyncio.get_running_loop().create_future()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def children(self) -> Sequence[Child]:
        return tuple(self._children.values())

    async def start(self, spec: ProcessSpec) -> Child:
        """Start one process. Raises UnavailableError if the system refuses, ConfigError if its log cannot be written."""
        if self._stopping:
            raise UnavailableError(f"{spec.name} is not started: the testnet is stopping")
        try:
            spec.log.parent.mkdir(parents=True, exist_ok=True)
            log = spec.log.open("ab")
        except OSError as error:
            why = f"{error.strerror or error}; this user (number {os.getuid()}) must be able to write there"
            raise ConfigError(f"cannot write the log {spec.log}: {why}") from None
        # One thread a process: a testnet has more processes than the machine has cores.
        env = {
            **os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1",
            PARENT: str(os.getpid()), **spec.env,
        }  # fmt: skip
        try:
            process = await asyncio.create_subprocess_exec(
                self._python, "-m", spec.module, *spec.arguments, "--config", str(spec.config),
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            log.close()
            raise UnavailableError(f"cannot start {spec.name}: {error}") from error
        child = Child(spec, process, log, time.monotonic())
        self._children[spec.name] = child
        watcher = asyncio.create_task(self._watch(child))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        return child

    async def end(self, name: str) -> None:
        """Stop one process, so that it can be started again; that it ends is no failure. Raises NotFoundError."""
        child = self._take(name)
        _signal_group(child, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child.process.wait(), STOP_TIMEOUT)
        await _kill(child)

    async def kill(self, name: str) -> None:
        """SIGKILL to one process's group, as a power failure ends it; no failure either. Raises NotFoundError."""
        await _kill(self._take(name))

    def send(self, name: str, number: signal.Signals) -> None:
        """To one process's group. Raises NotFoundError."""
        child = self._children.get(name)
        if child is None:
            raise NotFoundError(f"no process {name!r} was started")
        _signal_group(child, number)

    def _take(self, name: str) -> Child:
        child = self._children.pop(name, None)
        if child is None:
            raise NotFoundError(f"no process {name!r} was started")
        return child

    async def stop(self) -> None:
        """SIGTERM to every group in reverse order of start, SIGKILL to what is left after the timeout."""
        self._stopping = True
        children = list(reversed(self._children.values()))
        for child in children:
            _signal_group(child, signal.SIGTERM)
        waits = [asyncio.ensure_future(child.process.wait()) for child in children if child.is_running]
        if waits:
            await asyncio.wait(waits, timeout=STOP_TIMEOUT)
        for child in children:
            # Also where the leader has ended: a child of its own may have outlived it.
            _signal_group(child, signal.SIGKILL)
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                await child.process.wait()
            child.log.close()

    def tail(self, name: str, lines: int = 12) -> str:
        """The end of a process's log, for a message about its end."""
        path = self._children[name].spec.log
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])

    async def _watch(self, child: Child) -> None:
        code = await child.process.wait()
        if self._stopping or self.failed is None or self.failed.done() or self._children.get(child.spec.name) is not child:
            return
        how = f"with exit code {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
        message = f"{child.spec.name} ended {how}; the end of {child.spec.log}:\n{self.tail(child.spec.name)}"
        self.failed.set_result(message)

    def check(self) -> None:
        """Raises PoflError if a process has ended by itself."""
        if self.failed is not None and self.failed.done():
            raise PoflError(self.failed.result())


async def _kill(child: Child) -> None:
    _signal_group(child, signal.SIGKILL)
    await child.process.wait()
    child.log.close()


def _signal_group(child: Child, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.process.pid, number)
