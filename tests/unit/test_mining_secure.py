"""Secure aggregation in the manager's loop: real miners' parts over a fleet in memory, with deaths, deadlines and lies."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from flwr.app import Context, MessageType, Metadata, RecordDict
from flwr.app.message import make_message

from core.codec import decode, decode_as, encode, encode_as
from core.crypto.sealing import Suite
from core.crypto.secure_messages import Advert, Consent, Dealt, Reveal
from core.errors import CheatingError, InputError, MalformedError, NotFoundError, PoflError, SequenceError, UnavailableError
from pool.flower import blobs, keys, secure_miner
from pool.flower.rounds import LoopState, RoundLog, Rules, StopWhen
from pool.flower.rounds import Reply as FleetReply
from pool.flower.secure import SecureLoop
from pool.flower.secure_miner import SecureMember, build_secure_app
from pool.flower.secure_wire import (
    ORDER,
    REPLY,
    Agree,
    Disclose,
    Invite,
    MaskedUpdate,
    Order,
    Reply,
    Roster,
    TrainMasked,
    session_of,
)  # fmt: skip
from pool.flower.wire import Answer, Instruction, Outcome, Precision, Update, vector_to_bytes
from pool.learning.model_spec import ModelSpec, Score, Weights, flatten, initial_weights
from pool.learning.privacy import NO_NOISE

SPEC = ModelSpec(2, 2)
JOB = b"j" * 32
TEMPLATE = Instruction(JOB, 0, 2, 2, (), "relu", "sgd", 1, 0.1, 8, 5, 0.0, b"")
RUN = 77
NODES = sorted((keys.new_node_key() for _ in range(7)), key=lambda pair: pair[1])
NAMES = [public for _, public in NODES]


@pytest.fixture(autouse=True)
def training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training that is instant: each parameter's step is what the miner's rows say."""

    def train_on(instruction: Instruction, data: object, _: object) -> Update:
        x, y = data(instruction.job_id)  # type: ignore[operator]
        return Update(len(y), 0.5, 1, 1, Precision.FLOAT32, vector_to_bytes(np.full(6, float(x[0]))))

    monkeypatch.setattr(secure_miner, "train_on", train_on)


Twist = Callable[[Reply], Reply]


@dataclass
class Person:
    """``dies_at``: (round, step) from which it answers nothing. ``twist``: what it sends instead. ``after``: seconds."""

    number: int
    value: float
    examples: int = 10
    dies_at: tuple[int, int] = (1 << 30, 0)
    after: float = 0.05
    twist: Twist = lambda reply: reply
    suite: Suite = Suite.X25519

    def __post_init__(self) -> None:
        private, name = NODES[self.number]
        self.sent: list[tuple[int, int]] = []
        rows = (np.array([self.value]), np.zeros(self.examples, dtype=np.int64))
        note = lambda instruction, update: self.sent.append((instruction.round, update.examples))  # noqa: E731
        self.member = SecureMember(lambda _: rows, keys.private_key_of(private), name, note, self.suite, NO_NOISE, 3)


STEPS: dict[type, int] = {Invite: 1, Roster: 2, TrainMasked: 3, Agree: 4, Disclose: 5}


@dataclass
class MemoryFleet:
    people: dict[bytes, Person]
    now: float = 0.0
    calls: int = 0
    orders: list[tuple[bytes, int, Order]] = field(default_factory=list)
    answers: list[tuple[bytes, int, bytes]] = field(default_factory=list)
    pending: dict[str, tuple[float, FleetReply]] = field(default_factory=dict)
    run_id: int = RUN

    def online(self) -> set[bytes]:
        self.calls += 1
        assert self.calls < 20_000, "the loop spins"
        return set(self.people)

    def instruct(self, blob: bytes, miners: list[bytes], round_number: int, ttl_s: float) -> dict[str, bytes]:
        order = decode_as(ORDER, blob)
        asked = {}
        for miner in miners:
            person, instruction_id = self.people[miner], f"{round_number}/{STEPS[type(order)]}/{miner.hex()}"
            asked[instruction_id] = miner
            self.orders.append((miner, round_number, order))
            if (round_number, STEPS[type(order)]) >= person.dies_at:
                continue
            try:
                reply = person.twist(person.member.obey(order, self.run_id, round_number))
                answer = Answer(Outcome.TRAINED, "", encode_as(REPLY, reply), b"")
            except PoflError as error:
                answer = Answer(Outcome.FAILED, error.message, b"", b"")
            self.answers.append((miner, round_number, answer.sealed))
            self.pending[instruction_id] = (self.now + person.after, FleetReply(instruction_id, encode(answer), ""))
        return asked

    def collect(self, instruction_ids: set[str], hold_s: float) -> list[FleetReply]:
        self.calls += 1
        assert self.calls < 20_000, "the loop spins"
        until = self.now + max(hold_s, 0.001)
        wanted = {i: self.pending[i] for i in instruction_ids if i in self.pending}
        due = min((at for at, _ in wanted.values()), default=until)
        self.now = max(self.now + 0.001, min(until, due))
        return [self.pending.pop(i)[1] for i, (at, _) in wanted.items() if at <= self.now]

    def open(self, answer: Answer, instruction_id: str, miner: bytes, round_number: int) -> Update:
        raise AssertionError("no single update is opened")

    def open_bytes(self, answer: Answer, instruction_id: str, miner: bytes, round_number: int) -> bytes:
        assert instruction_id.endswith(miner.hex())
        return answer.sealed

    def pause(self, seconds: float) -> None:
        self.now += max(seconds, 0.001)


def run(
    people: list[Person], *, rounds: int = 1, deadline: float = 60.0, quorum: int = 1,
    registered: dict[bytes, int] | None = None, suite: Suite = Suite.X25519, floor: float = 0.0,
) -> tuple[list[RoundLog], LoopState, MemoryFleet]:  # fmt: skip
    fleet = MemoryFleet({NAMES[person.number]: person for person in people})
    first = initial_weights(SPEC, 0)
    state = LoopState(0, first, first, registered=registered or {})
    logs: list[RoundLog] = []
    loop = SecureLoop(
        SPEC, Rules(TEMPLATE, 4.0, quorum, practice_floor=floor), fleet, state, suite,
        members=lambda: set(fleet.people), evaluate=scored,
        now=lambda: fleet.now, pause=fleet.pause, deadline=deadline,
    )  # fmt: skip
    loop.run(StopWhen(rounds=rounds), logs.append)
    return logs, state, fleet


def scored(weights: Weights) -> Score:
    return Score(round(float(flatten(weights)[0]) * 10), 1000, 1.0)


def crowd(count: int) -> list[Person]:
    return [Person(i, float(i)) for i in range(count)]


def told(logs: list[RoundLog]) -> list[set[bytes]]:
    return [set(log.accepted) for log in logs]


@pytest.mark.parametrize("suite", Suite, ids=lambda suite: suite.label)
def test_rounds_add_the_weighted_mean(suite: Suite) -> None:
    people = [Person(i, float(i), examples=10 * (i + 1), suite=suite) for i in range(4)]
    logs, state, _ = run(people, rounds=2, suite=suite)
    mean = np.average([0, 1, 2, 3], weights=[10, 20, 30, 40])
    np.testing.assert_allclose(flatten(state.weights), 2 * mean, atol=1e-6)
    assert [log.number for log in logs] == [1, 2]
    assert all(log.accepted == log.claimed == {NAMES[i]: 10 * (i + 1) for i in range(4)} for log in logs)
    assert logs[0].train_loss == pytest.approx(0.5)
    assert all(person.sent == [(1, person.examples), (2, person.examples)] for person in people)


def test_the_manager_gets_nothing_that_is_an_update() -> None:
    """All that reaches it of one miner, opened: the fixed-point update is nowhere in it, whole or in part."""
    _, _, fleet = run(crowd(4))
    # 3 times the weight, above the bits of the dither, whether that borrows from them or not.
    plain = [((30 << 24) - borrowed).to_bytes(8, "little")[1:] for borrowed in (0, 1 << 8)]
    seen = b"".join(data for miner, _, data in fleet.answers if miner == NAMES[3])
    assert len(seen) > 500
    assert not any(part in seen for part in plain)
    assert vector_to_bytes(np.full(6, 3.0))[:4] * 2 not in seen


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_a_miner_that_dies_between_steps_costs_only_its_own_update(step: int) -> None:
    people = crowd(4)
    people[3] = replace(people[3], dies_at=(1, step))
    logs, state, fleet = run(people, rounds=3)
    # Gone after its vector came: it is in the sum, and paid.
    there = {0, 1, 2} if step <= 3 else {0, 1, 2, 3}
    assert told(logs)[0] == {NAMES[i] for i in there}
    assert told(logs)[1:] == [{NAMES[i] for i in range(3)}] * 2
    expected = np.mean(list(there)) + 2 * np.mean([0, 1, 2])
    np.testing.assert_allclose(flatten(state.weights), expected, atol=1e-6)
    if step <= 3:
        assert "no answer in time" in logs[0].refused[NAMES[3]]
    assert all(log.seconds <= 4.0 + 0.3 for log in logs)
    assert logs[1].seconds < 1.0, "a dead miner is not asked again"
    assert fleet.now < 8


def test_too_many_deaths_end_the_round_and_the_next_goes_on() -> None:
    people = crowd(6)
    for i in (0, 1, 2):
        people[i] = replace(people[i], dies_at=(1, 3))
    logs, state, _ = run(people, rounds=1)
    assert told(logs) == [set(), {NAMES[i] for i in (3, 4, 5)}]
    assert "3 of 6 masked vectors came, 4 are needed" in logs[0].refused[NAMES[5]]
    np.testing.assert_allclose(flatten(state.weights), 4.0, atol=1e-6)
    assert state.accepted_rounds == 1


def test_two_miners_are_never_summed() -> None:
    logs, _, fleet = run(crowd(2), deadline=3.0)
    assert logs == []
    assert fleet.orders == []


def test_a_quorum_holds_here_too() -> None:
    people = crowd(5)
    people[4] = replace(people[4], dies_at=(1, 3))
    logs, _, _ = run(people, quorum=5, deadline=6.0)
    assert told(logs) == [set()]
    assert "4 of 5 updates" in logs[0].refused[NAMES[0]]


def test_a_straggler_in_training_is_not_waited_for_and_is_not_unmasked() -> None:
    people = crowd(5)
    logs, _, fleet = run([*people[:4], replace(people[4], after=0.7)], rounds=3)
    assert told(logs)[0] in ({NAMES[i] for i in range(4)}, {NAMES[i] for i in range(5)})
    shown = [decode_as(REPLY, data) for _, _, data in fleet.answers if data]
    assert {type(reply) for reply in shown} >= {Advert, Dealt, MaskedUpdate, Consent, Reveal}


def test_claims_are_held_to_what_is_registered() -> None:
    people = crowd(4)
    people[3] = replace(people[3], examples=11)
    logs, _, _ = run(people, registered={NAMES[3]: 10})
    assert told(logs) == [{NAMES[i] for i in range(3)}]
    assert "11 examples, registered 10" in logs[0].refused[NAMES[3]]


def test_a_boaster_weighs_and_is_paid_by_the_cap() -> None:
    people = [Person(i, 1.0) for i in range(4)]
    people[3] = replace(people[3], value=-1.0, examples=100_000)
    logs, state, _ = run(people, registered={NAMES[3]: 1 << 30})
    assert logs[0].accepted[NAMES[3]] == 40
    assert logs[0].claimed[NAMES[3]] == 100_000
    np.testing.assert_allclose(flatten(state.weights), (30 - 40) / 70, atol=1e-6)


@pytest.mark.parametrize(
    ("step", "twist", "words"),
    [
        (Advert, lambda a: replace(a, examples=9), "not by node key"),
        (Advert, lambda a: replace(a, name=NAMES[0]), "another miner's"),
        (Advert, lambda a: Reveal(()), "expected a Advert"),
        (Dealt, lambda d: replace(d, sealed=d.sealed[:-1]), "the roster has 4"),
        (MaskedUpdate, lambda m: replace(m, vector=m.vector[:-8]), "48 bytes"),
        (MaskedUpdate, lambda m: replace(m, held=m.held[:-1]), "digests of shares"),
    ],
)
def test_what_is_malformed_costs_its_sender_its_place(step: type, twist: Twist, words: str) -> None:
    people = crowd(4)
    people[3] = replace(people[3], twist=lambda reply: twist(reply) if isinstance(reply, step) else reply)
    logs, _, _ = run(people)
    assert told(logs) == [{NAMES[i] for i in range(3)}]
    assert words in logs[0].refused[NAMES[3]]


def test_garbage_instead_of_a_masked_vector_spoils_one_round_and_says_so() -> None:
    people = crowd(4)
    people[3] = replace(
        people[3], twist=lambda r: replace(r, vector=bytes(range(56))) if isinstance(r, MaskedUpdate) else r, dies_at=(2, 1)
    )
    logs, state, _ = run(people)
    assert told(logs) == [set(), {NAMES[i] for i in range(3)}]
    assert "out of range" in logs[0].refused[NAMES[0]]
    np.testing.assert_allclose(flatten(state.weights), 1.0, atol=1e-6)


def test_a_sum_that_ruins_the_model_is_not_taken() -> None:
    """All that is left of the defences: nobody is blamed, and the model stays what it was."""
    people = [Person(i, 1.0) for i in range(4)]
    good, state, fleet = run(people, rounds=1, floor=0.5)

    def losing(weights: Weights) -> Score:
        score = scored(weights)
        return replace(score, loss=1.0 if score.correct > 0 else 9.0)

    for person in people[:2]:
        person.member._data = lambda _: (np.array([-30.0]), np.zeros(10, dtype=np.int64))
    logs: list[RoundLog] = []
    loop = SecureLoop(
        SPEC, Rules(TEMPLATE, 4.0, 1, practice_floor=0.5), fleet, state, Suite.X25519, members=lambda: set(fleet.people),
        evaluate=losing, now=lambda: fleet.now, pause=fleet.pause, deadline=fleet.now + 2,
    )  # fmt: skip
    loop.run(StopWhen(rounds=2), logs.append)
    assert good[0].accepted
    assert logs
    assert not any(log.accepted for log in logs)
    assert "nobody can say whose" in logs[0].refused[NAMES[3]]
    np.testing.assert_allclose(flatten(state.weights), 1.0, atol=1e-6)


def test_a_part_of_a_sum_that_is_only_too_long_is_taken() -> None:
    people = [Person(i, 1.0) for i in range(4)]
    fleet, first = MemoryFleet({NAMES[person.number]: person for person in people}), initial_weights(SPEC, 0)
    state = LoopState(0, first, first)

    def hill(weights: Weights) -> Score:
        value = float(flatten(weights)[0])
        return Score(round(1000 - 800 * abs(value - 0.25)), 1000, 1.0 if 0 <= value < 0.9 else 9.0)

    logs: list[RoundLog] = []
    loop = SecureLoop(
        SPEC, Rules(TEMPLATE, 4.0, 1, practice_floor=0.8), fleet, state, Suite.X25519, members=lambda: set(fleet.people),
        evaluate=hill, now=lambda: fleet.now, pause=fleet.pause, deadline=60.0,
    )  # fmt: skip
    loop.run(StopWhen(rounds=1), logs.append)
    assert told(logs) == [set(fleet.people)]
    np.testing.assert_allclose(flatten(state.weights)[0], 0.25, atol=1e-6)


def test_a_miner_whose_secrets_do_not_come_back_is_left_out_for_a_while() -> None:
    """It deals wrong shares of its seed: its self mask stays in the sum, and so it can be named."""
    people = crowd(4)
    rng = np.random.default_rng(1)

    def noise(reply: Reply) -> Reply:
        if isinstance(reply, Dealt):
            return replace(reply, sealed=tuple(rng.bytes(len(share)) for share in reply.sealed))
        return reply

    people[3] = replace(people[3], twist=noise)
    logs, _, _ = run(people, rounds=2)
    assert told(logs) == [set(), *[{NAMES[i] for i in range(3)}] * 2]
    assert f"they could: {NAMES[3].hex()[:16]}; it dealt wrong shares" in logs[0].refused[NAMES[0]]
    assert [log.participants for log in logs] == [4, 3, 3]
    assert "left out of rounds 2 to 11: it dealt wrong shares in round 1" in logs[1].refused[NAMES[3]]
    assert (logs[1].heard, logs[1].silent) == (set(NAMES[:3]), set()), "who is not asked is neither"


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_miner_that_no_order_reaches_is_neither_heard_nor_silent(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    send = MemoryFleet.instruct

    def all_but_the_last(self: MemoryFleet, blob: bytes, miners: list[bytes], number: int, ttl_s: float) -> dict[str, bytes]:
        at = STEPS[type(decode_as(ORDER, blob))]
        return send(self, blob, [m for m in miners if at != step or m != NAMES[3]], number, ttl_s)

    monkeypatch.setattr(MemoryFleet, "instruct", all_but_the_last)
    logs, _, _ = run(crowd(4))
    assert "not reached" in logs[0].refused[NAMES[3]]
    assert (logs[0].heard, logs[0].silent) == (set(NAMES[:3]), set())


def test_who_answers_with_what_is_refused_is_silent() -> None:
    people = crowd(4)
    people[3] = replace(people[3], examples=11)
    logs, _, _ = run(people, registered={NAMES[3]: 10})
    assert "registered 10" in logs[0].refused[NAMES[3]]
    assert (logs[0].heard, logs[0].silent) == (set(NAMES[:3]), {NAMES[3]})


def test_who_reveals_wrong_shares_is_named_and_left_out_and_the_round_counts() -> None:
    people = crowd(4)

    def lie(reply: Reply) -> Reply:
        return Reveal(tuple(bytes(33) for _ in reply.shares)) if isinstance(reply, Reveal) else reply

    people[3] = replace(people[3], twist=lie)
    logs, _, _ = run(people, rounds=2)
    assert told(logs) == [{NAMES[i] for i in range(4)}, {NAMES[i] for i in range(3)}]
    assert "reveal of round 1: 4 of the shares are not those" in logs[1].refused[NAMES[3]]


def test_two_who_contradict_each_other_are_not_asked_together_again() -> None:
    """A dealer of wrong shares and one that drops out end a round. Nobody is at fault for certain; the next rounds go on."""
    people = crowd(6)

    def some(reply: Reply) -> Reply:
        if isinstance(reply, Dealt):
            return replace(reply, commitments=(*reply.commitments[:4], bytes(64), bytes(64)))
        return reply

    people[0] = replace(people[0], twist=some)
    people[3] = replace(people[3], dies_at=(1, 3))
    logs, _, _ = run(people, rounds=2)
    assert told(logs) == [set(), *[{NAMES[i] for i in (1, 2, 4, 5)}] * 2]
    assert "nobody can say who is right" in logs[1].refused[NAMES[0]]


def test_who_breaks_the_protocol_again_is_left_out_for_twice_as_long() -> None:
    people = crowd(4)
    _, state, fleet = run(people)
    loop = SecureLoop(
        SPEC, Rules(TEMPLATE, 4.0, 1), fleet, state, Suite.X25519, members=lambda: set(fleet.people), evaluate=scored,
        now=lambda: fleet.now, pause=fleet.pause, deadline=fleet.now + 2,
    )  # fmt: skip
    ends = []
    for _ in range(3):
        loop._leave_out(NAMES[0], 5, "why")
        ends.append(loop._left_out[NAMES[0]].until)
    assert ends == [15, 25, 45]
    assert loop._left_out_of(45) == {NAMES[0]}
    assert loop._left_out_of(46) == set()


# A miner's part


def member(least: int = 3) -> SecureMember:
    rows = (np.array([1.0]), np.zeros(10, dtype=np.int64))
    private, name = NODES[0]
    return SecureMember(lambda _: rows, keys.private_key_of(private), name, lambda *_: None, Suite.X25519, NO_NOISE, least)


def test_a_miner_takes_part_in_a_round_once() -> None:
    """Two sums of one round, over others each, would differ by single updates."""
    me = member()
    me.obey(Invite(JOB, 4), RUN, 3)
    for number in (3, 2):
        with pytest.raises(SequenceError, match="its last was 3"):
            me.obey(Invite(JOB, 4), RUN, number)
    me.obey(Invite(JOB, 4), RUN, 4)
    with pytest.raises(SequenceError, match="its last was 4"):
        me.obey(Invite(JOB, 4), RUN + 1, 4)
    me.obey(Invite(JOB, 4), RUN + 1, 5)
    me.obey(Invite(b"k" * 32, 4), RUN + 1, 1)


def test_orders_of_another_round_run_or_sum_are_refused() -> None:
    me = member()
    with pytest.raises(SequenceError, match="takes part in no sum"):
        me.obey(Roster(()), RUN, 1)
    me.obey(Invite(JOB, 4), RUN, 1)
    for run_id, number in ((RUN, 2), (RUN + 1, 1)):
        with pytest.raises(SequenceError, match="takes part in no sum"):
            me.obey(Roster(()), run_id, number)


def test_a_weight_factor_that_singles_out_is_refused() -> None:
    for factor in (0, 17, 65_535):
        with pytest.raises(CheatingError, match="weight factor"):
            member().obey(Invite(JOB, factor), RUN, 1)


def test_without_rows_there_is_no_part() -> None:
    private, name = NODES[0]
    me = SecureMember(lambda _: None, keys.private_key_of(private), name, lambda *_: None, Suite.X25519, NO_NOISE, 3)
    with pytest.raises(NotFoundError, match="no rows"):
        me.obey(Invite(JOB, 4), RUN, 1)


@pytest.mark.parametrize(
    ("change", "error"),
    [({"round": 2}, CheatingError), ({"job_id": b"k" * 32}, CheatingError), ({"precision": Precision.FLOAT16}, InputError)],
)
def test_an_instruction_must_be_of_the_sum(change: dict[str, object], error: type[PoflError]) -> None:
    _, _, fleet = run(crowd(3))
    people = crowd(3)
    for p in people:
        p.member.obey(Invite(JOB, 4), RUN, 1)
    order = next(order for miner, _, order in fleet.orders if isinstance(order, TrainMasked) and miner == NAMES[0])
    with pytest.raises(error):
        people[0].member.obey(TrainMasked(replace(order.instruction, **change), order.inbox), RUN, 1)


@pytest.mark.parametrize("first", [0, 1, 2, 3, 4, 5, 255])
def test_a_plain_instruction_is_not_answered(first: int) -> None:
    """A manager that asks for a plain update, though the pool said that it would not see one, gets none."""
    private, name = NODES[0]
    rows = (np.array([1.0]), np.zeros(10, dtype=np.int64))
    pool = bytes([9]) + bytes(31)
    app = build_secure_app(lambda _: rows, pool, keys.private_key_of(private), name, lambda *_: None, Suite.X25519)
    message = make_message(
        content=blobs.pack(encode(replace(TEMPLATE, job_id=bytes([first]) * 32, round=1, vector=vector_to_bytes(np.zeros(6))))),
        metadata=Metadata(RUN, "m", 1, 2, "", "1", 0.0, 10.0, MessageType.TRAIN),
    )
    answer = decode(Answer, blobs.unpack(app(message, Context(RUN, 2, {}, RecordDict(), {})).content))
    assert answer.outcome is Outcome.FAILED
    assert "nothing else is answered" in answer.reason
    assert answer.sealed == b""


def test_orders_and_replies_survive_the_wire() -> None:
    _, _, fleet = run(crowd(3))
    for _, _, order in fleet.orders:
        assert decode_as(ORDER, encode_as(ORDER, order)) == order
    assert {type(order) for *_, order in fleet.orders} == set(STEPS)
    assert session_of(1, 2, JOB, 4) != session_of(1, 3, JOB, 4)
    with pytest.raises(MalformedError):
        decode_as(ORDER, encode(TEMPLATE))


def test_an_unreachable_fleet_ends_the_round_not_the_loop() -> None:
    people = crowd(3)
    fleet = MemoryFleet({NAMES[p.number]: p for p in people})
    first = initial_weights(SPEC, 0)
    failing = [True]

    class Shaky(MemoryFleet):
        def instruct(self, blob: bytes, miners: list[bytes], round_number: int, ttl_s: float) -> dict[str, bytes]:
            if isinstance(decode_as(ORDER, blob), Agree) and failing.pop():
                failing.append(False)
                raise UnavailableError("the guard does not take instructions")
            return super().instruct(blob, miners, round_number, ttl_s)

    fleet = Shaky(fleet.people)
    logs: list[RoundLog] = []
    loop = SecureLoop(
        SPEC, Rules(TEMPLATE, 4.0, 1), fleet, LoopState(0, first, first), Suite.X25519, members=lambda: set(fleet.people),
        evaluate=scored, now=lambda: fleet.now, pause=fleet.pause, deadline=30.0,
    )  # fmt: skip
    loop.run(StopWhen(rounds=1), logs.append)
    assert [bool(log.accepted) for log in logs] == [False, True]
    assert "does not take" in logs[0].refused[NAMES[0]]


def test_broken_orders_are_one_typed_error_each() -> None:
    """Whatever bytes a manager sends at whatever step, a miner answers that it failed, and its thread lives."""
    _, _, fleet = run(crowd(3))
    rng = np.random.default_rng(3)
    orders = [(encode_as(ORDER, order), STEPS[type(order)]) for miner, _, order in fleet.orders if miner == NAMES[0]]
    assert [step for _, step in orders] == [1, 2, 3, 4, 5]
    refused = 0
    for blob, step in orders:
        for _ in range(60):
            broken = bytearray(blob)
            for _ in range(int(rng.integers(1, 4))):
                broken[rng.integers(len(broken))] = rng.integers(256)
            data = bytes(broken[: rng.integers(1, len(broken) + 1)]) if rng.random() < 0.3 else bytes(broken)
            me = Person(0, 1.0)
            with contextlib.suppress(PoflError):
                if step > 1:
                    me.member.obey(Invite(JOB, 4), RUN, 1)
                me.member.obey(decode_as(ORDER, data), RUN, 1)
                continue
            refused += 1
    assert refused > 100


def test_a_manager_that_was_killed_in_a_round_goes_on_with_the_next() -> None:
    """It counts from the last round that it saved; the one it died in is over for who was in it."""
    people = crowd(3)
    _, state, fleet = run(people, rounds=2)
    state.round -= 1
    fleet.run_id = RUN + 1
    logs: list[RoundLog] = []
    loop = SecureLoop(
        SPEC, Rules(TEMPLATE, 4.0, 1), fleet, state, Suite.X25519, members=lambda: set(fleet.people), evaluate=scored,
        now=lambda: fleet.now, pause=fleet.pause, deadline=60.0,
    )  # fmt: skip
    loop.run(StopWhen(rounds=3), logs.append)
    assert [(log.number, len(log.accepted)) for log in logs] == [(2, 0), (3, 3)]
    assert "round 2 of this task is over" in logs[0].refused[NAMES[0]]
    np.testing.assert_allclose(flatten(state.weights), 3.0, atol=1e-6)
