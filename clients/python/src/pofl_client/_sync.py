"""Blocking clients of a node, a platform, a requester and a provider. Answers are the generated messages.

Made from ``_async`` by tools/client_sync.py; change that one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Generic, Self, TypeVar

import grpc
from grpc import aio
from pofl.chain.v1 import chain_pb2 as pb
from pofl.chain.v1 import chain_pb2_grpc as rpc
from pofl.market.v1 import market_pb2, market_pb2_grpc
from pofl.task.v1 import task_pb2, task_pb2_grpc

from pofl_client import values
from pofl_client._runtime_sync import Channel, Lock, connect, in_thread, invoke, shut, sleep, start, stub_of
from pofl_client.errors import (
    ConfigError,
    DeadlineError,
    LimitError,
    MalformedError,
    NotFoundError,
    PoflError,
    TransactionError,
    UnavailableError,
    from_rpc,
)
from pofl_client.tls import Tls, is_loopback, look, server_name, split
from pofl_client.values import Key, Signed, as_bytes

__all__ = ["Node", "Platform", "Provider", "Requester"]

Q = TypeVar("Q")
R = TypeVar("R")
S = TypeVar("S")

MAX_MESSAGE = 4 * 1024 * 1024
STREAM_SECONDS = 1800.0
"""Every call has a deadline, streams too: one is opened anew after this long, where it was."""
ROUNDS = 4
POLL = 0.25
SUBMIT_AT_ONCE = 64
ENDED = (pb.TASK_PHASE_WON, pb.TASK_PHASE_VOID)


class Client(Generic[S]):
    """Calls to one role at one or several addresses; the next one is asked when one cannot be reached.

    Use it in a ``with`` block, or call `close`. Every call takes ``timeout`` in seconds (None: the client's) and raises the
    tree of pofl_client.errors.
    """

    role: ClassVar[str]

    def __init__(
        self,
        target: str | Sequence[str],
        tls: Tls | Path | str | None = None,
        *,
        name: str | None = None,
        timeout: float = 10.0,
        user: str = "client",
    ) -> None:
        """Nothing is sent yet. ``target``: HOST:PORT, one or several. ``tls``: a folder with ca.pem, tls.pem and tls.key, or
        `Tls`; None only for a process of this machine that was started without TLS, which is told our name ``user``.
        ``name``: take none but the process of this name. Raises ConfigError.
        """
        self._targets = [target] if isinstance(target, str) else list(target)
        if not self._targets:
            raise ConfigError("no address is given")
        self._tls = None if tls is None else Tls.of(tls)
        for each in self._targets:
            host, _ = split(each)
            if self._tls is None and not is_loopback(host):
                raise ConfigError(f"{each} is another machine: give tls, a folder with ca.pem, tls.pem and tls.key")
        self._name = server_name(self.role, name)
        self._timeout = timeout
        self._user = user
        self._links: list[tuple[str, Channel, S]] = []
        self._current = 0
        self._is_closed = False
        self._opening = Lock()

    def _make(self, channel: Channel) -> S:
        raise NotImplementedError

    def open(self) -> Self:
        """Connect, unless that is done. Raises UnavailableError, DeadlineError, AuthError, ConfigError: why nothing answers."""
        with self._opening:
            if self._is_closed:
                raise ConfigError("this client is closed: make another one")
            if not self._links:
                self._look()
                credentials = None if self._tls is None else self._tls.credentials()
                for target in self._targets:
                    channel = connect(target, credentials, self._options())
                    self._links.append((target, channel, self._make(channel)))
        return self

    def _look(self) -> None:
        """Find the first address that can be used, or raise what is wrong with the first one."""
        failures: list[PoflError] = []
        for number, target in enumerate(self._targets):
            try:
                in_thread(look, target, self._tls, self._name, self._timeout)
            except PoflError as error:
                failures.append(error)
            else:
                self._current = number
                return
        raise failures[0]

    def _options(self) -> list[tuple[str, Any]]:
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", MAX_MESSAGE), ("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0),
            # A connection that died silently is noticed; servers here take pings that are 10 s apart.
            ("grpc.keepalive_time_ms", 20_000), ("grpc.keepalive_timeout_ms", 10_000), ("grpc.http2.max_pings_without_data", 0),
            # In spite of its name min_reconnect_backoff is the time for one attempt: TCP, TLS and the first frame are three or
            # four ways to and fro.
            ("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.min_reconnect_backoff_ms", 2_000), ("grpc.max_reconnect_backoff_ms", 5_000),
        ]  # fmt: skip
        if self._tls is None:
            return [*options, ("grpc.primary_user_agent", f"pofl-caller=user/{self._user}")]
        return [*options, ("grpc.ssl_target_name_override", self._name)]

    def close(self) -> None:
        """Calls that are running end. A closed client stays closed."""
        with self._opening:
            self._is_closed = True
            links, self._links = self._links, []
        for _, channel, _ in links:
            shut(channel)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def stub(self) -> S:
        """The generated stub of who answers now, for calls that have no method here: give each a ``timeout``."""
        if not self._links:
            raise ConfigError("the client is not open: use it in a with block, or call open()")
        return self._links[self._current][2]

    def _ask(
        self, pick: Callable[[S], aio.UnaryUnaryMultiCallable[Q, R]], request: Q, timeout: float | None, again: bool = True
    ) -> R:
        """One answer within ``timeout``. With ``again`` the request may arrive twice: others are asked, then all anew."""
        end = time.monotonic() + (self._timeout if timeout is None else timeout)
        for attempt in range(ROUNDS * len(self._targets)):
            self.open()
            target, _, stub = self._links[self._current]
            left = max(0.001, end - time.monotonic())
            others = again and len(self._targets) > 1
            try:
                return invoke(pick(stub), request, left / 2 if others else left)
            except grpc.RpcError as error:
                failure = from_rpc(error, target)
                if not isinstance(failure, UnavailableError | DeadlineError) or not again:
                    raise failure from error
            self._current = (self._current + 1) % len(self._targets)
            rounds = (attempt + 1) // len(self._targets)
            pause = 0.0 if (attempt + 1) % len(self._targets) else 0.1 * 2**rounds * (0.5 + random.random())
            if time.monotonic() + pause >= end:
                raise failure
            sleep(pause)
        raise failure

    def _stream(
        self,
        pick: Callable[[S], aio.UnaryStreamMultiCallable[Q, R]],
        request: Callable[[], Q],
        duration: float | None,
        patience: float,
    ) -> Generator[R, None, None]:
        """Answers, from a new call with a new request whenever one breaks off; it ends after ``duration`` seconds.

        Raises UnavailableError or LimitError once nobody has sent anything for ``patience`` seconds of trying.
        """
        end = None if duration is None else time.monotonic() + duration
        failing: float | None = None
        pause = 0.1
        while end is None or time.monotonic() < end:
            self.open()
            target, _, stub = self._links[self._current]
            begun = time.monotonic()
            seconds = STREAM_SECONDS if end is None else min(STREAM_SECONDS, end - begun)
            call = start(pick(stub), request(), seconds)
            failure: PoflError = UnavailableError(f"{target} ended the stream", peer=target)
            try:
                for answer in call:
                    failing, pause = None, 0.1
                    yield answer
            except grpc.RpcError as error:
                failure = from_rpc(error, target)
                if not isinstance(failure, UnavailableError | DeadlineError | LimitError):
                    raise failure from error
            finally:
                call.cancel()
            now = time.monotonic()
            if isinstance(failure, DeadlineError) and now - begun >= 0.9 * seconds:
                continue
            failing = now if failing is None else failing
            if now - failing >= patience:
                raise failure
            self._current = (self._current + 1) % len(self._targets)
            left = pause if end is None else min(pause, max(0.0, end - now))
            sleep(left * (0.5 + 0.5 * random.random()))
            pause = min(2 * pause, 5.0)


class Node(Client[rpc.ChainServiceStub]):
    """A full node, or several: the chain, its tasks, the market's book (proto/pofl/chain/v1/chain.proto)."""

    role = "node"

    def _make(self, channel: Channel) -> rpc.ChainServiceStub:
        return stub_of(rpc.ChainServiceStub, channel)

    # Reads

    def genesis(self, *, timeout: float | None = None) -> pb.GetGenesisResponse:
        """The genesis document and its hash, the chain's identifier."""
        return self._ask(lambda stub: stub.GetGenesis, pb.GetGenesisRequest(), timeout)

    def tip(self, *, timeout: float | None = None) -> pb.GetTipResponse:
        """The last final block."""
        return self._ask(lambda stub: stub.GetTip, pb.GetTipRequest(), timeout)

    def block(self, key: int | bytes | str, *, timeout: float | None = None) -> pb.BlockView:
        """A final block by height, or by hash (bytes or hexadecimal). Its hash is that of the header it comes with.

        Raises NotFoundError, and MalformedError for another block than was asked for.
        """
        by_height = isinstance(key, int)
        request = pb.GetBlockRequest(height=key) if isinstance(key, int) else pb.GetBlockRequest(block_hash=as_bytes(key))
        found = (self._ask(lambda stub: stub.GetBlock, request, timeout)).block
        checked_block(found)
        if found.header.height != request.height if by_height else found.block_hash != request.block_hash:
            raise MalformedError(f"asked for block {key!r}, got {found.header.height} {found.block_hash.hex()}")
        return found

    def account(self, account: bytes | str, *, timeout: float | None = None) -> pb.GetAccountResponse:
        """Balance, next nonce and reputation."""
        return self._ask(lambda stub: stub.GetAccount, pb.GetAccountRequest(account=as_bytes(account)), timeout)

    def tasks(
        self,
        phases: Iterable[pb.TaskPhase.ValueType] = (),
        limit: int = 100,
        after: bytes | str = b"",
        *,
        timeout: float | None = None,
    ) -> Sequence[pb.TaskView]:
        """Tasks of these phases (none: all), oldest first, at most ``limit`` that follow task ``after``."""
        request = pb.ListTasksRequest(phases=list(phases), limit=limit, after=as_bytes(after) if after else b"")
        return (self._ask(lambda stub: stub.ListTasks, request, timeout)).tasks

    def task(self, task_id: bytes | str, *, timeout: float | None = None) -> pb.TaskView:
        """Raises NotFoundError."""
        request = pb.GetTaskRequest(task_id=as_bytes(task_id))
        return (self._ask(lambda stub: stub.GetTask, request, timeout)).task

    def validators(self, *, timeout: float | None = None) -> Sequence[pb.ValidatorView]:
        """Who votes, will vote, or left and has its bond still locked."""
        return (self._ask(lambda stub: stub.ListValidators, pb.ListValidatorsRequest(), timeout)).validators

    def explain(self, height: int, *, timeout: float | None = None) -> pb.ExplainResponse:
        """Why a block won, and why others did not: ``lines`` has it in sentences."""
        return self._ask(lambda stub: stub.Explain, pb.ExplainRequest(height=height), timeout)

    # The market's book

    def providers(self, *, timeout: float | None = None) -> Sequence[pb.ProviderView]:
        """Data sets that are registered for sale, with their providers' addresses."""
        return (self._ask(lambda stub: stub.ListProviders, pb.ListProvidersRequest(), timeout)).providers

    def trades(
        self,
        provider: bytes | str = b"",
        pool: bytes | str = b"",
        limit: int = 100,
        after: bytes | str = b"",
        *,
        timeout: float | None = None,
    ) -> Sequence[pb.TradeView]:
        """Trades of a provider, of a pool, or all; newest bid first, at most ``limit`` that follow trade ``after``."""
        ids = [as_bytes(each) if each else b"" for each in (provider, pool, after)]
        request = pb.ListTradesRequest(provider=ids[0], pool=ids[1], limit=limit, after=ids[2])
        return (self._ask(lambda stub: stub.ListTrades, request, timeout)).trades

    def trade(self, trade_id: bytes | str, *, timeout: float | None = None) -> pb.TradeView:
        """One trade with its miners, marks and reports. Raises NotFoundError."""
        request = pb.GetTradeRequest(trade_id=as_bytes(trade_id))
        return (self._ask(lambda stub: stub.GetTrade, request, timeout)).trade

    def market(self, provider: bytes | str, pool: bytes | str, *, timeout: float | None = None) -> pb.GetMarketResponse:
        """The highs that an offer of this provider to this pool uses now, and the pool's reputation."""
        request = pb.GetMarketRequest(provider=as_bytes(provider), pool=as_bytes(pool))
        return self._ask(lambda stub: stub.GetMarket, request, timeout)

    # Transactions

    def submit(self, signed: bytes | Signed, *, timeout: float | None = None) -> bytes:
        """Hand in a signed transaction; its identifier. The same one twice is accepted once.

        Raises TransactionError, whose ``reason`` is one stable word.
        """
        data = signed.data if isinstance(signed, Signed) else signed
        request = pb.SubmitTransactionRequest(signed_transaction=data)
        return (self._ask(lambda stub: stub.SubmitTransaction, request, timeout)).tx_id

    def submit_all(
        self, signed: Sequence[bytes | Signed], *, timeout: float | None = None
    ) -> list[pb.SubmitTransactionsResponse.Result]:
        """Hand in many, 64 a call; of each what became of it (``refusal`` is empty: accepted)."""
        data = [each.data if isinstance(each, Signed) else each for each in signed]
        found: list[pb.SubmitTransactionsResponse.Result] = []
        for first in range(0, len(data), SUBMIT_AT_ONCE):
            request = pb.SubmitTransactionsRequest(signed_transactions=data[first : first + SUBMIT_AT_ONCE])
            found += (self._ask(lambda stub: stub.SubmitTransactions, request, timeout)).results
        return found

    def transfer(
        self, key: Key, to: bytes | str, amount: int, *, fee: int | None = None, timeout: float | None = None
    ) -> Signed:
        """Sign and hand in a transfer with the account's next nonce and the least fee, for `wait_transaction` to wait for."""
        genesis = self.genesis(timeout=timeout)
        nonce = (self.account(key.public_key, timeout=timeout)).next_nonce
        least = values.least_fee(genesis.genesis_json, 0)
        signed = values.transfer(key, genesis.chain_id, nonce, least if fee is None else fee, as_bytes(to), amount)
        self.submit(signed, timeout=timeout)
        return signed

    def transaction(self, tx_id: bytes | str, *, timeout: float | None = None) -> pb.GetTransactionResponse:
        """Where a transaction is: pending, final (in which block), refused or unknown."""
        request = pb.GetTransactionRequest(tx_id=as_bytes(tx_id))
        return self._ask(lambda stub: stub.GetTransaction, request, timeout)

    def wait_transaction(self, transaction: Signed | bytes | str, timeout: float) -> int:
        """The height of the block that it is final in. While no node can be reached it goes on waiting.

        A whole transaction is handed in again where it is not known: a node that was killed forgets what was pending.
        Raises TransactionError if it is refused, DeadlineError.
        """
        end = time.monotonic() + timeout
        wanted = transaction.tx_id if isinstance(transaction, Signed) else as_bytes(transaction)
        while (left := end - time.monotonic()) > 0:
            try:
                found = self.transaction(wanted, timeout=left)
                if found.status == pb.TRANSACTION_STATUS_UNKNOWN and isinstance(transaction, Signed):
                    self.submit(transaction, timeout=left)
            except (UnavailableError, DeadlineError):
                found = pb.GetTransactionResponse()
            if found.status == pb.TRANSACTION_STATUS_FINAL:
                return found.height
            if found.status == pb.TRANSACTION_STATUS_REFUSED:
                raise TransactionError(f"transaction {wanted.hex()} was refused: {found.reason}", reason=found.reason)
            sleep(min(POLL, left))
        raise DeadlineError(f"transaction {wanted.hex()} is not final after {timeout:g} s")

    def wait_task(
        self, task_id: bytes | str, timeout: float, phases: Iterable[pb.TaskPhase.ValueType] = ENDED
    ) -> pb.TaskView:
        """The task once it is in one of ``phases``: by default won, with ``winner`` and ``ended_height``, or void.

        A task that is not there yet is waited for too, and while no node can be reached it goes on waiting. Raises
        DeadlineError with what was known last.
        """
        end = time.monotonic() + timeout
        wanted, awaited, last = as_bytes(task_id), frozenset(phases), "unknown"
        while (left := end - time.monotonic()) > 0:
            try:
                found = self.task(wanted, timeout=left)
                if found.phase in awaited:
                    return found
                last = pb.TaskPhase.Name(found.phase)
            except NotFoundError:
                last = "unknown"
            except (UnavailableError, DeadlineError) as error:
                last = f"unknown ({error.message})"
            sleep(min(2 * POLL, left))
        raise DeadlineError(f"task {wanted.hex()} is {last} after {timeout:g} s")

    def check_transaction(
        self, tx_id: bytes | str, trusted_hash: bytes | str, *, timeout: float | None = None
    ) -> pb.BlockView:
        """The block with the hash ``trusted_hash``, if the transaction is in it: checked here, from the hash alone.

        So the hash must come from somebody who is believed; a client that believes nobody is in docs/light-client.md.
        Raises ChainError if the proof does not hold, NotFoundError.
        """
        wanted, trusted = as_bytes(tx_id), as_bytes(trusted_hash)
        answer = self._ask(lambda stub: stub.GetProof, pb.GetProofRequest(tx_id=wanted), timeout)
        block = self.block(answer.height, timeout=timeout)
        values.check_included(answer.proof, block.header_bytes, wanted, trusted)
        return block

    # Streams

    def watch_blocks(
        self, from_height: int = 0, *, duration: float | None = None, patience: float = 60.0
    ) -> Generator[pb.BlockView, None, None]:
        """Final blocks from a height on (0: the next one), each once and in order; after a break it goes on where it was.

        Ends after ``duration`` seconds, or never. Raises UnavailableError when no node has answered for ``patience`` seconds,
        NotFoundError for heights that are pruned.
        """
        following = from_height or (self.tip()).height + 1
        stream = self._stream(
            lambda stub: stub.WatchBlocks, lambda: pb.WatchBlocksRequest(from_height=following), duration, patience
        )
        with closing(stream):
            for answer in stream:
                checked_block(answer.block)
                height = answer.block.header.height
                if height > following:
                    raise MalformedError(f"the node left out block {following}: it sent {height}")
                if height == following:
                    following = height + 1
                    yield answer.block

    def watch_claims(
        self, from_height: int = 0, *, duration: float | None = None, patience: float = 60.0
    ) -> Generator[pb.WatchClaimsResponse, None, None]:
        """The claims of final blocks from a height on (0: the next one), block by block; as `watch_blocks`."""
        following = from_height or (self.tip()).height + 1
        stream = self._stream(
            lambda stub: stub.WatchClaims, lambda: pb.WatchClaimsRequest(from_height=following), duration, patience
        )
        with closing(stream):
            for answer in stream:
                if answer.height >= following:
                    following = answer.height + 1
                    yield answer

    def watch_tasks(
        self, from_height: int = 0, *, duration: float | None = None, patience: float = 60.0
    ) -> Generator[pb.WatchTasksResponse, None, None]:
        """All unfinished tasks now, then again after every block that changed one; with ``from_height`` what blocks from
        there on changed. After a break it goes on where it was, or, if that is not kept, with all unfinished tasks then.
        """
        last, following = -1, from_height

        def request() -> pb.WatchTasksRequest:
            return pb.WatchTasksRequest(from_height=following)

        while True:
            stream = self._stream(lambda stub: stub.WatchTasks, request, duration, patience)
            try:
                with closing(stream):
                    for answer in stream:
                        if answer.height > last:
                            last, following = answer.height, answer.height + 1
                            yield answer
                return
            except NotFoundError:
                if last < 0 or not following:
                    raise
                following = 0


class Platform(Client[task_pb2_grpc.PlatformServiceStub]):
    """A platform: the front end for tasks (proto/pofl/task/v1/task.proto)."""

    role = "platform"

    def _make(self, channel: Channel) -> task_pb2_grpc.PlatformServiceStub:
        return stub_of(task_pb2_grpc.PlatformServiceStub, channel)

    def submit_task(self, signed: bytes | Signed, *, timeout: float | None = None) -> task_pb2.SubmitTaskResponse:
        """Hand in a signed PublishTask transaction. Raises TransactionError."""
        data = signed.data if isinstance(signed, Signed) else signed
        request = task_pb2.SubmitTaskRequest(signed_transaction=data)
        return self._ask(lambda stub: stub.SubmitTask, request, timeout)

    def tasks(
        self,
        phases: Iterable[pb.TaskPhase.ValueType] = (),
        limit: int = 100,
        after: bytes | str = b"",
        *,
        timeout: float | None = None,
    ) -> Sequence[pb.TaskView]:
        """As a node's."""
        request = task_pb2.ListTasksRequest(phases=list(phases), limit=limit, after=as_bytes(after) if after else b"")
        return (self._ask(lambda stub: stub.ListTasks, request, timeout)).tasks

    def current_task(self, *, timeout: float | None = None) -> pb.TaskView | None:
        """The task that pools work on now."""
        found = self._ask(lambda stub: stub.GetCurrentTask, task_pb2.GetCurrentTaskRequest(), timeout)
        return found.task if found.HasField("task") else None

    def watch_tasks(
        self, *, duration: float | None = None, patience: float = 60.0
    ) -> Generator[task_pb2.WatchTasksResponse, None, None]:
        """All unfinished tasks now, then again after every block that changed one. Heights never go back."""
        last = -1
        stream = self._stream(lambda stub: stub.WatchTasks, task_pb2.WatchTasksRequest, duration, patience)
        with closing(stream):
            for answer in stream:
                if answer.height > last:
                    last = answer.height
                    yield answer


class Requester(Client[task_pb2_grpc.RequesterServiceStub]):
    """One's own requester: publishes tasks from files on its machine, and has the models (proto/pofl/task/v1/task.proto)."""

    role = "requester"

    def _make(self, channel: Channel) -> task_pb2_grpc.RequesterServiceStub:
        return stub_of(task_pb2_grpc.RequesterServiceStub, channel)

    def publish_task(
        self,
        name: str,
        test_set: Path | str,
        practice_set: Path | str,
        reward: int,
        *,
        hidden: Sequence[int] = (16,),
        activation: pb.Activation.ValueType = pb.ACTIVATION_SIGMOID,
        bond: int = 0,
        weight_bits: int = 0,
        cuts_micro: Sequence[int] = (),
        buckets: int = 0,
        timeout: float = 300.0,
    ) -> task_pb2.PublishTaskResponse:
        """Have a test set encrypted and a task published for it; ``warnings`` of the answer say what leaks.

        Paths are the requester's, and absolute; with ``cuts_micro`` or ``buckets`` the task is a regression. It is sent once:
        after a DeadlineError or UnavailableError look at `own_tasks` before publishing again. Raises MalformedError and
        others with what is wrong with the data.
        """
        for path in (test_set, practice_set):
            if not Path(path).is_absolute():
                raise ConfigError(f"{path} is not absolute: it is a file on the requester's machine")
        request = task_pb2.PublishTaskRequest(
            name=name, test_set=str(test_set), practice_set=str(practice_set), hidden=hidden, activation=activation,
            weight_bits=weight_bits, reward=reward, bond=bond, cuts_micro=cuts_micro, buckets=buckets,
        )  # fmt: skip
        return self._ask(lambda stub: stub.PublishTask, request, timeout, again=False)

    def own_tasks(self, *, timeout: float | None = None) -> Sequence[task_pb2.OwnTask]:
        """Its tasks, and what became of them."""
        return (self._ask(lambda stub: stub.ListOwnTasks, task_pb2.ListOwnTasksRequest(), timeout)).tasks

    def fetch_model(self, task_id: bytes | str = b"", *, timeout: float | None = None) -> task_pb2.FetchModelResponse:
        """The winning model of a task (none given: of the newest won one): its canonical bytes, which `pofl model score` reads
        from a file, and the accuracy its block says. Raises ProtocolError until its work block is final, NotFoundError.
        """
        request = task_pb2.FetchModelRequest(task_id=as_bytes(task_id) if task_id else b"")
        return self._ask(lambda stub: stub.FetchModel, request, timeout)

    def watch_activity(
        self, *, duration: float | None = None, patience: float = 60.0
    ) -> Generator[task_pb2.WatchActivityResponse, None, None]:
        """Steps of evaluations, audits and checks from now on. What happens during a break is not told again."""
        stream = self._stream(lambda stub: stub.WatchActivity, task_pb2.WatchActivityRequest, duration, patience)
        with closing(stream):
            for answer in stream:
                yield answer


class Provider(Client[market_pb2_grpc.ProviderServiceStub]):
    """A provider of data (proto/pofl/market/v1/market.proto)."""

    role = "provider"

    def _make(self, channel: Channel) -> market_pb2_grpc.ProviderServiceStub:
        return stub_of(market_pb2_grpc.ProviderServiceStub, channel)

    def offers(self, *, timeout: float | None = None) -> Sequence[market_pb2.DataSet]:
        """The data sets on sale, each with the rule that its price follows from."""
        return (self._ask(lambda stub: stub.ListDataSets, market_pb2.ListDataSetsRequest(), timeout)).data_sets


def checked_block(block: pb.BlockView) -> None:
    """Raises MalformedError unless its hash is its header's."""
    if values.block_hash(block.header_bytes) != block.block_hash:
        raise MalformedError(f"block {block.header.height}: {block.block_hash.hex()} is not the hash of its header")
