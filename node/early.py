"""Messages of the next height, kept until this node is there: within bounds for each peer, so that none crowds out others."""

from __future__ import annotations

from typing import Final

from core.chain.messages import Message
from core.chain.vote import SignedProposal
from core.ids import NodeId

__all__ = ["Early"]

MAX_MESSAGES: Final = 512
MAX_BYTES: Final = 4 * 1024 * 1024
"""Of one peer: nothing of them is verified yet."""


class Early:
    def __init__(self) -> None:
        self._waiting: dict[NodeId, dict[Message, int]] = {}

    def of(self, node: NodeId) -> tuple[Message, ...]:
        return tuple(self._waiting.get(node, ()))

    def put(self, node: NodeId, message: Message) -> None:
        """Keeps a message, unless its sender has as many here as one may have."""
        waiting = self._waiting.setdefault(node, {})
        size = _size(message)
        if message not in waiting and len(waiting) < MAX_MESSAGES and sum(waiting.values()) + size <= MAX_BYTES:
            waiting[message] = size

    def take(self) -> list[tuple[NodeId, Message]]:
        """All of them; afterwards none is here."""
        waiting, self._waiting = self._waiting, {}
        return [(node, message) for node, messages in waiting.items() for message in messages]


def _size(message: Message) -> int:
    """About as many bytes as a message takes."""
    return len(message.block) + 1024 * (1 + len(message.verdicts)) if isinstance(message, SignedProposal) else 1024
