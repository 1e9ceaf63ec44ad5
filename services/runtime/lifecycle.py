"""The life of a process: start, background tasks, signals, orderly stop, exit code.

::

    async def main(life: Lifecycle) -> None:
        store = open_store()
        life.on_stop(store.close)                 # called last
        await server.start()
        life.on_stop(server.stop)                 # called first
        life.spawn(follow_chain(), "follow chain")
        await life.wait()

    sys.exit(run(main))

Exit codes::

    0  stopped as asked
    1  a defect: something raised an error that is not of our tree
    2  what the process was given is wrong: configuration, files, certificates, another network's data or peers
    3  the surroundings are: a port is taken, a peer does not answer, a data folder is in use, the disk is full
    4  the stored data are damaged
    5  a rule of a protocol or of the chain was broken while running
    128 + n  ended at once by a second signal n
"""

from __future__ import annotations

import asyncio
import atexit
import inspect
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NoReturn

from core import errors
from services.runtime.clock import SystemClock
from services.runtime.cpu import CpuPool, close_all, run_cpu
from services.runtime.logging import logger

__all__ = ["CpuPool", "Lifecycle", "SystemClock", "end_process", "exit_code", "run", "run_cpu"]

log = logger(__name__)

GRACE_S = 10.0
"""Seconds from the first signal to the end."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)

_EXIT_CODES: tuple[tuple[tuple[type[errors.PoflError], ...], int], ...] = (
    ((errors.InputError, errors.AuthError, errors.WrongChainError), 2),
    ((errors.UnavailableError, errors.DeadlineError, errors.LockedError, errors.StorageFullError), 3),
    ((errors.StorageError,), 4),
    ((errors.PoflError,), 5),
)


def exit_code(error: BaseException) -> int:
    """The exit code that tells a script what kind of error ended the process."""
    return next((code for kinds, code in _EXIT_CODES if isinstance(error, kinds)), 1)


class Lifecycle:
    """What a role's main function is given."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        """Set by the first signal, by `stop`, or when a background task fails."""
        self.failure: BaseException | None = None
        """What ended the process, if it was not asked to end."""
        self._failed_task = ""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._callbacks: list[Callable[[], object]] = []

    def spawn(self, coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run in the background until it returns or the process stops. If it raises, the process ends with an error."""
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def on_stop(self, callback: Callable[[], object]) -> None:
        """Call (and await, if it gives something to await) at the end; the last registered comes first."""
        self._callbacks.append(callback)

    def stop(self) -> None:
        """Ask for an orderly end."""
        self.stopping.set()

    async def wait(self) -> None:
        """Until the process is asked to end."""
        await self.stopping.wait()

    def describe_failure(self) -> str:
        """One line for a person."""
        if self.failure is None:
            return ""
        where = f"{self._failed_task}: " if self._failed_task else ""
        if isinstance(self.failure, errors.PoflError):
            return f"error: {where}{self.failure.message}"
        kind = type(self.failure).__name__
        return f"error: {where}unexpected {kind}: {self.failure} (a defect; the log has its traceback)"

    def fail(self, error: BaseException, task: str = "") -> None:
        """End the process because of ``error``. The first failure is the one that is reported.

        What fails after the process was told to stop is logged only: peers and parts are going away then.
        """
        if self.stopping.is_set():
            log.warning("failed while stopping", task=task, error=error)
            return
        if self.failure is None:
            self.failure, self._failed_task = error, task
            if not isinstance(error, errors.PoflError):
                try:
                    raise error
                except BaseException:
                    log.exception("unexpected error", task=task)
        self.stopping.set()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error, task.get_name())

    async def close(self, end: float) -> None:
        """Background tasks first, then the callbacks, last registered first, all before monotonic time ``end``."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=max(0.1, (end - time.monotonic()) / 2))
        while self._callbacks:
            callback = self._callbacks.pop()
            try:
                async with asyncio.timeout(max(0.1, end - time.monotonic())):
                    result = callback()
                    if inspect.isawaitable(result):
                        await result
            except TimeoutError:
                log.error("did not stop in time", what=_name(callback))
            except Exception as error:
                # One that fails must not keep the others from closing.
                log.exception("failed while stopping", what=_name(callback), error=error)


def run(main: Callable[[Lifecycle], Awaitable[None]], *, grace_s: float = GRACE_S) -> int:
    """Run a role until it returns or is told to stop; the exit code.

    SIGTERM or SIGINT: `Lifecycle.stopping` is set, ``main`` has a moment to return and is then cancelled, background
    tasks are cancelled, `on_stop` callbacks run; all within ``grace_s`` seconds. A second signal ends the process at
    once. Errors of the tree are one sentence on standard error, without traceback.
    """
    supervisor = _Supervisor(main, grace_s)
    try:
        asyncio.run(supervisor.run())
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    finally:
        supervisor.watchdog.cancel()
    failure = supervisor.life.failure
    code = 0 if failure is None else exit_code(failure)
    if failure is not None:
        sys.stderr.write(supervisor.life.describe_failure() + "\n")
    if close_all():
        # The interpreter would wait for computations whose results nobody wants any more.
        _end_now(code)
    return code


class _Supervisor:
    def __init__(self, main: Callable[[Lifecycle], Awaitable[None]], grace_s: float) -> None:
        self._main = main
        self._grace_s = grace_s
        self.life = Lifecycle()
        self.watchdog = threading.Timer(grace_s + 2.0, self._overdue)
        self.watchdog.daemon = True

    async def run(self) -> None:
        life, loop = self.life, asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, _on_signal, life, number)
        running = asyncio.create_task(self._guarded())
        stopping = asyncio.create_task(life.stopping.wait())
        await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        self.watchdog.start()
        end = time.monotonic() + self._grace_s
        # A main that waits for `stopping` returns at once; one that is still starting, or dialling, is interrupted.
        if not running.done():
            await asyncio.wait((running,), timeout=min(0.5, self._grace_s / 4))
            running.cancel()
            await asyncio.wait((running,), timeout=max(0.1, (end - time.monotonic()) / 2))
        life.stopping.set()
        await life.close(end)
        for number in SIGNALS:
            loop.remove_signal_handler(number)
        log.info("stopped", failed=life.failure is not None)

    async def _guarded(self) -> None:
        try:
            await self._main(self.life)
        except Exception as error:  # noqa: BLE001 - reported by `run`, as one line
            self.life.fail(error)

    def _overdue(self) -> None:
        sys.stderr.write(f"did not end {self._grace_s + 2:g} seconds after being told to: ended at once\n")
        _end_now(1)


def end_process(code: int) -> NoReturn:
    """End without taking the interpreter apart; what is registered with atexit runs.

    Where links come up at the moment of the end, gRPC's objects wait there for one another, for ever and deaf to signals.
    """
    atexit._run_exitfuncs()
    _end_now(code)


def _end_now(code: int) -> NoReturn:
    """Without the interpreter's own clean-up, which may wait."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _on_signal(life: Lifecycle, number: signal.Signals) -> None:
    if life.stopping.is_set():
        sys.stderr.write(f"{number.name} again: ended at once\n")
        _end_now(128 + number)
    log.info("stopping", signal=number.name)
    life.stopping.set()


def _name(callback: Callable[[], object]) -> str:
    return getattr(callback, "__qualname__", repr(callback))
