"""Watches a network of real nodes from outside, as one more peer, and judges it by the rules of consensus.

It has a gossip link to every node and keeps all that validators sign. A validator signs at most one vote in each place, and
the same bytes again after it was killed. Nothing of the nodes' own bookkeeping is used.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from core.chain.vote import Proposal, SignedProposal, SignedVerdict, SignedVote, Verdict, VerdictKind, Vote
from core.codec import decode
from core.errors import DeadlineError, PoflError, UnavailableError
from core.ids import Height, NodeId
from core.params import PROTOCOL_VERSION
from services.rpc.channel import dial
from services.rpc.convert_peer import Gossip, Hello
from services.rpc.peer_client import fetch_blocks, gossip
from tests.node_network import Network, NodeProcess
from tests.node_world import keys

__all__ = ["Witness", "compare", "complaints"]

BATCH = 256
TRIES = 5
BAD_WORDS = (
    "found a fault that signatures prove", "peer sent an invalid message", "Traceback", "could not be handled",
    "a peer sent a block that is not final", "is damaged", "unexpected error",
)  # fmt: skip
"""What no honest node's log says, whatever the network and the operator do to it."""


class Witness:
    """Use as an async context manager. ``problems`` is what nobody honest does."""

    def __init__(self, network: Network, nodes: Sequence[NodeProcess]) -> None:
        self._network, self._nodes = network, nodes
        self._key = keys(1, "witness")[0]
        self._tasks: list[asyncio.Task[None]] = []
        self._signed: dict[tuple[object, ...], bytes] = {}
        self.problems: list[str] = []
        self.heard = 0

    async def __aenter__(self) -> Witness:
        self._tasks = [asyncio.create_task(self._follow(node)) for node in self._nodes]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self, node: NodeProcess) -> None:
        me = NodeId(self._key.public_key)
        files = self._network.files("node", "witness", self._key.public_key)
        identity = self._network.identity("node", "witness", self._key)

        async def say(until: asyncio.Event) -> AsyncIterator[Gossip]:
            yield Hello(self._network.genesis.chain_id, PROTOCOL_VERSION, me, Height(0), "witness")
            await until.wait()

        while True:
            with contextlib.suppress(PoflError):
                connection = await dial(node.address, files, identity, expect_role="node", timeout=2.0)
                over = asyncio.Event()
                try:
                    async with contextlib.aclosing(gossip(connection, say(over))) as incoming:
                        try:
                            async for message in incoming:
                                self._hear(message)
                        finally:
                            over.set()
                            await asyncio.sleep(0)
                finally:
                    await connection.close()
            await asyncio.sleep(0.1)

    def _hear(self, message: Gossip) -> None:
        match message:
            case SignedVote(vote=data):
                vote = decode(Vote, data, 512)
                self._once((vote.validator, vote.height, vote.round, vote.step.name.lower()), data)
            case SignedProposal(proposal=data):
                proposal = decode(Proposal, data, 512)
                self._once((proposal.validator, proposal.height, proposal.round, "proposal"), data)
            case SignedVerdict(verdict=data):
                verdict = decode(Verdict, data, 1024)
                if verdict.kind is not VerdictKind.UNAVAILABLE:
                    self._once((verdict.validator, verdict.height, verdict.model_commitment, "verdict"), data)

    def _once(self, place: tuple[object, ...], data: bytes) -> None:
        self.heard += 1
        if self._signed.setdefault(place, data) != data:
            validator, height, at, what = place
            assert isinstance(validator, bytes)
            self.problems.append(f"validator {validator.hex()[:8]} signed two of: height {height}, {at}, {what}")


async def compare(network: Network, nodes: Sequence[NodeProcess]) -> tuple[int, str, list[str]]:
    """The last height that all have, the state root there, and what differs: at each height one block, one state root.

    Asked again where a node does not answer in time, on a machine that does much else.
    """
    for _ in range(TRIES - 1):
        with contextlib.suppress(UnavailableError, DeadlineError):
            return await _compare(network, nodes)
    return await _compare(network, nodes)


async def _compare(network: Network, nodes: Sequence[NodeProcess]) -> tuple[int, str, list[str]]:
    tips = [(await network.client(node).tip()).height for node in nodes]
    common, problems = min(tips), list[str]()
    key = keys(1, "witness")[0]
    network.files("node", "witness", key.public_key)
    chains: list[dict[int, bytes]] = []
    for node in nodes:
        chain: dict[int, bytes] = {}
        channel = network.channel(node, "node", "witness")
        while len(chain) < common:
            first = Height(len(chain) + 1)
            async for block, certificate in fetch_blocks(channel, first, min(BATCH, common - len(chain)), 30.0, peer=node.name):
                chain[certificate.height] = block.block_hash
        chains.append(chain)
    for height in range(1, common + 1):
        if len({chain[height] for chain in chains}) != 1:
            problems.append(f"height {height}: {len({chain[height] for chain in chains})} different final blocks")
    clients = [network.client(node) for node in nodes]
    root = ""
    # The root after each block is in the next one's header, which apply_block checks; the stored ones are compared too.
    for height in {common, *range(1, common + 1, max(1, common // 50))}:
        views = [await client.block(Height(height)) for client in clients]
        roots = {view.state_root.hex() for view in views}
        if len(roots) != 1:
            problems.append(f"height {height}: state roots {', '.join(sorted(roots))}")
        if height == common:
            root = views[0].state_root.hex()
    for height in range(1, common + 1):
        view = await clients[0].block(Height(height))
        problems += [f"height {height} accuses a validator" for t in view.transactions if t.kind == "Equivocation"]
    return common, root, problems


def complaints(nodes: Sequence[NodeProcess], but: Sequence[str] = ()) -> list[str]:
    """What the nodes' logs say that no honest network makes them say, but for lines that have one of ``but`` in them."""
    found = []
    for node in nodes:
        if not node.log.exists():
            continue
        for line in node.log.read_text(errors="replace").splitlines():
            # What gRPC says at debug level of a link that broke is a traceback of its own.
            if " DEBUG " in line[:40]:
                continue
            if any(word in line for word in BAD_WORDS) and not any(word in line for word in but):
                found.append(f"{node.name}: {line[:300]}")
    return found
