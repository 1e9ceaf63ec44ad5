"""Work for the processor, away from the event loop.

A pool has a fixed number of workers and a bounded queue: what does not fit is refused at once with LimitError, so a
process under load says so instead of growing.
"""

from __future__ import annotations

import asyncio
import functools
import os
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any, Literal, ParamSpec, TypeVar

from core.errors import LimitError, UnavailableError

__all__ = ["CpuPool", "close_all", "run_cpu"]

P = ParamSpec("P")
R = TypeVar("R")

_open: weakref.WeakSet[CpuPool] = weakref.WeakSet()


class CpuPool:
    """Workers that compute.

    Threads suit work that leaves Python's lock (numpy, homomorphic operations, hashing). Processes suit work that does
    not; arguments and results then travel between two processes of ours.
    """

    def __init__(self, workers: int, queue: int, kind: Literal["thread", "process"] = "thread") -> None:
        """``workers`` run at once, ``queue`` more may wait."""
        self._executor: Executor
        if kind == "thread":
            self._executor = ThreadPoolExecutor(workers, thread_name_prefix="pofl-cpu")
        else:
            # A forked child would inherit gRPC's threads in an undefined state.
            self._executor = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
        self._places = workers + queue
        self._taken = 0
        self._closed = False
        _open.add(self)

    async def run(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """``function(*args)`` in a worker.

        Cancelling drops a call that still waits in the queue. One that has begun runs to its end, and keeps its place
        until then, so the bound holds; its result is dropped. Raises LimitError (queue full), UnavailableError
        (closed), or what the function raises.
        """
        if self._closed:
            raise UnavailableError("this process is stopping and takes no more work")
        if self._taken >= self._places:
            raise LimitError(f"{self._taken} computations are running or waiting, no place for more: try again later")
        loop = asyncio.get_running_loop()
        future = self._executor.submit(functools.partial(function, *args, **kwargs))
        self._taken += 1
        future.add_done_callback(lambda _: _from_thread(loop, self._release))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Drops what waits. Running computations end by themselves."""
        self._closed = True
        self._executor.shutdown(wait=False, cancel_futures=True)

    @property
    def busy(self) -> bool:
        """Whether a computation runs or waits."""
        return self._taken > 0

    def _release(self) -> None:
        self._taken -= 1


def _from_thread(loop: asyncio.AbstractEventLoop, callback: Callable[[], Any]) -> None:
    # The loop may be gone when a computation outlives it; then nobody counts any more.
    if not loop.is_closed():
        loop.call_soon_threadsafe(callback)


def close_all() -> bool:
    """Close every pool of this process; whether a computation is still running in one of them."""
    pools = list(_open)
    for pool in pools:
        pool.close()
    return any(pool.busy for pool in pools)


@functools.cache
def _default() -> CpuPool:
    workers = max(1, os.cpu_count() or 1)
    return CpuPool(workers, queue=16 * workers)


async def run_cpu(function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """`CpuPool.run` on the process's own pool: one thread a processor, sixteen waiting calls for each."""
    return await _default().run(function, *args, **kwargs)
