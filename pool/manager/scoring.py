"""The pool's evaluation, with the requester's help: offline while miners train, online when commits have closed.

(Paper, section IV; design: verification, section 3.) A batch is marked as used, on disk, before a byte of it leaves: a pool
that is killed in between goes on with the spare one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from core.errors import BudgetError, CheatingError, DeadlineError, PoflError, SequenceError
from core.ids import ModelCommitment
from core.verification.evaluation_pool import EvaluationResult
from core.verification.messages import SESSION_BYTES
from core.verification.scored_model import ScoredModel
from pool.manager.archive import TaskFolder
from services.rpc.verify_client import EvaluationClient
from services.runtime.logging import logger

__all__ = ["Scoring"]

log = logger(__name__)

BATCHES: Final = 2
"""One, and a spare."""


class Scoring:
    """One task's evaluation. ``open_`` makes a client of a new machine for a session id and a batch number."""

    def __init__(
        self, folder: TaskFolder, open_: Callable[[bytes, int], EvaluationClient], new_bytes: Callable[[int], bytes]
    ) -> None:
        self._folder = folder
        self._open = open_
        self._new_bytes = new_bytes
        self._client: EvaluationClient | None = None

    async def prepare(self, seconds_left: Callable[[], float]) -> None:
        """The offline part. Raises BudgetError when both batches are used up, DeadlineError, or why the last one failed."""
        for batch in range(self._folder.batches_used, BATCHES):
            await asyncio.to_thread(self._folder.use_batch, batch)
            client = self._open(self._new_bytes(SESSION_BYTES), batch)
            try:
                await client.prepare(seconds_left())
            except DeadlineError:
                raise
            except PoflError as error:
                if batch + 1 == BATCHES:
                    raise
                log.warning("the offline part of the evaluation failed, using the spare batch", error=error)
            else:
                self._client = client
                return
        raise BudgetError(f"all {BATCHES} batches of this task's evaluation are used up: this pool cannot claim any more")

    async def evaluate(
        self, model: ScoredModel, commitment: ModelCommitment, seconds_left: Callable[[], float]
    ) -> EvaluationResult:
        """N and the header's ``vm``. Raises CheatingError (do not claim), DeadlineError, ProtocolError."""
        if self._client is None:
            raise SequenceError("the offline part of the evaluation is not done")
        try:
            return await self._client.evaluate(model, commitment, seconds_left())
        except CheatingError as error:
            log.error("the evaluation is refused: this model is not claimed", error=error)
            raise
