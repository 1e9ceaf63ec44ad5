"""``pofl bench manifest``: whole networks from manifests (docs/testing.md)."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from core.errors import ConfigError
from services.cli.bench import source_tree
from services.cli.errors import runs
from services.cli.output import MOST_NUMBER, JsonOption, console, emit_json, table

__all__ = ["manifest"]


@runs
async def manifest(
    files: Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="Manifests to run, in turn.")] = None,
    count: Annotated[int, typer.Option(help="Run so many drawn manifests.", min=0, max=10_000)] = 0,
    seed: Annotated[
        int | None, typer.Option(help="Of the drawn ones; drawn itself where left out.", min=0, max=MOST_NUMBER)
    ] = None,
    show: Annotated[bool, typer.Option("--print", help="Print the manifests as they were read or drawn; run nothing.")] = False,
    slack: Annotated[
        float, typer.Option(help="Windows, and the time for all, so many times longer: for a busy machine.", min=0.5, max=20)
    ] = 1.0,
    compose: Annotated[bool, typer.Option("--compose", help="In containers: needs docker and the project's images.")] = False,
    folder: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep logs and data there; must be new or empty.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Run networks from manifests, perturb them as those say, and check what must hold whatever was done.

    All nodes have the same blocks and states, and serve every block; every work block is its task's best true claim; no false
    claim is final; the supply is constant; every reward is paid once; liars are caught. Ends with exit code 1 if one of these
    does not hold; then logs and manifest stay in a folder, and the manifest can be run again.

    Example: pofl bench manifest tests/e2e/manifests/plain.toml

    Example: pofl bench manifest --count 3 --seed 1 --print
    """
    with source_tree():
        from bench.manifest.drive import Outcome, run_manifest
        from bench.manifest.generate import draw
        from bench.manifest.model import to_toml
        from bench.manifest.open import open_backend
        from bench.manifest.reader import CONTAINERS, PROCESSES, read_manifest
    if seed is not None and not count:
        raise ConfigError("--seed is of drawn manifests: say how many with --count")
    abilities = CONTAINERS if compose else PROCESSES
    chosen = secrets.randbits(32) if seed is None else seed
    # All of them are read before the first one runs.
    manifests = [read_manifest(path, abilities) for path in files or ()]
    manifests += [draw(chosen, number, abilities) for number in range(count)]
    if not manifests:
        raise ConfigError("no manifest is named: give files, or --count N for drawn ones")
    if slack != 1.0:
        if compose:
            raise ConfigError("--slack makes other windows, and containers have the default ones: leave it out")
        manifests = [each.slower(slack) for each in manifests]
    if show:
        typer.echo("\n".join(f"# {each.name}.toml\n{to_toml(each)}" for each in manifests), nl=False)
        return
    if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--folder: {folder} is not an empty folder")
    home = Path(tempfile.mkdtemp(prefix="pofl-manifest-")) if folder is None else folder
    home.mkdir(parents=True, exist_ok=True)
    found: list[Outcome] = []
    for number, each in enumerate(manifests, start=1):
        place = home / f"{number}-{each.name}"
        place.mkdir()
        file = place / f"{each.name}.toml"
        file.write_text(to_toml(each), encoding="utf-8")
        typer.echo(f"{each.name} ({number} of {len(manifests)}), seed {each.seed}: {file}", err=True)
        async with open_backend(each, place / "net", compose) as backend:
            outcome = await run_manifest(each, backend, lambda line: typer.echo(f"  {line}", err=True))
        found.append(outcome)
        if folder is None and not outcome.problems:
            shutil.rmtree(place)
    if folder is None:
        with contextlib.suppress(OSError):
            home.rmdir()
    if as_json:
        emit_json([outcome.as_json() for outcome in found])
    else:
        rows = [(o.manifest, o.height, o.work_blocks, o.void_tasks, f"{o.seconds:.0f}", len(o.problems)) for o in found]
        columns = ["manifest", "blocks", "work", "void tasks", "seconds", "problems"]
        failed = sum(bool(o.problems) for o in found)
        console.print(table(f"{failed} of {len(found)} failed", columns, rows, right=[1, 2, 3, 4, 5]))
        for outcome in found:
            for problem in outcome.problems:
                console.print(f"{outcome.manifest}: {problem}", markup=False, highlight=False)
            if outcome.problems or folder is not None:
                where = Path(outcome.folder).parent
                console.print(f"{outcome.manifest}: logs and manifest are in {where}", markup=False, highlight=False)
    if any(outcome.problems for outcome in found):
        raise typer.Exit(1)
