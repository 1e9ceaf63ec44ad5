"""What one member may leave with the guard: one answer to one instruction at a time, and no more bytes than that may have.

Flower takes a message id that it knows again, with another tree of objects under another root, and counts no bytes: one
instruction would let one member fill the guard's memory. So each push is judged here before Flower sees it. A member's next
answer in a run takes the place of its last one, whether that was fetched or not.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.inflatable.inflatable_object import is_valid_sha256_hash, iterate_object_tree

from core.errors import LimitError, MalformedError, NotFoundError
from pool.flower import blobs

__all__ = ["Uploads"]


@dataclass(slots=True)
class _Upload:
    root: str
    tree: bytes
    session: str = ""
    size: int = 0


class Uploads:
    """Answers on their way from members to the manager, by run and node."""

    def __init__(self) -> None:
        self._limits: dict[int, int] = {}
        self._held: dict[tuple[int, int], _Upload] = {}

    def open_run(self, run_id: int, size_limit: int) -> None:
        """``size_limit``: bytes of all objects of one answer."""
        self._limits[run_id] = size_limit

    def close_run(self, run_id: int) -> None:
        self._limits.pop(run_id, None)
        for place in [place for place in self._held if place[0] == run_id]:
            self._held.pop(place, None)

    def admit(self, request: PushMessagesRequest, state: LinkState) -> None:
        """Whether Flower may see this push. The same push once more is admitted again.

        Raises:
            MalformedError: not one message and one tree of its own objects.
            NotFoundError: no instruction to this node that waits for an answer.
            LimitError: more than blobs.MAX_OBJECTS objects.
        """
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            raise MalformedError("a push has one message and one tree of objects")
        about, tree = request.messages_list[0].metadata, request.message_object_trees[0]
        node_id, root = request.node.node_id, tree.object_id
        if about.message_id != root or about.src_node_id != node_id:
            raise MalformedError("the root of a push is its message, and its source the node that pushes")
        _check_tree(tree, state)
        if about.run_id not in self._limits:
            raise NotFoundError(f"no run {about.run_id}")
        memory: Any = state
        instruction = memory.message_ins_store.get(about.reply_to_message_id)
        if instruction is None or instruction.metadata.dst_node_id != node_id or instruction.metadata.run_id != about.run_id:
            raise NotFoundError("no instruction to this node waits for this answer")
        place, wire = (about.run_id, node_id), tree.SerializeToString(deterministic=True)
        held = self._held.get(place)
        known = root in state.object_store or root in memory.message_res_store
        answered = memory.message_ins_id_to_message_res_id.get(about.reply_to_message_id)
        if known or answered is not None:
            if held is None or (held.root, held.tree) != (root, wire) or answered != root:
                raise MalformedError("this instruction was answered, or this message is known with other objects")
            return
        if held is not None:
            self._drop(held, state)
        self._held[place] = _Upload(root, wire)

    def note(self, request: PushMessagesRequest, response: PushMessagesResponse, state: LinkState) -> None:
        """What Flower made of an admitted push."""
        place = (request.messages_list[0].metadata.run_id, request.node.node_id)
        held = self._held.get(place)
        if held is None:
            return
        held.session = response.session_id
        if held.root not in state.object_store:
            # Flower did not take it, but began a session for it.
            self._held.pop(place, None)
            self._drop(held, state)

    def charge(self, request: PushObjectRequest, state: LinkState) -> _Upload:
        """The upload that an object belongs to, before Flower sees it.

        Raises NotFoundError for one that is not this node's, LimitError (and ends the upload) beyond the run's limit.
        """
        place = (request.run_id, request.node.node_id)
        held, limit = self._held.get(place), self._limits.get(request.run_id, 0)
        if held is None or not held.session or request.session_id != held.session:
            raise NotFoundError("an object of no upload of this node")
        if held.size + len(request.object_content) > limit:
            self._held.pop(place, None)
            self._drop(held, state)
            raise LimitError(f"an answer of more than {limit} bytes")
        return held

    def spent(self, upload: _Upload, size: int) -> None:
        upload.size += size

    def _drop(self, upload: _Upload, state: LinkState) -> None:
        state.object_store.delete(upload.root)
        memory: Any = state
        memory._cleanup_push_session(upload.session, cleanup_messages=True)


def _check_tree(tree: ObjectTree, state: LinkState) -> None:
    """At most MAX_OBJECTS objects, each with the same children wherever it is named, also in the store; none of them the root
    of another message, which would then never be deleted."""
    blobs.object_ids(tree)
    entries: Any = getattr(state.object_store, "store")  # noqa: B009
    seen: dict[str, list[str]] = {}
    for node in iterate_object_tree(tree):
        if not is_valid_sha256_hash(node.object_id):
            # Flower would find out when it had the message and a part of the tree.
            raise MalformedError("an object id that is no SHA-256")
        children = _ids(node.children)
        entry = entries.get(node.object_id)
        if entry is not None and node.object_id != tree.object_id and entry.ref_count == 0:
            raise MalformedError("an answer with another message in it")
        if seen.setdefault(node.object_id, children) != children or (entry is not None and entry.child_object_ids != children):
            raise MalformedError("an object that is known with other children")


def _ids(nodes: Iterable[ObjectTree]) -> list[str]:
    return [node.object_id for node in nodes]
