"""`pofl doctor`, what lies on this host: configuration, certificate, key, genesis, and what is stored."""

from __future__ import annotations

import asyncio
import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
from cryptography import x509
from pofl.admin.v1 import admin_pb2

from core.crypto.signing import KeyPair
from core.errors import ConfigError, CorruptError, DeadlineError, LockedError, PoflError, WrongChainError
from core.params import Genesis
from services.cli.findings import Finding
from services.rpc.role import read_genesis, read_key
from services.rpc.server import is_loopback
from services.rpc.tls import TlsFiles, channel_credentials, identity_of
from services.runtime.config import WILDCARDS
from services.runtime.probe import HealthUnknownError, serving
from services.storage import LevelDb
from services.testnet.layout import MODULES

__all__ = ["Subject", "own_files", "subject_of"]

CONFIG_TIMEOUT: Final = 60.0
STATUS_TIMEOUT: Final = 2.0
STATUS: Final = "/pofl.admin.v1.AdminService/Status"
TELLS: Final = ("pool", "requester", "provider")
"""Roles that tell others their address by the chain."""
DIALLED: Final = {"nodes": "node", "platforms": "platform", "requesters": "requester", "providers": "provider", "pools": "pool"}


@dataclass(frozen=True, slots=True)
class Subject:
    """One process, as its configuration has it."""

    role: str
    config: Path
    values: Mapping[str, Any]
    """Every key, as the role itself reads it; paths are absolute."""

    @property
    def name(self) -> str:
        return str(self.values["name"])

    @property
    def tls(self) -> TlsFiles | None:
        given = self.values["tls"]
        return TlsFiles(*(Path(given[key]) for key in ("ca", "cert", "key"))) if "cert" in given else None

    @property
    def genesis(self) -> Genesis:
        """Raises ConfigError, MalformedError."""
        return read_genesis(Path(self.values["chain"]["genesis"]))

    @property
    def key(self) -> KeyPair:
        """Raises ConfigError."""
        return read_key(Path(self.values["key"]))

    @property
    def address(self) -> str:
        """Where others are told to reach it."""
        return str(self.values["advertise"] or self.values["listen"])

    @property
    def peers(self) -> tuple[tuple[str, str], ...]:
        """(address, role) of all that it dials."""
        found = [(str(a), role) for key, role in DIALLED.items() for a in self.values["peers"].get(key, ())]
        return tuple(dict.fromkeys([*found, *([(str(self.values["pool"]), "pool")] if self.role == "miner" else [])]))

    def is_running(self) -> bool:
        """Whether this process answers at its operator's port, and not another one that has the same port."""
        address = str(self.values["admin_listen"])
        try:
            serving(address, STATUS_TIMEOUT)
        except HealthUnknownError:
            return False
        with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            ask = channel.unary_unary(  # the generated stub is typed for asyncio
                STATUS, admin_pb2.StatusRequest.SerializeToString, admin_pb2.StatusResponse.FromString
            )
            try:
                found = ask(admin_pb2.StatusRequest(), timeout=STATUS_TIMEOUT)
            except grpc.RpcError:
                return True  # too busy to say who it is
        return (found.role, found.name) == (self.role, self.name)

    @property
    def ports(self) -> tuple[tuple[str, str], ...]:
        """(key, address) of all that it listens on, its main port first; what a role has not is left out."""
        keys = ("listen", "admin_listen", "metrics_listen", "fleet_listen")
        return tuple((key, str(self.values[key])) for key in keys if self.values.get(key))


async def subject_of(path: Path) -> Subject:
    """The process of a configuration file; the role's own program reads it. Raises ConfigError with what that says."""
    role = _role_of(path)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", MODULES[role], "--config", str(path), "--print-config",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        async with asyncio.timeout(CONFIG_TIMEOUT):
            out, errors = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise DeadlineError(f"the {role}'s program did not read {path} within {CONFIG_TIMEOUT:g} s") from None
    if process.returncode:
        raise ConfigError(errors.decode(errors="replace").strip().removeprefix("error: "))
    return Subject(role, path, tomllib.loads(out.decode("utf-8")))


def _role_of(path: Path) -> str:
    """By the certificate that the file names. Raises ConfigError."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    given = table.get("tls")
    named = given.get("cert") if isinstance(given, dict) else None
    if not isinstance(named, str):
        raise ConfigError(f"{path} names no certificate (tls.cert): whose it is cannot be told")
    certificate = path.parent / named
    role = identity_of(TlsFiles(certificate, certificate, certificate).read()[1]).role
    if role not in MODULES:
        raise ConfigError(f"{certificate} is the certificate of a {role}: no process of a network has that role")
    return role


def own_files(subject: Subject) -> list[Finding]:
    """Certificate, key, genesis, addresses, stored data."""
    return [*_certificate(subject), *_genesis(subject), *_addresses(subject), *_stored(subject)]


def _certificate(subject: Subject) -> list[Finding]:
    files, name = subject.tls, subject.name
    if files is None:
        return [Finding("note", name, "certificate", "none: plaintext on loopback")]
    try:
        channel_credentials(files)
        who = identity_of(files.read()[1])
        account = subject.key.public_key
    except PoflError as error:
        advice = "is this host's clock right?" if "is valid from" in error.message else "fetch this host's bundle again"
        return [Finding("bad", name, "certificate", error.message, advice)]
    if (who.role, who.name) != (subject.role, name):
        text = f"{files.cert} is of {who.role} {who.name}, this is {subject.role} {name}"
        return [Finding("bad", name, "certificate", text, "correct `name` or tls.cert")]
    if who.account != account:
        text = f"{files.cert} is for another account than the key {subject.values['key']}"
        return [Finding("bad", name, "certificate", text, "fetch this host's bundle again: the two belong together")]
    return [Finding("ok", name, "certificate", f"{who.role} {who.name}, account {account.hex()[:8]}")]


def _genesis(subject: Subject) -> list[Finding]:
    try:
        genesis = subject.genesis
    except PoflError as error:
        return [Finding("bad", subject.name, "genesis", error.message, "copy the network's genesis.json to here")]
    return [Finding("ok", subject.name, "genesis", f"{genesis.name}, chain {genesis.chain_id.hex()[:16]}")]


def _addresses(subject: Subject) -> list[Finding]:
    found = []
    told = [("advertise", subject.address)] if subject.role in TELLS or subject.values["advertise"] else []
    if subject.role == "pool":
        told.append(("fleet_advertise", str(subject.values["fleet_advertise"] or subject.values["fleet_listen"])))
    remote = any(not is_loopback(address) for address, _ in subject.peers)
    for key, address in told:
        host = address.rpartition(":")[0]
        if host in WILDCARDS or host.strip("[]") in WILDCARDS:
            text = f"others would be told to dial {address}, which is nobody's address"
            found.append(Finding("bad", subject.name, "address", text, f"set {key} to this host's name or address"))
        elif is_loopback(address) and remote:
            text = f"{address} means the dialling host itself, and some peers are on other hosts"
            found.append(Finding("bad", subject.name, "address", text, f"set {key} to this host's name or address"))
        elif key == "fleet_advertise" and (names := _names(subject)) and host.strip("[]") not in names:
            text = f"miners dial {address}, the certificate names {', '.join(names)}"
            found.append(
                Finding("bad", subject.name, "address", text, f"set {key} to one of these, or issue another certificate")
            )
    return found or [Finding("ok", subject.name, "address", subject.address)]


def _names(subject: Subject) -> list[str]:
    """What clients that check addresses find in the certificate; empty where it cannot be read."""
    if subject.tls is None:
        return []
    try:
        certificate = x509.load_pem_x509_certificate(subject.tls.read()[1])
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (PoflError, ValueError, x509.ExtensionNotFound):
        return []
    known = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    return [known_name for known_name in known if not known_name.endswith(".pofl.internal")]


def _stored(subject: Subject) -> list[Finding]:
    folder = Path(subject.values["data_dir"])
    if not folder.exists():
        return [Finding("ok", subject.name, "data", f"{folder} is made at the first start")]
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return [
            Finding("bad", subject.name, "data", f"{folder} cannot be written by this user", f"chown it to user {os.getuid()}")
        ]
    if subject.is_running():
        return [Finding("ok", subject.name, "data", f"{folder} is in use: the process runs")]
    stores = sorted(path.parent for path in folder.glob("*/LOCK"))
    found = [_store(subject, store) for store in stores]
    return found or [Finding("ok", subject.name, "data", f"nothing is stored in {folder} yet")]


def _store(subject: Subject, folder: Path) -> Finding:
    try:
        store = LevelDb(folder, None)
        store.close()
        genesis, account = subject.genesis, subject.key.public_key
        if store.meta.genesis_hash != genesis.chain_id:
            raise WrongChainError(
                f"{folder} is of chain {store.meta.genesis_hash.hex()[:16]}, not of {genesis.chain_id.hex()[:16]}"
            )
        if store.meta.node != account:
            raise WrongChainError(f"{folder} is of account {store.meta.node.hex()[:16]}, not of {account.hex()[:16]}")
    except LockedError as error:
        return Finding("note", subject.name, "data", error.message, "another process has it: does this one run twice?")
    except WrongChainError as error:
        return Finding(
            "bad", subject.name, "data", error.message, "set data_dir to another folder, or use the files it was made with"
        )
    except CorruptError as error:
        advice = "docs/operations.md, Healing: `pofl chain reindex`" if subject.role == "node" else "restore it from a backup"
        return Finding("bad", subject.name, "data", error.message, advice)
    except PoflError as error:
        return Finding("bad", subject.name, "data", error.message, "look at the folder's owner and the disk")
    return Finding("ok", subject.name, "data", f"{folder.name} opens, and is of this chain and account")
