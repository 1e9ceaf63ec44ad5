"""Are the dependencies pinned, and does anybody know of a hole in them? `make audit`.

Two questions. The first needs no network: everything that `pyproject.toml` asks for, and everything that that asks for in
turn, has one exact version in `constraints.txt`, and what is installed here has that version. The second is asked of a public
database through pip-audit, which is put into a folder of its own for it. Where the database, or pip-audit itself, cannot be
had, one sentence says so, and the answer is "not known": exit code 0, or 3 with ``--require``. So it is with packages that the
database was not asked about: they are named.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

__all__ = ["Hole", "Skipped", "main", "pinned", "read_answer", "unpinned", "wrong_versions"]

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 600
Hole = tuple[str, str, str, str]
"""Package, version, number of the report, the versions that mend it."""
Skipped = tuple[str, str]
"""A package that pip-audit did not look at, and why."""


def pinned(text: str) -> dict[str, str]:
    """Name and version of each line of a constraints file. Raises ValueError for a line that pins nothing."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        line = line.partition("#")[0].strip()
        if not line:
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9._+!-]+)", line)
        if match is None:
            raise ValueError(f"{line!r} is no exact version: write name==version")
        name = canonicalize_name(match[1])
        if name in found:
            raise ValueError(f"{name} is pinned twice")
        found[name] = match[2]
    return found


def unpinned(project: Mapping[str, object], pins: Mapping[str, str]) -> list[str]:
    """What is asked for, directly or by what is installed here, and has no line."""
    return [f"{name}, wanted by {by}" for name, by in sorted(_wanted(project).items()) if name not in pins]


def wrong_versions(project: Mapping[str, object], pins: Mapping[str, str]) -> list[str]:
    """What is installed here in another version than its line's. A build number behind ``+`` may differ."""
    found = []
    for name in sorted(_wanted(project)):
        try:
            here = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue  # of an extra that is not installed
        if name in pins and here.partition("+")[0] != pins[name].partition("+")[0]:
            found.append(f"{name} {here} is installed, constraints.txt says {pins[name]}")
    return found


def _wanted(project: Mapping[str, object]) -> dict[str, str]:
    """Every package, and who wants it."""
    table = project["project"]
    assert isinstance(table, dict)
    first = [*table["dependencies"], *(each for extra in table["optional-dependencies"].values() for each in extra)]
    found: dict[str, str] = {}
    waiting: list[tuple[Requirement, str]] = [(Requirement(each), "pyproject.toml") for each in first]
    done: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement, by = waiting.pop()
        name = canonicalize_name(requirement.name)
        found.setdefault(name, by)
        key = (name, frozenset(requirement.extras))
        if key not in done:
            done.add(key)
            waiting += [(each, name) for each in _asked_by(name, requirement.extras)]
    return found


def _asked_by(name: str, extras: Iterable[str]) -> Iterator[Requirement]:
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return
    environments = [{"extra": extra} for extra in ("", *extras)]
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is None or any(requirement.marker.evaluate(each) for each in environments):
            yield requirement


def read_answer(text: str, pins: Mapping[str, str]) -> tuple[list[Hole], list[Skipped]]:
    """The holes that pip-audit tells of, and which of ``pins`` it did not look at: by its own words, or by saying nothing.
    Raises ValueError, KeyError or TypeError for what is no answer of it."""
    holes: list[Hole] = []
    skipped: dict[str, str] = dict.fromkeys(pins, "pip-audit says nothing of it")
    for each in json.loads(text)["dependencies"]:
        name = canonicalize_name(each["name"])
        if "skip_reason" in each:
            skipped[name] = str(each["skip_reason"])
            continue
        holes += [(name, each["version"], h["id"], ", ".join(h["fix_versions"]) or "none") for h in each["vulns"]]
        skipped.pop(name, None)
    return holes, sorted(skipped.items())


def _pip_audit(constraints: Path, folder: Path, pins: Mapping[str, str]) -> tuple[tuple[list[Hole], list[Skipped]] | None, str]:
    """The known holes and what was not looked at, or None and why they could not be had."""
    venv.create(folder, with_pip=True)
    install = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "pip-audit"]
    ran = _run(install)
    if ran is None or ran.returncode:
        return None, f"pip-audit could not be installed ({_last(ran)})"
    ran = _run([
        folder / "bin/pip-audit", "--requirement", constraints, "--no-deps", "--disable-pip", "--format", "json",
        "--progress-spinner", "off", "--timeout", "15", "--vulnerability-service", "osv",
    ])  # fmt: skip
    if ran is None:
        return None, f"pip-audit had no answer within {SECONDS} s"
    try:
        return read_answer(ran.stdout, pins), ""
    except (ValueError, KeyError, TypeError):
        return None, f"the database of known holes cannot be reached ({_last(ran)})"


def _run(command: Sequence[object]) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return None


def _last(ran: subprocess.CompletedProcess[str] | None) -> str:
    lines = [] if ran is None else [line for line in ran.stderr.splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else "no answer"


def main(argv: Sequence[str] | None = None) -> int:
    """0: nothing wrong is known; 1: something is; 3: the database had no answer, or not about all of them, and
    ``--require`` was said."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pins-only", action="store_true", help="ask no database")
    parser.add_argument("--require", action="store_true", help="fail where the database has no answer")
    parser.add_argument("--ignore", action="append", default=[], metavar="NUMBER", help="a report dealt with; repeatable")
    arguments = parser.parse_args(argv)
    constraints = ROOT / "constraints.txt"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    pins = pinned(constraints.read_text(encoding="utf-8"))
    problems = [f"not in constraints.txt: {each}" for each in unpinned(project, pins)] + wrong_versions(project, pins)
    for problem in problems:
        print(problem)  # noqa: T201 - a tool
    if not problems:
        print(f"{len(pins)} dependencies are pinned to exact versions")  # noqa: T201
    if arguments.pins_only:
        return int(bool(problems))
    with tempfile.TemporaryDirectory(prefix="pofl-audit-") as folder:
        answer, why = _pip_audit(constraints, Path(folder), pins)
    if answer is None:
        print(f"whether they have known holes is not known: {why}")  # noqa: T201
        return 1 if problems else 3 * int(arguments.require)
    holes, skipped = [hole for hole in answer[0] if hole[2] not in arguments.ignore], answer[1]
    for name, version, number, mended in holes:
        print(f"{name} {version}: {number}, mended in {mended}")  # noqa: T201
    for name, why in skipped:
        print(f"{name} was not looked at: {why}")  # noqa: T201
    if not holes:
        which = f"the {len(pins) - len(skipped)} that were looked at" if skipped else "them"
        print(f"no hole in any of {which} is known")  # noqa: T201
    if problems or holes:
        return 1
    return 3 if skipped and arguments.require else 0


if __name__ == "__main__":
    sys.exit(main())
