"""``pofl run`` and ``pofl config``: single roles, as other hosts run them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import typer

from core.errors import ConfigError
from services.rpc.tls import TlsFiles, identity_of
from services.runtime.logging import shown
from services.testnet.layout import MODULES

__all__ = ["config_app", "miner_settings", "run_role"]

config_app = typer.Typer(help="Look at a role's configuration.", no_args_is_help=True)

RoleArgument = Annotated[str, typer.Argument(help=f"One of {', '.join(MODULES)}.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key; repeatable.")]

HOME: Final = Path("miner")
GIVEN: Final = {"ca.pem": "tls.ca", "tls.pem": "tls.cert", "tls.key": "tls.key", "genesis.json": "chain.genesis"}
"""Files of a miner's home that only its network can give, and the keys that name them."""


def run_role(
    role: RoleArgument,
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help="TOML file of the role.")] = None,
    pool: Annotated[str | None, typer.Option(metavar="HOST:PORT", help="miner: the pool to join.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DATA", help="miner: own rows: a descriptor, what has one beside it, or an .npz with x and y."),
    ] = None,
    descriptor: Annotated[
        Path | None, typer.Option(metavar="FILE", help="miner: descriptor of --data, where it does not lie beside them.")
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="miner: folder with ca.pem, tls.pem, tls.key, genesis.json and account.key from `pofl testnet invite`, and "
            f"for what the miner stores; default: {HOME}.",
        ),
    ] = None,
    override: SetOption = None,
) -> None:  # fmt: skip
    """Run one role in the foreground until it is told to stop.

    A miner needs no configuration file: who runs its network invites it, and that folder, a pool and data are all.

    Example: pofl run node --config node0/config.toml --set log.level=debug

    Example: pofl run miner --pool 10.0.0.7:20016 --data mnist.toml
    """
    given = {"--pool": pool, "--data": data, "--descriptor": descriptor, "--home": home}
    if role == "miner" and (config is None or any(given.values())):
        try:
            found = miner_settings(pool, data, descriptor, home, config is None, override or (), os.environ)
        except ConfigError as error:
            sys.stderr.write(f"error: {shown(error)}\n")
            raise SystemExit(2) from None
        override = [*found, *(override or ())]
    elif used := [name for name, value in given.items() if value is not None]:
        sys.stderr.write(f"error: {used[0]} is for `pofl run miner`, not for {role}\n")
        raise SystemExit(2)
    _become(role, config, override, [])


@config_app.command("print")
def print_config(
    role: RoleArgument,
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help="TOML file of the role.")] = None,
    override: SetOption = None,
) -> None:
    """Print a role's whole configuration: file, environment, flags and defaults, with what each key means.

    Example: pofl config print miner --config pool0-miner0/config.toml
    """
    _become(role, config, override, ["--print-config"])


def miner_settings(
    pool: str | None, data: Path | None, descriptor: Path | None, home: Path | None, whole: bool,
    override: list[str] | tuple[str, ...], env: Mapping[str, str],
) -> list[str]:  # fmt: skip
    """``key=value`` of a miner, from its home and the flags; ``whole`` if no configuration file says the rest.

    What the environment or ``--set`` say is left to them. Raises ConfigError: one sentence about all that is missing.
    """
    said = {item.partition("=")[0].strip() for item in override}

    def is_said(key: str) -> bool:
        name = key.upper().replace(".", "__")
        return key in said or f"POFL_{name}" in env or f"POFL_MINER_{name}" in env

    flags = {"pool": pool, "data": data, "descriptor": descriptor}
    found = [f"{key}={value}" for key, value in flags.items() if value is not None]
    if not whole:
        return found
    folder = home or HOME
    missing = [f"--{key}" for key in ("pool", "data") if flags[key] is None and not is_said(key)]
    if missing:
        means = {"--pool": "the pool's address, host:port", "--data": "the rows to train on"}
        raise ConfigError("a miner needs " + " and ".join(f"{name} ({means[name]})" for name in missing))
    absent = [name for name, key in GIVEN.items() if not is_said(key) and not (folder / name).is_file()]
    if absent:
        raise ConfigError(
            f"{folder} lacks {', '.join(absent)}: whoever runs the network makes that folder with `pofl testnet invite DIR`; "
            "name it with --home DIR"
        )
    defaults = {key: folder / name for name, key in GIVEN.items()}
    defaults |= {"key": folder / "account.key", "data_dir": folder / "data"}
    certificate = folder / "tls.pem"
    texts = {key: str(value) for key, value in defaults.items()} | {"listen": "127.0.0.1:0"}
    if not is_said("name"):
        texts["name"] = _name_in(certificate)
    if not is_said("key") and not (folder / "account.key").is_file():
        raise ConfigError(f"{folder} lacks account.key: it comes with the invitation, or name another with --set key=FILE")
    return [*found, *(f"{key}={value}" for key, value in texts.items() if not is_said(key))]


def _name_in(certificate: Path) -> str:
    """Whom a certificate was issued for. Raises ConfigError."""
    try:
        who = identity_of(TlsFiles(certificate, certificate, certificate).read()[1])
    except ConfigError as error:
        raise ConfigError(f"{certificate}: {error.message}") from None
    if who.role != "miner":
        raise ConfigError(f"{certificate} is the certificate of a {who.role}, {who.name}: a miner needs one of its own")
    return who.name


def _become(role: str, config: Path | None, override: list[str] | None, extra: list[str]) -> None:
    module = MODULES.get(role)
    if module is None:
        sys.stderr.write(f"error: {role!r} is no role: it must be one of {', '.join(MODULES)}\n")
        raise SystemExit(2)
    arguments = ["--config", str(config)] if config is not None else []
    for item in override or ():
        arguments += ["--set", item]
    # The role's process replaces this one: signals and exit codes are its own, and nothing it needs is imported here.
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments, *extra])  # noqa: S606
