"""Every dependency has one exact version; what tools/audit.py calls pinned is so."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tools.audit import pinned, unpinned, wrong_versions

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
