"""``pofl testnet status|logs|kill|pause|resume|start|down``, for a testnet of processes and for one of containers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Final

import typer

from core.errors import ConfigError, DeadlineError, NotFoundError, UnavailableError
from services.cli import pid_file
from services.cli.connection import NetOption, elsewhere, newest_testnet
from services.cli.errors import runs
from services.cli.output import JsonOption, console, emit_json, table
from services.testnet import control
from services.testnet.engine import Engine
from services.testnet.layout import Layout, load_layout
from services.testnet.places import METRICS_PORT
from services.testnet.plan import DOCKER, Plan, load_settings, plan_of
from services.testnet.watch import connected

__all__ = ["register"]

NameArgument = Annotated[str, typer.Argument(metavar="PROCESS", help="As `pofl testnet status --all` names it, like node1.")]
MADE: Final = (DOCKER, "genesis.json", "testnet.json", "user")
"""What `up --docker` writes into a testnet's folder."""
STOP_SECONDS: Final = 30.0
FOLLOW_SECONDS: Final = 0.5
MOST_LINES: Final = 100_000
# In a container; the exporter answers on loopback too.
READ_METRICS: Final = (
    "python", "-I", "-c",
    "from urllib.request import urlopen; "
    f"print(urlopen('http://127.0.0.1:{METRICS_PORT}/metrics', timeout=5).read().decode())",
)  # fmt: skip
_METRIC: Final = re.compile(r"^pofl_node_(height|peers) ([0-9.e+]+)$", re.M)


def register(app: typer.Typer) -> None:
    for command in (status, logs, kill, pause, resume, start, down):
        app.command(command.__name__)(command)


@asynccontextmanager
async def _containers(folder: Path) -> AsyncIterator[tuple[Engine, Plan] | None]:
    """The engine and the plan of a testnet in containers; None for one of processes."""
    settings = load_settings(folder)
    if settings is None:
        yield None
        return
    engine = await Engine.connect()
    try:
        yield engine, plan_of(settings)
    finally:
        await engine.close()


@runs
async def status(
    net: NetOption = None,
    everything: Annotated[bool, typer.Option("--all", help="Every process, not the nodes only.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Which nodes of a testnet answer, and how far they are. Exit code 3 if none does.

    Example: pofl testnet status --json
    """
    folder = net or newest_testnet()
    async with _containers(folder) as held:
        rows = await _rows_of_processes(folder, everything) if held is None else await _rows_of_containers(*held, everything)
    if as_json:
        names = ("name", "state", "height", "block", "peers")
        emit_json([dict(zip(names, row, strict=True)) for row in rows])
    else:
        shown = [tuple("-" if cell is None else cell for cell in row) for row in rows]
        console.print(table(str(folder), ["process", "state", "height", "block", "peers"], shown, right=[2, 4]))
    if all(row[1] not in ("up", "healthy") for row in rows if row[2] is not None):
        if held is None and not load_layout(folder).has_processes:
            raise UnavailableError(f"no node of {folder} answers: {elsewhere(folder)}")
        how = "--docker --dir" if held is not None else "--dir"
        raise UnavailableError(f"no node of {folder} answers: start it with `pofl testnet up {how} {folder}`")


Row = tuple[str, str, int | None, str | None, int | None]


async def _rows_of_processes(folder: Path, everything: bool) -> list[Row]:
    layout = load_layout(folder)
    try:
        states = await control.ask(folder, "status")
    except UnavailableError:  # somebody may run its processes one by one
        states = {}
    rows: list[Row] = []
    async with connected(layout) as clients:
        for name, node in clients.nodes.items():
            if states.get(name) in ("paused", "killed"):
                rows.append((name, states[name], 0, "-", 0))
                continue
            try:
                tip = await node.tip()
                rows.append((name, "up", tip.height, tip.block_hash.hex()[:8], tip.peers))
            except (UnavailableError, DeadlineError):
                rows.append((name, "down", 0, "-", 0))
    if everything:
        shown = {"running": "up"} | {state: state for state in ("paused", "killed")}
        others = [m.name for m in layout.members if m.role != "node"]
        rows += [(name, shown.get(states.get(name, ""), "down"), None, None, None) for name in others]
    return rows


async def _rows_of_containers(engine: Engine, plan: Plan, everything: bool) -> list[Row]:
    seen = await engine.seen(plan)

    async def row(process: str, role: str) -> Row:
        found = seen.get(process)
        state = "down" if found is None else found.health or found.state
        if role != "node":
            return process, state, None, None, None
        if found is None or found.state != "running":
            return process, state, 0, "-", 0
        read = {}
        with contextlib.suppress(UnavailableError, NotFoundError, DeadlineError):  # it may end, or be paused, while we ask
            _, text = await engine.run(plan, process, list(READ_METRICS))
            read = {key: int(float(value)) for key, value in _METRIC.findall(text)}
        return process, state, read.get("height", 0), "-", read.get("peers", 0)

    wanted = [(c.process, c.role) for c in plan.containers if everything or c.role == "node"]
    return list(await asyncio.gather(*(row(process, role) for process, role in wanted)))


@runs
async def logs(
    process: Annotated[str, typer.Argument(metavar="PROCESS", help="Like node1; without one: the last lines of all.")] = "",
    lines: Annotated[int, typer.Option("--lines", min=1, max=MOST_LINES, help="So many from the end.")] = 40,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="And what comes, until Ctrl-C.")] = False,
    net: NetOption = None,
) -> None:
    """What a process of a testnet logged.

    Example: pofl testnet logs pool0 --follow
    """
    folder = net or newest_testnet()
    if follow and not process:
        raise ConfigError("--follow needs the name of one process")
    async with _containers(folder) as held:
        if held is None:
            await _logs_of_processes(load_layout(folder), process, lines, follow)
            return
        engine, plan = held
        if follow:
            async with contextlib.aclosing(engine.follow(plan, process, lines)) as parts:
                async for part in parts:
                    typer.echo(part, nl=False)
            return
        for name in [process] if process else list(await engine.seen(plan)):
            _show(name, await engine.logs(plan, name, lines), alone=bool(process))


async def _logs_of_processes(layout: Layout, process: str, lines: int, follow: bool) -> None:
    known = [member.name for member in layout.members]
    if process and process not in known:
        raise NotFoundError(f"this testnet has no process {process!r}; it has {', '.join(known)}")
    for name in [process] if process else known:
        path = layout.folder / "logs" / f"{name}.log"
        if not path.exists():
            if process:
                raise NotFoundError(f"{name} has logged nothing yet: {path} is not there")
            continue
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 256 * lines))
            text = file.read().decode(errors="replace")
            _show(name, "\n".join(text.splitlines()[-lines:]), alone=bool(process))
            while follow:
                if part := file.read():
                    typer.echo(part.decode(errors="replace"), nl=False)
                await asyncio.sleep(FOLLOW_SECONDS)


def _show(name: str, text: str, *, alone: bool) -> None:
    for line in text.splitlines():
        typer.echo(line if alone else f"{name:<14} | {line}")


@runs
async def kill(process: NameArgument, net: NetOption = None) -> None:
    """End a process as a power failure would (SIGKILL). The others go on; `start` brings it back.

    Example: pofl testnet kill node1
    """
    await _do("kill", process, net, "killed")


@runs
async def pause(process: NameArgument, net: NetOption = None) -> None:
    """Stop a process in its tracks: it holds its connections and says nothing. `resume` lets it go on.

    Example: pofl testnet pause pool0
    """
    await _do("pause", process, net, "paused")


@runs
async def resume(process: NameArgument, net: NetOption = None) -> None:
    """Let a paused process go on.

    Example: pofl testnet resume pool0
    """
    await _do("resume", process, net, "goes on")


@runs
async def start(process: NameArgument, net: NetOption = None) -> None:
    """Start a process that was killed.

    Example: pofl testnet start node1
    """
    await _do("start", process, net, "started")


async def _do(act: str, process: str, net: Path | None, done: str) -> None:
    folder = net or newest_testnet()
    async with _containers(folder) as held:
        if held is None:
            await control.ask(folder, act, process)
        else:
            engine, plan = held
            acts = {"kill": engine.kill, "pause": engine.pause, "resume": engine.resume, "start": engine.start}
            await acts[act](plan, process)
    console.print(f"{process}: {done}", highlight=False)


@runs
async def down(
    net: NetOption = None,
    volumes: Annotated[
        bool, typer.Option("--volumes", "-v", help="Containers: with all that they stored, keys and chain; nothing is left.")
    ] = False,
) -> None:
    """Stop a testnet: the processes that `pofl testnet up` runs in another terminal, or containers, which are removed.

    What they stored is kept, and `up` from the same folder goes on with it.

    Example: pofl testnet down
    """
    folder = net or newest_testnet()
    async with _containers(folder) as held:
        if held is not None:
            count = await held[0].down(held[1], with_volumes=volumes)
            if volumes:
                await asyncio.to_thread(_forget, folder)
            kept = "nothing is left" if volumes else f"`pofl testnet up --docker --dir {folder}` goes on"
            console.print(f"{folder}: {count} containers removed; {kept}", highlight=False)
            return
    if volumes:
        raise ConfigError(f"--volumes is for containers: what {folder} holds is removed as any folder")
    await _stop_processes(load_layout(folder))
    console.print(f"{folder}: stopped", highlight=False)


async def _stop_processes(layout: Layout) -> None:
    pid = pid_file.running(layout)
    if pid is None:
        raise ConfigError(f"no testnet runs from {layout.folder}")
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + STOP_SECONDS
    while pid_file.running(layout) == pid:
        if time.monotonic() > end:
            raise DeadlineError(f"process {pid} has not stopped the testnet within {STOP_SECONDS:.0f} s")
        await asyncio.sleep(0.1)


def _forget(folder: Path) -> None:
    """What `up --docker` wrote here, and the folder if that was all."""
    for name in MADE:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()
