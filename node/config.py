"""A full node's configuration: what every role has, and its limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from core.errors import ConfigError
from services.rpc.role import RoleConfig
from services.runtime.config import option

__all__ = ["NodeConfig"]

MIN_KEPT: Final = 256
"""As many as another node asks for at once."""


@dataclass(frozen=True, kw_only=True)
class NodeConfig(RoleConfig):
    """``python -m node --config FILE``. ``peers.nodes`` are the nodes that this one keeps links with.

    The node is a validator if its key is one's on the chain, else it follows.
    """

    ROLE: ClassVar[str] = "node"

    audit_threads: int = option("Threads for audits and checks of test sets.", default=1, low=1, high=64)
    blob_mib: int = option("Disk for the encrypted test sets of tasks, MiB.", default=4096, low=64)
    keep_blocks: int = option(
        "How many of the last blocks are kept whole at least; of older ones the headers stay. 0 keeps all.", default=0, low=0
    )
    silent_until: int = option(
        "A validator that lost what it voted: up to this height it must not vote again (docs/operations.md).", default=0, low=0
    )
    mempool: int = option("Transactions that wait at most.", default=10_000, low=16, high=1_000_000)

    def check(self) -> None:
        super().check()
        if 0 < self.keep_blocks < MIN_KEPT:
            raise ConfigError(
                f"keep_blocks is {self.keep_blocks}: it must be 0 (all) or at least {MIN_KEPT}, so that a node that was away "
                "for a moment finds the blocks that it missed"
            )
