"""Addresses that accounts publish for others to dial: ``host:port``, and nothing else that a dialler might take.

A dialler's own grammar is wider: the path of a socket file, a list of addresses, a name server to ask. What stands on the
chain is dialled by every node, so none of that may be written there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from core.codec import Reader, Text
from core.errors import MalformedError

__all__ = ["MAX_ENDPOINT", "Endpoint", "check_endpoint", "is_endpoint"]

MAX_ENDPOINT: Final = 255
MAX_PORT: Final = 65_535
# Without a library for addresses: their versions differ in what they take, and validators must not.
_FORM: Final = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]{2,45}\]):([1-9][0-9]{0,4})")


def is_endpoint(text: str) -> bool:
    """Whether it is a name, an IPv4 address or an IPv6 address in brackets, a colon, and a port from 1 to 65535."""
    found = _FORM.fullmatch(text)
    return found is not None and len(text) <= MAX_ENDPOINT and int(found[1]) <= MAX_PORT


def check_endpoint(text: str, field: str = "endpoint") -> str:
    """``text``. Raises MalformedError if it is no endpoint."""
    if not is_endpoint(text):
        raise MalformedError(f"{field}: {text[:80]!r} is not host:port (an IPv6 host in brackets)", field=field)
    return text


@dataclass(frozen=True)
class Endpoint:
    """Codec of an endpoint."""

    def write(self, out: bytearray, value: str) -> None:
        Text(MAX_ENDPOINT).write(out, check_endpoint(value))

    def read(self, reader: Reader) -> str:
        return check_endpoint(Text(MAX_ENDPOINT).read(reader))
