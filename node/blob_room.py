"""Which blobs a node drops first when its quota is full: test sets of tasks that are over."""

from __future__ import annotations

from collections.abc import Iterable

from core.chain.state import State, Task
from core.ids import Digest

__all__ = ["listed_blobs", "spare_blobs"]


def spare_blobs(state: State, here: Iterable[bytes]) -> list[bytes]:
    """Of the blobs that are here: those that no task lists, then those of ended tasks, the one that ended first first.

    What a live task lists is never among them: without it this node could not audit.
    """
    live = {digest for task_id in state.live for digest in listed_blobs(state.tasks[task_id])}
    left = dict.fromkeys(digest for digest in here if digest not in live)
    ended = sorted((t for t in state.tasks.values() if not t.is_live), key=lambda t: (t.ended_height or 0, t.height, t.index))
    # Listed by two tasks, a blob is as young as the younger one.
    age: dict[bytes, int] = {digest: place for place, task in enumerate(ended) for digest in listed_blobs(task)}
    return sorted(left, key=lambda digest: age.get(digest, -1))


def listed_blobs(task: Task) -> tuple[Digest, ...]:
    """What a node keeps of a task: the requester's public key and her encrypted test set."""
    spec = task.published.spec
    return (spec.public_key_blob, *spec.test_blobs)
