"""Model verification as it runs: a requester, pools and full nodes as processes, over gRPC with mutual TLS on loopback.

``measure`` returns what ``pofl bench verification`` prints for one size. Only the chain is a stand-in (bench.loopback). Times
are taken in the process that waits, from its first byte to its result; medians, least and greatest of all runs are given.
Bytes are given each way, seen from the requester. docs/bench.md says what each number means.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import psutil
from pofl.chain.v1 import chain_pb2
from pofl.task.v1 import task_pb2, task_pb2_grpc

from bench.loopback import ROOT, Client, Network, end, environment, key, network
from bench.verification_machine import Json, Progress, machine, peak_memory, process_cpu_seconds, spread, tell
from core.chain.block import Receipt, Vm
from core.codec import decode
from core.crypto.circuits import MAX_LABEL_BITS, MAX_SAMPLES
from core.crypto.homomorphic import PARAMS
from core.errors import LimitError, UnavailableError
from core.ids import AccountId, Amount, Correct, Digest
from services.rpc.channel import call
from services.rpc.views import EntryView, TaskPhase, TaskView

__all__ = ["TOGETHER", "check_size", "measure"]

TOGETHER: Final = 16
"""Nodes that audit one block at once."""
PAPER: Final = {
    "audit_seconds": [1.65, 1.7], "best_of_9364_claims_seconds": 60e-6,
    "note": "section V-D and Fig. 11, 10,000 samples: simulated, without a network or services; the best claim on an ASIC",
}  # fmt: skip
NODE_BYTES: Final = 400_000_000
MEMORY_SHARE: Final = 0.6
SLOWEST_PUBLISH_S: Final = 600.0
NOTICED_S: Final = 0.5
"""By then the requester has heard of a change on chain; a node that comes earlier is told so and comes again."""


def check_size(samples: int, dims: tuple[int, ...], runs: int, nodes: int) -> None:
    """Raises LimitError for a size that no task has, before anything is started."""
    if runs < 1 or nodes < 0:
        raise LimitError(f"{runs} runs and {nodes} nodes: at least 1 run, and no negative number of nodes", runs=runs)
    if not 1 <= samples <= MAX_SAMPLES:
        raise LimitError(f"{samples} samples: 1 to {MAX_SAMPLES} can be scored", samples=samples)
    if len(dims) < 3 or min(dims) < 1:
        raise LimitError(
            f"layers {_named(dims)}: features, at least one hidden layer, and classes are needed, like 256,16,16,10"
        )
    if not 2 <= dims[-1] <= min(1 << MAX_LABEL_BITS, samples):
        raise LimitError(f"{dims[-1]} classes and {samples} samples: at least 2 classes, and a sample of each, are needed")


async def measure(samples: int, dims: tuple[int, ...], runs: int = 5, nodes: int = TOGETHER, progress: Progress = tell) -> Json:
    """Everything for one size. ``nodes``: how many audit at once; 0 leaves that out.

    Raises:
        LimitError: a size that no task has.
        UnavailableError, DeadlineError: a process did not do its part.
    """
    check_size(samples, dims, runs, nodes)

    def say(text: str) -> None:
        progress(f"{samples} samples: {text}")

    began, before = time.perf_counter(), machine()
    parts = await _parts(samples, dims, runs, say)
    with tempfile.TemporaryDirectory(prefix="pofl-bench-") as name:
        _check_disk(Path(name), samples, dims[0])
        together, why = _room(samples, dims[0], nodes)
        async with network(Path(name), nodes=nodes + 1) as net:
            services = await _services(net, samples, dims, runs, together, say)
    if not together:
        services["audit16"] = {"seconds": None, "note": why}
    services["evaluation"]["he_bytes"] = _homomorphic(services["evaluation"], parts)
    return {
        "samples": samples, "layers": list(dims), "runs": runs, "machine": before, "load_average_after": list(os.getloadavg()),
        "whole_seconds": time.perf_counter() - began, **services, **parts, "paper": PAPER,
    }  # fmt: skip


def _named(dims: tuple[int, ...]) -> str:
    return ",".join(map(str, dims))


def _room(samples: int, features: int, nodes: int) -> tuple[int, str]:
    """How many nodes fit the memory at once, each with a test set of its own."""
    if not nodes:
        return 0, "left out; measured for a single size, or with --nodes"
    batches = -(-samples // PARAMS.degree)
    each = NODE_BYTES + 16 * batches * features * PARAMS.limbs * PARAMS.degree
    free = psutil.virtual_memory().available  # what the system caches of files is given back when it is wanted
    if (nodes + 2) * each > MEMORY_SHARE * free:
        return 0, f"{nodes} nodes of {each >> 20} MiB do not fit {free >> 20} MiB of free memory"
    return nodes, ""


def _check_disk(folder: Path, samples: int, features: int) -> None:
    """The blobs are stored by the requester and by the one that fetches them."""
    wanted = 2 * 10 * PARAMS.degree * PARAMS.limbs * features * -(-samples // PARAMS.degree)
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise UnavailableError(f"{wanted >> 20} MiB are needed under {folder.parent}, {free >> 20} MiB are free: set TMPDIR")


async def _parts(samples: int, dims: tuple[int, ...], runs: int, say: Progress) -> Json:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.verification_parts", str(samples), _named(dims), str(runs),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment(),
        cwd=ROOT, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    last = ""
    try:
        while line := (await process.stderr.readline()).decode(errors="replace"):
            if line.startswith("# "):
                say(line[2:].rstrip())
            elif line.strip():
                last = line.strip()
        out = await process.stdout.read()
        if await process.wait():
            raise UnavailableError(f"the measurement of single parts ended: {last[:500]}")
    finally:
        await asyncio.shield(end(process))
    result: Json = json.loads(out)
    return result


async def _publish(net: Network, samples: int, dims: tuple[int, ...]) -> tuple[TaskView, Json]:
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
    cpu, started = process_cpu_seconds(net.requester_pid), time.perf_counter()
    response = await call(owner.PublishTask, request, SLOWEST_PUBLISH_S)
    seconds = time.perf_counter() - started
    return next(iter(net.chain.tasks.values())), {
        "seconds": seconds, "requester_cpu_seconds": process_cpu_seconds(net.requester_pid) - cpu,
        "bytes": {
            "to_requester": request.ByteSize(), "from_requester": response.ByteSize(),
            "to_chain": net.chain.transaction_bytes,
        },
    }  # fmt: skip


async def _services(net: Network, samples: int, dims: tuple[int, ...], runs: int, together: int, say: Progress) -> Json:
    say("publishing: the requester encrypts her test set")
    task, published = await _publish(net, samples, dims)
    pools = [f"pool{i}" for i in range(2 * runs if together else runs)]
    client = await net.spawn_client(task, ("node", "node0"), *(("pool", pool) for pool in pools))
    say("loading: a node fetches and unpacks it")
    loaded = await client.ask(do="load", role="node", name="node0")
    load = {
        "seconds": loaded["seconds"], "fetch_seconds": loaded["fetch_seconds"], "unpack_seconds": loaded["unpack_seconds"],
        "cpu_seconds": loaded["cpu_seconds"], "bytes": {"to_requester": 0, "from_requester": loaded["blob_bytes"]},
        "wire_bytes": loaded["wire_bytes"],
    }  # fmt: skip
    result: Json = {"publish": published, "load": load}
    result["evaluation"], claims = await _evaluations(net, task, client, pools, say)
    first: list[Json] = []
    again: list[Json] = []
    for number, pool in enumerate(pools[:runs]):
        say(f"audit {number + 1} of {runs}")
        await claims[pool].comes_up(net, task)
        for attempt, rows in enumerate((first, again)):
            async with _counted(net, rows) as row:
                row.update(await client.ask(do="audit", name="node0", pool=pool, attempt=attempt, **claims[pool].asked))
    result["audit"] = {
        **_summary(first), "again": _summary(again), "all_seconds": [row["seconds"] for row in first],
        "note": "seconds: the first audit of a claim, with the requester's own scoring; again: her answer is known",
    }  # fmt: skip
    memory = {"node_and_pool_bytes": (await client.ask(do="memory"))["peak_memory_bytes"]}
    await client.close()
    if together:
        result["audit16"] = await _together(net, task, pools[runs:], claims, together, say)
    result["peak_memory"] = {**memory, "requester_bytes": peak_memory(net.requester_pid)}
    return result


class Claim:
    """One pool's claim, and a work height at which it is the only one: the requester answers for the top claim alone."""

    def __init__(self, entries: tuple[EntryView, ...], done: Json, c_w: Digest) -> None:
        self._entries = entries
        self.asked: Final = {
            "correct": done["correct"], "model_commitment": c_w.hex(), "garbling_digest": done["garbling_digest"],
            "receipt": done["receipt"],
        }  # fmt: skip
        """What a node is told of it."""

    async def comes_up(self, net: Network, task: TaskView) -> None:
        # A ranking is settled once for a work height: the one before has to end, and be seen to.
        for phase in (TaskPhase.EVALUATION, TaskPhase.WORK):
            await net.chain.change(task.task_id, phase=phase, entries=self._entries)
            await asyncio.sleep(NOTICED_S)


@contextlib.asynccontextmanager
async def _counted(net: Network, rows: list[Json]) -> AsyncIterator[Json]:
    """A row of measurements, with the requester's processor time beside what the caller says."""
    row: Json = {}
    cpu = process_cpu_seconds(net.requester_pid)
    yield row
    row["requester_cpu_seconds"] = process_cpu_seconds(net.requester_pid) - cpu
    rows.append(row)


def _summary(rows: Sequence[Json]) -> Json:
    """Of one step that was run several times. Bytes differ by a few between runs; the last ones are given."""
    medians = {name: spread([row[name] for row in rows])["seconds"] for name in ("cpu_seconds", "requester_cpu_seconds")}
    return {
        **spread([row["seconds"] for row in rows]), **medians, "bytes": rows[-1]["bytes"], "wire_bytes": rows[-1]["wire_bytes"],
        "messages": rows[-1]["messages"],
    }  # fmt: skip


async def _evaluations(
    net: Network, task: TaskView, client: Client, pools: Sequence[str], say: Progress
) -> tuple[Json, dict[str, Claim]]:
    """All pools, one after another; what a node must know of each one's claim."""
    accounts = {pool: AccountId(key(pool).public_key) for pool in pools}
    entries = tuple(EntryView(account, Amount(1), "127.0.0.1:1") for account in accounts.values())
    await net.chain.change(task.task_id, phase=TaskPhase.TRAINING, entries=entries)
    offline: list[Json] = []
    for seed, pool in enumerate(pools):
        say(f"evaluation, offline part {seed + 1} of {len(pools)}")
        async with _counted(net, offline) as row:
            row.update(await client.ask(do="prepare", name=pool, seed=seed))
    commits = [Digest(bytes.fromhex(done["model_commitment"])) for done in offline]
    committed = tuple(
        EntryView(entry.pool, entry.bond, entry.endpoint, model_commitment=c_w)  # type: ignore[arg-type]
        for entry, c_w in zip(entries, commits, strict=True)
    )
    await net.chain.change(task.task_id, phase=TaskPhase.EVALUATION, entries=committed)
    online: list[Json] = []
    for number, pool in enumerate(pools):
        say(f"evaluation, online part {number + 1} of {len(pools)}")
        async with _counted(net, online) as row:
            row.update(await client.ask(do="evaluate", name=pool))
    claims = {
        pool: Claim((*committed[:i], _claimed(entry, done), *committed[i + 1 :]), done, c_w)
        for i, (pool, entry, done, c_w) in enumerate(zip(pools, committed, online, commits, strict=True))
    }
    steps = {"online": _summary(online), "offline": _summary(offline)}
    return {"online_seconds": steps["online"]["seconds"], "offline_seconds": steps["offline"]["seconds"], **steps}, claims


def _claimed(entry: EntryView, done: Json) -> EntryView:
    assert entry.model_commitment is not None
    receipt = decode(Receipt, bytes.fromhex(done["receipt"]))
    vm = Vm(entry.model_commitment, Digest(bytes.fromhex(done["garbling_digest"])), receipt)
    return EntryView(entry.pool, entry.bond, entry.endpoint, entry.model_commitment, correct=Correct(done["correct"]), vm=vm)


def _homomorphic(evaluation: Json, parts: Json) -> Json:
    """What of an evaluation's bytes is homomorphic encryption and its checks: all but garbling and transfer."""
    ways = ("to_requester", "from_requester")
    other = (parts["garbling"]["bytes"], parts["ot"]["bytes"], parts["ot"]["setup"]["bytes"])
    return {
        way: sum(evaluation[step]["bytes"][way] for step in ("offline", "online")) - sum(one[way] for one in other)
        for way in ways
    }


async def _together(
    net: Network, task: TaskView, pools: Sequence[str], claims: dict[str, Claim], count: int, say: Progress
) -> Json:
    """All nodes begin at the same moment; until the last one has its finding."""
    names = [f"node{i + 1}" for i in range(count)]
    clients = [await net.spawn_client(task, ("node", name)) for name in names]
    for start in range(0, count, 2):
        say(f"{count} nodes load the test set, {start} are ready")
        pairs = zip(clients[start : start + 2], names[start : start + 2], strict=False)
        await asyncio.gather(*(client.ask(do="load", role="node", name=name) for client, name in pairs))
    totals: list[float] = []
    rows: list[Json] = []
    requester: list[float] = []
    for number, pool in enumerate(pools):
        say(f"audit by {count} nodes at once, {number + 1} of {len(pools)}")
        await claims[pool].comes_up(net, task)
        cpu, started = process_cpu_seconds(net.requester_pid), time.perf_counter()
        rows += await asyncio.gather(
            *(
                client.ask(do="audit", name=name, pool=pool, attempt=0, **claims[pool].asked)
                for client, name in zip(clients, names, strict=True)
            )
        )
        totals.append(time.perf_counter() - started)
        requester.append(process_cpu_seconds(net.requester_pid) - cpu)
    for client in clients:
        await client.close()
    return {
        **spread(totals), "nodes": count, "cpu_seconds_per_node": spread([row["cpu_seconds"] for row in rows])["seconds"],
        "requester_cpu_seconds": spread(requester)["seconds"],
        "bytes": {way: sum(row["bytes"][way] for row in rows[-count:]) for way in ("to_requester", "from_requester")},
    }  # fmt: skip


if __name__ == "__main__":
    sizes = [int(value) for value in (sys.argv[1:] or ["10000"])]
    print(json.dumps([asyncio.run(measure(size, (256, 16, 16, 10))) for size in sizes], indent=2))
