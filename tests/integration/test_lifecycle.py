"""Real processes: how they end, and what they say."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from core.errors import LimitError, UnavailableError
from services.runtime.cpu import CpuPool

ROOT = Path(__file__).resolve().parent.parent.parent
PREAMBLE = """
import asyncio, sys, time
from core.errors import *
from services.runtime.lifecycle import run, Lifecycle, run_cpu
def say(text): print(text, flush=True)
"""


def start(body: str, grace: float = 60.0) -> subprocess.Popen[str]:
    code = PREAMBLE + textwrap.dedent(body) + f"\nsys.exit(run(main, grace_s={grace}))"
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str], *signals: int) -> tuple[int, str, str]:
    """Wait for the word "up", send the signals, each later one after the word "stopping", and give exit code, output and error
    output. Two signals that a process has not seen yet are one."""
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        for word, number in zip(("up\n", "stopping\n"), signals, strict=False):
            assert process.stdout.readline() == word
            process.send_signal(number)
        out, err = process.communicate(timeout=100)
    return process.returncode, out, err


WAITS = """
async def main(life):
    life.on_stop(lambda: say("first registered"))
    async def later(): say("last registered")
    life.on_stop(later)
    async def background():
        try: await asyncio.Event().wait()
        finally: say("background ended")
    life.spawn(background(), "background")
    await asyncio.sleep(0)
    say("up")
    await life.wait()
    say("main returned")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_in_order(number: int) -> None:
    code, out, err = finish(start(WAITS), number)
    assert (code, err) == (0, "")
    assert out.split("\n")[:4] == ["main returned", "background ended", "last registered", "first registered"]


def test_a_start_that_hangs_is_interrupted() -> None:
    code, _, err = finish(start("async def main(life):\n    say('up')\n    await asyncio.Event().wait()"), signal.SIGTERM)
    assert (code, err) == (0, "")


def test_a_second_signal_ends_at_once() -> None:
    body = """
    async def main(life):
        async def slow():
            say("stopping")
            await asyncio.sleep(600)
        life.on_stop(slow)
        say("up")
        await life.wait()
    """
    # Before the wait for its grace, and before that for the slow one, is over.
    code, _, err = finish(start(body, grace=300), signal.SIGTERM, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert "SIGTERM again" in err


def test_what_does_not_end_is_ended() -> None:
    body = """
    async def main(life):
        async def stubborn():
            while True:
                try: await asyncio.sleep(600)
                except asyncio.CancelledError: pass
        life.spawn(stubborn(), "stubborn")
        say("up")
        await life.wait()
    """
    code, _, err = finish(start(body, grace=0.5), signal.SIGTERM)
    assert code == 1
    assert "ended at once" in err


def test_a_running_computation_does_not_hold_the_process() -> None:
    body = """
    async def main(life):
        life.spawn(run_cpu(time.sleep, 600), "compute")
        await asyncio.sleep(0.1)
        say("up")
        await life.wait()
    """
    assert finish(start(body), signal.SIGTERM)[0] == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("ConfigError('listen is not set')", 2),
        ("WrongChainError('another genesis')", 2),
        ("UnavailableError('the port is taken')", 3),
        ("LockedError('in use')", 3),
        ("CorruptError('checksum')", 4),
        ("CheatingError('a commitment does not open')", 5),
    ],
)
def test_an_error_of_ours_is_one_sentence_and_a_code(error: str, code: int) -> None:
    assert finish(start(f"async def main(life):\n    raise {error}")) == (
        code, "", f"error: {error.split(chr(39))[1]}\n",
    )  # fmt: skip


def test_a_crashed_background_task_ends_the_process() -> None:
    body = """
    async def main(life):
        life.on_stop(lambda: say("closed"))
        async def crash(): raise KeyError("gone")
        life.spawn(crash(), "follow chain")
        await life.wait()
    """
    code, out, err = finish(start(body))
    assert (code, out) == (1, "closed\n")
    assert err.splitlines()[-1].startswith("error: follow chain: unexpected KeyError: 'gone'")


async def test_a_full_queue_is_refused_and_places_come_back() -> None:
    import threading

    gate = threading.Event()
    pool = CpuPool(workers=1, queue=1)
    running = asyncio.create_task(pool.run(gate.wait, 100))
    queued = asyncio.create_task(pool.run(gate.wait, 100))
    await asyncio.sleep(0.05)
    with pytest.raises(LimitError, match="2 computations are running or waiting"):
        await pool.run(int)
    queued.cancel()
    with pytest.raises(asyncio.CancelledError):
        await queued
    async with asyncio.timeout(60):
        while pool._taken > 1:  # noqa: ASYNC110 - a callback gives the place back
            await asyncio.sleep(0.01)
    replacement = asyncio.create_task(pool.run(int, "7"))
    gate.set()
    assert await running
    assert await replacement == 7
    pool.close()
    with pytest.raises(UnavailableError):
        await pool.run(int)


async def test_an_error_of_the_computation_comes_out() -> None:
    pool = CpuPool(workers=1, queue=0)
    with pytest.raises(ZeroDivisionError):
        await pool.run(divmod, 1, 0)
    pool.close()
