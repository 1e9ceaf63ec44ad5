"""``pofl bench consensus``: how fast real nodes agree, take transactions and catch up, and whether their memory grows.

Nodes run as processes and speak gRPC with mutual TLS on loopback. The long chain of ``sync`` is made in this process with
the validators' real keys, stored as a node stores it, and served by real nodes to a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from bench.verification_machine import Json, Progress, machine, process_cpu_seconds, repeated, spread, tell
from core.chain import build, rules, verify
from core.chain.records import ClaimRecord, Entry
from core.chain.state import DOMAIN_TIE
from core.chain.transaction import SignedTransaction, Transfer
from core.crypto.hashing import digest
from core.crypto.signing import KeyPair
from core.errors import DeadlineError, LimitError, NotFoundError, PoflError
from core.ids import AccountId, Amount, Digest
from core.params import ChainParams, Genesis
from node.catch_up import CatchUp
from node.folder import open_chain_folder
from node.light import LightService
from node.store import ChainStore
from services.rpc.chain_client import ChainClient
from services.rpc.views import TxStatus
from tests.node_network import Network, NodeProcess, make_network
from tests.node_world import Maker, keys

__all__ = ["best_of", "measure", "slope", "tables"]

CLAIMS: Final = 9_364
"""The paper, section V-D: an ASIC finds the best of so many in 60 us."""
ROW: Final = 50
"""Transactions of one account that wait at once; a node takes 64."""
LONGEST_S: Final = 600.0
AT_ONCE: Final = 4
"""Calls to a node that it has not answered yet, each with the transactions of one account."""
PARAMS: Final = ChainParams(idle_ms=600_000)
"""No blocks but those that a measurement asks for."""


async def measure(blocks: int, transactions: int, heights: int, runs: int, validators: int) -> Json:
    """All figures. Raises LimitError (too few of something to measure), PoflError from nodes."""
    for name, value, least in (("blocks", blocks, 64), ("transactions", transactions, 1), ("heights", heights, 8)):
        if value < least:
            raise LimitError(f"{value} {name}, at least {least} are measured")
    result: Json = {"choose_best_of_9364": best_of(CLAIMS)}
    with tempfile.TemporaryDirectory(prefix="pofl-bench-") as folder:
        result |= await _live(Path(folder), transactions, heights, runs, validators, tell)
    with tempfile.TemporaryDirectory(prefix="pofl-bench-") as folder:
        result["sync"] = await _sync(Path(folder), blocks, validators, tell)
    return {**result, "validators": validators, "machine": machine()}


def tables(result: Json) -> list[tuple[str, str]]:
    """The figures that matter, in words."""
    sync, tx = result["sync"], result["tx"]
    return [
        ("a transaction to a final block, seconds", f"{result['finalise']['seconds']:.3f}"),
        ("transactions a second", f"{tx['per_second']:.0f}"),
        ("CPU ms a transaction and node", f"{tx['cpu_ms_per_transaction_and_node']:.2f}"),
        ("blocks a second, catching up", f"{sync['blocks_per_second'] or 0:.0f}"),
        ("blocks a CPU second, catching up", f"{sync['blocks_per_cpu_second']:.0f}"),
        ("memory, MB in 1,000 blocks", f"{result['rss']['slope_mb_per_1000_blocks']:.2f}"),
        (f"best of {CLAIMS} claims, microseconds", f"{1e6 * result['choose_best_of_9364']['seconds']:.0f}"),
    ]


# -- the best claim ----------------------------------------------------------------------------------------------------


def best_of(count: int) -> Json:
    """The best of ``count`` claims, ties by hash, without a sort: from a column of their counts, and from their records."""
    rng = np.random.default_rng(count)
    counts = rng.integers(0, 10_000, count, dtype=np.uint32)
    names = [rng.bytes(32) for _ in range(count)]
    closing = bytes(32)
    records = [Entry.__new__(Entry) for _ in range(count)]
    for record, correct in zip(records, counts, strict=True):
        claim = ClaimRecord.__new__(ClaimRecord)
        object.__setattr__(claim, "correct", int(correct))
        object.__setattr__(record, "claim", claim)

    def from_column() -> int:
        best = np.flatnonzero(counts == counts.max())
        return int(min(best, key=lambda i: digest(DOMAIN_TIE, closing, names[i])))

    def from_records() -> int:
        found = [r.claim.correct for r in records]  # type: ignore[union-attr]
        top = max(found)
        return min((i for i, n in enumerate(found) if n == top), key=lambda i: digest(DOMAIN_TIE, closing, names[i]))

    assert from_column() == from_records()
    return {**repeated(201, from_column), "records": repeated(51, from_records), "claims": count}


# -- a network that decides --------------------------------------------------------------------------------------------


async def _live(folder: Path, transactions: int, heights: int, runs: int, validators: int, progress: Progress) -> Json:
    users = keys(max(1, -(-transactions // ROW)) + 1, "bench-user")
    network = _network(folder, validators, 0, users)
    try:
        await asyncio.gather(*(node.start() for node in network.nodes))
        clients = [network.client(node) for node in network.nodes]
        await asyncio.gather(*(_reach(client, 1) for client in clients))
        progress("finalise: one transaction at a time on an idle chain")
        one = _Sender(network.genesis, users[0])
        waits = [await _finalised(clients[i % len(clients)], one.next()) for i in range(runs)]
        progress(f"{transactions} transactions to {validators} nodes")
        tx = await _throughput(network, clients, users[1:], transactions)
        progress(f"memory over {heights} heights")
        rss = await _memory(network, clients, one, heights)
    finally:
        await network.close()
    return {"finalise": spread(waits), "tx": tx, "rss": rss}


async def _finalised(client: ChainClient, transaction: SignedTransaction) -> float:
    """Seconds from handing in a transaction to its finalised block on the disk of the node it was given to."""
    start = time.perf_counter()
    await client.submit(transaction)
    while (await client.transaction(transaction.tx_id)).status is not TxStatus.FINAL:
        if time.perf_counter() > start + LONGEST_S:
            raise DeadlineError(f"a transaction was not finalised within {LONGEST_S:g} s")
        await asyncio.sleep(0.005)
    return time.perf_counter() - start


async def _throughput(network: Network, clients: Sequence[ChainClient], users: Sequence[KeyPair], count: int) -> Json:
    """Until every node has the last transaction. Each account's go to one node, as a user's do."""
    rows = [_Sender(network.genesis, user).many(min(ROW, count - ROW * i)) for i, user in enumerate(users)]
    before, cpu = (await clients[0].tip()).height, _cpu(network.nodes)
    start = time.perf_counter()

    async def hand_in(client: ChainClient, mine: Sequence[Sequence[SignedTransaction]]) -> None:
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(row: Sequence[SignedTransaction]) -> None:
            async with gate:
                await _submit(client, row)

        await asyncio.gather(*(one(row) for row in mine))

    await asyncio.gather(*(hand_in(client, rows[i :: len(clients)]) for i, client in enumerate(clients)))
    handed_in = time.perf_counter() - start
    for row in rows:
        for client in clients:
            await _until_final(client, row[-1])
    seconds = time.perf_counter() - start
    blocks = (await clients[0].tip()).height - before
    cpu = _cpu(network.nodes) - cpu
    return {
        "per_second": count / seconds, "seconds": seconds, "handed_in_seconds": handed_in, "transactions": count,
        "blocks": blocks, "cpu_ms_per_transaction_and_node": 1000 * cpu / count / len(network.nodes),
    }  # fmt: skip


async def _submit(client: ChainClient, row: Sequence[SignedTransaction]) -> None:
    """All in one call; what does not fit into the mempool again and again."""
    end = time.perf_counter() + LONGEST_S
    left = list(row)
    while True:
        with contextlib.suppress(LimitError):
            refusals = await client.submit_all(left)
            left = [each for each, refusal in zip(left, refusals, strict=True) if refusal is not None]
        if not left:
            return
        if time.perf_counter() > end:
            raise DeadlineError(f"{len(left)} transactions were not taken within {LONGEST_S:g} s")
        await asyncio.sleep(0.1)


async def _until_final(client: ChainClient, transaction: SignedTransaction) -> None:
    end = time.perf_counter() + LONGEST_S
    while (await client.transaction(transaction.tx_id)).status is not TxStatus.FINAL:
        if time.perf_counter() > end:
            raise DeadlineError(f"a transaction was not finalised within {LONGEST_S:g} s")
        await asyncio.sleep(0.02)


async def _memory(network: Network, clients: Sequence[ChainClient], one: _Sender, heights: int) -> Json:
    """A process's own memory while blocks are decided, each with one transaction. The first half is left out: caches fill.

    The store's files are mapped: the part of them that the kernel keeps in memory is told apart, as it gives that back to
    whoever asks.
    """
    own: list[list[tuple[int, float]]] = [[] for _ in network.nodes]
    mapped: list[list[tuple[int, float]]] = [[] for _ in network.nodes]
    for number in range(heights):
        client = clients[number % len(clients)]
        await _finalised(client, one.next())
        height = (await client.tip()).height
        if number >= heights // 2:
            for index, node in enumerate(network.nodes):
                own[index].append((height, _resident_mb(node, "RssAnon")))
                mapped[index].append((height, _resident_mb(node, "RssFile")))
    slopes = [1000 * slope(found) for found in own]
    return {
        "slope_mb_per_1000_blocks": statistics.median(slopes), "slopes": slopes, "heights": heights,
        "mb": [found[-1][1] for found in own],
        "mapped_slope_mb_per_1000_blocks": statistics.median(1000 * slope(found) for found in mapped),
    }  # fmt: skip


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the least-squares line."""
    x, y = np.array(points, dtype=np.float64).T
    x = x - x.mean()
    return float((x * y).sum() / max(float((x * x).sum()), 1e-12))


# -- a node that catches up --------------------------------------------------------------------------------------------


async def _sync(folder: Path, blocks: int, validators: int, progress: Progress) -> Json:
    """A new node among those that hold the chain, fewer than 2/3 of which run: nothing new is decided meanwhile."""
    users = keys(50, "bench-user")
    network = _network(folder, validators, 1, users)
    new, servers = network.nodes[-1], network.nodes[: max(1, validators // 2)]
    progress(f"a chain of {blocks} blocks")
    made = await asyncio.to_thread(_make_chain, network, servers, users, blocks)
    try:
        await new.start()
        client = network.client(new)
        await _reach(client, 0)
        idle = _cpu([new])
        progress("a new node catches up")
        await asyncio.gather(*(server.start() for server in servers))
        first, start = 0, 0.0
        height = 0
        end = time.perf_counter() + LONGEST_S
        while height < blocks:
            if time.perf_counter() > end:
                raise DeadlineError(f"the new node is at height {height} after {LONGEST_S:g} s")
            await asyncio.sleep(0.2)
            height = (await client.tip()).height
            if height and not first:
                first, start = height, time.perf_counter()
        seconds = time.perf_counter() - start
        cpu = _cpu([new]) - idle
    finally:
        await network.close()
    return {
        "blocks_per_second": (blocks - first) / seconds if blocks > first else None,
        "blocks_per_cpu_second": blocks / cpu, "blocks": blocks, "transactions_per_block": 1, "peers": len(servers),
        "execute_blocks_per_cpu_second": made,
    }  # fmt: skip


def _make_chain(network: Network, servers: Sequence[NodeProcess], users: Sequence[KeyPair], blocks: int) -> float:
    """Stored for each server; how many blocks one processor second checks, executes and stores, without a network."""
    node_keys = keys(len(network.nodes), "network")
    maker = Maker(network.genesis, node_keys[: len(network.genesis.validators)])
    made = []
    for number in range(blocks):
        sender, to = users[number % len(users)], users[(number + 1) % len(users)]
        done = maker.next(maker.transaction(sender, Transfer(AccountId(to.public_key), Amount(1))))
        made.append((done.block, done.certificate))
    rate = 0.0
    for key, server in zip(node_keys, servers, strict=False):
        kv = open_chain_folder(server.config.parent / "data", network.genesis, key.public_key)
        store = ChainStore(kv, network.genesis)
        new = CatchUp(store, LightService(kv, store))
        # Made in this process: what was checked then is checked again.
        for checked in (verify.VOTES, rules.SIGNATURES):
            checked.clear()
        start = time.process_time()
        for pair in made:
            new.add(*pair)
        new.write()
        rate = blocks / (time.process_time() - start)
        kv.close()
    return rate


# -- shared ------------------------------------------------------------------------------------------------------------


class _Sender:
    """Transfers of one account, one after another."""

    def __init__(self, genesis: Genesis, key: KeyPair) -> None:
        self._chain: Digest = genesis.chain_id
        self._key = key
        self._nonce = 0

    def next(self) -> SignedTransaction:
        # To one account: what is measured over heights is the node, not a growing state.
        payload = Transfer(AccountId(self._key.public_key), Amount(1))
        made = build.make_transaction(self._key, self._chain, self._nonce, Amount(10), payload)
        self._nonce += 1
        return made

    def many(self, count: int) -> list[SignedTransaction]:
        return [self.next() for _ in range(count)]


def _network(folder: Path, validators: int, followers: int, users: Sequence[KeyPair]) -> Network:
    network = make_network(folder, validators, followers, PARAMS, users)
    for node in network.nodes:
        node.config.write_text(node.config.read_text().replace('level = "debug"', 'level = "warning"'))
    return network


async def _reach(client: ChainClient, height: int) -> None:
    end = time.perf_counter() + LONGEST_S
    while True:
        try:
            if (await client.tip()).height >= height:
                return
        except PoflError:
            if time.perf_counter() > end:
                raise
        if time.perf_counter() > end:
            raise DeadlineError(f"no node at height {height} within {LONGEST_S:g} s")
        await asyncio.sleep(0.1)


def _cpu(nodes: Sequence[NodeProcess]) -> float:
    return sum(process_cpu_seconds(node.process.pid) for node in nodes if node.process is not None)


def _resident_mb(node: NodeProcess, kind: str) -> float:
    """``kind``: RssAnon or RssFile of /proc/PID/status."""
    assert node.process is not None
    for line in Path(f"/proc/{node.process.pid}/status").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) / 1024
    raise NotFoundError(f"/proc/{node.process.pid}/status has no {kind}")
