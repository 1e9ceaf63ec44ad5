"""Values of the chain that a script needs to make or to check itself (docs/protocol.md, part 2). SHA-256 and nothing else.

Signing needs Ed25519: `Key` takes it from the package ``cryptography`` (``pip install 'pofl-client[sign]'``).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Final

from pofl_client.errors import ChainError, ConfigError, MalformedError

__all__ = ["Key", "Signed", "as_bytes", "block_hash", "check_included", "least_fee", "transfer", "tx_id"]

MAX_PATH: Final = 64
MAX_TRANSACTION: Final = 64 * 1024
_TRANSFER: Final = 1


def as_bytes(value: bytes | str, size: int = 32) -> bytes:
    """An identifier, given as bytes or in hexadecimal. Raises ConfigError."""
    try:
        found = bytes.fromhex(value) if isinstance(value, str) else bytes(value)
    except ValueError:
        raise ConfigError(f"{value!r} is not hexadecimal") from None
    if len(found) != size:
        raise ConfigError(f"an identifier has {size} bytes ({2 * size} hex digits), got {len(found)}")
    return found


def digest(domain: bytes, *parts: bytes) -> bytes:
    """SHA-256 over a label and parts, each with its length."""
    framed = _sized(domain) + len(parts).to_bytes(8, "big") + b"".join(map(_sized, parts))
    return hashlib.sha256(framed).digest()


def block_hash(header: bytes) -> bytes:
    """Of ``BlockView.header_bytes``."""
    return digest(b"pofl/block/1", header)


def tx_id(signed: bytes) -> bytes:
    """Of a signed transaction's canonical bytes. Raises MalformedError."""
    size = int.from_bytes(signed[:4], "big")
    if len(signed) != 4 + size + 64 or size > MAX_TRANSACTION:
        raise MalformedError(f"{len(signed)} bytes are no signed transaction")
    return digest(b"pofl/transaction/1", signed[4:-64])


@dataclass(frozen=True, slots=True)
class Key:
    """An account's signing key. ``seed`` is never shown by ``repr``."""

    public_key: bytes
    seed: bytes = field(repr=False)

    @classmethod
    def from_seed(cls, seed: bytes) -> Key:
        """Raises ConfigError unless there are 32 bytes, and the package ``cryptography``."""
        private = _ed25519().Ed25519PrivateKey
        if len(seed) != 32:
            raise ConfigError(f"an Ed25519 private key has 32 bytes, got {len(seed)}")
        return cls(private.from_private_bytes(seed).public_key().public_bytes_raw(), seed)

    @classmethod
    def read(cls, path: Path | str) -> Key:
        """A key file as `pofl keys` writes it: 64 hexadecimal digits. Raises ConfigError."""
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the key file {path}: {error}") from error
        return cls.from_seed(as_bytes(text))

    def sign(self, domain: bytes, message: bytes) -> bytes:
        private = _ed25519().Ed25519PrivateKey.from_private_bytes(self.seed)
        return bytes(private.sign(bytes([len(domain)]) + domain + message))


@dataclass(frozen=True, slots=True)
class Signed:
    """A signed transaction's canonical bytes and its identifier."""

    data: bytes
    tx_id: bytes


def transfer(key: Key, chain_id: bytes, nonce: int, fee: int, to: bytes, amount: int) -> Signed:
    """A signed Transfer of ``amount`` to the account ``to``. Raises ConfigError for numbers out of range."""
    try:
        payload = bytes([_TRANSFER]) + as_bytes(to) + amount.to_bytes(8, "big", signed=True)
        head = as_bytes(chain_id) + key.public_key + nonce.to_bytes(8, "big") + fee.to_bytes(8, "big", signed=True)
    except OverflowError as error:
        raise ConfigError(f"nonce {nonce}, fee {fee}, amount {amount}: each must fit 64 bits") from error
    body = head + payload
    data = len(body).to_bytes(4, "big") + body + key.sign(b"pofl/transaction-signature/1", body)
    return Signed(data, tx_id(data))


def least_fee(genesis_json: str, size: int) -> int:
    """What the chain asks for a transaction of ``size`` bytes, its signature not counted. Raises MalformedError."""
    try:
        minimum = int(json.loads(genesis_json)["params"]["min_fee"])
    except (ValueError, KeyError, TypeError) as error:
        raise MalformedError(f"the genesis document names no least fee: {error!r}") from error
    return minimum * (1 + size // 1024)


def check_included(proof: bytes, header: bytes, wanted: bytes, trusted: bytes) -> bytes:
    """The signed transaction ``wanted``, if it is in the block with the hash ``trusted``.

    ``proof`` is ``GetProofResponse.proof``, ``header`` is ``BlockView.header_bytes``; neither is believed. The path is that of
    RFC 9162, section 2.1.3.2. Raises ChainError, MalformedError.
    """
    if block_hash(header) != trusted:
        raise ChainError(f"the header is of block {block_hash(header).hex()}, trusted is {trusted.hex()}")
    if len(header) < 2 + 32 + 8 + 32 + 32:
        raise MalformedError(f"a header of {len(header)} bytes")
    root = header[74:106]  # after version, chain id, height and parent
    reader = _Reader(proof)
    signed = reader.take(reader.number())
    index, size, count = reader.number(), reader.number(), reader.number()
    if count > MAX_PATH:
        raise MalformedError(f"a path of {count} hashes, at most {MAX_PATH}")
    path = [reader.take(32) for _ in range(count)]
    reader.end()
    if tx_id(signed) != wanted:
        raise ChainError(f"the proof is of transaction {tx_id(signed).hex()}, asked was for {wanted.hex()}")
    if _root(hashlib.sha256(b"\x00\x02" + signed).digest(), index, size, path) != root:
        raise ChainError(f"the proof does not lead to block {trusted.hex()}")
    return signed


def _root(node: bytes, index: int, size: int, path: list[bytes]) -> bytes:
    if index >= size:
        raise ChainError(f"leaf {index} of a tree of {size}")
    position, last = index, size - 1
    for sibling in path:
        if last == 0:
            raise ChainError(f"{len(path)} hashes are too many for leaf {index} of {size}")
        if position % 2 or position == last:
            node = hashlib.sha256(b"\x01" + sibling + node).digest()
            while position % 2 == 0 and position:
                position, last = position // 2, last // 2
        else:
            node = hashlib.sha256(b"\x01" + node + sibling).digest()
        position, last = position // 2, last // 2
    if last:
        raise ChainError(f"{len(path)} hashes are too few for leaf {index} of {size}")
    return node


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        found = self._data[self._at : self._at + count]
        if len(found) != count:
            raise MalformedError(f"truncated: {count} bytes wanted, {len(found)} left")
        self._at += count
        return found

    def number(self) -> int:
        return int.from_bytes(self.take(4), "big")

    def end(self) -> None:
        if self._at != len(self._data):
            raise MalformedError(f"{len(self._data) - self._at} bytes follow the proof")


def _sized(part: bytes) -> bytes:
    return len(part).to_bytes(8, "big") + part


def _ed25519() -> ModuleType:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise ConfigError("signing needs Ed25519: pip install 'pofl-client[sign]'") from None
    return ed25519
