"""The chain through the eyes of any role that is not a full node: typed calls over several nodes, and a wallet.

Reads go to the node that answered last; when it cannot be reached or lags behind its deadline, the next one is asked.
Streams do the same and resume where they were, so a caller sees one unbroken stream for as long as any node lives.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Final, TypeVar

import grpc.aio
from pofl.chain.v1 import chain_pb2 as pb
from pofl.chain.v1 import chain_pb2_grpc as rpc

from core.chain.light import MAX_LIGHT, LightBlock, Trusted, follow
from core.chain.proofs import MAX_PROOF, RecordProof, TransactionProof, check_record, check_transaction
from core.chain.transaction import DOMAIN_TRANSACTION_SIGNATURE, Payload, Refusal, SignedTransaction, Transaction
from core.codec import decode, encode
from core.crypto import signing
from core.errors import (
    BlockError,
    DeadlineError,
    MalformedError,
    NotFoundError,
    PoflError,
    TransactionError,
    UnavailableError,
)
from core.ids import AccountId, Amount, BlockHash, Digest, Height, Milliseconds, TaskId, TxId, short
from core.params import Genesis, kib_begun
from services.rpc import convert_chain as convert
from services.rpc.convert_submit import results_from_proto
from services.rpc.errors import translate
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
)
from services.runtime import tracing
from services.runtime.logging import logger

__all__ = ["ChainClient", "TaskUpdate", "Wallet"]

log = logger(__name__)
T = TypeVar("T")

CALL_TIMEOUT: Final = 10.0
"""Seconds one node has for one answer."""
STREAM_TIMEOUT: Final = 3600.0
"""Seconds after which a stream is opened anew: every call has a deadline, and a caller sees no seam."""
POLL: Final = 0.2
STREAM_SECONDS: Final = 1800.0
"""A stream is opened anew after this long, where it was: every call has a deadline."""


class TaskUpdate:
    """Every unfinished task as of a block."""

    __slots__ = ("block_time_ms", "height", "tasks")

    def __init__(self, height: Height, block_time_ms: Milliseconds, tasks: tuple[TaskView, ...]) -> None:
        self.height = height
        self.block_time_ms = block_time_ms
        self.tasks = tasks


class ChainClient:
    """Calls to ChainService on any of several nodes.

    Every method raises the error tree: UnavailableError when no node can be reached, DeadlineError when none answered in
    time, and whatever the node refused with.
    """

    def __init__(self, nodes: Sequence[tuple[str, grpc.aio.Channel]]) -> None:
        """``nodes``: name and channel of each; the caller keeps and closes the channels."""
        if not nodes:
            raise UnavailableError("no node is configured: add at least one address under chain.nodes")
        self._nodes = [(name, rpc.ChainServiceStub(channel)) for name, channel in nodes]
        self._current = random.randrange(len(self._nodes))

    # Reads

    async def genesis(self) -> Genesis:
        """The chain's genesis document, checked against its own hash."""
        answer = await self._ask(lambda stub: stub.GetGenesis(pb.GetGenesisRequest(), timeout=CALL_TIMEOUT))
        genesis = Genesis.from_json(answer.genesis_json)
        if genesis.chain_id != answer.chain_id:
            raise MalformedError(f"the node's genesis has hash {genesis.chain_id.hex()}, it says {answer.chain_id.hex()}")
        return genesis

    async def tip(self) -> Tip:
        return convert.tip_from_proto(await self._ask(lambda stub: stub.GetTip(pb.GetTipRequest(), timeout=CALL_TIMEOUT)))

    async def block(self, key: Height | BlockHash) -> BlockView:
        request = pb.GetBlockRequest(block_hash=key) if isinstance(key, bytes) else pb.GetBlockRequest(height=key)
        answer = await self._ask(lambda stub: stub.GetBlock(request, timeout=CALL_TIMEOUT))
        return convert.block_from_proto(answer.block)

    async def account(self, account: AccountId) -> AccountView:
        request = pb.GetAccountRequest(account=account)
        return convert.account_from_proto(await self._ask(lambda stub: stub.GetAccount(request, timeout=CALL_TIMEOUT)))

    async def tasks(self, phases: Sequence[TaskPhase] = (), limit: int = 100, after: bytes = b"") -> tuple[TaskView, ...]:
        """Tasks of these phases (none: all), oldest first, at most ``limit`` that follow task ``after``."""
        request = pb.ListTasksRequest(phases=[convert.phase_to_proto(p) for p in phases], limit=limit, after=after)
        answer = await self._ask(lambda stub: stub.ListTasks(request, timeout=CALL_TIMEOUT))
        return tuple(convert.task_from_proto(task) for task in answer.tasks)

    async def task(self, task_id: TaskId) -> TaskView:
        request = pb.GetTaskRequest(task_id=task_id)
        answer = await self._ask(lambda stub: stub.GetTask(request, timeout=CALL_TIMEOUT))
        return convert.task_from_proto(answer.task)

    async def providers(self) -> tuple[ProviderView, ...]:
        answer = await self._ask(lambda stub: stub.ListProviders(pb.ListProvidersRequest(), timeout=CALL_TIMEOUT))
        return tuple(convert.provider_from_proto(p) for p in answer.providers)

    async def trade(self, trade_id: Digest) -> TradeView:
        request = pb.GetTradeRequest(trade_id=trade_id)
        answer = await self._ask(lambda stub: stub.GetTrade(request, timeout=CALL_TIMEOUT))
        return convert.trade_from_proto(answer.trade)

    async def trades(
        self,
        provider: AccountId | None = None,
        pool: AccountId | None = None,
        limit: int = 100,
        after: bytes = b"",
    ) -> tuple[TradeView, ...]:
        """Newest bid first, without miners, marks and reports; at most ``limit`` that follow trade ``after``."""
        request = pb.ListTradesRequest(provider=provider or b"", pool=pool or b"", limit=limit, after=after)
        answer = await self._ask(lambda stub: stub.ListTrades(request, timeout=CALL_TIMEOUT))
        return tuple(convert.trade_from_proto(trade) for trade in answer.trades)

    async def market(self, provider: AccountId, pool: AccountId) -> MarketView:
        request = pb.GetMarketRequest(provider=provider, pool=pool)
        return convert.market_from_proto(await self._ask(lambda stub: stub.GetMarket(request, timeout=CALL_TIMEOUT)))

    async def explain(self, height: Height) -> Explanation:
        request = pb.ExplainRequest(height=height)
        return convert.explanation_from_proto(await self._ask(lambda stub: stub.Explain(request, timeout=CALL_TIMEOUT)))

    async def transcript(self, digest: Digest) -> bytes:
        """A transcript that `explain` listed, its bytes unread. Raises NotFoundError, MalformedError for other bytes."""
        request = pb.GetTranscriptRequest(digest=digest)
        data = (await self._ask(lambda stub: stub.GetTranscript(request, timeout=CALL_TIMEOUT))).transcript
        if hashlib.sha256(data).digest() != digest:
            raise MalformedError(f"the node gave something else than transcript {digest.hex()}")
        return data

    async def transaction(self, tx_id: TxId) -> TransactionStatus:
        request = pb.GetTransactionRequest(tx_id=tx_id)
        answer = await self._ask(lambda stub: stub.GetTransaction(request, timeout=CALL_TIMEOUT))
        return convert.tx_status_from_proto(answer)

    async def validators(self) -> tuple[tuple[ValidatorView, ...], Height]:
        """Who votes, will vote, or left and has its bond still locked; and the height that was read at."""
        answer = await self._ask(lambda stub: stub.ListValidators(pb.ListValidatorsRequest(), timeout=CALL_TIMEOUT))
        return tuple(convert.validator_from_proto(v) for v in answer.validators), Height(answer.height)

    # For those who trust no node (core.chain.light)

    async def light_block(self, height: Height) -> LightBlock:
        """Unchecked; 0: the last one."""
        request = pb.GetLightBlockRequest(height=height)
        answer = await self._ask(lambda stub: stub.GetLightBlock(request, timeout=CALL_TIMEOUT))
        return decode(LightBlock, answer.light_block, MAX_LIGHT)

    async def follow(self, trusted: Trusted, target: Height) -> Trusted:
        """The block at ``target``, checked from a trusted one on. Raises ChainError when a node lies."""
        steps = follow(trusted, target)
        try:
            wanted = next(steps)
            while True:
                wanted = steps.send(await self.light_block(wanted))
        except StopIteration as done:
            end: Trusted = done.value
            return end

    async def prove(self, kind: type[T], table: str, key: bytes, trusted: Trusted) -> tuple[T | None, Trusted]:
        """A record of the state, or that there is none, proven to who trusts ``trusted``; and the block that commits to it."""
        request = pb.GetProofRequest(record=pb.RecordKey(table=table, key=key))
        answer = await self._ask(lambda stub: stub.GetProof(request, timeout=CALL_TIMEOUT))
        at = await self._reach(trusted, Height(answer.height))
        assert at.header is not None
        return check_record(decode(RecordProof, answer.proof, MAX_PROOF), at.header.parent_state_root, kind, key), at

    async def prove_transaction(self, tx_id: TxId, trusted: Trusted) -> tuple[SignedTransaction, Trusted]:
        """A finalised transaction and its block, proven to who trusts ``trusted``. Raises NotFoundError."""
        request = pb.GetProofRequest(tx_id=tx_id)
        answer = await self._ask(lambda stub: stub.GetProof(request, timeout=CALL_TIMEOUT))
        at = await self._reach(trusted, Height(answer.height))
        assert at.header is not None
        return check_transaction(decode(TransactionProof, answer.proof, MAX_PROOF), at.header, tx_id), at

    async def _reach(self, trusted: Trusted, height: Height) -> Trusted:
        if height < trusted.height or (height == trusted.height and trusted.header is None):
            raise BlockError(f"the proof is of height {height}, before the trusted height {trusted.height}")
        return await self.follow(trusted, height)

    # Streams

    async def watch_blocks(self, from_height: Height) -> AsyncIterator[BlockView]:
        """Finalised blocks from a height on, each once, for ever."""
        following = from_height

        async def once(stub: rpc.ChainServiceStub) -> AsyncIterator[BlockView]:
            call = stub.WatchBlocks(pb.WatchBlocksRequest(from_height=following), timeout=STREAM_SECONDS)
            async for answer in call:
                yield convert.block_from_proto(answer.block)

        async for view in self._stream(once):
            if view.header.height >= following:
                following = Height(view.header.height + 1)
                yield view

    async def watch_tasks(self) -> AsyncIterator[TaskUpdate]:
        """Unfinished tasks now, then again after every block that changed one, for ever. Heights never go back.

        After a break it goes on where it was, each update once; if no node that answers has kept those, with all
        unfinished tasks as they are then.
        """
        height, resumes = -1, True

        async def once(stub: rpc.ChainServiceStub) -> AsyncIterator[TaskUpdate]:
            nonlocal resumes
            request = pb.WatchTasksRequest(from_height=height + 1 if resumes else 0)
            resumes = height >= 0
            try:
                async for answer in stub.WatchTasks(request, timeout=STREAM_SECONDS):
                    resumes = True
                    tasks = tuple(convert.task_from_proto(task) for task in answer.tasks)
                    yield TaskUpdate(Height(answer.height), Milliseconds(answer.block_time_ms), tasks)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
                resumes = False

        async for update in self._stream(once):
            if update.height > height:
                height = update.height
                yield update

    async def watch_claims(self, from_height: Height) -> AsyncIterator[ClaimsView]:
        """The claims of finalised blocks from a height on, each once, for ever; 0: from the next block on."""
        following = from_height or Height((await self.tip()).height + 1)

        async def once(stub: rpc.ChainServiceStub) -> AsyncIterator[ClaimsView]:
            call = stub.WatchClaims(pb.WatchClaimsRequest(from_height=following), timeout=STREAM_SECONDS)
            async for answer in call:
                yield convert.claims_from_proto(answer)

        async for view in self._stream(once):
            if view.height >= following:
                following = Height(view.height + 1)
                yield view

    # Transactions

    async def submit(self, transaction: SignedTransaction) -> TxId:
        """Hand in a transaction. Raises TransactionError with its reason when it is refused. Idempotent."""
        request = pb.SubmitTransactionRequest(signed_transaction=encode(transaction))
        await self._ask(lambda stub: stub.SubmitTransaction(request, timeout=CALL_TIMEOUT, metadata=tracing.outgoing()))
        return transaction.tx_id

    async def submit_all(self, transactions: Sequence[SignedTransaction]) -> tuple[TransactionError | None, ...]:
        """Hand in 1 to MAX_SUBMITTED, in turn; of each why it was refused, or None. Idempotent. Raises MalformedError."""
        request = pb.SubmitTransactionsRequest(signed_transactions=[encode(each) for each in transactions])
        above = tracing.outgoing()
        answer = await self._ask(lambda stub: stub.SubmitTransactions(request, timeout=CALL_TIMEOUT, metadata=above))
        return results_from_proto(answer, [each.tx_id for each in transactions])

    async def wait_final(self, tx_id: TxId, timeout: float, again: SignedTransaction | None = None) -> Height:
        """Height of the block that holds the transaction.

        ``again`` is handed in anew when a node does not know it: a node that was killed forgets what was pending.
        Raises TransactionError when it is refused, DeadlineError after ``timeout`` seconds.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout
        while True:
            try:
                status = await self.transaction(tx_id)
                if status.status is TxStatus.UNKNOWN and again is not None:
                    await self.submit(again)
            except (UnavailableError, DeadlineError) as error:
                # No node can be reached just now; the transaction may become final all the same.
                log.debug("no node answers, still waiting", tx_id=tx_id, error=error)
                status = TransactionStatus(TxStatus.UNKNOWN)
            if status.status is TxStatus.FINAL and status.height is not None:
                return status.height
            if status.status is TxStatus.REFUSED:
                reason = status.reason or Refusal.MALFORMED
                raise TransactionError(f"transaction {short(tx_id)} was refused: {reason}", reason)
            if loop.time() >= end:
                raise DeadlineError(f"transaction {short(tx_id)} is not final after {timeout:g} s", tx_id=tx_id)
            await asyncio.sleep(POLL)

    # Several nodes as one

    async def _ask(self, call: Callable[[rpc.ChainServiceStub], Awaitable[T]]) -> T:
        """One answer from the first node that gives one, beginning with the one that did last."""
        failure: PoflError | None = None
        for offset in range(len(self._nodes)):
            index = (self._current + offset) % len(self._nodes)
            name, stub = self._nodes[index]
            try:
                with translate(name):
                    answer = await call(stub)
            except (UnavailableError, DeadlineError) as error:
                failure = error
                continue
            self._current = index
            return answer
        assert failure is not None
        raise failure

    async def _stream(self, once: Callable[[rpc.ChainServiceStub], AsyncIterator[T]]) -> AsyncIterator[T]:
        """A stream that moves on to the next node when one breaks off, with a growing pause after whole rounds."""
        failures = 0
        while True:
            name, stub = self._nodes[self._current]
            try:
                with translate(name):
                    async for item in once(stub):
                        failures = 0
                        yield item
            except NotFoundError:
                raise
            except PoflError as error:
                log.debug("stream broke off", node=name, error=error)
            failures += 1
            self._current = (self._current + 1) % len(self._nodes)
            rounds = failures // len(self._nodes)
            await asyncio.sleep(min(0.1 * 2**rounds, 5.0) * (0.5 + random.random()))


class Wallet:
    """One account's key: makes, signs and hands in its transactions, one nonce after the other.

    ``fee`` is for each KiB begun of a transaction, at least the chain's ``min_fee``.
    """

    def __init__(self, client: ChainClient, chain_id: Digest, key: signing.KeyPair, fee: Amount = Amount(1)) -> None:  # noqa: B008
        self._client = client
        self._chain_id = chain_id
        self._key = key
        self._fee = fee
        self._lock = asyncio.Lock()

    @classmethod
    def of(cls, client: ChainClient, genesis: Genesis, key: signing.KeyPair) -> Wallet:
        """With the fee that the chain asks."""
        return cls(client, genesis.chain_id, key, Amount(genesis.params.min_fee))

    @property
    def account(self) -> AccountId:
        return AccountId(self._key.public_key)

    def make(self, payload: Payload, nonce: int) -> SignedTransaction:
        """A signed transaction, with the wallet's fee for each KiB begun (ChainParams.least_fee)."""
        size = len(encode(Transaction(self._chain_id, self.account, nonce, self._fee, payload)))
        fee = Amount(self._fee * kib_begun(size))
        body = encode(Transaction(self._chain_id, self.account, nonce, fee, payload))
        return SignedTransaction(body, signing.sign(self._key, DOMAIN_TRANSACTION_SIGNATURE, body))

    async def send(self, payload: Payload) -> SignedTransaction:
        """Sign with the next nonce and hand in; a nonce that another transaction took meanwhile is tried anew."""
        async with self._lock:
            for attempt in range(3):
                account = await self._client.account(self.account)
                transaction = self.make(payload, account.next_nonce)
                try:
                    await self._client.submit(transaction)
                except TransactionError as error:
                    if error.reason != Refusal.BAD_NONCE or attempt == 2:
                        raise
                    await asyncio.sleep(POLL)
                else:
                    return transaction
            raise AssertionError("unreachable")

    async def send_and_wait(self, payload: Payload, timeout: float) -> tuple[TxId, Height]:
        """Send and wait until it is final. Raises TransactionError or DeadlineError."""
        transaction = await self.send(payload)
        height = await self._client.wait_final(transaction.tx_id, timeout, again=transaction)
        return transaction.tx_id, height
