"""What a transcript proves to somebody who was not there, and what gives a changed one away."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import pytest

from core.codec import decode, encode, encode_as
from core.crypto.signing import KeyPair, sign
from core.errors import CheatingError, CryptoError, InputError, MalformedError, SequenceError
from core.ids import Correct, Digest, NodeId
from core.verification.audit_evidence import _Evidence, read_record
from core.verification.audit_node import StoredNode
from core.verification.audit_requester import StoredRequester
from core.verification.body import make_body
from core.verification.messages import MESSAGE, AuditAnswer, ZeroOpenings
from core.verification.receipt import AnswerKind, sign_answer
from core.verification.transcript import (
    DOMAIN_TRANSCRIPT_SIGNATURE,
    Entry,
    ExportedTranscript,
    Purpose,
    Side,
    SignedTranscript,
)
from tests.models import random_model
from tests.seeded import SeededRng
from tests.verification import POOL, VALIDATOR, Claims, Marks, claim_of, exchange, make_audit, small_world

WORLD = small_world()
MODEL = random_model(WORLD.task.family.dims, WORLD.task.family.activation, 0)
TRUE_N = MODEL.count(WORLD.plain.features, WORLD.plain.labels)
BODY, _ = make_body(WORLD.pk, MODEL, SeededRng("audited body"))
CLAIM = claim_of(WORLD, BODY, TRUE_N)


def audited(claimed: int = TRUE_N) -> bytes:
    audit = make_audit(WORLD, replace(CLAIM, correct=Correct(claimed)))
    audit.run()
    return audit.node.export()


DATA = audited()
ExportedEdit = Callable[[ExportedTranscript], ExportedTranscript]


def resigned(edit: ExportedEdit, key: KeyPair = VALIDATOR, data: bytes = DATA) -> bytes:
    """The transcript with a change that its own signer makes."""
    exported = edit(decode(ExportedTranscript, decode(SignedTranscript, data, 1 << 20).transcript, 1 << 20))
    encoded = encode(exported)
    return encode(SignedTranscript(encoded, sign(key, DOMAIN_TRANSCRIPT_SIGNATURE, encoded)))


def with_evidence(edit: Callable[[_Evidence], _Evidence]) -> ExportedEdit:
    return lambda exported: replace(exported, evidence=encode(edit(decode(_Evidence, exported.evidence, 1 << 20))))


def test_a_passed_audit_is_proved_by_the_requesters_signatures() -> None:
    record = read_record(DATA)
    assert record.is_proved
    assert record.answer is not None
    assert (record.answer.answer.correct, record.answer.answer.kind) == (TRUE_N, AnswerKind.SCORED)
    assert (record.pool, record.model_commitment) == (POOL, CLAIM.vm.model_commitment)
    assert (record.validator, record.requester, record.attempt) == (VALIDATOR.public_key, WORLD.task.requester, 0)
    assert record.result == f"Valid: {TRUE_N} of 20"
    refuted = read_record(audited(TRUE_N + 1))
    assert refuted.is_proved
    assert refuted.result.startswith("PoolFault: claimed")


@pytest.mark.parametrize(("claimed", "scored"), [(TRUE_N, TRUE_N), (TRUE_N + 1, TRUE_N + 2), (TRUE_N + 1, TRUE_N - 1)])
def test_a_pools_fault_has_to_follow_from_what_the_requester_signed(claimed: int, scored: int) -> None:
    """A validator's own word under a passed check: else a transcript that proves N* would call it another."""
    result = f"PoolFault: claimed {claimed}, the committed model scores {scored} of 20"
    with pytest.raises(MalformedError, match="signed count"):
        read_record(resigned(lambda exported: replace(exported, result=result)))


def test_what_needed_no_help_has_an_empty_transcript() -> None:
    audit = make_audit(WORLD, replace(CLAIM, correct=Correct(21)))
    audit.node.start()
    record = read_record(audit.node.export())
    assert (record.messages, record.is_proved, record.result) == (0, False, "PoolFault: 21 of 20 claimed")


def test_a_transcript_that_ends_early_is_no_proof() -> None:
    audit = make_audit(WORLD, CLAIM)
    audit.node.start()
    audit.node.give_up("no answer")
    record = read_record(audit.node.export())
    assert not record.is_proved
    assert record.answer is None
    assert record.pool == POOL


def test_every_changed_byte_is_noticed() -> None:
    for place in range(0, len(DATA), 37):
        changed = DATA[:place] + bytes([DATA[place] ^ 1]) + DATA[place + 1 :]
        with pytest.raises((CryptoError, InputError)):
            read_record(changed)
    for cut in (0, 1, 64, len(DATA) - 1):
        with pytest.raises((CryptoError, InputError)):
            read_record(DATA[:cut])


def entry_changed(exported: ExportedTranscript) -> ExportedTranscript:
    """A message in the middle that was never sent."""
    entries = list(exported.entries)
    entries[4] = replace(entries[4], digest=Digest(b"\x07" * 32))
    return replace(exported, entries=tuple(entries))


def entry_left_out(exported: ExportedTranscript) -> ExportedTranscript:
    return replace(exported, entries=(*exported.entries[:4], *exported.entries[5:]))


def entry_added(exported: ExportedTranscript) -> ExportedTranscript:
    count = sum(e.side is Side.REQUESTER for e in exported.entries)
    extra = Entry(Side.REQUESTER, count, 44, 5, Digest(b"\x07" * 32))
    return replace(exported, entries=(*exported.entries[:-1], extra, exported.entries[-1]))


def other_answer(evidence: _Evidence) -> _Evidence:
    assert evidence.answer is not None
    return replace(evidence, answer=sign_answer(WORLD.signer, replace(evidence.answer.answer, correct=Correct(20))))


def forged_answer(evidence: _Evidence) -> _Evidence:
    assert evidence.answer is not None
    return replace(evidence, answer=sign_answer(VALIDATOR, evidence.answer.answer))


def moved_openings(evidence: _Evidence) -> _Evidence:
    """Openings that the requester signed in another session."""
    again = make_audit(WORLD, CLAIM, seed=5)
    again.run()
    assert again.node._openings is not None
    return replace(evidence, openings=again.node._openings)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (entry_changed, "did not sign these openings"),
        (entry_left_out, "expected"),
        (entry_added, "expected|did not sign"),
        (lambda e: replace(e, session=bytes(32)), "did not sign these openings"),
        (lambda e: replace(e, chain_id=Digest(bytes(32))), "another chain"),
        (lambda e: replace(e, task_id=bytes(32)), "another chain, task"),
        (lambda e: replace(e, requester=VALIDATOR.public_key), "signature|sign"),
        (lambda e: replace(e, purpose=Purpose.STORED_CHECK), "StoredOpen"),
        (lambda e: replace(e, purpose=Purpose.EVALUATION), "not of an audit"),
        (lambda e: replace(e, evidence=b"\x01"), "evidence"),
        (lambda e: replace(e, result="Valid: 20 of 20"), "signed count"),
        (with_evidence(lambda e: replace(e, answer=None)), "scored no model"),
        (with_evidence(lambda e: replace(e, openings=None)), "no passed check"),
        (with_evidence(lambda e: replace(e, opening=e.opening + b"\x00")), "AuditOpen|trailing|bytes|message"),
        (with_evidence(other_answer), "no message of the transcript"),
        (with_evidence(forged_answer), "signature"),
        (with_evidence(moved_openings), "no message of the transcript"),
    ],
)
def test_what_its_own_signer_changes_contradicts_the_requesters_signatures(edit: ExportedEdit, words: str) -> None:
    """A validator that lies about its audit. Defence: her answer and openings, which are bound to the running hash."""
    assert read_record(resigned(lambda exported: exported)) == read_record(DATA)
    with pytest.raises((CryptoError, InputError), match=words):
        read_record(resigned(edit))


def test_another_signer_cannot_take_it_over() -> None:
    thief = KeyPair.generate(SeededRng("thief"))
    with pytest.raises((CryptoError, MalformedError)):
        read_record(resigned(lambda e: replace(e, caller=thief.public_key), thief))


def test_a_made_up_audit_has_no_openings_of_hers() -> None:
    """A validator that never talked to the requester makes a transcript of its own. Defence: her signature over the hash."""
    audit = make_audit(WORLD, CLAIM)
    audit.run()
    answer, openings = audit.node.answer, audit.node._openings
    assert answer is not None
    assert openings is not None

    def invent(exported: ExportedTranscript) -> ExportedTranscript:
        opening = decode(_Evidence, exported.evidence, 1 << 20).opening
        messages = [(Side.CALLER, 0, opening)]
        replies = [AuditAnswer(answer), ZeroOpenings(openings.openings, openings.signature)]
        messages += [(Side.REQUESTER, i, encode_as(MESSAGE, m)) for i, m in enumerate(replies)]
        entries = tuple(Entry(s, i, d[0], len(d), Digest(hashlib.sha256(d).digest())) for s, i, d in messages)
        return replace(exported, entries=entries)

    with pytest.raises(CryptoError, match="did not sign these openings"):
        read_record(resigned(invent, data=audit.node.export()))


def stored() -> StoredNode:
    session = hashlib.sha256(b"stored").digest()
    validator = NodeId(VALIDATOR.public_key)
    node = StoredNode(WORLD.task, session, validator, WORLD.pk, WORLD.encrypted, SeededRng("stored"))
    requester = StoredRequester(
        WORLD.task, session, validator, WORLD.sk, WORLD.signer, Claims(), Marks(), SeededRng("stored answers")
    )
    exchange(node, requester, node.start())
    return node


def test_the_stored_check_leaves_one_too() -> None:
    node = stored()
    data = node.export(VALIDATOR)
    record = read_record(data)
    assert record.is_proved
    assert record.purpose is Purpose.STORED_CHECK
    assert (record.pool, record.model_commitment, record.answer) == (None, None, None)
    with pytest.raises((CryptoError, InputError), match="no passed check"):
        read_record(resigned(with_evidence(lambda e: replace(e, openings=None)), data=data))
    with pytest.raises(SequenceError):
        node.export(KeyPair.generate(SeededRng("someone else")))


def test_a_failed_stored_check_says_why() -> None:
    session = hashlib.sha256(b"stored").digest()
    node = StoredNode(WORLD.task, session, NodeId(VALIDATOR.public_key), WORLD.pk, WORLD.encrypted, SeededRng("s"))
    node.start()
    record = read_record(node.export(VALIDATOR, CheatingError("runs [0] of 3 are not zero").message))
    assert record.result == "StoredFault: runs [0] of 3 are not zero"
    assert not record.is_proved
