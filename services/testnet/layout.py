"""The files of a testnet: authority, certificates, keys, genesis, data, and one configuration for each process.

::

    <folder>/genesis.json  ca/  testnet.json
             <process>/config.toml  account.key  tls/  data/
             data/test.npz  practice.npz  provider.npz  pool0-miner0.npz ...
             logs/<process>.log
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from core.crypto.signing import KeyPair
from core.errors import ConfigError
from core.ids import AccountId, Amount, Milliseconds, NodeId
from core.params import PROTOCOL_VERSION, ChainParams, Genesis, GenesisAccount, GenesisValidator
from core.ports import SystemRng
from services.rpc import tls
from services.testnet.data import DIGITS, OwnData, Subject, split_digits, split_own
from services.testnet.supervisor import ProcessSpec

__all__ = [
    "Layout", "Member", "Place", "Places", "Shape", "fitted", "free_ports", "load_layout", "make_layout", "process_names",
    "toml_table",
]  # fmt: skip

HOST: Final = "127.0.0.1"
MANIFEST: Final = "testnet.json"
MODULES: Final = {
    "node": "node", "platform": "services.platform", "requester": "requester", "provider": "provider",
    "pool": "pool.manager", "miner": "pool.miner",
}  # fmt: skip
BALANCE: Final = {"node": 10_000_000, "requester": 1_000_000_000, "provider": 1_000_000, "pool": 100_000_000, "miner": 1_000}
MINER_START_MS: Final = 3_500
"""Torch costs each miner about three seconds of one core to load: the second and third of each pool come later."""
PARAMS: Final = ChainParams(commit_ms=20_000, claim_ms=25_500, draw_window_ms=15_000)
"""Shorter windows than a real network's: the digits are learnt in ten seconds, and a pool may buy for every task."""
EXTRA_MS: Final = 40
"""For each feature more than the digits have: longer to fetch and load the test set, to evaluate and to audit."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a testnet is, and what its requester asks for."""

    nodes: int = 4
    pools: int = 2
    miners: int = 3
    """In each pool."""
    tasks: int = 0
    """That the requester publishes by itself; with 0 whoever runs the testnet publishes them."""
    reward: int = 1_000_000

    def check(self) -> None:
        """Raises ConfigError naming the number and its bounds."""
        for name, value, low, high in (
            ("nodes", self.nodes, 1, 64),
            ("pools", self.pools, 1, 16),
            ("miners", self.miners, 1, 32),
            ("tasks", self.tasks, 0, 10_000),
        ):
            if not low <= value <= high:
                raise ConfigError(f"{name} is {value}, it must be from {low} to {high}")


@dataclass(frozen=True, slots=True)
class Member:
    """One process of the testnet."""

    name: str
    role: str
    account: AccountId
    listen: str
    """Where the others reach it."""
    admin: str
    metrics: str
    fleet: str = ""
    """Pools only: where Flower's clients connect."""
    pool: str = ""
    """Miners only: name of their pool."""
    bind: str = ""
    """Where it listens itself, if that is not `listen`: in a container, or behind an address that is not the machine's own."""
    fleet_bind: str = ""
    host: str = ""
    """The machine or container that it runs on; all on this machine if empty."""


@dataclass(frozen=True, slots=True)
class Place:
    """Addresses of one process, each host:port; see `Member`."""

    listen: str
    admin: str
    metrics: str
    fleet: str
    bind: str = ""
    fleet_bind: str = ""
    host: str = ""


Places = Callable[[Sequence[tuple[str, str]]], Sequence[Place]]
"""From (name, role) of each process to its place, in the same order. Raises ConfigError."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A testnet on disk."""

    folder: Path
    shape: Shape
    genesis: Genesis
    members: tuple[Member, ...]
    subject: Subject = DIGITS

    def of(self, role: str) -> tuple[Member, ...]:
        return tuple(m for m in self.members if m.role == role)

    def member(self, name: str) -> Member:
        return next(m for m in self.members if m.name == name)

    def name_of(self, account: bytes) -> str:
        """The process of an account, or the account's first digits."""
        return next((m.name for m in self.members if m.account == account), account.hex()[:8])

    @property
    def user_tls(self) -> tls.TlsFiles:
        folder = self.folder / "user" / "tls"
        return tls.TlsFiles(folder / "ca.pem", folder / "tls.pem", folder / "tls.key")

    @property
    def user_key(self) -> Path:
        return self.folder / "user" / "account.key"

    @property
    def has_processes(self) -> bool:
        """Whether files of any process are here. A user's folder and an operator's have only the list of processes."""
        return any((self.folder / member.name / "config.toml").exists() for member in self.members)

    def data(self, name: str) -> Path:
        return self.folder / "data" / f"{name}.npz"

    def process(self, member: Member) -> ProcessSpec:
        home = self.folder / member.name
        return ProcessSpec(
            member.name, member.role, MODULES[member.role], home / "config.toml", self.folder / "logs" / f"{member.name}.log"
        )


def make_layout(
    folder: Path, shape: Shape, params: ChainParams | None = None, start_ms: int | None = None, data: OwnData | None = None,
    places: Places | None = None,
) -> Layout:  # fmt: skip
    """Write a new testnet into an empty or missing folder; it learns the digits, or ``data``. Raises InputError.

    ``places`` say where each process runs and how the others reach it; without them all run on this machine.
    """
    shape.check()
    try:
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty: choose another folder, or remove it")
        return _write_layout(folder, shape, params, start_ms, data, places)
    except OSError as error:
        raise ConfigError(f"cannot write a testnet to {folder}: {error.strerror or error}") from None


def _write_layout(
    folder: Path, shape: Shape, params: ChainParams | None, start_ms: int | None, data: OwnData | None, places: Places | None
) -> Layout:
    # Before anything is written: data that cannot be used leave no folder behind.
    miners = shape.pools * shape.miners
    rows = split_own(data, miners) if data is not None else split_digits(miners)
    params = fitted(shape, params or _wider(PARAMS, rows.subject.features))
    names = process_names(shape)
    where = (places or _here)([(name, role) for name, role, _ in names])
    # Keys have modes of their own; the requester's secret test rows and everybody's data lie here too.
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    authority = tls.make_authority(folder / "ca")
    keys = {name: KeyPair.generate(SystemRng()) for name, _, _ in names}
    keys["user"] = KeyPair.generate(SystemRng())
    members = tuple(
        Member(
            name, role, AccountId(keys[name].public_key), at.listen, at.admin, at.metrics, at.fleet if role == "pool" else "",
            pool, at.bind, at.fleet_bind if role == "pool" else "", at.host,
        )
        for (name, role, pool), at in zip(names, where, strict=True)
    )  # fmt: skip
    genesis = Genesis(
        name="pofl-testnet",
        protocol_version=PROTOCOL_VERSION,
        time_ms=Milliseconds(start_ms if start_ms is not None else time.time_ns() // 1_000_000),
        validators=tuple(GenesisValidator(NodeId(bytes(m.account)), 1, m.name) for m in members if m.role == "node"),
        accounts=(
            *(GenesisAccount(m.account, Amount(BALANCE[m.role]), m.name) for m in members if m.role in BALANCE),
            GenesisAccount(AccountId(keys["user"].public_key), Amount(1_000_000), "user"),
        ),
        params=params,
    )
    genesis.check()
    (folder / "genesis.json").write_text(genesis.to_json(), encoding="utf-8")
    layout = Layout(folder, shape, genesis, members, rows.subject)
    rows.write(
        {name: layout.data(name) for name in ("test", "practice", "provider")},
        [layout.data(m.name) for m in layout.of("miner")],
    )
    reached = {m.name: [m.listen.rpartition(":")[0]] for m in members}
    for name, role in [(m.name, m.role) for m in members] + [("user", "user")]:
        home = folder / name
        hosts = list(dict.fromkeys([HOST, "localhost", *reached.get(name, ())]))
        issued = tls.issue(authority, role, name, hosts, keys[name].public_key)
        issued.write(home / "tls")
        _write_key(home / "account.key", keys[name])
    for index, member in enumerate(members):
        (folder / member.name / "config.toml").write_text(_config(layout, member, index), encoding="utf-8")
    _write_manifest(layout)
    return layout


def load_layout(folder: Path) -> Layout:
    """A testnet that make_layout wrote. Raises ConfigError."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        genesis = Genesis.from_json((folder / "genesis.json").read_text(encoding="utf-8"))
        members = tuple(Member(**{**m, "account": AccountId(bytes.fromhex(m["account"]))}) for m in manifest["members"])
        about = manifest.get("subject", asdict(DIGITS))
        subject = Subject(**{**about, "hidden": tuple(about["hidden"])})
        return Layout(folder, Shape(**manifest["shape"]), genesis, members, subject)
    except OSError:
        raise ConfigError(f"{folder} holds no testnet: make one with `pofl testnet init`") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder / MANIFEST} is damaged ({error}): make a new testnet") from None
    except ConfigError as error:
        raise ConfigError(f"{folder / 'genesis.json'}: {error.message}") from None


def _wider(params: ChainParams, features: int) -> ChainParams:
    """Longer windows for wider rows than the digits'."""
    extra = EXTRA_MS * max(0, features - DIGITS.features)
    return replace(
        params, commit_ms=params.commit_ms + extra, claim_ms=params.claim_ms + 2 * extra, body_ms=params.body_ms + extra // 2,
        session_ms=params.session_ms + extra // 4, audit_ms=params.audit_ms + extra,
    )  # fmt: skip


def fitted(shape: Shape, params: ChainParams) -> ChainParams:
    """Windows and audits for this many validators, never shorter than what was asked for."""
    least = params.min_window_ms(shape.nodes)
    entry = max(params.entry_ms, least)
    commit = max(params.commit_ms, entry + max(least, params.commit_ms - params.entry_ms))
    claim = max(params.claim_ms, commit + max(least, params.claim_ms - params.commit_ms))
    audit = max(params.audit_ms, 2 * -(-shape.nodes // params.audit_slots) * params.session_ms)
    max_pools = max(params.max_pools, shape.pools)
    wide = replace(params, entry_ms=entry, commit_ms=commit, claim_ms=claim, audit_ms=audit, max_pools=max_pools)
    return wide.outlasting_stalls()


def process_names(shape: Shape) -> list[tuple[str, str, str]]:
    """Name, role, pool of each process, in order of start."""
    names = [(f"node{i}", "node", "") for i in range(shape.nodes)]
    names += [(f"pool{i}", "pool", "") for i in range(shape.pools)]
    names += [(f"pool{p}-miner{m}", "miner", f"pool{p}") for m in range(shape.miners) for p in range(shape.pools)]
    return [*names, ("provider0", "provider", ""), ("platform0", "platform", ""), ("requester0", "requester", "")]


def _here(names: Sequence[tuple[str, str]]) -> list[Place]:
    """All of them on this machine, at ports that are free now."""
    ports = iter(free_ports(4 * len(names)))
    return [Place(*(f"{HOST}:{next(ports)}" for _ in range(4))) for _ in names]


_GIVEN: Final = itertools.count()


def free_ports(count: int) -> list[int]:
    """Ports that nobody holds now, outside the range that the system hands out by itself, and others at each call: who was
    given one before may not have bound it yet."""
    ports: list[int] = []
    held: list[socket.socket] = []
    try:
        while len(ports) < count:
            candidate = 20_000 + (os.getpid() * 4_801 + next(_GIVEN)) % 12_000
            probe = socket.socket()
            try:
                probe.bind((HOST, candidate))
            except OSError:
                probe.close()
                continue
            held.append(probe)
            ports.append(candidate)
    finally:
        for probe in held:
            probe.close()
    return ports


def _write_key(path: Path, key: KeyPair) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(key.seed.hex() + "\n")


def _config(layout: Layout, member: Member, index: int) -> str:
    nodes = [m.listen for m in layout.of("node") if m.name != member.name]
    lines = toml_table(
        None,
        {
            "name": member.name, "listen": member.bind or member.listen,
            **({"advertise": member.listen} if member.bind else {}), "admin_listen": member.admin,
            "metrics_listen": member.metrics, "data_dir": "data", "key": "account.key",
        },
    )  # fmt: skip
    sections: dict[str, Mapping[str, object]] = {
        "tls": {"ca": "tls/ca.pem", "cert": "tls/tls.pem", "key": "tls/tls.key"},
        "chain": {"genesis": "../genesis.json"},
        "log": {"level": "info", "format": "console"},
        "peers": {"nodes": nodes},
    }
    data = os.path.relpath(layout.folder / "data", layout.folder / member.name)
    if member.role == "requester":
        sections["peers"] = {"nodes": nodes, "platforms": [m.listen for m in layout.of("platform")]}
        sections["auto"] = {
            "tasks": layout.shape.tasks, "name": layout.subject.name, "test_set": f"{data}/test.npz",
            "practice_set": f"{data}/practice.npz", "hidden": list(layout.subject.hidden),
            "feature_scale_micro": layout.subject.feature_scale_micro, "reward": layout.shape.reward,
        }  # fmt: skip
    elif member.role == "provider":
        sections["data"] = {
            "path": f"{data}/provider.npz", "name": layout.subject.name, "classes": min(256, layout.subject.classes),
            "feature_scale_micro": layout.subject.feature_scale_micro,
        }  # fmt: skip
    elif member.role == "pool":
        lines += toml_table(None, {"fleet_listen": member.fleet_bind or member.fleet, "min_miners": 1})
        lines += toml_table(None, {"fleet_advertise": member.fleet}) if member.fleet_bind else []
        sections["training"] = {"seed": 1 + index, "quorum": 1}
    elif member.role == "miner":
        miners = layout.of("miner")
        lines += toml_table(
            None,
            {
                "pool": layout.member(member.pool).listen, "data": f"{data}/{member.name}.npz",
                "start_delay_ms": MINER_START_MS * (miners.index(member) // layout.shape.pools),
            },
        )  # fmt: skip
    for name, values in sections.items():
        lines += toml_table(name, values)
    return "\n".join(lines) + "\n"


def toml_table(name: str | None, values: Mapping[str, object]) -> list[str]:
    """Lines of a table of a configuration file; without a name those at its top."""
    head = [] if name is None else ["", f"[{name}]"]
    return head + [f"{key} = {_toml(value)}" for key, value in values.items()]


def _toml(value: object) -> str:
    if isinstance(value, list | tuple):
        items: Iterable[object] = value
        return "[" + ", ".join(_toml(item) for item in items) + "]"
    return json.dumps(value)


def _write_manifest(layout: Layout) -> None:
    shape = {name: getattr(layout.shape, name) for name in Shape.__dataclass_fields__}
    members = [
        {name: (getattr(m, name).hex() if name == "account" else getattr(m, name)) for name in Member.__dataclass_fields__}
        for m in layout.members
    ]
    text = json.dumps({"shape": shape, "subject": asdict(layout.subject), "members": members}, indent=1)
    (layout.folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
