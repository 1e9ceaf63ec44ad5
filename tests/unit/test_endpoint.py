"""What accounts may publish as their address, and that nothing else reaches a dialler."""

from __future__ import annotations

import asyncio

import pytest
from grpc import aio
from pofl.chain.v1 import chain_pb2
from pofl.mining.v1 import mining_pb2

from core.chain.transaction import EnterTask
from core.codec import decode, encode
from core.endpoint import check_endpoint, is_endpoint
from core.errors import LimitError, MalformedError
from core.ids import Amount, TaskId
from services.rpc import channel, convert_mining, convert_task, convert_trade
from tests.pool_kit import spec

GOOD = (
    "127.0.0.1:9000", "node0:7100", "a.b-c.example:65535", "pofl_node:1", "[::1]:9000", "[fe80::1:2]:80",
    "[::ffff:10.0.0.1]:443", "a" * 250 + ":443",
    # Called like schemes of gRPC, hosts all the same: `_uri` sees to it.
    "unix:80", "ipv4:1",
)  # fmt: skip
BAD = (
    "", ":1", "node0", "node0:", "node0:0", "node0:00080", "node0:65536", "node0:+80", "node0: 80", "node0:80 ", "node0:٨٠",
    "unix:/run/docker.sock", "unix:///run/docker.sock", "unix-abstract:x", "dns:///node0:80", "dns://10.0.0.9/node0:80",
    "ipv4:10.0.0.1:80,10.0.0.2:80", "ipv6:[::1]:80", "xds:///node0:80", "http://node0:80", "user@node0:80", "node0:80/x",
    "node0:80\n", "nöde:80", "::1:80", "[::1]", "[::1%eth0]:80", "[node0]:80", "-node0:80", ".node0:80", "a\0b:80",
    "a\x1b[2J:80", "a" * 252 + ":443",
)  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_a_host_and_a_port(text: str) -> None:
    assert is_endpoint(text)
    assert check_endpoint(text) == text
    entry = EnterTask(TaskId(bytes(32)), Amount(1), text)
    assert decode(EnterTask, encode(entry)) == entry


@pytest.mark.parametrize("text", BAD)
def test_nothing_else(text: str) -> None:
    assert not is_endpoint(text)
    with pytest.raises(MalformedError, match="is not host:port"):
        check_endpoint(text)
    with pytest.raises(MalformedError, match="endpoint"):
        encode(EnterTask(TaskId(bytes(32)), Amount(1), text))


@pytest.mark.parametrize("text", [text for text in BAD if text])
def test_what_others_write_is_refused_where_it_is_read(text: str) -> None:
    data = encode(EnterTask(TaskId(bytes(32)), Amount(1), "h:1"))
    raw = text.encode()
    forged = data.replace(b"\0\0\0\3h:1", len(raw).to_bytes(4, "big") + raw)
    assert forged != data
    with pytest.raises((MalformedError, LimitError), match="endpoint"):
        decode(EnterTask, forged)
    good = convert_task.spec_to_proto(spec())
    good.endpoint = text
    with pytest.raises((MalformedError, LimitError), match="endpoint"):
        convert_task.spec_from_proto(good)
    entry = mining_pb2.AttendResponse(
        fetch=mining_pb2.FetchRows(trade_id=bytes(32), data_root=bytes(32), provider_endpoint=text)
    )
    with pytest.raises(MalformedError, match="provider_endpoint"):
        convert_mining.assignment_from_proto(entry)


def test_a_node_that_names_no_address_of_a_provider_or_pool_is_not_believed() -> None:
    with pytest.raises(MalformedError, match=r"entry\.endpoint"):
        convert_task.entry_from_proto(chain_pb2.Entry(pool=bytes(32), endpoint="unix:/x"))
    with pytest.raises(MalformedError, match=r"provider\.endpoint"):
        convert_trade.provider_from_proto(chain_pb2.ProviderView(provider=bytes(32), data_root=bytes(32), endpoint="unix:/x"))


def test_a_host_called_like_a_scheme_is_dialled_as_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    dialled: list[str] = []
    monkeypatch.setattr(aio, "insecure_channel", lambda target, options: dialled.append(target))
    for target in ("localhost:80", "[::1]:9000", "127.0.0.1:9"):
        channel.connect(target, None, expect_role=None)
    assert dialled == ["dns:///localhost:80", "dns:///%5B::1%5D:9000", "dns:///127.0.0.1:9"]
    assert channel._uri("unix:80") == "dns:///unix:80"
    assert channel._uri("unix:/run/own.sock") == "unix:/run/own.sock"  # from this machine's own configuration only


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "localhost"])
async def test_each_form_reaches_a_server(host: str) -> None:
    server = aio.server()
    try:
        port = server.add_insecure_port(f"{host}:0")
    except RuntimeError:
        pytest.skip(f"{host} is no address of this machine")
    await server.start()
    dialled = channel.connect(f"{host}:{port}", None, expect_role=None)
    try:
        await asyncio.wait_for(dialled.channel_ready(), 60)
    finally:
        await dialled.close(None)
        await server.stop(None)
