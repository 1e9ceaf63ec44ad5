"""What a miner or a node from outside needs to join a testnet, in one folder (see services.cli.run)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from core.crypto.signing import KeyPair
from core.errors import ConfigError
from core.ports import SystemRng
from services.rpc import tls
from services.runtime.address import host_and_port
from services.testnet.layout import HOST, Layout, free_ports, toml_table

__all__ = ["ROLES", "invite"]

ROLES: Final = ("miner", "node")


def invite(layout: Layout, folder: Path, name: str, role: str = "miner", listen: str | None = None) -> KeyPair:
    """Write ``ca.pem``, ``tls.pem``, ``tls.key``, ``account.key`` and ``genesis.json``; for a node its ``config.toml`` too.

    ``listen``: where a node will be reached; a free port of this machine where left out. The account's key. Raises ConfigError:
    the folder is not empty, the name is no name, the role cannot be invited, or the network's authority is not here.
    """
    if role not in ROLES:
        raise ConfigError(f"--role is {role!r}: it must be {' or '.join(ROLES)}")
    if listen is not None and role != "node":
        raise ConfigError("--listen is where a node is reached; a miner listens nowhere")
    if any(member.name == name for member in layout.members):
        raise ConfigError(f"{name} is a process of this testnet already: choose another name")
    host = HOST if listen is None else host_and_port(listen, "--listen")[0].strip("[]")
    authority = tls.load_authority(layout.folder / "ca")
    key = KeyPair.generate(SystemRng())
    issued = tls.issue(authority, role, name, sorted({HOST, "localhost", host}), key.public_key)
    try:
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty: choose another folder, or remove it")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        issued.write(folder)
        shutil.copyfile(layout.folder / "genesis.json", folder / "genesis.json")
        descriptor = os.open(folder / "account.key", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(key.seed.hex() + "\n")
        if role == "node":
            (folder / "config.toml").write_text(_node_config(layout, name, listen or _free(layout)), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {folder}: {error.strerror or error}") from None
    return key


def _free(layout: Layout) -> str:
    """On this machine, and of no process of the testnet, which may be stopped now."""
    known = {member.listen for member in layout.members}
    found = (f"{HOST}:{port}" for port in free_ports(len(known) + 1))
    return next(address for address in found if address not in known)


def _node_config(layout: Layout, name: str, listen: str) -> str:
    sections: dict[str | None, dict[str, object]] = {
        None: {"name": name, "listen": listen, "data_dir": "data", "key": "account.key"},
        "tls": {"ca": "ca.pem", "cert": "tls.pem", "key": "tls.key"},
        "chain": {"genesis": "genesis.json"},
        "peers": {"nodes": [member.listen for member in layout.of("node")]},
    }
    lines = [line for section, values in sections.items() for line in toml_table(section, values)]
    return "\n".join(lines) + "\n"
