"""The platform's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from services.rpc.role import RoleConfig

__all__ = ["PlatformConfig"]


@dataclass(frozen=True, kw_only=True)
class PlatformConfig(RoleConfig):
    """``python -m services.platform --config FILE``. ``peers.nodes`` are the nodes that it stands in front of."""

    ROLE: ClassVar[str] = "platform"
