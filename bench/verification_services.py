"""Model verification as it runs: a requester, pools and full nodes as processes, over gRPC with mutual TLS on loopback.

``measure`` returns what ``pofl bench verification`` prints. Only the chain is a stand-in (bench.loopback). Times are medians;
they are taken in the process that waits, from its first byte to its result.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from pofl.chain.v1 import chain_pb2
from pofl.task.v1 import task_pb2, task_pb2_grpc

from bench.loopback import ROOT, Client, Network, environment, key, network
from core.chain.block import Receipt, Vm
from core.codec import decode
from core.crypto.homomorphic import PARAMS
from core.errors import LimitError, UnavailableError
from core.ids import AccountId, Amount, Correct, Digest
from services.rpc.channel import call
from services.rpc.views import EntryView, TaskPhase, TaskView

__all__ = ["measure"]

Json = dict[str, Any]
TOGETHER: Final = 16
"""Nodes that audit one block at once."""
PAPER_AUDIT_S: Final = (1.65, 1.7)
"""Fig. 10 of the paper: verification of one block, from a simulation."""
NODE_BYTES: Final = 400_000_000
MEMORY_SHARE: Final = 0.6


async def measure(samples: int, dims: tuple[int, ...], runs: int = 5) -> Json:
    """Everything for one size: one JSON object, seconds and bytes.

    Raises:
        LimitError: fewer than one run, or layers that no task has.
        UnavailableError: a process did not do its part.
    """
    if runs < 1 or len(dims) < 3 or min(dims) < 1 or samples < 1:
        raise LimitError(f"{runs} runs of {samples} samples and layers {dims}: at least 1 run and 3 layers are needed")
    parts = await _parts(samples, dims, runs)
    with tempfile.TemporaryDirectory(prefix="pofl-bench-") as name:
        folder = Path(name)
        together, why = _room(samples, dims[0])
        async with network(folder, nodes=TOGETHER + 1) as net:
            services = await _services(net, samples, dims, runs, together)
    if not together:
        services["audit16"] = {"seconds": None, "note": why}
    return {
        "samples": samples, "layers": list(dims), "runs": runs, "cores": os.cpu_count(), "load_average": os.getloadavg()[0],
        **services, **parts,
        "paper": {"audit_seconds": list(PAPER_AUDIT_S), "note": "figure 10 of the paper, simulated: no network, no services"},
    }  # fmt: skip


def _room(samples: int, features: int) -> tuple[int, str]:
    """How many nodes fit the memory at once, each with a test set of its own."""
    batches = -(-samples // PARAMS.degree)
    each = NODE_BYTES + 16 * batches * features * PARAMS.limbs * PARAMS.degree
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if (TOGETHER + 2) * each > MEMORY_SHARE * free:
        return 0, f"{TOGETHER} nodes of {each >> 20} MiB do not fit {free >> 20} MiB of free memory"
    return TOGETHER, ""


async def _parts(samples: int, dims: tuple[int, ...], runs: int) -> Json:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.verification_parts", str(samples), ",".join(map(str, dims)), str(runs),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment(), cwd=ROOT,
    )  # fmt: skip
    out, err = await process.communicate()
    if process.returncode:
        raise UnavailableError(f"the measurement of single parts ended: {err.decode(errors='replace')[-500:]}")
    result: Json = json.loads(out)
    return result


async def _publish(net: Network, samples: int, dims: tuple[int, ...]) -> tuple[TaskView, float]:
    """The requester's own PublishTask, from the call to the transaction."""
    random, paths = np.random.default_rng(5), []
    for name, rows in (("test", samples), ("practice", 64)):
        path = net.folder / f"{name}.npz"
        labels = np.arange(rows) % dims[-1]
        np.savez(path, x=random.uniform(-1, 1, (rows, dims[0])).astype(np.float32), y=labels)
        paths.append(path)
    request = task_pb2.PublishTaskRequest(
        name="bench", test_set=str(paths[0]), practice_set=str(paths[1]), hidden=dims[1:-1],
        activation=chain_pb2.ACTIVATION_SIGMOID, weight_bits=10, reward=1_000_000,
    )  # fmt: skip
    owner = task_pb2_grpc.RequesterServiceStub(net.channel("user", "user"))
    started = time.perf_counter()
    await call(owner.PublishTask, request, 600.0)
    return next(iter(net.chain.tasks.values())), time.perf_counter() - started


async def _services(net: Network, samples: int, dims: tuple[int, ...], runs: int, together: int) -> Json:
    task, published = await _publish(net, samples, dims)
    pools = [f"pool{i}" for i in range(2 * runs if together else runs)]
    client = await net.spawn_client(task, ("node", "node0"), *(("pool", pool) for pool in pools))
    loaded = await client.ask(do="load", role="node", name="node0")
    result: Json = {"publish": {"seconds": published}, "load": loaded}

    result["evaluation"] = await _evaluations(net, task, client, pools)
    claims = result["evaluation"].pop("claims")
    first: list[Json] = []
    again: list[Json] = []
    for pool in pools[:runs]:
        for attempt in (0, 1):
            done = await client.ask(do="audit", name="node0", pool=pool, attempt=attempt, **claims[pool])
            (again if attempt else first).append(done)
    result["audit"] = {
        "seconds": _median(first), "again_seconds": _median(again), "cpu_seconds": _median(first, "cpu_seconds"),
        "traffic": first[-1]["traffic"], "runs": len(first),
        "note": "seconds: the first audit of a claim, with the requester's own scoring; again_seconds: her answer is known",
    }  # fmt: skip
    await client.close()
    if together:
        result["audit16"] = await _together(net, task, pools[runs:], claims, together)
    return result


async def _evaluations(net: Network, task: TaskView, client: Client, pools: Sequence[str]) -> Json:
    accounts = {pool: AccountId(key(pool).public_key) for pool in pools}
    entries = tuple(EntryView(account, Amount(1), "127.0.0.1:1") for account in accounts.values())
    await net.chain.change(task.task_id, phase=TaskPhase.TRAINING, entries=entries)
    offline = [await client.ask(do="prepare", name=pool, seed=seed) for seed, pool in enumerate(pools)]
    commits = [Digest(bytes.fromhex(done["model_commitment"])) for done in offline]
    committed = tuple(
        EntryView(entry.pool, entry.bond, entry.endpoint, model_commitment=c_w)  # type: ignore[arg-type]
        for entry, c_w in zip(entries, commits, strict=True)
    )
    await net.chain.change(task.task_id, phase=TaskPhase.EVALUATION, entries=committed)
    online = [await client.ask(do="evaluate", name=pool) for pool in pools]
    claims: dict[str, Json] = {}
    claimed = []
    for pool, entry, done, c_w in zip(pools, committed, online, commits, strict=True):
        receipt = decode(Receipt, bytes.fromhex(done["receipt"]))
        vm = Vm(c_w, Digest(bytes.fromhex(done["garbling_digest"])), receipt)  # type: ignore[arg-type]
        claimed.append(
            EntryView(entry.pool, entry.bond, entry.endpoint, entry.model_commitment, correct=Correct(done["correct"]), vm=vm)
        )
        claims[pool] = {
            "correct": done["correct"], "model_commitment": c_w.hex(), "garbling_digest": done["garbling_digest"],
            "receipt": done["receipt"],
        }  # fmt: skip
    await net.chain.change(task.task_id, phase=TaskPhase.WORK, entries=tuple(claimed))
    return {
        "online_seconds": _median(online), "offline_seconds": _median(offline), "runs": len(online),
        "online_traffic": online[-1]["traffic"], "offline_traffic": offline[-1]["traffic"], "claims": claims,
    }  # fmt: skip


async def _together(net: Network, task: TaskView, pools: Sequence[str], claims: dict[str, Json], count: int) -> Json:
    """All nodes begin at the same moment; until the last one has its finding."""
    names = [f"node{i + 1}" for i in range(count)]
    clients = [await net.spawn_client(task, ("node", name)) for name in names]
    for start in range(0, count, 2):
        pairs = zip(clients[start : start + 2], names[start : start + 2], strict=True)
        await asyncio.gather(*(client.ask(do="load", role="node", name=name) for client, name in pairs))
    totals, slowest, own = [], [], []
    for pool in pools:
        started = time.perf_counter()
        done = await asyncio.gather(
            *(
                client.ask(do="audit", name=name, pool=pool, attempt=0, **claims[pool])
                for client, name in zip(clients, names, strict=True)
            )
        )
        totals.append(time.perf_counter() - started)
        slowest.append(max(one["seconds"] for one in done))
        own += [one["cpu_seconds"] for one in done]
    for client in clients:
        await client.close()
    return {
        "seconds": statistics.median(totals), "slowest_seconds": statistics.median(slowest), "nodes": count,
        "cpu_seconds_per_node": statistics.median(own), "runs": len(totals),
    }  # fmt: skip


def _median(done: Sequence[Json], field: str = "seconds") -> float:
    return float(statistics.median(one[field] for one in done))


if __name__ == "__main__":
    sizes = [int(value) for value in (sys.argv[1:] or ["10000"])]
    print(json.dumps([asyncio.run(measure(size, (256, 16, 16, 10))) for size in sizes], indent=2))
