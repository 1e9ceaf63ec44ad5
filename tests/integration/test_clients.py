"""Clients of other people's programs against a real node process: the wheel on its own, Node.js, and server reflection only."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pofl_client
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pofl_client import AsyncNode, AsyncRequester, Key, Node

from core.verification.model_file import load_model
from services.rpc.verify_client import EvaluationClient
from services.runtime.startup import PARENT
from tests.node_network import ROOT, Network, make_network
from tests.requester_world import evaluation_machine, make_world, write_rows

pytestmark = pytest.mark.timeout(900)

CLIENTS = ROOT / "clients"
LONG = 150.0
"""Seconds, for what takes a few on a machine that does nothing else."""
PACKAGES = Path(sysconfig.get_path("purelib"))


@dataclass
class Served:
    """One node, which is its network's only validator, and what a user has."""

    network: Network
    address: str
    tls: Path
    key: Path
    to: str
    process: subprocess.Popen[bytes]

    def start(self) -> None:
        node = self.network.nodes[0]
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "OMP_NUM_THREADS": "1", PARENT: str(os.getpid())}
        command = [sys.executable, "-m", "node", "--config", str(node.config)]
        with node.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT)
        end = time.monotonic() + LONG
        while time.monotonic() < end:
            try:
                with Node(self.address, self.tls, timeout=10) as client:
                    if client.tip().height:
                        return
            except pofl_client.PoflError:
                pass
            time.sleep(0.15)
        raise AssertionError(f"no block after {LONG:g} s: {node.log.read_text()[-4000:]}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("clients")
    network = make_network(folder, 1)
    network.files("user", "script")
    key = folder / "user.key"
    key.write_text(network.users[0].seed.hex() + "\n")
    node = network.nodes[0]
    made = Served(network, node.address, folder / "user-script", key, network.users[1].public_key.hex(), None)  # type: ignore[arg-type]
    try:
        made.start()
        yield made
    finally:
        if made.process is not None:
            made.kill()


def run(command: list[str], folder: Path, timeout: float, **environment: str) -> str:
    """What it printed. An assertion error with everything if it failed."""
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=timeout, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# Python


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make client` makes it."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheel: run `make setup` again")
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], CLIENTS / "python", LONG)
    (found,) = folder.glob("pofl_client-*.whl")
    return found


def test_the_wheel_holds_the_stubs_of_the_contracts_and_asks_for_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    messages = {path.relative_to(ROOT / "proto").as_posix(): path.read_bytes() for path in (ROOT / "proto").rglob("*_pb2*.py*")}
    for name, content in messages.items():
        if name.endswith(("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")):
            assert files[name] == content, f"{name} is not what lies beside its contract: run `make proto`"
        elif name.endswith("_pb2_grpc.pyi") and b"Stub:" in content:
            assert b"AsyncStub" in files[name], "typed for both kinds of channel"
    metadata = next(content for name, content in files.items() if name.endswith("METADATA")).decode()
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra" not in line]
    assert sorted(re.split(r"[ <>=:]+", line)[1] for line in needed) == ["grpcio", "protobuf"]
    assert {"pofl_client/py.typed", "pofl/chain/v1/py.typed"} <= files.keys()
    ours, theirs = (tomllib.loads((folder / "pyproject.toml").read_text()) for folder in (CLIENTS / "python", ROOT))
    assert ours["project"]["version"] == theirs["project"]["version"]
    pinned = {line.split(";")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {each for each in ours["build-system"]["requires"] if "==" in each} <= pinned


def test_the_page_works_with_the_wheel_and_its_two_dependencies_only(wheel: Path, served: Served, tmp_path: Path) -> None:
    """Isolated as in an environment of its own: nothing of this checkout, nothing of this environment but those two."""
    page = (ROOT / "docs" / "clients.md").read_text()
    found = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert found is not None
    home = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(home)
    # grpcio needs typing_extensions; google.protobuf needs nothing.
    for name in ("grpc", "google", "typing_extensions.py"):
        (home / name).symlink_to(PACKAGES / name)
    net = tmp_path / "testnet-data" / "net"
    shutil.copytree(served.tls, net / "user" / "tls")
    (net / "testnet.json").write_text(f'{{"members": [{{"role": "node", "listen": "{served.address}"}}]}}')
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(home)!r})\n{found[1]}\nprint(sorted(m for m in sys.modules if '.' not in m))\n"
    )
    # -S: without site-packages.
    printed = run([sys.executable, "-I", "-S", str(script)], tmp_path, LONG)
    assert re.match(r"height \d+ supply \d+\n1 [0-9a-f]{8} \[", printed)
    assert "NotFoundError: " in printed
    assert not {"torch", "numpy", "tenseal", "cryptography", "core", "services"} & set(re.findall(r"'(\w+)'", printed))


def test_a_script_sends_and_proves_and_goes_on_after_a_kill(served: Served) -> None:
    key = Key.read(served.key)
    with Node(served.address, served.tls, timeout=LONG) as node:
        before = node.account(served.to).balance
        sent = node.transfer(key, served.to, 12)
        height = node.wait_transaction(sent, LONG)
        assert node.account(served.to).balance == before + 12
        assert node.check_transaction(sent.tx_id, node.block(height).block_hash).header.height == height
        with pytest.raises(pofl_client.TransactionError) as refused:
            node.submit(pofl_client.transfer(key, node.genesis().chain_id, 0, 1, bytes.fromhex(served.to), 1))
        assert refused.value.reason == "bad-nonce"
        stream = node.watch_blocks(1)
        seen = [next(stream).header.height for _ in range(height)]
        served.kill()
        served.start()
        last = node.wait_transaction(node.transfer(key, served.to, 1), LONG)
        while seen[-1] < last:
            seen.append(next(stream).header.height)
        assert seen == list(range(1, last + 1))
        stream.close()
    with pytest.raises(pofl_client.AuthError, match="is another kind of process"):
        pofl_client.Requester(served.address, served.tls).own_tasks()


async def test_many_scripts_share_one_loop(served: Served) -> None:
    node = AsyncNode(served.address, served.tls, timeout=LONG)
    try:
        # Not open yet: all of them open it at once.
        tips = await asyncio.gather(*(node.tip() for _ in range(20)))
        assert all(tip.height for tip in tips)
        assert len(node._links) == 1
        first = await anext(node.watch_tasks())
        assert (len(first.tasks), first.height > 0) == (0, True)
    finally:
        await node.close()


# Node.js


@pytest.mark.slow
def test_node_js_lists_watches_and_sends(served: Served, tmp_path: Path) -> None:
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not on the path: the example for Node.js is not run")
    folder = tmp_path / "node"
    shutil.copytree(CLIENTS / "node", folder, ignore=shutil.ignore_patterns("node_modules"))
    # Fetched once for each list of versions; `make clean` removes it.
    lock = hashlib.sha256((CLIENTS / "node" / "package-lock.json").read_bytes()).hexdigest()
    ready = ROOT / "build" / f"clients-node-{lock[:16]}" / "node_modules"
    if not ready.is_dir():
        options = ["--ignore-scripts", "--prefer-offline", "--fetch-retries=1", "--fetch-timeout=15000"]
        try:
            done = subprocess.run(["npm", "ci", *options], cwd=folder, capture_output=True, text=True, timeout=80, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip("npm cannot fetch the two packages of clients/node in time")
        if done.returncode:
            assert re.search(r"ENOTFOUND|EAI_AGAIN|ECONN|ETIMEDOUT|ENETUNREACH|E40[1347]|network", done.stderr), done.stderr
            pytest.skip(f"npm cannot fetch the two packages of clients/node: {done.stderr.splitlines()[0]}")
        ready.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder / "node_modules", ready)
    (folder / "node_modules").symlink_to(ready)
    with Node(served.address, served.tls, timeout=LONG) as node:
        before = node.account(served.to).balance
        command = ["node", "example.js", served.address, str(served.tls), str(served.key), served.to, "100"]
        printed = run(command, folder, LONG, POFL_PROTO=str(ROOT / "proto"))
        assert node.account(served.to).balance == before + 100
    assert re.search(r"^height \d+ supply \d+$", printed, re.MULTILINE)
    assert re.search(r"^block \d+ BLOCK_KIND_TRANSACTION [0-9a-f]{8}$", printed, re.MULTILINE)
    assert re.search(r"^tasks 0 at height \d+$", printed, re.MULTILINE)
    assert re.search(r"^sent 100 in block \d+: [0-9a-f]{64}$", printed, re.MULTILINE)
    assert re.search(r"^NotFoundError: .*0000", printed, re.MULTILINE)


# Reflection


@contextmanager
def channel_of(served: Served) -> Iterator[grpc.Channel]:
    ca, cert, key = ((served.tls / name).read_bytes() for name in ("ca.pem", "tls.pem", "tls.key"))
    options = [("grpc.ssl_target_name_override", "node.pofl.internal")]
    with grpc.secure_channel(served.address, grpc.ssl_channel_credentials(ca, key, cert), options) as channel:
        yield channel


def test_a_program_that_knows_the_address_only_finds_and_calls_everything(served: Served) -> None:
    """What grpcurl does: no contract and no stub of ours."""
    kind = reflection_pb2.ServerReflectionRequest
    with channel_of(served) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)

        def ask(request: object) -> reflection_pb2.ServerReflectionResponse:
            return next(stub.ServerReflectionInfo(iter([request]), timeout=LONG))

        services = [each.name for each in ask(kind(list_services="")).list_services_response.service]
        assert {"pofl.chain.v1.ChainService", "grpc.health.v1.Health"} <= set(services)
        files = ask(kind(file_containing_symbol="pofl.chain.v1.ChainService")).file_descriptor_response.file_descriptor_proto
        pool = descriptor_pool.DescriptorPool()
        for data in files:
            pool.Add(descriptor_pb2.FileDescriptorProto.FromString(data))
        service = pool.FindServiceByName("pofl.chain.v1.ChainService")
        method = service.FindMethodByName("GetTip")
        request, answer = (message_factory.GetMessageClass(each) for each in (method.input_type, method.output_type))
        call = channel.unary_unary(
            f"/{service.full_name}/{method.name}",
            request_serializer=request.SerializeToString,
            response_deserializer=answer.FromString,
        )
        tip = json_format.MessageToDict(call(request(), timeout=LONG))
        assert int(tip["height"]) > 0
        assert int(tip["supply"]) > 0
        with pytest.raises(grpc.RpcError, match="deadline"):
            call(request())
        unknown = ask(kind(file_containing_symbol="pofl.nothing.v1.Nothing"))
        assert unknown.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


# A requester of one's own


async def test_a_task_is_published_from_a_script(tmp_path: Path) -> None:
    test, practice = write_rows(tmp_path)
    async with make_world(tmp_path) as world:
        await world.start()
        tls = world.files("user", "script").ca.parent
        async with AsyncRequester(world.address, tls, timeout=LONG) as requester:
            assert list(await requester.own_tasks()) == []
            with pytest.raises(pofl_client.PoflError, match=r"missing\.npz"):
                await requester.publish_task("mine", tmp_path / "missing.npz", practice, 1000)
            with pytest.raises(pofl_client.ConfigError, match="not absolute"):
                await requester.publish_task("mine", "test.npz", practice, 1000)
            with pytest.raises(pofl_client.ProtocolError, match="has been won yet"):
                await requester.fetch_model()
            published = await requester.publish_task("mine", test, practice, 1000, hidden=(4,))
            assert published.leak_bits > 0
            assert (await world.chain.published()).task_id == published.task_id
            (own,) = await requester.own_tasks()
            assert (own.task_id, own.name, own.model_ready) == (published.task_id, "mine", False)
            with pytest.raises(pofl_client.PoflError, match=r"model|won|final") as early:
                await requester.fetch_model(published.task_id)
            assert early.value.code in ("FAILED_PRECONDITION", "NOT_FOUND")
            assert [step async for step in requester.watch_activity(duration=0.2)] == []
            # A pool wins it, and the script has the model.
            task = await world.chain.published()
            loaded = await world.load(task, "pool", "pool0")
            await world.enter(task, "pool0")
            ready = world.model(task, "pool0", loaded[1])
            pool = EvaluationClient(world.channel("pool", "pool0"), evaluation_machine(loaded, "pool0"), peer="requester")
            await pool.prepare(LONG)
            await world.commit(task, ready)
            result = await pool.evaluate(ready.model, ready.c_w, LONG)
            await world.claim(task, "pool0", result.correct, result.vm)
            world.chain.bodies[ready.c_w] = ready.body
            await world.win(task, "pool0")
            async with asyncio.timeout(LONG):
                while not (await requester.own_tasks())[0].model_ready:  # noqa: ASYNC110 - another process's state
                    await asyncio.sleep(0.05)
            fetched = await requester.fetch_model(task.task_id.hex())
            assert (fetched.accuracy.correct, fetched.model_commitment) == (result.correct, ready.c_w)
            assert load_model(fetched.model).encode().tolist() == ready.model.encode().tolist()
