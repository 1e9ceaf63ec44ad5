"""A node's services over a chain that the test makes, block by block: nothing else of the node runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import grpc.aio
from pofl.chain.v1 import chain_pb2_grpc as rpc

from core.chain.block import Block
from core.chain.state import State
from core.chain.transaction import SignedTransaction
from core.codec import decode
from core.ids import AccountId, BlockHash, TxId
from core.params import Genesis
from node import queries
from node.api import NodeApi
from node.history import TaskHistory
from node.light import LightService
from node.servicer import ChainServicer
from node.signal import Signal
from node.store import ChainStore
from services.rpc.interceptor import Interceptor
from services.rpc.views import TransactionStatus, TxStatus
from services.storage.memory import Memory
from tests.chainkit import Chain, make_certificate, make_genesis


class _Driver:
    """What NodeApi asks of the driver. A transaction that is handed in is in the next block at once."""

    def __init__(self, world: World) -> None:
        self.history = TaskHistory(world.store.state)
        self.light = LightService(Memory(), world.store)
        self.finalised = Signal()
        self.pending = self
        self._world = world

    def __len__(self) -> int:
        return 0

    def next_nonce(self, state: State, account: AccountId) -> int:
        return state.account(account).nonce

    def submit(self, transaction: SignedTransaction) -> None:
        self._world.chain.block(transaction)
        self._world.follow()

    def pending_status(self, tx_id: TxId) -> TransactionStatus:
        return TransactionStatus(TxStatus.UNKNOWN)


class Recording(Chain):
    """Keeps the state after each block."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.after: dict[BlockHash, State] = {}

    def apply(self, block: Block) -> State:
        self.after[block.block_hash] = state = super().apply(block)
        return state


class World:
    """A node's store, history and services over a chain that the test makes, block by block."""

    def __init__(self, genesis: Genesis | None = None) -> None:
        self.chain = Recording(genesis or make_genesis())
        self.store = ChainStore(Memory(), self.chain.genesis)
        self.driver = _Driver(self)
        self.light = self.driver.light
        api: Any = NodeApi.__new__(NodeApi)
        api._summed = None
        api.genesis, api.names, api._store, api._driver = (
            self.chain.genesis, queries.Names(self.chain.genesis), self.store, self.driver,
        )  # fmt: skip
        api._links = SimpleNamespace(peers=())
        self.servicer = ChainServicer(api)

    def follow(self) -> None:
        """What the driver does with every new block of the chain."""
        for block in self.chain.blocks[self.store.state.height :]:
            self.commit(block)

    def commit(self, block: Block) -> None:
        state = self.chain.after[block.block_hash]
        before = self.store.state
        voters = [self.chain.name_of(v.node_id) for v in state.validators_at(state.height)]
        transactions = [decode(SignedTransaction, t).tx_id for t in block.decoded_body().transactions]
        self.light.note(before)
        self.store.commit(block, make_certificate(state, self.chain.clock, voters), state, transactions)
        self.driver.history.note(state)
        self.driver.finalised.notify()

    @asynccontextmanager
    async def served(self, port: int = 0) -> AsyncIterator[tuple[str, grpc.aio.Channel]]:
        server = grpc.aio.server(interceptors=[Interceptor(None, None)])
        rpc.add_ChainServiceServicer_to_server(self.servicer, server)
        number = server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{number}") as channel:
                yield f"127.0.0.1:{number}", channel
        finally:
            await server.stop(None)
