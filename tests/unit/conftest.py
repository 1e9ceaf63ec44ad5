"""What holds for all unit tests."""

from __future__ import annotations

import pytest

from services.rpc import chain_client, market_client, mining_client


@pytest.fixture(autouse=True)
def _calls_have_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Client and server are one process here: when it gets no processor for a while, neither is at fault."""
    for client in (chain_client, market_client, mining_client):
        monkeypatch.setattr(client, "CALL_TIMEOUT", 120.0)
