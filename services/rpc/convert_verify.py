"""verify.proto <-> the messages of core.verification, a checked pair per message.

``envelope_to_proto`` trusts its argument. ``envelope_from_proto`` raises MalformedError or LimitError and names the message and
the field: every value goes through the codec of its field, which has the same limits as the canonical encoding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from google.protobuf.message import Message as ProtoMessage
from pofl.verify.v1 import verify_pb2 as pb

from core.chain.block import Receipt
from core.chain.vote import SignedVerdict
from core.codec import encode
from core.crypto.zero_check import ZeroCommitment, ZeroOpening, ZeroQuery
from core.errors import LimitError, MalformedError
from core.ids import AccountId, Correct, Digest, ModelCommitment, NodeId, Signature, TaskId
from core.verification import messages as m
from core.verification.receipt import Answer, AnswerKind, SignedAnswer

__all__ = ["envelope_from_proto", "envelope_to_proto"]


def envelope_to_proto(envelope: m.Envelope) -> pb.Envelope:
    name, body = _to_proto(envelope.message)
    return pb.Envelope(session=envelope.session, index=envelope.index, **{name: body})  # type: ignore[arg-type]


def envelope_from_proto(envelope: pb.Envelope) -> m.Envelope:
    """Raises MalformedError or LimitError."""
    name = envelope.WhichOneof("message")
    if name is None:
        raise MalformedError("Envelope: no message that this software knows")
    read = _READERS[name]
    result = m.Envelope(bytes(envelope.session), envelope.index, read(getattr(envelope, name)))
    encode(result)  # every length and range, checked by the field's own codec
    return result


def _to_proto(message: m.Message) -> tuple[str, ProtoMessage]:
    match message:
        case m.Part():
            return "part", pb.Part(index=message.index, count=message.count, data=message.data)
        case m.Abort():
            return "abort", pb.Abort(reason=message.reason)
        case m.EvaluationOpen():
            return "evaluation_open", pb.EvaluationOpen(
                chain_id=message.chain_id, task_id=message.task_id, pool=message.pool, batch=message.batch
            )
        case m.BaseTransfer():
            return "base_transfer", pb.BaseTransfer(data=message.data)
        case m.MaskedRows():
            return "masked_rows", pb.MaskedRows(ciphertexts=message.ciphertexts)
        case m.KnowledgeChallenge():
            return "knowledge_challenge", pb.KnowledgeChallenge(gamma=message.gamma)
        case m.KnowledgeOpening():
            return "knowledge_opening", pb.KnowledgeOpening(h=message.h)
        case m.KnowledgeCommitment():
            return "knowledge_commitment", pb.KnowledgeCommitment(commitment=message.commitment)
        case m.KnowledgeShares():
            return "knowledge_shares", pb.KnowledgeShares(g=message.g)
        case m.BatchAccepted():
            return "batch_accepted", pb.BatchAccepted(salt=message.salt)
        case m.MaskedModel():
            return "masked_model", pb.MaskedModel(model_commitment=message.model_commitment, e=message.e)
        case m.TransferRequest():
            return "transfer_request", pb.TransferRequest(v=message.v, choices=message.choices)
        case m.GarbledLabels():
            return "garbled_labels", pb.GarbledLabels(circuit=message.circuit, transfer=message.transfer)
        case m.OutputKeys():
            return "output_keys", pb.OutputKeys(
                keys=message.keys,
                output_keys_digest=message.receipt.output_keys_digest,
                receipt_signature=message.receipt.signature,
            )
        case m.ZeroQueries():
            return "zero_queries", pb.ZeroQueries(queries=[pb.ZeroQuery(x0=q.x0, x1=q.x1) for q in message.queries])
        case m.ZeroCommitments():
            return "zero_commitments", pb.ZeroCommitments(commitments=[one.digest for one in message.commitments])
        case m.ZeroNumbers():
            return "zero_numbers", pb.ZeroNumbers(numbers=message.numbers)
        case m.ZeroOpenings():
            return "zero_openings", pb.ZeroOpenings(
                openings=[_opening_to_proto(opening) for opening in message.openings], signature=message.signature
            )
        case _:
            return _audit_to_proto(message)


def _audit_to_proto(message: m.Message) -> tuple[str, ProtoMessage]:
    match message:
        case m.AuditOpen():
            return "audit_open", pb.AuditOpen(
                chain_id=message.chain_id, task_id=message.task_id, pool=message.pool,
                model_commitment=message.model_commitment, validator=message.validator, attempt=message.attempt,
                higher=[pb.SignedVerdict(verdict=one.verdict, signature=one.signature) for one in message.higher],
            )  # fmt: skip
        case m.BodyWanted():
            return "body_wanted", pb.BodyWanted(wanted=message.wanted)
        case m.ModelBody():
            return "model_body", pb.ModelBody(body=message.body)
        case m.AuditAnswer():
            answer = message.answer.answer
            return "audit_answer", pb.AuditAnswer(
                chain_id=answer.chain_id, task_id=answer.task_id, pool=answer.pool, model_commitment=answer.model_commitment,
                kind=_KIND_TO_PROTO[answer.kind], z_mark=answer.z_mark, correct=answer.correct,
                signature=message.answer.signature,
            )  # fmt: skip
        case m.LayerValues():
            return "layer_values", pb.LayerValues(layer=message.layer, z=message.z)
        case m.RunSeeds():
            return "run_seeds", pb.RunSeeds(seeds=message.seeds)
        case m.Hints():
            return "hints", pb.Hints(hints=message.hints)
        case m.Challenges():
            return "challenges", pb.Challenges(chi=message.chi)
        case m.MaskedProducts():
            return "masked_products", pb.MaskedProducts(w=message.w)
        case m.StoredOpen():
            return "stored_open", pb.StoredOpen(
                chain_id=message.chain_id, task_id=message.task_id, validator=message.validator, attempt=message.attempt
            )
        case m.StoredOpened():
            return "stored_opened", pb.StoredOpened()
    raise AssertionError(type(message))


_KIND_TO_PROTO: Final = {
    AnswerKind.SCORED: pb.ANSWER_KIND_SCORED,
    AnswerKind.MALFORMED: pb.ANSWER_KIND_MALFORMED,
}
_KIND_FROM_PROTO: Final = {value: kind for kind, value in _KIND_TO_PROTO.items()}


def _opening_to_proto(opening: ZeroOpening | None) -> pb.ZeroOpening:
    return pb.ZeroOpening() if opening is None else pb.ZeroOpening(equal=True, value=opening.value, salt=opening.salt)


def _opening_from_proto(opening: pb.ZeroOpening) -> ZeroOpening | None:
    if opening.equal:
        return ZeroOpening(opening.value, opening.salt)
    if opening.value or opening.salt:
        raise MalformedError("ZeroOpening: a run that is not equal opens nothing")
    return None


def _openings_from_proto(p: pb.ZeroOpenings) -> m.ZeroOpenings:
    return m.ZeroOpenings(tuple(_opening_from_proto(opening) for opening in p.openings), Signature(p.signature))


def _answer_from_proto(p: pb.AuditAnswer) -> m.AuditAnswer:
    kind = _KIND_FROM_PROTO.get(p.kind)
    if kind is None:
        raise MalformedError(f"AuditAnswer.kind: {p.kind} is no kind of answer", value=p.kind)
    answer = Answer(
        Digest(p.chain_id), TaskId(p.task_id), AccountId(p.pool), ModelCommitment(p.model_commitment), kind,
        Digest(p.z_mark), Correct(p.correct),
    )  # fmt: skip
    return m.AuditAnswer(SignedAnswer(answer, Signature(p.signature)))


def _audit_open_from_proto(p: pb.AuditOpen) -> m.AuditOpen:
    if len(p.higher) > m.MAX_HIGHER:
        raise LimitError(f"AuditOpen.higher: {len(p.higher)} verdicts, at most {m.MAX_HIGHER}")
    return m.AuditOpen(
        Digest(p.chain_id), TaskId(p.task_id), AccountId(p.pool), ModelCommitment(p.model_commitment), NodeId(p.validator),
        p.attempt, tuple(SignedVerdict(one.verdict, Signature(one.signature)) for one in p.higher),
    )  # fmt: skip


_READERS: Final[dict[str, Callable[[Any], m.Message]]] = {
    "part": lambda p: m.Part(p.index, p.count, p.data),
    "abort": lambda p: m.Abort(p.reason),
    "evaluation_open": lambda p: m.EvaluationOpen(Digest(p.chain_id), TaskId(p.task_id), AccountId(p.pool), p.batch),
    "base_transfer": lambda p: m.BaseTransfer(p.data),
    "masked_rows": lambda p: m.MaskedRows(p.ciphertexts),
    "knowledge_challenge": lambda p: m.KnowledgeChallenge(p.gamma),
    "knowledge_opening": lambda p: m.KnowledgeOpening(p.h),
    "knowledge_commitment": lambda p: m.KnowledgeCommitment(Digest(p.commitment)),
    "knowledge_shares": lambda p: m.KnowledgeShares(p.g),
    "batch_accepted": lambda p: m.BatchAccepted(p.salt),
    "masked_model": lambda p: m.MaskedModel(ModelCommitment(p.model_commitment), p.e),
    "transfer_request": lambda p: m.TransferRequest(p.v, p.choices),
    "garbled_labels": lambda p: m.GarbledLabels(p.circuit, p.transfer),
    "output_keys": lambda p: m.OutputKeys(p.keys, Receipt(Digest(p.output_keys_digest), Signature(p.receipt_signature))),
    "zero_queries": lambda p: m.ZeroQueries(tuple(ZeroQuery(q.x0, q.x1) for q in p.queries)),
    "zero_commitments": lambda p: m.ZeroCommitments(tuple(ZeroCommitment(one) for one in p.commitments)),
    "zero_numbers": lambda p: m.ZeroNumbers(tuple(p.numbers)),
    "zero_openings": _openings_from_proto,
    "audit_open": _audit_open_from_proto,
    "body_wanted": lambda p: m.BodyWanted(p.wanted),
    "model_body": lambda p: m.ModelBody(p.body),
    "audit_answer": _answer_from_proto,
    "layer_values": lambda p: m.LayerValues(p.layer, p.z),
    "run_seeds": lambda p: m.RunSeeds(tuple(p.seeds)),
    "hints": lambda p: m.Hints(tuple(p.hints)),
    "challenges": lambda p: m.Challenges(tuple(p.chi)),
    "masked_products": lambda p: m.MaskedProducts(p.w),
    "stored_open": lambda p: m.StoredOpen(Digest(p.chain_id), TaskId(p.task_id), NodeId(p.validator), p.attempt),
    "stored_opened": lambda p: m.StoredOpened(),
}
