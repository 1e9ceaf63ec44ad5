"""Flower's HttpGrid with collection that never blocks.

``HttpGrid.pull_messages`` waits up to minutes when a miner dies between a reply's metadata and its content. Here
each call takes what has arrived and leaves the rest for the next call.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import httpx
from flwr.app import Message, MessageType
from flwr.app.error import Error
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import GetNodesRequest, PullAppMessagesRequest
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.http_grid import HttpGrid

from core.errors import AuthError, PoflError, UnavailableError
from pool.flower import blobs
from pool.flower.hold import HoldInterceptor

__all__ = ["Collected", "PoolGrid"]


@dataclass(frozen=True, slots=True)
class Collected:
    """The end of one instruction: its answer, or why there is none."""

    instruction_id: str
    blob: bytes = b""
    error: str = ""


@dataclass(slots=True)
class _Partial:
    instruction_id: str
    missing: list[str]
    until: float
    contents: dict[str, bytes] = field(default_factory=dict)
    size: int = 0


class PoolGrid(HttpGrid):
    """One run's grid. ``size_limit``: bytes of one reply beyond which it is dropped."""

    def __init__(self, address: str, token: str, run_id: int, task_id: int = 0, *, size_limit: int) -> None:
        super().__init__(address, insecure=True, token=token)
        self._retry_invoker = make_simple_http_retry_invoker()
        # The round loop decides how long to try; it looks at its deadline between attempts.
        self._retry_invoker.max_tries = 2
        self._size_limit = size_limit
        self._partials: dict[str, _Partial] = {}
        self._until: dict[str, float] = {}
        """Instruction -> when its answer must be here whole, on the monotonic clock."""
        self._hold = HoldInterceptor(0)
        # Process-global in Flower: the reason for one manager process a task.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, SUPERLINK_NODE_ID, task_id
        self.set_run(Run.create_empty(run_id))

    def _connect(self) -> None:
        self._client = RuntimeHttpClient.from_server_address(
            server_address=self._addr,
            insecure=True,
            root_certificates=None,
            interceptors=[RuntimeTokenHttpInterceptor(token=self._token), self._hold],
            retry_invoker=self._retry_invoker,
        )

    @property
    def run_id(self) -> int:
        return self.run.run_id

    def online(self) -> set[int]:
        """Node ids that Flower holds for alive. Raises UnavailableError when the guard does not answer."""
        try:
            return {node.node_id for node in self._runtime_client.GetNodes(GetNodesRequest()).nodes}
        except httpx.HTTPError as error:
            raise _refusal("the guard does not answer", error) from None

    def instruct(self, blob: bytes, node_ids: list[int], round_number: int, ttl_s: float) -> dict[str, int]:
        """Send one instruction to each node: instruction id -> node id."""
        content = blobs.pack(blob)
        messages = [Message(content, node_id, MessageType.TRAIN, ttl=ttl_s, group_id=str(round_number)) for node_id in node_ids]
        try:
            ids = list(self.push_messages(messages))
        except httpx.HTTPError as error:
            raise _refusal("the guard does not take instructions", error) from None
        sent = {message_id: node_id for message_id, node_id in zip(ids, node_ids, strict=False) if message_id}
        now = time.monotonic()
        self._until = {k: until for k, until in self._until.items() if until > now} | dict.fromkeys(sent, now + ttl_s)
        return sent

    def collect(self, instruction_ids: set[str], hold_s: float) -> list[Collected]:
        """Answers that are complete now; waits at most ``hold_s`` for news. Never raises for one miner's fault."""
        done: list[Collected] = []
        waiting = instruction_ids - {partial.instruction_id for partial in self._partials.values()}
        try:
            # With parts outstanding, wait for what is new only briefly: the rest of them may be there already.
            brief = 20 if self._partials else int(hold_s * 1000)
            if self._partials and not waiting:
                time.sleep(brief / 1000)
            if waiting:
                self._hold.milliseconds = brief
                response = self._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=waiting))
                for proto, tree in zip(response.messages_list, response.message_object_trees, strict=True):
                    message = message_from_proto(proto)
                    reply_to = message.metadata.reply_to_message_id
                    if message.has_error():
                        done.append(Collected(reply_to, error=_reason(message.error)))
                        continue
                    try:
                        until = self._until.pop(reply_to, time.monotonic())
                        self._partials[message.metadata.message_id] = _Partial(reply_to, blobs.object_ids(tree), until)
                    except PoflError as error:
                        self._confirm(message.metadata.message_id)
                        done.append(Collected(reply_to, error=error.message))
            done += self._advance()
        except httpx.HTTPError as error:
            raise _refusal("the guard does not answer", error) from None
        return done

    def _advance(self) -> list[Collected]:
        done: list[Collected] = []
        for message_id, partial in list(self._partials.items()):
            result = self._fetch(message_id, partial)
            if result is None and time.monotonic() >= partial.until:
                result = Collected(partial.instruction_id, error="the answer did not arrive whole in time")
            if result is not None:
                # Also what is dropped: the guard would else keep it until the run ends.
                self._confirm(message_id)
                del self._partials[message_id]
                done.append(result)
        return done

    def _fetch(self, message_id: str, partial: _Partial) -> Collected | None:
        node = Node(node_id=SUPERLINK_NODE_ID)
        while partial.missing:
            object_id = partial.missing[-1]
            response = self._runtime_client.PullObject(PullObjectRequest(node=node, run_id=self.run_id, object_id=object_id))
            if not response.object_found:
                return Collected(partial.instruction_id, error="a part of the answer is gone")
            if not response.object_available:
                return None
            partial.size += len(response.object_content)
            if partial.size > self._size_limit:
                return Collected(partial.instruction_id, error=f"the answer is larger than {self._size_limit} bytes")
            partial.contents[object_id] = response.object_content
            partial.missing.pop()
        try:
            return Collected(partial.instruction_id, blobs.unpack(blobs.inflate(message_id, partial.contents).content))
        except (PoflError, ValueError) as error:
            return Collected(partial.instruction_id, error=f"malformed answer: {error}")

    def _confirm(self, message_id: str) -> None:
        node = Node(node_id=SUPERLINK_NODE_ID)
        self._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=node, run_id=self.run_id, message_object_id=message_id)
        )


def _refusal(what: str, error: httpx.HTTPError) -> PoflError:
    """UnavailableError where trying again may help. AuthError where it cannot: a guard that was started anew does not know this
    run, and the manager has to end, so that the pool starts one with a run of its own from the last round."""
    if isinstance(error, httpx.HTTPStatusError) and error.response.status_code in (401, 403):
        return AuthError(f"{what}: it does not know this run any more ({error.response.status_code})")
    return UnavailableError(f"{what}: {error}")


def _reason(error: Error) -> str:
    return f"{error.reason or 'no reason given'} (Flower error {error.code})"
