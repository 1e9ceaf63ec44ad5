"""Addresses in flags and files."""

from __future__ import annotations

import pytest

from core.errors import ConfigError
from services.runtime.address import host_and_port


@pytest.mark.parametrize(
    ("text", "found"),
    [("10.0.0.7:9000", ("10.0.0.7", 9000)), ("node.example.org:1", ("node.example.org", 1)), ("[::1]:65535", ("[::1]", 65535))],
)
def test_an_address(text: str, found: tuple[str, int]) -> None:
    assert host_and_port(text, "--node") == found


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "host", "host:", ":1", "host:0", "host:65536", "host:-1", "host:1e3", "host:\u0661", "::1:9", "a b:1",
        "r\u00e4um:9", "http://h:1", "h:" + "9" * 5000,
    ],
)  # fmt: skip
def test_what_is_none_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--node is .*: it must be HOST:PORT"):
        host_and_port(text, "--node")
