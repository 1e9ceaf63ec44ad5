"""``pofl run`` and ``pofl config``: single roles, as other hosts run them."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from services.testnet.layout import MODULES

__all__ = ["config_app", "run_role"]

config_app = typer.Typer(help="Look at a role's configuration.", no_args_is_help=True)

RoleArgument = Annotated[str, typer.Argument(help=f"One of {', '.join(MODULES)}.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key; repeatable.")]


def run_role(
    role: RoleArgument,
    config: Annotated[Path | None, typer.Option("--config", metavar="FILE", help="TOML file of the role.")] = None,
    override: SetOption = None,
) -> None:
    """Run one role in the foreground until it is told to stop.

    Example: pofl run node --config node0/config.toml --set log.level=debug
    """
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
