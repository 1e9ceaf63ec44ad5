"""What a person sees of a running testnet: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from services.testnet.runner import Report

__all__ = ["LiveView", "PlainView", "report_table"]

LINES: Final = 10
"""Events shown under the live table."""


class PlainView:
    """One line an event."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def state(self, name: str, role: str, text: str) -> None:
        """Of interest only while it changes under one's eyes."""

    def say(self, line: str) -> None:
        self._console.print(f"{time.monotonic() - self._started:7.1f} s  {line}", highlight=False, markup=False)


class LiveView:
    """Each process's state, and the last events."""

    def __init__(self, console: Console) -> None:
        self._started = time.monotonic()
        self._states: dict[str, tuple[str, str]] = {}
        self._events: deque[str] = deque(maxlen=LINES)
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveView:
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.__exit__(kind, error, trace)

    def state(self, name: str, role: str, text: str) -> None:
        self._states[name] = (role, text)

    def say(self, line: str) -> None:
        self._events.append(f"{time.monotonic() - self._started:7.1f} s  {line}")

    def _render(self) -> RenderableType:
        states = Table(title=f"PoFL testnet · {time.monotonic() - self._started:.0f} s", title_justify="left")
        states.add_column("process", no_wrap=True)
        states.add_column("state", no_wrap=True, overflow="ellipsis")
        for name, (_, text) in self._states.items():
            states.add_row(name, Text(text))
        return Group(states, *(Text(line, no_wrap=True, overflow="ellipsis") for line in self._events))


def report_table(report: Report) -> Table:
    """The work blocks of a run."""
    made = Table(title="work blocks", title_justify="left")
    for column, right in (
        ("height", True), ("task", False), ("pool", False), ("accuracy", True), ("model scores", True), ("audit", True),
        ("Vm", True), ("reward", True), ("final after", True),
    ):  # fmt: skip
        made.add_column(column, justify="right" if right else "left", no_wrap=True)
    for block in report.blocks:
        made.add_row(
            str(block.height), block.task_id[:8], block.pool, f"{block.correct}/{block.total}",
            "-" if block.model_correct is None else f"{block.model_correct}/{block.total}",
            f"{block.audit_ms:.0f} ms", f"{block.vm_bytes / 1000:.0f} kB", str(block.reward), f"{block.seconds:.1f} s",
        )  # fmt: skip
    return made
