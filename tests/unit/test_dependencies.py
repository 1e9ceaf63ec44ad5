"""Every dependency has one exact version; what tools/audit.py calls pinned is so."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from tools import audit
from tools.audit import pinned, read_answer, unpinned, wrong_versions

ROOT = Path(__file__).resolve().parents[2]


def test_everything_that_is_asked_for_is_pinned_and_installed_as_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pins = pinned((ROOT / "constraints.txt").read_text())
    assert unpinned(project, pins) == []
    assert wrong_versions(project, pins) == []


def test_a_dependency_that_nobody_pinned_is_named() -> None:
    project = {"project": {"dependencies": ["grpcio>=1"], "optional-dependencies": {"more": ["pytest[none]>9", "not-there"]}}}
    found = unpinned(project, {"grpcio": "1.81.2", "pytest": "9"})
    assert "not-there, wanted by pyproject.toml" in found
    assert "pluggy, wanted by pytest" in found
    assert not any(line.startswith(("grpcio,", "pytest,")) for line in found)
    assert wrong_versions(project, {"pytest": "1"})[0].endswith("constraints.txt says 1")


@pytest.mark.parametrize(
    "text", ["numpy>=2", "numpy", "numpy==2.*", "numpy==2\nNumPy==2", "-r other.txt", "numpy @ file:///tmp/x"]
)
def test_a_line_that_pins_nothing_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"exact version|twice"):
        pinned(text)


ASKED = {"numpy": "2.0", "torch": "2.9", "grpcio": "1.81"}


def answer(*dependencies: dict[str, object]) -> str:
    return json.dumps({"dependencies": list(dependencies), "fixes": []})


def test_what_was_not_looked_at_is_told_apart_from_what_has_no_hole() -> None:
    hole = {"id": "X-1", "fix_versions": ["2.1", "2.2"], "aliases": [], "description": "d"}
    text = answer(
        {"name": "NumPy", "version": "2.0", "vulns": [hole, {**hole, "id": "X-2", "fix_versions": []}]},
        {"name": "torch", "skip_reason": "Dependency not found on PyPI"},
    )
    holes, skipped = read_answer(text, ASKED)
    assert holes == [("numpy", "2.0", "X-1", "2.1, 2.2"), ("numpy", "2.0", "X-2", "none")]
    assert skipped == [("grpcio", "pip-audit says nothing of it"), ("torch", "Dependency not found on PyPI")]
    with pytest.raises(KeyError):
        read_answer(answer({"name": "numpy", "version": "2.0"}), ASKED)


@pytest.mark.parametrize(
    ("skipped", "words", "code", "said"),
    [
        ([], ["--require"], 0, "no hole in any of them is known"),
        ([("torch", "not found")], [], 0, "that were looked at is known"),
        ([("torch", "not found")], ["--require"], 3, "torch was not looked at: not found"),
    ],
)
def test_a_package_that_was_not_looked_at_is_not_called_sound(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    skipped: list[audit.Skipped], words: list[str], code: int, said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(audit, "_pip_audit", lambda constraints, folder, pins: (([], skipped), ""))
    assert audit.main(words) == code
    told = capsys.readouterr().out
    assert said in told
    assert ("any of them" in told) == (not skipped)


def test_a_hole_is_worse_than_a_package_that_was_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    found = ([("numpy", "2.0", "X-1", "2.1")], [("torch", "not found")])
    monkeypatch.setattr(audit, "_pip_audit", lambda constraints, folder, pins: (found, ""))
    assert audit.main(["--require"]) == 1
    assert audit.main(["--require", "--ignore", "X-1"]) == 3
