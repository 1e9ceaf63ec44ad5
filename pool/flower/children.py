"""Child processes that speak JSON lines: settings and requests in, answers and events out.

A child gets everything secret through its standard input, ends when that closes, and so cannot outlive its parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import MalformedError, UnavailableError

__all__ = ["Child", "flower_environment"]

LINE_LIMIT = 4 << 20


def flower_environment(folder: Path) -> dict[str, str]:
    """The environment of every process that imports flwr: its home is ours, it reports to and downloads from nobody."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith("FLWR_")}
    root = str(Path(__file__).resolve().parent.parent.parent)
    paths = [root, *(p for p in keep.get("PYTHONPATH", "").split(os.pathsep) if p)]
    return keep | {
        "FLWR_HOME": str(folder),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_LOG_LEVEL": "ERROR",
        "OMP_NUM_THREADS": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), keep.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "PYTHONUNBUFFERED": "1",
    }


class Child:
    """One running process. Not for concurrent readers."""

    def __init__(self, process: asyncio.subprocess.Process, name: str, log: Path) -> None:
        self._process, self.name, self._log = process, name, log

    @classmethod
    async def start(cls, python: str, module: str, environment: Mapping[str, str], log: Path) -> Child:
        """Run ``python -m module``, which waits for its settings. Its standard error is appended to ``log``.

        It has a session of its own: a Ctrl-C on the terminal is for the parent, which ends it in order.
        Raises UnavailableError where the system gives no process, memory or file.
        """
        try:
            with log.open("ab") as errors:
                process = await asyncio.create_subprocess_exec(
                    python, "-m", module, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=errors,
                    env=dict(environment), limit=LINE_LIMIT, start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            raise UnavailableError(
                f"{module} could not be started: {error}; see to the limits on open files, processes and memory"
            ) from None
        return cls(process, module.rpartition(".")[2], log)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.returncode is None

    def send(self, message: Mapping[str, object]) -> None:
        assert self._process.stdin is not None
        # To a child that is gone this is a no-op; reading from it says so.
        with contextlib.suppress(ConnectionError, RuntimeError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")

    async def read(self) -> dict[str, Any] | None:
        """The next line; None when the child closed its output.

        Raises MalformedError for anything but one JSON object a line.
        """
        assert self._process.stdout is not None
        try:
            line = await self._process.stdout.readline()
        except ValueError:
            raise MalformedError(f"{self.name}: a line longer than {LINE_LIMIT} bytes") from None
        if not line.endswith(b"\n"):
            return None
        try:
            value = json.loads(line)
        except ValueError:
            raise MalformedError(f"{self.name}: not JSON: {line[:200]!r}") from None
        if not isinstance(value, dict):
            raise MalformedError(f"{self.name}: not a JSON object: {line[:200]!r}")
        return value

    async def wait(self) -> int:
        return await self._process.wait()

    def end_note(self) -> str:
        """For error messages: how it ended and the last line of its log."""
        with contextlib.suppress(OSError):
            lines = self._log.read_text(errors="replace").strip().splitlines()
            return f"exit status {self._process.returncode}; {lines[-1] if lines else 'empty log'} ({self._log})"
        return f"exit status {self._process.returncode} ({self._log})"

    async def stop(self, grace_s: float) -> None:
        """Close its input, wait ``grace_s``, kill. Returns when it is gone and reaped."""
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError, RuntimeError):
            self._process.stdin.close()
        if self.is_running:
            try:
                await asyncio.wait_for(self._process.wait(), grace_s)
            except TimeoutError:
                self.kill()
        await self._process.wait()
        # Reads what is left, so that the pipe's transport closes now and not at some garbage collection.
        if self._process.stdout is not None:
            with contextlib.suppress(ValueError, UnavailableError):
                while await self._process.stdout.read(1 << 16):
                    pass

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
