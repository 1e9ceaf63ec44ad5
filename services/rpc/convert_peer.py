"""peer.proto <-> plain typed values, a checked pair per message.

``*_to_proto`` trusts its argument. ``*_from_proto`` raises MalformedError or LimitError and names the field. Sizes are
checked before anything is decoded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pofl.peer.v1 import peer_pb2 as pb

from core.chain.block import MAX_BODY, MAX_HEADER, MAX_TRANSACTION, MAX_VALIDATORS, Block, Certificate, SignedHeader
from core.chain.transaction import SignedTransaction
from core.chain.vote import SignedProposal, SignedVerdict, SignedVote
from core.codec import decode, encode
from core.errors import LimitError, MalformedError
from core.ids import BlockHash, Digest, Height, ModelCommitment, NodeId, TaskId
from core.verification.receipt import MAX_ANSWER, SignedAnswer
from services.rpc.convert_fields import exact
from services.rpc.limits import MAX_MESSAGE
from services.rpc.views import WorkView

__all__ = [
    "Gossip", "Hello", "Progress", "block_from_bytes", "certificate_from_bytes", "gossip_from_proto", "gossip_to_proto",
    "header_from_bytes", "MAX_BLOCK", "MAX_TOGETHER", "Transactions", "work_from_proto", "work_to_proto",
]  # fmt: skip

MAX_BLOCK: Final = MAX_HEADER + MAX_BODY + 128
MAX_CERTIFICATE: Final = 256 + MAX_VALIDATORS * 104
MAX_TOGETHER: Final = 64
MAX_VOTE: Final = 1024
MAX_VERDICT: Final = 2048
MAX_SOFTWARE: Final = 64
MAX_WORK_VERDICTS: Final = 64 * MAX_VALIDATORS


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of a gossip link, each way."""

    chain_id: Digest
    protocol_version: int
    node_id: NodeId
    height: Height
    software: str


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a node stands: the height and round it is deciding, and the hash of its last finalised block."""

    height: Height
    round: int
    tip_hash: BlockHash


@dataclass(frozen=True, slots=True)
class Transactions:
    """Several at once: a message costs more than what a small transaction takes."""

    signed: tuple[SignedTransaction, ...]


Gossip = Hello | Progress | SignedTransaction | Transactions | SignedVote | SignedProposal | SignedVerdict | SignedAnswer


def gossip_to_proto(message: Gossip) -> pb.GossipMessage:
    match message:
        case Hello():
            return pb.GossipMessage(
                hello=pb.Hello(
                    chain_id=message.chain_id, protocol_version=message.protocol_version, node_id=message.node_id,
                    height=message.height, software=message.software,
                )
            )  # fmt: skip
        case Progress():
            return pb.GossipMessage(progress=pb.Progress(height=message.height, round=message.round, tip_hash=message.tip_hash))
        case SignedTransaction():
            return pb.GossipMessage(transaction=message.to_bytes())
        case Transactions():
            return pb.GossipMessage(transactions=pb.Transactions(transactions=[s.to_bytes() for s in message.signed]))
        case SignedVote():
            return pb.GossipMessage(vote=encode(message))
        case SignedProposal():
            return pb.GossipMessage(proposal=encode(message))
        case SignedVerdict():
            return pb.GossipMessage(verdict=encode(message))
        case SignedAnswer():
            return pb.GossipMessage(answer=encode(message))


def gossip_from_proto(message: pb.GossipMessage) -> Gossip:
    kind = message.WhichOneof("kind")
    if kind == "hello":
        hello = message.hello
        if len(hello.software) > MAX_SOFTWARE:
            raise LimitError(f"hello.software: {len(hello.software)} characters, at most {MAX_SOFTWARE}")
        return Hello(
            chain_id=Digest(exact("hello.chain_id", hello.chain_id)),
            protocol_version=hello.protocol_version,
            node_id=NodeId(exact("hello.node_id", hello.node_id)),
            height=Height(hello.height),
            software=hello.software,
        )
    if kind == "progress":
        progress = message.progress
        return Progress(Height(progress.height), progress.round, BlockHash(exact("progress.tip_hash", progress.tip_hash)))
    if kind == "transaction":
        return SignedTransaction.from_bytes(message.transaction)
    if kind == "transactions":
        several = message.transactions.transactions
        size = sum(len(data) for data in several)
        if not 0 < len(several) <= MAX_TOGETHER or size > MAX_TRANSACTION + 128:
            raise LimitError(f"{len(several)} transactions of {size} bytes, at most {MAX_TOGETHER} of {MAX_TRANSACTION + 128}")
        return Transactions(tuple(SignedTransaction.from_bytes(data) for data in several))
    if kind == "vote":
        return decode(SignedVote, message.vote, MAX_VOTE)
    if kind == "proposal":
        return decode(SignedProposal, message.proposal, MAX_MESSAGE)
    if kind == "verdict":
        return decode(SignedVerdict, message.verdict, MAX_VERDICT)
    if kind == "answer":
        return decode(SignedAnswer, message.answer, MAX_ANSWER)
    raise MalformedError("a gossip message without content")


def block_from_bytes(data: bytes) -> Block:
    return decode(Block, data, MAX_BLOCK)


def header_from_bytes(data: bytes) -> SignedHeader:
    return decode(SignedHeader, data, MAX_HEADER + 128)


def certificate_from_bytes(data: bytes) -> Certificate:
    return decode(Certificate, data, MAX_CERTIFICATE)


def work_to_proto(view: WorkView) -> pb.WatchWorkResponse:
    return pb.WatchWorkResponse(
        height=view.height, work_height=view.work_height, task_id=view.task_id or b"",
        top_remaining=view.top_remaining or b"", verdicts=view.verdicts,
    )  # fmt: skip


def work_from_proto(message: pb.WatchWorkResponse) -> WorkView:
    if len(message.verdicts) > MAX_WORK_VERDICTS or any(len(v) > MAX_VERDICT for v in message.verdicts):
        raise LimitError("work: more or longer verdicts than a height can have")
    return WorkView(
        height=Height(message.height),
        work_height=message.work_height,
        task_id=TaskId(exact("task_id", message.task_id)) if message.task_id else None,
        top_remaining=ModelCommitment(exact("top_remaining", message.top_remaining)) if message.top_remaining else None,
        verdicts=tuple(message.verdicts),
    )
