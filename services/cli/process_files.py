"""The configuration of a process, for commands that look at its folder, whether or not it could start with it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Final

from core.errors import ConfigError

__all__ = ["process_table"]

_TABLES: Final = ("tls", "log")


def process_table(folder: Path) -> dict[str, Any]:
    """``config.toml`` of a process's folder; ``tls`` and ``log`` are tables, and no text in it breaks a path.

    Raises ConfigError.
    """
    path = folder / "config.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}: give the folder of one process") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    for name in _TABLES:
        if not isinstance(table.get(name, {}), dict):
            raise ConfigError(f"{path}: {name} must be a table, [{name}]")
    for part in (table, *(table.get(name, {}) for name in _TABLES)):
        for key, value in part.items():
            if isinstance(value, str) and "\0" in value:
                raise ConfigError(f"{path}: {key} has a zero character in it")
    return table
