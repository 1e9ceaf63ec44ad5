"""A network for measurements: a chain whose phases the bench sets, certificates, and a real requester process on loopback.

Everything that is measured runs in processes of its own, over gRPC with mutual TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.requester_chain import HOST, ROOT, Chain, Surroundings, genesis, key
from core.codec import encode
from core.errors import DeadlineError, PoflError, UnavailableError
from core.params import ChainParams
from services.rpc.views import TaskView
from services.runtime.startup import PARENT

__all__ = ["HOST", "ROOT", "Client", "Network", "end", "environment", "key", "network"]

LONGEST_S = 600.0
"""No step of a measurement takes longer."""
PARAMS = ChainParams(
    entry_ms=60_000, commit_ms=120_000, claim_ms=180_000, settle_ms=60_000, audit_ms=60_000
).outlasting_stalls()
"""Windows as wide as so many validators need; nothing here waits for them."""


def environment() -> dict[str, str]:
    """One thread of linear algebra a process, as the services are run. It ends when this process does, however that ends."""
    return {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "proto")]), "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1", PARENT: str(os.getpid()),
    }  # fmt: skip


class Client:
    """A process of one or more participants: a JSON object in, a JSON object out, one line each."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self._process, self._log = process, log

    async def ask(self, **request: object) -> Any:
        """Raises PoflError with what the process said."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        await self._process.stdin.drain()
        try:
            async with asyncio.timeout(LONGEST_S):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise DeadlineError(f"{request.get('do')}: no result within {LONGEST_S:g} s") from None
        reply = json.loads(line) if line else {"error": f"the process ended; {_last_line(self._log)}"}
        if "error" in reply:
            raise UnavailableError(f"{request.get('do')}: {reply['error']}")
        return reply

    @property
    def pid(self) -> int:
        return self._process.pid

    async def close(self) -> None:
        await end(self._process)


@dataclass
class Network(Surroundings):
    """Chain, certificates and requester."""

    requester_pid: int = 0
    processes: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def spawn_requester(self) -> None:
        path = self.write_config()
        with (self.folder / "requester.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "requester", "--config", str(path), stdin=asyncio.subprocess.DEVNULL,
                stdout=log, stderr=log, env=environment(), cwd=ROOT, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        self.requester_pid = process.pid
        ready = asyncio.ensure_future(self.channel("user", "user").channel_ready())
        ended = asyncio.ensure_future(process.wait())
        try:
            done, _ = await asyncio.wait((ready, ended), timeout=60, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in (ready, ended):
                one.cancel()
            await asyncio.gather(ready, ended, return_exceptions=True)
        if ready not in done:
            raise TimeoutError("the requester did not come up")

    async def spawn_client(self, task: TaskView, *who: tuple[str, str]) -> Client:
        """A process that speaks as each of ``who`` (role, name) to the requester about one task."""
        file = self.folder / "task.bin"
        file.write_bytes(encode(task.spec))
        for role, name in who:
            self.files(role, name)
        # A session of its own: Ctrl-C comes to this process alone, which then ends the others.
        with (self.folder / "clients.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "bench.verification_client", str(self.folder), self.address,
                self.chain.genesis.chain_id.hex(), task.task_id.hex(), task.requester.hex(),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                stderr=log, env=environment(), cwd=ROOT, limit=1 << 24, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return Client(process, self.folder / "clients.log")

    async def close(self) -> None:
        for channel in self.channels:
            with contextlib.suppress(PoflError):
                await channel.close(None)
        await asyncio.gather(*(end(process) for process in self.processes))


async def end(process: asyncio.subprocess.Process) -> None:
    """Politely, then by force."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)  # terminate() would reap one that has just ended, under asyncio's feet
        try:
            async with asyncio.timeout(10):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


@contextlib.asynccontextmanager
async def network(folder: Path, nodes: int) -> AsyncIterator[Network]:
    """Chain and certificates in this process, the requester in her own."""
    made = Network.make(folder, Chain(genesis("bench", nodes, PARAMS)), "chain")  # type: ignore[abstract]
    await made.server.start()
    await made.server.ready()
    try:
        await made.spawn_requester()
        yield made
    except TimeoutError as error:
        log = (folder / "requester.log").read_text(errors="replace")[-2000:]
        raise UnavailableError(f"a step took too long; the requester's log ends: {log}") from error
    finally:
        # Shielded: a second Ctrl-C must not leave a process behind.
        await asyncio.shield(_close(made))


async def _close(made: Network) -> None:
    await made.close()
    await made.server.stop(0)
