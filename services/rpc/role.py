"""What every role does before its own work: read its files, know who it is, open its server, reach the nodes."""

from __future__ import annotations

import argparse
import asyncio
import os
import stat
import sys
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

from core.crypto.signing import SEED_SIZE, KeyPair
from core.errors import ConfigError, DeadlineError, PoflError, UnavailableError, WrongChainError
from core.ids import AccountId
from core.params import MAX_GENESIS, PROTOCOL_VERSION, Genesis
from services.rpc.admin import program_version
from services.rpc.chain_client import ChainClient
from services.rpc.channel import backoff, connect
from services.rpc.handshake import ChainIdentity, LocalIdentity
from services.rpc.limits import CallerLimits
from services.rpc.server import RpcServer
from services.rpc.tls import TlsFiles, expiry_of, identity_of
from services.runtime import config, logging, tracing
from services.runtime.config import CommonConfig
from services.runtime.key_files import MAX_KEY_FILE, is_sealed, open_seed, passphrase
from services.runtime.lifecycle import Lifecycle, end_process, exit_code, run
from services.runtime.metrics import CERTIFICATE_ENDS, Exporter, describe_process
from services.runtime.startup import allow_files, end_with_parent

__all__ = [
    "Role", "RoleConfig", "open_chain", "open_role", "open_server", "read_genesis", "read_key", "role_main", "tls_files",
    "wait_for_chain",
]  # fmt: skip

log = logging.logger(__name__)

FILES_WANTED: Final = 4_096
"""Open files: connections (services.rpc.limits.ConnectionLimits), the store's tables, blobs."""


@dataclass(frozen=True, kw_only=True)
class RoleConfig(CommonConfig):
    """The common sections, and the key of the account that this process acts for."""

    key: Path = config.required("File with the account's Ed25519 seed, 64 hex digits, readable by its owner only.")

    def check(self) -> None:
        super().check()
        self.tls.check()
        self.peers.check()
        if self.chain.genesis is None:
            raise ConfigError("chain.genesis is not set: give the path of the network's genesis file")


C = TypeVar("C", bound=RoleConfig)


@dataclass(frozen=True, slots=True)
class Role(Generic[C]):
    """A process with its files read and checked."""

    cfg: C
    key: KeyPair
    genesis: Genesis
    identity: LocalIdentity
    tls: TlsFiles | None

    @property
    def account(self) -> AccountId:
        return AccountId(self.key.public_key)


def open_role(cfg: C) -> Role[C]:
    """Read key, genesis and certificates, before anything is dialled. Raises ConfigError with the file and what to do."""
    key = read_key(cfg.key)
    genesis = read_genesis(cfg.chain.genesis)
    chain = ChainIdentity(genesis.name, genesis.chain_id, PROTOCOL_VERSION)
    try:
        cfg.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the data folder {cfg.data_dir}: {error.strerror or error}") from None
    files = tls_files(cfg)
    if files is not None:
        _check_certificate(files, cfg, key)
        CERTIFICATE_ENDS.set(expiry_of(files.read()[1]).timestamp())
    describe_process(cfg.ROLE, cfg.name, program_version(), cfg.data_dir)
    return Role(cfg, key, genesis, LocalIdentity(cfg.ROLE, cfg.name, chain, key), files)


async def open_server(
    role: Role[C], life: Lifecycle, rules: Mapping[str, Iterable[str]], *, limits: CallerLimits | None = None
) -> RpcServer:
    """The role's server, not started yet, and its metrics exporter; both stop with the process."""
    server = RpcServer(
        role.cfg.listen, role.tls, role.cfg.admin_listen, role_rules=rules, identity=role.identity, limits=limits
    )
    if role.cfg.metrics_listen:
        life.on_stop(Exporter(role.cfg.metrics_listen).close)
    life.on_stop(server.stop)
    return server


def open_chain(role: Role[C], life: Lifecycle) -> ChainClient:
    """A client over the nodes of ``peers.nodes``; its channels close with the process. Raises ConfigError."""
    if not role.cfg.peers.nodes:
        raise ConfigError("peers.nodes is empty: give the address of at least one node")
    nodes = []
    for target in role.cfg.peers.nodes:
        channel = connect(target, role.tls, expect_role="node", caller=role.identity.caller)
        life.on_stop(lambda channel=channel: channel.close(None))  # type: ignore[misc]
        nodes.append((target, channel))
    return ChainClient(nodes)


async def wait_for_chain(role: Role[C], chain: ChainClient) -> None:
    """Until a node of our chain answers; asks for ever, and says so. Raises WrongChainError if it is another chain."""
    attempt = 0
    while True:
        try:
            found = (await chain.genesis()).chain_id
        except (UnavailableError, DeadlineError) as error:
            delay = backoff(attempt)
            attempt += 1
            log.warning("no node answers, trying again", seconds=round(delay, 1), error=error.message)
            await asyncio.sleep(delay)
            continue
        if found != role.genesis.chain_id:
            raise WrongChainError(
                f"the nodes are on chain {found.hex()}, this process on {role.genesis.chain_id.hex()}: "
                "give both the same genesis file",
                ours=role.genesis.chain_id, theirs=found,
            )  # fmt: skip
        return


def role_main(cls: type[C], main: Callable[[Role[C], Lifecycle], Awaitable[None]], argv: Sequence[str] | None = None) -> int:
    """``python -m <role> --config FILE [--set KEY=VALUE ...] [--print-config]``; the exit code (see runtime.lifecycle).

    With the arguments of the process itself (``argv`` None) a role that ran does not return: the process ends here.
    """
    parser = argparse.ArgumentParser(
        prog=f"pofl-{cls.ROLE}",
        description=f"Runs a PoFL {cls.ROLE} until it is told to stop.",
        epilog=f"Every key can also come from the environment, for example POFL_{cls.ROLE.upper()}_LOG__LEVEL=debug.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file with the configuration")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help="override one key; repeatable"
    )
    parser.add_argument("--print-config", action="store_true", help="print the configuration with all defaults, and end")
    arguments = parser.parse_args(argv)
    end_with_parent(os.environ)
    files = allow_files()
    try:
        cfg = config.load(cls, arguments.config, os.environ, arguments.overrides)
        if arguments.print_config:
            sys.stdout.write(config.dump(cfg))
            return 0
        logging.setup(cls.ROLE, cfg.name, cfg.log)
        if files < FILES_WANTED:
            log.warning("few files may be open: raise the limit (ulimit -n, LimitNOFILE)", files=files, wanted=FILES_WANTED)
        hindered = tracing.setup(cls.ROLE, cfg.name, program_version(), os.environ)
        if hindered:
            log.warning(hindered)
        role = open_role(cfg)
    except PoflError as error:
        sys.stderr.write(f"error: {logging.shown(error)}\n")
        return exit_code(error)

    async def start(life: Lifecycle) -> None:
        if tracing.is_on():
            life.on_stop(lambda: asyncio.to_thread(tracing.close))
        await main(role, life)

    code = run(start)
    if argv is None:
        end_process(code)
    return code


def tls_files(cfg: CommonConfig) -> TlsFiles | None:
    """The three files, or None for plaintext on loopback."""
    tls = cfg.tls
    if tls.ca is None or tls.cert is None or tls.key is None:
        return None
    return TlsFiles(tls.ca, tls.cert, tls.key)


def _check_certificate(files: TlsFiles, cfg: RoleConfig, key: KeyPair) -> None:
    """Peers refuse who is not the one of the certificate: better said here than left to be wondered at."""
    try:
        found = identity_of(files.read()[1])
    except ConfigError as error:
        raise ConfigError(f"{files.cert}: {error.message}") from error
    if (found.role, found.name) != (cfg.ROLE, cfg.name):
        raise ConfigError(
            f"{files.cert} is the certificate of {found.role} {found.name}, this is {cfg.ROLE} {cfg.name}: "
            "correct name or tls.cert"
        )
    if found.account is not None and found.account != key.public_key:
        raise ConfigError(f"{files.cert} is for account {found.account.hex()}, but {cfg.key} is the key of another account")


def read_key(path: Path) -> KeyPair:
    """The key pair of a seed file, or of one that `pofl keys encrypt` sealed, with the passphrase of the environment.

    Raises ConfigError if it is no key, others can read it, or the passphrase is missing or another.
    """
    try:
        mode = path.stat().st_mode
        with path.open("rb") as file:
            data = file.read(MAX_KEY_FILE + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the key {path}: {error.strerror or error}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{path} can be read by others (mode {stat.S_IMODE(mode):04o}): run `chmod 600 {path}`")
    try:
        text = data.decode("ascii")
        if is_sealed(text):
            return open_seed(text, passphrase(os.environ), path)
        seed = bytes.fromhex(text.strip())
    except (UnicodeDecodeError, ValueError):
        seed = b""
    if len(seed) != SEED_SIZE:
        raise ConfigError(f"{path} is no Ed25519 seed: it must be {2 * SEED_SIZE} hex digits")
    return KeyPair.from_seed(seed)


def read_genesis(path: Path | None) -> Genesis:
    """The checked genesis document of a file. Raises ConfigError."""
    if path is None:
        raise ConfigError("chain.genesis is not set: give the path of the network's genesis file")
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_GENESIS + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the genesis file {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"cannot read the genesis file {path}: it is no text") from None
    try:
        return Genesis.from_json(text)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}") from None
