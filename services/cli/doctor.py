"""``pofl doctor``: why a process does not come up, or is alone, and what to do.

It asks what the process itself would: the same files, the same addresses, with the process's own certificate. It changes
nothing; the stores of a process that does not run are opened for a moment.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Final

import typer

from core.errors import ConfigError, InputError, PoflError
from services.cli.doctor_files import Subject, own_files, subject_of
from services.cli.doctor_peers import clock, own_port, peers
from services.cli.errors import runs
from services.cli.findings import Finding
from services.cli.output import JsonOption, console, emit_json
from services.runtime.logging import printable
from services.testnet.bundles import BUNDLE, read_bundle
from services.testnet.layout import load_layout

__all__ = ["doctor"]

FAILED: Final = 5
MARKS: Final = {"ok": "ok   ", "note": "note ", "bad": "WRONG"}


@runs
async def doctor(
    target: Annotated[
        Path, typer.Argument(metavar="TARGET", help="A bundle, a testnet's folder, or the configuration file of one process.")
    ],
    seconds: Annotated[
        float,
        typer.Option("--clock-seconds", min=0, help="How long to wait for a block to compare the clock with; 0: not at all."),
    ] = 15.0,
    as_json: JsonOption = False,
) -> None:
    """Look for what keeps a process from working: ports, certificates, addresses, genesis, release, clock, stored data.

    Run it on the host of the process, whether that runs or not. Exit code 5 if something is wrong.

    Example: pofl doctor alpha

    Example: pofl doctor net/node0/config.toml
    """
    findings: list[Finding] = []
    subjects = []
    for path in configurations(target):
        try:
            subject = await subject_of(path)
        except PoflError as error:
            findings.append(Finding("bad", path.parent.name, "configuration", error.message, "correct the file"))
            continue
        subjects.append(subject)
        findings += await examine(subject)
    for subject in subjects[:1]:
        if seconds and subject.peers:
            findings += await clock(subject, seconds)
    _tell(findings, as_json)
    if any(finding.level == "bad" for finding in findings):
        raise SystemExit(FAILED)


def configurations(target: Path) -> list[Path]:
    """The configuration files that a target means. Raises ConfigError."""
    if target.is_file():
        return [target]
    if (target / BUNDLE).is_file():
        return [spec.config for spec in read_bundle(target).specs()]
    if (target / "config.toml").is_file():
        return [target / "config.toml"]
    try:
        found = [target / member.name / "config.toml" for member in load_layout(target).members]
    except ConfigError:
        found = []
    if not any(path.is_file() for path in found):
        raise ConfigError(f"{target} is neither a bundle, nor a testnet's folder, nor a configuration file")
    return found


async def examine(subject: Subject) -> list[Finding]:
    """Everything about one process but its clock."""
    found = await asyncio.to_thread(own_files, subject)
    try:
        return [*found, *await own_port(subject), *await peers(subject)]
    except InputError as error:  # of a file that was found wrong above
        return [*found, Finding("note", subject.name, "peers", f"not asked: {error.message}")]


def _tell(findings: list[Finding], as_json: bool) -> None:
    if as_json:
        emit_json(findings)
        return
    for finding in findings:
        # Some of it is what a peer said.
        told = printable(f"{MARKS[finding.level]} {finding.process}: {finding.check}: {finding.text}")
        console.print(told, highlight=False, markup=False)
        if finding.advice:
            console.print(f"      -> {printable(finding.advice)}", highlight=False, markup=False)
    wrong = sum(finding.level == "bad" for finding in findings)
    console.print(f"{wrong} wrong of {len(findings)} findings" if wrong else "nothing is wrong", highlight=False)
