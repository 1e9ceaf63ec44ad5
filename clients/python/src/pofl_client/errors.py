"""What goes wrong, as exceptions that carry the server's own sentence.

::

    PoflError
    ├── InputError            what was asked cannot be used: MalformedError, LimitError, NotFoundError
    │   └── ConfigError       an address, a file or an argument here is wrong
    ├── AuthError             a certificate that does not fit, or a role that may not call this
    ├── ChainError            a rule of the chain: TransactionError, with the refusal's word in ``reason``
    ├── ProtocolError         a step of an exchange was wrong, too early or used up
    ├── ServerError           the server failed at its own part
    ├── UnavailableError      nobody could be reached, or the server is not ready: trying again may help
    └── DeadlineError         a wait ended without its outcome

``name`` is the server's own name for the error, finer than the classes here: docs/clients.md lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import grpc

__all__ = [
    "AuthError", "ChainError", "ConfigError", "DeadlineError", "InputError", "LimitError", "MalformedError", "NotFoundError",
    "PoflError", "ProtocolError", "ServerError", "TransactionError", "UnavailableError",
]  # fmt: skip


class PoflError(Exception):
    """Base of all. ``str()`` of it is one sentence: what happened, with values."""

    def __init__(self, message: str, *, name: str = "", reason: str = "", code: str = "", peer: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.name = name or type(self).__name__
        """The server's name for it, such as ``PrunedError``."""
        self.reason = reason
        """Of a refused transaction: a stable word, such as ``bad-nonce``."""
        self.code = code
        """gRPC's status, such as ``NOT_FOUND``; empty for what was found out here."""
        self.peer = peer
        """``host:port`` of who answered; empty for what was found out here."""


class InputError(PoflError):
    """What was asked cannot be used."""


class MalformedError(InputError):
    """Bytes that do not decode, or fields that contradict one another."""


class LimitError(InputError):
    """Larger or more than the server's limit."""


class NotFoundError(InputError):
    """Not there, or there no longer."""


class ConfigError(InputError):
    """An address, a file or an argument is wrong."""


class AuthError(PoflError):
    """A certificate that does not fit, or a role that may not call this."""


class ChainError(PoflError):
    """A rule of the chain is broken, or a proof does not hold."""


class TransactionError(ChainError):
    """A transaction is refused; ``reason`` is why, in one stable word."""


class ProtocolError(PoflError):
    """A step of an exchange was wrong, too early or used up."""


class ServerError(PoflError):
    """The server failed at its own part."""


class UnavailableError(PoflError):
    """Nobody could be reached, or the server is not ready: trying again may help."""


class DeadlineError(PoflError):
    """A wait ended without its outcome."""


BY_NAME: Final[Mapping[str, type[PoflError]]] = {
    "PoflError": ServerError, "InputError": InputError, "MalformedError": MalformedError, "LimitError": LimitError,
    "NotFoundError": NotFoundError, "PrunedError": NotFoundError, "AheadError": UnavailableError,
    "ConfigError": ServerError, "AuthError": AuthError,
    "ChainError": ChainError, "BlockError": ChainError, "TransactionError": TransactionError, "VoteError": ChainError,
    "WrongChainError": ChainError, "ProtocolError": ProtocolError, "SequenceError": ProtocolError, "TurnError": ProtocolError,
    "CheatingError": ProtocolError, "BudgetError": ProtocolError, "AbortError": ProtocolError,
    "InconclusiveError": ProtocolError, "CryptoError": InputError, "MarketError": ChainError, "StorageError": ServerError,
    "CorruptError": ServerError, "LockedError": ServerError, "StorageFullError": ServerError, "InternalError": ServerError,
    "UnavailableError": UnavailableError, "DeadlineError": DeadlineError,
}  # fmt: skip
"""The servers' names, by what a script does about them."""

BY_CODE: Final[Mapping[str, type[PoflError]]] = {
    "INVALID_ARGUMENT": MalformedError, "OUT_OF_RANGE": MalformedError, "NOT_FOUND": NotFoundError,
    "RESOURCE_EXHAUSTED": LimitError, "PERMISSION_DENIED": AuthError, "UNAUTHENTICATED": AuthError,
    "FAILED_PRECONDITION": ProtocolError, "UNIMPLEMENTED": ProtocolError, "ABORTED": ProtocolError,
    "CANCELLED": UnavailableError, "UNAVAILABLE": UnavailableError, "DEADLINE_EXCEEDED": DeadlineError,
}  # fmt: skip
"""Without a name the answer is gRPC's own, or another implementation's."""


def from_rpc(error: grpc.RpcError, peer: str) -> PoflError:
    """The exception for a failed call. gRPC's two kinds of channel agree in these three methods, and in no type."""
    call: Any = error
    code = call.code().name
    details = call.details() or "no details"
    trailers = {str(key): value for key, value in call.trailing_metadata() or () if isinstance(value, str)}
    name = trailers.get("pofl-error", "")
    if name in BY_NAME:
        return BY_NAME[name](details, name=name, reason=trailers.get("pofl-reason", ""), code=code, peer=peer)
    if "Hostname Verification Check failed" in details:
        return AuthError(f"{peer} is of another role: its certificate is not for this kind of call", code=code, peer=peer)
    kind = BY_CODE.get(code, ServerError)
    said = {UnavailableError: "cannot be reached", DeadlineError: "did not answer in time"}.get(kind, f"answered {code}")
    return kind(f"{peer} {said}: {details}", code=code, peer=peer)
