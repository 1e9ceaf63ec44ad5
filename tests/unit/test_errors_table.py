"""The error tree and gRPC's status codes are one table, in both directions."""

from __future__ import annotations

import pytest
from grpc import StatusCode

from core import errors
from services.rpc.errors import ERROR_KEY, MAX_MESSAGE, STATUS, from_status, to_status


def tree(kind: type[errors.PoflError] = errors.PoflError) -> list[type[errors.PoflError]]:
    """Every class of core.errors, from the classes themselves."""
    below = [each for each in kind.__subclasses__() if each.__module__ == "core.errors"]
    return [kind, *(found for each in below for found in tree(each))]


def make(kind: type[errors.PoflError], message: str) -> errors.PoflError:
    return kind(message, "nonce") if issubclass(kind, errors.TransactionError) else kind(message)


def test_the_table_has_every_error_and_no_other() -> None:
    assert set(STATUS) == set(tree())
    assert {kind.__name__ for kind in STATUS} == set(errors.__all__)


def test_no_error_is_a_success() -> None:
    assert StatusCode.OK not in STATUS.values()


@pytest.mark.parametrize("kind", tree(), ids=lambda kind: kind.__name__)
def test_every_error_comes_back_as_it_left(kind: type[errors.PoflError]) -> None:
    code, details, trailers = to_status(make(kind, "what happened: ä ✓"))
    back = from_status(code, details, trailers, "node-1")
    assert type(back) is kind
    assert back.message == "what happened: ä ✓"
    assert back.values["peer"] == "node-1"
    if isinstance(back, errors.TransactionError):
        assert back.reason == "nonce"


def test_a_subclass_from_elsewhere_travels_as_its_ancestor() -> None:
    class LocalError(errors.BlockError):
        pass

    code, details, trailers = to_status(LocalError("bad root"))
    assert type(from_status(code, details, trailers)) is errors.BlockError


@pytest.mark.parametrize("name", ["CorruptError", "PoflError", "object", "", "StorageError\n"])
def test_a_name_that_does_not_fit_its_code_is_ignored(name: str) -> None:
    error = from_status(StatusCode.NOT_FOUND, "height 9", [(ERROR_KEY, name)])
    assert type(error) is errors.NotFoundError


@pytest.mark.parametrize("code", [code for code in StatusCode if code is not StatusCode.OK])
def test_every_code_without_a_name_is_some_error(code: StatusCode) -> None:
    error = from_status(code, "", (), "node-1")
    assert isinstance(error, errors.PoflError)
    assert "node-1" in error.message


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        ("CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate", "its certificate is not of this network: use"),
        ("CERTIFICATE_VERIFY_FAILED: certificate has expired", "its certificate has expired or is not yet valid: compare"),
        ("WRONG_VERSION_NUMBER: Invalid certificate verification context", "no TLS is spoken there: is it the right port?"),
    ],
)
def test_a_tls_handshake_that_fails_is_told_in_words(words: str, meaning: str) -> None:
    details = (
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:25035: Tls handshake failed "
        f"(TSI_PROTOCOL_FAILURE): SSL_ERROR_SSL: error:1000007d:SSL routines:OPENSSL_internal:{words}: OK"
    )
    error = from_status(StatusCode.UNAVAILABLE, details, (), "127.0.0.1:25035")
    assert error.message.startswith(f"127.0.0.1:25035 cannot be reached: {meaning}")
    assert "SSL" not in error.message
    refused = from_status(StatusCode.UNAVAILABLE, "Connection refused", (), "127.0.0.1:1")
    assert refused.message == "127.0.0.1:1 cannot be reached: Connection refused"


def test_long_messages_are_cut_on_both_sides() -> None:
    code, details, trailers = to_status(errors.TransactionError("m" * 5000, "r" * 500))
    assert len(details) == MAX_MESSAGE
    assert len(dict(trailers)["pofl-reason"]) == 64
    back = from_status(code, "m" * 50_000, [(ERROR_KEY, "TransactionError"), ("pofl-reason", "r" * 500)])
    assert len(back.message) == MAX_MESSAGE
