"""verify.proto and the messages of core.verification say the same, and nothing unchecked comes through."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from pofl.verify.v1 import verify_pb2 as pb

from core.chain.block import Receipt
from core.codec import encode
from core.crypto.zero_check import ZeroCommitment, ZeroOpening, ZeroQuery
from core.errors import InputError, MalformedError
from core.ids import AccountId, Correct, Digest, ModelCommitment, NodeId, Signature, TaskId
from core.verification import messages as m
from core.verification.receipt import Answer, AnswerKind, SignedAnswer
from services.rpc.convert_verify import envelope_from_proto, envelope_to_proto

A, B, C = b"\x01" * 32, b"\x02" * 32, b"\x03" * 32
SIGNATURE = Signature(b"\x04" * 64)
ANSWER = Answer(Digest(A), TaskId(B), AccountId(C), ModelCommitment(A), AnswerKind.SCORED, Digest(B), Correct(7))
MESSAGES: list[m.Message] = [
    m.Part(1, 3, b"abc"),
    m.Abort("enough"),
    m.EvaluationOpen(Digest(A), TaskId(B), AccountId(C), 1),
    m.BaseTransfer(b"x"),
    m.MaskedRows(b"rows"),
    m.KnowledgeChallenge(b"g"),
    m.KnowledgeOpening(b"h"),
    m.KnowledgeCommitment(Digest(A)),
    m.KnowledgeShares(b"g"),
    m.BatchAccepted(A),
    m.MaskedModel(ModelCommitment(A), b"e"),
    m.TransferRequest(b"v", b"c"),
    m.GarbledLabels(b"circuit", b"transfer"),
    m.OutputKeys(b"k" * 16, Receipt(Digest(A), SIGNATURE)),
    m.ZeroQueries((ZeroQuery(b"0" * 24, b"1"),)),
    m.ZeroCommitments((ZeroCommitment(A), ZeroCommitment(B))),
    m.ZeroNumbers((0, 1 << 63)),
    m.ZeroOpenings((ZeroOpening(5, A), None), SIGNATURE),
    m.AuditOpen(Digest(A), TaskId(B), AccountId(C), ModelCommitment(A), NodeId(B), 2),
    m.BodyWanted(True),
    m.BodyWanted(False),
    m.ModelBody(b"body"),
    m.AuditAnswer(SignedAnswer(ANSWER, SIGNATURE)),
    m.AuditAnswer(SignedAnswer(dataclasses.replace(ANSWER, kind=AnswerKind.MALFORMED), SIGNATURE)),
    m.LayerValues(1, b"z"),
    m.RunSeeds((A, B, C)),
    m.Hints((b"h",)),
    m.Challenges((1, 2, 3)),
    m.MaskedProducts(b"w"),
    m.StoredOpen(Digest(A), TaskId(B), NodeId(C), 0),
    m.StoredOpened(),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_round_trip(message: m.Message) -> None:
    envelope = m.Envelope(A, 9, message)
    wire = envelope_to_proto(envelope).SerializeToString()
    again = envelope_from_proto(pb.Envelope.FromString(wire))
    assert again == envelope
    assert encode(again) == encode(envelope)


def test_every_message_is_covered() -> None:
    assert {type(message) for message in MESSAGES} == set(m.MESSAGE.members.values())
    names = {field.name for field in pb.Envelope.DESCRIPTOR.oneofs_by_name["message"].fields}
    assert len(names) == len(m.MESSAGE.members)


def test_field_numbers_are_tags_plus_ten() -> None:
    fields = pb.Envelope.DESCRIPTOR.oneofs_by_name["message"].fields
    numbers = {field.message_type.name: field.number for field in fields if field.message_type is not None}
    assert numbers == {kind.__name__: tag + 10 for tag, kind in m.MESSAGE.members.items()}


@pytest.mark.parametrize(
    "bad",
    [
        pb.Envelope(session=A),
        pb.Envelope(session=A[:31], batch_accepted=pb.BatchAccepted(salt=A)),
        pb.Envelope(session=A, part=pb.Part(index=70000, count=2, data=b"x")),
        pb.Envelope(session=A, part=pb.Part(index=0, count=2, data=bytes(m.PART_BYTES + 1))),
        pb.Envelope(session=A, abort=pb.Abort(reason="x" * 201)),
        pb.Envelope(session=A, evaluation_open=pb.EvaluationOpen(chain_id=A, task_id=B, pool=C, batch=256)),
        pb.Envelope(session=A, evaluation_open=pb.EvaluationOpen(chain_id=A, task_id=B[:5], pool=C)),
        pb.Envelope(session=A, output_keys=pb.OutputKeys(keys=bytes(528), output_keys_digest=A, receipt_signature=SIGNATURE)),
        pb.Envelope(session=A, output_keys=pb.OutputKeys(keys=b"", output_keys_digest=A, receipt_signature=b"")),
        pb.Envelope(session=A, zero_numbers=pb.ZeroNumbers(numbers=[1] * 17)),
        pb.Envelope(session=A, zero_queries=pb.ZeroQueries(queries=[pb.ZeroQuery(x0=bytes(65))])),
        pb.Envelope(session=A, zero_openings=pb.ZeroOpenings(openings=[pb.ZeroOpening(value=5)], signature=SIGNATURE)),
        pb.Envelope(session=A, zero_openings=pb.ZeroOpenings(openings=[pb.ZeroOpening(equal=True)], signature=SIGNATURE)),
        pb.Envelope(session=A, audit_answer=pb.AuditAnswer(kind=pb.ANSWER_KIND_UNSPECIFIED)),
        pb.Envelope(session=A, run_seeds=pb.RunSeeds(seeds=[A[:31]])),
    ],
)
def test_what_is_out_of_range_is_refused(bad: pb.Envelope) -> None:
    """Attack 12 on the wire. Defence: each field's codec, run over what was read."""
    with pytest.raises(InputError):
        envelope_from_proto(bad)


def test_a_message_from_the_future_is_refused() -> None:
    wire = pb.Envelope(session=A).SerializeToString() + b"\xfa\x06\x00"
    with pytest.raises(MalformedError, match="no message"):
        envelope_from_proto(pb.Envelope.FromString(wire))


def test_every_rpc_says_who_and_what() -> None:
    text = (Path(__file__).parents[2] / "proto/pofl/verify/v1/verify.proto").read_text()
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if re.match(r"\s+rpc ", line):
            assert lines[number - 1].strip().startswith("//")
