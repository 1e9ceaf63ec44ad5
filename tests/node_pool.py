"""A small pool for tests of the node: enters, commits a random model, evaluates, claims what it is told, serves its work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from grpc import aio
from pofl.peer.v1 import peer_pb2 as pb
from pofl.peer.v1 import peer_pb2_grpc as rpc

from core.chain import build
from core.chain.block import Accuracy, Block, Payout
from core.chain.ledger import work_payout_total
from core.chain.transaction import Claim, Commit, EnterTask
from core.crypto.signing import KeyPair
from core.errors import NotFoundError
from core.ids import AccountId, Amount, Correct, Height
from core.ports import SystemRng
from core.verification.body import body_digest, commitment, make_body
from core.verification.evaluation_pool import EvaluationPool, EvaluationResult
from core.verification.task import TaskContext
from core.verification.test_set import EncryptedTestSet
from services.rpc import blobs
from services.rpc.blob_store import BlobStore
from services.rpc.chain_client import ChainClient, Wallet
from services.rpc.channel import connect
from services.rpc.peer_client import offer_work
from services.rpc.server import RpcServer
from services.rpc.verify_client import EvaluationClient
from services.rpc.views import TaskPhase, TaskView
from tests.models import random_model
from tests.node_network import HOST, Network

RNG = SystemRng()
LONG = 120.0
"""Seconds, for what takes one or two on a machine that does nothing else."""


class SmallPool(rpc.ClaimServiceServicer):
    """``says``: what it claims, given the true count."""

    def __init__(self, network: Network, name: str, key: KeyPair, client: ChainClient, says: Callable[[int, int], int]) -> None:
        self.network, self.name, self.key, self.client, self.says = network, name, key, client, says
        self.account = AccountId(key.public_key)
        self.wallet = Wallet(client, network.genesis.chain_id, key)
        self.files = network.files("pool", name, key.public_key)
        self.body = b""
        self.block: Block | None = None
        self.result: EvaluationResult | None = None
        self.serves_body = True
        self.shown: bytes | None = None
        """Its opening, if it shows one."""
        self.server = RpcServer(
            f"{HOST}:0", self.files, f"{HOST}:0", role_rules={"pofl.peer.v1.ClaimService": ["node", "requester"]},
            identity=network.identity("pool", name, key),
        )  # fmt: skip
        self.server.add(rpc.add_ClaimServiceServicer_to_server, self, "pofl.peer.v1.ClaimService")

    async def FetchWork(self, request: pb.FetchWorkRequest, context: Any) -> pb.FetchWorkResponse:  # noqa: N802
        if self.block is None:
            raise NotFoundError("no block yet")
        return pb.FetchWorkResponse(block=self.block.to_bytes())

    async def FetchVm(self, request: pb.FetchVmRequest, context: Any) -> AsyncIterator[pb.FetchVmResponse]:  # noqa: N802
        if not self.serves_body:
            raise NotFoundError("not served")
        for offset in range(0, len(self.body), 1 << 18):
            total = len(self.body) if offset == 0 else 0
            yield pb.FetchVmResponse(chunk=self.body[offset : offset + (1 << 18)], total_bytes=total)

    async def FetchOpening(self, request: pb.FetchOpeningRequest, context: Any) -> AsyncIterator[pb.FetchOpeningResponse]:  # noqa: N802
        if self.shown is None:
            raise NotFoundError("this pool opens nothing")
        yield pb.FetchOpeningResponse(chunk=self.shown, total_bytes=len(self.shown))

    async def play(self, task: TaskView, requester: aio.Channel, offer_to: list[aio.Channel]) -> None:
        """A whole task, to the offer of the work block."""
        chain_id, spec = self.network.genesis.chain_id, task.spec
        await self.until(task, TaskPhase.ENTRY)
        await self.wallet.send_and_wait(EnterTask(task.task_id, task.min_pool_bond, self.server.address), LONG)
        context = TaskContext(chain_id, task.task_id, task.requester, spec)
        store = BlobStore(self.network.folder / f"blobs-{self.name}", 1 << 30)
        # A node has the test set as well as the requester.
        source = connect(self.network.nodes[0].address, self.files, expect_role="node")
        for digest in (*spec.test_blobs, spec.public_key_blob):
            await blobs.fetch(source, digest, 1 << 24, store, LONG)
        await source.close(None)
        pk = context.public_key(store.get(spec.public_key_blob))
        test_set = EncryptedTestSet.load(context, [store.get(d) for d in spec.test_blobs])
        evaluation = EvaluationClient(
            requester, EvaluationPool(context, RNG.bytes(32), self.account, pk, test_set, RNG), peer="requester"
        )
        await self.until(task, TaskPhase.TRAINING)
        model = random_model((spec.features, *spec.hidden, spec.classes), spec.activation, ord(self.name[-1]))
        self.body, _ = make_body(pk, model, RNG)
        c_w = commitment(chain_id, task.task_id, self.account, self.body)
        await self.wallet.send_and_wait(Commit(task.task_id, c_w), LONG)
        await evaluation.prepare(LONG)
        await self.until(task, TaskPhase.EVALUATION)
        self.result = await evaluation.evaluate(model, c_w, LONG)
        said = Correct(self.says(self.result.correct, spec.samples))
        await self.wallet.send_and_wait(Claim(task.task_id, said, self.result.vm, body_digest(self.body)), LONG)
        await self.until(task, TaskPhase.WORK)
        tip = await self.client.tip()
        assert tip.certificate is not None
        total = work_payout_total(task.reward, self.network.genesis.params)
        self.block = build.build_work_block(
            self.key, chain_id=chain_id, height=Height(tip.height + 1), parent_hash=tip.block_hash,
            parent_state_root=tip.state_root, certificate=tip.certificate, time_ms=tip.next_time_ms, task_id=task.task_id,
            accuracy=Accuracy(said, spec.samples), vm=self.result.vm, payouts=(Payout(self.account, Amount(total)),),
            version=tip.protocol_version,
        )  # fmt: skip
        for channel in offer_to:
            await offer_work(channel, self.block, LONG)

    async def until(self, task: TaskView, phase: TaskPhase) -> TaskView:
        async with asyncio.timeout(LONG):
            async for update in self.client.watch_tasks():
                view = next((t for t in update.tasks if t.task_id == task.task_id), None)
                if view is None or view.phase >= phase:
                    break
        return await self.client.task(task.task_id)
