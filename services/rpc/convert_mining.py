"""mining.proto <-> plain typed values, a checked pair per message, and what members and pool sign.

``*_to_proto`` trusts its argument. ``*_from_proto`` raises MalformedError or LimitError and names the field.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Annotated, Final

from pofl.mining.v1 import mining_pb2 as pb

from core.chain.transaction import ChunkReceipt
from core.codec import (
    DIGEST,
    PUBLIC_KEY,
    SIGNATURE,
    U16,
    U32,
    Enum,
    Fixed,
    Reader,
    Seq,
    Var,
    decode,
    decode_as,
    encode,
    encode_as,
)
from core.crypto import sealing, signing
from core.crypto.masking import Aggregation
from core.endpoint import Endpoint, check_endpoint
from core.errors import LimitError, MalformedError
from core.ids import AccountId, Digest, Milliseconds, Signature, TaskId
from core.market.contributions import ENTRY, MAX_ENTRY, Entry, RoundReceipt, SignedAnswer, SignedClosing
from core.market.marks import SEED_SIZE
from services.rpc.convert_fields import exact

__all__ = [
    "Assignment", "FetchRows", "Join", "Joined", "Member", "MinedTask", "MinerStatus", "Progress", "Round", "SignedJoin",
    "SignedJoined", "TrainOn",
    "answer_from_proto", "answer_to_proto", "assignment_from_proto", "assignment_to_proto", "attend_message",
    "entry_from_proto", "entry_to_proto", "join_from_proto", "join_to_proto", "joined_from_proto", "joined_to_proto",
    "leave_message", "member_from_proto", "member_to_proto", "mined_from_proto", "mined_to_proto", "progress_from_proto",
    "progress_to_proto", "receipt_from_proto", "receipt_to_proto", "status_from_proto", "status_to_proto",
    "DOMAIN_ATTEND", "DOMAIN_JOIN", "DOMAIN_JOINED", "DOMAIN_LEAVE", "MAX_HELD", "NODE_KEY_SIZE",
]  # fmt: skip

DOMAIN_JOIN: Final = b"pofl/pool-join/2"
DOMAIN_JOINED: Final = b"pofl/pool-joined/2"
DOMAIN_ATTEND: Final = b"pofl/pool-attend/1"
DOMAIN_LEAVE: Final = b"pofl/pool-leave/1"

NODE_KEY_SIZE: Final = 33
"""A compressed P-256 point."""
MAX_TOKEN: Final = 256
MAX_HELD: Final = 256
MAX_CA: Final = 16 * 1024
MAX_DETAIL: Final = 1_000
MAX_MEMBERS: Final = 4_096
PHASES: Final = frozenset(
    {"idle", "entered", "trading", "training", "committed", "evaluating", "claimed", "offering", "won", "lost"}
)
"""Words of WatchProgressResponse.phase."""


class _SuiteCodec:
    """Two bytes: the number of the suite's KEM."""

    def write(self, out: bytearray, value: int) -> None:
        U16.write(out, value)

    def read(self, reader: Reader) -> sealing.Suite:
        return sealing.suite_of(U16.read(reader))


_SUITE: Final = _SuiteCodec()


@dataclass(frozen=True, slots=True)
class Join:
    """What a miner signs to become a member of a pool."""

    chain_id: Annotated[Digest, DIGEST]
    pool: Annotated[AccountId, PUBLIC_KEY]
    miner: Annotated[AccountId, PUBLIC_KEY]
    node_public_key: Annotated[bytes, Fixed(NODE_KEY_SIZE)]
    """Fresh: Flower never accepts one again whose holder left."""
    rows: Annotated[int, U32]
    features: Annotated[int, U32]
    token: Annotated[bytes, Var(MAX_TOKEN)] = field(repr=False)
    holds: Annotated[tuple[Digest, ...], Seq(DIGEST, MAX_HELD)] = ()
    """Roots of data sets of which it has rows that this pool bought, ascending: they are not bought for it again."""


@dataclass(frozen=True, slots=True)
class SignedJoin:
    join: Join
    signature: Annotated[Signature, SIGNATURE]


@dataclass(frozen=True, slots=True)
class Joined:
    """What the pool signs in answer. It authenticates the key that updates are sealed to, for this membership only."""

    chain_id: Annotated[Digest, DIGEST]
    pool: Annotated[AccountId, PUBLIC_KEY]
    miner: Annotated[AccountId, PUBLIC_KEY]
    node_public_key: Annotated[bytes, Fixed(NODE_KEY_SIZE)]
    superlink_address: Annotated[str, Endpoint()]
    superlink_ca: Annotated[bytes, Var(MAX_CA)]
    """PEM."""
    hpke_public_key: Annotated[bytes, Var(sealing.MAX_PUBLIC_KEY)]
    sealing: Annotated[sealing.Suite, _SUITE] = sealing.Suite.X25519
    """What the key above is a key of. Signed with it, so nobody on the way can talk a miner into a weaker one."""
    aggregation: Annotated[Aggregation, Enum(Aggregation)] = Aggregation.PLAIN
    """Whether the manager sees single updates; signed for the same reason."""


@dataclass(frozen=True, slots=True)
class SignedJoined:
    joined: Joined
    signature: Annotated[Signature, SIGNATURE]


@dataclass(frozen=True, slots=True)
class _Presence:
    chain_id: Annotated[Digest, DIGEST]
    pool: Annotated[AccountId, PUBLIC_KEY]
    miner: Annotated[AccountId, PUBLIC_KEY]
    node_public_key: Annotated[bytes, Fixed(NODE_KEY_SIZE)]


@dataclass(frozen=True, slots=True)
class FetchRows:
    """Rows ``first_row..first_row+rows-1`` of a data set, to be fetched from its provider before the deadline."""

    trade_id: Digest
    data_root: Digest
    provider_endpoint: str
    provider: AccountId
    chunks: int
    first_row: int
    rows: int
    deadline_ms: Milliseconds
    marks_seed: bytes = field(repr=False)
    """The miner's choices of variants follow from it; the trade commits to them."""


@dataclass(frozen=True, slots=True)
class TrainOn:
    """The pool trains on this task until the deadline. ``recipe``: digest of its practice set's recipe, empty without one."""

    task_id: TaskId
    deadline_ms: Milliseconds
    features: int
    classes: int
    recipe: bytes = b""


Assignment = FetchRows | TrainOn | RoundReceipt | SignedClosing


@dataclass(frozen=True, slots=True)
class MinedTask:
    """A task whose book of contributions a pool keeps."""

    task_id: TaskId
    rounds: int
    counted: int
    is_closed: bool
    best_correct: int
    """Practice rows of ``rows``, best round."""
    rows: int


@dataclass(frozen=True, slots=True)
class Member:
    miner: AccountId
    rows: int
    contribution: int
    """Accepted examples x rounds in the last task."""
    is_online: bool


@dataclass(frozen=True, slots=True)
class Round:
    number: int
    participants: int
    accepted: int
    practice_correct: int
    practice_total: int
    seconds: float
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a pool stands. ``phase`` is one of PHASES."""

    phase: str
    task_id: TaskId | None = None
    round: Round | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class MinerStatus:
    miner: AccountId
    phase: str
    own_rows: int
    bought_rows: int
    pool: AccountId | None
    task_id: TaskId | None
    rounds: int


# Signatures


def sign_join(key: signing.KeyPair, join: Join) -> SignedJoin:
    return SignedJoin(join, signing.sign(key, DOMAIN_JOIN, encode(join)))


def verify_join(signed: SignedJoin) -> None:
    """Raises CryptoError unless the miner signed."""
    signing.verify(signed.join.miner, DOMAIN_JOIN, encode(signed.join), signed.signature)


def sign_joined(key: signing.KeyPair, joined: Joined) -> SignedJoined:
    return SignedJoined(joined, signing.sign(key, DOMAIN_JOINED, encode(joined)))


def verify_joined(signed: SignedJoined) -> None:
    """Raises CryptoError unless the pool signed."""
    signing.verify(signed.joined.pool, DOMAIN_JOINED, encode(signed.joined), signed.signature)


def attend_message(chain_id: Digest, pool: AccountId, miner: AccountId, node_public_key: bytes) -> bytes:
    """What a miner signs under DOMAIN_ATTEND, and under DOMAIN_LEAVE: it is good for one membership."""
    return encode(_Presence(chain_id, pool, miner, node_public_key))


leave_message = attend_message


# Messages


def join_to_proto(signed: SignedJoin) -> pb.JoinRequest:
    join = signed.join
    return pb.JoinRequest(
        miner=join.miner, node_public_key=join.node_public_key, rows=join.rows, features=join.features, token=join.token,
        signature=signed.signature, holds=join.holds,
    )  # fmt: skip


def join_from_proto(message: pb.JoinRequest, chain_id: Digest, pool: AccountId) -> SignedJoin:
    """The request as its sender must have signed it for this chain and pool."""
    if len(message.token) > MAX_TOKEN:
        raise LimitError(f"token: {len(message.token)} bytes, at most {MAX_TOKEN}", field="token")
    if not message.rows or not message.features:
        raise MalformedError(f"a share of {message.rows} rows of {message.features} features fits no task: bring some rows")
    if len(message.holds) > MAX_HELD:
        raise LimitError(f"holds: {len(message.holds)} data sets, at most {MAX_HELD}", field="holds")
    holds = tuple(Digest(exact("holds", root)) for root in message.holds)
    if any(a >= b for a, b in itertools.pairwise(holds)):
        raise MalformedError("holds: the data sets must be in ascending order, each once", field="holds")
    join = Join(
        chain_id, pool, AccountId(exact("miner", message.miner)),
        exact("node_public_key", message.node_public_key, NODE_KEY_SIZE), message.rows, message.features, message.token,
        holds,
    )  # fmt: skip
    return SignedJoin(join, _signature(message.signature))


def joined_to_proto(signed: SignedJoined) -> pb.JoinResponse:
    joined = signed.joined
    return pb.JoinResponse(
        superlink_address=joined.superlink_address, superlink_ca=joined.superlink_ca,
        hpke_public_key=joined.hpke_public_key, pool=joined.pool, signature=signed.signature, sealing=joined.sealing,
        aggregation=joined.aggregation,
    )  # fmt: skip


def joined_from_proto(message: pb.JoinResponse, join: Join) -> SignedJoined:
    """The answer to ``join``; whether the pool that it names signed it is the caller's to check.

    Raises CryptoError for a sealing suite that is unknown here, besides MalformedError and LimitError.
    """
    if len(message.superlink_ca) > MAX_CA:
        raise LimitError(f"superlink_ca: {len(message.superlink_ca)} bytes, at most {MAX_CA}", field="superlink_ca")
    pool = AccountId(exact("pool", message.pool))
    suite = sealing.suite_of(message.sealing)
    joined = Joined(
        join.chain_id, pool, join.miner, join.node_public_key,
        check_endpoint(message.superlink_address, "superlink_address"), message.superlink_ca,
        exact("hpke_public_key", message.hpke_public_key, suite.public_key_size), suite, _aggregation(message.aggregation),
    )  # fmt: skip
    return SignedJoined(joined, _signature(message.signature))


def assignment_to_proto(assignment: Assignment) -> pb.AttendResponse:
    if isinstance(assignment, RoundReceipt):
        return pb.AttendResponse(receipt=encode(assignment))
    if isinstance(assignment, SignedClosing):
        return pb.AttendResponse(closing=encode(assignment))
    if isinstance(assignment, TrainOn):
        return pb.AttendResponse(
            train=pb.TrainOn(
                task_id=assignment.task_id, deadline_ms=assignment.deadline_ms, features=assignment.features,
                classes=assignment.classes, recipe=assignment.recipe,
            )
        )  # fmt: skip
    return pb.AttendResponse(
        fetch=pb.FetchRows(
            trade_id=assignment.trade_id, data_root=assignment.data_root,
            provider_endpoint=assignment.provider_endpoint, provider=assignment.provider, chunks=assignment.chunks,
            first_row=assignment.first_row, rows=assignment.rows, deadline_ms=assignment.deadline_ms,
            marks_seed=assignment.marks_seed,
        )
    )  # fmt: skip


def assignment_from_proto(message: pb.AttendResponse) -> Assignment:
    kind = message.WhichOneof("kind")
    if kind == "train":
        train = message.train
        recipe = exact("recipe", train.recipe) if train.recipe else b""
        return TrainOn(
            TaskId(exact("task_id", train.task_id)), Milliseconds(train.deadline_ms), train.features, train.classes, recipe
        )
    if kind == "fetch":
        fetch = message.fetch
        return FetchRows(
            Digest(exact("trade_id", fetch.trade_id)), Digest(exact("data_root", fetch.data_root)),
            check_endpoint(fetch.provider_endpoint, "provider_endpoint"),
            AccountId(exact("provider", fetch.provider)), fetch.chunks, fetch.first_row, fetch.rows,
            Milliseconds(fetch.deadline_ms), exact("marks_seed", fetch.marks_seed, SEED_SIZE),
        )  # fmt: skip
    if kind == "receipt":
        return decode(RoundReceipt, message.receipt, MAX_ENTRY)
    if kind == "closing":
        return decode(SignedClosing, message.closing, MAX_ENTRY)
    raise MalformedError("an assignment without content")


def answer_to_proto(signed: SignedAnswer) -> pb.CountersignRequest:
    return pb.CountersignRequest(answer=encode(signed))


def answer_from_proto(message: pb.CountersignRequest) -> SignedAnswer:
    return decode(SignedAnswer, message.answer, MAX_ENTRY)


def entry_to_proto(entry: Entry) -> pb.ListContributionsResponse:
    return pb.ListContributionsResponse(entry=encode_as(ENTRY, entry))


def entry_from_proto(message: pb.ListContributionsResponse) -> Entry:
    entry: Entry = decode_as(ENTRY, message.entry, MAX_ENTRY)
    return entry


def mined_to_proto(task: MinedTask) -> pb.MinedTask:
    return pb.MinedTask(
        task_id=task.task_id, rounds=task.rounds, counted=task.counted, closed=task.is_closed, best_correct=task.best_correct,
        rows=task.rows,
    )  # fmt: skip


def mined_from_proto(message: pb.MinedTask) -> MinedTask:
    return MinedTask(
        TaskId(exact("task_id", message.task_id)), message.rounds, message.counted, message.closed, message.best_correct,
        message.rows,
    )  # fmt: skip


def receipt_to_proto(receipt: ChunkReceipt) -> pb.HandInReceiptRequest:
    return pb.HandInReceiptRequest(
        trade_id=receipt.trade_id, chunk=receipt.chunk, miner=receipt.miner, miner_signature=receipt.miner_signature
    )


def receipt_from_proto(message: pb.HandInReceiptRequest) -> ChunkReceipt:
    if message.chunk > 0xFFFF:
        raise LimitError(f"chunk: {message.chunk}, at most 65535", field="chunk")
    return ChunkReceipt(
        Digest(exact("trade_id", message.trade_id)), message.chunk, AccountId(exact("miner", message.miner)),
        _signature(message.miner_signature),
    )  # fmt: skip


def member_to_proto(member: Member) -> pb.Member:
    return pb.Member(miner=member.miner, rows=member.rows, contribution=member.contribution, online=member.is_online)


def member_from_proto(message: pb.Member) -> Member:
    return Member(AccountId(exact("miner", message.miner)), message.rows, message.contribution, message.online)


def progress_to_proto(progress: Progress) -> pb.WatchProgressResponse:
    number = progress.round
    return pb.WatchProgressResponse(
        task_id=progress.task_id or b"",
        phase=progress.phase,
        round=None if number is None else pb.Round(
            number=number.number, participants=number.participants, accepted=number.accepted,
            practice_correct=number.practice_correct, practice_total=number.practice_total, seconds=number.seconds,
            bytes_up=number.bytes_up, bytes_down=number.bytes_down,
        ),
        detail=progress.detail[:MAX_DETAIL],
    )  # fmt: skip


def progress_from_proto(message: pb.WatchProgressResponse) -> Progress:
    if message.phase not in PHASES:
        raise MalformedError(f"phase: unknown word {message.phase[:32]!r}", field="phase")
    progress = Progress(
        message.phase,
        TaskId(exact("task_id", message.task_id)) if message.task_id else None,
        None,
        _text("detail", message.detail, 4 * MAX_DETAIL),
    )
    if not message.HasField("round"):
        return progress
    number = message.round
    return replace(
        progress,
        round=Round(
            number.number, number.participants, number.accepted, number.practice_correct, number.practice_total,
            number.seconds, number.bytes_up, number.bytes_down,
        ),
    )  # fmt: skip


def status_to_proto(status: MinerStatus) -> pb.GetStatusResponse:
    return pb.GetStatusResponse(
        miner=status.miner, phase=status.phase, own_rows=status.own_rows, bought_rows=status.bought_rows,
        pool=status.pool or b"", task_id=status.task_id or b"", rounds=status.rounds,
    )  # fmt: skip


def status_from_proto(message: pb.GetStatusResponse) -> MinerStatus:
    return MinerStatus(
        AccountId(exact("miner", message.miner)), _text("phase", message.phase, 64), message.own_rows, message.bought_rows,
        AccountId(exact("pool", message.pool)) if message.pool else None,
        TaskId(exact("task_id", message.task_id)) if message.task_id else None, message.rounds,
    )  # fmt: skip


def _aggregation(number: int) -> Aggregation:
    try:
        return Aggregation(number)
    except ValueError:
        raise MalformedError(f"aggregation: {number} is no mode that is known here", field="aggregation") from None


def _signature(value: bytes) -> Signature:
    return Signature(exact("signature", value, signing.SIGNATURE_SIZE))


def _text(name: str, value: str, limit: int) -> str:
    if len(value) > limit:
        raise LimitError(f"{name}: {len(value)} characters, at most {limit}", field=name)
    return value
