"""How another command reaches the processes of a testnet that `pofl testnet up` runs: kill one, pause it, start it again.

A socket in the testnet's folder, which only its owner can open; a line of JSON each way. The process that holds it started the
others and would otherwise take the end of one for a failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Final

from core.errors import ConfigError, DeadlineError, NotFoundError, PoflError, UnavailableError
from services.testnet.supervisor import ProcessSpec, Supervisor

__all__ = ["ACTS", "Control", "ask"]

SOCKET: Final = "control.sock"
MOST: Final = 65_536
"""Bytes of a line."""
LINE_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 30.0
PATH_BYTES: Final = 100
"""What a socket's path may have on every system."""
ACTS: Final = ("kill", "pause", "resume", "start", "status")


class Control:
    """Does what it is asked to the processes of a supervisor."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._killed: dict[str, ProcessSpec] = {}
        self._paused: set[str] = set()
        self._back: dict[str, float] = {}
        self._changed = asyncio.Condition()

    def is_away(self, name: str) -> bool:
        """Whether somebody wished that this process does not answer now."""
        return name in self._killed or name in self._paused

    def since_back(self, name: str) -> float:
        """Seconds since somebody started or resumed this process; infinite if nobody did."""
        return time.monotonic() - self._back.get(name, -math.inf)

    async def until_back(self, name: str) -> None:
        """Until nobody wishes it away any more."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self.is_away(name))

    @contextlib.asynccontextmanager
    async def serving(self, folder: Path) -> AsyncIterator[Control]:
        """Until left; then nothing is paused any more, so that everything can stop. Raises ConfigError."""
        try:
            with _address(folder) as address:
                (folder / SOCKET).unlink(missing_ok=True)
                listening = socket.socket(socket.AF_UNIX)
                mask = os.umask(0o177)
                try:
                    listening.bind(address)
                finally:
                    os.umask(mask)
        except OSError as error:
            raise ConfigError(f"cannot make {folder / SOCKET}: {error.strerror or error}") from None
        server = await asyncio.start_unix_server(self._serve, sock=listening, limit=MOST)
        try:
            yield self
        finally:
            server.close()
            (folder / SOCKET).unlink(missing_ok=True)
            for name in self._paused:
                with contextlib.suppress(NotFoundError):
                    self._supervisor.send(name, signal.SIGCONT)

    async def do(self, act: str, name: str) -> Mapping[str, str]:
        """State of each process afterwards. Raises NotFoundError, ConfigError, UnavailableError."""
        async with self._changed:
            if act != "status":
                await self._act(act, name)
                if not self.is_away(name):
                    self._back[name] = time.monotonic()
                self._changed.notify_all()
            states = {child.spec.name: "running" for child in self._supervisor.children}
            return states | dict.fromkeys(self._paused, "paused") | dict.fromkeys(self._killed, "killed")

    async def _act(self, act: str, name: str) -> None:
        if act == "start":
            if name not in self._killed:
                raise ConfigError(f"{name} was not killed: there is nothing to start")
            await self._supervisor.start(self._killed[name])
            del self._killed[name]
            return
        spec = next((child.spec for child in self._supervisor.children if child.spec.name == name), None)
        if spec is None and name in self._killed:
            raise ConfigError(f"{name} is killed: `pofl testnet start {name}` starts it again")
        if spec is None:
            known = ", ".join(child.spec.name for child in self._supervisor.children)
            raise NotFoundError(f"this testnet runs no process {name!r}; it runs {known}")
        if act == "kill":
            self._killed[name] = spec  # before it ends: whoever asks it meanwhile shall not wonder
            self._paused.discard(name)
            await self._supervisor.kill(name)
        elif act == "pause":
            self._paused.add(name)
            self._supervisor.send(name, signal.SIGSTOP)
        elif act == "resume":
            if name not in self._paused:
                raise ConfigError(f"{name} is not paused")
            self._supervisor.send(name, signal.SIGCONT)
            self._paused.discard(name)
        else:
            raise ConfigError(f"{act!r} cannot be done to a process; there is {', '.join(ACTS)}")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(LINE_SECONDS):
                asked = json.loads(await reader.readline())
            states = await self.do(str(asked["act"]), str(asked["name"]))
            answer: dict[str, object] = {"states": states}
        except PoflError as error:
            answer = {"error": error.message}
        except (KeyError, TypeError, ValueError, TimeoutError):
            answer = {"error": "that was no request"}
        with contextlib.suppress(OSError, TimeoutError):
            writer.write(json.dumps(answer).encode() + b"\n")
            async with asyncio.timeout(LINE_SECONDS):
                await writer.drain()
        writer.close()


async def ask(folder: Path, act: str, name: str = "") -> Mapping[str, str]:
    """Have the testnet of this folder do it; state of each process afterwards.

    Raises UnavailableError if none runs from there, DeadlineError, ConfigError with what it says.
    """
    try:
        with _address(folder) as address:
            reader, writer = await asyncio.open_unix_connection(address, limit=MOST)
    except OSError:
        raise UnavailableError(f"no testnet runs from {folder}: start it with `pofl testnet up --dir {folder}`") from None
    try:
        writer.write(json.dumps({"act": act, "name": name}).encode() + b"\n")
        async with asyncio.timeout(ANSWER_SECONDS):
            answer = json.loads(await reader.readline())
    except TimeoutError:
        raise DeadlineError(f"the testnet of {folder} has not answered within {ANSWER_SECONDS:.0f} s") from None
    except (OSError, ValueError):
        raise UnavailableError(f"the testnet of {folder} is stopping") from None
    finally:
        writer.close()
    if "error" in answer:
        raise ConfigError(str(answer["error"]))
    return {str(process): str(state) for process, state in answer["states"].items()}


@contextlib.contextmanager
def _address(folder: Path) -> Iterator[str]:
    """A path of the socket that is short enough for any system, by way of an open folder where it must be."""
    path = os.fspath(folder / SOCKET)
    if len(os.fsencode(path)) <= PATH_BYTES:
        yield path
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)
