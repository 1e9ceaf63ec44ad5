"""Types that cannot be confused. All are plain ``bytes`` or ``int`` at run time."""

from __future__ import annotations

from typing import NewType

__all__ = [
    "AccountId", "NodeId", "Digest", "BlockHash", "TaskId", "TxId", "ModelCommitment", "StateRoot", "Signature",
    "Height", "Amount", "Correct", "PartsPerMillion", "Milliseconds", "MILLION", "short",
]  # fmt: skip

AccountId = NewType("AccountId", bytes)
"""Ed25519 public key, 32 bytes. An account, a pool, a requester, a provider, a miner are all one of these."""
NodeId = NewType("NodeId", bytes)
"""Ed25519 public key of a validator or full node, 32 bytes."""
Digest = NewType("Digest", bytes)
"""SHA-256, 32 bytes."""
BlockHash = NewType("BlockHash", bytes)
TaskId = NewType("TaskId", bytes)
TxId = NewType("TxId", bytes)
ModelCommitment = NewType("ModelCommitment", bytes)
"""``c_W``: commitment to a pool's model (design: verification, section 3)."""
StateRoot = NewType("StateRoot", bytes)
Signature = NewType("Signature", bytes)
"""Ed25519 signature, 64 bytes."""
Height = NewType("Height", int)
Amount = NewType("Amount", int)
"""Smallest unit of the coin; never negative, at most 2^63 - 1."""
Correct = NewType("Correct", int)
"""Number of correct predictions N of I (paper, section IV-B)."""
PartsPerMillion = NewType("PartsPerMillion", int)
Milliseconds = NewType("Milliseconds", int)
"""Since the Unix epoch for instants, a length for durations."""

MILLION = 1_000_000


def short(identifier: bytes) -> str:
    """First eight hex digits: how identifiers are shown to people."""
    return identifier.hex()[:8]
