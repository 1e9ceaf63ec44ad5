"""``pofl keys rotate-cert`` and ``pofl keys issue-user``: certificates from the network's authority."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from core.errors import ConfigError
from services.cli.errors import runs
from services.cli.output import JsonOption, console, emit_json
from services.cli.process_files import process_table
from services.rpc import tls
from services.rpc.scopes import Scope
from services.runtime.durable import write_private

__all__ = ["register"]

AuthorityOption = Annotated[
    Path,
    typer.Option("--authority", metavar="DIR", help="Folder with ca.pem and ca.key: `ca` of a testnet or of net/operator."),
]


def register(app: typer.Typer) -> None:
    app.command("rotate-cert")(rotate_cert)
    app.command("issue-user")(issue_user)


@runs
async def rotate_cert(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a process: config.toml and what it names.")],
    authority: AuthorityOption,
    as_json: JsonOption = False,
) -> None:
    """Give a process a new certificate and private key, for the same role, name, account and addresses.

    A running server takes them for its next connection, without a restart; connections that are open stay. What the process
    dials itself shows the new certificate from its next start on; the old one stays valid until it ends.

    Example: pofl keys rotate-cert net/node0 --authority net/ca
    """
    files = _files(folder)
    old = files.read()[1]
    who = tls.identity_of(old)
    issuer = tls.load_authority(authority)
    if issuer.pem != files.ca.read_bytes():
        raise ConfigError(f"{authority} is not the authority of {files.cert}: the others would refuse what it issues")
    issued = tls.issue(issuer, who.role, who.name, tls.hosts_of(old), who.account, who.scopes)
    try:
        # Between the two a server finds that they do not belong together, and keeps what it has.
        write_private(files.key, issued.key)
        write_private(files.cert, issued.certificate)
    except OSError as error:
        raise ConfigError(f"cannot write {files.cert}: {error.strerror or error}") from None
    ends = tls.expiry_of(issued.certificate)
    if as_json:
        emit_json({"certificate": files.cert, "role": who.role, "name": who.name, "ends": ends.isoformat()})
    else:
        console.print(f"{files.cert}: {who.role} {who.name}, until {ends:%Y-%m-%d}", highlight=False)


@runs
async def issue_user(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; must be missing or empty.")],
    authority: AuthorityOption,
    name: Annotated[str, typer.Option(help="Name of the user: lower-case letters, digits, hyphens.")] = "guest",
    scope: Annotated[
        list[Scope] | None, typer.Option("--scope", help="What it may do; repeatable. Default: read.")
    ] = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Make a user's certificate that allows some of: read, submit transactions, operate a process.

    Example: pofl keys issue-user dashboards --authority net/ca --scope read
    """
    scopes = frozenset(each.value for each in scope or [Scope.READ])
    # First: what goes wrong leaves no folder behind.
    issued = tls.issue(tls.load_authority(authority), "user", name, [], None, scopes)
    try:
        if out.exists() and any(out.iterdir()):
            raise ConfigError(f"{out} is not empty: choose another folder, or remove it")
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        issued.write(out)
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror or error}") from None
    if as_json:
        emit_json({"folder": out, "name": name, "scopes": sorted(scopes)})
    else:
        console.print(f"{out}: user {name} may {', '.join(sorted(scopes))}", highlight=False)


def _files(folder: Path) -> tls.TlsFiles:
    path, table = folder / "config.toml", process_table(folder).get("tls", {})
    missing = [name for name in ("ca", "cert", "key") if name not in table]
    if missing:
        raise ConfigError(f"{path} does not set tls.{missing[0]}")
    return tls.TlsFiles(*((folder / str(table[name])).resolve() for name in ("ca", "cert", "key")))
