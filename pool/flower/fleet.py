"""A miner's side of Flower inside its own process: one thread that pulls instructions, trains and answers.

Stock SuperNodes start a process per message and run the code that the server sends; here the ClientApp is this
program's own, called in the process, run after run. The node key is fresh at every Join, since Flower refuses the key
of a killed node until it notices, and a deregistered key for ever.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar

import httpx
from flwr.app import Context, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from core.crypto.masking import Aggregation
from core.crypto.secure_messages import LEAST
from core.errors import AuthError, DeadlineError, LimitError, PoflError, UnavailableError
from pool.flower import blobs
from pool.flower.answers import MAX_INSTRUCTION, bound_answers
from pool.flower.client_app import DataSource, build_client_app
from pool.flower.hold import HoldInterceptor
from pool.flower.jobs import JoinTicket
from pool.flower.keys import node_public_pem, private_key_of
from pool.flower.secure_miner import build_secure_app
from pool.flower.wire import Instruction, Update
from pool.learning.privacy import NO_NOISE, LocalPrivacy

__all__ = ["FleetMiner"]

HEARTBEAT_S = 10
BEAT_EVERY_S = 4.0
HOLD_MS = 1000
RETRY_FIRST_S, RETRY_MOST_S = 0.2, 5.0
OBJECT_WAIT_S = 0.02
MOST_AHEAD_S, MOST_BEHIND_S = 5.0, 305.0
"""How far a miner's clock may be from the pool's: Flower signs and checks an instant with each request."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


class FleetMiner:
    """``data``: rows for a job id. ``folder``: reserved for this miner's own files. ``threads``: torch's threads.

    ``on_update``: told job id, round and examples of each update before it leaves, on this miner's own thread. ``privacy``:
    what is done to each update first. ``secure_least``: with fewer this miner begins no secure sum.

    start() returns at once; wait_online() says when the pool may count on it. When the pool no longer accepts the node
    key, ``failure`` holds an AuthError and the thread has ended: join again with a fresh key.
    """

    def __init__(
        self,
        ticket: JoinTicket,
        node_private_key: bytes,
        data: DataSource,
        folder: Path,
        *,
        threads: int = 1,
        on_update: Callable[[bytes, int, int], None] = lambda *_: None,
        privacy: LocalPrivacy = NO_NOISE,
        secure_least: int = LEAST,
    ) -> None:
        self._ticket = ticket
        self._key = private_key_of(node_private_key)
        self._folder = folder
        self._data = data
        self._on_update = on_update
        self._threads = threads
        if ticket.aggregation is Aggregation.SECURE:
            self._app = build_secure_app(
                data, ticket.hpke_public_key, self._key, ticket.node_public_key, self._note_update, ticket.suite, privacy,
                secure_least,
            )  # fmt: skip
        else:
            self._app = build_client_app(
                data, ticket.hpke_public_key, self._key, ticket.node_public_key, self._note_update, ticket.suite, privacy
            )
        self._stop = threading.Event()
        self._online = threading.Event()
        self._thread = threading.Thread(target=self._main, name="fleet-miner", daemon=True)
        self._node: Node | None = None
        self.failure: PoflError | None = None
        self.answered = 0

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        # Flower logs each message at INFO on its own handler; what matters is logged here.
        logging.getLogger("flwr").setLevel(logging.ERROR)
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Leave the fleet and end the thread. Raises DeadlineError when a training step holds it longer."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise DeadlineError(f"the miner's thread did not end within {timeout_s} s")

    def examples(self, job_id: bytes) -> int:
        """How many rows this miner has for a job: what it registers with the pool."""
        rows = self._data(job_id)
        return 0 if rows is None else len(rows[1])

    def _note_update(self, instruction: Instruction, update: Update) -> None:
        self._on_update(instruction.job_id, instruction.round, update.examples)

    @property
    def is_online(self) -> bool:
        return self._online.is_set() and self._thread.is_alive()

    def wait_online(self, timeout_s: float) -> None:
        """Raises the failure that ended the thread, or DeadlineError."""
        if self._online.wait(timeout_s) and self.failure is None:
            return
        raise self.failure or DeadlineError(f"not online after {timeout_s} s at {self._ticket.superlink_address}")

    def _main(self) -> None:
        try:
            self._warm_up()
            with FleetHttpClient.from_server_address(
                self._ticket.superlink_address,
                False,
                self._ticket.ca_pem,
                [NodeAuthHttpInterceptor(self._key, self._key.public_key()), HoldInterceptor(HOLD_MS)],
            ) as client:
                bound_answers(client)
                beat = threading.Thread(target=self._beat, args=(client,), name="fleet-heartbeat", daemon=True)
                beat.start()
                try:
                    self._attend(client)
                finally:
                    self._stop.set()
                    beat.join(6.0)
                    if self._node is not None:
                        self._deactivate(client, self._node)
        except PoflError as error:
            self.failure = error
        # A bug here must not look like a miner that is merely slow.
        except Exception as error:  # noqa: BLE001
            _log.exception("the miner's thread failed")
            self.failure = UnavailableError(f"the miner's thread failed: {type(error).__name__}: {error}")
        finally:
            self._online.set()

    def _warm_up(self) -> None:
        import torch

        from pool.learning.training import warm_up

        torch.set_num_threads(self._threads)
        warm_up()

    def _attend(self, client: FleetHttpClient) -> None:
        while (node := self._activate(client)) is not None:
            self._node = node
            self._online.set()
            try:
                self._serve(client, node)
                return
            except AuthError as error:
                # A guard started anew knows this key under another node id; one that does not know it says so below.
                _log.warning("%s; activating again", error.message)

    def _activate(self, client: FleetHttpClient) -> Node | None:
        pem = node_public_pem(self._ticket.node_public_key)
        request = ActivateNodeRequest(public_key=pem, heartbeat_interval=HEARTBEAT_S)
        response = self._retried("activate", lambda: client.ActivateNode(request))
        return None if response is None else Node(node_id=response.node_id)

    def _deactivate(self, client: FleetHttpClient, node: Node) -> None:
        try:
            client.DeactivateNode(DeactivateNodeRequest(node_id=node.node_id))
        except httpx.HTTPError:
            _log.info("the pool did not hear that this miner leaves; it will notice in %d s", 2 * HEARTBEAT_S)

    def _beat(self, client: FleetHttpClient) -> None:
        while not self._stop.wait(BEAT_EVERY_S):
            if self._node is None:
                continue
            try:
                client.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_S))
            except httpx.HTTPError as error:
                _log.warning("heartbeat failed: %s", error)

    def _serve(self, client: FleetHttpClient, node: Node) -> None:
        while not self._stop.is_set():
            started = time.monotonic()
            response = self._retried("pull", lambda: client.PullMessages(PullMessagesRequest(node=node)))
            if response is None:
                return
            if not response.messages_list:
                if time.monotonic() - started < 0.1:
                    # A SuperLink without the guard's hold answers an empty pull at once.
                    self._stop.wait(0.5)
                continue
            instruction = message_from_proto(response.messages_list[0])
            try:
                self._answer(client, node, instruction, response.message_object_trees[0])
                self.answered += 1
            except httpx.HTTPStatusError as error:
                # What httpx says of a status is an address of this pool and one of a web site.
                _log.info("round %s: %s", instruction.metadata.group_id, _refused(error.response.status_code))
            except (PoflError, httpx.HTTPError) as error:
                _log.warning("round %s of run %s: %s", instruction.metadata.group_id, instruction.metadata.run_id, error)

    def _answer(self, client: FleetHttpClient, node: Node, head: Message, tree: ObjectTree) -> None:
        run_id, message_id = head.metadata.run_id, head.metadata.message_id
        until = time.monotonic() + max(0.0, min(head.metadata.ttl, 3600.0))
        contents: dict[str, bytes] = {}
        room = MAX_INSTRUCTION
        for object_id in blobs.object_ids(tree):
            contents[object_id] = self._pull(client, node, run_id, object_id, until)
            room -= len(contents[object_id])
            if room < 0:
                raise LimitError(f"an instruction of more than {MAX_INSTRUCTION} bytes")
        client.ConfirmMessageReceived(ConfirmMessageReceivedRequest(node=node, run_id=run_id, message_object_id=message_id))
        message = blobs.inflate(message_id, contents)
        reply = self._app(message, Context(run_id, node.node_id, {}, RecordDict(), {}))
        reply.metadata.__dict__["_message_id"] = reply.object_id
        with no_object_id_recompute():
            objects = get_all_nested_objects(reply)
            response = client.PushMessages(
                PushMessagesRequest(
                    node=node,
                    messages_list=[message_to_proto(remove_content_from_message(reply))],
                    message_object_trees=[get_object_tree(reply)],
                    clientapp_runtime_list=[0.0],
                )
            )
            for object_id in response.objects_to_push:
                client.PushObject(
                    PushObjectRequest(
                        node=node,
                        run_id=run_id,
                        object_id=object_id,
                        object_content=objects[object_id].deflate(),
                        session_id=response.session_id,
                    )
                )

    def _pull(self, client: FleetHttpClient, node: Node, run_id: int, object_id: str, until: float) -> bytes:
        while True:
            response = client.PullObject(PullObjectRequest(node=node, run_id=run_id, object_id=object_id))
            if not response.object_found:
                raise UnavailableError(f"a part of the instruction is gone (object {object_id[:8]})")
            if response.object_available:
                return response.object_content
            if time.monotonic() > until or self._stop.wait(OBJECT_WAIT_S):
                raise DeadlineError("the instruction did not arrive whole before it expired")

    def _retried(self, what: str, call: Callable[[], T]) -> T | None:
        """The call's result, tried for ever with jittered backoff; None when told to stop.

        Raises AuthError when the pool does not accept the node key (or this machine's clock).
        """
        delay = RETRY_FIRST_S
        while not self._stop.is_set():
            asked = _wall_clock()
            try:
                return call()
            except httpx.HTTPStatusError as error:
                status = error.response.status_code
                if 400 <= status < 500 and status not in (408, 429):
                    raise AuthError(_why_refused(what, error.response, asked), status=status) from None
                reason = f"status {status}"
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
            _log.warning("cannot %s at %s: %s; next try in %.1f s", what, self._ticket.superlink_address, reason, delay)
            self._stop.wait(delay * random.uniform(0.7, 1.3))
            delay = min(2 * delay, RETRY_MOST_S)
        return None


def _why_refused(what: str, response: httpx.Response, asked: datetime) -> str:
    """One sentence for the miner's owner. The pool's own clock, at some time since ``asked``, is in its answer."""
    try:
        pools = parsedate_to_datetime(response.headers["date"])
        earliest, latest = (asked - pools).total_seconds(), (_wall_clock() - pools).total_seconds()
    except (KeyError, ValueError, TypeError):
        earliest = latest = 0.0
    # A slow answer is no wrong clock.
    ahead = earliest if earliest > 0 else min(latest, 0.0)
    # The header has whole seconds.
    if not -MOST_BEHIND_S < ahead - 0.5 < MOST_AHEAD_S - 1:
        side = "ahead of" if ahead > 0 else "behind"
        return (
            f"this machine's clock is {abs(ahead):.0f} s {side} the pool's, which refuses who is more than {MOST_AHEAD_S:.0f} "
            f"s ahead or {MOST_BEHIND_S:.0f} s behind: set the clock (chrony or ntpd), then join again"
        )
    return f"the pool refused to {what} ({response.status_code}): the node key is not registered any more; join again"


def _wall_clock() -> datetime:
    return datetime.now(UTC)


def _refused(status: int) -> str:
    """One sentence for an answer that the pool did not take."""
    if status in (401, 403, 404, 409, 410):
        return "the pool took no answer any more: its time for this task was over"
    return f"the pool took no answer (status {status})"
