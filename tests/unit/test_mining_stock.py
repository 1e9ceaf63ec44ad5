"""The stock app on a grid in memory: greetings, checks and rounds without a SuperLink."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.app.error import Error
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from core.codec import decode, encode
from core.crypto.sealing import SealingKeyPair
from core.errors import ConfigError, CryptoError, DeadlineError
from pool.flower import blobs, keys
from pool.flower.jobs import JoinTicket, load_weights
from pool.flower.rounds import Reply
from pool.flower.stock import client_app
from pool.flower.stock.__main__ import write_app
from pool.flower.stock.fleet import StockFleet
from pool.flower.stock.greeting import Greeting, Presence, check_presence
from pool.flower.stock.server_app import mine
from pool.flower.stock.settings import StockSettings, read_settings
from pool.learning.datasets import Dataset, save_npz
from pool.learning.model_spec import score
from tests import mining_attacks

RUN = 0xF000_0000_0000_0001
POOL = SealingKeyPair.from_private(bytes(range(32)))


@dataclass
class Node:
    """One SuperNode: its configuration, its state of the run, its app."""

    config: dict[str, Any]
    app: Callable[[Message, Context], Message] = client_app.app
    state: RecordDict = field(default_factory=RecordDict)
    stalls: bool = False

    def answer(self, message: Message, node_id: int) -> Message:
        context = Context(RUN, node_id, self.config, self.state, {})
        try:
            return self.app(message, context)
        except Exception as error:  # noqa: BLE001  # what a SuperNode does
            return Message(Error(1, repr(error)), reply_to=message)


class MemoryGrid(Grid):
    """Messages are answered when they are pulled. Nodes that stall block their puller, as a stock grid does."""

    def __init__(self, nodes: dict[int, Node]) -> None:
        self.nodes = nodes
        self.sent: dict[str, Message] = {}
        self.replies: dict[str, Message] = {}
        self.pulled = threading.Lock()
        self.never = threading.Event()

    def set_run(self, run: Run) -> None: ...

    @property
    def run(self) -> Run:
        return Run.create_empty(RUN)

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, *_: Any, **__: Any) -> Iterable[Message]:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = message.object_id
            self.sent[message.metadata.message_id] = message
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        (message_id,) = message_ids
        message = self.sent[message_id]
        node = self.nodes[message.metadata.dst_node_id]
        if node.stalls:
            self.never.wait()
        with self.pulled:
            self.replies[message_id] = node.answer(message, message.metadata.dst_node_id)
        return [self.replies[message_id]]


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_run_id", RUN), ("_node_id", 1), ("_task_id", 1)):
        monkeypatch.setattr(TaskIdentity, name, value)
    monkeypatch.setattr("pool.flower.stock.fleet.POLL_S", 0.01)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Two classes that a line parts."""
    x = np.random.default_rng(3).normal(size=(200, 4)).astype(np.float32)
    save_npz(tmp_path / "rows.npz", Dataset(x, (x[:, 0] > 0).astype(np.int64)))
    return tmp_path / "rows.npz"


def config(rows: Path, **values: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "practice": str(rows), "out": str(rows.parent / "best.npz"), "kind": "dense", "features": 4,
        "classes": 2, "cuts": "", "hidden": "", "update": "float32", "suite": "x25519",
        "activation": "relu", "algorithm": "fedavg", "optimizer": "sgd", "local-epochs": 1, "learning-rate": 0.5,
        "batch": 32, "seed": 0, "quorum": 2, "round-timeout-s": 200.0, "deadline-s": 250, "rounds": 2, "patience": 0,
        "target-correct": 0, "members": "", "sealing-key": "",
    }  # fmt: skip
    return found | {name.replace("_", "-"): value for name, value in values.items()}


def settings(rows: Path, **values: Any) -> StockSettings:
    return read_settings(config(rows, **values), RUN, int(1000 * time.time()))


def reports(made: StockSettings) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(f"{made.out}.jsonl").read_text().splitlines()]


def greet(node: Node) -> tuple[Presence, str]:
    grid = MemoryGrid({7: node})
    message = Message(blobs.pack(encode(Greeting(POOL.public_key, POOL.suite))), 7, "query", ttl=9.0, group_id="0")
    (message_id,) = grid.push_messages([message])
    (reply,) = grid.pull_messages([message_id])
    return decode(Presence, blobs.unpack(reply.content)), message_id


def attack(name: str) -> ClientApp:
    """A node that greets honestly and then answers as a hostile miner."""
    app = ClientApp()
    app.query()(client_app.greet)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        kept: Any = context.state[client_app.STATE]
        private = keys.private_key_of(kept["node"])
        ticket = JoinTicket("", b"", kept["pool"], keys.public_bytes_of(private))
        hostile: ClientApp = getattr(mining_attacks, name)(ticket, private)
        return hostile(message, context)

    return app


def test_two_nodes_learn_and_what_they_send_is_sealed(rows: Path) -> None:
    made = settings(rows)
    grid = MemoryGrid({11: Node({"data": str(rows)}), 12: Node({"data": str(rows)})})
    mine(grid, RUN, made)
    models, _ = load_weights(made.out, made.job.spec, ("best",))
    with np.load(rows) as data:
        assert score(made.job.spec, models["best"], data["x"], data["y"]).correct > 190
    rounds = reports(made)
    assert [r["number"] for r in rounds] == [1, 2]
    assert all(list(r["accepted"].values()) == [200, 200] for r in rounds)
    private = made.sealing.private_key
    trained = [r for r in grid.replies.values() if r.metadata.group_id != "0"]
    assert len(trained) == 4
    for reply in trained:
        blob = blobs.unpack(reply.content)
        assert private not in blob
        assert len(blob) > 4 * made.job.spec.parameters


@pytest.mark.parametrize(
    ("name", "reason"),
    [("not_a_number", "not finite"), ("exaggerating", "registered 200"), ("another_pools_key", "does not open")],
)
def test_liars_are_refused_and_the_round_goes_on(rows: Path, name: str, reason: str) -> None:
    made = settings(rows, rounds=1)
    mine(
        MemoryGrid({1: Node({"data": str(rows)}), 2: Node({"data": str(rows)}), 3: Node({"data": str(rows)}, attack(name))}),
        RUN,
        made,
    )
    (only,) = reports(made)
    assert len(only["accepted"]) == 2
    assert [text for text in only["refused"].values() if reason in text]


def test_who_stalls_stalls_alone(rows: Path) -> None:
    made = settings(rows, rounds=1)
    stalling = Node({"data": str(rows)})
    grid = MemoryGrid({1: Node({"data": str(rows)}), 2: Node({"data": str(rows)}), 3: stalling})
    fleet = StockFleet(grid, RUN, POOL, {})
    while len(fleet.online()) < 3:
        time.sleep(0.01)
    stalling.stalls = True
    try:
        asked = fleet.instruct(b"\0" * 10, sorted(fleet.known()), 1, 600.0)
        got: set[str] = set()
        while len(got) < 2:
            got |= {reply.instruction_id for reply in fleet.collect(set(asked), 0.2)}
        assert not grid.never.is_set(), "the third one is still being waited for"
    finally:
        grid.never.set()
        fleet.close()
    assert made.job.quorum == 2


def test_a_node_started_anew_is_greeted_again(rows: Path) -> None:
    nodes = {1: Node({"data": str(rows)}), 2: Node({"data": str(rows)})}
    fleet = StockFleet(MemoryGrid(nodes), RUN, POOL, {})
    while len(fleet.online()) < 2:
        time.sleep(0.01)
    nodes[2].state = RecordDict()
    asked = fleet.instruct(b"\0" * 10, sorted(fleet.known()), 1, 600.0)
    replies: list[Reply] = []
    while len(replies) < 2:
        replies += fleet.collect(set(asked), 1.0)
    errors = [reply.error for reply in replies if reply.error]
    assert len(errors) == 1
    assert "before the greeting" in errors[0]
    assert len(fleet.known()) == 1
    while len(fleet.online()) < 2:
        time.sleep(0.01)
    fleet.close()


def test_a_presence_is_signed_for_this_greeting(rows: Path) -> None:
    answer, message_id = greet(Node({"data": str(rows)}))
    assert (answer.examples, answer.reason) == (200, "")
    check_presence(answer, RUN, message_id, POOL.public_key)
    for wrong in (replace(answer, examples=201), replace(answer, miner=keys.new_node_key()[1])):
        with pytest.raises(CryptoError):
            check_presence(wrong, RUN, message_id, POOL.public_key)
    for place in ((RUN - 1, message_id, POOL.public_key), (RUN, "other", POOL.public_key), (RUN, message_id, bytes(32))):
        with pytest.raises(CryptoError):
            check_presence(answer, *place)


def deadline_when(monkeypatch: pytest.MonkeyPatch, is_so: Callable[[], bool]) -> None:
    """The deadline is far away until something has happened, however long it takes, and is over then."""
    clock = SimpleNamespace(sleep=time.sleep, time=time.time, monotonic=lambda: time.monotonic() + 3600 * is_so())
    monkeypatch.setattr("pool.flower.manager.time", clock)


def test_a_node_says_why_it_takes_no_part(
    rows: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for values, reason in (
        ({}, "no rows"),
        ({"data": "/nowhere/rows.npz"}, "no such file"),
        ({"data": str(rows), "pool-key": "ab" * 32}, "is not the pool-key"),
    ):
        answer, _ = greet(Node(values))
        assert answer.examples == 0
        assert reason in answer.reason
    made = settings(rows, rounds=1)
    deadline_when(monkeypatch, lambda: "no rows" in caplog.text)
    with pytest.raises(DeadlineError, match="no round was accepted"):
        mine(MemoryGrid({1: Node({})}), RUN, made)
    assert "no rows" in caplog.text
    answer, _ = greet(Node({"data": str(rows), "pool-key": POOL.public_key.hex().upper()}))
    assert not answer.reason


def test_only_members_take_part_and_claim_what_they_may(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private, public = keys.new_node_key()
    key_file, members = rows.parent / "node.key", rows.parent / "members.json"
    key_file.write_bytes(private)
    members.write_text(json.dumps({public.hex(): 150}))
    made = settings(rows, members=str(members), quorum=1, rounds=1)
    grid = MemoryGrid({1: Node({"data": str(rows), "node-key": str(key_file)}), 2: Node({"data": str(rows)})})
    deadline_when(monkeypatch, lambda: bool(reports(made)))
    with pytest.raises(DeadlineError):
        mine(grid, RUN, made)
    first = reports(made)[0]
    assert list(first["refused"]) == [public.hex()]
    assert "200 examples, registered 150" in first["refused"][public.hex()]


def test_a_node_key_is_made_once_and_kept(rows: Path) -> None:
    path = rows.parent / "made.key"
    first, _ = greet(Node({"data": str(rows), "node-key": str(path)}))
    again, _ = greet(Node({"data": str(rows), "node-key": str(path)}))
    assert first.miner == again.miner
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in rows.parent.iterdir() if "made.key" in p.name] == ["made.key"]
    other, _ = greet(Node({"data": str(rows)}))
    assert other.miner != first.miner


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"practice": "rows.npz"}, "absolute"), ({"practice": "/nowhere.npz"}, "no such file"),
        ({"out": "/nowhere/best.npz"}, "folder does not exist"), ({"features": "4"}, "features"),
        ({"features": True}, "features"), ({"quorum": None}, "quorum is missing"), ({"hidden": "8;8"}, "numbers"),
        ({"algorithm": "magic"}, "none of"), ({"learning-rate": -1}, "above 0"), ({"sealing-key": "/nowhere"}, "64 hex"),
        ({"members": "/nowhere"}, "JSON object"), ({"suite": "rot13"}, "none of x25519"), ({"kind": "oracle"}, "oracle"),
    ],
)  # fmt: skip
def test_a_wrong_run_configuration_is_named(rows: Path, values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        read_settings(config(rows) | values, RUN, 0)


def test_a_regression_in_half_precision_sealed_for_the_future(rows: Path) -> None:
    with np.load(rows) as data:
        x = data["x"]
    rows.write_bytes(b"")
    np.savez(rows, x=x, y=40 + 3 * x[:, 1].astype(np.float64))
    made = settings(rows, kind="regression", classes=1, cuts="38,40,42", update="float16", suite="hybrid", rounds=3)
    mine(MemoryGrid({1: Node({"data": str(rows)}), 2: Node({"data": str(rows)})}), RUN, made)
    assert reports(made)[-1]["practice_correct"] > 180


def test_a_result_is_not_overwritten(rows: Path) -> None:
    (rows.parent / "best.npz").write_bytes(b"earlier")
    with pytest.raises(ConfigError, match="exists"):
        settings(rows)


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_the_folder_is_what_flower_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "home"))
    from flwr.cli.build import build_fab_from_disk
    from flwr.cli.config_utils import load_and_validate

    folder = tmp_path / "mining"
    write_app(folder)
    written, warnings = load_and_validate(folder / "pyproject.toml")
    assert not warnings
    assert "0.0.0" not in json.dumps(written)
    assert build_fab_from_disk(folder)
    defaults = written["tool"]["flwr"]["app"]["config"]
    practice = tmp_path / "practice.npz"
    practice.touch()
    made = read_settings(defaults | {"practice": str(practice), "out": str(tmp_path / "best.npz")}, 1, 0)
    assert made.job.deadline_ms == 600_000
    assert set(defaults) - {"data"} == set(config(practice))
    with pytest.raises(ConfigError, match="not empty"):
        write_app(folder)
