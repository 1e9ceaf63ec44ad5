"""One task, from entry to its end: enter, train, commit, evaluate, claim, offer (paper, section II; design: consensus).

What must survive a kill is in the task's folder before it matters; a season begun again goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from dataclasses import replace
from typing import Final

from grpc import aio

from core.chain.block import Accuracy, Block
from core.chain.build import build_work_block
from core.chain.ledger import work_payout_total
from core.chain.transaction import Claim, Commit, EnterTask, Payload, Refusal
from core.chain.versions import check_known_version
from core.codec import encode
from core.errors import DeadlineError, PoflError, TransactionError, UnavailableError
from core.ids import AccountId, Amount, Height, Milliseconds, short
from core.market.contributions import share_out, shares_of
from core.ports import SystemRng
from core.verification.body import body_digest, commitment, make_body
from core.verification.evaluation_pool import EvaluationPool
from core.verification.regression import check_buckets
from core.verification.scored_model import ModelFamily
from pool.flower.engine import MiningResult, RoundReport
from pool.manager import trading
from pool.manager.archive import Claimed, Committed, Contribution, TaskFolder
from pool.manager.board import TaskFeed
from pool.manager.books import Book
from pool.manager.claims import Shown, WorkWatch, agreed_ranking, malformed, offer_everywhere
from pool.manager.context import Pool
from pool.manager.jobs import mining_job, model_of, quantised
from pool.manager.scoring import Scoring
from pool.manager.supplies import Supplies, TestSupply
from pool.manager.windows import Windows, is_admitted
from services.rpc.convert_mining import Progress, Round, TrainOn
from services.rpc.verify_client import EvaluationClient
from services.rpc.views import EntryView, TaskPhase, TaskView, Tip
from services.runtime.logging import claim_id, logger, scope
from services.runtime.metrics import counter, gauge, histogram

__all__ = ["Season", "Windows", "is_admitted"]

log = logger(__name__)

TASKS = counter("pool_tasks", "Tasks that this pool took part in, by how they ended for it.", ("end",))
ACCURACY = gauge("pool_practice_accuracy", "Practice accuracy of the last round, 0 to 1.")
ROUNDS = counter("pool_rounds", "Rounds of training.")
COMMITS = counter("pool_commits", "Models that this pool committed to on the chain.")
CLAIMS = counter("pool_claims", "Claims of this pool on the chain.")
CLAIMED = gauge("pool_claimed_accuracy", "Accuracy of the last claim, 0 to 1.")
EVALUATION = histogram("pool_evaluation_seconds", "One evaluation of a committed model with the requester.")

AGAIN_SECONDS: Final = 0.25
STUCK_SECONDS: Final = 3.0
"""Several blocks: a transaction that is in none of them may wait for a nonce before it."""
ROWS_SECONDS: Final = 1.5
"""How long training waits for bought rows; later ones join in when they arrive."""
KEPT_TASKS: Final = 32
"""Folders of past tasks that stay on disk."""
EARLY: Final = frozenset({Refusal.TOO_EARLY, Refusal.BAD_NONCE})


class Season:
    """This pool in one task."""

    def __init__(self, pool: Pool, feed: TaskFeed) -> None:
        self._pool = pool
        self._feed = feed
        self._task_id = feed.view.task_id
        self._folder = TaskFolder(pool.cfg.data_dir / "tasks" / self._task_id.hex())
        self._supply: TestSupply | None = None
        self._round: Round | None = None
        self._buyers = 1
        """Members that rows are bought for; of a trade of before a restart it is not known how many share it."""

    async def run(self) -> None:
        """To the task's end. What goes wrong for this pool is logged with its reason; the pool stays."""
        with scope(claim=claim_id(self._task_id, self._pool.account)):
            await self._run()

    async def _run(self) -> None:
        view = await self._feed.until(lambda v: v.start_ms is not None or v.phase.is_ended)
        if view.phase.is_ended:
            return
        reason = self._unfit(view)
        if reason:
            log.warning("this pool does not enter", task=self._task_id, reason=reason)
            return
        windows = Windows.of(view, self._pool.role.genesis.params.min_window_ms(len(self._pool.validators)))
        if not await self._enter(windows):
            return
        playing = asyncio.create_task(self._play(windows), name="season")
        over = asyncio.create_task(self._feed.until(self._is_over_for_us))
        try:
            await asyncio.wait({playing, over}, return_when=asyncio.FIRST_COMPLETED)
            if playing.done():
                playing.result()
            view = await over
        except PoflError as error:
            log.error("this pool is out of the task", task=self._task_id, error=error)
            self._show("lost", error.message)
            TASKS.labels("failed").inc()
        else:
            self._report(view)
        finally:
            playing.cancel()
            over.cancel()
            with contextlib.suppress(asyncio.CancelledError, PoflError):
                await playing
            await asyncio.to_thread(self._tidy)

    def _is_over_for_us(self, view: TaskView) -> bool:
        return view.phase.is_ended or self._is_outbid(view)

    def _is_outbid(self, view: TaskView) -> bool:
        """Once entries have closed and before the view is in rank order: whether others had higher bonds."""
        most = self._pool.role.genesis.params.max_pools
        return TaskPhase.TRAINING <= view.phase < TaskPhase.WORK and not is_admitted(view, self._pool.account, most)

    def _tidy(self) -> None:
        """The test set is of no more use, nor are the files of tasks long past."""
        for digest in self._feed.view.spec.test_blobs:
            self._pool.blobs.delete(digest)
        folders = sorted(self._folder.path.parent.iterdir(), key=lambda path: path.stat().st_mtime)
        for folder in folders[:-KEPT_TASKS]:
            shutil.rmtree(folder, ignore_errors=True)

    # Entry

    def _unfit(self, view: TaskView) -> str:
        """Why this pool cannot do the task, or an empty text."""
        try:
            family = ModelFamily.of(view.spec)
            if view.spec.cuts_micro:
                check_buckets(family)
            mining_job(view, self._pool.cfg.training, self._folder.practice, Milliseconds(0), None)
        except PoflError as error:
            return error.message
        return ""

    async def _enter(self, windows: Windows) -> bool:
        """Whether this pool is in the task."""
        view, pool = self._feed.view, self._pool
        if _own(view, pool.account) is not None:
            log.info("already in the task", task=self._task_id, phase=view.phase.name.lower())
            return True
        if view.phase is not TaskPhase.ENTRY:
            log.info("too late for the task", task=self._task_id, phase=view.phase.name.lower())
            return False
        features, least = view.spec.features, max(pool.cfg.min_miners, pool.cfg.training.least_miners)
        reason, is_ready = "", False
        bond = Amount(max(pool.cfg.bond, view.min_pool_bond))
        try:
            async with asyncio.timeout(pool.seconds_until(windows.entry_close_ms)):
                await pool.members.wait_ready(features, least)
                is_ready = True
                await self._send(EnterTask(self._task_id, bond, pool.endpoint), windows.entry_close_ms)
        except TimeoutError:
            waits = "the entry is in no block yet" if is_ready else pool.members.missing(features, least)
            reason = f"entry closes, {waits}"
        except PoflError as error:
            reason = error.message
        if reason:
            # What was sent may still have reached the last block of the window, and then the bond is locked.
            view = await self._feed.until(lambda v: v.phase >= TaskPhase.TRAINING)
            if _own(view, pool.account) is None:
                log.warning("this pool did not enter", task=self._task_id, reason=reason)
                return False
        log.info("entered", task=self._task_id, bond=bond, reward=view.reward, miners=len(pool.members.online))
        self._show("entered", f"bond {bond}")
        return True

    # The whole

    async def _play(self, windows: Windows) -> None:
        pool, view = self._pool, self._feed.view
        requester = pool.open(view.spec.endpoint, "requester")
        supplies = Supplies(pool, view, self._folder, requester)
        scoring = Scoring(self._folder, lambda session, batch: self._evaluation(requester, session, batch), SystemRng().bytes)
        helpers: set[asyncio.Task[None]] = set()
        try:
            claimed = self._folder.claimed
            preparing: asyncio.Task[None] | None = None
            if claimed is None:
                preparing = asyncio.create_task(self._prepare(supplies, scoring, windows), name="evaluation offline")
                helpers.add(preparing)
            committed = self._folder.committed
            if committed is None:
                if pool.clock.now_ms() >= windows.commit_close_ms:
                    raise DeadlineError("this pool has no model, and the time to commit one is over")
                trading_ = asyncio.create_task(self._trade(), name="trade")
                helpers.add(trading_)
                committed = await self._train(supplies, trading_, windows)
            await self._commit(committed, windows)
            if claimed is None:
                assert preparing is not None
                claimed = await self._evaluate(committed, preparing, scoring, windows)
            await self._claim(committed, claimed, windows)
            await self._offer(committed, claimed)
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
            await requester.close(None)

    async def _trade(self) -> None:
        view = self._feed.view
        if view.spec.cuts_micro:
            log.info("rows on the market have classes, not real targets: none are bought", task=self._task_id)
            return
        self._show("trading", "")
        buyers = self._pool.members.counted_for(view.spec.features)
        self._buyers = max(1, len(buyers))
        await trading.buy_rows(self._pool, view, buyers)

    # Training

    async def _train(self, supplies: Supplies, trade: asyncio.Task[None], windows: Windows) -> Committed:
        """Train until the deadline, quantise, encrypt: a model that only waits for its commit, on disk."""
        pool, view = self._pool, self._feed.view
        # Killed after training, it finds its run and has until the close of commits.
        practice = await supplies.practice(pool.seconds_until(windows.commit_close_ms))
        book = await pool.books.open(self._task_id)
        await asyncio.wait({trade}, timeout=ROWS_SECONDS)
        features = view.spec.features
        online = pool.members.online_for(features)
        # Who comes online later than the trade makes no share smaller.
        allowance = await trading.most_rows(pool, min(len(online), self._buyers))
        self._show("training", f"{len(online)} miners")
        recipe = await supplies.recipe()
        pool.members.assign_training(TrainOn(self._task_id, windows.training_end_ms, features, view.spec.classes, recipe))
        key = asyncio.create_task(supplies.public_key(pool.seconds_until(windows.commit_close_ms)))
        try:
            end = windows.training_end_ms if book.closing is None else pool.clock.now_ms()
            job = mining_job(view, pool.cfg.training, self._folder.practice, end, practice)
            job = replace(job, weight_factor=book.weight_factor)
            roster = pool.members.roster(features, allowance)
            result = await pool.engine.mine(job, roster, lambda report: self._on_round(report, book))
            closing = (await book.close()).closing
            shares = self._shares(result, shares_of(closing))
            public_key = await key
        finally:
            key.cancel()
        model = await pool.cpu.run(quantised, view, job, result, practice)
        body, opening = await pool.cpu.run(make_body, public_key, model, SystemRng())
        c_w = commitment(pool.chain_id, self._task_id, pool.account, body)
        committed = Committed(c_w, body, opening, tuple(Contribution(m, c) for m, c in shares.items()))
        await asyncio.to_thread(self._folder.commit, committed)
        return committed

    def _on_round(self, report: RoundReport, book: Book) -> None:
        book.record(report, self._pool.members.owner)
        heard, silent = ({bytes.fromhex(key) for key in keys} for keys in (report.heard, report.silent))
        self._pool.members.note_round(heard, silent)
        ROUNDS.inc()
        ACCURACY.set(report.practice_correct / max(1, report.practice_total))
        self._round = Round(
            report.number, report.participants, len(report.accepted), report.practice_correct, report.practice_total,
            report.seconds, report.bytes_up, report.bytes_down,
        )  # fmt: skip
        refused = {short(bytes.fromhex(key)): reason for key, reason in report.refused.items()}
        log.info(
            "round", task=self._task_id, number=report.number, participants=report.participants,
            accepted=len(report.accepted), practice=f"{report.practice_correct}/{report.practice_total}",
            seconds=round(report.seconds, 2),
        )  # fmt: skip
        detail = "; ".join(f"{key}: {reason}" for key, reason in refused.items())
        if detail:
            log.info("updates not counted", task=self._task_id, number=report.number, refused=detail)
        self._show("training", detail)

    def _shares(self, result: MiningResult, shares: dict[AccountId, int]) -> dict[AccountId, int]:
        self._pool.members.credit(shares)
        log.info(
            "training is over", task=self._task_id, rounds=result.rounds,
            practice=f"{result.best_practice_correct}/{result.best_practice_total}",
            contributions=", ".join(f"{short(account)}: {amount}" for account, amount in shares.items()),
        )  # fmt: skip
        return shares

    # Commit, evaluation, claim

    async def _commit(self, committed: Committed, windows: Windows) -> None:
        view = await self._feed.until(lambda v: v.phase >= TaskPhase.TRAINING)
        own = _own(view, self._pool.account)
        if own is None:
            raise UnavailableError("this pool is not among the entries")
        if own.model_commitment is None:
            await self._send(Commit(self._task_id, committed.commitment), windows.commit_close_ms)
        elif own.model_commitment != committed.commitment:
            raise UnavailableError(f"the chain has another commitment of this pool: {short(own.model_commitment)}")
        COMMITS.inc()
        log.info("committed", task=self._task_id, model=committed.commitment, body=len(committed.body))
        self._show("committed", f"model {short(committed.commitment)}")

    def _evaluation(self, requester: aio.Channel, session: bytes, batch: int) -> EvaluationClient:
        assert self._supply is not None
        supply = self._supply
        machine = EvaluationPool(
            supply.context, session, self._pool.account, supply.public_key, supply.test_set, SystemRng(), batch
        )
        return EvaluationClient(requester, machine, peer=self._feed.view.spec.endpoint)

    async def _prepare(self, supplies: Supplies, scoring: Scoring, windows: Windows) -> None:
        """Fetch the test set and do the offline part, from the close of entry on, if this pool is admitted."""
        self._supply = await supplies.test(self._pool.seconds_until(windows.claim_close_ms))
        log.info("encrypted test set is here", task=self._task_id, blobs=len(self._feed.view.spec.test_blobs))
        await self._feed.until(lambda v: v.phase >= TaskPhase.TRAINING)
        await scoring.prepare(lambda: self._pool.seconds_until(windows.claim_close_ms))
        log.info("offline part of the evaluation is done", task=self._task_id)

    async def _evaluate(
        self, committed: Committed, preparing: asyncio.Task[None], scoring: Scoring, windows: Windows
    ) -> Claimed:
        await preparing
        await self._feed.until(lambda v: v.phase >= TaskPhase.EVALUATION)
        self._show("evaluating", "")
        started = self._pool.clock.now_ms()
        model = model_of(committed)
        result = await scoring.evaluate(model, committed.commitment, lambda: self._pool.seconds_until(windows.claim_close_ms))
        claimed = Claimed(result.correct, result.vm)
        await asyncio.to_thread(self._folder.claim, claimed)
        EVALUATION.observe((self._pool.clock.now_ms() - started) / 1000)
        log.info(
            "evaluated", task=self._task_id, correct=result.correct, total=self._feed.view.spec.samples,
            milliseconds=self._pool.clock.now_ms() - started,
        )  # fmt: skip
        return claimed

    async def _claim(self, committed: Committed, claimed: Claimed, windows: Windows) -> None:
        view = self._feed.view
        own = _own(view, self._pool.account)
        if own is None or own.vm is None:
            await self._feed.until(lambda v: v.phase >= TaskPhase.EVALUATION)
            claim = Claim(self._task_id, claimed.correct, claimed.vm, body_digest(committed.body))
            await self._send(claim, windows.claim_close_ms)
        CLAIMS.inc()
        CLAIMED.set(claimed.correct / view.spec.samples)
        log.info("claimed", task=self._task_id, correct=claimed.correct, total=view.spec.samples)
        self._show("claimed", f"{claimed.correct} of {view.spec.samples}")

    # The work height

    async def _offer(self, committed: Committed, claimed: Claimed) -> None:
        """Offer the work block until the height is decided; serve the body when it is this claim's turn."""
        pool = self._pool
        view = await self._feed.until(lambda v: v.phase >= TaskPhase.WORK)
        if view.phase.is_ended:
            return
        tip, view = await asyncio.gather(self._work_tip(), agreed_ranking(pool.nodes, len(pool.validators), self._task_id))
        block = await self._work_block(tip, view, committed, claimed)
        watch = WorkWatch(pool.chain_id, Height(tip.height + 1), view, pool.validators, committed.commitment)
        answer = malformed(pool.chain_id, self._task_id, pool.account, committed.commitment)
        pool.shelf.put(Shown(watch, block, committed.body, encode(committed.opening), answer, view.requester))
        log.info("offering the work block", task=self._task_id, height=watch.height, rank=watch.rank + 1)
        self._show("offering", f"claim {watch.rank + 1} at height {watch.height}")
        await offer_everywhere(pool.nodes, block, watch)

    async def _work_tip(self) -> Tip:
        """The tip that the work height stands on, from a node that is there already."""
        while True:
            tip = await self._pool.chain.tip()
            if tip.work_height and tip.current_task == self._task_id and tip.certificate is not None:
                return tip
            if self._feed.view.phase.is_ended:
                raise UnavailableError("the work height was decided before this pool could offer its block")
            await asyncio.sleep(AGAIN_SECONDS)

    async def _work_block(self, tip: Tip, view: TaskView, committed: Committed, claimed: Claimed) -> Block:
        known = self._folder.work(tip.block_hash)
        if known is not None:
            return known
        check_known_version(tip.protocol_version, Height(tip.height + 1))
        pool = self._pool
        assert tip.certificate is not None
        total = work_payout_total(view.reward, pool.role.genesis.params)
        # What is paid is what was signed, to the last unit: also where the configuration changed since.
        closing = (await pool.books.open(self._task_id)).closing
        shares, cut = {c.miner: c.amount for c in committed.contributions}, pool.cfg.owner_cut_ppm
        if closing is None:
            log.error("the book of contributions is gone: paying by what was committed", task=self._task_id)
        else:
            shares, cut = shares_of(closing.closing), closing.closing.owner_cut_ppm
        block = build_work_block(
            pool.role.key,
            chain_id=pool.chain_id,
            height=Height(tip.height + 1),
            parent_hash=tip.block_hash,
            parent_state_root=tip.state_root,
            certificate=tip.certificate,
            time_ms=tip.next_time_ms,
            task_id=self._task_id,
            accuracy=Accuracy(claimed.correct, view.spec.samples),
            vm=claimed.vm,
            payouts=share_out(total, shares, pool.account, cut),
            version=tip.protocol_version,
        )
        await asyncio.to_thread(self._folder.offer, tip.block_hash, block)
        return block

    # Small things

    async def _send(self, payload: Payload, close_ms: Milliseconds) -> None:
        """A transaction that must be final before its window closes.

        Sent again while it is only too early, and when it waits long: an earlier transaction of this account may have been
        dropped, and a new copy takes the nonce that is missing (the chain takes one copy, the other is a duplicate).
        Raises TransactionError with the refusal, DeadlineError, UnavailableError when no node could be reached in time.
        """
        pool, name = self._pool, type(payload).__name__
        # The last block of the window may be final a little after the window's end on this clock.
        end = close_ms + pool.role.genesis.params.min_window_ms(len(pool.validators))
        while True:
            try:
                await pool.wallet.send_and_wait(payload, min(STUCK_SECONDS, max(1.0, pool.seconds_until(end))))
            except TransactionError as error:
                if error.reason == Refusal.DUPLICATE:
                    log.info("already on the chain", transaction=name, task=self._task_id)
                    return
                if error.reason not in EARLY or pool.seconds_until(close_ms) <= 0:
                    raise
            except (UnavailableError, DeadlineError):
                if pool.seconds_until(end) <= 0:
                    raise
            else:
                return
            await asyncio.sleep(AGAIN_SECONDS)

    def _show(self, phase: str, detail: str) -> None:
        self._pool.board.show(Progress(phase, self._task_id, self._round, detail))

    def _report(self, view: TaskView) -> None:
        won = view.phase is TaskPhase.WON and view.winner == self._pool.account
        if not view.phase.is_ended:
            detail = "other pools had higher bonds: this one is not admitted"
        elif view.phase is TaskPhase.VOID:
            detail = "the task is void: nobody won"
        elif won:
            detail = f"height {view.ended_height}"
        else:
            detail = f"pool {short(view.winner)} won" if view.winner is not None else "another pool won"
        log.info("task is over", task=self._task_id, won=won, detail=detail, height=view.ended_height)
        TASKS.labels("won" if won else "lost").inc()
        self._show("won" if won else "lost", detail)


def _own(view: TaskView, pool: AccountId) -> EntryView | None:
    return next((entry for entry in view.entries if entry.pool == pool), None)
