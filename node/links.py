"""Gossip links with other full nodes.

Every configured address is dialled for ever, and so is that of every validator whose address the chain has, as long as it
is one. A link carries messages both ways; to a node with several links, the newest
is used, so that a node which nobody has in its list takes part over the links that it opened itself. What waits for a
slow peer is bounded: its oldest transactions are dropped first, only the last progress is kept, and votes are dropped
last and never silently. What comes in is paced per peer; a message that no honest node sends cuts the peer's links off
for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from enum import Enum, auto
from time import monotonic
from typing import Final, Protocol

from core.chain.block import MAX_TRANSACTION
from core.chain.state import State
from core.chain.transaction import SignedTransaction
from core.chain.vote import SignedProposal
from core.codec import encode
from core.errors import AuthError, LimitError, PoflError, SequenceError, UnavailableError, WrongChainError
from core.ids import NodeId, short
from services.rpc.channel import Connection, backoff, dial_forever
from services.rpc.convert_peer import MAX_TOGETHER, Gossip, Hello, Progress, Transactions
from services.rpc.handshake import LocalIdentity
from services.rpc.tls import TlsFiles
from services.runtime.logging import logger
from services.runtime.metrics import counter, gauge

__all__ = ["Acceptance", "GossipCall", "Handler", "Link", "Links"]

log = logger(__name__)

PEERS = gauge("node_peers", "Other nodes that this one has a gossip link with.")
DROPPED = counter("node_gossip_dropped", "Messages dropped because a peer is slow.", ("kind",))
REJECTED = counter("node_gossip_rejected", "Messages that no honest node sends.")

HELLO_SECONDS: Final = 10.0
BAN_SECONDS: Final = 20.0
RETRY_SECONDS: Final = 30.0
"""Between tries at an address whose node is not ours to talk to: another chain, or no node."""
MAX_VOTES: Final = 8_192
MAX_TRANSACTIONS: Final = 2_048
MAX_VOTE_BYTES: Final = 32 * 2**20
MAX_TRANSACTION_BYTES: Final = 8 * 2**20
"""Of what waits for one peer: a proposal has a whole block in it, and who reads nothing keeps those of hundreds of heights."""
TOGETHER_SECONDS: Final = 0.025
"""Between two messages of transactions on a link: a message costs ten times what a small transaction in it does. What comes
to an idle link goes at once."""
MAX_SEEN: Final = 65_536
MAX_KNOWN: Final = 16_384
KEPT_SECONDS: Final = 60.0
"""Copies of a message come within seconds. One that comes later is looked at again, which costs little and is not relayed."""
MESSAGE_RATE, MESSAGE_BURST = 1_000.0, 8_000.0
"""Messages a second that one node is read at, over all its links."""
BYTE_RATE, BYTE_BURST = 8.0 * 2**20, 32.0 * 2**20


class Acceptance(Enum):
    """What a handler made of a message. A message that no honest node sends raises instead."""

    RELAY = auto()
    """New and good: other peers get it too."""
    DROP = auto()
    """Known, old or of no use; not needed again."""
    LATER = auto()
    """Too early for this node: look at it again when it comes again."""


class Handler(Protocol):
    """Who the links deliver to."""

    def hello(self) -> Hello: ...

    async def receive(self, node: NodeId, message: Gossip) -> Acceptance: ...

    def joined(self, node: NodeId) -> None: ...


GossipCall = Callable[[Connection, AsyncIterator[Gossip]], AsyncGenerator[Gossip, None]]
"""Opens a gossip stream on a connection: what we say goes in, what the peer says comes out."""


class _Recent:
    """Digests of the last minute or two, at most ``limit``; at least the last half of them within KEPT_SECONDS."""

    __slots__ = ("_limit", "_old", "_since", "_young")

    def __init__(self, limit: int) -> None:
        self._young: set[bytes] = set()
        self._old: set[bytes] = set()
        self._since = monotonic()
        self._limit = limit

    def __contains__(self, key: bytes) -> bool:
        return key in self._young or key in self._old

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def add(self, key: bytes) -> None:
        now = monotonic()
        if len(self._young) >= self._limit // 2 or now >= self._since + KEPT_SECONDS:
            # In one go, and by age: kept one by one up to the limit, a node that runs for days would hold them all.
            self._old, self._young, self._since = self._young, set(), now
        self._young.add(key)


class _Pace:
    """How fast a link is read: a bucket of messages and one of bytes."""

    __slots__ = ("_bytes", "_messages", "_updated")

    def __init__(self) -> None:
        self._messages, self._bytes = MESSAGE_BURST, BYTE_BURST
        self._updated = monotonic()

    def take(self, size: int) -> float:
        """Seconds to wait before the next message is read."""
        now = monotonic()
        passed, self._updated = now - self._updated, now
        self._messages = min(MESSAGE_BURST, self._messages + passed * MESSAGE_RATE) - 1
        self._bytes = min(BYTE_BURST, self._bytes + passed * BYTE_RATE) - size
        return max(0.0, -self._messages / MESSAGE_RATE, -self._bytes / BYTE_RATE)


class Link:
    """One open stream to a node, and what waits to be sent on it."""

    def __init__(self, node: NodeId, connection: Connection | None, pace: _Pace | None = None) -> None:
        self.node = node
        self.connection = connection
        """None for a link that the peer opened."""
        self.known = _Recent(MAX_KNOWN)
        self.pace = _Pace() if pace is None else pace
        self.failure: PoflError | None = None
        self._votes: deque[Gossip] = deque()
        self._transactions: deque[SignedTransaction] = deque()
        self._vote_bytes = self._transaction_bytes = 0
        self._from = 0.0
        """When transactions go next, unless a message is full before."""
        self._progress: Progress | None = None
        self._wake = asyncio.Event()
        self._closed = False

    def put(self, message: Gossip) -> None:
        """Queue a message; never waits."""
        if isinstance(message, Progress):
            self._progress = message
        elif isinstance(message, SignedTransaction):
            self._transactions.append(message)
            self._transaction_bytes += _size(message)
            while len(self._transactions) > MAX_TRANSACTIONS or self._transaction_bytes > MAX_TRANSACTION_BYTES:
                self._take_transaction()
                DROPPED.labels("transaction").inc()
        else:
            self._votes.append(message)
            self._vote_bytes += _size(message)
            while len(self._votes) > MAX_VOTES or self._vote_bytes > MAX_VOTE_BYTES:
                self._take_vote()
                DROPPED.labels("vote").inc()
                log.warning("peer is too slow, dropped its oldest vote", peer=self.node, waiting=len(self._votes))
        self._wake.set()

    async def outgoing(self) -> AsyncIterator[Gossip]:
        """What is to be sent, as it comes, until the link is closed."""
        while True:
            message = self._next()
            if message is not None:
                yield message
            elif self._closed:
                return
            else:
                self._wake.clear()
                left = self._from - monotonic() if self._transactions else None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._wake.wait()

    def close(self, failure: PoflError | None = None) -> None:
        """End the link; ``failure`` is what the peer is told."""
        self._closed = True
        self.failure = self.failure or failure
        self._votes.clear()
        self._transactions.clear()
        self._vote_bytes = self._transaction_bytes = 0
        self._progress = None
        self._wake.set()

    def _next(self) -> Gossip | None:
        if self._votes:
            return self._take_vote()
        if self._progress is not None:
            progress, self._progress = self._progress, None
            return progress
        if self._transactions and (monotonic() >= self._from or len(self._transactions) >= MAX_TOGETHER):
            return self._several()
        return None

    def _take_vote(self) -> Gossip:
        message = self._votes.popleft()
        self._vote_bytes -= _size(message)
        return message

    def _take_transaction(self) -> SignedTransaction:
        message = self._transactions.popleft()
        self._transaction_bytes -= _size(message)
        return message

    def _several(self) -> Gossip:
        """What waits now, in one message."""
        self._from = monotonic() + TOGETHER_SECONDS
        first = self._take_transaction()
        chosen, room = [first], MAX_TRANSACTION - _size(first)
        while self._transactions and len(chosen) < MAX_TOGETHER and _size(self._transactions[0]) <= room:
            chosen.append(self._take_transaction())
            room -= _size(chosen[-1])
        return first if len(chosen) == 1 else Transactions(tuple(chosen))


class Links:
    """All links of this node."""

    def __init__(
        self,
        identity: LocalIdentity,
        files: TlsFiles | None,
        addresses: Sequence[str],
        handler: Handler,
        call: GossipCall,
    ) -> None:
        self._identity = identity
        self._files = files
        self._addresses = addresses
        self._handler = handler
        self._call = call
        self._links: dict[NodeId, list[Link]] = {}
        self._banned: dict[NodeId, float] = {}
        self._paces: dict[NodeId, _Pace] = {}
        self._seen = _Recent(MAX_SEEN)
        self._tasks: list[asyncio.Task[None]] = []
        self._members: dict[tuple[NodeId, str], asyncio.Task[None]] = {}
        """Dialling of validators at the addresses that the chain has for them."""

    @property
    def peers(self) -> tuple[NodeId, ...]:
        return tuple(self._links)

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._keep(address), name=f"link to {address}") for address in self._addresses]

    async def stop(self) -> None:
        for links in list(self._links.values()):
            for link in list(links):
                link.close(UnavailableError("this node is stopping"))
        tasks = [*self._tasks, *self._members.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks, self._members = [], {}

    def follow(self, state: State) -> None:
        """Dial the validators that ``state`` has addresses of, next to those that are configured, and no longer those that
        left. Who answers there must have the validator's key. There are at most MAX_VALIDATORS."""
        found = {(v.node_id, _endpoint(state, v.node_id)) for v in (*state.validators, *state.next_validators)}
        wanted = {
            (node, address)
            for node, address in found
            if address and node != self._identity.key.public_key and address not in self._addresses
        }
        for gone in self._members.keys() - wanted:
            self._members.pop(gone).cancel()
        for node, address in wanted - self._members.keys():
            log.info("dialling a validator of the chain", peer=node, target=address)
            name = f"link to validator {short(node)} at {address}"
            self._members[node, address] = asyncio.create_task(self._keep(address, node), name=name)

    def connection(self, node: NodeId) -> Connection | None:
        """A connection that this node opened to ``node``: calls can be made on it."""
        return next((link.connection for link in self._links.get(node, ()) if link.connection is not None), None)

    def connections(self) -> list[Connection]:
        """One connection to every node that this node has dialled."""
        found = [self.connection(node) for node in self._links]
        return [connection for connection in found if connection is not None]

    def broadcast(self, message: Gossip, again: bool = False) -> None:
        """To every peer that is not known to have it; with ``again`` to every peer: it may not have been ready for it."""
        key = _key(message)
        if key is not None:
            self._seen.add(key)
        for links in self._links.values():
            self._put(links[-1], message, None if again else key)

    def send(self, node: NodeId, messages: Sequence[Gossip]) -> None:
        """To one peer, even what it was sent before: it may not have been ready for it."""
        links = self._links.get(node)
        if links:
            for message in messages:
                links[-1].put(message)

    async def accept(self, node: NodeId | None, incoming: AsyncIterator[Gossip]) -> AsyncIterator[Gossip]:
        """Serve a link that a peer opened; ``node`` is what its certificate proves. Yields what to send to it.

        Raises WrongChainError, AuthError, LimitError while the peer is cut off, or what was wrong with its messages.
        """
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                hello = await anext(incoming, None)
        except TimeoutError:
            raise SequenceError(f"no hello within {HELLO_SECONDS:g} s") from None
        peer = self._check_hello(hello, node)
        link = Link(peer, None, self._pace(peer))
        self._check_ban(link.node)
        yield self._handler.hello()
        reader = asyncio.create_task(self._read(link, incoming), name=f"gossip from {short(link.node)}")
        self._open(link)
        try:
            async for message in link.outgoing():
                yield message
            if link.failure is not None:
                raise link.failure
        finally:
            self._close(link)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _keep(self, address: str, expected: NodeId | None = None) -> None:
        """Keep one link to an address, for ever; with ``expected`` only if that node is there."""
        attempt = 0
        while True:
            started = monotonic()
            try:
                connection = await dial_forever(address, self._files, self._identity, expect_role="node")
            except PoflError as error:
                log.error("this address is no node of this chain", target=address, error=error)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            node = NodeId(connection.remote.account)
            try:
                if node == self._identity.key.public_key:
                    log.warning("peers.nodes names this node itself, left out", target=address)
                    return
                if expected is not None and expected != node:
                    raise AuthError(f"node {short(node)} is at the address that the chain has for {short(expected)}")
                await asyncio.sleep(max(0.0, self._banned.get(node, 0.0) - monotonic()))
                await self._talk(node, connection)
            except PoflError as error:
                log.info("link broke off", target=address, peer=node, error=error)
            except Exception:
                # A fault of ours that the peer has found: it must not end the dialling for ever.
                log.exception("link broke off", target=address, peer=node)
            finally:
                await connection.close()
            attempt = 0 if monotonic() - started > 10 else attempt + 1
            await asyncio.sleep(backoff(attempt))

    async def _talk(self, node: NodeId, connection: Connection) -> None:
        link = Link(node, connection, self._pace(node))

        async def say() -> AsyncIterator[Gossip]:
            yield self._handler.hello()
            async for message in link.outgoing():
                yield message

        # Closed here and not by the garbage collector, whatever ends it: the link first, which ends `say`.
        async with contextlib.aclosing(self._call(connection, say())) as incoming:
            try:
                self._check_hello(await anext(incoming, None), node)
                self._open(link)
                await self._read(link, incoming)
            finally:
                self._close(link)
        if link.failure is not None:
            raise link.failure

    def _pace(self, node: NodeId) -> _Pace:
        """One for all links of a node: it is read no faster for opening many."""
        return self._paces.setdefault(node, _Pace())

    def _check_hello(self, hello: Gossip | None, node: NodeId | None) -> NodeId:
        if not isinstance(hello, Hello):
            raise SequenceError("a gossip link begins with a hello")
        mine = self._handler.hello()
        if (hello.chain_id, hello.protocol_version) != (mine.chain_id, mine.protocol_version):
            raise WrongChainError(
                f"chain {short(hello.chain_id)} version {hello.protocol_version}, this node is on chain "
                f"{short(mine.chain_id)} version {mine.protocol_version}: give both the same genesis file and release"
            )
        if node is not None and hello.node_id != node:
            raise AuthError(f"the hello is of node {short(hello.node_id)}, the connection of {short(node)}")
        return hello.node_id

    def _check_ban(self, node: NodeId) -> None:
        left = self._banned.get(node, 0.0) - monotonic()
        if left > 0:
            raise LimitError(f"node {short(node)} sent invalid messages and is cut off for {left:.0f} s more")

    def _open(self, link: Link) -> None:
        self._links.setdefault(link.node, []).append(link)
        PEERS.set(len(self._links))
        log.info("link up", peer=link.node, peers=len(self._links))
        self._handler.joined(link.node)

    def _close(self, link: Link) -> None:
        link.close()
        links = self._links.get(link.node, [])
        if link in links:
            links.remove(link)
        if not links:
            self._links.pop(link.node, None)
        PEERS.set(len(self._links))

    async def _read(self, link: Link, incoming: AsyncIterator[Gossip]) -> None:
        """Hand every message on. Ends the link when the peer does, or sends what no honest node sends."""
        failure: PoflError | None = None
        try:
            async for together in incoming:
                for message in together.signed if isinstance(together, Transactions) else (together,):
                    wait = link.pace.take(_size(message))
                    if wait > 0:
                        await asyncio.sleep(wait)
                    await self._receive(link, message)
        except PoflError as error:
            # What the peer refuses carries its address; what we could not decode or refuse ourselves does not.
            if "peer" in error.values or isinstance(error, UnavailableError):
                raise
            failure = error
            self._ban(link, error)
        finally:
            link.close(failure)

    async def _receive(self, link: Link, message: Gossip) -> None:
        if isinstance(message, Hello):
            raise SequenceError("a second hello on one link")
        key = _key(message)
        if key is not None:
            link.known.add(key)
            if key in self._seen:
                return
        accepted = await self._handler.receive(link.node, message)
        if key is not None and accepted is not Acceptance.LATER:
            self._seen.add(key)
        if accepted is Acceptance.RELAY:
            for node, links in self._links.items():
                if node != link.node:
                    self._put(links[-1], message, key)

    def _ban(self, link: Link, error: PoflError) -> None:
        REJECTED.inc()
        self._banned[link.node] = monotonic() + BAN_SECONDS
        log.warning("peer sent an invalid message, cut off", peer=link.node, seconds=BAN_SECONDS, error=error)
        for other in list(self._links.get(link.node, ())):
            if other is not link:
                other.close(error)

    @staticmethod
    def _put(link: Link, message: Gossip, key: bytes | None) -> None:
        if key is None:
            link.put(message)
        elif key not in link.known:
            link.known.add(key)
            link.put(message)


def _endpoint(state: State, node: NodeId) -> str:
    """Where a validator that joined said it is; the genesis document says it of nobody."""
    member = state.memberships.get(node)
    return "" if member is None else member.endpoint


def _key(message: Gossip) -> bytes | None:
    """What two copies of a message have in common; None for what is never relayed."""
    if isinstance(message, Hello | Progress | Transactions):
        return None
    data = message.to_bytes() if isinstance(message, SignedTransaction) else encode(message)
    return hashlib.sha256(data).digest()


def _size(message: Gossip) -> int:
    """About as many bytes as a message has."""
    if isinstance(message, SignedProposal):
        return len(message.block) + 512 * (1 + len(message.verdicts))
    # With its signature and lengths.
    return len(message.transaction) + 128 if isinstance(message, SignedTransaction) else 512
