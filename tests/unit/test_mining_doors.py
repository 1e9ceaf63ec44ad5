"""The guard's two doors: what they serve, what they refuse, how much they read. In memory, without sockets."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.app.message import make_message, remove_content_from_message
from flwr.app.metadata import Metadata
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    PullMessagesRequest,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest, PushObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_id, get_object_tree

from core.errors import LimitError, MalformedError, UnavailableError
from pool.flower import blobs, keys
from pool.flower.guard import Registry
from pool.flower.listeners import FLEET_PATHS, LARGE_BODY, RUNTIME_PATHS, SMALL_BODY, Bell, Door, Receive, Scope, Send
from pool.flower.superlink import SuperLink

PROTOBUF = {"content-type": "application/protobuf"}


class Guard:
    def __init__(self) -> None:
        self.superlink = SuperLink()
        self.registry = Registry(self.superlink)
        self.to_fleet, self.to_manager = Bell(), Bell()
        public = Door(self.superlink, FLEET_PATHS, listens=self.to_fleet, rings=self.to_manager)
        inner = Door(self.superlink, RUNTIME_PATHS, listens=self.to_manager, rings=self.to_fleet)
        self.public = httpx.AsyncClient(transport=httpx.ASGITransport(public), base_url="http://guard")
        self.inner = httpx.AsyncClient(transport=httpx.ASGITransport(inner), base_url="http://guard")


@pytest.fixture
async def guard() -> AsyncIterator[Guard]:
    guard = Guard()
    yield guard
    await guard.public.aclose()
    await guard.inner.aclose()


def signed(private: bytes) -> dict[str, str]:
    """The headers Flower's client puts on each call."""
    from flwr.supercore.protobuf.client import ProtobufRequestContext
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    key = keys.private_key_of(private)
    request = httpx.Request("POST", "http://guard")
    context = ProtobufRequestContext("", Node(), request)
    NodeAuthHttpInterceptor(key, key.public_key()).intercept(context, lambda _: httpx.Response(200))
    return {**PROTOBUF, **{name: value for name, value in request.headers.items() if name.startswith("flwr-")}}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run", "/v1/control/stop-run", "/v1/control/register-node", "/v1/fleet/register-node",
        "/v1/fleet/unregister-node", "/v1/fleet/get-run", "/v1/fleet/get-fab", "/v1/runtime/acquire-task",
        "/v1/runtime/create-task", "/v1/runtime/pull-task-input", "/docs", "/openapi.json", "/", "/v1/fleet/../health",
    ],
)  # fmt: skip
async def test_neither_door_serves_privileged_paths(guard: Guard, path: str) -> None:
    for client in (guard.public, guard.inner):
        assert (await client.post(path, headers=PROTOBUF)).status_code == 404
        assert (await client.get(path)).status_code == 404


async def test_each_door_serves_its_own_paths_only(guard: Guard) -> None:
    for path in RUNTIME_PATHS:
        assert (await guard.public.post(path, headers=PROTOBUF)).status_code == 404
        assert (await guard.inner.post(path, headers=PROTOBUF)).status_code in (401, 403)
        assert (await guard.inner.get(path)).status_code == 404
    for path in FLEET_PATHS:
        assert (await guard.inner.post(path, headers=PROTOBUF)).status_code == 404
        assert (await guard.public.post(path, headers=PROTOBUF)).status_code == 401
    assert (await guard.public.get("/health")).status_code == 200


async def test_a_made_up_token_opens_nothing(guard: Guard) -> None:
    headers = {**PROTOBUF, "flwr-task-token": "0" * 256}
    assert (await guard.inner.post("/v1/runtime/get-nodes", headers=headers)).status_code in (401, 403)
    _, token = guard.registry.start_run(1 << 20)
    headers["flwr-task-token"] = token
    assert (await guard.inner.post("/v1/runtime/get-nodes", headers=headers)).status_code == 200


async def test_members_that_left_take_no_memory(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pool.flower.guard.MAX_ENDED", 8)
    state = guard.superlink.state()
    for _ in range(40):
        _, public = keys.new_node_key()
        guard.registry.register(public)
        guard.registry.unregister(public)
        with pytest.raises(UnavailableError, match="deregistered"):
            guard.registry.register(public)
    assert not state.nodes  # type: ignore[attr-defined]
    assert not state.node_public_key_to_node_id  # type: ignore[attr-defined]
    assert len(guard.registry._ended) == 8


async def test_only_registered_keys_come_in_and_only_as_themselves(guard: Guard) -> None:
    (private, public), (other_private, other_public) = keys.new_node_key(), keys.new_node_key()
    activate = ActivateNodeRequest(public_key=keys.node_public_pem(public), heartbeat_interval=10)
    path, body = "/v1/fleet/activate-node", activate.SerializeToString()
    assert (await guard.public.post(path, content=body, headers=signed(private))).status_code >= 400
    node_id = guard.registry.register(public)
    other_id = guard.registry.register(other_public)
    assert guard.registry.register(public) == node_id
    response = await guard.public.post(path, content=body, headers=signed(private))
    assert response.status_code == 200
    assert ActivateNodeResponse.FromString(response.content).node_id == node_id
    assert (await guard.public.post(path, content=body, headers=signed(other_private))).status_code == 401
    pull = PullMessagesRequest(node=Node(node_id=other_id)).SerializeToString()
    answer = await guard.public.post("/v1/fleet/pull-messages", content=pull, headers=signed(private))
    assert answer.status_code == 401


async def test_bodies_are_cut_off_before_they_are_read(guard: Guard) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(1 << 16)

    path = "/v1/fleet/pull-messages"
    assert (await guard.public.post(path, content=bytes(SMALL_BODY + 1), headers=PROTOBUF)).status_code == 413
    assert (await guard.public.post(path, content=endless(), headers=PROTOBUF)).status_code == 413
    lying = {**PROTOBUF, "content-length": "many"}
    assert (await guard.public.post(path, content=b"", headers=lying)).status_code == 400
    path = "/v1/fleet/push-object"
    assert (await guard.public.post(path, content=bytes(LARGE_BODY + 1), headers=PROTOBUF)).status_code == 413
    assert (await guard.public.post(path, content=b"\xff\xff\xff", headers=PROTOBUF)).status_code == 400


ANSWER_LIMIT = 16 << 10


class Member:
    """A member that speaks to the public door itself: it may send what no miner of ours sends."""

    def __init__(self, guard: Guard) -> None:
        self.guard, (self.private, public) = guard, keys.new_node_key()
        self.node_id = guard.registry.register(public)
        guard.superlink.state().activate_node(self.node_id, 10)
        self.run_id, _ = guard.registry.start_run(ANSWER_LIMIT)

    def instructed(self) -> str:
        state = self.guard.superlink.state()
        content = blobs.pack(b"train")
        about = Metadata(self.run_id, "", 1, self.node_id, "", "1", time.time(), 100.0, MessageType.TRAIN)
        message = make_message(content=content, metadata=about)
        message.metadata.__dict__["_message_id"] = message.object_id
        assert state.store_message_ins(message) is not None
        return message.object_id

    def reply(self, instruction: str, blob: bytes = b"answer") -> Message:
        about = Metadata(self.run_id, "", self.node_id, 1, instruction, "1", time.time(), 50.0, MessageType.TRAIN)
        reply = make_message(content=blobs.pack(blob), metadata=about)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        return reply

    async def push(self, reply: Message, *trees: ObjectTree) -> tuple[int, PushMessagesResponse]:
        request = PushMessagesRequest(
            node=Node(node_id=self.node_id),
            messages_list=[message_to_proto(remove_content_from_message(reply))],
            message_object_trees=list(trees),
            clientapp_runtime_list=[0.0],
        )
        answer = await self.post("push-messages", request.SerializeToString())
        is_taken = answer.status_code == 200
        return answer.status_code, PushMessagesResponse.FromString(answer.content if is_taken else b"")

    async def store(self, session: str, content: bytes) -> bool:
        request = PushObjectRequest(
            node=Node(node_id=self.node_id), run_id=self.run_id, object_id=get_object_id(content),
            object_content=content, session_id=session,
        )  # fmt: skip
        answer = await self.post("push-object", request.SerializeToString())
        return answer.status_code == 200 and PushObjectResponse.FromString(answer.content).stored

    async def post(self, name: str, body: bytes) -> httpx.Response:
        return await self.guard.public.post(f"/v1/fleet/{name}", content=body, headers=signed(self.private))

    def held(self) -> int:
        """Bytes that the guard holds."""
        store: Any = self.guard.superlink.state().object_store
        return sum(len(entry.content) for entry in store.store.values())


def chunk(number: int, size: int) -> bytes:
    return b"ArrayChunk  %d\x00" % size + number.to_bytes(4, "big") * (size // 4)


def tree_of(root: str, contents: list[bytes]) -> ObjectTree:
    return ObjectTree(object_id=root, children=[ObjectTree(object_id=get_object_id(content)) for content in contents])


async def test_one_instruction_does_not_fill_the_guard(guard: Guard) -> None:
    member = Member(guard)
    reply = member.reply(member.instructed())
    for number in range(8):
        contents = [chunk(100 * number + i, 4096) for i in range(10)]
        _, response = await member.push(reply, tree_of(reply.object_id, contents))
        for content in contents:
            await member.store(response.session_id, content)
    assert member.held() <= ANSWER_LIMIT


async def test_unfetched_answers_do_not_add_up(guard: Guard) -> None:
    member = Member(guard)
    for number in range(8):
        reply = member.reply(member.instructed(), b"%d" % number * 10_000)
        status, response = await member.push(reply, get_object_tree(reply))
        assert status == 200
        for object_id, item in get_all_nested_objects(reply).items():
            assert object_id not in response.objects_to_push or await member.store(response.session_id, item.deflate())
    assert 10_000 < member.held() <= ANSWER_LIMIT


async def test_pushes_that_are_no_single_answer_are_refused(guard: Guard) -> None:
    member = Member(guard)
    instruction = member.instructed()
    reply = member.reply(instruction)
    tree, other = get_object_tree(reply), ObjectTree(object_id="ab" * 32)
    many = tree_of(reply.object_id, [chunk(i, 4) for i in range(blobs.MAX_OBJECTS)])
    unnamed = ObjectTree(object_id=reply.object_id, children=[other, ObjectTree(object_id="no hash")])
    twice = ObjectTree(
        object_id=reply.object_id, children=[other, ObjectTree(object_id="ab" * 32, children=[ObjectTree(object_id="cd" * 32)])]
    )
    for trees in ((), (tree, tree), (other,), (many,), (twice,), (unnamed,)):
        assert (await member.push(reply, *trees))[0] == 409
    stranger = member.reply("ef" * 32)
    assert (await member.push(stranger, get_object_tree(stranger)))[0] == 409
    state = guard.superlink.state()
    assert len(state.object_store) == 0
    assert not state._object_push_sessions  # type: ignore[attr-defined]
    # An honest miner that did not hear the answer asks once more; another tree under the same message is another thing.
    for _ in range(2):
        assert (await member.push(reply, tree))[0] == 200
    assert (await member.push(reply, ObjectTree(object_id=reply.object_id)))[0] == 409
    second = member.reply(instruction, b"another")
    assert (await member.push(second, get_object_tree(second)))[0] == 409
    # With its message among another's parts, that message would never be deleted.
    third = member.reply(member.instructed())
    swallowing = ObjectTree(object_id=third.object_id, children=[ObjectTree(object_id=reply.object_id, children=tree.children)])
    assert (await member.push(third, swallowing))[0] == 409


async def test_an_empty_pull_is_held_until_the_bell(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    private, public = keys.new_node_key()
    node_id = guard.registry.register(public)
    body = PullMessagesRequest(node=Node(node_id=node_id)).SerializeToString()
    loop = asyncio.get_running_loop()
    holds: list[float] = []

    class Noted:
        """asyncio, which says what a pull is held for."""

        def __getattr__(self, name: str) -> Any:
            return getattr(asyncio, name)

        async def wait_for(self, awaited: Any, timeout: float) -> Any:
            holds.append(timeout)
            return await asyncio.wait_for(awaited, timeout)

    monkeypatch.setattr("pool.flower.listeners.asyncio", Noted())

    async def pull(hold_ms: int) -> float:
        started = loop.time()
        headers = {**signed(private), "x-pofl-hold-ms": str(hold_ms)}
        response = await guard.public.post("/v1/fleet/pull-messages", content=body, headers=headers)
        assert (response.status_code, response.content) == (200, b"")
        return loop.time() - started

    await pull(0)
    assert holds == []
    assert await asyncio.wait_for(pull(150), 60) >= 0.15
    held = asyncio.create_task(pull(300))
    await asyncio.sleep(0.05)
    guard.to_fleet.ring()
    assert await asyncio.wait_for(held, 60) >= 0.3, "a bell without a message does not end the hold"
    assert max(holds) <= 0.3
    holds.clear()
    refused = {**PROTOBUF, "x-pofl-hold-ms": "5000"}
    assert (await guard.public.post("/v1/fleet/pull-messages", content=body, headers=refused)).status_code == 401
    assert holds == [], "a stranger is not held"


async def test_parts_of_messages_wake_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pool.flower.listeners.MAX_HOLD_S", 3600.0)
    looked: list[str] = []
    has_looked = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        looked.append(scope["path"])
        has_looked.set()
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    to_fleet, to_manager = Bell(), Bell()
    public = Door(app, FLEET_PATHS, listens=to_fleet, rings=to_manager)
    inner = Door(app, RUNTIME_PATHS, listens=to_manager, rings=to_fleet)
    async with (
        httpx.AsyncClient(transport=httpx.ASGITransport(public), base_url="http://guard") as miner,
        httpx.AsyncClient(transport=httpx.ASGITransport(inner), base_url="http://guard") as manager,
    ):
        held = asyncio.create_task(miner.post("/v1/fleet/pull-messages", headers={"x-pofl-hold-ms": "3600000"}))
        await asyncio.wait_for(has_looked.wait(), 60)
        for _ in range(20):
            await manager.post("/v1/runtime/push-object")
        assert looked.count("/v1/fleet/pull-messages") == 1
        await manager.post("/v1/runtime/push-messages")
        async with asyncio.timeout(60):
            while looked.count("/v1/fleet/pull-messages") < 2:  # noqa: ASYNC110 - a list has no event
                await asyncio.sleep(0.01)
        held.cancel()
        await asyncio.gather(held, return_exceptions=True)
        assert looked.count("/v1/fleet/pull-messages") == 2


def message_of(content: RecordDict) -> Message:
    return make_message(Metadata(1, "", 2, 1, "a" * 64, "1", 1.8e9, 60.0, "train"), content=content)


@pytest.mark.parametrize("size", [0, 10, blobs.SMALL, blobs.SMALL + 1, 6 << 20])
def test_blobs_come_back(size: int) -> None:
    blob = np.random.default_rng(1).bytes(size)
    message = message_of(blobs.pack(blob))
    contents = {i: o.deflate() for i, o in get_all_nested_objects(message).items()}
    assert set(blobs.object_ids(get_object_tree(message))) == set(contents)
    again = blobs.inflate(message.object_id, contents)
    assert blobs.unpack(again.content) == blob
    assert again.metadata.message_id == message.object_id


def test_an_array_that_repeats_its_chunk_is_refused() -> None:
    message = message_of(RecordDict({"blob": ArrayRecord({"blob": Array(np.arange(9, dtype=np.uint8))})}))
    contents = {i: o.deflate() for i, o in get_all_nested_objects(message).items()}
    array_id = next(i for i, c in contents.items() if c.startswith(b"Array "))
    head, _, body = contents[array_id].partition(b"\x00")
    described = json.loads(body)
    described["arraychunk_ids"] = [0] * 1_000_000
    bomb = json.dumps(described).encode()
    kind, children, _ = head.decode().split(" ")
    contents[array_id] = f"{kind} {children} {len(bomb)}".encode() + b"\x00" + bomb
    with pytest.raises(MalformedError, match="each of its chunks once"):
        blobs.inflate(message.object_id, contents)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict({}),
        RecordDict({"other": ConfigRecord({"blob": b""})}),
        RecordDict({"blob": ConfigRecord({"blob": "text"})}),
        RecordDict({"blob": ConfigRecord({"blob": b"", "more": 1})}),
        RecordDict({"blob": ArrayRecord({"blob": Array(np.zeros(3))})}),
        RecordDict({"blob": ArrayRecord({"blob": Array("uint8", (3,), "numpy.ndarray", b"no array")})}),
        RecordDict({"blob": ArrayRecord({"blob": Array("uint8", (3,), "pickle", b"abc")})}),
        RecordDict({"blob": ArrayRecord({})}),
    ],
)
def test_other_records_are_no_blob(content: RecordDict) -> None:
    with pytest.raises(MalformedError):
        blobs.unpack(content)


def test_broken_objects_are_one_malformed_message() -> None:
    message = message_of(blobs.pack(b"abc"))
    contents = {i: o.deflate() for i, o in get_all_nested_objects(message).items()}
    for bad in (b"", b"\x00", b"Message  0\x00", b"Nonsense  3\x00abc", b"Message %s 0\x00" % (b"f" * 64)):
        with pytest.raises(MalformedError):
            blobs.inflate(message.object_id, {**contents, message.object_id: bad})
    with pytest.raises(MalformedError):
        blobs.inflate(get_object_id(b"absent"), contents)


def test_a_tree_with_too_many_objects_is_refused() -> None:
    tree = ObjectTree(object_id="0" * 64)
    for number in range(blobs.MAX_OBJECTS):
        tree.children.append(ObjectTree(object_id=f"{number + 1:064x}"))
    with pytest.raises(LimitError):
        blobs.object_ids(tree)


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (70368744177664,)}",
        b"{'descr': '|u1', 'fortran_order': False, 'shape': (" + b"-" * 6000 + b"1,)}",
        b"(" * 5000,
        b"'''",
    ],
    ids=["larger than memory", "too deep", "never closed", "text without end"],
)
def test_an_array_that_breaks_its_parser_costs_only_its_sender(header: bytes) -> None:
    """An error of another kind would end the manager, in every round, for the sake of one miner."""
    line = header + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(line).to_bytes(2, "little") + line + bytes(64)
    content = RecordDict({"blob": ArrayRecord({"blob": Array("uint8", (3,), "numpy.ndarray", data)})})
    with pytest.raises(MalformedError, match="the array does not load"):
        blobs.unpack(content)
