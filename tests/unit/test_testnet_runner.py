"""What a run says when its tasks cannot be published."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from core.errors import UnavailableError
from services.testnet.runner import _pass_on


@pytest.mark.parametrize(
    ("error", "said"),
    [(UnavailableError("the requester is gone"), "the requester is gone"), (TimeoutError(), "TimeoutError()")],
)
async def test_an_error_without_words_is_named(error: Exception, said: str) -> None:
    async def publish() -> None:
        raise error

    failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(publish())
    await asyncio.wait((task,))
    _pass_on(task, SimpleNamespace(failed=failed))  # type: ignore[arg-type]
    assert await failed == f"publishing a task failed: {said}"
