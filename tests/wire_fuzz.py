"""Delivers, before every honest message, messages that do not belong; each must raise a typed error and change nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from core.errors import InputError, SequenceError
from core.verification.messages import BatchAccepted, Envelope, Message, StoredOpened
from core.verification.session import Session

# Fields whose change of length is a lie that ends the session, not a malformed message.
_SIGNED = {"ZeroOpenings"}


def wrong_messages(message: Any) -> Iterator[Message]:
    """The same kind of message with one field cut, or longer."""
    if type(message).__name__ in _SIGNED:
        return
    for field in dataclasses.fields(message):
        value = getattr(message, field.name)
        if isinstance(value, bytes):
            yield dataclasses.replace(message, **{field.name: value + b"\x00"})
            if value:
                yield dataclasses.replace(message, **{field.name: value[:-1]})
                yield dataclasses.replace(message, **{field.name: b""})
        elif isinstance(value, tuple) and value:
            yield dataclasses.replace(message, **{field.name: value[:-1]})
            yield dataclasses.replace(message, **{field.name: (*value, value[-1])})


def _wrong_envelopes(envelope: Envelope) -> Iterator[Envelope]:
    yield dataclasses.replace(envelope, session=bytes(32))
    yield dataclasses.replace(envelope, session=envelope.session[:-1])
    yield dataclasses.replace(envelope, index=envelope.index + 1)
    if envelope.index:
        yield dataclasses.replace(envelope, index=envelope.index - 1)
    for other in (BatchAccepted(bytes(32)), StoredOpened()):
        if type(other) is not type(envelope.message):
            yield dataclasses.replace(envelope, message=other)
    for message in wrong_messages(envelope.message):
        yield dataclasses.replace(envelope, message=message)


def _deliver(machine: Session, envelope: Envelope) -> tuple[tuple[Envelope, ...], int]:
    refused = 0
    for wrong in _wrong_envelopes(envelope):
        before = (machine.transcript.head, len(machine.transcript.entries), machine._expected, len(machine._received))
        with pytest.raises((InputError, SequenceError)):
            machine.step(wrong)
        after = (machine.transcript.head, len(machine.transcript.entries), machine._expected, len(machine._received))
        assert after == before, wrong
        assert not machine.is_over
        refused += 1
    replies = machine.step(envelope)
    assert machine.step(envelope) == replies
    return replies, refused


def fuzzed_exchange(caller: Session, requester: Session, opening: Sequence[Envelope]) -> int:
    """As tests.verification.exchange, with refused messages in every state. How many were refused."""
    refused = 0
    to_requester = list(opening)
    while to_requester:
        to_caller: list[Envelope] = []
        for envelope in to_requester:
            replies, count = _deliver(requester, envelope)
            to_caller += replies
            refused += count
        to_requester = []
        for envelope in to_caller:
            replies, count = _deliver(caller, envelope)
            to_requester += replies
            refused += count
    return refused
