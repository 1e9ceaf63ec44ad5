"""A network cut into bundles: for each host what its processes need, and nothing of anybody else.

::

    <out>/<host>/   genesis.json  bundle.json  start  systemd/pofl-<process>.service
                    <process>/config.toml  account.key  tls/
                    data/<the rows of these processes>.npz
    <out>/operator/ genesis.json  testnet.json  ca/         who holds this admits others to the network
    <out>/user/     genesis.json  testnet.json  user/       asks the network questions: `pofl ... --net <out>/user`

The generator sees every key once, as one who sets up a network of his own may; what it made outside the bundles is removed.
Who joins later gets a bundle of one process from `services.testnet.invite`; its configuration lies at the top.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from core.errors import ConfigError
from services.testnet.data import OwnData
from services.testnet.layout import MODULES, Layout, Member, Places, Shape, load_layout, make_layout
from services.testnet.supervisor import ProcessSpec

__all__ = ["BUNDLE", "Bundle", "check_shape", "is_made", "make_bundles", "read_bundle", "write_start"]

BUNDLE: Final = "bundle.json"
CONFIG: Final = "config.toml"
OPERATOR: Final = "operator"
USER: Final = "user"
ROWS: Final = {"requester": ("test", "practice"), "provider": ("provider",)}
"""Files of rows by role; a miner has one of its own name."""
START: Final = """#!/bin/sh
# Runs this host's processes until Ctrl-C; `pofl` must be on the path.
here="$(cd "$(dirname "$0")" && pwd)" || exit 1
exec pofl join "$here" "$@"
"""
UNIT: Final = """[Unit]
Description=PoFL {role} {name}
After=network-online.target
Wants=network-online.target

[Service]
# The bundle lies at /var/lib/pofl and belongs to the user pofl; the program is at /opt/pofl (docs/deploy.md).
User=pofl
Group=pofl
WorkingDirectory=/var/lib/pofl
ExecStart=/opt/pofl/bin/pofl run {role} --config /var/lib/pofl/{config}
Environment=OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
Restart=on-failure
RestartSec=5
TimeoutStopSec=20
LimitNOFILE=16384
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths=/var/lib/pofl
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
CapabilityBoundingSet=
UMask=0077

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, slots=True)
class Bundle:
    """What one host runs."""

    folder: Path
    processes: tuple[tuple[str, str], ...]
    """(name, role), in order of start."""
    is_flat: bool = False
    """An invitation: one process, with its files at the top of the folder instead of in one of its name."""

    def specs(self) -> list[ProcessSpec]:
        return [
            ProcessSpec(
                name, role, MODULES[role], (self.folder if self.is_flat else self.folder / name) / CONFIG,
                self.folder / "logs" / f"{name}.log",
            )
            for name, role in self.processes
        ]  # fmt: skip


def make_bundles(out: Path, shape: Shape, places: Places, data: OwnData | None = None, owner: int | None = None) -> Layout:
    """Make a network and write one bundle for each host into ``out``, which holds nothing but empty folders.

    ``owner``: number of the user to whom the bundles of hosts are given; only root can. A run that was cut off left no
    ``operator/testnet.json``; its remains are written over. The layout that is returned is no longer on disk as a whole.
    Raises ConfigError, and what `make_layout` raises.
    """
    try:
        _check_empty(out)
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="pofl-init-") as scratch:
            layout = make_layout(Path(scratch) / "net", shape, data=data, places=places)
            by_host: dict[str, list[Member]] = {}
            for member in layout.members:
                by_host.setdefault(member.host, []).append(member)
            for folder in [*by_host, USER] if owner is not None else []:
                # What is there already may be another user's: an empty volume, or what a run that was cut off gave away.
                _give(out / folder, os.getuid())
            for host, members in by_host.items():
                _write_host(layout, members, out / host)
                _give(out / host, owner)
            _write_folder(layout, out / USER, ["genesis.json", "testnet.json", USER])
            _give(out / USER, owner)
            # Last, for it says that all is there.
            _write_folder(layout, out / OPERATOR, ["ca", "genesis.json", "testnet.json"])
            return layout
    except OSError as error:
        raise ConfigError(f"cannot write bundles to {out}: {error.strerror or error} ({error.filename})") from None


def is_made(out: Path) -> bool:
    """Whether `make_bundles` came to its end here before."""
    return (out / OPERATOR / "testnet.json").is_file()


def check_shape(out: Path, shape: Shape) -> None:
    """That the network made here has the processes of ``shape``. Raises ConfigError: others would start without any files."""
    made = load_layout(out / OPERATOR).shape
    if (made.nodes, made.pools, made.miners) != (shape.nodes, shape.pools, shape.miners):
        raise ConfigError(
            f"{out} holds a network of {_said(made)}, not of {_said(shape)}: go back to that shape, or remove the network and "
            "all that it stored (`docker compose down -v`)"
        )


def _said(shape: Shape) -> str:
    return f"--nodes {shape.nodes} --pools {shape.pools} --miners {shape.miners}"


def read_bundle(folder: Path) -> Bundle:
    """A host's bundle. Raises ConfigError."""
    path = folder / BUNDLE
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        processes = tuple((str(item["name"]), str(item["role"])) for item in read["processes"])
        is_flat = read.get("flat", False) is True
    except OSError:
        raise ConfigError(f"{folder} is no bundle of a host: `pofl testnet init --hosts FILE` makes one for each") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is damaged ({error}): fetch the bundle again") from None
    for name, role in processes:
        if role not in MODULES:
            raise ConfigError(f"{path}: {role!r} is no role")
        if "/" in name or name.startswith("."):
            raise ConfigError(f"{path}: {name!r} is no name")
    if is_flat and len(processes) != 1:
        raise ConfigError(f"{path} is damaged ({len(processes)} processes in an invitation for one): fetch the bundle again")
    return Bundle(folder, processes, is_flat)


def write_start(folder: Path, chain_id: bytes, processes: Sequence[tuple[str, str]], *, is_flat: bool = False) -> None:
    """What makes a folder a bundle: the list of (name, role), the start script, a systemd unit for each. Raises OSError."""
    units = folder / "systemd"
    units.mkdir(exist_ok=True)
    for name, role in processes:
        config = CONFIG if is_flat else f"{name}/{CONFIG}"
        (units / f"pofl-{name}.service").write_text(UNIT.format(name=name, role=role, config=config), encoding="utf-8")
    (folder / "start").write_text(START, encoding="utf-8")
    (folder / "start").chmod(0o755)
    listed: dict[str, object] = {"chain": chain_id.hex(), "processes": [{"name": n, "role": r} for n, r in processes]}
    (folder / BUNDLE).write_text(json.dumps(listed | ({"flat": True} if is_flat else {}), indent=1) + "\n", encoding="utf-8")


def _check_empty(out: Path) -> None:
    if is_made(out):
        raise ConfigError(f"{out} holds a network already: choose another folder, or remove it")
    known = {OPERATOR, USER}
    for folder in out.iterdir() if out.exists() else ():
        inside = list(folder.iterdir()) if folder.is_dir() else [folder]
        remains = folder.name in known or any(path.name in (BUNDLE, "genesis.json", "data") for path in inside)
        if inside and not remains:
            raise ConfigError(f"{out} is not empty ({folder.name}): choose another folder, or remove it")


def _write_host(layout: Layout, members: Sequence[Member], to: Path) -> None:
    rows = [name for m in members for name in ([m.name] if m.role == "miner" else ROWS.get(m.role, ()))]
    files = [f"data/{name}.npz" for name in dict.fromkeys(rows)]
    _write_folder(layout, to, ["genesis.json", *(m.name for m in members), *files])
    write_start(to, layout.genesis.chain_id, [(m.name, m.role) for m in members])


def _write_folder(layout: Layout, to: Path, parts: Sequence[str]) -> None:
    """These files and folders of the layout, at the same places below ``to``: paths in configurations stay right."""
    to.mkdir(mode=0o700, parents=True, exist_ok=True)
    to.chmod(0o700)
    for part in parts:
        source, target = layout.folder / part, to / part
        target.parent.mkdir(mode=0o700, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copy2(source, target)


def _give(folder: Path, owner: int | None) -> None:
    if owner is None:
        return
    for parent, folders, files in os.walk(folder):
        for name in (".", *folders, *files):
            os.chown(Path(parent) / name, owner, owner, follow_symlinks=False)
