"""Structured logs: one line per event, as JSON or for people.

Every line has the time, the level, the process (``role``, ``name``), the place in the code, the message, and fields.
Fields come from the call and from the context (`scope`), which follows asyncio tasks::

    log = logger(__name__)
    with scope(height=7, task=task_id):
        log.info("block finalised", pool=pool, correct=342)

Secrets have no way in: a field whose name says it is one is replaced, ``bytes`` are shown as their first eight hex
digits, and PEM private keys are cut out of messages.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from core.errors import ConfigError, PoflError
from core.ids import short
from services.runtime import tracing
from services.runtime.metrics import counter

__all__ = ["Log", "claim_id", "logger", "printable", "scope", "setup", "shown", "without_secrets"]

_scope: ContextVar[Mapping[str, object]] = ContextVar("pofl_log_scope", default=MappingProxyType({}))
_SECRET = re.compile(r"secret|password|passphrase|token|seed|private|signing_key|mask", re.IGNORECASE)
_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_installed: list[logging.Handler] = []
LINES = counter("log_lines", "Lines logged, by level.", ("level",))
_FILE_BYTES, _FILE_BACKUPS = 20 * 1024 * 1024, 3


class LogConfig(Protocol):
    """What `setup` needs to know; services.runtime.config.LogConfig has it."""

    @property
    def level(self) -> str: ...
    @property
    def format(self) -> str: ...
    @property
    def file(self) -> Path | None: ...


class Log:
    """A named logger whose calls take fields as keywords."""

    __slots__ = ("_fields", "_logger")

    def __init__(self, inner: logging.Logger, fields: Mapping[str, object] | None = None) -> None:
        self._logger = inner
        self._fields = dict(fields or {})

    def bind(self, **fields: object) -> Log:
        """The same logger with these fields on every line."""
        return Log(self._logger, {**self._fields, **fields})

    def debug(self, message: str, /, **fields: object) -> None:
        self._log(logging.DEBUG, message, fields)

    def info(self, message: str, /, **fields: object) -> None:
        self._log(logging.INFO, message, fields)

    def warning(self, message: str, /, **fields: object) -> None:
        self._log(logging.WARNING, message, fields)

    def error(self, message: str, /, **fields: object) -> None:
        self._log(logging.ERROR, message, fields)

    def exception(self, message: str, /, **fields: object) -> None:
        """As error, with the traceback of the exception being handled."""
        self._log(logging.ERROR, message, fields, traceback=True)

    def _log(self, level: int, message: str, fields: Mapping[str, object], traceback: bool = False) -> None:
        if self._logger.isEnabledFor(level):
            fields = {**_scope.get(), **self._fields, **fields}
            if level >= logging.INFO and tracing.is_on():
                tracing.note(_PEM.sub("(private key)", message), logging.getLevelName(level).lower(), fields, _plain)
            extra = {"fields": fields}
            # The message is passed as an argument: a per cent sign in it is text.
            self._logger.log(level, "%s", message, extra=extra, exc_info=traceback, stacklevel=3)


def logger(name: str) -> Log:
    """The logger of a module: ``logger(__name__)``."""
    return Log(logging.getLogger(name))


def claim_id(task: bytes, pool: bytes) -> str:
    """What every process calls one claim in its log: ``<task>-<pool>``, eight hex digits each.

    Each computes it from what is on the chain, so nobody can be told a wrong one.
    """
    return f"{short(task)}-{short(pool)}"


@contextmanager
def scope(**fields: object) -> Iterator[None]:
    """Adds fields to every line logged inside, also by tasks started inside.

    With a ``claim`` it is a span of that claim's trace as well (services.runtime.tracing).
    """
    token = _scope.set({**_scope.get(), **fields})
    try:
        if "claim" in fields and tracing.is_on():
            with tracing.claimed(str(fields["claim"]), {key: _plain(key, value) for key, value in fields.items()}):
                yield
        else:
            yield
    finally:
        # A stream whose caller has gone is closed by the event loop, in another context, where nothing was set.
        with suppress(ValueError):
            _scope.reset(token)


def setup(role: str, name: str, cfg: LogConfig) -> None:
    """Send all logs of this process where the configuration says. May be called again. Raises ConfigError."""
    level = logging.getLevelNamesMapping().get(cfg.level.upper())
    if level is None:
        raise ConfigError(f"log.level must be debug, info, warning or error, got {cfg.level!r}")
    handler: logging.Handler
    if cfg.file is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        try:
            cfg.file.parent.mkdir(parents=True, exist_ok=True)
            handler = logging.handlers.RotatingFileHandler(
                cfg.file, maxBytes=_FILE_BYTES, backupCount=_FILE_BACKUPS, encoding="utf-8"
            )
        except OSError as error:
            raise ConfigError(f"cannot write the log file {cfg.file}: {error.strerror or error}") from error
    handler.setFormatter(_Json(role, name) if cfg.format == "json" else _Console(role, name))
    root = logging.getLogger()
    while _installed:
        old = _installed.pop()
        root.removeHandler(old)
        old.close()
    _installed.append(handler)
    root.addHandler(handler)
    root.setLevel(level)
    # These libraries say at "info" what is noise beside a block.
    for noisy in ("asyncio", "urllib3", "docker", "flwr"):
        logging.getLogger(noisy).setLevel(max(level, logging.WARNING))


def without_secrets(text: str) -> str:
    """A text without the private keys that are in it."""
    return _PEM.sub("(private key)", text)


def _plain(key: str, value: object) -> object:
    """A field as it may be shown."""
    if _SECRET.search(key):
        return "(secret)"
    if isinstance(value, bytes | bytearray | memoryview):
        return short(bytes(value))
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, BaseException):
        return _PEM.sub("(private key)", f"{type(value).__name__}: {value}")
    return _PEM.sub("(private key)", str(value))


class _Formatter(logging.Formatter):
    def __init__(self, role: str, name: str) -> None:
        super().__init__()
        self._role = role
        self._name = name

    def parts(self, record: logging.LogRecord) -> tuple[str, dict[str, object], str | None]:
        """Message, fields and traceback, all without secrets."""
        fields = {key: _plain(key, value) for key, value in getattr(record, "fields", {}).items()}
        LINES.labels(record.levelname.lower()).inc()
        message = _PEM.sub("(private key)", record.getMessage())
        trace = _PEM.sub("(private key)", self.formatException(record.exc_info)) if record.exc_info else None
        return message, fields, trace


class _Json(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message, fields, trace = self.parts(record)
        line: dict[str, object] = {
            "time_ms": int(record.created * 1000), "level": record.levelname.lower(), "role": self._role,
            "name": self._name, "logger": record.name, "message": message,
        }  # fmt: skip
        # A field never replaces what identifies the line.
        line.update((key if key not in line else f"{key}_", value) for key, value in fields.items())
        if trace is not None:
            line["traceback"] = trace
        # JSON itself escapes only what is below a space; as it does, the rest that a terminal would obey.
        text = json.dumps(line, ensure_ascii=False, allow_nan=True)
        return text if text.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


class _Console(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message, fields, trace = self.parts(record)
        shown = "".join(f" {key}={_quoted(value)}" for key, value in fields.items())
        clock = f"{self.formatTime(record, '%H:%M:%S')}.{int(record.msecs):03d}"
        line = f"{clock} {record.levelname:<7} {self._role}/{self._name} {printable(message)}{shown}"
        # Indented: a line of an error's text is none of the log.
        return line if trace is None else "\n  ".join((line, *map(printable, trace.split("\n"))))


def printable(text: str) -> str:
    """A text on one line, with all else that a terminal obeys (controls, line and direction marks) as Python escapes it.

    Peers' text is shown no other way: it cannot begin a line of its own, hide one, or set a terminal's title.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def shown(error: PoflError) -> str:
    """Its message as a terminal may have it: part of it may be a peer's words."""
    return "\n".join(printable(line) for line in error.message.split("\n"))


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def _quoted(value: object) -> str:
    text = printable(str(value))
    return json.dumps(text, ensure_ascii=False) if " " in text or "=" in text or not text else text
