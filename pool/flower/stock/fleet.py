"""rounds.Fleet over the public Grid of a stock SuperLink: the round loop and its deadline stay ours.

``Grid.pull_messages`` blocks for minutes on a reply whose sender died during the upload, and takes the other replies of
the same call with it. So each reply is fetched by a thread of its own: whoever stalls, stalls alone, and the loop sees
only what has arrived. Threads are daemons, since one that hangs must not keep the ServerApp from ending.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

import httpx
from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from core.codec import decode, encode
from core.crypto.sealing import SealingKeyPair
from core.errors import AuthError, PoflError, UnavailableError
from pool.flower import blobs
from pool.flower.rounds import Reply
from pool.flower.stock.greeting import Greeting, Presence, check_presence
from pool.flower.wire import Answer, Update, context, open_update

__all__ = ["StockFleet"]

POLL_S = 0.3
"""How long a thread waits before it asks for its reply again; longer with many of them, see _pause_s."""
CALLS_A_SECOND = 50.0
GREETING_TTL_S = 120.0
GREET_AGAIN_S = 30.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Arrived:
    message_id: str
    blob: bytes = b""
    error: str = ""


class StockFleet:
    """``members``: node key -> most examples it may claim; None lets in everyone whom the SuperLink lets in.

    ``registered`` is filled in with what each miner says of its rows, cut to what ``members`` allows.
    """

    def __init__(
        self,
        grid: Grid,
        run_id: int,
        sealing: SealingKeyPair,
        registered: dict[bytes, int],
        members: Mapping[bytes, int] | None = None,
    ) -> None:
        self._grid, self._run_id, self._sealing = grid, run_id, sealing
        self._registered, self._members = registered, members
        self._key_of: dict[int, bytes] = {}
        self._greeted: dict[str, int] = {}
        self._instructed: dict[str, int] = {}
        self._not_before: dict[int, float] = {}
        self._arrived: queue.SimpleQueue[_Arrived] = queue.SimpleQueue()
        self._replies: list[_Arrived] = []
        self._fetching = 0
        self._closed = threading.Event()

    def known(self) -> set[bytes]:
        """Node keys of all miners that have answered a greeting."""
        return set(self._key_of.values())

    def online(self) -> set[bytes]:
        try:
            nodes = set(self._grid.get_node_ids())
        except httpx.HTTPError as error:
            raise UnavailableError(f"the SuperLink does not answer: {error}") from None
        self._sort_arrived(0.0)
        self._greet(nodes)
        return {self._key_of[node] for node in nodes if node in self._key_of}

    def instruct(self, blob: bytes, miners: list[bytes], round_number: int, ttl_s: float) -> dict[str, bytes]:
        node_of = {key: node for node, key in self._key_of.items()}
        nodes = {node_of[miner]: miner for miner in miners if miner in node_of}
        content = blobs.pack(blob)
        sent = self._send([Message(content, n, MessageType.TRAIN, ttl=ttl_s, group_id=str(round_number)) for n in nodes], ttl_s)
        self._instructed |= sent
        return {message_id: nodes[node] for message_id, node in sent.items()}

    def collect(self, instruction_ids: set[str], hold_s: float) -> list[Reply]:
        self._sort_arrived(0.0 if any(r.message_id in instruction_ids for r in self._replies) else hold_s)
        replies, self._replies = self._replies, []
        return [Reply(r.message_id, r.blob, r.error) for r in replies if r.message_id in instruction_ids]

    def open(self, answer: Answer, instruction_id: str, miner: bytes, round_number: int) -> Update:
        info = context(self._run_id, instruction_id, miner, round_number)
        return open_update(answer, self._sealing.private_key, info, miner, self._sealing.suite)

    def close(self) -> None:
        """Threads end with their present call; none of them keeps the process."""
        self._closed.set()

    def _greet(self, nodes: set[int]) -> None:
        now = time.monotonic()
        asked = set(self._greeted.values())
        due = [n for n in nodes if n not in self._key_of and n not in asked and self._not_before.get(n, now) <= now]
        if not due:
            return
        content = blobs.pack(encode(Greeting(self._sealing.public_key, self._sealing.suite)))
        messages = [Message(content, node, MessageType.QUERY, ttl=GREETING_TTL_S, group_id="0") for node in due]
        self._greeted |= self._send(messages, GREETING_TTL_S)

    def _send(self, messages: list[Message], ttl_s: float) -> dict[str, int]:
        """Message id -> node, of those that the SuperLink took."""
        nodes = [message.metadata.dst_node_id for message in messages]
        try:
            ids = list(self._grid.push_messages(messages))
        except httpx.HTTPError as error:
            raise UnavailableError(f"the SuperLink does not take messages: {error}") from None
        sent = {message_id: node for message_id, node in zip(ids, nodes, strict=False) if message_id}
        for message_id in sent:
            self._fetching += 1
            threading.Thread(target=self._fetch, args=(message_id, time.monotonic() + ttl_s), daemon=True).start()
        return sent

    def _sort_arrived(self, hold_s: float) -> None:
        """Presences are taken note of here; replies to instructions wait for collect."""
        until = time.monotonic() + hold_s
        while True:
            try:
                arrived = self._arrived.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return
            self._fetching -= 1
            node = self._greeted.pop(arrived.message_id, None)
            if node is not None:
                self._note_presence(node, arrived)
                continue
            node = self._instructed.pop(arrived.message_id)
            if arrived.error:
                # It may have been started anew and not know this run any more.
                self._key_of.pop(node, None)
            self._replies.append(arrived)
            until = 0.0

    def _note_presence(self, node: int, arrived: _Arrived) -> None:
        try:
            if arrived.error:
                raise UnavailableError(arrived.error)
            presence = decode(Presence, arrived.blob)
            check_presence(presence, self._run_id, arrived.message_id, self._sealing.public_key)
            if presence.reason:
                raise UnavailableError(presence.reason)
            self._admit(node, presence)
        except PoflError as error:
            _log.warning("SuperNode %d does not take part: %s", node, error.message)
            self._not_before[node] = time.monotonic() + GREET_AGAIN_S

    def _admit(self, node: int, presence: Presence) -> None:
        miner, examples = presence.miner, presence.examples
        if self._members is not None:
            if miner not in self._members:
                raise AuthError(f"node key {miner.hex()} is not among the members")
            examples = min(examples, self._members[miner])
        # One key on two nodes would count twice; a node started anew has another id, and the old one is not online.
        self._key_of = {n: k for n, k in self._key_of.items() if k != miner} | {node: miner}
        self._registered[miner] = examples
        _log.info("SuperNode %d takes part with node key %s and %d rows", node, miner.hex(), examples)

    def _fetch(self, message_id: str, until: float) -> None:
        arrived: _Arrived | None = None
        while arrived is None and not self._closed.wait(self._pause_s()):
            if time.monotonic() > until:
                arrived = _Arrived(message_id, error="no answer before the instruction expired")
                break
            try:
                for message in self._grid.pull_messages([message_id]):
                    arrived = _read(message_id, message)
            except httpx.HTTPError as error:
                _log.warning("fetching a reply: %s", error)
            # Flower inflates what a peer sent inside the call: whatever that raises is this reply's end only.
            except Exception as error:  # noqa: BLE001
                arrived = _Arrived(message_id, error=f"no usable answer: {type(error).__name__}: {error}")
        if arrived is not None:
            self._arrived.put(arrived)

    def _pause_s(self) -> float:
        return max(POLL_S, self._fetching / CALLS_A_SECOND)


def _read(message_id: str, message: Message) -> _Arrived:
    if message.has_error():
        return _Arrived(message_id, error=f"{message.error.reason or 'no reason given'} (Flower error {message.error.code})")
    try:
        return _Arrived(message_id, blobs.unpack(message.content))
    except PoflError as error:
        return _Arrived(message_id, error=error.message)
