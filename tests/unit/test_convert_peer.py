"""services.rpc.convert_peer: what one node says is what the other hears, and nothing else gets through."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pofl.peer.v1 import peer_pb2 as pb

from core.chain.transaction import SignedTransaction
from core.chain.vote import SignedProposal, SignedVerdict, SignedVote
from core.errors import LimitError, MalformedError
from core.ids import BlockHash, Digest, Height, ModelCommitment, NodeId, Signature, TaskId
from services.rpc import convert_peer as convert
from services.rpc.convert_peer import Gossip, Hello, Progress, Transactions, gossip_from_proto, gossip_to_proto
from services.rpc.views import WorkView

SIGNATURE = Signature(b"s" * 64)
MESSAGES: list[Gossip] = [
    Hello(Digest(b"c" * 32), 1, NodeId(b"n" * 32), Height(7), "pofl"),
    Progress(Height(8), 2, BlockHash(b"h" * 32)),
    SignedTransaction(b"transaction", SIGNATURE),
    SignedVote(b"vote", SIGNATURE),
    SignedVerdict(b"verdict", SIGNATURE),
    SignedProposal(b"proposal", SIGNATURE, b"block", (SignedVerdict(b"verdict", SIGNATURE),)),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
def test_gossip_survives_the_wire(message: Gossip) -> None:
    sent = convert.gossip_to_proto(message).SerializeToString()
    assert convert.gossip_from_proto(pb.GossipMessage.FromString(sent)) == message


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (pb.GossipMessage(), "without content"),
        (pb.GossipMessage(vote=b"\x00\x00"), "truncated"),
        (pb.GossipMessage(vote=bytes(2000)), "2000 bytes, at most"),
        (pb.GossipMessage(transaction=bytes(70_000)), "70000 bytes, at most"),
        (pb.GossipMessage(hello=pb.Hello(chain_id=b"short")), "hello.chain_id: 5 bytes, expected 32"),
        (pb.GossipMessage(hello=pb.Hello(chain_id=bytes(32), node_id=bytes(32), software="x" * 99)), "99 characters"),
        (pb.GossipMessage(progress=pb.Progress(height=1)), "progress.tip_hash: 0 bytes"),
    ],
)
def test_what_no_node_says_is_refused(message: pb.GossipMessage, problem: str) -> None:
    with pytest.raises((MalformedError, LimitError), match=problem):
        convert.gossip_from_proto(message)


@pytest.mark.parametrize(
    "view",
    [
        WorkView(Height(4), False, None, None),
        WorkView(Height(5), True, TaskId(b"t" * 32), ModelCommitment(b"w" * 32), (b"one", b"two")),
    ],
)
def test_a_work_view_survives_the_wire(view: WorkView) -> None:
    assert convert.work_from_proto(convert.work_to_proto(view)) == view


def test_a_work_view_with_oversized_verdicts_is_refused() -> None:
    with pytest.raises(LimitError, match="more or longer verdicts"):
        convert.work_from_proto(pb.WatchWorkResponse(verdicts=[bytes(5000)]))


def test_several_transactions_travel_together_within_limits() -> None:
    signed = SignedTransaction(b"t" * 100, Signature(bytes(64)))
    together = Transactions((signed,) * 3)
    assert gossip_from_proto(gossip_to_proto(together)) == together
    for wrong in (
        Transactions(()),
        Transactions((signed,) * 65),
        Transactions((replace(signed, transaction=bytes(60_000)),) * 2),
    ):
        with pytest.raises(LimitError, match="transactions of"):
            gossip_from_proto(gossip_to_proto(wrong))
