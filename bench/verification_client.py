"""A process of nodes and pools for ``bench.verification_services``: requests as JSON lines, answers with what was measured.

Times are taken here, around the same calls of services.rpc.verify_client that nodes and pools make. Bytes are counted twice:
``bytes`` are those of the session's transcript (canonical encodings), ``wire_bytes`` what the system counted on this process's
connections to the requester, with all that gRPC, TLS and refused or repeated streams add.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import socket
import struct
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from grpc import aio

from bench.loopback import key
from core.chain.block import Receipt, Vm
from core.chain.transaction import TaskSpec
from core.codec import decode, encode
from core.crypto.homomorphic import PublicKey
from core.errors import PoflError, TurnError
from core.ids import AccountId, Correct, Digest, TaskId
from core.ports import SystemRng
from core.verification.audit_node import AuditedClaim, AuditNode, Valid
from core.verification.body import commitment, make_body
from core.verification.evaluation_pool import EvaluationPool
from core.verification.messages import MESSAGE
from core.verification.scored_model import ModelShape, ScoredModel
from core.verification.session import Session
from core.verification.task import TaskContext
from core.verification.test_set import EncryptedTestSet
from core.verification.transcript import Side
from services.rpc import blobs, tls
from services.rpc.channel import connect
from services.rpc.verify_client import EvaluationClient, audit
from services.runtime.cpu import run_cpu
from services.runtime.startup import end_with_parent

RNG = SystemRng()
BLOB_S, STEP_S = 120.0, 300.0
TURNS = 20
ACKNOWLEDGED_AND_RECEIVED = struct.Struct("=120xQQ")
"""Of Linux's struct tcp_info: tcpi_bytes_acked and tcpi_bytes_received."""


def random_model(task: TaskContext, seed: int) -> ScoredModel:
    """Weights in range and shifts that keep activations spread; what they predict is of no interest here."""
    family, random = task.family, np.random.default_rng(seed)
    pairs = list(zip(family.dims[:-1], family.dims[1:], strict=True))
    top = (1 << (family.weight_bits - 1)) - 1
    return ScoredModel(
        ModelShape(family.dims, family.activation, family.weight_bits, (9,) * (family.layers - 1)),
        tuple(random.integers(-top, top, pair) for pair in pairs),
        tuple(random.integers(-5000, 5000, width) for _, width in pairs),
    )


def traffic(machine: Session, since: int = 0) -> dict[str, object]:
    """Bytes each way, and of each kind of message."""
    totals: dict[str, dict[str, int]] = defaultdict(lambda: {"to_requester": 0, "from_requester": 0})
    for entry in machine.transcript.entries[since:]:
        way = "to_requester" if entry.side is Side.CALLER else "from_requester"
        totals[MESSAGE.members[entry.tag].__name__][way] += entry.size
    total = {way: sum(one[way] for one in totals.values()) for way in ("to_requester", "from_requester")}
    return {"bytes": total, "messages": dict(totals)}


class Wire:
    """What this process has sent to the requester and received from her on the connections that are open."""

    def __init__(self, address: str) -> None:
        self._port = int(address.rpartition(":")[2])
        self._before = self._now()

    def _now(self) -> tuple[int, int]:
        sent = received = 0
        for name in os.listdir("/proc/self/fd"):
            # Passed over: files, sockets of another kind, and what was closed meanwhile.
            with contextlib.suppress(OSError, LookupError):
                if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                    continue
                with socket.socket(fileno=os.dup(int(name))) as one:
                    if one.getpeername()[1] != self._port:
                        continue
                    info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                acknowledged, came = ACKNOWLEDGED_AND_RECEIVED.unpack_from(info)
                sent, received = sent + acknowledged, received + came
        return sent, received

    async def bytes(self) -> dict[str, int]:
        await asyncio.sleep(0.05)  # the last bytes are acknowledged a moment after the result
        sent, received = self._now()
        return {"to_requester": sent - self._before[0], "from_requester": received - self._before[1]}


class Participant:
    """One process: the encrypted test set, and whoever uses it."""

    def __init__(self, folder: Path, address: str, task: TaskContext) -> None:
        self._folder, self._address, self._task = folder, address, task
        self._store = blobs.BlobStore(folder / "blobs", 1 << 40)
        self._channels: dict[str, aio.Channel] = {}
        self._loaded: tuple[PublicKey, EncryptedTestSet] | None = None
        self._evaluations: dict[str, tuple[EvaluationPool, EvaluationClient, ScoredModel, bytes]] = {}

    def _channel(self, role: str, name: str) -> aio.Channel:
        if name not in self._channels:
            folder = self._folder / f"{role}-{name}"
            files = tls.TlsFiles(folder / "ca.pem", folder / "tls.pem", folder / "tls.key")
            self._channels[name] = connect(self._address, files, expect_role="requester")
        return self._channels[name]

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close(None)

    async def load(self, role: str, name: str) -> dict[str, object]:
        """Fetches what is not here yet, and unpacks it."""
        spec, channel = self._task.spec, self._channel(role, name)
        await channel.channel_ready()
        wire, started, cpu = Wire(self._address), time.perf_counter(), time.process_time()
        for digest in (*spec.test_blobs, spec.public_key_blob):
            if self._store.size(digest) is None:
                await blobs.fetch(channel, digest, 1 << 26, self._store, BLOB_S)
        fetched = time.perf_counter()
        pk = self._task.public_key(self._store.get(spec.public_key_blob))
        encrypted = await run_cpu(EncryptedTestSet.load, self._task, [self._store.get(d) for d in spec.test_blobs])
        self._loaded = pk, encrypted
        loaded = time.perf_counter() - fetched
        return {
            "seconds": fetched - started + loaded, "fetch_seconds": fetched - started, "unpack_seconds": loaded,
            "cpu_seconds": time.process_time() - cpu,
            "blob_bytes": sum(self._store.size(digest) or 0 for digest in (*spec.test_blobs, spec.public_key_blob)),
            "wire_bytes": await wire.bytes(),
        }  # fmt: skip

    async def prepare(self, name: str, seed: int) -> dict[str, object]:
        """The offline part of one evaluation."""
        assert self._loaded is not None
        pk, encrypted = self._loaded
        account = AccountId(key(name).public_key)
        model = random_model(self._task, seed)
        body, _ = make_body(pk, model, RNG)
        c_w = commitment(self._task.chain_id, self._task.task_id, account, body)
        channel = self._channel("pool", name)
        await channel.channel_ready()
        wire, started, cpu = Wire(self._address), time.perf_counter(), time.process_time()
        machine = EvaluationPool(self._task, RNG.bytes(32), account, pk, encrypted, RNG)
        client = EvaluationClient(channel, machine)
        await client.prepare(STEP_S)
        seconds, own = time.perf_counter() - started, time.process_time() - cpu
        self._evaluations[name] = machine, client, model, c_w
        (self._folder / f"body-{name}").write_bytes(body)
        return {
            "seconds": seconds, "cpu_seconds": own, **traffic(machine), "wire_bytes": await wire.bytes(),
            "model_commitment": c_w.hex(),
        }  # fmt: skip

    async def evaluate(self, name: str) -> dict[str, object]:
        """The online part: from the final model to a checked N."""
        machine, client, model, c_w = self._evaluations.pop(name)
        before = len(machine.transcript.entries)
        wire, started, cpu = Wire(self._address), time.perf_counter(), time.process_time()
        result = await client.evaluate(model, c_w, STEP_S)  # type: ignore[arg-type]
        seconds, own = time.perf_counter() - started, time.process_time() - cpu
        return {
            "seconds": seconds, "cpu_seconds": own, **traffic(machine, before), "wire_bytes": await wire.bytes(),
            "correct": int(result.correct), "garbling_digest": result.vm.garbled_circuit_digest.hex(),
            "receipt": encode(result.vm.receipt).hex(),
        }  # fmt: skip

    async def audit(
        self, name: str, pool: str, correct: int, model_commitment: str, garbling_digest: str, receipt: str, attempt: int
    ) -> dict[str, object]:
        """One whole audit."""
        assert self._loaded is not None
        pk, encrypted = self._loaded
        vm = Vm(
            Digest(bytes.fromhex(model_commitment)),  # type: ignore[arg-type]
            Digest(bytes.fromhex(garbling_digest)), decode(Receipt, bytes.fromhex(receipt)),
        )  # fmt: skip
        body = (self._folder / f"body-{pool}").read_bytes()
        claim = AuditedClaim(AccountId(key(pool).public_key), Correct(correct), vm, body)
        channel = self._channel("node", name)
        await channel.channel_ready()
        for late in range(TURNS):
            wire, started, cpu = Wire(self._address), time.perf_counter(), time.process_time()
            machine = AuditNode(self._task, RNG.bytes(32), key(name), pk, encrypted, claim, RNG, attempt)
            try:
                finding = await audit(channel, machine, STEP_S)
                break
            except TurnError:
                # The requester has not seen yet that it is this claim's turn: measured from the time she has.
                if late == TURNS - 1:
                    raise
                await asyncio.sleep(0.5)
        seconds, own = time.perf_counter() - started, time.process_time() - cpu
        if not isinstance(finding, Valid):
            return {"error": f"{type(finding).__name__}: {finding.reason}"}
        return {"seconds": seconds, "cpu_seconds": own, **traffic(machine), "wire_bytes": await wire.bytes()}

    async def memory(self) -> dict[str, object]:
        return {"peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


async def main(folder: Path, address: str, chain_id: str, task_id: str, requester: str) -> None:
    spec = decode(TaskSpec, (folder / "task.bin").read_bytes())
    context = TaskContext(
        Digest(bytes.fromhex(chain_id)), TaskId(bytes.fromhex(task_id)), AccountId(bytes.fromhex(requester)), spec
    )
    participant = Participant(folder, address, context)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        request = json.loads(line)
        steps: dict[str, Any] = {
            "load": participant.load, "prepare": participant.prepare, "evaluate": participant.evaluate,
            "audit": participant.audit, "memory": participant.memory,
        }  # fmt: skip
        try:
            reply = await steps[request.pop("do")](**request)
        except PoflError as error:
            reply = {"error": f"{type(error).__name__}: {error.message}"}
        print(json.dumps(reply), flush=True)
    await participant.close()


if __name__ == "__main__":
    end_with_parent(os.environ)
    asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))
