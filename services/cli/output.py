"""What commands print: tables for people, JSON with ``--json`` for programs."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

__all__ = ["MOST_NUMBER", "JsonOption", "console", "emit_json", "instant", "plain", "table"]

MOST_NUMBER: Final = (1 << 63) - 1
"""Of a height or an amount: no supply is larger, and no field of a message takes more."""
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
# Without a terminal there is no width to fit: a line of a log stays one line.
console = Console(width=None if sys.stdout.isatty() else 160, soft_wrap=not sys.stdout.isatty())


def plain(value: object) -> object:
    """A value as JSON has it: bytes as hex, enums by name, dataclasses as objects."""
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, bytes):
        return value.hex()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def emit_json(value: object) -> None:
    typer.echo(json.dumps(plain(value), indent=2))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> Table:
    """A table; ``right`` are the columns of numbers."""
    made = Table(title=title, title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        made.add_column(column, justify="right" if index in right else "left", no_wrap=True)
    for row in rows:
        made.add_row(*(str(cell) for cell in row))
    return made


def instant(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%H:%M:%S.%f")[:-3]
