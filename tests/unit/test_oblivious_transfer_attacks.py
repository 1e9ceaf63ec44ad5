"""Cheating in oblivious transfer: what each check stops, and what works without it."""

from __future__ import annotations

import copy
import functools
from dataclasses import replace

import nacl.bindings as sodium
import numpy as np
import pytest

from core.crypto import prg
from core.crypto.hashing import digest
from core.crypto.oblivious_transfer import (
    Choices,
    Ciphertexts,
    ExtensionReceiver,
    ExtensionSender,
    SetupReply,
    SetupRequest,
    extension,
    vole,
)
from core.crypto.oblivious_transfer.base import _hash_to_point
from core.crypto.oblivious_transfer.extension import State
from core.crypto.oblivious_transfer.messages import column_bytes
from core.errors import CheatingError, SequenceError
from tests.seeded import SeededRng
from tests.unit.test_oblivious_transfer import SESSION, Raw, inputs, ready
from tests.unit.test_signing import NON_CANONICAL, SMALL_ORDER

ORDER_FOUR = bytes(32)
NOT_ON_CURVE = (2).to_bytes(32, "little")


def mixed_order() -> bytes:
    """A point of the curve outside the prime-order group: base point plus a point of order four."""
    return sodium.crypto_core_ed25519_add(sodium.crypto_scalarmult_ed25519_base_noclamp((1).to_bytes(32, "little")), ORDER_FOUR)


BAD_POINTS = [*(bytes.fromhex(point) for point in SMALL_ORDER + NON_CANONICAL), mixed_order(), NOT_ON_CURVE]


def put(points: bytes, place: int, point: bytes) -> bytes:
    return points[: 32 * place] + point + points[32 * (place + 1) :]


class Asked:
    """A sender that waits for a reply, to be copied."""

    def __init__(self, seed: int) -> None:
        self._sender = ExtensionSender(SESSION, SeededRng(f"{seed} asked"))
        self.request_sent = self._sender.request()

    def machine(self) -> ExtensionSender:
        return copy.deepcopy(self._sender)


@functools.cache
def asked_and_reply(seed: int) -> tuple[Asked, SetupReply]:
    asked = Asked(seed)
    return asked, ExtensionReceiver(SESSION, SeededRng(f"{seed} replies")).setup(asked.request_sent)


@pytest.mark.parametrize("point", BAD_POINTS, ids=lambda point: point.hex()[:8])
def test_bad_base_points_are_refused(point: bytes, seed: int) -> None:
    """Identity, small order, non-canonical, outside the prime-order group, off the curve: at every kind of place.

    With a point of small order the sender's ``s·r`` is one of eight values, and both keys are known to the receiver.
    Seen to fail with the check of points taken out.
    """
    asked, reply = asked_and_reply(seed)
    request = asked.request_sent
    for place in (0, 1, 9):
        receiver = ExtensionReceiver(SESSION, SeededRng(seed))
        with pytest.raises(CheatingError, match=f"base point {place} "):
            receiver.setup(SetupRequest(SESSION, put(request.points, place, point)))
        assert receiver.state is State.FAILED
    sender = asked.machine()
    with pytest.raises(CheatingError, match="base point 3 "):
        sender.finish(replace(reply, points=put(reply.points, 3, point)))
    assert sender.state is State.FAILED
    with pytest.raises(SequenceError):
        sender.finish(reply)


def test_points_that_cancel_are_refused(seed: int) -> None:
    """r_0 = -H(r_1) makes the sender's key 0 a hash of the identity, whatever s is."""
    request = ExtensionSender(SESSION, SeededRng(seed)).request()
    zero = sodium.crypto_core_ed25519_sub(request.points[:32], request.points[:32])
    negative = sodium.crypto_core_ed25519_sub(zero, _hash_to_point(SESSION, 0, 0, request.points[32:64]))
    with pytest.raises(CheatingError, match="identity"):
        ExtensionReceiver(SESSION, SeededRng(seed)).setup(SetupRequest(SESSION, put(request.points, 0, negative)))


@pytest.mark.parametrize("field", ["sums", "checks"])
@pytest.mark.parametrize("trees", [range(64), range(12)], ids=["all", "some"])
def test_inconsistent_trees_are_caught_in_one_wording(field: str, trees: range, seed: int) -> None:
    """Both sums of a tree changed: the leaf made from them is wrong whatever the point is.

    Seen to fail with the comparison in ``open_trees`` taken out.
    """
    asked, reply = asked_and_reply(seed)
    sender = asked.machine()
    body = bytearray(getattr(reply, field))
    for tree in trees:
        body[64 * tree] ^= 1
        body[64 * tree + 32] ^= 1
    with pytest.raises(CheatingError) as caught:
        sender.finish(replace(reply, **{field: bytes(body)}))
    assert caught.value.message == "the seeds of the oblivious transfer do not come from honest trees"
    assert caught.value.values == {}
    assert sender.state is State.FAILED


class CheatingReceiver(ExtensionReceiver):
    """In row i she uses choice 1 in tree i and 0 in all others, so row i is t_i ⊕ (Δ of tree i only)."""

    def cheat(self, count: int) -> Choices:
        size = column_bytes(count)
        own, columns = vole.receiver_columns(vole.leaf_streams(self._trees, size, self.batch))
        wanted = np.zeros((64, 8 * size), np.uint8)
        wanted[np.arange(64), np.arange(64)] = 1
        corrections = own ^ np.packbits(wanted, axis=1, bitorder="little").view("<u8")
        body = corrections.tobytes()
        # the best she can claim: hashes as if all her choices were zero
        hashes = vole.universal_hash(columns, self._challenge(count, body))
        self.rows = vole.rows_of(columns, count)
        return Choices(SESSION, self.batch, count, body, bytes(16), hashes.tobytes())

    def offset(self, sent: Ciphertexts, known: Raw) -> int:
        """The sender's whole offset, from messages 0 that she knows: two bits a row, four guesses each."""
        pairs = np.frombuffer(sent.pairs, np.uint8).reshape(-1, 2, 16)
        hash_ = prg.TweakHash(sent.hash_key)
        found = 0
        for tree in range(64):
            for guess in range(4):
                row = int.from_bytes(prg.as_bytes(self.rows[tree]).tobytes(), "little") ^ guess << (2 * tree)
                label = prg.as_labels(np.frombuffer(row.to_bytes(16, "little"), np.uint8)).reshape(1, 2)
                pad = prg.as_bytes(hash_(label, np.array([tree], np.uint64)))[0]
                if (pairs[tree, 0] ^ pad == known[tree]).all():
                    found |= guess << (2 * tree)
        return found


def cheating(seed: int) -> tuple[ExtensionSender, CheatingReceiver]:
    sender = ExtensionSender(SESSION, SeededRng(f"{seed} s"))
    receiver = CheatingReceiver(SESSION, SeededRng(f"{seed} r"))
    sender.finish(receiver.setup(sender.request()))
    return sender, receiver


def test_inconsistent_columns_are_caught(seed: int) -> None:
    sender, receiver = cheating(seed)
    messages, _ = inputs(64, seed)
    with pytest.raises(CheatingError, match="inconsistent"):
        sender.send(receiver.cheat(64), messages)
    assert sender.state is State.FAILED
    with pytest.raises(SequenceError):
        sender.send(Choices(SESSION, 0, 64, bytes(64 * column_bytes(64)), bytes(16), bytes(2048)), messages)


def test_without_the_check_the_same_columns_read_everything(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why the check is there: with 64 messages known, the offset, hence every other message of the session, is read."""
    monkeypatch.setattr(ExtensionSender, "_check", lambda *_: None)
    sender, receiver = cheating(seed)
    messages, _ = inputs(64, seed)
    sent = sender.send(receiver.cheat(64), messages)
    wanted = int.from_bytes(prg.as_bytes(sender._offset()).tobytes(), "little")
    assert receiver.offset(sent, messages[:, 0]) == wanted


def test_the_check_covers_every_column_and_the_choices(seed: int) -> None:
    messages, bits = inputs(64, seed)
    for part, place in [("choice_hash", 0), ("choice_hash", 15), ("column_hashes", 0), ("column_hashes", 2047)]:
        sender, receiver = ready(seed)
        good = receiver.choose(bits)
        body = bytearray(getattr(good, part))
        body[place] ^= 0x80
        with pytest.raises(CheatingError):
            sender.send(replace(good, **{part: bytes(body)}), messages)  # type: ignore[arg-type]


def test_the_challenge_depends_on_everything_sent_before(seed: int) -> None:
    """If it did not, the receiver could search for columns whose hash she likes."""
    sender, _ = ready(seed)
    other, _ = ready(seed + 1)
    corrections = bytes(100)
    challenges = {
        sender._challenge(1, corrections), sender._challenge(2, corrections),
        sender._challenge(1, corrections[:-1] + b"\1"), other._challenge(1, corrections),
    }  # fmt: skip
    sender.batch = 1
    challenges.add(sender._challenge(1, corrections))
    assert len(challenges) == 5


def test_a_repeated_row_is_hashed_under_another_tweak(seed: int) -> None:
    """Equal rows must not give equal pads: the index is in the hash."""
    hash_ = prg.TweakHash(bytes(16))
    label = np.ones((2, 2), np.uint64)
    first, second = hash_(label, np.arange(2, dtype=np.uint64))
    assert not (first == second).all()


def test_messages_of_another_session_do_not_fit(seed: int) -> None:
    """Even with the session field rewritten, keys and challenge are bound to the session."""
    sender = ExtensionSender(SESSION, SeededRng(seed))
    stranger = ExtensionReceiver(b"\x33" * 32, SeededRng(seed))
    reply = stranger.setup(SetupRequest(b"\x33" * 32, sender.request().points))
    with pytest.raises(CheatingError):
        sender.finish(SetupReply(SESSION, reply.points, reply.sums, reply.checks))


def test_the_setup_is_pinned() -> None:
    """A known answer for the whole transcript: a change of any byte is a change of protocol."""
    sender = ExtensionSender(SESSION, SeededRng("pinned sender"))
    receiver = ExtensionReceiver(SESSION, SeededRng("pinned receiver"))
    request = sender.request()
    reply = receiver.setup(request)
    sender.finish(reply)
    messages, bits = inputs(70, 1)
    choices = receiver.choose(bits)
    sent = sender.send(choices, messages)
    pinned = digest(b"pinned", request.encode(), reply.encode(), choices.encode(), sent.encode())
    assert extension.State.READY is sender.state
    assert pinned.hex() == "712e9a3a4663dbb20391dca26d8bc2d1cca381b85076b62963f2e5fbcda50603"
