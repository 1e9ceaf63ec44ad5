"""A miner's membership of its pool: join, train, fetch bought rows; again with a fresh key whenever the connection breaks."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from grpc import aio

from core.chain.transaction import ChunkReceipt
from core.crypto.masking import Aggregation
from core.crypto.sealing import Suite
from core.errors import (
    AuthError,
    CheatingError,
    CryptoError,
    DeadlineError,
    MalformedError,
    MarketError,
    PoflError,
    StorageError,
    UnavailableError,
)
from core.ids import AccountId, Digest, TaskId, short
from core.market import marks
from core.ports import Clock
from pool.flower.jobs import JoinTicket
from pool.flower.keys import new_node_key
from pool.miner.bought import BoughtRows, Delivery, Heading
from pool.miner.config import MinerConfig
from pool.miner.contributions import ContributionDesk
from pool.miner.rows import TrainingRows
from services.rpc.channel import backoff, connect, dial_forever
from services.rpc.convert_mining import FetchRows, Join, Joined, MinerStatus, TrainOn
from services.rpc.market_client import MarketClient, receive_rows, share_of
from services.rpc.mining_client import PoolClient
from services.rpc.role import Role
from services.runtime.logging import logger
from services.runtime.metrics import counter, gauge

if TYPE_CHECKING:
    from pool.flower.fleet import FleetMiner

__all__ = ["Membership", "check_secrecy", "warm_up"]

log = logger(__name__)

JOINS = counter("miner_joins", "Times that this miner became a member.")
BOUGHT = gauge("miner_bought_rows", "Rows that its pool bought for it.")

WATCH_SECONDS: Final = 1.0
ONLINE_SECONDS: Final = 60.0
STOP_SECONDS: Final = 5.0
LEAST_DELIVERY_SECONDS: Final = 5.0
MOST_DELIVERY_SECONDS: Final = 86_400.0
MOST_FETCHING: Final = 64
"""Trades at once: as many as a pool keeps waiting for one member."""
MOST_ANSWERING: Final = 256
TORCH_THREADS: Final = 1
REFUSED: Final = "refused-trades"
"""Folder with a file for each trade of which a row did not open: its rows are never asked for again (docs/adr/0107)."""
MOST_REFUSED: Final = 1_024
"""Files in it, the newest: who names trades and sells them could make any number, and knows the choices anyway."""


class Membership:
    """Runs for ever. ``phase`` is for the owner's eyes: starting, joining, idle, training, refused."""

    def __init__(self, role: Role[MinerConfig], rows: TrainingRows, clock: Clock) -> None:
        self._role = role
        self._rows = rows
        self._clock = clock
        self._fleet: FleetMiner | None = None
        self._pool: AccountId | None = None
        self._client: PoolClient | None = None
        """While it is a member."""
        self._training: TrainOn | None = None
        self._fetching: dict[Digest, asyncio.Task[None]] = {}
        self._bought = BoughtRows(role.cfg.data_dir / "bought", role.cfg.bought_mib << 20)
        self._refused: dict[Digest, None] = {}
        self._contributions = ContributionDesk(role.cfg.data_dir / "contributions", role.key, role.genesis.chain_id)
        self._answering: set[asyncio.Task[None]] = set()
        self.phase = "starting"
        self.joined = asyncio.Event()

    def status(self) -> MinerStatus:
        task: TaskId | None = None
        phase = self.phase
        if self._training is not None and self._training.deadline_ms > self._clock.now_ms():
            task = self._training.task_id
            phase = "training" if phase == "idle" else phase
        return MinerStatus(
            self._role.account, phase, self._rows.own, self._rows.bought, self._pool, task,
            0 if self._fleet is None else self._fleet.answered,
        )  # fmt: skip

    async def run(self) -> None:
        """Join, and join again, until cancelled. Raises WrongChainError if the pool is of another network."""
        cfg, failures = self._role.cfg, 0
        try:
            while True:
                self.phase = "joining"
                connection = await dial_forever(cfg.pool, self._role.tls, self._role.identity, expect_role="pool")
                started = asyncio.get_running_loop().time()
                try:
                    await self._attend(PoolClient(connection.channel, cfg.pool), AccountId(connection.remote.account))
                    reason = "the pool ended the membership"
                except (AuthError, CryptoError) as error:
                    self.phase, reason = "refused", error.message
                except PoflError as error:
                    reason = error.message
                finally:
                    await connection.close()
                    await self._stop_fleet()
                failures = 0 if asyncio.get_running_loop().time() - started > ONLINE_SECONDS else failures + 1
                delay = backoff(failures)
                log.warning("no member now, joining again", pool=cfg.pool, seconds=round(delay, 1), reason=reason)
                await asyncio.sleep(delay)
        finally:
            for task in (*self._fetching.values(), *self._answering):
                task.cancel()
            await self._stop_fleet()

    async def _attend(self, client: PoolClient, pool: AccountId) -> None:
        """One membership. Ends with an error, or when the pool ends it."""
        await self._read_bought(pool)
        private, public = new_node_key()
        join = Join(
            self._role.genesis.chain_id, pool, self._role.account, public, self._rows.own + self._rows.bought,
            self._rows.features, self._role.cfg.token.encode(), self._rows.holds,
        )  # fmt: skip
        signed = await client.join(self._role.key, join)
        joined = signed.joined
        if joined.pool != pool:
            raise AuthError(f"the handshake was with pool {short(pool)}, the answer is signed by {short(joined.pool)}")
        ticket = JoinTicket(
            joined.superlink_address, joined.superlink_ca, joined.hpke_public_key, public, joined.sealing, joined.aggregation
        )
        try:
            check_secrecy(self._role.cfg, joined)
            self._pool, self._client = pool, client
            JOINS.inc()
            await self._train_and_fetch(client, join, ticket, private)
        finally:
            self._client = None
            with contextlib.suppress(PoflError):
                await client.leave(self._role.key, join)

    async def _train_and_fetch(self, client: PoolClient, join: Join, ticket: JoinTicket, private: bytes) -> None:
        # Here, and not on top: it brings torch and flwr, which take seconds to load.
        from pool.flower.fleet import FleetMiner

        folder = self._role.cfg.data_dir / "flower"
        self._fleet = FleetMiner(
            ticket, private, self._rows.source, folder, threads=TORCH_THREADS,
            on_update=partial(self._contributions.note_sent, join.pool), privacy=self._role.cfg.privacy,
            secure_least=self._role.cfg.secure_least,
        )  # fmt: skip
        self._fleet.start()
        await asyncio.to_thread(self._fleet.wait_online, ONLINE_SECONDS)
        self.phase = "idle"
        log.info("member of the pool", pool=self._role.cfg.pool, rows=join.rows, superlink=ticket.superlink_address)
        self.joined.set()
        listening = asyncio.create_task(self._listen(client, join), name="assignments")
        watching = asyncio.create_task(self._watch(self._fleet), name="fleet")
        try:
            done, _ = await asyncio.wait({listening, watching}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (listening, watching):
                task.cancel()
            await asyncio.gather(listening, watching, return_exceptions=True)

    async def _listen(self, client: PoolClient, join: Join) -> None:
        async for assignment in client.attend(self._role.key, join):
            if isinstance(assignment, TrainOn):
                self._training = assignment
                log.info("training", task=assignment.task_id, deadline_ms=assignment.deadline_ms)
                try:
                    self._rows.expect(assignment.task_id, assignment.recipe, assignment.classes)
                except MalformedError as error:
                    log.warning("no part in this task", task=assignment.task_id, reason=error.message)
                continue
            if not isinstance(assignment, FetchRows):
                if len(self._answering) >= MOST_ANSWERING:  # the stream waits too
                    await asyncio.wait(self._answering, return_when=asyncio.FIRST_COMPLETED)
                answering = asyncio.create_task(self._contributions.take(join.pool, assignment, client))
                self._answering.add(answering)
                answering.add_done_callback(self._answering.discard)
                continue
            self._begin_fetch(join.pool, assignment)

    def _begin_fetch(self, pool: AccountId, fetch: FetchRows) -> None:
        """Unless its rows are here, or on their way. Goes on when the membership is over: rows come from the provider."""
        self._fetching = {trade: task for trade, task in self._fetching.items() if not task.done()}
        if self._rows.has(fetch.trade_id) or fetch.trade_id in self._fetching:
            return
        if len(self._fetching) >= MOST_FETCHING:
            log.warning("bought rows are not fetched: too many others are", trade=fetch.trade_id, fetching=len(self._fetching))
            return
        self._fetching[fetch.trade_id] = asyncio.create_task(self._fetch(pool, fetch))

    async def _watch(self, fleet: FleetMiner) -> None:
        """Ends when the Flower client does."""
        while fleet.failure is None and fleet.is_online:  # noqa: ASYNC110 - it is a thread's state
            await asyncio.sleep(WATCH_SECONDS)
        raise fleet.failure or UnavailableError("the Flower client ended")

    async def _stop_fleet(self) -> None:
        fleet, self._fleet = self._fleet, None
        if fleet is not None:
            try:
                await asyncio.to_thread(fleet.stop, STOP_SECONDS)
            except DeadlineError as error:
                log.warning("the Flower client does not end", error=error)

    # Bought rows

    async def _read_bought(self, pool: AccountId) -> None:
        """What this pool bought for this miner before it was started."""
        if pool == self._rows.pool:
            return
        try:
            kept = await asyncio.to_thread(lambda: list(self._bought.read(pool)))
        except StorageError as error:
            log.error("bought rows cannot be read", error=error)
            kept = []
        self._rows.begin(pool)
        for delivery in reversed(kept):
            self._take(pool, delivery)
        if self._rows.bought:
            log.info("rows bought before are here", rows=self._rows.bought, data_sets=len(self._rows.holds))

    def _take(self, pool: AccountId, came: Delivery) -> None:
        """Train on what came of a delivery, however much; not if another pool bought it than this miner is with now."""
        if came.parts and pool == self._rows.pool:
            heading = came.heading
            try:
                self._rows.add(
                    came.trade_id, heading.data_root, heading.first, came.x, came.y, heading.feature_scale_micro, came.is_whole
                )
            except MalformedError as error:  # the owner's rows are others now
                log.warning("bought rows are of no use", trade=came.trade_id, reason=error.message)
            BOUGHT.set(self._rows.bought)

    async def _hand_in(self, pool: AccountId, receipt: ChunkReceipt) -> None:
        """Over the present connection: a delivery outlives the one on which it was begun.

        Raises UnavailableError while there is none, which is waited for, MarketError if the miner is another pool's now.
        """
        if self._pool != pool:
            raise MarketError(f"pool {short(pool)} bought these rows, and this miner is not its member any more")
        if self._client is None:
            raise UnavailableError("the pool cannot be reached: no receipt is handed in now")
        await self._client.hand_in(receipt)

    async def _fetch(self, pool: AccountId, fetch: FetchRows) -> None:
        """Fetch this miner's share straight from the provider; failing costs the rows, nothing else."""
        channel: aio.Channel | None = None
        refused = self._role.cfg.data_dir / REFUSED / fetch.trade_id.hex()
        try:
            channel = connect(
                fetch.provider_endpoint, self._role.tls, expect_role="provider", caller=self._role.identity.caller
            )
            seller = MarketClient(channel, fetch.provider_endpoint)
            data_set = await seller.data_set(fetch.data_root)
            share = share_of(data_set, fetch.first_row, fetch.rows)
            if data_set.features != self._rows.features:
                raise MalformedError(f"rows of {data_set.features} features, own rows have {self._rows.features}")
            if fetch.trade_id in self._refused or refused.exists():
                raise MarketError("a row of this trade did not open once; asked again, it would tell the provider our choices")
            session = marks.session_id(self._role.genesis.chain_id, fetch.provider, pool, fetch.data_root, self._role.account)
            marking = await asyncio.to_thread(marks.commit, fetch.marks_seed, session, share.marks)
            left = (fetch.deadline_ms - self._clock.now_ms()) / 1000
            left = min(max(LEAST_DELIVERY_SECONDS, left), MOST_DELIVERY_SECONDS)
            heading = Heading(fetch.data_root, share.first, share.count, share.features, data_set.feature_scale_micro)
            came = await asyncio.to_thread(self._bought.open, pool, fetch.trade_id, heading)
            try:
                await receive_rows(
                    seller, self._role.genesis.chain_id, fetch.trade_id, self._role.key, share, marking, session,
                    partial(self._hand_in, pool), timeout=left, parts=came.parts, keep=came.keep,
                )  # fmt: skip
                await asyncio.to_thread(came.end)
            except CheatingError as error:
                self._refused[fetch.trade_id] = None  # at once, and even if the disk is full
                while len(self._refused) > MOST_REFUSED:
                    del self._refused[next(iter(self._refused))]
                await asyncio.to_thread(_refuse, refused, error.message)
                raise
            finally:
                came.close()
                self._take(pool, came)
        except PoflError as error:
            log.warning("bought rows did not come", trade=fetch.trade_id, provider=fetch.provider_endpoint, error=error)
        else:
            log.info("bought rows are here", trade=fetch.trade_id, rows=share.count, bought=self._rows.bought)
        finally:
            if channel is not None:
                await channel.close(None)


def check_secrecy(cfg: MinerConfig, joined: Joined) -> None:
    """Raises AuthError when the pool offers less secrecy than this miner's owner asks for."""
    if cfg.sealing == "hybrid" and joined.sealing is not Suite.HYBRID:
        raise AuthError(f"the pool seals with {joined.sealing.label}, this miner asks for hybrid (its option `sealing`)")
    if cfg.aggregation == "secure" and joined.aggregation is not Aggregation.SECURE:
        raise AuthError("the manager of the pool sees each update, this miner asks for secure aggregation (`aggregation`)")


def _refuse(path: Path, reason: str) -> None:
    """Raises StorageError; then it is known until this process ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(reason + "\n", encoding="utf-8")
        oldest_first = sorted(path.parent.iterdir(), key=lambda known: known.stat().st_mtime_ns)
        for known in oldest_first[:-MOST_REFUSED]:
            known.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"cannot note in {path} that a row did not open: {error.strerror or error}") from None


def warm_up(threads: int = TORCH_THREADS) -> None:
    """Load torch and flwr and train on nothing, before the pool counts on this miner."""
    import torch

    from pool.flower.fleet import FleetMiner  # noqa: F401 - for its imports
    from pool.learning.training import warm_up as train_once

    torch.set_num_threads(threads)
    train_once()
