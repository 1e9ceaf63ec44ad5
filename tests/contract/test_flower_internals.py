"""What this tree takes from inside Flower. Fails first when flwr is upgraded: read docs/adr/0020 to 0022 then."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from pool.flower.engine import MiningEngine, MiningJob
from pool.flower.fleet import FleetMiner
from pool.flower.keys import new_node_key
from pool.learning.datasets import save_npz
from tests.mining_support import CLASSES, FEATURES, digits, write_certificate

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = sorted((ROOT / "pool").rglob("*.py"))
STOCK = sorted((ROOT / "pool" / "flower" / "stock").rglob("*.py"))
PUBLIC = {"flwr.app", "flwr.clientapp", "flwr.serverapp"}


def imported_from_flower(sources: list[Path] = SOURCES) -> list[tuple[str, str]]:
    """(module, name) of every ``from flwr... import ...`` in these files, by default all of pool."""
    found = set()
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flwr":
                found |= {(str(node.module), alias.name) for alias in node.names}
    return sorted(found)


def test_the_pinned_release_is_installed() -> None:
    assert version("flwr") == "1.41.0"
    assert 'flwr==1.41.0"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(("module", "name"), imported_from_flower())
def test_the_name_is_there(module: str, name: str) -> None:
    if not hasattr(importlib.import_module(module), name):
        importlib.import_module(f"{module}.{name}")


def test_flower_is_imported_in_no_other_way() -> None:
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                assert not any(alias.name.split(".")[0] == "flwr" for alias in node.names), source


def test_the_stock_app_uses_the_public_api_alone() -> None:
    assert {module for module, _ in imported_from_flower(STOCK)} == PUBLIC


def test_nobody_else_in_the_product_knows_flower() -> None:
    others = [
        source for folder in ("core", "services", "node", "requester", "provider") for source in (ROOT / folder).rglob("*.py")
    ]
    assert len(others) > 100
    assert imported_from_flower(others) == []


def test_call_shapes() -> None:
    from flwr.server.superlink.linkstate import LinkState
    from flwr.supercore.heartbeat import HeartbeatSender
    from flwr.supercore.protobuf.client import ProtobufClient
    from flwr.superlink.grid.http_grid import HttpGrid
    from flwr.superlink.servicer.fleet import fleet_handlers
    from flwr.superlink.servicer.runtime import runtime_handlers

    def names(function: object) -> list[str]:
        return list(inspect.signature(function).parameters)  # type: ignore[arg-type]

    assert names(LinkState.create_run)[1:9] == [
        "fab_id", "fab_version", "fab_hash", "override_config", "federation_id", "federation_config", "flwr_aid",
        "primary_task_type",
    ]  # fmt: skip
    assert names(LinkState.create_node)[1:5] == ["owner_aid", "owner_name", "public_key", "heartbeat_interval"]
    assert names(ProtobufClient.from_server_address)[:4] == [
        "server_address", "insecure", "root_certificates", "interceptors",
    ]  # fmt: skip
    assert names(HeartbeatSender.__init__) == ["self", "heartbeat_fn"]
    assert hasattr(HttpGrid, "_runtime_client")
    assert hasattr(HttpGrid, "_connect")
    for name in ("activate_node", "deactivate_node", "send_node_heartbeat", "push_messages", "push_object"):
        assert names(getattr(fleet_handlers, name)) == ["request", "state"]
    for name in ("pull_messages", "confirm_message_received"):
        assert names(getattr(fleet_handlers, name)) == ["request", "state", "store"]
    for name in ("get_nodes", "push_messages", "pull_messages", "push_object", "pull_object"):
        assert names(getattr(runtime_handlers, name)) == ["request", "state", "task"]


def test_the_engine_imports_neither_flower_nor_torch() -> None:
    script = "import sys, pool.flower.engine; print(sorted({'flwr', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_one_guard_one_miner_two_rounds(tmp_path: Path) -> None:
    train, practice = digits()
    save_npz(tmp_path / "practice.npz", practice)
    private, public = new_node_key()
    engine = MiningEngine(tmp_path / "engine", "127.0.0.1:0", "127.0.0.1:0", write_certificate(tmp_path / "tls"))
    await engine.start()
    miner: FleetMiner | None = None
    try:
        sent: list[tuple[bytes, int, int]] = []
        miner = FleetMiner(
            await engine.register(public),
            private,
            lambda _: (train.x, train.y),
            tmp_path / "miner",
            on_update=lambda *update: sent.append(update),
        )
        miner.start()
        job = MiningJob(
            bytes(32), FEATURES, CLASSES, tmp_path / "practice.npz", int(1000 * (time.time() + 300)),
            max_rounds=2, learning_rate=0.3, round_timeout_s=250.0,
        )  # fmt: skip
        result = await engine.mine(job, [public], lambda _: None)
        assert result.rounds == 2
        assert result.contributions == {public.hex(): 2 * len(train)}
        assert miner.answered == 2
        assert sent == [(job.job_id, 1, len(train)), (job.job_id, 2, len(train))]
        assert miner.examples(job.job_id) == len(train)
    finally:
        if miner is not None:
            miner.stop()
        await engine.stop()
