"""Every error that PoFL raises on purpose, in one tree.

::

    PoflError
    ├── InputError                  what a user or a peer sent cannot be used
    │   ├── MalformedError          bytes that do not decode, or fields that contradict one another
    │   ├── LimitError              larger, longer or more than the stated limit
    │   ├── NotFoundError           a thing asked for by name, height or digest does not exist here
    │   │   └── PrunedError         it was here once and was dropped to save room: others may have it
    │   ├── AheadError              a height far beyond the last one: it is not waited for
    │   └── ConfigError             a configuration key, flag or file is wrong
    ├── AuthError                   the caller is not who the call needs
    ├── ChainError                  a block, vote or transaction breaks a rule of the chain
    │   ├── BlockError
    │   ├── TransactionError        carries a RefusalReason
    │   ├── VoteError
    │   └── WrongChainError         another chain id, genesis or protocol version
    ├── ProtocolError               a step of an interactive protocol was wrong
    │   ├── SequenceError           a message out of order, replayed with other content, or after the end
    │   ├── TurnError               asked before its turn: nothing is used up, and later it may be granted
    │   ├── CheatingError           a cryptographic check failed: the peer's message cannot be honest
    │   ├── InconclusiveError       a check that can fail by chance did: nobody is blamed, repeat it
    │   ├── BudgetError             a one-use value or a counted run is used up
    │   └── AbortError              the peer ended the protocol, with its reason
    ├── CryptoError                 a key, signature, ciphertext or proof does not verify
    ├── MarketError                 an offer, bid or delivery breaks the rule of the trade
    ├── StorageError
    │   ├── CorruptError            a checksum or an invariant of stored data does not hold
    │   ├── LockedError             another process has the data directory
    │   └── StorageFullError
    ├── InternalError               this program failed at its own part: nobody else is to blame
    ├── UnavailableError            a peer cannot be reached or is not ready; trying again may help
    └── DeadlineError               a wait ended without its outcome

A message says what happened, with the values that made it happen, and where it helps, what to do.
"""

from __future__ import annotations

__all__ = [
    "PoflError", "InputError", "MalformedError", "LimitError", "NotFoundError", "PrunedError", "AheadError", "ConfigError",
    "AuthError", "ChainError",
    "BlockError", "TransactionError", "VoteError", "WrongChainError", "ProtocolError", "SequenceError", "CheatingError",
    "InconclusiveError", "BudgetError", "AbortError", "CryptoError", "MarketError", "StorageError", "CorruptError",
    "LockedError", "StorageFullError", "TurnError", "InternalError", "UnavailableError", "DeadlineError",
]  # fmt: skip


class PoflError(Exception):
    """Base of every deliberate error. ``values`` keeps the numbers of the message for programs."""

    def __init__(self, message: str, **values: object) -> None:
        super().__init__(message)
        self.message = message
        self.values = values


class InputError(PoflError):
    """What a user or a peer sent cannot be used."""


class MalformedError(InputError):
    """Bytes that do not decode, or fields that contradict one another."""


class LimitError(InputError):
    """Larger, longer or more than the stated limit."""


class NotFoundError(InputError):
    """A thing asked for by name, height or digest does not exist here."""


class PrunedError(NotFoundError):
    """It was here once and was dropped to save room: ask another node."""


class AheadError(InputError):
    """A height far beyond the last one here: either it is wrong, or this node is far behind."""


class ConfigError(InputError):
    """A configuration key, flag or file is wrong."""


class AuthError(PoflError):
    """The caller is not who the call needs."""


class ChainError(PoflError):
    """A block, vote or transaction breaks a rule of the chain."""


class BlockError(ChainError):
    """A block breaks a rule."""


class TransactionError(ChainError):
    """A transaction is refused; ``reason`` is a stable word (see core.chain.transaction.Refusal)."""

    def __init__(self, message: str, reason: str, **values: object) -> None:
        super().__init__(message, reason=reason, **values)
        self.reason = reason


class VoteError(ChainError):
    """A vote, proposal or verdict breaks a rule."""


class WrongChainError(ChainError):
    """Another chain id, genesis or protocol version."""


class ProtocolError(PoflError):
    """A step of an interactive protocol was wrong."""


class SequenceError(ProtocolError):
    """A message out of order, replayed with other content, or after the end."""


class TurnError(ProtocolError):
    """Asked before its turn. Nothing is used up; asked again later it may be granted."""


class CheatingError(ProtocolError):
    """A cryptographic check failed: the peer's message cannot come from an honest peer."""


class InconclusiveError(ProtocolError):
    """A check that can fail by chance did. Nobody is blamed; it is repeated with fresh coins."""


class BudgetError(ProtocolError):
    """A one-use value or a counted run is used up."""


class AbortError(ProtocolError):
    """The peer ended the protocol and said why."""


class CryptoError(PoflError):
    """A key, signature, ciphertext or proof does not verify."""


class MarketError(PoflError):
    """An offer, bid or delivery breaks the rule of the trade."""


class StorageError(PoflError):
    """The database cannot do what was asked."""


class CorruptError(StorageError):
    """A checksum or an invariant of stored data does not hold."""


class LockedError(StorageError):
    """Another process has the data directory."""


class StorageFullError(StorageError):
    """The disk is full."""


class InternalError(PoflError):
    """This program failed at its own part: a defect, or no room for the work. Nobody else is to blame."""


class UnavailableError(PoflError):
    """A peer cannot be reached or is not ready; trying again may help."""


class DeadlineError(PoflError):
    """A wait ended without its outcome."""
