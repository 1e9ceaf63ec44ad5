"""What this node can be asked and told, in the types of core and services.rpc.views: the servicers' other side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from typing import Final

from core.chain import rules
from core.chain.block import Block
from core.chain.state import State, total_supply
from core.chain.transaction import SignedTransaction
from core.chain.versions import version_at
from core.codec import encode
from core.errors import AheadError, AuthError, NotFoundError, TransactionError, UnavailableError
from core.ids import AccountId, Amount, BlockHash, Digest, Height, ModelCommitment, NodeId, TaskId, TxId
from core.params import Genesis
from core.verification.receipt import SignedAnswer
from node import queries
from node.driver import Driver
from node.history import TaskUpdate
from node.light import LightService
from node.links import Links
from node.store import ChainStore
from node.transcripts import TranscriptStore
from node.work import WorkHeights
from services.rpc.views import (
    AccountView,
    BlockView,
    ClaimsView,
    Explanation,
    MarketView,
    ProviderView,
    TaskPhase,
    TaskView,
    Tip,
    TradeView,
    TransactionStatus,
    TxStatus,
    ValidatorView,
    WorkView,
)

__all__ = ["MAX_AHEAD", "NodeApi"]

MAX_HEADERS_BYTES: Final = 1024 * 1024
AT_A_TIME: Final = 8
MAX_AHEAD: Final = 1_000
"""Heights after the last block that a stream waits for: a client may know a node that is a little further."""


class NodeApi:
    """Reads answer from the state after the last finalised block."""

    def __init__(
        self,
        genesis: Genesis,
        node: NodeId,
        store: ChainStore,
        driver: Driver,
        work: WorkHeights,
        links: Links,
        transcripts: TranscriptStore,
    ) -> None:
        self.genesis = genesis
        self.names = queries.Names(genesis)
        self._node = node
        self._store = store
        self._driver = driver
        self._work = work
        self._links = links
        self._transcripts = transcripts
        self._summed: tuple[State, Amount] | None = None

    # The chain

    def tip(self) -> Tip:
        state = self._store.state
        certificate = self._store.tip_certificate
        return Tip(
            height=state.height,
            block_hash=state.tip.block_hash,
            state_root=self._store.tip_root,
            certificate=certificate,
            next_time_ms=rules.next_time(state, certificate),
            current_task=state.current,
            work_height=rules.is_work_height(state),
            supply=self._supply(state),
            burned=state.burned,
            peers=len(self._links.peers),
            mempool=len(self._driver.pending),
            protocol_version=version_at(state, state.height + 1),
        )

    def _supply(self, state: State) -> Amount:
        """What exists and is not burned: summed over all that the state has, so once a block and not once a call."""
        if self._summed is None or self._summed[0] is not state:
            self._summed = state, Amount(total_supply(state) - state.burned)
        return self._summed[1]

    def block(self, key: Height | BlockHash) -> BlockView:
        """Raises NotFoundError."""
        stored = self._store.block(key)
        return queries.block_view(stored.block, stored.certificate, stored.state_root)

    async def watch_blocks(self, first: Height) -> AsyncIterator[Height]:
        """Of final blocks from ``first`` on, for ever; 0 is the next one."""
        following = first or self._store.state.height + 1
        self._check_ahead(following)
        while True:
            seen = self._driver.finalised.count
            while following <= self._store.state.height:
                yield Height(following)
                following += 1
            await self._driver.finalised.wait(seen)

    def raw_blocks(self, first: Height, count: int) -> Iterator[tuple[bytes, bytes]]:
        return self._store.raw_blocks(Height(max(first, 1)), count)

    def headers(self, first: Height, count: int) -> tuple[list[bytes], bytes]:
        """Signed headers from a height on, and the certificate of the last of them. Raises NotFoundError."""
        found = list(self._store.headers(Height(max(first, 1)), count, MAX_HEADERS_BYTES))
        last = Height(max(first, 1) + len(found) - 1)
        if not found:
            raise NotFoundError(f"no block at height {first} here, the last one is {self._store.state.height}", height=first)
        return found, encode(self._store.certificate(last))

    def explain(self, height: Height) -> Explanation:
        """Raises NotFoundError."""
        view = self.block(height)
        state = self._store.state
        task_id = view.header.task_id
        # The state forgets tasks that ended long ago; what the block says of itself is told all the same.
        known_task = None if task_id is None else state.tasks.get(task_id)
        task = None if known_task is None else queries.task_view(state, known_task)
        known = self._store.work(height)
        vm = view.header.vm
        if known is None:
            found = queries.explanation(view, task, (), {}, (), self.names, self._node, False, self.genesis.params)
        else:
            audits = {a.model_commitment: a.milliseconds for a in known.audits}
            found = queries.explanation(
                view, task, known.verdicts, audits, known.validators, self.names, self._node, params=self.genesis.params
            )
        contradictions = self._transcripts.contradictions(height)
        kept = self._transcripts.listed(height, task_id) if task_id is not None else ()
        lines = (*found.lines, *queries.contradiction_lines(contradictions, self.names))
        return replace(
            found,
            lines=lines,
            vm_bytes=self._work.body_bytes(vm.model_commitment) if vm is not None else 0,
            transcripts=tuple(queries.transcript_view(one, self._node) for one in kept),
            contradictions=tuple((encode(one.first), encode(one.second)) for one in contradictions),
            took_part=known is not None,
        )

    def transcript(self, digest: Digest) -> bytes:
        """Raises NotFoundError."""
        return self._transcripts.get(digest)

    # Accounts, tasks, trades

    def account(self, account: AccountId) -> AccountView:
        state = self._store.state
        return queries.account_view(state, self.names, account, self._driver.pending.next_nonce(state, account))

    def task(self, task_id: TaskId) -> tuple[TaskView, Height]:
        """Raises NotFoundError."""
        state = self._store.state
        return queries.task_view(state, state.task(task_id)), state.height

    def tasks(self, phases: Sequence[TaskPhase], limit: int, after: TaskId | None) -> tuple[TaskView, ...]:
        return queries.task_views(self._store.state, phases, limit, after)

    async def watch_tasks(self, first: Height) -> AsyncIterator[TaskUpdate]:
        """What blocks from ``first`` on changed of unfinished tasks, each once, for ever; 0: all now, and what follows.

        Raises NotFoundError if those updates are no longer kept, also while a slow reader falls behind, AheadError.
        """
        history = self._driver.history
        self._check_ahead(first)
        if not first:
            now = history.now
            yield replace(now, height=self._store.state.height, block_time_ms=self._store.state.tip.timestamp_ms)
            first = Height(self._store.state.height + 1) if history.now is now else Height(now.height + 1)
        while True:
            seen = self._driver.finalised.count
            for update in history.since(first):
                yield update
                first = Height(update.height + 1)
            await self._driver.finalised.wait(seen)

    async def watch_claims(self, first: Height) -> AsyncIterator[ClaimsView]:
        """The claims of blocks from ``first`` on, for ever; 0 is the next one."""
        following = first or Height(self._store.state.height + 1)
        self._check_ahead(following)
        while True:
            seen = self._driver.finalised.count
            while following <= self._store.state.height:
                found = queries.claims_view(self._store.block(following).block)
                following = Height(following + 1)
                if found.claims:
                    yield found
                # Most blocks have none: who asks from the beginning must not hold up the votes for the whole chain.
                await asyncio.sleep(0)
            await self._driver.finalised.wait(seen)

    def _check_ahead(self, first: int) -> None:
        """Raises AheadError for a height that no stream waits for."""
        tip = self._store.state.height
        if first > tip + MAX_AHEAD:
            raise AheadError(
                f"from_height is {first}, the last block here is {tip}: at most {MAX_AHEAD} heights after it are waited for",
                height=first, tip=tip,
            )  # fmt: skip

    @property
    def light(self) -> LightService:
        """What light clients are served. Raises UnavailableError where nothing is kept for them."""
        if self._driver.light is None:
            raise UnavailableError("this node serves no light clients")
        return self._driver.light

    def validators(self) -> tuple[tuple[ValidatorView, ...], Height]:
        """Who votes, will vote, or left and has its bond still locked."""
        state = self._store.state
        return queries.validator_views(state, self.names), state.height

    def providers(self) -> tuple[ProviderView, ...]:
        return queries.provider_views(self._store.state)

    def trade(self, trade_id: Digest) -> TradeView:
        """Raises NotFoundError."""
        return queries.trade_view(self._store.state, trade_id)

    def trades(
        self, provider: AccountId | None, pool: AccountId | None, limit: int, after: Digest | None
    ) -> tuple[TradeView, ...]:
        return queries.trade_views(self._store.state, provider, pool, limit, after)

    def market(self, provider: AccountId, pool: AccountId) -> MarketView:
        return queries.market_view(self._store.state, provider, pool)

    # Transactions

    def submit(self, transaction: SignedTransaction) -> TxId:
        """Raises TransactionError with its reason. The same transaction twice is accepted once."""
        if self._store.transaction_height(transaction.tx_id) is None:
            self._driver.submit(transaction)
        return transaction.tx_id

    async def submit_all(self, transactions: Sequence[SignedTransaction]) -> list[TransactionError | None]:
        """One after another; of each why it was refused, or None."""
        found: list[TransactionError | None] = []
        for number, transaction in enumerate(transactions):
            if number % AT_A_TIME == 0:
                # Each costs a check of a signature: what a vote waits for must not be a whole request.
                await asyncio.sleep(0)
            try:
                self.submit(transaction)
            except TransactionError as error:
                found.append(error)
            else:
                found.append(None)
        return found

    def transaction(self, tx_id: TxId) -> TransactionStatus:
        height = self._store.transaction_height(tx_id)
        if height is not None:
            return TransactionStatus(TxStatus.FINAL, height)
        return self._driver.pending_status(tx_id)

    # Work heights

    async def offer_work(self, block: Block, account: bytes | None) -> bool:
        """A pool's work block; whether its claim is the top remaining one. Raises BlockError, AuthError."""
        author = block.header.decoded().author_id
        if account is not None and account != author:
            raise AuthError(f"the work block is of pool {author.hex()}, the connection of {account.hex()}")
        return await self._work.offer(block)

    async def watch_work(self) -> AsyncIterator[WorkView]:
        """What is known of the height being decided, now and whenever that changes."""
        shown: WorkView | None = None
        while True:
            seen = self._work.changed.count
            view = self._work.view()
            if view != shown:
                shown = view
                yield view
            await self._work.changed.wait(seen)

    def work_block(self, height: Height, commitment: ModelCommitment) -> bytes:
        """Raises NotFoundError."""
        block = self._work.block(height, commitment)
        if block is None:
            raise NotFoundError(f"no work block of model {commitment.hex()[:8]} at height {height} here")
        return encode(block)

    async def vm_body(self, commitment: ModelCommitment) -> bytes:
        """Raises NotFoundError."""
        body = await self._work.body(commitment)
        if body is None:
            raise NotFoundError(f"no body of model {commitment.hex()[:8]} here", model_commitment=commitment)
        return body

    def opening(self, commitment: ModelCommitment, malformed: SignedAnswer) -> bytes:
        """Raises NotFoundError, CryptoError without the requester's signed answer: an opening is a model."""
        opening = self._work.opening(commitment, malformed)
        if opening is None:
            raise NotFoundError(f"no opening of model {commitment.hex()[:8]} here", model_commitment=commitment)
        return opening
