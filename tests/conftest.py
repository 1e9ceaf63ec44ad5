"""Fixtures shared by all tests."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import services  # noqa: F401 - first of all: it sets what gRPC reads when it is imported
from services.runtime import logging as runtime_logging

SEED = int(os.environ.get("POFL_TEST_SEED", "20261122"))

# No test is about the speed of the machine, and what a run finds depends on the seed alone, not on what former runs left.
settings.register_profile("pofl", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pofl")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--hypothesis-seed") is None:
        config.option.hypothesis_seed = str(SEED)


def pytest_report_header() -> str:
    return f"seed: {SEED} (set POFL_TEST_SEED to change it)"


@pytest.fixture
def seed() -> int:
    """The seed of every seeded test, also of hypothesis; printed at the top of a run."""
    return SEED


@pytest.fixture
def held_port() -> Iterator[int]:
    """A port of 127.0.0.1 on which a test serves now and then with gRPC. Meanwhile nothing answers there, and the system gives
    it to nobody else: it is bound all the time, in the way that lets gRPC bind it too."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        yield int(holder.getsockname()[1])


@pytest.fixture
def loggers_as_before() -> Iterator[None]:
    """For tests that call services.runtime.logging.setup, here or through role_main: other tests of this process would find its
    handler, over a stream that is closed by then, and its levels."""
    loggers = [logging.getLogger(name) for name in (None, "asyncio", "urllib3", "docker", "flwr")]
    levels = [each.level for each in loggers]
    yield
    while runtime_logging._installed:
        handler = runtime_logging._installed.pop()
        logging.getLogger().removeHandler(handler)
        handler.close()
    for each, level in zip(loggers, levels, strict=True):
        each.setLevel(level)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The optional folder of real data sets and published vectors beside the checkout."""
    folder = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the optional folder shared/data is not beside this checkout")
    return folder
