"""`pofl doctor`: each thing that goes wrong between hosts is named, with what to do about it."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.crypto.signing import KeyPair
from core.errors import ConfigError
from core.params import PROTOCOL_VERSION
from services.cli import doctor_files, doctor_peers
from services.cli.doctor import configurations, examine
from services.cli.doctor_files import Subject, own_files, subject_of
from services.cli.doctor_peers import own_port, peers, reach
from services.cli.findings import Finding
from services.rpc import tls
from services.rpc.handshake import ChainIdentity, LocalIdentity
from services.rpc.role import read_key
from services.rpc.server import RpcServer
from services.storage import LevelDb, StoreMeta
from services.testnet.layout import Layout, Member, Shape, make_layout
from tests.seeded import SeededRng


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return make_layout(tmp_path_factory.mktemp("net") / "net", Shape(nodes=2, pools=1, miners=1))


@pytest.fixture
def net(made: Layout, tmp_path: Path) -> Layout:
    shutil.copytree(made.folder, tmp_path / "net")
    return dataclasses.replace(made, folder=tmp_path / "net")


def subject(net: Layout, name: str = "platform0", **changes: Any) -> Subject:
    """As `subject_of` reads it, without starting the role's program."""
    member = net.member(name)
    home = net.folder / name
    values: dict[str, Any] = {
        "name": name, "listen": member.listen, "advertise": "", "admin_listen": member.admin, "key": str(home / "account.key"),
        "data_dir": str(home / "data"), "chain": {"genesis": str(net.folder / "genesis.json")},
        "tls": {key: str(home / "tls" / file) for key, file in (("ca", "ca.pem"), ("cert", "tls.pem"), ("key", "tls.key"))},
        "peers": {"nodes": [m.listen for m in net.of("node") if m.name != name]},
        "fleet_listen": member.fleet, "fleet_advertise": "",
    }  # fmt: skip
    return Subject(member.role, home / "config.toml", {**values, **changes})


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever answers has the time that a busy machine takes."""
    monkeypatch.setattr(doctor_peers, "REACH_TIMEOUT", 60.0)


NOW_MS = 1_700_000_000_000


@pytest.fixture
def stopped_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the doctor takes for this host's clock: figures are exact, however long the test is kept waiting."""
    monkeypatch.setattr(doctor_peers, "time", SimpleNamespace(time_ns=lambda: NOW_MS * 1_000_000))


@asynccontextmanager
async def serves(net: Layout, member: Member, chain: ChainIdentity | None = None, **changes: Any) -> AsyncIterator[None]:
    home = net.folder / member.name
    files = tls.TlsFiles(home / "tls" / "ca.pem", home / "tls" / "tls.pem", home / "tls" / "tls.key")
    chain = chain or ChainIdentity(net.genesis.name, net.genesis.chain_id, PROTOCOL_VERSION)
    key = read_key(home / "account.key")
    identity = LocalIdentity(member.role, member.name, dataclasses.replace(chain, **changes), key)
    server = RpcServer(member.listen, files, member.admin, role_rules={}, identity=identity)
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


def only(findings: list[Finding], check: str) -> Finding:
    (found,) = [finding for finding in findings if finding.check.startswith(check)]
    return found


async def test_a_process_that_is_right_has_nothing_wrong(net: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_files, "STATUS_TIMEOUT", 60.0)
    node, other = net.of("node")
    async with serves(net, node), serves(net, other):
        found = await examine(subject(net, node.name))
    assert {finding.level for finding in found} == {"ok"}
    assert only(found, "own port").text == "node/node0 answers, same chain and release"
    assert only(found, f"node {other.listen}").text == "node/node1 answers, same chain and release"


async def test_a_roles_own_program_reads_the_configuration(net: Layout) -> None:
    path = net.folder / "platform0" / "config.toml"
    read = await subject_of(path)
    assert read.peers == subject(net).peers
    assert (read.role, read.name, read.address) == ("platform", "platform0", net.member("platform0").listen)
    assert read.tls == subject(net).tls
    path.write_text("lissten = 'x'\n" + path.read_text())
    with pytest.raises(ConfigError, match="unknown key 'lissten'"):
        await subject_of(path)


async def test_a_closed_port_is_named(net: Layout) -> None:
    finding = (await peers(subject(net)))[0]
    assert (finding.level, finding.text) == ("bad", "the port is closed")
    assert "start the node there" in finding.advice


async def test_a_port_that_another_process_has_is_named(net: Layout) -> None:
    host, _, port = net.member("platform0").listen.rpartition(":")
    with socket.create_server((host, int(port))):
        (finding,) = await own_port(subject(net))
    assert finding.level == "bad"
    assert "is taken by another process" in finding.text


async def test_every_port_of_its_own_is_looked_at(net: Layout) -> None:
    member = net.member("pool0")
    for key, address in (("admin_listen", member.admin), ("fleet_listen", member.fleet)):
        host, _, port = address.rpartition(":")
        with socket.create_server((host, int(port))):
            (finding,) = await own_port(subject(net, "pool0"))
        assert (finding.level, finding.check) == ("bad", f"own port ({key})")
        assert finding.text == f"{address} is taken by another process"
        assert finding.advice == f"stop that, or change {key}"


async def test_another_process_at_the_operators_port_is_not_taken_for_this_one(
    net: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two bundles on one host whose ports overlap: the second one does not run, and that is what is said."""
    monkeypatch.setattr(doctor_files, "STATUS_TIMEOUT", 60.0)
    async with serves(net, net.member("node0")):
        other = subject(net, admin_listen=net.member("node0").admin)
        (finding,) = await own_port(other)
        assert finding.text == f"{net.member('node0').admin} is taken by another process"
        assert not any("the process runs" in found.text for found in await asyncio.to_thread(own_files, other))


async def test_a_wall_that_swallows_packets_is_named(net: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_peers, "REACH_TIMEOUT", 0.2)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = f"127.0.0.1:{full.getsockname()[1]}"
        finding = await reach(subject(net), "node", address, "node")  # it takes the connection, and never says a word
    assert finding.level == "bad"
    assert "no answer within 0.2 s" in finding.text
    assert "firewalls" in finding.advice


async def test_a_certificate_with_the_wrong_name_is_named(net: Layout) -> None:
    pool = net.member("pool0")
    async with serves(net, pool):
        finding = await reach(subject(net), "node", pool.listen, "node")
    assert (finding.level, finding.text) == ("bad", "there is pool pool0, not a node")


async def test_the_network_of_another_authority_is_named(net: Layout, tmp_path: Path) -> None:
    node = net.of("node")[0]
    other = tls.issue(tls.make_authority(tmp_path / "ca"), "node", node.name, ["127.0.0.1"], node.account)
    other.write(net.folder / node.name / "tls")
    async with serves(net, node):
        finding = await reach(subject(net), "node", node.listen, "node")
    assert finding.level == "bad"
    assert "is not of this network" in finding.text
    assert "bundles of one `init`" in finding.advice


async def test_another_genesis_is_named_with_both_hashes(net: Layout) -> None:
    node = net.of("node")[0]
    async with serves(net, node, genesis_hash=b"\x22" * 32):
        finding = await reach(subject(net), "node", node.listen, "node")
    assert finding.level == "bad"
    assert "22" * 32 in finding.text
    assert net.genesis.chain_id.hex() in finding.text
    assert "genesis.json" in finding.advice


async def test_another_release_is_named(net: Layout) -> None:
    node = net.of("node")[0]
    async with serves(net, node, protocol_version=PROTOCOL_VERSION + 1):
        finding = await reach(subject(net), "node", node.listen, "node")
    assert finding.level == "bad"
    assert "protocol version" in finding.text
    assert "same release of pofl" in finding.advice


@pytest.mark.parametrize("address", ["0.0.0.0:7000", "[::]:7000"])
def test_a_wildcard_that_others_would_dial_is_named(net: Layout, address: str) -> None:
    for name, change in (("requester0", {"listen": address}), ("pool0", {"fleet_listen": address})):
        finding = only(own_files(subject(net, name, **change)), "address")
        assert finding.level == "bad"
        assert address in finding.text
        assert "advertise" in finding.advice


async def test_a_wildcard_among_the_peers_is_named(net: Layout) -> None:
    (finding,) = await peers(subject(net, peers={"nodes": ["0.0.0.0:7000"]}))
    assert (finding.level, finding.text) == ("bad", "0.0.0.0:7000 is nobody's address")


def test_a_loopback_address_told_to_other_hosts_is_named(net: Layout) -> None:
    finding = only(own_files(subject(net, "requester0", peers={"nodes": ["node0.example.org:7000"]})), "address")
    assert finding.level == "bad"
    assert "means the dialling host itself" in finding.text


def test_an_address_that_the_pools_certificate_lacks_is_named(net: Layout) -> None:
    finding = only(own_files(subject(net, "pool0", fleet_advertise="pool.example.org:7003")), "address")
    assert finding.level == "bad"
    assert "the certificate names 127.0.0.1, localhost" in finding.text or "localhost" in finding.text


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("node0/tls/tls.pem", "is not the private key of"),
        ("requester0/tls/ca.pem", None),
        ("genesis.json", "is not a PEM file"),
    ],
)
def test_own_certificates_are_looked_at(net: Layout, source: str, sentence: str | None) -> None:
    shutil.copy(net.folder / source, net.folder / "platform0" / "tls" / ("tls.pem" if sentence else "ca.pem"))
    finding = only(own_files(subject(net)), "certificate")
    assert (finding.level == "bad") is (sentence is not None)
    assert (sentence or "") in finding.text


def test_a_certificate_that_is_not_valid_yet_points_at_the_clock(net: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    import datetime

    class Early(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:  # type: ignore[override]
            return datetime.datetime(2001, 1, 1, tzinfo=tz)

    monkeypatch.setattr(tls.datetime, "datetime", Early)
    finding = only(own_files(subject(net)), "certificate")
    assert finding.level == "bad"
    assert "clock" in finding.advice


def test_a_key_of_another_account_is_named(net: Layout) -> None:
    shutil.copy(net.folder / "node0" / "account.key", net.folder / "platform0" / "account.key")
    finding = only(own_files(subject(net)), "certificate")
    assert finding.level == "bad"
    assert "another account" in finding.text


def store(net: Layout, *, chain: bytes | None = None, node: bytes | None = None) -> Path:
    folder = net.folder / "node0" / "data" / "chain"
    folder.parent.mkdir()
    meta = StoreMeta(1, net.genesis.name, chain or net.genesis.chain_id, node or net.member("node0").account)
    database = LevelDb(folder, meta)
    database.put_batch({b"a": b"b" * 4000})
    database.close()
    return folder


def test_a_data_folder_that_is_ours_opens(net: Layout) -> None:
    store(net)
    assert only(own_files(subject(net, "node0")), "data").level == "ok"


def test_a_data_folder_of_another_chain_or_process_is_named(net: Layout) -> None:
    stranger = KeyPair.generate(SeededRng("stranger")).public_key
    for change, sentence in (({"chain": b"\x33" * 32}, "is of chain 3333"), ({"node": stranger}, "is of account")):
        folder = store(net, **change)  # type: ignore[arg-type]
        finding = only(own_files(subject(net, "node0")), "data")
        assert finding.level == "bad"
        assert sentence in finding.text
        assert "set data_dir" in finding.advice
        shutil.rmtree(folder.parent)


def test_a_damaged_data_folder_is_named_and_how_it_is_healed(net: Layout) -> None:
    folder = store(net)
    for log in folder.glob("*.log"):
        data = bytearray(log.read_bytes())
        data[len(data) // 2] ^= 0xFF
        log.write_bytes(data)
    finding = only(own_files(subject(net, "node0")), "data")
    assert finding.level == "bad"
    assert "is damaged" in finding.text
    assert "reindex" in finding.advice


@pytest.mark.usefixtures("stopped_clock")
@pytest.mark.parametrize(("off_ms", "side"), [(60_000, "60.0 s behind"), (-60_000, "60.0 s ahead of"), (0, None)])
async def test_a_clock_that_is_off_is_named(
    net: Layout, monkeypatch: pytest.MonkeyPatch, off_ms: int, side: str | None
) -> None:
    class Chain:
        def __init__(self, nodes: object) -> None: ...

        async def tip(self) -> Any:
            return SimpleNamespace(height=7)

        async def watch_blocks(self, height: int) -> AsyncIterator[Any]:
            assert height == 8
            yield SimpleNamespace(header=SimpleNamespace(timestamp_ms=NOW_MS + off_ms))

    monkeypatch.setattr(doctor_peers, "ChainClient", Chain)
    (finding,) = await doctor_peers.clock(subject(net), 60.0)
    assert finding.level == ("bad" if side else "ok")
    assert (side or "") in finding.text


@pytest.mark.usefixtures("stopped_clock")
async def test_one_late_block_is_no_clock_that_is_off(net: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a busy host or a slow line adds is only ever too much: the fastest block tells, and a clock behind tells at once."""
    late = [30_000, 9_000, 400]

    class Chain:
        def __init__(self, nodes: object) -> None: ...

        async def tip(self) -> Any:
            return SimpleNamespace(height=7)

        async def watch_blocks(self, height: int) -> AsyncIterator[Any]:
            for off in late:
                yield SimpleNamespace(header=SimpleNamespace(timestamp_ms=NOW_MS - off))

    monkeypatch.setattr(doctor_peers, "ChainClient", Chain)
    (finding,) = await doctor_peers.clock(subject(net), 60.0)
    assert finding.level == "ok", finding
    late.pop()
    (finding,) = await doctor_peers.clock(subject(net), 60.0)
    assert finding.level == "bad"
    assert "9.0 s ahead of" in finding.text


async def test_without_a_block_the_clock_is_not_judged(net: Layout) -> None:
    (finding,) = await doctor_peers.clock(subject(net), 0.2)
    assert finding.level == "note"
    assert "not compared" in finding.text


def test_what_can_be_examined(net: Layout, tmp_path: Path) -> None:
    assert len(configurations(net.folder)) == len(net.members)
    assert configurations(net.folder / "node0") == [net.folder / "node0" / "config.toml"]
    with pytest.raises(ConfigError, match="is neither a bundle"):
        configurations(tmp_path / "nothing")
