"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import services  # noqa: F401 - first of all: it sets what gRPC reads when it is imported


def pytest_report_header() -> str:
    return f"seed: {os.environ.get('POFL_TEST_SEED', '20261122')} (set POFL_TEST_SEED to change it)"


@pytest.fixture
def seed() -> int:
    """The seed of every seeded test; printed at the top of a run."""
    return int(os.environ.get("POFL_TEST_SEED", "20261122"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The optional folder of real data sets and published vectors beside the checkout."""
    folder = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the optional folder shared/data is not beside this checkout")
    return folder
