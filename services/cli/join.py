"""``pofl join``: the processes of one host of a network."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Annotated

import typer

from services.cli import pid_file
from services.cli.errors import runs
from services.cli.output import console
from services.testnet.bundles import Bundle, read_bundle
from services.testnet.supervisor import Supervisor

__all__ = ["join"]


@runs
async def join(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder of this host, from `pofl testnet init --hosts`.")],
) -> None:
    """Run this host's processes in the foreground until Ctrl-C. If one ends by itself all are stopped, and its log is shown.

    They look for the other hosts for as long as it takes. `pofl doctor BUNDLE` says what is in the way.

    Example: pofl join alpha
    """
    found = read_bundle(bundle.resolve())
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    taken = f"the processes of {found.folder} run already, by `pofl join` in another terminal: end it there by Ctrl-C"
    try:
        with pid_file.held(found.folder, taken):
            await _run(found)
    except asyncio.CancelledError:
        console.print("stopped; no process is left", highlight=False)


async def _run(bundle: Bundle) -> None:
    """Until cancelled. Raises PoflError with the end of its log when a process ends by itself."""
    async with Supervisor() as supervisor:
        assert supervisor.failed is not None
        for spec in bundle.specs():
            await supervisor.start(spec)
            console.print(f"{spec.name}: log in {spec.log}", highlight=False)
        await asyncio.wait([supervisor.failed])
        supervisor.check()
