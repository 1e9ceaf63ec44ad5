"""What the manager knows of members while it trains."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from pool.flower.engine import MiningEngine


class Manager:
    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.event: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    async def read(self) -> dict[str, Any]:
        return await self.event

    def send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        self.event.set_result({"event": "done"})


async def test_rows_that_come_during_training_reach_the_manager() -> None:
    """A member's bound rises when it is assigned rows: an update with them must not be refused as claiming too many."""
    key = b"\x01" * 33
    members = {key: 100}
    engine = cast(MiningEngine, SimpleNamespace(_members=lambda miners: {key.hex(): 7}))
    manager = Manager()
    told = ({key.hex(): 7}, {key.hex(): 100})
    following = asyncio.create_task(MiningEngine._follow(engine, cast(Any, manager), told, members, [], lambda _: None))
    await asyncio.sleep(0)
    members[key] = 193
    assert await asyncio.wait_for(following, 60) == ""
    assert manager.sent == [{"members": {key.hex(): 7}, "registered": {key.hex(): 193}}]
