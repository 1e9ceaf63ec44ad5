"""A real node process, asked for thousands of things that it must refuse: it goes on, and its memory stays what it was."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from core.errors import PoflError
from tests.chaos_world import until
from tests.node_network import make_network
from tests.request_flood import Flood, flood

MOST_GROWTH = 64 << 20
"""Bytes from the first tenth to the end; the short flood has no more than that in all."""
MOST_PEAK = 256 << 20
"""Above what the process had before: large requests are held whole before they are refused."""


async def run(folder: Path, count: int) -> Flood:
    network = make_network(folder, 1)
    node = network.nodes[0]
    await node.start()
    try:
        client = network.client(node)

        async def is_up() -> bool:
            try:
                return (await client.tip()).height >= 1
            except Exception:  # noqa: BLE001 - it is starting
                return False

        await until(is_up, 180, "a first block")
        height = (await client.tip()).height
        found = await flood(network, node, count, 1)

        async def goes_on() -> bool:
            with contextlib.suppress(PoflError):
                return (await client.tip()).height > height
            return False

        await until(goes_on, 180, "another block after the flood")
        assert node.process is not None
        assert node.process.returncode is None
        text = await asyncio.to_thread(node.log.read_text)
        assert "Traceback" not in text, text[-4_000:]
        return found
    finally:
        await network.close()


def check(found: Flood, count: int) -> None:
    assert sum(found.codes.values()) == count
    for code in ("PERMISSION_DENIED", "UNIMPLEMENTED", "INVALID_ARGUMENT"):
        assert found.codes[code] > 0, found.codes
    assert found.codes["INTERNAL"] == 0, found.codes
    assert found.peak - found.before < MOST_PEAK, found


@pytest.mark.timeout(600)
async def test_a_short_flood_of_bad_requests_costs_no_memory(tmp_path: Path) -> None:
    found = await run(tmp_path, 1_000)
    check(found, 1_000)
    assert found.after - found.before < MOST_GROWTH, found


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(1_800)
async def test_a_hundred_thousand_bad_requests_cost_no_memory(tmp_path: Path) -> None:
    found = await run(tmp_path, 100_000)
    sizes = {name: getattr(found, name) >> 20 for name in ("before", "warm", "peak", "after")}
    print(f"\nMiB {sizes}, answers {found.codes}")
    check(found, 100_000)
    assert found.after - found.warm < MOST_GROWTH, found
