"""The back end that runs a manifest."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

from bench.manifest.backend import Backend
from bench.manifest.model import Manifest
from bench.manifest.processes import Processes

__all__ = ["open_backend"]


def open_backend(manifest: Manifest, folder: Path, compose: bool) -> AbstractAsyncContextManager[Backend]:
    """Real processes on this machine, or with ``compose`` containers. ``folder`` must be missing or empty. Raises PoflError."""
    if compose:
        from bench.manifest.containers import Containers

        return Containers(manifest, folder)
    return Processes(manifest, folder)
