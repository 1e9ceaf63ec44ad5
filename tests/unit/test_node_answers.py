"""Answers of the requester that nodes pass on, and what a node keeps of its audits."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from core.chain import build
from core.chain.block import BlockKind, Outcome, OutcomeKind
from core.chain.claims import tag
from core.chain.ledger import divide_reward
from core.chain.state import State, state_root
from core.chain.vote import VerdictKind
from core.codec import encode
from core.errors import CryptoError, LimitError, MalformedError, NotFoundError, WrongChainError
from core.ids import Correct, Digest, Height, ModelCommitment, NodeId, Signature
from core.verification.receipt import MAX_ANSWER, Answer, AnswerKind, sign_answer, z_mark
from node.answers import Answers, Heard
from node.held import Held
from node.keeping import Keeping
from node.links import Acceptance
from node.queries import Names, block_view, contradiction_lines, explanation, task_view
from node.transcripts import Contradiction, TranscriptStore
from node.work import WorkHeights
from services.rpc.convert_peer import gossip_from_proto, gossip_to_proto
from services.rpc.views import BlockView
from services.storage import Memory
from tests.chainkit import Chain, account, key, make_verdict, signed_verdict, some
from tests.unit.test_audit_evidence import DATA, audited, stored
from tests.verification import VALIDATOR

CHAIN = Chain()
TASK = CHAIN.to_work_height(pool0=900, pool1=950)
STATE = CHAIN.state
TOP = STATE.ranking(TASK)[0]
assert TOP.claim is not None
MODEL = TOP.claim.vm.model_commitment
HER = key("requester")


def answers() -> Answers:
    return Answers(STATE.chain_id, TASK, account("requester"), STATE.ranking(TASK))


def answer(correct: int = 950, kind: AnswerKind = AnswerKind.SCORED, mark: str = "z") -> Answer:
    return Answer(STATE.chain_id, TASK, TOP.pool, MODEL, kind, some(mark), Correct(correct))


def test_two_different_answers_contradict_and_a_third_is_nothing_new() -> None:
    made = answers()
    first, second, third = (sign_answer(HER, answer(n)) for n in (950, 949, 948))
    assert made.take(first) is Heard.NEW
    assert made.take(first) is Heard.KNOWN
    assert made.contradiction(MODEL) is None
    assert made.take(second) is Heard.CONTRADICTS
    assert made.take(second) is Heard.KNOWN
    assert made.take(third) is Heard.KNOWN
    assert made.contradiction(MODEL) == Contradiction(first, second)


@pytest.mark.parametrize(
    "other", [answer(950, mark="other layers"), answer(0, AnswerKind.MALFORMED, "z"), answer(951)], ids=["Z", "malformed", "N"]
)
def test_any_difference_contradicts(other: Answer) -> None:
    made = answers()
    made.take(sign_answer(HER, answer()))
    assert made.take(sign_answer(HER, other)) is Heard.CONTRADICTS


def test_another_signature_under_the_same_answer_is_no_contradiction() -> None:
    """Nobody frames her by changing a signature, and she cannot flood with signatures of one answer."""
    made = answers()
    good = sign_answer(HER, answer())
    made.take(good)
    assert made.take(replace(good, signature=Signature(bytes(64)))) is Heard.KNOWN


def test_what_no_honest_node_passes_on() -> None:
    """A validator that wants to frame the requester. Defence: her signature is checked before anything is kept."""
    made = answers()
    forged = sign_answer(key("v1"), answer(1))
    with pytest.raises(CryptoError):
        made.take(forged)
    made.take(sign_answer(HER, answer()))
    with pytest.raises(CryptoError):
        made.take(forged)
    assert made.contradiction(MODEL) is None
    with pytest.raises(WrongChainError):
        made.take(sign_answer(HER, replace(answer(), chain_id=Digest(bytes(32)))))
    for elsewhere in (
        replace(answer(), task_id=some("another task")),  # type: ignore[arg-type]
        replace(answer(), model_commitment=ModelCommitment(some("no claim"))),
        replace(answer(), pool=account("pool0")),
    ):
        with pytest.raises(NotFoundError):
            made.take(sign_answer(HER, elsewhere))
    assert len(made._kept) == 1


def test_an_answer_travels_in_bounded_bytes() -> None:
    signed = sign_answer(HER, answer())
    assert len(encode(signed)) < MAX_ANSWER
    wire = gossip_to_proto(signed)
    assert gossip_from_proto(wire) == signed
    for spoiled in (wire.answer[:-1], wire.answer + b"\x00", b"", bytes(MAX_ANSWER + 1)):
        wire.answer = spoiled
        with pytest.raises((MalformedError, LimitError)):
            gossip_from_proto(wire)


def test_an_answer_does_not_help_to_a_tag() -> None:
    """A validator that did not audit hears the answers of others before verdicts are in. With the z_digest in them it could
    make the tag that only auditors are paid for. Defence: a mark of it."""
    z = some("z of an audit")
    mark = z_mark(TASK, MODEL, z)
    node = NodeId(key("v3").public_key)
    assert tag(STATE.chain_id, TASK, MODEL, z, node) != tag(STATE.chain_id, TASK, MODEL, mark, node)
    assert z_mark(TASK, MODEL, z) == mark
    assert z_mark(TASK, ModelCommitment(some("other")), z) != mark


# What is kept


def test_a_transcript_survives_a_restart_and_is_found_by_height_task_and_digest() -> None:
    kv = Memory()
    store = TranscriptStore(kv)
    one = store.put(Height(7), DATA)
    check = store.put(Height(3), stored().export(VALIDATOR))
    store.put(Height(9), audited(5))
    again = TranscriptStore(kv)
    assert again.listed(Height(7), one.task_id) == (one, check)
    assert [kept.height for kept in again.listed(Height(9), None)] == [9]
    assert again.get(one.digest) == DATA
    assert one.digest == hashlib.sha256(DATA).digest()
    assert one.result.startswith("Valid: ")
    with pytest.raises(NotFoundError):
        again.get(some("nothing"))


def test_the_oldest_go_when_there_are_too_many() -> None:
    kv = Memory()
    store = TranscriptStore(kv, limit=3, attempts=3, contradictions=2)
    made = [store.put(Height(n), audited(n)) for n in range(5)]
    for number in range(5):
        store.begin(TASK, ModelCommitment(some(f"{number}")), 0)
        pair = Contradiction(sign_answer(HER, answer()), sign_answer(HER, answer(number)))
        store.put_contradiction(Height(number), pair)
    for opened in (store, TranscriptStore(kv, limit=3, attempts=3, contradictions=2)):
        assert [len(opened.listed(Height(n), None)) for n in range(5)] == [0, 0, 1, 1, 1]
        with pytest.raises(NotFoundError):
            opened.get(made[1].digest)
        assert [opened.attempts(TASK, ModelCommitment(some(f"{n}"))) for n in range(5)] == [0, 0, 1, 1, 1]
        assert [len(opened.contradictions(Height(n))) for n in range(5)] == [0, 0, 0, 1, 1]
    assert sum(1 for _ in kv.iterate()) == 8


def test_nothing_that_is_no_transcript_is_kept() -> None:
    store = TranscriptStore(Memory())
    with pytest.raises((CryptoError, MalformedError)):
        store.put(Height(1), DATA[:-1] + bytes([DATA[-1] ^ 1]))
    assert store.listed(Height(1), None) == ()


def test_attempts_are_counted_through_restarts() -> None:
    kv = Memory()
    model = ModelCommitment(some("m"))
    for attempt in range(3):
        store = TranscriptStore(kv)
        assert store.attempts(TASK, model) == attempt
        store.begin(TASK, model, attempt)
        store.begin(TASK, model, attempt)
    assert TranscriptStore(kv).attempts(TASK, model) == 3


def test_a_contradiction_is_told_in_words() -> None:
    pair = Contradiction(sign_answer(HER, answer()), sign_answer(HER, answer(0, AnswerKind.MALFORMED)))
    line = contradiction_lines([pair], lambda account: "pool1")[0]  # type: ignore[arg-type]
    assert "two answers about the claim of pool1: 950 correct with layers" in line
    assert "and malformed" in line


# The node's own handling


class FakeDriver:
    def __init__(self, state: State) -> None:
        self.state, self.told, self.shared = state, [], []
        self.is_validator = True

    def tell(self, event: Any, height: Any = None) -> None:
        self.told.append(event)

    def share(self, signed: Any) -> None:
        self.shared.append(signed)


def at_work(state: State = STATE) -> tuple[WorkHeights, FakeDriver, TranscriptStore]:
    driver, store, nothing = FakeDriver(state), TranscriptStore(Memory()), cast(Any, None)
    kept = Keeping(Held(Memory()))
    return WorkHeights(cast(Any, driver), nothing, nothing, nothing, lambda: (), store, kept), driver, store


def test_two_answers_make_a_verdict_and_evidence_on_sight() -> None:
    work, driver, store = at_work()
    first, second, third = (sign_answer(HER, answer(n)) for n in (950, 949, 948))
    assert work.hear(first) is Acceptance.RELAY
    assert work.hear(first) is Acceptance.DROP
    assert driver.told == []
    assert work.hear(second) is Acceptance.RELAY
    assert work.hear(third) is Acceptance.DROP
    (done,) = driver.told
    assert (done.kind, done.model_commitment) == (VerdictKind.REQUESTER_FAULT, MODEL)
    assert "two answers" in done.reason
    assert store.contradictions(Height(STATE.height + 1)) == (Contradiction(first, second),)


def test_what_she_told_us_goes_to_the_others_once() -> None:
    work, driver, _ = at_work()
    signed = sign_answer(HER, answer())
    work._heard_ours(work._place, signed)
    work._heard_ours(work._place, signed)
    assert driver.shared == [signed]
    work.hear(sign_answer(HER, answer(1)))
    assert [done.kind for done in driver.told] == [VerdictKind.REQUESTER_FAULT]


def test_an_answer_before_or_after_its_height_changes_nothing() -> None:
    chain = Chain()
    task = chain.publish()
    chain.block()
    assert chain.state.current == task
    work, driver, _ = at_work(chain.state)
    early = replace(answer(), task_id=task)
    assert work.hear(sign_answer(HER, early)) is Acceptance.LATER
    assert work.hear(sign_answer(HER, replace(answer(), task_id=some("gone")))) is Acceptance.DROP  # type: ignore[arg-type]
    assert driver.told == []


# What explain says of a node that was not there


def explained(took_part: bool, own: str = "v0") -> tuple[str, ...]:
    certificate = CHAIN.certificate()
    assert certificate is not None
    block = build.build_void_block(STATE, key("v1"), certificate, (Outcome(MODEL, OutcomeKind.DEAD),))
    view = block_view(block, certificate, state_root(STATE))
    verdicts = [signed_verdict(make_verdict(STATE, TOP, v, VerdictKind.REQUESTER_FAULT), v) for v in ("v1", "v2")]
    return explanation(
        view, task_view(STATE, STATE.tasks[TASK]), verdicts if took_part else (), {}, STATE.validators if took_part else (),
        Names(CHAIN.genesis), NodeId(key(own).public_key), took_part,
    ).lines  # fmt: skip


def test_all_of_a_won_reward_is_accounted_for() -> None:
    task = task_view(STATE, STATE.tasks[TASK])
    made = SimpleNamespace(
        header=SimpleNamespace(height=9, kind=BlockKind.WORK, author_id=key("pool0").public_key, accuracy=None, outcome=()),
        payouts=(), certificate=SimpleNamespace(signatures=(), round=0), transactions=(),
    )  # fmt: skip
    own = NodeId(key("v0").public_key)
    lines = explanation(
        cast(BlockView, made), task, (), {}, STATE.validators, Names(CHAIN.genesis), own, params=STATE.params
    ).lines  # fmt: skip
    parts = divide_reward(task.reward, STATE.params)
    assert parts.payouts + parts.burned + parts.auditors == task.reward
    assert (
        f"Of the reward of {task.reward}, {parts.payouts} are paid here and {parts.burned} burnt; {parts.auditors} go to the "
        "validators whose audits block 10 shows, and what none of them gets burns."
    ) in lines


def test_a_synced_node_says_plainly_that_it_was_not_there() -> None:
    """Before, it told a work block's claims as if none had been looked at."""
    lines = explained(took_part=False)
    assert any(line.startswith("v0, which tells this, did not take part in deciding this height") for line in lines)
    assert any("pool1 claimed 950" in line and "dead" in line for line in lines)
    assert any("pool0 claimed 900" in line and "how it ended is not known here" in line for line in lines)
    assert not any("Power" in line for line in lines)


def test_a_node_that_gave_no_verdict_says_so_and_one_that_did_says_nothing() -> None:
    assert any("v0, which tells this, gave no verdict itself" in line for line in explained(took_part=True))
    assert not any("which tells this" in line for line in explained(took_part=True, own="v1"))
