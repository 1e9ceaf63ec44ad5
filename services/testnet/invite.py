"""What a miner from outside needs to join a pool of a testnet, in one folder (see services.cli.run)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from core.crypto.signing import KeyPair
from core.errors import ConfigError
from core.ports import SystemRng
from services.rpc import tls
from services.testnet.layout import HOST, Layout

__all__ = ["invite"]


def invite(layout: Layout, folder: Path, name: str) -> None:
    """Write ``ca.pem``, ``tls.pem``, ``tls.key``, ``account.key`` and ``genesis.json``.

    Raises ConfigError: the folder is not empty, the name is no name, or the network's authority is not here.
    """
    if any(member.name == name for member in layout.members):
        raise ConfigError(f"{name} is a process of this testnet already: choose another name")
    authority = tls.load_authority(layout.folder / "ca")
    key = KeyPair.generate(SystemRng())
    issued = tls.issue(authority, "miner", name, [HOST, "localhost"], key.public_key)
    try:
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty: choose another folder, or remove it")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        issued.write(folder)
        shutil.copyfile(layout.folder / "genesis.json", folder / "genesis.json")
        descriptor = os.open(folder / "account.key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(key.seed.hex() + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write {folder}: {error.strerror or error}") from None
