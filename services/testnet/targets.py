"""What Prometheus looks at, in the form of its ``file_sd_configs``: one entry a process, with its name and role as labels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from services.testnet.layout import Member, Shape, process_names
from services.testnet.places import METRICS_PORT

__all__ = ["container_targets", "layout_targets"]


def container_targets(shape: Shape) -> str:
    """Of a network in containers, seen from another container. Raises ConfigError for a shape that is none."""
    shape.check()
    return _text((f"{name}:{METRICS_PORT}", name, role) for name, role, _ in process_names(shape))


def layout_targets(members: Sequence[Member]) -> str:
    """Of a network whose processes serve their metrics where this machine can reach them."""
    return _text((member.metrics, member.name, member.role) for member in members)


def _text(processes: Iterable[tuple[str, str, str]]) -> str:
    listed = [{"targets": [address], "labels": {"process": name, "role": role}} for address, name, role in processes]
    return "[\n" + ",\n".join(f"  {json.dumps(entry)}" for entry in listed) + "\n]\n"
