"""Who is calling, from the certificate of the connection, and which method takes calls from whom."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from grpc import aio

from core.errors import AuthError, ConfigError
from services.rpc import tls
from services.rpc.scopes import check_scope

__all__ = ["ANYONE", "Caller", "RoleRules", "caller", "certificate_digest", "own_certificate_digest"]

ANYONE = "*"
"""In a rule: every role that the network's authority has certified."""
USER = "user"
NO_CERTIFICATE = bytes(32)
"""Stands for the certificate's digest on a plaintext connection."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The process at the other end. ``account`` is its Ed25519 public key where its certificate names one."""

    role: str
    name: str
    account: bytes | None = None
    scopes: frozenset[str] | None = None
    """Of a user's certificate; None for all."""

    def __str__(self) -> str:
        return f"{self.role}/{self.name}"

    @property
    def user_agent(self) -> str:
        """How a plaintext loopback connection says who it is."""
        return f"pofl-caller={self}"


def caller(context: aio.ServicerContext[Any, Any]) -> Caller:
    """Who calls. Raises AuthError if the connection does not prove it.

    A plaintext connection proves nothing: there the caller says who it is (the server takes such connections only on
    loopback and behind an explicit flag).
    """
    certificate = _certificate(context)
    if certificate is None:
        return _claimed(context)
    try:
        identity = _identity(certificate)
    except ConfigError as error:
        raise AuthError(f"your certificate cannot be used: {error.message}") from error
    return Caller(identity.role, identity.name, identity.account, identity.scopes)


def certificate_digest(context: aio.ServicerContext[Any, Any]) -> bytes:
    """SHA-256 of the caller's certificate (DER), or zeros on a plaintext connection. 32 bytes."""
    certificate = _certificate(context)
    return NO_CERTIFICATE if certificate is None else _digest(certificate)


def own_certificate_digest(files: tls.TlsFiles | None) -> bytes:
    """The same digest as the other side computes it for us."""
    return NO_CERTIFICATE if files is None else _digest(files.read()[1])


class RoleRules:
    """Which roles may call what. What no rule names is refused.

    A rule's key is a service (``pofl.chain.v1.ChainService``) or a method (``pofl.chain.v1.ChainService/GetBlock``);
    the method's rule wins.
    """

    def __init__(self, rules: Mapping[str, Iterable[str]]) -> None:
        for key, roles in rules.items():
            if isinstance(roles, str):
                raise ConfigError(f"the rule for {key} must be a collection of roles, got the text {roles!r}")
        self._rules = {key.strip("/"): frozenset(roles) for key, roles in rules.items()}

    def check(self, method: str, who: Caller) -> None:
        """Raises AuthError unless ``who`` may call ``method``, given as gRPC does: ``/service/Method``."""
        method = method.strip("/")
        service = method.partition("/")[0]
        allowed = self._rules.get(method, self._rules.get(service, frozenset()))
        if ANYONE in allowed or who.role in allowed:
            # Scopes narrow what a certificate may; on another role's they cannot be meant, and allow no more than on a user's.
            if who.role == USER or who.scopes is not None:
                check_scope(method, who.scopes)
            return
        wanted = ", ".join(sorted(allowed)) or "nobody"
        raise AuthError(f"{who} may not call {method}: it serves {wanted}", role=who.role, method=method)


def _certificate(context: aio.ServicerContext[Any, Any]) -> bytes | None:
    found = list(context.auth_context().get("x509_pem_cert", ()))
    return found[0] if found else None


# The same few certificates come with every call; reading one takes longer than many calls do.
@functools.lru_cache(maxsize=256)
def _identity(pem: bytes) -> tls.Identity:
    return tls.identity_of(pem)


@functools.lru_cache(maxsize=256)
def _digest(pem: bytes) -> bytes:
    der = x509.load_pem_x509_certificate(pem).public_bytes(serialization.Encoding.DER)
    return hashlib.sha256(der).digest()


def _claimed(context: aio.ServicerContext[Any, Any]) -> Caller:
    agents = [str(value) for key, value in _pairs(context.invocation_metadata()) if key == "user-agent"]
    match = re.match(r"pofl-caller=([a-z0-9-]{1,31})/([a-z0-9-]{1,31})(?: |$)", agents[0]) if agents else None
    if match is None:
        raise AuthError("this connection has no certificate and its user agent does not say pofl-caller=role/name")
    return Caller(match[1], match[2])


def _pairs(metadata: Any) -> Iterable[tuple[str, str | bytes]]:
    return metadata or ()
