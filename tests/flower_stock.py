"""A stock Flower deployment on loopback: flower-superlink and flower-supernodes as real processes, and ``flwr run``."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from core.errors import DeadlineError, UnavailableError
from pool.flower.children import flower_environment
from pool.flower.stock.__main__ import write_app
from services.testnet.layout import free_ports

__all__ = ["Deployment"]

BIN = Path(sys.executable).parent
HOST = "127.0.0.1"


class Deployment:
    """One SuperLink and a SuperNode for each file of ``rows``. Everything lies in ``folder``, which exists.

    ``given_up``: set by another thread, it ends every wait with UnavailableError.
    """

    def __init__(self, folder: Path, rows: Sequence[Path], patience_s: float) -> None:
        self.folder, self.rows, self._patience_s = folder, rows, patience_s
        self.environment = flower_environment(folder / "home") | {"FLWR_LOG_LEVEL": "INFO"}
        self.started: list[subprocess.Popen[bytes]] = []
        self.seen: set[psutil.Process] = set()
        self.peak: dict[str, int] = {}
        self.given_up = threading.Event()
        self._port, *self._node_ports = free_ports(1 + len(rows))

    def start(self) -> None:
        """Start all and write the app and Flower's own configuration."""
        write_app(self.folder / "mining")
        (self.folder / "home").mkdir()
        (self.folder / "home" / "config.toml").write_text(
            f'[superlink]\ndefault = "own"\n[superlink.own]\naddress = "{HOST}:{self._port}"\ninsecure = true\n'
        )
        self._spawn("superlink", "flower-superlink", "--insecure", "--host", HOST, "--port", str(self._port))
        self._wait_for_port()
        for number, (rows, port) in enumerate(zip(self.rows, self._node_ports, strict=True)):
            self._spawn(
                f"supernode{number}", "flower-supernode", "--insecure", "--superlink", f"{HOST}:{self._port}",
                "--host", HOST, "--port", str(port), "--node-config", f'data="{rows}"',
            )  # fmt: skip

    def run(self, **settings: object) -> None:
        """``flwr run`` with this run configuration; returns when the run is accepted."""
        words = " ".join(f"{name.replace('_', '-')}={json.dumps(value)}" for name, value in settings.items())
        done = subprocess.run(
            [str(BIN / "flwr"), "run", str(self.folder / "mining"), "own", "--run-config", words],
            env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=self._patience_s, check=False,
        )  # fmt: skip
        if done.returncode:
            raise UnavailableError(f"flwr run: {done.stdout}{done.stderr}")

    def reports(self, out: Path, accepted: int) -> list[dict[str, Any]]:
        """The run's reports, when so many rounds are accepted. Raises DeadlineError with the end of all logs."""
        until, path = time.monotonic() + self._patience_s, Path(f"{out}.jsonl")
        while True:
            self.look()
            found = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
            if sum(bool(report["accepted"]) for report in found) >= accepted:
                return found
            if time.monotonic() > until:
                raise DeadlineError(f"{len(found)} rounds within {self._patience_s:g} s\n{self.logs()}")
            if self.given_up.wait(0.5):
                raise UnavailableError("given up")

    def look(self) -> None:
        """Remember all processes, and the greatest memory of each program."""
        for process in self.started:
            try:
                family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
            for one in family:
                try:
                    name = Path(one.cmdline()[1]).name
                    self.peak[name] = max(self.peak.get(name, 0), one.memory_info().rss)
                except (psutil.Error, IndexError):
                    continue
            self.seen |= set(family)

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))

    def close(self) -> list[psutil.Process]:
        """End all. Whatever outlived the processes that started it is killed and returned."""
        self.look()
        for process in reversed(self.started):
            process.send_signal(signal.SIGTERM)
        for process in self.started:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        # What Flower started watches its parent and ends with it.
        _, alive = psutil.wait_procs(self.seen, timeout=60)
        for left in alive:
            left.kill()
        return list(alive)

    def _spawn(self, name: str, program: str, *words: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(BIN / program), *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment,
                cwd=self.folder, start_new_session=True,
            )  # fmt: skip
        self.started.append(process)

    def _wait_for_port(self) -> None:
        until = time.monotonic() + self._patience_s
        while True:
            try:
                socket.create_connection((HOST, self._port), 1.0).close()
                return
            except OSError:
                if time.monotonic() > until:
                    raise DeadlineError(f"no SuperLink within {self._patience_s:g} s\n{self.logs()}") from None
                if self.given_up.wait(0.2):
                    raise UnavailableError("given up") from None
