"""One table between the error tree and gRPC's status codes, used in both directions.

Server side, `to_status` turns an error into a code, the message as details, and two ASCII trailers: ``pofl-error``
(the type's name) and ``pofl-reason`` (for a refused transaction). Client side, `from_status` builds the same type
again. A name that does not belong to the code it came with is ignored: the code then decides alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import grpc
from grpc import StatusCode, aio

from core import errors

__all__ = ["STATUS", "from_status", "to_status", "translate"]

STATUS: Mapping[type[errors.PoflError], StatusCode] = {
    errors.PoflError:         StatusCode.INTERNAL,
    errors.InputError:        StatusCode.INVALID_ARGUMENT,
    errors.MalformedError:    StatusCode.INVALID_ARGUMENT,
    errors.LimitError:        StatusCode.RESOURCE_EXHAUSTED,
    errors.NotFoundError:     StatusCode.NOT_FOUND,
    errors.PrunedError:       StatusCode.NOT_FOUND,
    errors.AheadError:        StatusCode.OUT_OF_RANGE,
    errors.ConfigError:       StatusCode.FAILED_PRECONDITION,
    errors.AuthError:         StatusCode.PERMISSION_DENIED,
    errors.ChainError:        StatusCode.FAILED_PRECONDITION,
    errors.BlockError:        StatusCode.FAILED_PRECONDITION,
    errors.TransactionError:  StatusCode.FAILED_PRECONDITION,
    errors.VoteError:         StatusCode.FAILED_PRECONDITION,
    errors.WrongChainError:   StatusCode.FAILED_PRECONDITION,
    errors.ProtocolError:     StatusCode.FAILED_PRECONDITION,
    errors.SequenceError:     StatusCode.FAILED_PRECONDITION,
    errors.TurnError:         StatusCode.FAILED_PRECONDITION,
    errors.CheatingError:     StatusCode.INVALID_ARGUMENT,
    errors.BudgetError:       StatusCode.RESOURCE_EXHAUSTED,
    errors.AbortError:        StatusCode.ABORTED,
    errors.InconclusiveError: StatusCode.ABORTED,
    errors.CryptoError:       StatusCode.INVALID_ARGUMENT,
    errors.MarketError:       StatusCode.FAILED_PRECONDITION,
    errors.StorageError:      StatusCode.INTERNAL,
    errors.CorruptError:      StatusCode.DATA_LOSS,
    errors.LockedError:       StatusCode.FAILED_PRECONDITION,
    errors.StorageFullError:  StatusCode.RESOURCE_EXHAUSTED,
    errors.InternalError:     StatusCode.INTERNAL,
    errors.UnavailableError:  StatusCode.UNAVAILABLE,
    errors.DeadlineError:     StatusCode.DEADLINE_EXCEEDED,
}  # fmt: skip

_BY_NAME: Mapping[str, type[errors.PoflError]] = {kind.__name__: kind for kind in STATUS}

# What a code means when no trailer says more: the answer came from gRPC itself or from another implementation.
_BARE: Mapping[StatusCode, type[errors.PoflError]] = {
    StatusCode.INVALID_ARGUMENT:    errors.MalformedError,
    StatusCode.OUT_OF_RANGE:        errors.MalformedError,
    StatusCode.NOT_FOUND:           errors.NotFoundError,
    StatusCode.RESOURCE_EXHAUSTED:  errors.LimitError,
    StatusCode.PERMISSION_DENIED:   errors.AuthError,
    StatusCode.UNAUTHENTICATED:     errors.AuthError,
    StatusCode.FAILED_PRECONDITION: errors.ProtocolError,
    StatusCode.UNIMPLEMENTED:       errors.ProtocolError,
    StatusCode.ABORTED:             errors.AbortError,
    StatusCode.CANCELLED:           errors.AbortError,
    StatusCode.DATA_LOSS:           errors.CorruptError,
    StatusCode.UNAVAILABLE:         errors.UnavailableError,
    StatusCode.DEADLINE_EXCEEDED:   errors.DeadlineError,
}  # fmt: skip

ERROR_KEY = "pofl-error"
REASON_KEY = "pofl-reason"
MAX_MESSAGE = 1_000
"""Characters of a message that travel. gRPC's whole trailer is limited to 8 KiB, and a character may take 12 bytes."""
MAX_REASON = 64


def to_status(error: errors.PoflError) -> tuple[StatusCode, str, tuple[tuple[str, str], ...]]:
    """Code, details and trailers of an error. A subclass outside the tree travels as its nearest ancestor in it."""
    kind = next(ancestor for ancestor in type(error).__mro__ if ancestor in STATUS)
    trailers = [(ERROR_KEY, kind.__name__)]
    if isinstance(error, errors.TransactionError):
        trailers.append((REASON_KEY, error.reason.encode("ascii", "replace").decode()[:MAX_REASON]))
    message = error.message if len(error.message) <= MAX_MESSAGE else error.message[: MAX_MESSAGE - 1] + "…"
    return STATUS[kind], message, tuple(trailers)


def from_status(
    code: StatusCode, details: str, trailers: Iterable[tuple[str, str | bytes]] = (), peer: str = ""
) -> errors.PoflError:
    """The error that a peer answered with. ``peer`` is kept in ``values``, so a remote fault can be told from a local."""
    found = {key: value for key, value in trailers if isinstance(value, str)}
    kind = _BY_NAME.get(found.get(ERROR_KEY, ""))
    where = peer or "the peer"
    if kind is not None and STATUS[kind] is code:
        message = details[:MAX_MESSAGE]
        if issubclass(kind, errors.TransactionError):
            return kind(message, found.get(REASON_KEY, "unknown")[:MAX_REASON], peer=peer)
        return kind(message, peer=peer)
    kind = _BARE.get(code, errors.UnavailableError)
    details = details[:MAX_MESSAGE] or "no details"
    if kind is errors.UnavailableError and "Hostname Verification Check failed" in details:
        return errors.AuthError(f"{where} is not who this call needs: its certificate is for another role", peer=peer)
    if kind is errors.DeadlineError:
        return kind(f"{where} did not answer in time ({details})", peer=peer)
    if code is StatusCode.UNAVAILABLE:
        return kind(f"{where} cannot be reached: {_tls_fault(details) or details}", peer=peer)
    return kind(f"{where} answered {code.name}: {details}", peer=peer)


def _tls_fault(details: str) -> str:
    """What a failed TLS handshake means and what to do, in the words of `pofl doctor`; empty for other failures."""
    text = details.lower()
    if "handshake failed" not in text:
        return ""
    if "has expired" in text or "not yet valid" in text:
        return "its certificate has expired or is not yet valid: compare this host's clock with that one's; issue it anew"
    if "certificate_verify_failed" in text:
        return "its certificate is not of this network: use the certificates of one `init` on both sides; is it the right port?"
    if "wrong_version_number" in text:
        return "no TLS is spoken there: is it the right port? the operator's port and the metrics are others than `listen`"
    return ""


@contextmanager
def translate(peer: str = "") -> Iterator[None]:
    """Around any use of a gRPC call or stream: its errors come out as ours.

    Cancellation of the local task passes through unchanged.
    """
    try:
        yield
    except aio.AioRpcError as error:
        trailers = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
        raise from_status(error.code(), error.details() or "", trailers, peer) from error
    except (aio.UsageError, aio.InternalError) as error:
        raise errors.UnavailableError(f"the connection to {peer or 'the peer'} is closed: {error}", peer=peer) from error
    except grpc.RpcError as error:
        raise errors.UnavailableError(f"the call to {peer or 'the peer'} failed: {error}", peer=peer) from error
