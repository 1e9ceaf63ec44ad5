"""How a command reaches a network: a testnet's folder, or addresses and certificates."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from grpc import aio

from core.errors import ConfigError, DeadlineError, UnavailableError, WrongChainError
from core.ids import AccountId, Digest, short
from core.params import Genesis
from services.cli import pid_file
from services.rpc.chain_client import ChainClient
from services.rpc.channel import connect
from services.rpc.role import read_genesis
from services.rpc.server import is_loopback
from services.rpc.tls import TlsFiles
from services.runtime.address import host_and_port
from services.testnet.layout import Layout, load_layout
from services.testnet.plan import load_settings

__all__ = ["Connection", "GenesisOption", "NetOption", "NodeOption", "TlsOption", "elsewhere", "network"]

NetOption = Annotated[
    Path | None,
    typer.Option("--net", envvar="POFL_NET", metavar="DIR", help="Folder of a testnet; default: the newest one here."),
]
NodeOption = Annotated[
    list[str] | None, typer.Option("--node", metavar="HOST:PORT", help="A node to ask, instead of a testnet's; repeatable.")
]
TlsOption = Annotated[
    Path | None, typer.Option("--tls", metavar="DIR", help="Folder with ca.pem, tls.pem, tls.key of a user certificate.")
]
GenesisOption = Annotated[
    Path | None,
    typer.Option(
        "--genesis", metavar="FILE", help="The chain's genesis document, from a source of your own; default: that of --net."
    ),
]

TESTNETS = Path("testnet-data")
LEAST_DIGITS: Final = 4
SHOWN_NAMES: Final = 6


@dataclass(frozen=True, slots=True)
class Connection:
    """A way into a network, for one command."""

    chain: ChainClient
    layout: Layout | None
    tls: TlsFiles | None
    stack: AsyncExitStack
    nodes: tuple[str, ...] = ()
    """Addresses of the nodes that are known."""
    known: Genesis | None = None
    """The genesis document that the user has. None: which chain this is rests on the word of a node."""

    def channel(self, target: str, role: str) -> aio.Channel:
        """A channel to a process of ``role``; closed with the command."""
        channel = connect(target, self.tls, expect_role=role)
        self.stack.push_async_callback(channel.close, None)
        return channel

    def address(self, role: str, given: str | None) -> str:
        """``given``, or the first process of the role in the testnet. Raises ConfigError."""
        if given:
            return given
        members = self.layout.of(role) if self.layout is not None else ()
        if not members:
            raise ConfigError(f"no {role} is known: give its address with --{role} HOST:PORT, or a testnet with --net DIR")
        return members[0].listen

    async def genesis(self) -> Genesis:
        """The user's own genesis document, else the testnet's, else what a node says it is."""
        if self.known is not None:
            return self.known
        return self.layout.genesis if self.layout is not None else await self.chain.genesis()

    async def genesis_id(self) -> Digest:
        return (await self.genesis()).chain_id

    async def origin(self, is_trusted: bool = False) -> str:
        """Which chain was checked, in words; ``is_trusted``: from a block that the user knows."""
        said = f"chain {_chain(await self.genesis())}"
        if self.known is not None or is_trusted:
            return said
        return f"{said}: that it is this one is the node's word, for want of --genesis FILE, --net DIR or --trusted-hash"

    async def account(self, text: str) -> AccountId:
        """64 hex digits; or a name, or first digits, of an account of the genesis document. Raises ConfigError."""
        try:
            key = bytes.fromhex(text)
        except ValueError:
            key = b""
        if len(key) == 32:
            return AccountId(key)
        genesis = await self.genesis()
        names = {bytes(v.node_id): v.name for v in genesis.validators} | {bytes(a.account): a.name for a in genesis.accounts}
        found = [account for account, name in names.items() if name == text]
        if not found and len(text) >= LEAST_DIGITS:
            found = [account for account in names if account.hex().startswith(text.lower())]
        if len(found) == 1:
            return AccountId(found[0])
        known = ", ".join(sorted(name for name in names.values() if name)[:SHOWN_NAMES])
        if found:
            raise ConfigError(f"{text!r} is the beginning of {len(found)} accounts: give more digits")
        raise ConfigError(
            f"{text!r} is no account: give its 64 hex digits, or of an account in the genesis document the name ({known}, ...) "
            f"or at least {LEAST_DIGITS} first digits"
        )

    def name_of(self, account: bytes) -> str:
        return self.layout.name_of(account) if self.layout is not None else account.hex()[:8]


def elsewhere(folder: Path) -> str:
    """What to do about processes that do not answer, of a folder that only lists them."""
    return (
        f"the processes of {folder} run elsewhere, by `pofl join` or `docker compose up`: see that they are up; from outside "
        f"their containers name an address, as --node 127.0.0.1:7100 --tls {folder}/user/tls"
    )


@asynccontextmanager
async def network(
    net: Path | None, node: list[str] | None, tls: Path | None, genesis: Path | None = None
) -> AsyncIterator[Connection]:
    """A connection for one command; where the user has the genesis document, all nodes that answer are of its chain.

    Raises ConfigError when it is not clear to which network, or how to reach it, WrongChainError.
    """
    layout: Layout | None = None
    known: Genesis | None = None
    if not node:
        layout = load_layout(net or newest_testnet())
        known = layout.genesis
    elif net is not None:
        # Who names a testnet beside other nodes expects its chain there.
        known = load_layout(net).genesis
    if genesis is not None:
        given = read_genesis(genesis)
        if known is not None and given.chain_id != known.chain_id:
            raise WrongChainError(f"--genesis {genesis} is of chain {_chain(given)}, --net is of chain {_chain(known)}")
        known = given
    for target in node or ():
        _check_address(target, tls)
    files = TlsFiles(tls / "ca.pem", tls / "tls.pem", tls / "tls.key") if tls is not None else None
    if files is None and layout is not None:
        files = layout.user_tls
    targets = list(node or []) or [m.listen for m in layout.of("node")] if layout is not None else list(node or [])
    async with AsyncExitStack() as stack:
        nodes = []
        for target in targets:
            channel = connect(target, files, expect_role="node" if files is not None else None)
            stack.push_async_callback(channel.close, None)
            nodes.append((target, channel))
        try:
            if known is not None and node:
                await _check_chain(nodes, known)
            yield Connection(ChainClient(nodes), layout, files, stack, tuple(targets), known)
        except UnavailableError as error:
            if layout is None and files is None:
                raise UnavailableError(f"{error.message}; a node that speaks TLS takes no call without --tls DIR") from None
            if layout is None or pid_file.running(layout) is not None:
                raise
            if not layout.has_processes and load_settings(layout.folder) is None:
                raise UnavailableError(f"{error.message}; {elsewhere(layout.folder)}") from None
            if not all(is_loopback(target) for target in targets):  # containers', or other hosts': not ours to start
                how = f"from outside its containers name an address, as --node 127.0.0.1:7100 --tls {layout.folder}/user/tls"
                raise UnavailableError(
                    f"no node of {layout.folder} answers: see that it is up; {how} ({error.message})"
                ) from None
            again = f"start it with `pofl testnet up --dir {layout.folder}`, or name another one with --net DIR"
            raise UnavailableError(f"no testnet runs from {layout.folder}: {again} ({error.message})") from None


async def _check_chain(nodes: list[tuple[str, aio.Channel]], known: Genesis) -> None:
    """Raises WrongChainError for a node of another chain; those that do not answer are left to the call that needs them."""
    for target, channel in nodes:
        try:
            found = await ChainClient([(target, channel)]).genesis()
        except (UnavailableError, DeadlineError):
            continue
        if found.chain_id != known.chain_id:
            raise WrongChainError(f"{target} is of chain {_chain(found)}, the genesis document of chain {_chain(known)}")


def _chain(genesis: Genesis) -> str:
    return f"{genesis.name} {short(genesis.chain_id)}"


def _check_address(target: str, tls: Path | None) -> None:
    """Raises ConfigError."""
    host_and_port(target, "--node")
    if tls is None and not is_loopback(target):
        raise ConfigError(
            f"--node {target} is another machine: give --tls DIR with ca.pem, tls.pem, tls.key of a user certificate"
        )


def newest_testnet() -> Path:
    """The testnet in the working directory that was made last. Raises ConfigError if there is none."""
    found = [path.parent for path in TESTNETS.glob("*/testnet.json")]
    if not found:
        raise ConfigError("no testnet here: make one with `pofl testnet up`, or name one with --net DIR, or a node with --node")
    return max(found, key=lambda path: path.stat().st_mtime)
