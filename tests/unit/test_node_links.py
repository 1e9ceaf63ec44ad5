"""node.links: who is let in, what is relayed, what a slow or lying peer can do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from core.chain.state import Membership, State, Validator, genesis_state
from core.chain.transaction import SignedTransaction
from core.chain.vote import SignedProposal, SignedVote
from core.errors import AuthError, LimitError, SequenceError, VoteError, WrongChainError
from core.ids import Amount, BlockHash, Digest, Height, NodeId, Signature
from node import links as links_module
from node.links import Acceptance, Link, Links, _Recent
from services.rpc.convert_peer import Gossip, Hello, Progress, Transactions
from services.rpc.handshake import ChainIdentity, LocalIdentity, Remote
from services.rpc.peer_client import gossip
from tests.node_world import keys, make_genesis

CHAIN = Digest(b"c" * 32)
ME, *PEERS = keys(4, "links")
IDS = [NodeId(key.public_key) for key in PEERS]


def hello(node: NodeId, chain: Digest = CHAIN) -> Hello:
    return Hello(chain, 1, node, Height(0), "test")


def vote(number: int) -> SignedVote:
    return SignedVote(number.to_bytes(4, "big"), Signature(bytes(64)))


class Recorder:
    """A handler that relays votes with an even number, wants those above 100 later, and refuses number 13."""

    def __init__(self) -> None:
        self.seen: list[tuple[NodeId, Gossip]] = []
        self.up: list[NodeId] = []

    def hello(self) -> Hello:
        return hello(NodeId(ME.public_key))

    def joined(self, node: NodeId) -> None:
        self.up.append(node)

    async def receive(self, node: NodeId, message: Gossip) -> Acceptance:
        self.seen.append((node, message))
        if not isinstance(message, SignedVote):
            return Acceptance.DROP
        number = int.from_bytes(message.vote, "big")
        if number == 13:
            raise VoteError("number 13")
        if number > 100:
            return Acceptance.LATER
        return Acceptance.RELAY if number % 2 == 0 else Acceptance.DROP


class Peer:
    """The other end of a link that it opened."""

    def __init__(self, links: Links, node: NodeId, first: Gossip | None = None, certified: NodeId | None = None) -> None:
        self.inbox: list[Gossip] = []
        self.error: Exception | None = None
        self._outbox: asyncio.Queue[Gossip | None] = asyncio.Queue()
        self.say(first or hello(node))
        self._task = asyncio.create_task(self._run(links, certified or node))

    def say(self, message: Gossip | None) -> None:
        self._outbox.put_nowait(message)

    async def _messages(self) -> AsyncIterator[Gossip]:
        while (message := await self._outbox.get()) is not None:
            yield message

    async def _run(self, links: Links, certified: NodeId) -> None:
        try:
            async for message in links.accept(certified, self._messages()):
                self.inbox.append(message)
        except Exception as error:  # noqa: BLE001 - what the peer is told is what is tested
            self.error = error

    async def ended(self) -> Exception | None:
        async with asyncio.timeout(60):
            await self._task
        return self.error


def make(handler: Recorder) -> Links:
    identity = LocalIdentity("node", "node0", ChainIdentity("test", CHAIN, 1), ME)
    return Links(identity, None, (), handler, gossip)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_link_begins_with_a_hello_of_this_chain_and_of_the_certified_node() -> None:
    links = make(Recorder())
    assert isinstance(await Peer(links, IDS[0], first=vote(1)).ended(), SequenceError)
    wrong = await Peer(links, IDS[0], first=hello(IDS[0], Digest(b"x" * 32))).ended()
    assert isinstance(wrong, WrongChainError)
    assert "give both the same genesis file" in str(wrong)
    assert isinstance(await Peer(links, IDS[0], first=hello(IDS[1]), certified=IDS[0]).ended(), AuthError)
    assert links.peers == ()


async def test_what_is_new_is_relayed_once_and_not_back() -> None:
    handler = Recorder()
    links = make(handler)
    one, two, three = (Peer(links, node) for node in IDS)
    await settle()
    assert set(links.peers) == set(IDS)
    assert handler.up == IDS
    for peer in (one, two):
        peer.say(vote(2))
    one.say(vote(3))
    await settle()
    assert [m for m in three.inbox if isinstance(m, SignedVote)] == [vote(2)]
    assert not [m for m in one.inbox if isinstance(m, SignedVote)]
    # The second copy never reached the handler.
    assert [m for _, m in handler.seen] == [vote(2), vote(3)]


async def test_what_came_too_early_is_looked_at_again() -> None:
    handler = Recorder()
    peer = Peer(make(handler), IDS[0])
    peer.say(vote(101))
    peer.say(vote(101))
    await settle()
    assert [m for _, m in handler.seen] == [vote(101), vote(101)]


async def test_an_invalid_message_cuts_the_peer_off_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    links = make(Recorder())
    bystander, liar = Peer(links, IDS[0]), Peer(links, IDS[1])
    second = Peer(links, IDS[1])
    await settle()
    liar.say(vote(13))
    assert isinstance(await liar.ended(), VoteError)
    assert isinstance(await second.ended(), VoteError)
    assert isinstance(await Peer(links, IDS[1]).ended(), LimitError)
    assert links.peers == (IDS[0],)
    monkeypatch.setattr(links_module, "monotonic", lambda: 1e9)
    again = Peer(links, IDS[1])
    await settle()
    assert set(links.peers) == {IDS[0], IDS[1]}
    assert bystander.error is None
    assert again.error is None


async def test_a_second_hello_is_invalid() -> None:
    peer = Peer(make(Recorder()), IDS[0])
    peer.say(hello(IDS[0]))
    assert isinstance(await peer.ended(), SequenceError)


async def test_a_broadcast_reaches_everyone_who_does_not_have_it_and_again_everyone() -> None:
    links = make(Recorder())
    one, two = Peer(links, IDS[0]), Peer(links, IDS[1])
    await settle()
    one.say(vote(4))
    await settle()
    links.broadcast(vote(4))
    links.broadcast(vote(6))
    await settle()
    assert one.inbox[1:] == [vote(6)]
    assert two.inbox[1:] == [vote(4), vote(6)]
    links.broadcast(vote(6), again=True)
    await settle()
    assert one.inbox[1:] == [vote(6), vote(6)]


async def test_stopping_ends_every_link() -> None:
    links = make(Recorder())
    peers = [Peer(links, node) for node in IDS]
    await settle()
    await links.stop()
    for peer in peers:
        assert "this node is stopping" in str(await peer.ended())
    assert links.peers == ()


async def test_a_slow_peer_costs_bounded_memory_and_transactions_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links_module, "MAX_VOTES", 3)
    monkeypatch.setattr(links_module, "MAX_TRANSACTIONS", 2)
    link = Link(IDS[0], None)
    for number in range(5):
        link.put(vote(number))
        link.put(SignedTransaction(bytes([number]), Signature(bytes(64))))
        link.put(Progress(Height(number), 0, BlockHash(bytes(32))))
    outgoing = link.outgoing()
    got = [await anext(outgoing) for _ in range(5)]
    assert got[:3] == [vote(2), vote(3), vote(4)]
    assert got[3] == Progress(Height(4), 0, BlockHash(bytes(32)))
    assert isinstance(got[4], Transactions)
    assert [m.transaction for m in got[4].signed] == [b"\x03", b"\x04"]
    link.close()
    with pytest.raises(StopAsyncIteration):
        await anext(outgoing)


async def test_blocks_for_a_peer_that_reads_nothing_are_bounded_by_their_bytes() -> None:
    link = Link(IDS[0], None)
    for number in range(200):
        block = number.to_bytes(4, "big") * 2**18
        link.put(SignedProposal(b"", Signature(bytes(64)), block, ()))
        link.put(vote(number))
        link.put(SignedTransaction(number.to_bytes(4, "big") * 2**14, Signature(bytes(64))))
        link.put(SignedTransaction(number.to_bytes(4, "big") * 2**14 + b"2", Signature(bytes(64))))
    outgoing = link.outgoing()
    votes: list[Gossip] = []
    transactions: list[SignedTransaction] = []
    while link._votes or link._transactions:
        message = await anext(outgoing)
        match message:
            case Transactions():
                transactions += message.signed
            case SignedTransaction():
                transactions.append(message)
            case _:
                votes.append(message)
    assert votes[-1] == vote(199)
    assert 30 * 2**20 < sum(len(m.block) for m in votes if isinstance(m, SignedProposal)) <= links_module.MAX_VOTE_BYTES
    held = sum(len(m.transaction) for m in transactions)
    assert 7 * 2**20 < held <= links_module.MAX_TRANSACTION_BYTES
    assert (link._vote_bytes, link._transaction_bytes) == (0, 0)


async def test_many_links_of_one_node_are_read_at_one_pace() -> None:
    links = make(Recorder())
    peers = [Peer(links, IDS[0]) for _ in range(3)] + [Peer(links, IDS[1])]
    await settle()
    assert len({id(link.pace) for link in links._links[IDS[0]]}) == 1
    assert links._links[IDS[1]][0].pace is not links._links[IDS[0]][0].pace
    assert len(peers) == 4
    await links.stop()


def test_a_link_is_read_no_faster_than_its_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links_module, "monotonic", lambda: 7.0)
    pace = links_module._Pace()
    assert pace.take(1000) == 0
    assert pace.take(int(links_module.BYTE_BURST)) > 0
    monkeypatch.setattr(links_module, "monotonic", lambda: 7.0 + 60)
    assert pace.take(1000) == 0


async def test_what_waits_for_a_peer_goes_together_within_limits() -> None:
    link = Link(NodeId(bytes(32)), None)
    small = [SignedTransaction(b"%d" % i, Signature(bytes(64))) for i in range(100)]
    large = SignedTransaction(bytes(64_000), Signature(bytes(64)))
    for message in (*small, large, small[0]):
        link.put(message)
    sent = [message async for message in _first(link.outgoing(), 3)]
    assert sent == [Transactions(tuple(small[:64])), Transactions(tuple(small[64:])), Transactions((large, small[0]))]


async def _first(messages: AsyncIterator[Gossip], count: int) -> AsyncIterator[Gossip]:
    for _ in range(count):
        yield await anext(messages)


async def test_transactions_go_at_once_to_an_idle_link_and_together_to_a_busy_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(links_module, "monotonic", lambda: now)
    link = Link(IDS[0], None)
    stream = link.outgoing()
    first, *more = (SignedTransaction(bytes([n]) * 10, Signature(bytes(64))) for n in range(70))
    link.put(first)
    assert await anext(stream) == first
    for transaction in more[:5]:
        link.put(transaction)
    waiting = asyncio.ensure_future(anext(stream))
    await settle()
    assert not waiting.done()
    # A vote passes them.
    link.put(vote(1))
    assert await waiting == vote(1)
    waiting = asyncio.ensure_future(anext(stream))
    await settle()
    assert not waiting.done()
    now += links_module.TOGETHER_SECONDS
    async with asyncio.timeout(60):
        assert await waiting == Transactions(tuple(more[:5]))
    # A full message waits for nothing.
    for transaction in more[5:]:
        link.put(transaction)
    assert await anext(stream) == Transactions(tuple(more[5:]))
    link.put(first)
    ending = asyncio.ensure_future(anext(stream, None))
    await settle()
    link.close()
    assert await ending is None


async def test_validators_are_dialled_where_the_chain_says_they_are_and_must_have_their_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dialled: list[str] = []
    closed: list[str] = []
    talked: list[NodeId] = []
    forever = asyncio.Event()

    class Dialled:
        def __init__(self, target: str, account: bytes) -> None:
            self.target, self.remote = target, Remote("node", target, account)

        async def close(self) -> None:
            closed.append(self.target)

    async def dial(target: str, *_: object, expect_role: str) -> Dialled:
        dialled.append(target)
        # Behind the second address is somebody else than the chain says.
        return Dialled(target, IDS[0] if target in ("one:1", "two:1") else IDS[2])

    async def talk(_: Links, node: NodeId, __: object) -> None:
        talked.append(node)
        await forever.wait()

    monkeypatch.setattr(links_module, "dial_forever", dial)
    monkeypatch.setattr(links_module, "backoff", lambda _: 3600.0)
    monkeypatch.setattr(Links, "_talk", talk)
    identity = LocalIdentity("node", "node0", ChainIdentity("test", CHAIN, 1), ME)
    links = Links(identity, None, ("configured:1",), Recorder(), gossip)
    links.follow(state_with({ME.public_key: "me:1", IDS[0]: "one:1", IDS[1]: "two:1", IDS[2]: "configured:1"}))
    await settle()
    assert sorted(dialled) == ["one:1", "two:1"]
    assert talked == [IDS[0]]
    assert closed == ["two:1"]
    # The first one moves, the second leaves; whoever has no address on the chain is in peers.nodes or dials us.
    links.follow(state_with({IDS[0]: "", IDS[2]: "three:1"}))
    await settle()
    assert sorted(closed) == ["one:1", "two:1"]
    assert talked == [IDS[0], IDS[2]]
    links.follow(state_with({IDS[2]: "three:1"}))
    await settle()
    assert sorted(dialled) == ["one:1", "three:1", "two:1"]
    await links.stop()
    assert sorted(closed) == ["one:1", "three:1", "two:1"]


def state_with(endpoints: dict[bytes, str]) -> State:
    """After genesis, with these validators at these addresses."""
    state = genesis_state(make_genesis(keys(1)))
    memberships = state.memberships
    for node, endpoint in endpoints.items():
        memberships = memberships.put(node, Membership(Height(1), Amount(1), endpoint, None))
    validators = tuple(Validator(NodeId(node), 1, Amount(1), False) for node in sorted(endpoints))
    return replace(state, validators=validators[:1], next_validators=validators, memberships=memberships)


def test_what_was_seen_is_forgotten_by_age_and_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(links_module, "monotonic", lambda: now)
    recent = _Recent(100)
    recent.add(b"first")
    now = links_module.KEPT_SECONDS - 1
    recent.add(b"second")
    now += 2
    recent.add(b"third")
    assert b"first" in recent
    assert b"second" in recent
    now += links_module.KEPT_SECONDS
    recent.add(b"fourth")
    assert b"second" not in recent
    assert b"third" in recent
    for number in range(1_000):
        recent.add(number.to_bytes(4, "big"))
        assert len(recent) <= 100
    assert all(number.to_bytes(4, "big") in recent for number in range(950, 1_000))
