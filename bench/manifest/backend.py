"""What the driver asks of whoever runs a network: real processes on this machine, or containers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from grpc import aio

from bench.manifest.model import Liar, Perturbation

__all__ = ["Backend", "Healing"]


class Healing(Protocol):
    """Undoes a perturbation."""

    async def __call__(self) -> None: ...


class Backend(Protocol):
    """A network that was made for a manifest. Methods raise PoflError."""

    @property
    def folder(self) -> Path:
        """Where its logs end up, and what was copied out of it."""

    @property
    def publishes(self) -> bool:
        """Whether the driver publishes the tasks; else the requester does by herself."""

    @property
    def accounts(self) -> Mapping[str, bytes]:
        """Of each process."""

    @property
    def test_set(self) -> Path:
        """The requester's."""

    async def start(self) -> None:
        """Everything; it need not answer yet."""

    def channel(self, name: str) -> aio.Channel:
        """To a process, as a user. The caller closes it."""

    async def perturb(self, what: Perturbation) -> Healing:
        """Do it; call what this returns when its time is over."""

    def check(self) -> None:
        """Raises PoflError if a process has ended by itself."""

    def task_files(self) -> tuple[Path, Path, Sequence[int]]:
        """Test set, practice set, widths of the hidden layers: what the driver publishes."""

    def has_lied(self, liar: Liar) -> bool:
        """Whether a lying requester has lied to a validator, or a leaking pool has handed out rows."""

    async def report_leaks(self) -> None:
        """Have the provider report what a leaking pool has handed out."""

    async def close(self) -> None:
        """Stop everything, keep the logs."""
