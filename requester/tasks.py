"""A task's way: from a data set through encryption to the chain, and from the chain's word that it ended to the model.

Everything that is needed to go on is on disk before the task is handed in, under a nonce of its own; so a requester that is
killed at any point hands in the same task again, and never two for one (docs/adr/0052).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from core.chain.rules_tasks import least_leak_bits
from core.chain.transaction import Activation, PublishTask, Refusal, SignedTransaction, TaskSpec
from core.chain.transaction import task_id as make_task_id
from core.crypto.homomorphic import PARAMS, generate_keys, public_key
from core.errors import (
    AuthError,
    DeadlineError,
    InputError,
    MalformedError,
    NotFoundError,
    PoflError,
    TransactionError,
    UnavailableError,
)
from core.ids import AccountId, Amount, Digest, Milliseconds, TaskId, TxId, short
from core.params import Genesis
from core.ports import Clock, Rng
from core.verification.scored_model import ModelFamily
from core.verification.task import check_spec, key_context
from core.verification.test_set import encrypt_test_set
from requester.config import AutoConfig
from requester.data import clamped_features, feature_scale_of, scored_test_set
from requester.models import BodySource, TaskBooks, won_model
from requester.sessions import Sessions
from requester.standing import Follower
from requester.store import RequesterStore, TaskRecord, TaskSecret, TaskSecrets
from requester.targets import read_task_rows
from services.rpc.blob_store import BlobStore
from services.rpc.chain_client import ChainClient, Wallet
from services.rpc.channel import backoff, connect
from services.rpc.handshake import LocalIdentity
from services.rpc.task_client import submit_task
from services.rpc.tls import TlsFiles
from services.rpc.views import TaskPhase, TaskView
from services.runtime.cpu import run_cpu
from services.runtime.logging import logger
from services.runtime.metrics import counter, gauge

__all__ = ["Desk", "Order", "Platforms", "Published", "TaskMaker", "auto_order"]

log = logger(__name__)

PUBLISHED = counter("requester_tasks_published", "Tasks that this requester put on the chain.")
ENDED = counter("requester_tasks_ended", "Her tasks that ended, by phase.", ("phase",))
OPEN = gauge("requester_tasks_open", "Her tasks that have not ended.")

EXPIRES_MS: Final = 7 * 24 * 3600 * 1000
"""A task that never becomes current is given back after this."""
FINAL_TIMEOUT: Final = 60.0
SUBMIT_TIMEOUT: Final = 10.0
POLL: Final = 2.0
"""Seconds between two looks at a task that has left the list of unfinished ones."""


@dataclass(frozen=True, slots=True)
class Order:
    """What the owner wants to be learned."""

    name: str
    test_set: Path
    practice_set: Path
    hidden: tuple[int, ...]
    activation: Activation
    reward: int
    bond: int = 0
    """0: the reward."""
    weight_bits: int = 10
    leak_bits: int = 0
    """0: what the family needs."""
    feature_scale_micro: int = 0
    """0: the scale that brings the largest practice feature to 127."""
    cuts_micro: tuple[int, ...] = ()
    """Of a regression, whose y are real targets; or ``buckets``: so many, with cut points from the practice set."""
    buckets: int = 0


@dataclass(frozen=True, slots=True)
class Published:
    record: TaskRecord
    tx_id: TxId


def auto_order(auto: AutoConfig, number: int) -> Order:
    """Task ``number`` (from 1) of the configuration."""
    assert auto.test_set is not None
    assert auto.practice_set is not None
    return Order(
        f"{auto.name}-{number}", auto.test_set, auto.practice_set, auto.hidden, Activation[auto.activation.upper()],
        auto.reward, auto.bond, auto.weight_bits, 0, auto.feature_scale_micro, auto.cuts_micro, auto.buckets,
    )  # fmt: skip


class TaskMaker:
    """From an order to blobs, secrets and a task that can be signed. Blocks: run it in a worker."""

    def __init__(self, genesis: Genesis, account: AccountId, blobs: BlobStore, secrets: TaskSecrets, rng: Rng) -> None:
        self._genesis, self._account, self._blobs, self._secrets, self._rng = genesis, account, blobs, secrets, rng

    def make(self, order: Order, number: int, endpoint: str, expires_ms: Milliseconds, is_auto: bool) -> TaskRecord:
        """Encrypts the test set and stores everything but the record.

        Raises:
            NotFoundError, MalformedError, LimitError: one sentence about the file, the row, or the family.
            StorageFullError, StorageError.
        """
        read = read_task_rows(order.test_set, order.practice_set, order.cuts_micro, order.buckets)
        rows, practice, classes = read.test, read.practice, read.classes
        family = ModelFamily((rows.features, *order.hidden, classes), order.activation, order.weight_bits)
        scale = order.feature_scale_micro or feature_scale_of(practice)
        plain = scored_test_set(rows, classes, scale)

        nonce = self._rng.bytes(32)
        task = make_task_id(self._genesis.chain_id, self._account, nonce)
        sk = generate_keys(PARAMS, key_context(self._genesis.chain_id, task), self._rng)
        contents, digests, root = encrypt_test_set(sk, self._genesis.chain_id, task, plain, self._rng)
        spec = TaskSpec(
            name=order.name, features=rows.features, classes=classes, samples=plain.samples, hidden=order.hidden,
            activation=order.activation, weight_bits=order.weight_bits, feature_scale_micro=scale, test_root=root,
            test_blobs=digests, public_key_blob=Digest(self._blobs.put(public_key(sk).to_bytes())),
            practice_blob=Digest(self._blobs.put(read.blob)), endpoint=endpoint, leak_bits=0,
            cuts_micro=read.cuts_micro,
        )  # fmt: skip
        spec = replace(spec, leak_bits=self._leak_bits(order, spec))
        check_spec(spec)
        for content in contents:
            self._blobs.put(content)
        self._secrets.save(task, TaskSecret(sk, plain))
        reward = order.reward
        bond = order.bond or reward
        least = -(-reward * self._genesis.params.min_pool_bond_ppm // 1_000_000)
        payload = PublishTask(spec, Amount(reward), Amount(bond), Amount(least), nonce, expires_ms)
        warnings = (*self._warnings(spec, clamped_features(rows, scale), family), *read.warnings())
        return TaskRecord(task, number, is_auto, payload, warnings)

    def _leak_bits(self, order: Order, spec: TaskSpec) -> int:
        least = least_leak_bits(spec, self._genesis.params)
        if order.leak_bits and order.leak_bits < least:
            raise MalformedError(
                f"leak_bits is {order.leak_bits}, but {self._genesis.params.max_pools} pools may learn {least} bits of a test "
                "row of this model: allow that, or narrow the first layer",
                leak_bits=order.leak_bits, least=least,
            )  # fmt: skip
        return order.leak_bits or least

    def _warnings(self, spec: TaskSpec, clamped: int, family: ModelFamily) -> tuple[str, ...]:
        found = []
        if spec.leak_bits >= 8 * spec.features:
            alone = spec.leak_bits // self._genesis.params.max_pools // 2 >= 8 * spec.features
            found.append(
                f"leak_bits is {spec.leak_bits}, a test row has {8 * spec.features}: "
                + ("any one pool" if alone else "pools together")
                + " can reconstruct the test rows; labels leak no more than predictions say of them"
            )
        if clamped:
            found.append(f"{clamped} test features lie beyond the scale and are clamped to 127 or -127")
        if family.dims[-1] > spec.samples:
            found.append(f"{spec.samples} test rows for {family.dims[-1]} classes: the accuracy will say little")
        return tuple(found)


class Platforms:
    """Hands transactions to the first platform that takes them, and to the nodes where there is none."""

    def __init__(self, identity: LocalIdentity, tls: TlsFiles | None, targets: Sequence[str], chain: ChainClient) -> None:
        self._identity, self._tls, self._targets, self._chain = identity, tls, targets, chain

    async def submit(self, transaction: SignedTransaction) -> None:
        """Raises TransactionError with the refusal; UnavailableError, DeadlineError when nobody could be reached."""
        for target in self._targets:
            channel = connect(target, self._tls, expect_role="platform", caller=self._identity.caller)
            try:
                await submit_task(channel, transaction, SUBMIT_TIMEOUT, peer=target)
            except TransactionError:
                raise
            except PoflError as error:
                log.warning("platform not reached", platform=target, error=error.message)
            else:
                return
            finally:
                await channel.close(None)
        await self._chain.submit(transaction)


class Desk:
    """All tasks of this requester: publishes them, follows them to their end, and begins the next one."""

    def __init__(
        self,
        maker: TaskMaker,
        store: RequesterStore,
        secrets: TaskSecrets,
        books: TaskBooks,
        blobs: BlobStore,
        chain: ChainClient,
        wallet: Wallet,
        platforms: Platforms,
        follower: Follower,
        sessions: Sessions,
        source: BodySource,
        clock: Clock,
        auto: AutoConfig,
    ) -> None:
        self._maker, self._store, self._secrets, self._books, self._blobs = maker, store, secrets, books, blobs
        self._chain, self._wallet, self._platforms, self._follower = chain, wallet, platforms, follower
        self._sessions, self._source, self._clock, self._auto = sessions, source, clock, auto
        self._publishing = asyncio.Lock()
        self._over: set[TaskId] = set()
        """Ended on chain, but something is left to do."""
        self.endpoint = ""
        """Where pools and nodes reach this requester; set once it is known."""

    def resume(self) -> None:
        """Opens what was open when the process ended. Raises CorruptError."""
        for record in self._store.tasks():
            if not record.is_ended:
                self._books.open(record)

    # Publishing

    async def publish(self, order: Order, is_auto: bool = False) -> Published:
        """Prepares a task, hands it in and waits until it is final.

        Raises:
            InputError: what is wrong with the data or the family; nothing is published.
            TransactionError: the chain refused it; it is forgotten.
            DeadlineError, UnavailableError: not final yet. It is kept and handed in again by `run`.
        """
        async with self._publishing:
            number = max((record.number for record in self._store.tasks()), default=0) + 1
            now = max((await self._chain.tip()).next_time_ms, self._clock.now_ms())
            expires = Milliseconds(now + EXPIRES_MS)
            record = await run_cpu(self._maker.make, order, number, self.endpoint, expires, is_auto)
            self._store.save_task(record)
            self._books.open(record)
            for warning in record.warnings:
                log.warning(warning, task=short(record.task_id))
            return await self._hand_in(record)

    async def _hand_in(self, record: TaskRecord) -> Published:
        try:
            transaction = await self._submit(record.published)
        except TransactionError as error:
            if error.reason != Refusal.DUPLICATE:
                self._forget(record)
                raise
            # It is on chain from before we were stopped.
            record = replace(record, height=(await self._chain.task(record.task_id)).published_height)
            self._store.save_task(record)
            return Published(record, TxId(bytes(32)))
        height = await self._chain.wait_final(transaction.tx_id, FINAL_TIMEOUT, again=transaction)
        record = replace(record, height=height)
        self._store.save_task(record)
        PUBLISHED.inc()
        log.info("task published", task=short(record.task_id), name=record.published.spec.name, height=height)
        return Published(record, transaction.tx_id)

    async def _submit(self, payload: PublishTask) -> SignedTransaction:
        for attempt in range(3):
            account = await self._chain.account(self._wallet.account)
            transaction = self._wallet.make(payload, account.next_nonce)
            try:
                await self._platforms.submit(transaction)
            except TransactionError as error:
                if error.reason != Refusal.BAD_NONCE or attempt == 2:
                    raise
                await asyncio.sleep(backoff(attempt))
            else:
                return transaction
        raise AssertionError("unreachable")

    def _forget(self, record: TaskRecord) -> None:
        self._books.close(record.task_id)
        self._store.delete_task(record.task_id)
        self._secrets.delete(record.task_id)
        for blob in record.published.spec.test_blobs:
            self._blobs.delete(blob)

    # Following

    async def run(self) -> None:
        """For ever: hand in what was not, see each task to its end, publish the next of the configured ones."""
        await self._follower.wait(lambda: self._follower.is_following, FINAL_TIMEOUT)
        failures = 0
        while True:
            try:
                await self._look()
                failures = 0
                pause = POLL
            except (UnavailableError, DeadlineError, AuthError, InputError) as error:
                # Of nodes and platforms: others may do better, or the same ones later.
                pause = max(POLL, backoff(failures))
                failures += 1
                log.warning("trying again", seconds=round(pause, 1), error=error.message)
            height = self._follower.height
            await self._follower.wait(lambda height=height: self._follower.height > height, pause)  # type: ignore[misc]

    async def _look(self) -> None:
        for record in [record for record in self._store.tasks() if not record.is_ended]:
            if record.height is None:
                async with self._publishing:
                    await self._resubmit(record)
            elif self._follower.task(record.task_id) is None:
                try:
                    await self._end(record)
                except (UnavailableError, DeadlineError) as error:
                    # The next task does not wait for it.
                    log.warning("the task's end is not settled yet", task=short(record.task_id), error=error.message)
        records = self._store.tasks()
        OPEN.set(sum(not record.is_ended for record in records))
        if all(record.is_ended or record.task_id in self._over for record in records):
            await self._publish_next()

    async def _resubmit(self, record: TaskRecord) -> None:
        if not any(other.task_id == record.task_id and other.height is None for other in self._store.tasks()):
            return  # settled while we waited for our turn
        try:
            await self._hand_in(record)
        except TransactionError as error:
            log.error("a task is given up: the chain refuses it", task=short(record.task_id), error=error.message)

    async def _end(self, record: TaskRecord) -> None:
        """A task that is not among the unfinished ones: has it ended, and how?"""
        try:
            task = await self._chain.task(record.task_id)
        except NotFoundError:
            return  # the node asked is behind
        if not task.phase.is_ended:
            return
        self._over.add(record.task_id)
        if task.phase is TaskPhase.WON:
            await self._take_model(task)
        self._store.save_task(replace(record, is_ended=True))
        self._over.discard(record.task_id)
        self._sessions.forget(record.task_id)
        self._books.close(record.task_id)
        self._store.forget_sessions(record.task_id)
        self._store.forget_decrypted(record.task_id)
        for blob in record.published.spec.test_blobs:
            self._blobs.delete(blob)
        ENDED.labels(task.phase.name.lower()).inc()
        log.info("task ended", task=short(record.task_id), phase=task.phase.name.lower())

    async def _take_model(self, task: TaskView) -> None:
        sides = self._books.find(task.task_id)
        if sides is None or self._store.won(task.task_id) is not None:
            return
        try:
            self._store.save_won(await won_model(task, sides, self._store, self._source))
        except InputError as error:
            log.error("the winning model cannot be read", task=short(task.task_id), error=error.message)

    async def _publish_next(self) -> None:
        number = sum(record.is_auto for record in self._store.tasks()) + 1
        if number > self._auto.tasks:
            return
        try:
            await self.publish(auto_order(self._auto, number), is_auto=True)
        except (UnavailableError, DeadlineError):
            raise
        except PoflError as error:
            # The owner has to mend the file or the balance: say so, again and again, and serve what is open meanwhile.
            raise UnavailableError(f"task {number} of auto.tasks cannot be published: {error.message}") from error

    def listed(self) -> list[TaskRecord]:
        """Own tasks, oldest first."""
        return self._store.tasks()

    async def phase_of(self, record: TaskRecord) -> TaskPhase | None:
        """None while the chain does not know the task."""
        known = self._follower.task(record.task_id)
        if known is not None:
            return known.phase
        try:
            return (await self._chain.task(record.task_id)).phase
        except NotFoundError:
            return None
