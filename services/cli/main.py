"""``pofl``: one command for everything."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, version

from services.runtime.startup import loading

with loading():
    import click
    import typer

    from core.errors import PoflError
    from services.cli import (
        backup,
        bench,
        bench_manifest,
        chain,
        data,
        debug,
        doctor,
        join,
        keys,
        market,
        models,
        payments,
        pools,
        reproduce,
        run,
        tasks,
        testnet,
        validators,
    )  # fmt: skip
    from services.cli.errors import usage_sentence
    from services.runtime.lifecycle import exit_code
    from services.runtime.logging import shown

__all__ = ["app", "main"]

EPILOG = (
    "Exit codes: 0 done; 1 a defect; 2 wrong input, flags or files; 3 something cannot be reached or is taken; 4 stored data "
    "are damaged; 5 a check failed; 130 stopped by Ctrl-C."
)

app = typer.Typer(
    name="pofl",
    help="Proof of Federated Learning: a blockchain whose proof of work is a trained model.\n\n"
    "Begin with `pofl testnet up --blocks 1`: a network of real processes that mines a block on this machine.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(testnet.app, name="testnet")
app.add_typer(tasks.app, name="task")
app.add_typer(chain.app, name="chain")
app.add_typer(validators.app, name="validator")
app.add_typer(models.app, name="model")
app.add_typer(market.app, name="market")
app.add_typer(data.app, name="data")
app.add_typer(pools.app, name="pool")
app.add_typer(keys.app, name="keys")
app.add_typer(run.config_app, name="config")
bench.app.command("manifest")(bench_manifest.manifest)
app.add_typer(bench.app, name="bench")
app.command("explain")(chain.explain)
app.command("transfer")(payments.transfer)
app.command("run")(run.run_role)
app.command("join")(join.join)
app.command("doctor")(doctor.doctor)
app.command("backup")(backup.backup)
app.command("restore")(backup.restore)
app.add_typer(debug.app, name="debug")
app.command("reproduce")(reproduce.reproduce)


@app.command("version")
def show_version() -> None:
    """The installed release.

    Example: pofl version
    """
    try:
        typer.echo(version("pofl"))
    except PackageNotFoundError:
        typer.echo("not installed")


def main() -> int:
    """Entry point of the ``pofl`` script."""
    try:
        code: object = app(prog_name="pofl", standalone_mode=False)  # what a command that raised Exit ends with
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt):
        return 130
    except click.ClickException as error:
        if message := usage_sentence(error):  # empty where the help of a group was shown instead
            sys.stderr.write(f"error: {message}\n")
        return 2
    except PoflError as error:
        sys.stderr.write(f"error: {shown(error)}\n")
        return exit_code(error)
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
