"""This validator's checks with the requester's help: of a test set before its task opens, of a claim at its work height."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from core.chain.vote import SignedVerdict
from core.crypto.homomorphic import PublicKey
from core.crypto.signing import KeyPair
from core.errors import (
    AuthError,
    BudgetError,
    CheatingError,
    DeadlineError,
    InconclusiveError,
    InternalError,
    PoflError,
    TurnError,
    UnavailableError,
)
from core.ids import Height, NodeId
from core.ports import Rng
from core.verification.audit_node import AuditedClaim, AuditNode, Finding, RequesterFault, StoredNode, Undecided
from core.verification.audit_requester import ATTEMPTS
from core.verification.receipt import SignedAnswer
from core.verification.task import TaskContext
from core.verification.test_set import EncryptedTestSet
from node.outside import Channels
from node.transcripts import TranscriptStore
from services.rpc import verify_client
from services.runtime.logging import logger
from services.runtime.metrics import histogram

__all__ = ["Auditor"]

log = logger(__name__)

AUDIT = histogram("node_audit_seconds", "One audit of a claim, from its start to its finding.")
STORED = histogram("node_stored_check_seconds", "One check of a pending task's test set.")

STORED_SECONDS: Final = 30.0
PAUSE_SECONDS: Final = 0.5
NOT_YET: Final = 10
"""Times that a requester may say that this node is no validator: she may be some blocks behind."""


class Auditor:
    """Opens the sessions, and another attempt where one was used up or spoiled by chance."""

    def __init__(self, key: KeyPair, channels: Channels, rng: Rng, transcripts: TranscriptStore) -> None:
        self._key = key
        self._transcripts = transcripts
        self._channels = channels
        self._rng = rng

    async def check_stored(self, task: TaskContext, pk: PublicKey, test_set: EncryptedTestSet, height: Height) -> float:
        """Seconds that it took. Waits for a requester who cannot be reached. Leaves a transcript, of ``height``.

        Raises:
            CheatingError: the label scores of a row do not sum to one, or she lied.
            BudgetError, AuthError: she answers no more.
            InternalError: this node failed at its own part, time and again.
        """
        started, attempt, refusals = time.monotonic(), 0, 0
        endpoint = task.spec.endpoint
        while True:
            channel = await self._channels.get(endpoint, "requester")
            node = NodeId(self._key.public_key)
            machine = StoredNode(task, self._rng.bytes(32), node, pk, test_set, self._rng, attempt)
            try:
                await verify_client.check_stored(channel, machine, STORED_SECONDS, peer=endpoint)
            except CheatingError as error:
                await self._put(machine.export(self._key, error.message), height)
                raise
            except (BudgetError, InconclusiveError, InternalError) as error:
                if isinstance(error, InternalError):
                    log.exception("stored check: this node failed at its own part", attempt=attempt)
                attempt += 1
                if attempt == ATTEMPTS:
                    raise
                log.info("stored check: next attempt", attempt=attempt, error=error)
            except (DeadlineError, UnavailableError) as error:
                log.info("stored check: the requester does not answer, trying again", error=error)
                await asyncio.sleep(PAUSE_SECONDS)
            except AuthError:
                refusals += 1
                if refusals == NOT_YET:
                    raise
                await asyncio.sleep(PAUSE_SECONDS)
            else:
                await self._put(machine.export(self._key), height)
                seconds = time.monotonic() - started
                STORED.observe(seconds)
                return seconds

    async def audit(
        self,
        task: TaskContext,
        pk: PublicKey,
        test_set: EncryptedTestSet,
        claim: AuditedClaim,
        timeout: float,
        height: Height,
        higher: Callable[[], tuple[SignedVerdict, ...]] = tuple,
        heard: Callable[[SignedAnswer], None] = lambda signed: None,
    ) -> tuple[Finding, AuditNode]:
        """What was found out about a claim within ``timeout`` seconds, and the machine that found it.

        ``Undecided`` only with an answer "malformed": then the pool's opening decides. ``higher``: the verdicts that refute or
        skip every higher claim, as known at each try. ``heard`` gets each answer that the requester signed, at once.

        Raises InternalError where this node failed at its own part: then nothing is known of the requester.
        """
        started = time.monotonic()
        commitment = claim.vm.model_commitment
        attempt = self._transcripts.attempts(task.task_id, commitment)
        own_fault: InternalError | None = None
        if attempt >= ATTEMPTS:
            raise InternalError(f"this node began all {ATTEMPTS} attempts at this claim in former lives")
        while True:
            asked = replace(claim, higher=higher())
            machine = AuditNode(task, self._rng.bytes(32), self._key, pk, test_set, asked, self._rng, attempt)
            finding: Finding
            left = started + timeout - time.monotonic()
            try:
                await asyncio.to_thread(self._transcripts.begin, task.task_id, commitment, attempt)
                channel = await self._channels.get(task.spec.endpoint, "requester")
                finding = await verify_client.audit(
                    channel, machine, left, peer=task.spec.endpoint, noticed=_Told(machine, heard)
                )
            except BudgetError as error:
                # Which attempts this node began, it knows itself: she says that one is used up that she never saw.
                finding = Undecided(error.message)
            except (AuthError, TurnError) as error:
                await asyncio.sleep(PAUSE_SECONDS)
                if left > PAUSE_SECONDS:
                    log.info("audit: the requester sees another state of the chain, trying again", error=error)
                    continue
                finding = RequesterFault(error.message)
            except InternalError as error:
                own_fault = error
                log.exception("audit: this node failed at its own part", attempt=attempt)
                finding = Undecided(error.message)
            except asyncio.CancelledError:
                # The height was decided first. What was said until then is kept all the same.
                machine.abandon("the height was decided before this audit was over")
                self._put_now(machine.export(), height)
                raise
            else:
                await self.keep(machine, height)
            if isinstance(finding, RequesterFault) and own_fault is not None and time.monotonic() - started >= timeout:
                # Time that this node lost by its own fault is not hers.
                raise own_fault
            if not isinstance(finding, Undecided) or finding.malformed is not None:
                AUDIT.observe(time.monotonic() - started)
                return finding, machine
            attempt += 1
            if attempt == ATTEMPTS:
                if own_fault is not None:
                    raise own_fault
                return RequesterFault(f"{ATTEMPTS} attempts are used up: {finding.reason}"), machine
            log.info("audit: next attempt", attempt=attempt, reason=finding.reason)

    async def keep(self, machine: AuditNode, height: Height) -> None:
        """The machine's transcript, on disk. A full disk does not spoil an audit."""
        if machine.finding is not None:
            await self._put(machine.export(), height)

    async def _put(self, data: bytes, height: Height) -> None:
        await asyncio.to_thread(self._put_now, data, height)

    def _put_now(self, data: bytes, height: Height) -> None:
        try:
            self._transcripts.put(height, data)
        except PoflError as error:
            log.error("the transcript of an audit is not kept", height=height, error=error)


class _Told:
    """Hands on the requester's answer once."""

    def __init__(self, machine: AuditNode, heard: Callable[[SignedAnswer], None]) -> None:
        self._machine, self._heard, self._is_told = machine, heard, False

    def __call__(self) -> None:
        if not self._is_told and self._machine.answer is not None:
            self._is_told = True
            self._heard(self._machine.answer)
