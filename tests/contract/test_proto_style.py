"""The contracts: versioned packages, and a comment on every rpc that says who calls it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROTO = Path(__file__).resolve().parents[2] / "proto"
CONTRACTS = sorted(PROTO.rglob("*.proto"))
CALLERS = (
    "Anyone", "A node", "A pool", "A miner", "A member", "A requester", "A validator", "Its owner", "The operator",
    "The roles", "Roles that", "The same",
)  # fmt: skip


def rpcs(path: Path) -> list[tuple[str, str]]:
    """Name and comment of each rpc."""
    found = []
    comment: list[str] = []
    for line in path.read_text().splitlines():
        stripped = line.strip()
        if stripped.startswith("//"):
            comment.append(stripped.removeprefix("//").strip())
            continue
        if match := re.match(r"rpc (\w+)\(", stripped):
            found.append((match[1], " ".join(comment)))
        comment = []
    return found


def test_there_are_contracts_for_every_audience() -> None:
    assert {path.parts[-3] for path in CONTRACTS} == {
        "admin", "blob", "chain", "market", "mining", "peer", "task", "verify",
    }  # fmt: skip


@pytest.mark.parametrize("path", CONTRACTS, ids=lambda path: path.stem)
def test_package_and_folder_agree_and_are_versioned(path: Path) -> None:
    package = re.search(r"^package ([\w.]+);", path.read_text(), re.MULTILINE)
    assert package is not None
    assert package[1].split(".") == list(path.relative_to(PROTO).parts[:-1])
    assert re.fullmatch(r"pofl\.[a-z]+\.v\d+", package[1])


@pytest.mark.parametrize("path", CONTRACTS, ids=lambda path: path.stem)
def test_every_rpc_says_who_calls_it(path: Path) -> None:
    for name, comment in rpcs(path):
        assert comment.startswith(CALLERS), f"{path.name}: {name}: {comment!r}"
        assert len(comment) > 30, f"{path.name}: {name} says too little"
