"""This validator's checks with the requester's help: of a test set before its task opens, of a claim at its work height."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from core.crypto.homomorphic import PublicKey
from core.crypto.signing import KeyPair
from core.errors import AuthError, BudgetError, DeadlineError, InconclusiveError, UnavailableError
from core.ids import NodeId
from core.ports import Rng
from core.verification.audit_node import AuditedClaim, AuditNode, Finding, RequesterFault, StoredNode, Undecided
from core.verification.audit_requester import ATTEMPTS
from core.verification.task import TaskContext
from core.verification.test_set import EncryptedTestSet
from node.outside import Channels
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

    def __init__(self, key: KeyPair, channels: Channels, rng: Rng) -> None:
        self._key = key
        self._channels = channels
        self._rng = rng

    async def check_stored(self, task: TaskContext, pk: PublicKey, test_set: EncryptedTestSet) -> float:
        """Seconds that it took. Waits for a requester who cannot be reached.

        Raises:
            CheatingError: a label is not one of the classes, or she lied.
            BudgetError, AuthError: she answers no more.
        """
        started, attempt, refusals = time.monotonic(), 0, 0
        endpoint = task.spec.endpoint
        while True:
            channel = await self._channels.get(endpoint, "requester")
            node = NodeId(self._key.public_key)
            machine = StoredNode(task, self._rng.bytes(32), node, pk, test_set, self._rng, attempt)
            try:
                await verify_client.check_stored(channel, machine, STORED_SECONDS, peer=endpoint)
            except (BudgetError, InconclusiveError) as error:
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
                seconds = time.monotonic() - started
                STORED.observe(seconds)
                return seconds

    async def audit(
        self, task: TaskContext, pk: PublicKey, test_set: EncryptedTestSet, claim: AuditedClaim, timeout: float
    ) -> tuple[Finding, AuditNode]:
        """What was found out about a claim within ``timeout`` seconds, and the machine that found it.

        ``Undecided`` only with an answer "malformed": then the pool's opening decides.
        """
        started, attempt = time.monotonic(), 0
        endpoint = task.spec.endpoint
        while True:
            machine = AuditNode(task, self._rng.bytes(32), self._key, pk, test_set, claim, self._rng, attempt)
            finding: Finding
            left = started + timeout - time.monotonic()
            try:
                channel = await self._channels.get(endpoint, "requester")
                finding = await verify_client.audit(channel, machine, left, peer=endpoint)
            except BudgetError as error:
                # An attempt that a former life of this process, or a broken stream, has used up.
                finding = Undecided(error.message)
            except AuthError as error:
                await asyncio.sleep(PAUSE_SECONDS)
                if left > PAUSE_SECONDS:
                    continue
                finding = RequesterFault(error.message)
            if not isinstance(finding, Undecided) or finding.malformed is not None:
                AUDIT.observe(time.monotonic() - started)
                return finding, machine
            attempt += 1
            if attempt == ATTEMPTS:
                return RequesterFault(f"{ATTEMPTS} attempts are used up: {finding.reason}"), machine
            log.info("audit: next attempt", attempt=attempt, reason=finding.reason)
