"""services.rpc.convert_mining: every message there and back; what no honest peer sends is refused and the field named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from pofl.mining.v1 import mining_pb2 as pb

from core.chain.transaction import ChunkReceipt
from core.crypto.masking import Aggregation
from core.crypto.sealing import Suite
from core.errors import CryptoError, InputError
from core.ids import AccountId, Digest, Milliseconds, Signature, TaskId
from core.market.contribution_books import MinerBook, PoolBook, RoundFacts
from core.market.contributions import receipt_of
from services.rpc import convert_mining as c
from tests.pool_kit import CHAIN, keys

POOL, MINER = keys(2, "convert mining")
ACCOUNT, OWN = AccountId(MINER.public_key), AccountId(POOL.public_key)
TASK = TaskId(b"t" * 32)
JOIN = c.Join(CHAIN, OWN, ACCOUNT, b"\x02" * 33, 150, 64, b"token", (Digest(b"a" * 32), Digest(b"c" * 32)))
JOINED = c.Joined(CHAIN, OWN, ACCOUNT, b"\x02" * 33, "127.0.0.1:1", b"PEM", b"h" * 32)
FETCH = c.FetchRows(Digest(b"a" * 32), Digest(b"b" * 32), "127.0.0.1:2", OWN, 10, 5, 50, Milliseconds(77), b"s" * 32)


def test_joining_survives_the_wire() -> None:
    signed = c.sign_join(MINER, JOIN)
    found = c.join_from_proto(c.join_to_proto(signed), CHAIN, OWN)
    assert found == signed
    c.verify_join(found)
    hybrid = replace(JOINED, hpke_public_key=b"h" * 1216, sealing=Suite.HYBRID, aggregation=Aggregation.SECURE)
    for joined in (JOINED, hybrid):
        answer = c.sign_joined(POOL, joined)
        again = c.joined_from_proto(c.joined_to_proto(answer), JOIN)
        assert again == answer
        c.verify_joined(again)


def test_what_a_member_says_it_holds_is_signed_ordered_and_bounded() -> None:
    message = c.join_to_proto(c.sign_join(MINER, JOIN))
    for holds, sentence in (
        ([b"c" * 32, b"a" * 32], "ascending order"),
        ([b"a" * 32, b"a" * 32], "each once"),
        ([b"a" * 31], "holds: 31 bytes, expected 32"),
        ([n.to_bytes(32, "big") for n in range(c.MAX_HELD + 1)], f"holds: {c.MAX_HELD + 1} data sets, at most {c.MAX_HELD}"),
    ):
        changed = pb.JoinRequest()
        changed.CopyFrom(message)
        changed.ClearField("holds")
        changed.holds.extend(holds)
        with pytest.raises(InputError, match=sentence):
            c.join_from_proto(changed, CHAIN, OWN)
    message.holds.append(b"d" * 32)
    with pytest.raises(CryptoError):
        c.verify_join(c.join_from_proto(message, CHAIN, OWN))


def test_sealing_and_aggregation_cannot_be_changed_on_the_way() -> None:
    """No downgrade: what the miner seals with, and whether single updates are seen, is under the pool's signature."""
    strong = replace(JOINED, hpke_public_key=b"h" * 1216, sealing=Suite.HYBRID, aggregation=Aggregation.SECURE)
    message = c.joined_to_proto(c.sign_joined(POOL, strong))
    for changes in (
        {"sealing": int(Suite.X25519), "hpke_public_key": b"h" * 32},
        {"aggregation": int(Aggregation.PLAIN)},
        {"hpke_public_key": b"x" * 1216},
    ):
        weaker = pb.JoinResponse()
        weaker.CopyFrom(message)
        for name, value in changes.items():
            setattr(weaker, name, value)
        with pytest.raises(CryptoError):
            c.verify_joined(c.joined_from_proto(weaker, JOIN))


def test_an_unknown_suite_is_refused_in_one_sentence() -> None:
    message = c.joined_to_proto(c.sign_joined(POOL, JOINED))
    message.sealing = 0x0030
    with pytest.raises(
        CryptoError, match=r"^sealing suite 0x0030 is unknown here; known: x25519 \(0x0020\), hybrid \(0x647a\)$"
    ):
        c.joined_from_proto(message, JOIN)
    message.sealing, message.aggregation = Suite.X25519, 3
    with pytest.raises(InputError, match="aggregation: 3 is no mode"):
        c.joined_from_proto(message, JOIN)


def test_a_join_is_good_for_one_chain_and_one_pool() -> None:
    message = c.join_to_proto(c.sign_join(MINER, JOIN))
    for chain, pool in ((Digest(b"x" * 32), OWN), (CHAIN, ACCOUNT)):
        with pytest.raises(CryptoError):
            c.verify_join(c.join_from_proto(message, chain, pool))


def test_everything_else_survives_the_wire() -> None:
    train = c.TrainOn(TASK, Milliseconds(5), 64, 10)
    for assignment in (FETCH, train, replace(train, recipe=b"r" * 32)):
        assert c.assignment_from_proto(c.assignment_to_proto(assignment)) == assignment
    book = PoolBook(POOL, CHAIN, TASK)
    sheet = book.add_round(RoundFacts(1, 5, 10, 20, 30, 40), {ACCOUNT: 7}, {OWN: "late"})
    closing = book.close()
    answer = MinerBook(MINER, CHAIN, OWN, TASK).receive_closing(closing)
    own = receipt_of(sheet, ACCOUNT)
    assert own is not None
    for assignment in (own, closing):
        assert c.assignment_from_proto(c.assignment_to_proto(assignment)) == assignment
    assert c.answer_from_proto(c.answer_to_proto(answer)) == answer
    for entry in (sheet, closing, answer):
        assert c.entry_from_proto(c.entry_to_proto(entry)) == entry
    mined = c.MinedTask(TASK, 3, 1 << 40, True, 90, 100)
    assert c.mined_from_proto(c.mined_to_proto(mined)) == mined
    receipt = ChunkReceipt(Digest(b"a" * 32), 9, ACCOUNT, Signature(b"s" * 64))
    assert c.receipt_from_proto(c.receipt_to_proto(receipt)) == receipt
    member = c.Member(ACCOUNT, 3, 1 << 40, True)
    assert c.member_from_proto(c.member_to_proto(member)) == member
    last = c.Round(3, 2, 1, 90, 100, 0.5, 10, 20)
    for progress in (c.Progress("idle"), c.Progress("training", TASK, last, "late")):
        assert c.progress_from_proto(c.progress_to_proto(progress)) == progress
    for status in (
        c.MinerStatus(ACCOUNT, "idle", 3, 4, OWN, TASK, 5),
        c.MinerStatus(ACCOUNT, "starting", 3, 0, None, None, 0),
    ):
        assert c.status_from_proto(c.status_to_proto(status)) == status


def _join(**changes: object) -> pb.JoinRequest:
    message = c.join_to_proto(c.sign_join(MINER, JOIN))
    for name, value in changes.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ("read", "field"),
    [
        (lambda: c.join_from_proto(_join(miner=b"x"), CHAIN, OWN), "miner"),
        (lambda: c.join_from_proto(_join(node_public_key=b"x" * 32), CHAIN, OWN), "node_public_key"),
        (lambda: c.join_from_proto(_join(token=b"x" * 257), CHAIN, OWN), "token"),
        (lambda: c.join_from_proto(_join(rows=0), CHAIN, OWN), "fits no task"),
        (lambda: c.join_from_proto(_join(features=0), CHAIN, OWN), "fits no task"),
        (lambda: c.join_from_proto(_join(signature=b""), CHAIN, OWN), "signature"),
        (lambda: c.joined_from_proto(pb.JoinResponse(superlink_ca=b"x" * 20_000), JOIN), "superlink_ca"),
        (
            lambda: c.joined_from_proto(pb.JoinResponse(pool=OWN, superlink_address="x" * 256, sealing=0x20), JOIN),
            "superlink_address",
        ),
        (
            lambda: c.joined_from_proto(pb.JoinResponse(pool=OWN, superlink_address="a:1", sealing=0x20), JOIN),
            "hpke_public_key",
        ),
        (lambda: c.assignment_from_proto(pb.AttendResponse()), "without content"),
        (lambda: c.assignment_from_proto(pb.AttendResponse(fetch=pb.FetchRows())), "trade_id"),
        (lambda: c.assignment_from_proto(pb.AttendResponse(train=pb.TrainOn())), "task_id"),
        (lambda: c.assignment_from_proto(pb.AttendResponse(train=pb.TrainOn(task_id=TASK, recipe=b"x"))), "recipe"),
        (lambda: c.assignment_from_proto(pb.AttendResponse(receipt=b"")), "truncated"),
        (lambda: c.assignment_from_proto(pb.AttendResponse(closing=bytes(2_000_000))), "at most"),
        (lambda: c.answer_from_proto(pb.CountersignRequest(answer=b"x")), "truncated"),
        (lambda: c.entry_from_proto(pb.ListContributionsResponse(entry=b"\x09")), "unknown tag"),
        (lambda: c.mined_from_proto(pb.MinedTask(task_id=b"x")), "task_id"),
        (lambda: c.receipt_from_proto(pb.HandInReceiptRequest(chunk=65_536)), "chunk"),
        (lambda: c.receipt_from_proto(pb.HandInReceiptRequest(chunk=1)), "trade_id"),
        (lambda: c.member_from_proto(pb.Member()), "miner"),
        (lambda: c.progress_from_proto(pb.WatchProgressResponse(phase="sleeping")), "phase"),
        (lambda: c.progress_from_proto(pb.WatchProgressResponse(phase="idle", task_id=b"x")), "task_id"),
        (lambda: c.status_from_proto(pb.GetStatusResponse(miner=OWN, phase="x" * 65)), "phase"),
    ],
)
def test_what_no_honest_peer_sends_is_refused(read: Callable[[], object], field: str) -> None:
    with pytest.raises(InputError, match=field):
        read()
