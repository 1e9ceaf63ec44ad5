"""What a pool fetches for a task: the practice set, the requester's key and her encrypted test set, each checked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from grpc import aio

from core.crypto.homomorphic import PublicKey
from core.errors import InputError, PoflError, UnavailableError
from core.ids import Digest, short
from core.verification.task import TaskContext, check_spec
from core.verification.test_set import EncryptedTestSet
from pool.learning.datasets import Dataset, load_npz
from pool.learning.targets import TargetRows, load_targets
from pool.manager.archive import TaskFolder, write_durably
from pool.manager.context import Pool
from services.data.stored import recipe_digest_in
from services.rpc import blobs
from services.rpc.channel import backoff
from services.rpc.views import TaskView
from services.runtime.logging import logger

__all__ = ["Supplies", "TestSupply"]

log = logger(__name__)

MAX_PRACTICE = 64 * 1024 * 1024
MAX_KEY = 4 * 1024 * 1024
AT_ONCE = 4
"""Blobs fetched at the same time."""
TRY_SECONDS = 5.0
"""What one source has for a blob before another one is asked; what came by then is kept."""


@dataclass(frozen=True, slots=True, eq=False)
class TestSupply:
    """What an evaluation needs of the requester's."""

    __test__ = False  # no test case, whatever its name suggests to pytest

    context: TaskContext
    public_key: PublicKey
    test_set: EncryptedTestSet


class Supplies:
    """A task's blobs, from the requester or, where she cannot be reached, from nodes."""

    def __init__(self, pool: Pool, view: TaskView, folder: TaskFolder, requester: aio.Channel) -> None:
        self._pool = pool
        self._view = view
        self._folder = folder
        self._sources: Sequence[tuple[str, aio.Channel]] = ((view.spec.endpoint, requester), *pool.nodes)
        self.context = TaskContext(pool.chain_id, view.task_id, view.requester, view.spec)

    async def practice(self, deadline_s: float) -> Dataset | TargetRows:
        """The practice set, also as a file for the engine. Raises InputError if it is not one for this task."""
        spec, path = self._view.spec, self._folder.practice
        await self._fetch(spec.practice_blob, MAX_PRACTICE, deadline_s)
        data = await asyncio.to_thread(self._pool.blobs.get, spec.practice_blob)
        await asyncio.to_thread(write_durably, path, data)
        if spec.cuts_micro:
            return await asyncio.to_thread(load_targets, path, features=spec.features)
        return await asyncio.to_thread(load_npz, path, features=spec.features, classes=spec.classes)

    async def recipe(self) -> bytes:
        """Digest of the recipe in the practice set, once that is here; empty if there is none, or none that can be read."""
        try:
            return await asyncio.to_thread(recipe_digest_in, self._folder.practice)
        except InputError as error:
            log.warning("the practice set's recipe cannot be read: members do not compare theirs", error=error)
            return b""

    async def public_key(self, deadline_s: float) -> PublicKey:
        """Raises MalformedError or LimitError if the blob is no key."""
        digest = self._view.spec.public_key_blob
        await self._fetch(digest, MAX_KEY, deadline_s)
        data = await asyncio.to_thread(self._pool.blobs.get, digest)
        return await self._pool.cpu.run(self.context.public_key, data)

    async def test(self, deadline_s: float) -> TestSupply:
        """Key and encrypted test set. Raises CryptoError, MalformedError, LimitError for what is not the task's."""
        check_spec(self._view.spec)
        end = asyncio.get_running_loop().time() + deadline_s
        key = await self.public_key(deadline_s)
        turns = asyncio.Semaphore(AT_ONCE)

        async def one(digest: Digest) -> None:
            async with turns:
                left = max(0.1, end - asyncio.get_running_loop().time())
                await self._fetch(digest, self.context.row_bytes, left)

        await asyncio.gather(*(one(digest) for digest in self._view.spec.test_blobs))
        test_set = await self._pool.cpu.run(self._load)
        return TestSupply(self.context, key, test_set)

    def _load(self) -> EncryptedTestSet:
        store = self._pool.blobs
        # The load compares every digest itself.
        return EncryptedTestSet.load(self.context, [store.get(d, verify=False) for d in self._view.spec.test_blobs])

    async def _fetch(self, digest: bytes, limit: int, deadline_s: float) -> None:
        """Into the store, from whoever has it, trying again until the time is over. Raises UnavailableError."""
        loop = asyncio.get_running_loop()
        end, attempt = loop.time() + deadline_s, 0
        while True:
            for source in self._sources:
                name, channel = source
                left = end - loop.time()
                if left <= 0:
                    break
                try:
                    await blobs.fetch(channel, digest, limit, self._pool.blobs, min(left, TRY_SECONDS), peer=name)
                except PoflError as error:
                    log.debug("a blob is not to be had", source=name, blob=digest, error=error)
                    # The next blob begins with another one: a requester may stall a pool that she does not like.
                    self._sources = [*(other for other in self._sources if other is not source), source]
                else:
                    return
            delay = min(backoff(attempt), 2.0)
            attempt += 1
            if loop.time() + delay >= end:
                names = ", ".join(name for name, _ in self._sources)
                raise UnavailableError(f"blob {short(digest)} was not to be had within {deadline_s:.1f} s from {names}")
            await asyncio.sleep(delay)
