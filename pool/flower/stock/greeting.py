"""What takes the place of Join on a stock deployment: one query to each SuperNode before its first instruction.

A stock SuperLink tells a ServerApp node ids, nothing else. The greeting hands out the key to seal updates to, and the
answer names the node key that the miner signs with and how many rows it has. Flower itself says which SuperNode an
answer is from; the signature over the greeting's id proves that the miner holds the key it names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from core.codec import U16, U64, Fixed, Text, Var, encode
from core.crypto.sealing import MAX_PUBLIC_KEY
from pool.flower import keys

__all__ = ["Greeting", "Presence", "check_presence", "presence"]

GREETING_LABEL = b"pofl/mining/greeting/v1"


@dataclass(frozen=True, slots=True)
class Greeting:
    """``pool_key``: the HPKE public key of this run, and its sealing.Suite."""

    pool_key: Annotated[bytes, Var(MAX_PUBLIC_KEY)]
    suite: Annotated[int, U16]


@dataclass(frozen=True, slots=True)
class Presence:
    """The miner's node key and its number of rows; ``reason`` where it cannot take part, then ``examples`` is 0."""

    miner: Annotated[bytes, Fixed(keys.NODE_KEY_BYTES)]
    examples: Annotated[int, U64]
    reason: Annotated[str, Text(400)]
    signature: Annotated[bytes, Var(80)]


@dataclass(frozen=True, slots=True)
class _Said:
    label: Annotated[bytes, Fixed(len(GREETING_LABEL))]
    run_id: Annotated[int, U64]
    greeting_id: Annotated[str, Text(128)]
    pool_key: Annotated[bytes, Var(MAX_PUBLIC_KEY)]
    examples: Annotated[int, U64]


def presence(signer: Any, examples: int, reason: str, run_id: int, greeting_id: str, pool_key: bytes) -> Presence:
    """``signer``: the node's private key object."""
    said = encode(_Said(GREETING_LABEL, run_id, greeting_id, pool_key, examples))
    return Presence(keys.public_bytes_of(signer), examples, reason[:400], keys.sign(signer, said))


def check_presence(answer: Presence, run_id: int, greeting_id: str, pool_key: bytes) -> None:
    """Raises CryptoError or MalformedError unless the holder of the key it names answered this greeting."""
    said = encode(_Said(GREETING_LABEL, run_id, greeting_id, pool_key, answer.examples))
    keys.verify(answer.miner, said, answer.signature)
