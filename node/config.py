"""A full node's configuration: what every role has, and its limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from services.rpc.role import RoleConfig
from services.runtime.config import option

__all__ = ["NodeConfig"]


@dataclass(frozen=True, kw_only=True)
class NodeConfig(RoleConfig):
    """``python -m node --config FILE``. ``peers.nodes`` are the nodes that this one keeps links with.

    The node is a validator if its key is one's on the chain, else it follows.
    """

    ROLE: ClassVar[str] = "node"

    audit_threads: int = option("Threads for audits and checks of test sets.", default=1, low=1, high=64)
    blob_mib: int = option("Disk for the encrypted test sets of tasks, MiB.", default=4096, low=64)
    mempool: int = option("Transactions that wait at most.", default=10_000, low=16, high=1_000_000)
