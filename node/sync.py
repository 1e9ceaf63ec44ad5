"""Catching up: finalised blocks with their certificates from peers that are ahead, never from a requester.

A certificate of 2/3 of the validators of its height makes a block final, whoever brings it. So a peer can only delay us. Who is
a few blocks behind takes them from one peer. Who is far behind first asks one for headers and one certificate, which say what
the chain is (docs/adr/0086), then several peers for the blocks: what one of them does not give, or gives wrongly, the
others are asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Final, Protocol

from core.chain import verify
from core.chain.block import Block, Certificate
from core.chain.headers import check_headers
from core.chain.state import State
from core.errors import BlockError, ChainError, DeadlineError, InputError, LimitError, PoflError, PrunedError, StorageError
from core.ids import BlockHash, Height, NodeId
from services.rpc.channel import Connection
from services.rpc.convert_peer import Progress
from services.rpc.peer_client import fetch_blocks, fetch_headers
from services.runtime.logging import logger
from services.runtime.metrics import counter, gauge

__all__ = ["Sync"]

log = logger(__name__)

FETCHED = counter("node_blocks_fetched", "Finalised blocks taken from other nodes instead of from own voting.")
BEHIND = gauge("node_blocks_behind", "How far the furthest peer says to be ahead, while this node catches up.")

GRACE_SECONDS: Final = 0.3
"""A peer that is one block ahead has usually just seen the last vote first: wait for that vote."""
NEAR: Final = 32
"""Who is not more blocks behind asks for no headers."""
HEADERS: Final = 512
LEAST_HEADERS: Final = 250
"""As many as fit one answer, if each is as large as it may be."""
PART: Final = 32
"""Blocks that are asked for at once."""
AHEAD: Final = 4
"""Parts that may be here before it is their turn."""
MAX_PEERS: Final = 4
TIMEOUT_SECONDS: Final = 30.0
"""For the headers, and for each part: who is slower is passed over."""
AVOID_SECONDS: Final = 1.0
"""After the first fault of a peer; twice as long after each further one."""
MAX_AVOID_SECONDS: Final = 600.0
PRUNED_SECONDS: Final = 10.0
"""A peer that has pruned what is needed is asked again: others may have brought this node far enough."""
REPORT_SECONDS: Final = 5.0

Pair = tuple[Block, Certificate]


def check_ahead(state: State, blocks: Sequence[Pair]) -> None:
    """The certificates' signatures of blocks whose turn comes later, on another core than the one that executes blocks. That
    is where they count: what is wrong here says so there."""
    room = verify.AHEAD // AHEAD
    for _, certificate in blocks:
        room -= len(certificate.signatures)
        if room < 0:
            # What is remembered would not last until their turn.
            return
        verify.check_ahead(certificate, state.chain_id, state.validators)


class Target(Protocol):
    """Where fetched blocks go."""

    @property
    def state(self) -> State: ...

    @property
    def height(self) -> Height: ...

    async def take_final(self, blocks: Sequence[Pair]) -> None:
        """Checks and adds the next blocks. Raises ChainError; those before the wrong one are kept."""


@dataclass
class _Span:
    """Blocks whose hashes are known, on their way."""

    first: int
    hashes: Sequence[BlockHash]
    missing: set[int] = field(default_factory=set)
    """Parts, by number, that nobody fetches now."""
    here: dict[int, tuple[NodeId, list[Pair]]] = field(default_factory=dict)
    """Parts that wait for their turn, and who gave them."""
    turn: int = 0
    working: int = 0
    """Peers that are being asked."""
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    def __post_init__(self) -> None:
        self.missing.update(range(self.count))

    @property
    def count(self) -> int:
        return -(-len(self.hashes) // PART)

    def wanted(self, part: int) -> Sequence[BlockHash]:
        return self.hashes[part * PART : (part + 1) * PART]


class Sync:
    """Remembers how far peers are, and fetches while one of them is ahead."""

    def __init__(self, target: Target, connection: Callable[[NodeId], Connection | None]) -> None:
        self._target = target
        self._connection = connection
        self._heights: dict[NodeId, int] = {}
        self._strikes: dict[NodeId, tuple[int, float]] = {}
        """How often in a row a peer did not give what it said it has, and until when it is not asked."""
        self._wake = asyncio.Event()
        self._report_at = 0.0

    @property
    def best(self) -> int:
        """Last finalised height of the peer that is furthest."""
        return max(self._heights.values(), default=0)

    def progress(self, node: NodeId, progress: Progress) -> None:
        """A peer says which height it is deciding."""
        self._heights[node] = progress.height - 1
        if progress.height - 1 > self._target.height:
            self._wake.set()

    def forget(self, node: NodeId) -> None:
        self._heights.pop(node, None)

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(GRACE_SECONDS)
            while able := self._ahead():
                node = able[0]
                with self._blaming(node):
                    if self._heights[node] - self._target.height <= NEAR:
                        await self._fetch(node)
                    else:
                        await self._fetch_span(await self._agree(node))
            BEHIND.set(0)

    def _ahead(self, least: int = 0) -> list[NodeId]:
        """Peers that can be called and are further than we are, and than ``least``, the furthest first. One that lied about
        that is left alone for a while: it must not keep us from the others by saying that it is furthest again and again."""
        least = max(self._target.height, least)
        able = [
            node
            for node, height in self._heights.items()
            if height > least and self._connection(node) is not None and self._is_trusted(node)
        ]
        return sorted(able, key=lambda n: -self._heights[n])

    # A few blocks

    async def _fetch(self, node: NodeId) -> None:
        first = Height(self._target.height + 1)
        blocks = await self._get(node, first, NEAR)
        if not blocks and self._heights.get(node, 0) > self._target.height:
            self._blame(node)
        elif blocks:
            await self._take(node, blocks)

    # Many blocks

    async def _agree(self, node: NodeId) -> _Span:
        """What comes after our tip, as far as one certificate shows. Raises PoflError."""
        first, count = Height(self._target.height + 1), HEADERS
        while True:
            connection = self._connected(node)
            headers, certificate = await fetch_headers(
                connection.channel, first, count, TIMEOUT_SECONDS, peer=connection.target
            )
            least = min(count, self._heights.get(node, 0) - first + 1, LEAST_HEADERS)
            if len(headers) < least:
                # It would make us ask for every block by itself.
                raise BlockError(f"{len(headers)} headers came, at least {least} were to be had")
            state = self._target.state
            if state.height + 1 != first:
                # Our own voting was faster.
                return _Span(first, ())
            if len(headers) > 1 and not verify.is_within_reach(certificate, state.validators):
                count = len(headers) // 2
                continue
            return _Span(first, await asyncio.to_thread(check_headers, state, headers, certificate))

    async def _fetch_span(self, span: _Span) -> None:
        """Every block of the span from whoever gives it. Returns early if nobody is left who does."""
        peers = self._ahead(span.first)[:MAX_PEERS]
        span.working = len(peers)
        workers = [asyncio.create_task(self._work(node, span), name="fetch blocks") for node in peers]
        try:
            while span.turn < span.count:
                async with span.changed:
                    await span.changed.wait_for(lambda: span.turn in span.here or not span.working)
                    if span.turn not in span.here:
                        return
                    node, blocks = span.here.pop(span.turn)
                with self._blaming(node):
                    await self._take(node, blocks)
                async with span.changed:
                    if self._target.height >= span.first + span.turn * PART + len(span.wanted(span.turn)) - 1:
                        span.turn += 1
                    else:
                        # Known to be final, so it is the fault of who gave it.
                        span.missing.add(span.turn)
                    span.changed.notify_all()
                self._report()
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, node: NodeId, span: _Span) -> None:
        """Fetches part after part from one peer, until it fails or nothing is missing."""
        try:
            while self._is_trusted(node) and span.turn < span.count:
                async with span.changed:
                    part = min(span.missing, default=span.count)
                    if part >= min(span.count, span.turn + AHEAD):
                        await span.changed.wait()
                        continue
                    span.missing.remove(part)
                blocks: list[Pair] = []
                with self._blaming(node):
                    blocks = await self._get_part(node, span, part)
                    await asyncio.to_thread(check_ahead, self._target.state, blocks)
                async with span.changed:
                    if blocks:
                        span.here[part] = node, blocks
                    else:
                        span.missing.add(part)
                    span.changed.notify_all()
        finally:
            span.working -= 1
            async with span.changed:
                span.changed.notify_all()

    async def _get_part(self, node: NodeId, span: _Span, part: int) -> list[Pair]:
        wanted = list(span.wanted(part))
        blocks = await self._get(node, Height(span.first + part * PART), len(wanted))
        if [block.block_hash for block, _ in blocks] != wanted:
            raise BlockError(f"{len(blocks)} blocks came, not the {len(wanted)} that are final here")
        return blocks

    # Both

    async def _get(self, node: NodeId, first: Height, count: int) -> list[Pair]:
        """Raises PoflError."""
        connection = self._connected(node)
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                stream = fetch_blocks(connection.channel, first, count, TIMEOUT_SECONDS, peer=connection.target)
                blocks: list[Pair] = []
                async with contextlib.aclosing(stream):
                    async for pair in stream:
                        blocks.append(pair)
                        if len(blocks) > count:
                            raise LimitError(f"more than the {count} blocks that were asked for")
                return blocks
        except TimeoutError:
            raise DeadlineError(f"{count} blocks from {first} on did not come within {TIMEOUT_SECONDS:g} s") from None

    async def _take(self, node: NodeId, blocks: Sequence[Pair]) -> None:
        before = self._target.height
        try:
            await self._target.take_final(blocks)
        except (ChainError, InputError) as error:
            log.warning("a peer sent a block that is not final", peer=node, height=self._target.height + 1, error=error)
            raise
        finally:
            FETCHED.inc(max(0, self._target.height - before))
        self._strikes.pop(node, None)
        log.info("fetched blocks", peer=node, first=before + 1, height=self._target.height)

    def _report(self) -> None:
        BEHIND.set(max(0, self.best - self._target.height))
        if monotonic() >= self._report_at:
            self._report_at = monotonic() + REPORT_SECONDS
            log.info("catching up", height=self._target.height, best=self.best)

    def _connected(self, node: NodeId) -> Connection:
        connection = self._connection(node)
        if connection is None:
            raise BlockError("the link to the peer is gone")
        return connection

    def _is_trusted(self, node: NodeId) -> bool:
        return self._strikes.get(node, (0, 0.0))[1] <= monotonic()

    @contextlib.contextmanager
    def _blaming(self, node: NodeId) -> Iterator[None]:
        """What goes wrong is this peer's fault, or is taken for it: the others are asked."""
        try:
            yield
        except PrunedError as error:
            # No fault: it serves those that are less far behind.
            log.warning("a peer does not keep the blocks that this node needs", peer=node, error=error)
            self._strikes[node] = (0, monotonic() + PRUNED_SECONDS)
            self.forget(node)
        except StorageError:
            raise
        except PoflError as error:
            log.info("could not fetch blocks", peer=node, error=error)
            # It says how far it is again when it is reachable again.
            self._blame(node)

    def _blame(self, node: NodeId) -> None:
        count = self._strikes.get(node, (0, 0.0))[0] + 1
        self._strikes[node] = (count, monotonic() + min(AVOID_SECONDS * 2.0**count, MAX_AVOID_SECONDS))
        self.forget(node)
