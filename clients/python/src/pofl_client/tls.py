"""Who we are and whom we believe: three PEM files, and a look at the other side before gRPC connects.

gRPC reports everything that is wrong with a connection as "unavailable". So each address is tried once with a TLS handshake
of our own, which tells a closed port from a wrong certificate, and takes nothing below TLS 1.3.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from pofl_client.errors import AuthError, ConfigError, DeadlineError, PoflError, UnavailableError

__all__ = ["Tls"]

DOMAIN: Final = "pofl.internal"
_HTTP2: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How every HTTP/2 client begins: the preface and empty settings. A server answers with its own settings."""


@dataclass(frozen=True, slots=True)
class Tls:
    """The network's authority, our certificate, its private key. A certificate's role says what it may call."""

    ca: Path
    cert: Path
    key: Path

    @classmethod
    def of(cls, files: Tls | Path | str) -> Tls:
        """A folder with ``ca.pem``, ``tls.pem`` and ``tls.key``, as `pofl testnet init` makes for users. Raises ConfigError."""
        if isinstance(files, Tls):
            return files
        folder = Path(files)
        if not folder.is_dir():
            raise ConfigError(f"no folder {folder}: it must hold ca.pem, tls.pem and tls.key of a user certificate")
        return cls(folder / "ca.pem", folder / "tls.pem", folder / "tls.key")

    def credentials(self) -> grpc.ChannelCredentials:
        """What gRPC is given. Raises ConfigError."""
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.cert))

    def context(self) -> ssl.SSLContext:
        """The same for Python's own TLS. Raises ConfigError with the file's name."""
        for path in (self.ca, self.cert, self.key):
            _read(path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.set_alpn_protocols(["h2"])
        try:
            context.load_verify_locations(self.ca)
        except ssl.SSLError as error:
            raise ConfigError(f"{self.ca} is not a PEM file with a certificate") from error
        try:
            context.load_cert_chain(self.cert, self.key)
        except ssl.SSLError as error:
            raise ConfigError(f"{self.cert} and {self.key} are not a certificate and its private key in PEM") from error
        return context


def server_name(role: str, name: str | None = None) -> str:
    """What a server's certificate must say: addresses change, roles do not (docs/adr/0026)."""
    return f"{name}.{role}.{DOMAIN}" if name else f"{role}.{DOMAIN}"


def split(target: str) -> tuple[str, int]:
    """Host and port. Raises ConfigError."""
    host, _, port = target.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{target!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def look(target: str, tls: Tls | None, expected: str, timeout: float) -> None:
    """Connect once and leave. Raises UnavailableError, DeadlineError, AuthError or ConfigError with what is wrong."""
    host, port = split(target)
    context = None if tls is None else tls.context()
    try:
        with socket.create_connection((host, port), timeout) as plain:
            plain.settimeout(timeout)
            if context is None:
                return
            with context.wrap_socket(plain, server_hostname=expected) as secured:
                # The handshake is over for us before the server has looked at our certificate.
                secured.sendall(_HTTP2)
                if not secured.recv(1):
                    raise AuthError(f"{target} closed the connection on seeing our certificate {tls and tls.cert}", peer=target)
    except ssl.SSLError as error:
        raise _explained(error, target, tls, expected) from error
    except TimeoutError as error:
        raise DeadlineError(f"{target} did not answer within {timeout:g} s", peer=target) from error
    except socket.gaierror as error:
        raise UnavailableError(f"the host name {host!r} is not known here ({error.strerror})", peer=target) from error
    except ConnectionRefusedError as error:
        raise UnavailableError(f"nothing listens on {target}: is that process running?", peer=target) from error
    except OSError as error:
        raise UnavailableError(f"{target} cannot be reached: {error.strerror or error}", peer=target) from error


def _explained(error: ssl.SSLError, target: str, tls: Tls | None, expected: str) -> PoflError:
    ca, cert = (tls.ca, tls.cert) if tls is not None else ("", "")
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code == 62:  # X509_V_ERR_HOSTNAME_MISMATCH
            return AuthError(f"{target} is another kind of process: its certificate is not for {expected}", peer=target)
        return AuthError(f"{target} is not of the network of {ca}: {error.verify_message}", peer=target)
    reason = (error.reason or "").replace("_", " ").lower()
    if "wrong version" in reason:
        return ConfigError(f"{target} does not speak TLS: give the address a process listens on, not its admin address")
    if "alert protocol version" in reason or "unsupported protocol" in reason:
        return AuthError(f"{target} does not speak TLS 1.3", peer=target)
    if "alert" in reason:
        return AuthError(f"{target} refuses our certificate {cert}: {reason}", peer=target)
    return AuthError(f"no TLS connection to {target}: {reason or error}", peer=target)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
