"""Channels to processes that are no nodes: requesters and pools, at the addresses that the chain names."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from grpc import aio

from services.rpc.channel import connect
from services.rpc.handshake import LocalIdentity
from services.rpc.tls import TlsFiles

__all__ = ["Channels"]

MAX_CHANNELS: Final = 64


class Channels:
    """One channel for each address and role, made when first asked for; the longest unused one is closed."""

    def __init__(self, identity: LocalIdentity, files: TlsFiles | None) -> None:
        self._identity = identity
        self._files = files
        self._open: OrderedDict[tuple[str, str], aio.Channel] = OrderedDict()

    async def get(self, target: str, role: str) -> aio.Channel:
        """A channel on which only a process of ``role`` is called. Raises ConfigError for an address that cannot be."""
        key = (target, role)
        channel = self._open.get(key)
        if channel is None:
            channel = connect(target, self._files, expect_role=role, caller=self._identity.caller)
            self._open[key] = channel
        self._open.move_to_end(key)
        if len(self._open) > MAX_CHANNELS:
            _, oldest = self._open.popitem(last=False)
            await oldest.close(None)
        return channel

    async def close(self) -> None:
        while self._open:
            _, channel = self._open.popitem()
            await channel.close(None)
