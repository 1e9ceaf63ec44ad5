"""What a network tells of itself when everything is over, as plain values: all that the invariants look at.

Fetched with the generated stubs alone, as any user could; nothing is read from the processes' folders.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import grpc
from grpc import aio
from pofl.chain.v1 import chain_pb2 as pb
from pofl.chain.v1 import chain_pb2_grpc as rpc

__all__ = ["Block", "Claim", "Facts", "Model", "Node", "Sample", "Task", "Trade", "Verdict", "fetch", "read_block"]

CALL_SECONDS: Final = 30.0
MOST_TASKS: Final = 1000
KINDS: Final = {
    pb.BLOCK_KIND_TRANSACTION: "transaction", pb.BLOCK_KIND_WORK: "work", pb.BLOCK_KIND_VOID: "void",
}  # fmt: skip
ENDS: Final = {pb.OUTCOME_KIND_REFUTED: "refuted", pb.OUTCOME_KIND_SKIPPED: "skipped", pb.OUTCOME_KIND_DEAD: "dead"}
PHASES: Final = {
    number: name.removeprefix("TASK_PHASE_").lower() for name, number in pb.TaskPhase.items() if number
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim transaction of a block."""

    task_id: bytes
    pool: bytes
    correct: int
    model: bytes
    """c_W"""


@dataclass(frozen=True, slots=True)
class Block:
    height: int
    block_hash: bytes
    header: bytes
    prev_hash: bytes
    state_root: bytes
    parent_state_root: bytes
    kind: str
    author: bytes
    task_id: bytes = b""
    correct: int = 0
    total: int = 0
    model: bytes = b""
    outcome: tuple[tuple[bytes, str], ...] = ()
    """Of a void block: claim and end, in rank order."""
    payouts: tuple[tuple[bytes, int], ...] = ()
    claims: tuple[Claim, ...] = ()
    transactions: tuple[bytes, ...] = ()
    """Their identifiers."""
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    validator: bytes
    pool: bytes
    model: bytes
    kind: str
    """valid, pool-fault, requester-fault, unavailable"""


@dataclass(frozen=True, slots=True)
class Task:
    task_id: bytes
    reward: int
    phase: str
    ended_height: int
    winner: bytes


@dataclass(frozen=True, slots=True)
class Trade:
    trade_id: bytes
    pool: bytes
    is_leaked: bool


@dataclass(frozen=True, slots=True)
class Node:
    """One node's answers."""

    name: str
    height: int
    supply: int
    burned: int
    blocks: Mapping[int, Block]
    missing: Mapping[int, str]
    """Heights up to its own that it does not serve, and what it says."""
    verdicts: Mapping[int, tuple[Verdict, ...]]
    """By height of a work or void block."""
    tasks: Mapping[bytes, Task]
    trades: Mapping[bytes, Trade] = field(default_factory=dict)
    read_at: int = 0
    """The height that supply and burned are of."""


@dataclass(frozen=True, slots=True)
class Model:
    """What the requester was given for her money, scored here on her test set."""

    correct: int
    total: int
    model: bytes
    """c_W, as she says."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A node's answer while the network ran."""

    node: str
    height: int
    supply: int
    burned: int


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything."""

    supply: int
    """Of the genesis document."""
    power: Mapping[bytes, int]
    """Of its validators."""
    burn_ppm: int
    auditors_ppm: int
    nodes: tuple[Node, ...]
    models: Mapping[bytes, Model] = field(default_factory=dict)
    """By won task, where the requester gave it out."""
    samples: tuple[Sample, ...] = ()
    names: Mapping[bytes, str] = field(default_factory=dict)
    """Of accounts, for messages."""
    lying_pools: frozenset[bytes] = frozenset()
    """Those that the manifest has lie: of all others no claim may be called false."""
    final: int = 0
    """The height that every node must serve up to: what the most advanced had before anything was fetched."""

    def name(self, account: bytes) -> str:
        return self.names.get(account, account.hex()[:8])

    def longest(self) -> Node:
        return max(self.nodes, key=lambda node: node.height)

    def up_to(self, height: int) -> Facts:
        """What was told of the blocks up to this height, as if they were the last."""

        def cut(node: Node) -> Node:
            return replace(
                node, height=min(node.height, height), blocks={h: b for h, b in node.blocks.items() if h <= height},
                missing={h: why for h, why in node.missing.items() if h <= height},
                tasks={i: t for i, t in node.tasks.items() if t.ended_height <= height},
            )  # fmt: skip

        return replace(self, nodes=tuple(cut(node) for node in self.nodes))


async def fetch(channels: Mapping[str, aio.Channel]) -> Facts:
    """Ask every node for all it has. Raises grpc.aio.AioRpcError when one does not answer at all."""
    genesis: Any = None
    nodes = []
    for name, channel in channels.items():
        stub = rpc.ChainServiceStub(channel)
        genesis = genesis or json.loads((await stub.GetGenesis(pb.GetGenesisRequest(), timeout=CALL_SECONDS)).genesis_json)
        nodes.append(await _node(name, stub))
    return Facts(
        supply=sum(a["balance"] for a in genesis["accounts"]),
        power={bytes.fromhex(v["node_id"]): v["power"] for v in genesis["validators"]},
        burn_ppm=genesis["params"]["burn_ppm"],
        auditors_ppm=genesis["params"]["auditors_ppm"],
        nodes=tuple(nodes),
    )


async def _node(name: str, stub: rpc.ChainServiceStub) -> Node:
    tip = await stub.GetTip(pb.GetTipRequest(), timeout=CALL_SECONDS)
    blocks: dict[int, Block] = {}
    missing: dict[int, str] = {}
    verdicts: dict[int, tuple[Verdict, ...]] = {}
    for height in range(1, tip.height + 1):
        try:
            answer = await stub.GetBlock(pb.GetBlockRequest(height=height), timeout=CALL_SECONDS)
            blocks[height] = read_block(answer.block)
            if blocks[height].kind != "transaction":
                told = await stub.Explain(pb.ExplainRequest(height=height), timeout=CALL_SECONDS)
                verdicts[height] = tuple(Verdict(v.validator, v.pool, v.model_commitment, v.kind) for v in told.verdicts)
        except aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise
            missing[height] = f"{error.code().name}: {error.details()}"
    tasks = await stub.ListTasks(pb.ListTasksRequest(limit=MOST_TASKS), timeout=CALL_SECONDS)
    trades = await stub.ListTrades(pb.ListTradesRequest(limit=MOST_TASKS), timeout=CALL_SECONDS)
    return Node(
        name, tip.height, tip.supply, tip.burned, blocks, missing, verdicts,
        {t.task_id: Task(t.task_id, t.reward, PHASES[t.phase], t.ended_height, t.winner) for t in tasks.tasks},
        {t.trade_id: Trade(t.trade_id, t.pool, t.is_leaked) for t in trades.trades}, tip.height,
    )  # fmt: skip


def read_block(view: pb.BlockView) -> Block:
    header = view.header
    return Block(
        height=header.height, block_hash=view.block_hash, header=view.header_bytes, prev_hash=header.prev_hash,
        state_root=view.state_root, parent_state_root=header.parent_state_root, kind=KINDS.get(header.kind, "unknown"),
        author=header.author_id, task_id=header.task_id, correct=header.accuracy.correct, total=header.accuracy.total,
        model=header.vm.model_commitment,
        outcome=tuple((o.model_commitment, ENDS.get(o.kind, "unknown")) for o in header.outcome),
        payouts=tuple((p.account, p.amount) for p in view.payouts),
        claims=tuple(_claim(t) for t in view.transactions if t.kind == "Claim"),
        transactions=tuple(t.tx_id for t in view.transactions),
        kinds=tuple(t.kind for t in view.transactions),
    )  # fmt: skip


def _claim(transaction: pb.TransactionView) -> Claim:
    told = json.loads(transaction.details_json)
    return Claim(
        bytes.fromhex(told["task_id"]), transaction.sender, told["correct"], bytes.fromhex(told["vm"]["model_commitment"])
    )
