"""Mutual TLS from one authority per network: making it, issuing from it, and what gRPC is given.

A certificate says who its holder is in URIs of its subject alternative name: ``pofl://role/<role>/<name>`` and, where
the holder has an account, ``pofl://account/<hex of the Ed25519 key>``. It also carries the two DNS names
``<role>.pofl.internal`` and ``<name>.<role>.pofl.internal``. A caller checks those instead of the address, because an
address may change and a role does not (docs/adr/0026).

Keys are P-256: gRPC's TLS library refuses Ed25519 certificates. The Ed25519 key of an account is bound in the handshake.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import grpc
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import services
from core.errors import ConfigError
from services.runtime.logging import logger
from services.runtime.metrics import CERTIFICATE_ENDS

__all__ = [
    "Authority", "Identity", "Issued", "TlsFiles",
    "channel_credentials", "expiry_of", "hosts_of", "identity_of", "issue", "load_authority", "make_authority",
    "server_credentials", "server_name",
]  # fmt: skip

T = TypeVar("T")
log = logger(__name__)

DOMAIN = "pofl.internal"
AUTHORITY_DAYS = 3650
LEAF_DAYS = 1825
CLOCK_SLACK = datetime.timedelta(hours=1)
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,29}[a-z0-9])?")
_CA_CERT, _CA_KEY = "ca.pem", "ca.key"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The three PEM files of a process: the authority it trusts, its certificate, its private key."""

    ca: Path
    cert: Path
    key: Path

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Contents of the three. Raises ConfigError with the file's name and what to do."""
        return _read(self.ca, "authority"), _read(self.cert, "certificate"), _read(self.key, "private key")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a certificate says its holder is. ``account`` is an Ed25519 public key."""

    role: str
    name: str
    account: bytes | None
    scopes: frozenset[str] | None = None
    """What a user may do (services.rpc.scopes); None: everything that users may."""


@dataclass(frozen=True, slots=True)
class Authority:
    """The certificate authority of one network."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its private key, PEM."""

    certificate: bytes
    key: bytes
    authority: bytes

    def write(self, folder: Path, stem: str = "tls") -> TlsFiles:
        """Write ``ca.pem``, ``<stem>.pem`` and ``<stem>.key``; the key file is readable by its owner only."""
        folder.mkdir(parents=True, exist_ok=True)
        files = TlsFiles(folder / _CA_CERT, folder / f"{stem}.pem", folder / f"{stem}.key")
        files.ca.write_bytes(self.authority)
        files.cert.write_bytes(self.certificate)
        _write_secret(files.key, self.key)
        return files


def make_authority(folder: Path, common_name: str = "PoFL network") -> Authority:
    """A new authority in ``folder`` (``ca.pem``, ``ca.key``). Raises ConfigError if one is there already."""
    folder.mkdir(parents=True, exist_ok=True)
    for present in (folder / _CA_CERT, folder / _CA_KEY):
        if present.exists():
            raise ConfigError(f"{present} exists: use that authority, or remove it and every certificate it issued")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])
    certificate = (
        _builder(subject, subject, key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    authority = Authority(certificate, key)
    (folder / _CA_CERT).write_bytes(authority.pem)
    _write_secret(folder / _CA_KEY, _key_pem(key))
    return authority


def load_authority(folder: Path) -> Authority:
    """The authority that `make_authority` wrote. Raises ConfigError."""
    try:
        certificate = x509.load_pem_x509_certificate(_read(folder / _CA_CERT, "authority"))
        key = serialization.load_pem_private_key(_read(folder / _CA_KEY, "authority's private key"), password=None)
    except ValueError as error:
        raise ConfigError(f"{folder} does not hold an authority: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError(f"{folder / _CA_KEY} is not the key of {folder / _CA_CERT}")
    return Authority(certificate, key)


def issue(
    authority: Authority, role: str, name: str, hosts: Sequence[str], account: bytes | None = None,
    scopes: frozenset[str] | None = None,
) -> Issued:  # fmt: skip
    """A certificate for one process.

    ``role`` and ``name`` are 1 to 31 lower-case letters, digits and hyphens. ``hosts`` are the DNS names and addresses
    where it can also be reached by clients that check addresses. Raises ConfigError.
    """
    for what, label in (("role", role), ("name", name)):
        if not _LABEL.fullmatch(label):
            raise ConfigError(f"{what} {label!r} must be 1 to 31 lower-case letters, digits or inner hyphens")
    if account is not None and len(account) != 32:
        raise ConfigError(f"an account is an Ed25519 public key of 32 bytes, got {len(account)}")
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [_general_name(host) for host in hosts]
    names += [x509.DNSName(server_name(role)), x509.DNSName(server_name(role, name))]
    names.append(x509.UniformResourceIdentifier(f"pofl://role/{role}/{name}"))
    if account is not None:
        names.append(x509.UniformResourceIdentifier(f"pofl://account/{account.hex()}"))
    names += [x509.UniformResourceIdentifier(f"pofl://scope/{scope}") for scope in sorted(scopes or ())]
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{role}/{name}")])
    issuer = authority.certificate
    certificate = (
        _builder(subject, issuer.subject, key.public_key(), LEAF_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return Issued(certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key), authority.pem)


def server_name(role: str, name: str | None = None) -> str:
    """The DNS name that a certificate of this role, or of this very process, carries."""
    return f"{role}.{DOMAIN}" if name is None else f"{name}.{role}.{DOMAIN}"


def identity_of(pem: bytes) -> Identity:
    """Who a certificate belongs to. Raises ConfigError if it does not say, or says it twice.

    Checks no signature: TLS has done that where the certificate came from a connection.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (ValueError, x509.ExtensionNotFound) as error:
        raise ConfigError(f"the certificate names no role: {error}") from error
    uris = extension.value.get_values_for_type(x509.UniformResourceIdentifier)
    roles = [match for uri in uris if (match := re.fullmatch(r"pofl://role/([a-z0-9-]+)/([a-z0-9-]+)", uri))]
    accounts = [match for uri in uris if (match := re.fullmatch(r"pofl://account/([0-9a-f]{64})", uri))]
    scopes = [uri.removeprefix("pofl://scope/") for uri in uris if uri.startswith("pofl://scope")]
    if len(roles) != 1 or len(accounts) > 1:
        raise ConfigError(f"the certificate must name one role and at most one account, it has {uris}")
    return Identity(roles[0][1], roles[0][2], bytes.fromhex(accounts[0][1]) if accounts else None, frozenset(scopes) or None)


def expiry_of(pem: bytes) -> datetime.datetime:
    """When a certificate ends, UTC. Raises ConfigError."""
    try:
        return x509.load_pem_x509_certificate(pem).not_valid_after_utc
    except ValueError as error:
        raise ConfigError(f"not a certificate: {error}") from error


def hosts_of(pem: bytes) -> list[str]:
    """Names and addresses that a certificate was issued for, less those of its role. Raises ConfigError."""
    try:
        extension = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (ValueError, x509.ExtensionNotFound) as error:
        raise ConfigError(f"the certificate names no host: {error}") from error
    names = [name for name in extension.value.get_values_for_type(x509.DNSName) if not name.endswith(f".{DOMAIN}")]
    return names + [str(address) for address in extension.value.get_values_for_type(x509.IPAddress)]


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """TLS 1.3, own certificate, and a certificate of the same authority required from every client.

    The files are looked at for each new connection: other ones are used from then on, if they are good (docs/adr/0126).
    """
    watched = _Watched(files)
    # None says that nothing changed; the stubs do not know that.
    fetch: Callable[[], Any] = watched.renewed
    return grpc.dynamic_ssl_server_credentials(watched.configuration, fetch, require_client_authentication=True)


class _Watched:
    """The files of a server, read again when they change. Called by gRPC's own threads, one at a time for each handshake."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises ConfigError."""
        self._files = files
        self._lock = threading.Lock()
        self._seen = self._stamp()  # first: what changes while it is read is read again
        self.configuration = _configuration(_checked(files))

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """The new certificate, or None to go on with the last one. Never raises: gRPC would end the connection."""
        with self._lock:
            stamp = self._stamp()
            if stamp == self._seen:
                return None
            try:
                found = _checked(self._files)
            except ConfigError as error:
                if stamp[0] is not None:
                    log.warning("the new certificate is not used", error=error)
                    self._seen = stamp
                return None
            self._seen = stamp
            ends = expiry_of(found[1])
            CERTIFICATE_ENDS.set(ends.timestamp())
            log.info("serving with a new certificate", file=str(self._files.cert), ends=ends.isoformat())
            return _configuration(found)

    def _stamp(self) -> tuple[tuple[int, int, int] | None, ...]:
        stamps: list[tuple[int, int, int] | None] = []
        for path in (self._files.cert, self._files.key, self._files.ca):
            try:
                found = path.stat()
            except OSError:
                stamps.append(None)
            else:
                stamps.append((found.st_mtime_ns, found.st_ino, found.st_size))
        return tuple(stamps)


def _configuration(found: tuple[bytes, bytes, bytes]) -> grpc.ServerCertificateConfiguration:
    ca, certificate, key = found
    return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=ca)


def channel_credentials(files: TlsFiles) -> grpc.ChannelCredentials:
    """TLS 1.3 with own certificate, trusting only the network's authority."""
    ca, certificate, key = _checked(files)
    return grpc.ssl_channel_credentials(ca, key, certificate)


def _checked(files: TlsFiles) -> tuple[bytes, bytes, bytes]:
    """gRPC reports a wrong file only as a failed connection, so the usual mistakes are found here."""
    if not services.TLS_1_3_ONLY:
        raise ConfigError("gRPC was imported before the package `services`: import `services` first, it sets TLS 1.3")
    ca_pem, certificate_pem, key_pem = files.read()
    authority = _parsed(x509.load_pem_x509_certificate, ca_pem, files.ca, "a certificate")
    certificate = _parsed(x509.load_pem_x509_certificate, certificate_pem, files.cert, "a certificate")
    key = _parsed(lambda pem: serialization.load_pem_private_key(pem, password=None), key_pem, files.key, "a private key")
    if not isinstance(certificate.public_key(), ec.EllipticCurvePublicKey):
        raise ConfigError(f"{files.cert} has no elliptic-curve key: issue it with `pofl testnet init`")
    if key.public_key() != certificate.public_key():
        raise ConfigError(f"{files.key} is not the private key of {files.cert}")
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise ConfigError(f"{files.cert} was not issued by {files.ca}") from error
    now = datetime.datetime.now(datetime.UTC)
    for path, each in ((files.ca, authority), (files.cert, certificate)):
        if not each.not_valid_before_utc <= now <= each.not_valid_after_utc:
            raise ConfigError(f"{path} is valid from {each.not_valid_before_utc} to {each.not_valid_after_utc}, now is {now}")
    return ca_pem, certificate_pem, key_pem


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SLACK)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=authority, crl_sign=authority, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise ConfigError(f"host {host!r} is neither an address nor a DNS name") from error


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _write_secret(path: Path, data: bytes) -> None:
    """Created with mode 0600, so there is no moment at which others can read it."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def _parsed(parse: Callable[[bytes], T], pem: bytes, path: Path, kind: str) -> T:
    try:
        return parse(pem)
    except (ValueError, TypeError) as error:  # the library's own sentence is about PEM, not about the file
        raise ConfigError(f"{path} is not a PEM file with {kind}") from error


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the {what} {path}: {error.strerror or error}") from error
