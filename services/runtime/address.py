"""``HOST:PORT`` as people write it in flags and files."""

from __future__ import annotations

from core.errors import ConfigError

__all__ = ["host_and_port"]


def host_and_port(text: str, what: str) -> tuple[str, int]:
    """The host as it is written, and a port from 1 to 65535, of ``10.0.0.7:9000`` or ``[::1]:9000``.

    ``what``: the flag or key that it was given by. Raises ConfigError.
    """
    host, _, port = text.rpartition(":")
    is_number = port.isascii() and port.isdecimal() and len(port) <= 5 and 0 < int(port) < 65_536
    is_host = bool(host) and host.isascii() and host.isprintable() and not set(host) & set(" /@?#,;") and len(host) <= 253
    if not is_number or not is_host or (":" in host) != (host.startswith("[") and host.endswith("]")):
        raise ConfigError(f"{what} is {text!r}: it must be HOST:PORT")
    return host, int(port)
