"""What somebody from outside needs to join a network that runs: for one process, in one folder.

::

    <folder>/ca.pem tls.pem tls.key account.key genesis.json      all that a miner needs (services.cli.run)
             config.toml bundle.json start systemd/               of the others: `pofl join <folder>` runs it
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from core.crypto.signing import KeyPair
from core.errors import ConfigError
from core.ports import SystemRng
from services.rpc import tls
from services.runtime.address import host_and_port
from services.testnet.bundles import write_start
from services.testnet.layout import HOST, Layout, Place, free_ports, toml_table
from services.testnet.places import LAST_PORT, PORTS_EACH, place

__all__ = ["ROLES", "default_name", "invite"]

ROLES: Final = ("miner", "node", "pool", "requester", "platform")
NEEDS_NO_CONFIG: Final = "miner"


def default_name(role: str) -> str:
    return "guest0" if role == NEEDS_NO_CONFIG else f"{role}-guest0"


def invite(layout: Layout, folder: Path, name: str, role: str = "miner", listen: str | None = None) -> KeyPair:
    """Write certificate, keys and genesis document; for all but a miner the configuration too, as a bundle.

    ``listen``: where the process will be reached; it takes that port and the three after it. Free ports of this machine where
    left out. The account's key. Raises ConfigError: the folder is not empty, the name is no name, the role cannot be invited,
    or the network's authority is not here.
    """
    if role not in ROLES:
        raise ConfigError(f"--role is {role!r}: it must be one of {', '.join(ROLES)}")
    if listen is not None and role == NEEDS_NO_CONFIG:
        raise ConfigError("--listen is where a process is reached; a miner listens nowhere")
    if any(member.name == name for member in layout.members):
        raise ConfigError(f"{name} is a process of this testnet already: choose another name")
    where = _place(layout, listen)
    if not (layout.folder / "ca").exists():
        raise ConfigError(
            f"{layout.folder} lacks the network's authority (ca): name the folder that has it, as --net net/operator"
        )
    authority = tls.load_authority(layout.folder / "ca")
    key = KeyPair.generate(SystemRng())
    host = where.listen.rpartition(":")[0].strip("[]")
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
        if role != NEEDS_NO_CONFIG:
            (folder / "config.toml").write_text(_config(layout, name, role, where, key.public_key), encoding="utf-8")
            write_start(folder, layout.genesis.chain_id, [(name, role)], is_flat=True)
    except OSError as error:
        raise ConfigError(f"cannot write {folder}: {error.strerror or error}") from None
    return key


def _place(layout: Layout, listen: str | None) -> Place:
    """Raises ConfigError."""
    if listen is None:
        known = {address for m in layout.members for address in (m.listen, m.admin, m.metrics, m.fleet)}
        # On this machine, and of no process of the testnet, which may be stopped now.
        found = [f"{HOST}:{port}" for port in free_ports(len(known) + PORTS_EACH)]
        return Place(*[address for address in found if address not in known][:PORTS_EACH])
    host, port = host_and_port(listen, "--listen")
    if port + PORTS_EACH - 1 > LAST_PORT:
        raise ConfigError(f"--listen is {listen!r}: the process takes four ports from there on, up to {LAST_PORT} at most")
    return place(host.strip("[]"), port)


def _config(layout: Layout, name: str, role: str, where: Place, account: bytes) -> str:
    top: dict[str, object] = {"name": name, "listen": where.bind or where.listen}
    if where.bind:
        top["advertise"] = where.listen
    top |= {"admin_listen": where.admin, "metrics_listen": where.metrics, "data_dir": "data", "key": "account.key"}
    peers: dict[str, object] = {"nodes": [member.listen for member in layout.of("node")]}
    sections: dict[str | None, Mapping[str, object]] = {
        None: top,
        "tls": {"ca": "ca.pem", "cert": "tls.pem", "key": "tls.key"},
        "chain": {"genesis": "genesis.json"},
        "peers": peers,
    }
    if role == "pool":
        top["fleet_listen"] = where.fleet_bind or where.fleet
        if where.fleet_bind:
            top["fleet_advertise"] = where.fleet
        # Of its own: two pools that begin at the same weights in the same order would hand in the same model.
        sections["training"] = {"seed": int.from_bytes(account[:4], "big") >> 1}
    elif role == "requester":
        peers["platforms"] = [member.listen for member in layout.of("platform")]
    lines = [line for section, values in sections.items() for line in toml_table(section, values)]
    return "\n".join(lines) + "\n"
