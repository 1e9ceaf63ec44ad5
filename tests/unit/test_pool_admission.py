"""Who gets in at each of a pool's doors: the real servicer behind TLS, and Flower's own list of node keys at the fleet port."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx
import pytest
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from pofl.mining.v1 import mining_pb2_grpc

from core.crypto.masking import Aggregation
from core.crypto.sealing import Suite
from core.crypto.signing import KeyPair
from core.errors import AuthError, ConfigError, LimitError, NotFoundError, PoflError, UnavailableError
from core.ids import AccountId, Milliseconds
from core.market.delivery import sign_receipt
from pool.flower import keys as node_keys
from pool.flower.guard import Registry
from pool.flower.jobs import JoinTicket
from pool.flower.listeners import FLEET_PATHS, Bell, Door
from pool.flower.superlink import SuperLink
from pool.manager import members as members_module
from pool.manager.admission import Admission
from pool.manager.board import Board
from pool.manager.config import AdmissionConfig, PoolConfig, TrainingConfig
from pool.manager.members import Members
from pool.manager.receipts import ReceiptDesk
from pool.manager.servicer import POOL, RULES, PoolServicer
from pool.miner.config import MinerConfig
from pool.miner.member import check_secrecy
from services.rpc import tls
from services.rpc.channel import connect
from services.rpc.convert_mining import Join, Joined, SignedJoined, sign_join
from services.rpc.mining_client import PoolClient
from services.rpc.server import RpcServer
from services.runtime import config, settings
from tests.pool_kit import CHAIN, T0, keys
from tests.unit.test_mining_doors import signed
from tests.unit.test_pool_receipts import TRADE, Chain

OWNER, ANN, BOB, EVE = keys(4, "admission")
ACCOUNT = AccountId(OWNER.public_key)
TOKEN = "k7Qw-0pT9-vLx2-44mZ"


@dataclass
class Clock:
    now: int = T0

    def now_ms(self) -> Milliseconds:
        return Milliseconds(self.now)


class Fleet:
    """Enrolment with the guard's own registry over Flower's state, and the public door of the fleet port."""

    def __init__(self) -> None:
        superlink = SuperLink()
        self.registry = Registry(superlink)
        door = Door(superlink, FLEET_PATHS, listens=Bell(), rings=Bell())
        self.public = httpx.AsyncClient(transport=httpx.ASGITransport(door), base_url="http://guard")

    async def register(self, node_public_key: bytes) -> JoinTicket:
        self.registry.register(node_public_key)
        return JoinTicket("127.0.0.1:7", b"CA", b"h" * 32, node_public_key)

    async def unregister(self, node_public_key: bytes) -> None:
        self.registry.unregister(node_public_key)

    async def connected(self) -> list[bytes]:
        return []

    async def lets_in(self, private: bytes, public: bytes) -> bool:
        """Whether Flower activates the node that holds this key."""
        body = ActivateNodeRequest(public_key=node_keys.node_public_pem(public), heartbeat_interval=10).SerializeToString()
        answer = await self.public.post("/v1/fleet/activate-node", headers=signed(private), content=body)
        assert answer.status_code in (200, 401, 403, 412), answer.text
        return answer.status_code == 200


@dataclass
class World:
    folder: Path
    authority: tls.Authority
    clock: Clock = field(default_factory=Clock)
    fleet: Fleet = field(default_factory=Fleet)
    address: str = ""
    channels: list[object] = field(default_factory=list)

    def files(self, role: str, name: str, account: bytes | None = None) -> tls.TlsFiles:
        return tls.issue(self.authority, role, name, ["localhost", "127.0.0.1"], account).write(self.folder / name)

    def client(self, name: str, role: str = "miner", account: bytes | None = None) -> PoolClient:
        channel = connect(self.address, self.files(role, name, account), expect_role="pool")
        self.channels.append(channel)
        return PoolClient(channel)

    @contextlib.asynccontextmanager
    async def pool(self, admission: AdmissionConfig) -> AsyncIterator[Members]:
        members = Members(self.fleet, OWNER, CHAIN, admission, self.clock)
        chain = Chain()
        desk = ReceiptDesk(self.folder / "receipts", chain, chain, CHAIN)  # type: ignore[arg-type]
        server = RpcServer("127.0.0.1:0", self.files("pool", "pool"), "127.0.0.1:0", role_rules=RULES)
        servicer = PoolServicer(CHAIN, members, desk, Board(), None)  # type: ignore[arg-type]
        server.add(mining_pb2_grpc.add_PoolServiceServicer_to_server, servicer, POOL)
        await server.start()
        self.address = server.address
        try:
            yield members
        finally:
            for channel in self.channels:
                await channel.close(None)  # type: ignore[attr-defined]
            await server.stop(0)
            await self.fleet.public.aclose()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, tls.make_authority(tmp_path / "ca"))


@dataclass
class Node:
    """A fresh node key."""

    private: bytes
    public: bytes

    @classmethod
    def new(cls) -> Node:
        return cls(*node_keys.new_node_key())


def join(key: KeyPair, node: Node, token: str = "") -> Join:
    return Join(CHAIN, ACCOUNT, AccountId(key.public_key), node.public, 100, 64, token.encode())


async def admitted(client: PoolClient, key: KeyPair, request: Join) -> bool:
    try:
        await client.join(key, request)
    except AuthError:
        return False
    return True


async def test_open_takes_everybody_who_signs(world: World) -> None:
    async with world.pool(AdmissionConfig()):
        client, node = world.client("ann"), Node.new()
        assert not await admitted(client, EVE, join(ANN, node)), "signed by another"
        answer: SignedJoined = await client.join(ANN, join(ANN, node))
        assert answer.joined.node_public_key == node.public
        assert await world.fleet.lets_in(node.private, node.public)


async def test_the_token_opens_join_and_nothing_opens_without_a_join(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    async with world.pool(AdmissionConfig(mode="token", token=TOKEN)) as members:
        client, node = world.client("ann"), Node.new()
        for token in ("", TOKEN[:-1], TOKEN + "x", TOKEN.lower()):
            with pytest.raises(AuthError, match="this pool asks for its token") as caught:
                await client.join(ANN, join(ANN, node, token))
            assert TOKEN not in str(caught.value)
            assert not token or token not in str(caught.value)
        # The other doors: attending and leaving need the membership, the fleet port a registered key.
        with pytest.raises(NotFoundError, match="join first"):
            await anext(client.attend(ANN, join(ANN, node)))
        assert not await world.fleet.lets_in(node.private, node.public)
        await client.leave(ANN, join(ANN, node))
        assert members.listed() == ()
        await client.join(ANN, join(ANN, node, TOKEN))
        assert await world.fleet.lets_in(node.private, node.public)
    written = capsys.readouterr()
    assert TOKEN not in written.out + written.err
    assert TOKEN not in repr(join(ANN, node, TOKEN))


async def test_the_list_is_of_accounts_not_of_certificates(world: World) -> None:
    async with world.pool(AdmissionConfig(mode="allow", allow=(ANN.public_key.hex().upper(),))):
        ann, bob = world.client("ann"), world.client("bob")
        assert not await admitted(bob, BOB, join(BOB, Node.new()))
        assert await admitted(ann, ANN, join(ANN, Node.new()))


async def test_a_certificate_that_names_an_account_speaks_for_no_other(world: World) -> None:
    async with world.pool(AdmissionConfig()):
        client = world.client("ann", account=ANN.public_key)
        for call in (
            client.join(BOB, join(BOB, Node.new())),
            client.leave(BOB, join(BOB, Node.new())),
            anext(client.attend(BOB, join(BOB, Node.new()))),
            client.hand_in(sign_receipt(BOB, CHAIN, TRADE, 3)),
        ):
            with pytest.raises(AuthError, match="the connection is of account"):
                await call


async def test_only_miners_join(world: World) -> None:
    async with world.pool(AdmissionConfig()):
        for role in ("node", "requester", "provider", "user", "pool"):
            client = world.client(f"x-{role}", role)
            with pytest.raises(AuthError, match="may not call"):
                await client.join(EVE, join(EVE, Node.new()))


async def test_receipts_are_taken_of_the_trades_miners_only(world: World) -> None:
    """Also from a former member: what was delivered to it is owed to the provider."""
    async with world.pool(AdmissionConfig(mode="token", token=TOKEN)):
        client = world.client("eve")
        with pytest.raises(AuthError, match="receives no chunk"):
            await client.hand_in(sign_receipt(EVE, CHAIN, TRADE, 3))
        forged = replace(sign_receipt(EVE, CHAIN, TRADE, 3), miner=AccountId(BOB.public_key))
        with pytest.raises(PoflError):
            await client.hand_in(forged)


async def test_one_account_has_one_membership_and_no_key_is_used_twice(world: World) -> None:
    async with world.pool(AdmissionConfig()) as members:
        client, first, second = world.client("ann"), Node.new(), Node.new()
        await client.join(ANN, join(ANN, first))
        # A retry of the same request is answered again.
        await client.join(ANN, join(ANN, first))
        assert len(members.listed()) == 1
        await client.join(ANN, join(ANN, second))
        await asyncio.sleep(0)
        assert len(members.listed()) == 1
        assert not await world.fleet.lets_in(first.private, first.public), "the former key is out at once"
        assert await world.fleet.lets_in(second.private, second.public)
        with pytest.raises(AuthError, match="before: join with a fresh one"):
            await client.join(ANN, join(ANN, first))
        with pytest.raises(AuthError, match="another member's"):
            await world.client("bob").join(BOB, join(BOB, second))


async def test_a_key_is_not_used_again_after_guard_and_pool_were_killed(world: World) -> None:
    """Flower's list is in memory and forgets; the pool's list of owners is on disk and does not."""
    node = Node.new()
    owners = {node.public: AccountId(ANN.public_key)}
    group = Members(world.fleet, OWNER, CHAIN, AdmissionConfig(), world.clock, owners)
    with pytest.raises(AuthError, match="before: join with a fresh one"):
        await group.join(sign_join(ANN, join(ANN, node)))
    await world.fleet.public.aclose()


async def test_who_leaves_in_the_middle_of_a_task_is_out_of_the_round_and_of_the_fleet(world: World) -> None:
    async with world.pool(AdmissionConfig()) as members:
        client, node = world.client("ann"), Node.new()
        request = join(ANN, node)
        await client.join(ANN, request)
        roster = members.roster(64)
        assert node.public not in roster, "who does not attend is given nothing to do"
        stream = client.attend(ANN, request)
        waiting = asyncio.create_task(anext(stream))
        async with asyncio.timeout(60):
            while node.public not in roster:  # noqa: ASYNC110 - the roster is a view
                await asyncio.sleep(0.01)
        with pytest.raises(AuthError, match="did not sign"):
            await client.leave(ANN, join(ANN, Node.new()))
        await client.leave(ANN, request)
        with pytest.raises((StopAsyncIteration, UnavailableError)):
            await asyncio.wait_for(waiting, 5)
        await asyncio.sleep(0)
        assert node.public not in roster
        assert not await world.fleet.lets_in(node.private, node.public)
        assert members.owner(node.public) == ANN.public_key, "it is paid for what it did"


async def test_who_guesses_is_not_listened_to_for_a_while_and_nobody_else_suffers(world: World) -> None:
    async with world.pool(AdmissionConfig(mode="token", token=TOKEN)):
        eve, ann = world.client("eve"), world.client("ann")
        for number in range(5):
            assert not await admitted(eve, EVE, join(EVE, Node.new(), f"guess {number}"))
        # The right token does not help now, nor does another account on the same connection.
        for key in (EVE, BOB):
            with pytest.raises(LimitError, match=r"5 requests to join were refused within 60 s: try again in 60 s"):
                await eve.join(key, join(key, Node.new(), TOKEN))
        assert await admitted(ann, ANN, join(ANN, Node.new(), TOKEN))
        world.clock.now += 60_000
        assert await admitted(eve, EVE, join(EVE, Node.new(), TOKEN))


def test_callers_that_fail_are_remembered_up_to_a_number() -> None:
    clock = Clock()
    admission = Admission(AdmissionConfig(mode="token", token=TOKEN), clock)
    refusal = AuthError("no")
    for number in range(5_000):
        admission.note(f"caller {number}", refusal)
    assert len(admission._failures) == 4_096
    for _ in range(9):
        admission.note("eve", refusal)
        admission.note("bob", LimitError("full"))
    assert len(admission._failures["eve"]) == 5
    admission.listen("bob")
    with pytest.raises(LimitError):
        admission.listen("eve")


async def test_places_that_nobody_attends_go_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members_module, "MAX_MEMBERS", 2)
    clock, fleet = Clock(), Fleet()
    group = Members(fleet, OWNER, CHAIN, AdmissionConfig(), clock)
    for key in (ANN, BOB):
        await group.join(sign_join(key, join(key, Node.new())))
    with pytest.raises(LimitError, match="the most it takes"):
        await group.join(sign_join(EVE, join(EVE, Node.new())))
    clock.now += 180_001
    await group.join(sign_join(EVE, join(EVE, Node.new())))
    assert [m.miner for m in group.listed()] == [EVE.public_key]
    await fleet.public.aclose()


BASE = """name = "p"
key = "k"
listen = "127.0.0.1:1"
fleet_listen = "127.0.0.1:2"
data_dir = "d"
[tls]
insecure_loopback = true
[chain]
genesis = "g"
"""


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ('[admission]\nmode = "token"', "admission.token must be set"),
        ('[admission]\nmode = "token"\ntoken = "short"', "admission.token has 5 bytes, must have 16 to 256"),
        (f'[admission]\nmode = "token"\ntoken = "{"x" * 257}"', "admission.token has 257 bytes"),
        ('[admission]\nmode = "allow"\nallow = ["me"]', "'me' is no account"),
        ('[admission]\nmode = "friends"', "friends"),
        ('[training]\naggregation = "secure"\nalgorithm = "krum"', "must be fedavg or fedsgd, not krum"),
        ('[training]\naggregation = "secure"\nweight_factor = 17', "at most 16, not 17"),
        ('[training]\nsealing = "rsa"', "rsa"),
    ],
)
def test_a_rule_that_cannot_hold_is_refused_before_anything_starts(section: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    path.write_text(BASE + section)
    with pytest.raises(ConfigError, match=words):
        settings.load(PoolConfig, path, {})


@pytest.mark.parametrize(
    ("sealing", "aggregation", "words"),
    [
        ("hybrid", "any", "the pool seals with x25519, this miner asks for hybrid"),
        ("any", "secure", "sees each update, this miner asks for secure aggregation"),
    ],
)
def test_a_miner_joins_no_pool_of_less_secrecy_than_it_asks_for(sealing: str, aggregation: str, words: str) -> None:
    weak = Joined(CHAIN, ACCOUNT, AccountId(ANN.public_key), b"n" * 33, "127.0.0.1:1", b"PEM", b"h" * 32)
    strong = replace(weak, hpke_public_key=b"h" * 1216, sealing=Suite.HYBRID, aggregation=Aggregation.SECURE)
    asks = MinerConfig(
        name="m", listen="127.0.0.1:1", key=Path("k"), data_dir=Path("d"), pool="127.0.0.1:2", data=Path("x.npz"),
        sealing=sealing, aggregation=aggregation,
    )  # type: ignore[arg-type]  # fmt: skip
    check_secrecy(asks, strong)
    check_secrecy(replace(asks, sealing="any", aggregation="any"), weak)
    with pytest.raises(AuthError, match=words):
        check_secrecy(asks, weak)


@pytest.mark.parametrize(
    ("training", "least"),
    [(TrainingConfig(), 1), (TrainingConfig(quorum=2), 2), (TrainingConfig(aggregation="secure"), 3),
     (TrainingConfig(aggregation="secure", quorum=5), 5)],
)  # fmt: skip
def test_no_task_is_entered_with_fewer_than_a_round_needs(training: TrainingConfig, least: int) -> None:
    assert training.least_miners == least


COMMON = """name = "p"\nkey = "k"\nlisten = "127.0.0.1:1"\ndata_dir = "d"\n"""
SECTIONS = """[tls]\ninsecure_loopback = true\n[chain]\ngenesis = "g"\n"""


def test_a_miner_without_a_port_to_its_pool_is_told_before_it_reads_its_data(tmp_path: Path) -> None:
    path = tmp_path / "miner.toml"
    path.write_text(COMMON + 'data = "x.npz"\npool = "127.0.0.1"\n' + SECTIONS)
    with pytest.raises(ConfigError, match=r"pool is '127\.0\.0\.1': it must be HOST:PORT"):
        config.load(MinerConfig, path, {})


def test_a_list_of_members_with_nobody_on_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pool.toml"
    written = COMMON + 'fleet_listen = "127.0.0.1:2"\n' + SECTIONS + '[admission]\nmode = "allow"\n'
    path.write_text(written)
    with pytest.raises(ConfigError, match=r"admission\.mode is allow, so admission\.allow must list"):
        config.load(PoolConfig, path, {})
    path.write_text(written + f'allow = ["{ANN.public_key.hex()}"]\n')
    assert config.load(PoolConfig, path, {}).admission.mode == "allow"
