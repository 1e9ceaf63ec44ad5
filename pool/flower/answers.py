"""What a miner reads of its pool's answers: no more than fits, nothing packed, and from nobody else.

Flower's client reads a response whole, unpacks it and follows redirects. A pool is a stranger to its miners: with these it
could fill a miner's memory, or have it send requests to services of the miner's own network.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, cast

import httpx
from flwr.supercore.protobuf.client import ProtobufClient

__all__ = ["MAX_ANSWER", "MAX_INSTRUCTION", "bound_answers"]

MAX_ANSWER: Final = 8 << 20
"""Bytes of one response: a chunk of Flower's has 5 MiB."""
MAX_INSTRUCTION: Final = 512 << 20
"""Bytes of all parts of an instruction: 100 million float32, and what holds them."""


def bound_answers(client: ProtobufClient, limit: int = MAX_ANSWER) -> None:
    """From now on a redirect is a failure, and a response that is packed or longer than ``limit`` bytes ends in
    httpx.RemoteProtocolError before more of it is read."""
    http = client._client
    http.follow_redirects = False
    http.headers["accept-encoding"] = "identity"

    def check(response: httpx.Response) -> None:
        packed = response.headers.get("content-encoding", "identity")
        if packed != "identity":
            raise httpx.RemoteProtocolError(f"the pool's answer is packed ({packed[:32]}), which was not asked for")
        response.stream = _Bounded(cast(httpx.SyncByteStream, response.stream), limit)

    http.event_hooks = {"response": [check]}


class _Bounded(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, limit: int) -> None:
        self._stream, self._limit = stream, limit

    def __iter__(self) -> Iterator[bytes]:
        count = 0
        for part in self._stream:
            count += len(part)
            if count > self._limit:
                raise httpx.RemoteProtocolError(f"the pool's answer has more than {self._limit} bytes")
            yield part

    def close(self) -> None:
        self._stream.close()
