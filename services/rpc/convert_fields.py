"""Checks of single fields that come from a peer. Each raises MalformedError or LimitError and names the field."""

from __future__ import annotations

from core.errors import LimitError, MalformedError
from core.ids import Amount, Milliseconds

__all__ = ["amount", "exact", "instant", "optional", "small", "version"]


def exact(name: str, value: bytes, size: int = 32) -> bytes:
    """``value`` if it has ``size`` bytes."""
    if len(value) != size:
        raise MalformedError(f"{name}: {len(value)} bytes, expected {size}", field=name)
    return value


def optional(name: str, value: bytes) -> bytes | None:
    return exact(name, value) if value else None


def small(name: str, value: int, limit: int) -> int:
    if value > limit:
        raise LimitError(f"{name}: {value}, at most {limit}", field=name)
    return value


def version(value: int) -> int:
    if value < 1:
        raise MalformedError("protocol_version: 0, and versions begin with 1: the node is too old", field="protocol_version")
    return small("protocol_version", value, 65_535)


def amount(name: str, value: int) -> Amount:
    if value < 0:
        raise MalformedError(f"{name}: {value} is negative", field=name)
    return Amount(value)


def instant(value: int) -> Milliseconds | None:
    return Milliseconds(value) if value else None
