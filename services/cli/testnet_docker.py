"""``pofl testnet up --docker``: the network of the compose file, through the Docker SDK."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from core.chain.block import BlockKind
from core.errors import ConfigError, DeadlineError
from core.ids import Height
from services.cli.output import console, emit_json
from services.rpc.chain_client import ChainClient
from services.rpc.channel import connect
from services.rpc.views import BlockView
from services.testnet.engine import Engine
from services.testnet.layout import MANIFEST, Layout, Shape, load_layout
from services.testnet.plan import Plan, Settings, call_from_here, load_settings, plan_of, save_settings
from services.testnet.view import LiveView, PlainView
from services.testnet.watch import Observer

__all__ = ["Wishes", "up_in_containers"]

HEALTHY_SECONDS: Final = 300.0
"""Seconds for all of them; an overloaded machine took 190."""
NODE: Final = "node0"
"""The one that is published."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the flags say; None where nothing was said, so that a network from before keeps what it has."""

    shape: Shape
    bind: str | None = None
    image: str | None = None
    train_image: str | None = None


async def up_in_containers(
    folder: Path, wishes: Wishes, blocks: int, timeout: float, block_seconds: float, *, as_json: bool
) -> None:  # fmt: skip
    """Until all are healthy, and ``blocks`` work blocks are final. The containers run on. Raises PoflError."""
    settings = _settings(folder, wishes)
    plan = plan_of(settings)
    began = time.monotonic()
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    engine = await Engine.connect()
    try:
        if not as_json:
            console.print(f"{len(plan.containers)} containers; certificates of a user in {folder}", highlight=False)
        await engine.check_images(plan)
        await engine.check_ports(plan)
        save_settings(folder, settings)
        with _view(quiet=as_json) as observer:
            await engine.up(plan, observer, timeout or HEALTHY_SECONDS)
            healthy = time.monotonic() - began
            observer.say("all are healthy")
            await engine.fetch_user(plan, folder)
            await asyncio.to_thread(call_from_here, folder, settings)
            won = await _watch(load_layout(folder), blocks, observer, timeout or block_seconds * blocks) if blocks else []
    except asyncio.CancelledError:
        if not as_json:
            console.print(f"what was started runs on; to stop it: pofl testnet down --net {folder}", highlight=False)
        raise SystemExit(130) from None
    finally:
        await engine.close()
    _tell(folder, plan, healthy, won, time.monotonic() - began, as_json=as_json)


def _settings(folder: Path, wishes: Wishes) -> Settings:
    """Of the network that is there, else of a new one. Raises ConfigError."""
    said = {key: value for key in ("bind", "image", "train_image") if (value := getattr(wishes, key)) is not None}
    known = load_settings(folder)
    if known is None:
        if (folder / MANIFEST).exists():
            raise ConfigError(f"{folder} is a testnet of processes: start it without --docker, or name another --dir")
        # Of the path: a second `up` that lost the first one's file finds the same containers.
        project = "pofl-" + hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:10]
        return Settings(project, wishes.shape, **said)
    if wishes.shape not in (known.shape, Shape()):
        raise ConfigError(f"{folder} is a network of another shape ({known.shape}): leave the shape out, or name another --dir")
    return replace(known, **said)


async def _watch(layout: Layout, blocks: int, observer: Observer, timeout: float) -> list[BlockView]:
    """Work blocks that become final from now on."""
    channel = connect(layout.member(NODE).listen, layout.user_tls, expect_role="node", expect_name=NODE)
    chain = ChainClient([(NODE, channel)])
    won: list[BlockView] = []
    try:
        async with asyncio.timeout(timeout):
            async for view in _from_now(chain):
                if view.header.kind is BlockKind.WORK:
                    won.append(view)
                    observer.say(f"block {view.header.height}: work by {layout.name_of(view.header.author_id)}")
                if len(won) >= blocks:
                    return won
    except TimeoutError:
        raise DeadlineError(f"within {timeout:.0f} s only {len(won)} of {blocks} work blocks became final") from None
    finally:
        await channel.close(None)
    return won


async def _from_now(chain: ChainClient) -> AsyncIterator[BlockView]:
    tip = await chain.tip()
    async for view in chain.watch_blocks(Height(tip.height + 1)):
        yield view


def _view(*, quiet: bool) -> contextlib.AbstractContextManager[Any]:
    if quiet:
        return contextlib.nullcontext(_Silent())
    return LiveView(console) if console.is_terminal else PlainView(console)


class _Silent:
    def state(self, name: str, role: str, text: str) -> None: ...

    def say(self, line: str) -> None: ...


def _tell(folder: Path, plan: Plan, healthy: float, won: list[BlockView], seconds: float, *, as_json: bool) -> None:
    if as_json:
        emit_json({
            "folder": folder, "project": plan.settings.project, "containers": len(plan.containers),
            "healthy_seconds": round(healthy, 1), "seconds": round(seconds, 1),
            "blocks": [{"height": b.header.height, "block_hash": b.block_hash} for b in won],
        })  # fmt: skip
        return
    console.print(f"{len(plan.containers)} containers are healthy after {healthy:.1f} s", highlight=False)
    if won:
        console.print(f"{len(won)} work blocks are final after {seconds:.1f} s", highlight=False)
    console.print(f"ask it:  pofl chain tip --net {folder}", highlight=False)
    console.print(f"stop it: pofl testnet down --net {folder}", highlight=False)
