"""Attack 12: wrong messages in every state of evaluation, audit and stored check.

Each test walks one protocol from its first message to its last. Before every honest message, whichever side gets it, it
delivers the wrong ones of one kind. Each must end at once in a typed error and leave the machine as it was, down to its last
array; then the honest message is taken, and the protocol ends as if nothing had happened.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from core.codec import decode_as, encode_as
from core.crypto.homomorphic import PARAMS
from core.errors import InputError, LimitError, MalformedError, SequenceError
from core.ids import NodeId
from core.verification.audit_node import StoredNode, Valid
from core.verification.audit_requester import StoredRequester
from core.verification.body import make_body
from core.verification.field import T
from core.verification.messages import (
    MESSAGE,
    PART_BYTES,
    BatchAccepted,
    Challenges,
    Envelope,
    Hints,
    KnowledgeChallenge,
    KnowledgeOpening,
    KnowledgeShares,
    LayerValues,
    MaskedModel,
    MaskedProducts,
    Message,
    Part,
    StoredOpened,
    TransferRequest,
    ZeroNumbers,
    ZeroOpenings,
    ZeroQueries,
)
from core.verification.session import Session
from tests.models import random_model
from tests.seeded import SeededRng
from tests.verification import VALIDATOR, Claims, Marks, claim_of, make_audit, make_evaluation, small_world

WORLD = small_world()
MODEL = random_model(WORLD.task.family.dims, WORLD.task.family.activation, 0)
TRUE_N = MODEL.count(WORLD.plain.features, WORLD.plain.labels)
CLAIM = claim_of(WORLD, make_body(WORLD.pk, MODEL, SeededRng("walked body"))[0], TRUE_N)

Step = tuple[Session, Envelope]
Mutation = Callable[[Envelope, Sequence[Envelope]], Iterator[Envelope]]
_FIXED = {
    "task",
    "_head_before",
    "_rng",
    "_test_set",
    "_sk",
    "_pk",
    "_key",
    "_book",
    "_standing",
    "_circuit",
    "_model",
    "_claim",
}
"""What a session reads and never changes, and what it sets before it looks at a message. Generators may move:
requester.sessions sets them anew for each message."""


def evaluation(seed: int) -> Iterator[Step]:
    """Every honest message with who gets it, delivered when the next one is asked for."""
    run = make_evaluation(WORLD, MODEL, seed=seed)
    yield from _deliver(run.pool, run.requester, run.pool.start())
    run.standing.committed = run.c_w
    yield from _deliver(run.pool, run.requester, run.pool.evaluate(MODEL, run.c_w))
    assert run.pool.result is not None
    assert run.pool.result.correct == TRUE_N


def audit(seed: int) -> Iterator[Step]:
    run = make_audit(WORLD, CLAIM, seed=seed)
    yield from _deliver(run.node, run.requester, run.node.start())
    assert isinstance(run.node.finding, Valid)


def stored(seed: int) -> Iterator[Step]:
    session, node = hashlib.sha256(b"walk %d" % seed).digest(), NodeId(VALIDATOR.public_key)
    asks = StoredNode(WORLD.task, session, node, WORLD.pk, WORLD.encrypted, SeededRng(f"asks {seed}"))
    proves = StoredRequester(WORLD.task, session, node, WORLD.sk, WORLD.signer, Claims(), Marks(), SeededRng(f"proves {seed}"))
    yield from _deliver(asks, proves, asks.start())
    assert asks.is_passed


def _deliver(caller: Session, requester: Session, opening: Sequence[Envelope]) -> Iterator[Step]:
    waiting: list[Step] = [(requester, envelope) for envelope in opening]
    while waiting:
        machine, envelope = waiting.pop(0)
        yield machine, envelope
        other = caller if machine is requester else requester
        waiting += [(other, reply) for reply in machine.step(envelope)]


PROTOCOLS = {"evaluation": evaluation, "audit": audit, "stored": stored}
OTHERS = {name: [envelope for _, envelope in protocol(77)] for name, protocol in PROTOCOLS.items()}
"""The messages of other sessions, both directions."""


def _with(envelope: Envelope, change: Callable[[Any], Iterator[Any]]) -> Iterator[Envelope]:
    """The envelope with one field of its message changed in each way."""
    message: Any = envelope.message
    for field in dataclasses.fields(message):
        for value in change(getattr(message, field.name)):
            yield dataclasses.replace(envelope, message=dataclasses.replace(message, **{field.name: value}))


def truncated(envelope: Envelope, _: Sequence[Envelope]) -> Iterator[Envelope]:
    def cut(value: Any) -> Iterator[Any]:
        if isinstance(value, bytes | tuple) and value:
            yield from (value[:-1], value[: len(value) // 2], value[:0])

    if not isinstance(envelope.message, ZeroOpenings):  # its signature covers its length: a lie, not a malformed message
        yield from _with(envelope, cut)


def oversized(envelope: Envelope, _: Sequence[Envelope]) -> Iterator[Envelope]:
    def grow(value: Any) -> Iterator[Any]:
        if isinstance(value, bytes):
            yield from (value + b"\x00", value + bytes(64), value + value + b"\x00")
        elif isinstance(value, tuple):
            yield from (((*value, value[-1]), value * 2) if value else ())

    if not isinstance(envelope.message, ZeroOpenings):
        yield from _with(envelope, grow)
    # Announced, not sent: refused before a byte of it is kept.
    for count in (2000, 65535):
        yield dataclasses.replace(envelope, message=Part(0, count, bytes(PART_BYTES)))


def out_of_range(envelope: Envelope, _: Sequence[Envelope]) -> Iterator[Envelope]:
    message: Any = envelope.message
    polynomial = b"\xff" * 25
    fields: tuple[str, ...] = ()
    match message:
        case KnowledgeChallenge():
            fields = ("gamma",)
        case KnowledgeOpening():
            fields = ("h",)
        case KnowledgeShares():
            fields = ("g",)
        case MaskedModel():
            fields = ("e",)
        case TransferRequest():
            fields = ("v",)
        case LayerValues():
            fields = ("z",)
        case MaskedProducts():
            fields = ("w",)
        case Hints(hints=hints):
            yield dataclasses.replace(envelope, message=Hints((*hints[:-1], polynomial + hints[-1][25:])))
        case Challenges(chi=chi):
            for value in (T, (1 << 64) - 1):
                yield dataclasses.replace(envelope, message=Challenges((*chi[:-1], value)))
        case ZeroNumbers(numbers=numbers):
            for value in (T, (1 << 64) - 1):
                yield dataclasses.replace(envelope, message=ZeroNumbers((*numbers[:-1], value)))
        case ZeroQueries(queries=queries):
            last = queries[-1]
            for prime, start in zip(PARAMS.primes, range(0, 24, 8), strict=True):
                high = last.x0[:start] + prime.to_bytes(8, "big") + last.x0[start + 8 :]
                yield dataclasses.replace(envelope, message=ZeroQueries((*queries[:-1], dataclasses.replace(last, x0=high))))
            for x1 in (polynomial + last.x1[25:], bytes(len(last.x1))):
                yield dataclasses.replace(envelope, message=ZeroQueries((*queries[:-1], dataclasses.replace(last, x1=x1))))
    for name in fields:
        values = getattr(message, name)
        for value in (T.to_bytes(5, "little"), b"\xff" * 5):
            for changed in (value + values[5:], values[:-5] + value):
                yield dataclasses.replace(envelope, message=dataclasses.replace(message, **{name: changed}))


def reordered(envelope: Envelope, earlier: Sequence[Envelope]) -> Iterator[Envelope]:
    """Every other kind of message of every protocol in this one's place; this one before its time, or in another's place."""
    kinds: dict[type, Message] = {BatchAccepted: BatchAccepted(bytes(32)), StoredOpened: StoredOpened()}
    for messages in OTHERS.values():
        kinds |= {type(other.message): other.message for other in messages if not isinstance(other.message, Part)}
    for kind, message in kinds.items():
        if kind is not type(envelope.message):
            yield dataclasses.replace(envelope, message=message)
    for index in (envelope.index + 1, envelope.index + 2, (1 << 32) - 1):
        yield dataclasses.replace(envelope, index=index)
    for other in earlier:
        yield dataclasses.replace(envelope, index=other.index)
    if isinstance(envelope.message, Part):
        part = envelope.message
        yield dataclasses.replace(envelope, message=dataclasses.replace(part, index=part.index + 1))
        yield dataclasses.replace(envelope, message=dataclasses.replace(part, count=part.count + 1, index=part.index + 1))


def repeated(envelope: Envelope, earlier: Sequence[Envelope]) -> Iterator[Envelope]:
    """What was taken already, under the next number. A first part may begin any message, so it is no repetition."""
    for other in earlier:
        if type(other.message) not in (type(envelope.message), Part):
            yield dataclasses.replace(other, index=envelope.index)


def of_another_session(envelope: Envelope, _: Sequence[Envelope]) -> Iterator[Envelope]:
    for session in (bytes(32), envelope.session[::-1], envelope.session[:-1], b""):
        yield dataclasses.replace(envelope, session=session)
    for messages in OTHERS.values():
        yield from messages


def order_of(machine: Session) -> tuple[object, ...]:
    """Where a session stands: cheap to compare after each message; ``fingerprint`` is everything."""
    parts, received = len(machine._parts), len(machine._received)
    return machine.transcript.head, machine._expected, machine._sent, parts, received, machine.is_over


MUTATIONS: tuple[Mutation, ...] = (truncated, oversized, out_of_range, reordered, repeated, of_another_session)


def fingerprint(value: object) -> bytes:
    """Of everything that a machine may change, arrays and nested machines included."""
    out = hashlib.sha256(type(value).__name__.encode())
    if isinstance(value, np.ndarray):
        out.update(str((value.shape, value.dtype)).encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, dict):
        for name in sorted(value, key=repr):
            if name not in _FIXED:
                out.update(repr(name).encode() + fingerprint(value[name]))
    elif isinstance(value, list | tuple):
        out.update(b"".join(fingerprint(item) for item in value))
    elif isinstance(value, set | frozenset):
        out.update(b"".join(sorted(fingerprint(item) for item in value)))
    elif isinstance(value, type) or callable(value):
        pass
    elif hasattr(value, "__dict__"):
        out.update(fingerprint(vars(value)))
    elif hasattr(value, "__slots__"):
        out.update(fingerprint({name: getattr(value, name, None) for name in value.__slots__}))
    else:
        out.update(repr(value).encode())
    return out.digest()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: str(mutation.__name__))
@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_every_state_refuses(protocol: str, mutation: Mutation) -> None:
    """Fails without the checks of lengths and ranges (unpack_values, unpack, ZeroQuery), and without the order, session, number
    and part checks of Session and its rollback of the transcript."""
    refused, taken = 0, dict[int, list[Envelope]]()
    for machine, envelope in PROTOCOLS[protocol](0):
        earlier = taken.setdefault(id(machine), [])
        before, order = fingerprint(machine), order_of(machine)
        for wrong in mutation(envelope, earlier):
            with pytest.raises((InputError, SequenceError)):
                machine.step(wrong)
            assert order_of(machine) == order, (type(envelope.message), wrong.index, type(wrong.message))
            refused += 1
        assert fingerprint(machine) == before, type(envelope.message)
        earlier.append(envelope)
    assert refused >= {"truncated": 4, "out_of_range": 7, "repeated": 1}.get(mutation.__name__, 20)


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_the_same_message_again_gets_the_same_bytes_and_moves_nothing(protocol: str) -> None:
    """Attacks 9 and 12, duplicates, at every later state and at the end. Fails without the stored replies in Session."""
    seen: list[tuple[Session, Envelope]] = []
    for machine, envelope in PROTOCOLS[protocol](0):
        before, order = fingerprint(machine), order_of(machine)
        for other, old in seen:
            if other is machine:
                assert machine.step(old) == machine.step(old)
                assert order_of(machine) == order
        assert fingerprint(machine) == before
        seen.append((machine, envelope))
    requester = seen[0][0]
    said = [envelope for machine, envelope in seen if machine is not requester]
    assert [reply for machine, envelope in seen if machine is requester for reply in machine.step(envelope)] == said
    asked = [envelope for machine, envelope in seen if machine is requester]
    answers = [reply for machine, envelope in seen if machine is not requester for reply in machine.step(envelope)]
    assert answers == [envelope for envelope in asked if envelope in answers] != []


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_encodings_cut_or_followed_by_anything_are_refused(protocol: str) -> None:
    """Attack 12 before any machine: the decoder. Fails without the codec's checks of ends and limits."""
    for envelope in OTHERS[protocol]:
        data = encode_as(MESSAGE, envelope.message)
        cut = [data[:end] for end in (0, 1, len(data) // 2, len(data) - 1) if end < len(data)]
        for bad in (*cut, data + b"\x00", b"\x00" + data, b"\xff" + data[1:]):
            with pytest.raises((MalformedError, LimitError)):
                decode_as(MESSAGE, bad, len(data) + 16)
        with pytest.raises(LimitError):
            decode_as(MESSAGE, data, len(data) - 1)
