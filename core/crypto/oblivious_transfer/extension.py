"""Oblivious transfer extension: SoftSpokenOT with k = 2 (Roy, CRYPTO 2022), as two state machines without I/O.

Why not the protocol of Keller, Orsini and Scholl (2015): the proof of its consistency check does not hold as printed,
as Roy shows. Here the check multiplies every column by a random binary matrix and compares.

The challenge of the check is the hash of everything sent before (Fiat and Shamir), which saves a round trip; the
matrix has 128 rows so that trying many messages offline does not help (docs/adr/0017). A receiver who cheats in one
tree learns two bits of the sender's offset if not caught, and is caught with probability 3/4; then the session ends.

A session makes one set-up and any number of batches. All steps check first and change state last: a MalformedError,
LimitError or SequenceError leaves everything as it was. A CheatingError ends the session.
"""

from __future__ import annotations

import hmac
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from core.crypto import prg
from core.crypto.circuits import Bits
from core.crypto.hashing import digest
from core.crypto.oblivious_transfer import vole
from core.crypto.oblivious_transfer.base import ReceiverKeys, base_choose, base_finish, base_send
from core.crypto.oblivious_transfer.messages import (
    CHECK_ROWS,
    MAX_TRANSFERS,
    SESSION_SIZE,
    Choices,
    Ciphertexts,
    SetupReply,
    SetupRequest,
    check_body,
    column_bytes,
)
from core.crypto.oblivious_transfer.puncture import (
    BLOCKS,
    TRANSFERS,
    Tree,
    base_choices,
    make_trees,
    open_trees,
)
from core.errors import CheatingError, LimitError, MalformedError, SequenceError
from core.ports import Rng

__all__ = ["ExtensionReceiver", "ExtensionSender", "State"]

_SETUP_DOMAIN = b"pofl/ot/setup/v1"
_CHALLENGE_DOMAIN = b"pofl/ot/challenge/v1"


class State(Enum):
    NEW = "new"
    ASKED = "set-up asked for"
    READY = "ready for a batch"
    CHOSEN = "choices sent"
    FAILED = "ended by cheating"


class _Machine:
    """What both sides share: the session, the state, the number of the next batch."""

    def __init__(self, session: bytes, rng: Rng) -> None:
        if len(session) != SESSION_SIZE:
            raise MalformedError(f"a session id has {SESSION_SIZE} bytes, got {len(session)}", size=len(session))
        self._session = session
        self._rng = rng
        self._trees: tuple[Tree, ...] = ()
        self._transcript = b""
        self.state = State.NEW
        self.batch = 0

    def _require(self, state: State, step: str) -> None:
        if self.state is not state:
            raise SequenceError(f"{step}: the transfer is {self.state.value!r}, not {state.value!r}", step=step)

    def _same_session(self, session: bytes) -> None:
        if session != self._session:
            raise MalformedError(f"message of session {session.hex()[:16]}, this is {self._session.hex()[:16]}")

    def _same_batch(self, batch: int) -> None:
        if batch != self.batch:
            raise SequenceError(f"message of batch {batch}, the next is {self.batch}", batch=batch)

    def _challenge(self, count: int, corrections: bytes) -> bytes:
        numbers = self.batch.to_bytes(4, "big") + count.to_bytes(4, "big")
        return digest(_CHALLENGE_DOMAIN, self._session, self._transcript, numbers, corrections)


class ExtensionSender(_Machine):
    """Has two 16-byte messages per transfer and does not learn which one the receiver gets.

    Its secret: one leaf of each tree, together the 128-bit offset between its two pads.
    """

    def __init__(self, session: bytes, rng: Rng) -> None:
        super().__init__(session, rng)
        self._points: tuple[int, ...] = ()
        self._base: tuple[ReceiverKeys, SetupRequest] | None = None

    def request(self) -> SetupRequest:
        """Opens the set-up."""
        self._require(State.NEW, "request")
        points = tuple(byte & 3 for byte in self._rng.bytes(BLOCKS))
        keys, message = base_choose(self._session, base_choices(points), self._rng)
        request = SetupRequest(self._session, message)
        self._points, self._base, self.state = points, (keys, request), State.ASKED
        return request

    def finish(self, reply: SetupReply) -> None:
        """Ends the set-up.

        Raises:
            CheatingError: a base point is not in the group, or the trees are inconsistent.
        """
        self._require(State.ASKED, "finish")
        assert self._base is not None
        self._same_session(reply.session)
        keys, request = self._base
        transcript = _setup_transcript(request, reply)
        try:
            base = base_finish(self._session, keys, request.points, reply.points)
            trees = open_trees(self._session, self._points, base, reply.sums, reply.checks)
        except CheatingError:
            self.state = State.FAILED
            raise
        self._trees, self._transcript, self._base, self.state = trees, transcript, None, State.READY

    def send(self, choices: Choices, messages: NDArray[np.uint8]) -> Ciphertexts:
        """Both ``messages``, uint8 (n, 2, 16), of every transfer, each under its own pad.

        Raises:
            MalformedError: messages of another shape, or choices of another session or count.
            SequenceError: not after a set-up, or a batch out of turn.
            CheatingError: the receiver's columns are inconsistent. The session has ended.
        """
        self._require(State.READY, "send")
        if messages.dtype != np.uint8 or messages.ndim != 3 or messages.shape[1:] != (2, prg.LABEL_SIZE):
            raise MalformedError(f"messages are uint8[n, 2, 16], got {messages.dtype}{list(messages.shape)}")
        count = _batch_size(len(messages))
        self._same_session(choices.session)
        self._same_batch(choices.batch)
        check_body(choices, count)
        corrections = np.frombuffer(choices.corrections, np.dtype("<u8")).reshape(BLOCKS, -1)
        streams = vole.leaf_streams(self._trees, column_bytes(count), self.batch)
        columns = vole.sender_columns(streams, self._points, corrections)
        self._check(choices, columns)
        rows = vole.rows_of(columns, count)
        hash_key = self._rng.bytes(16)
        tweaks = np.arange(count, dtype=np.uint64)
        pads = prg.TweakHash(hash_key)(np.concatenate([rows, rows ^ self._offset()]), np.concatenate([tweaks, tweaks]))
        hidden = prg.as_labels(messages) ^ pads.reshape(2, count, 2).transpose(1, 0, 2)
        self.batch += 1
        return Ciphertexts(self._session, choices.batch, count, hash_key, hidden.tobytes())

    def _check(self, choices: Choices, columns: vole.Columns) -> None:
        """hash(q_j) = hash(t_j) ⊕ Δ_j·hash(u) for all 128 columns j."""
        challenge = self._challenge(choices.count, choices.corrections)
        found = vole.universal_hash(columns, challenge)
        theirs = np.frombuffer(choices.column_hashes, np.uint8).reshape(TRANSFERS, -1)
        of_choices = np.frombuffer(choices.choice_hash, np.uint8)
        wanted = theirs ^ (np.negative(self._offset_bits())[:, None] & of_choices)
        if not hmac.compare_digest(found.tobytes(), wanted.tobytes()):
            self.state = State.FAILED
            raise CheatingError("the columns of the oblivious transfer are inconsistent; the session has ended")

    def _offset_bits(self) -> Bits:
        points = np.array(self._points, np.uint8)
        return np.stack([points & 1, points >> 1], axis=1).reshape(-1)

    def _offset(self) -> prg.Labels:
        return prg.as_labels(np.packbits(self._offset_bits(), bitorder="little"))


class ExtensionReceiver(_Machine):
    """Has one choice bit per transfer and learns that message only."""

    def __init__(self, session: bytes, rng: Rng) -> None:
        super().__init__(session, rng)
        self._bits: Bits = np.zeros(0, np.uint8)
        self._rows: prg.Labels = np.zeros((0, 2), np.uint64)

    def setup(self, request: SetupRequest) -> SetupReply:
        """Answers the set-up; needs no choices.

        Raises:
            CheatingError: a base point is not in the group.
        """
        self._require(State.NEW, "setup")
        self._same_session(request.session)
        try:
            base, points = base_send(self._session, TRANSFERS, request.points, self._rng)
        except CheatingError:
            self.state = State.FAILED
            raise
        trees, sums, checks = make_trees(self._session, base)
        reply = SetupReply(self._session, points, sums, checks)
        self._trees, self._transcript, self.state = trees, _setup_transcript(request, reply), State.READY
        return reply

    def choose(self, bits: Bits) -> Choices:
        """Opens a batch with choice bits, uint8 (n,) of 0 and 1.

        Raises:
            MalformedError: other than 0 and 1, or another type.
            LimitError: none or more than MAX_TRANSFERS.
            SequenceError: before the set-up, or while a batch is open.
        """
        self._require(State.READY, "choose")
        if bits.dtype != np.uint8 or bits.ndim != 1 or (bits.size and int(bits.max()) > 1):
            raise MalformedError(f"choices are uint8[n] of 0 and 1, got {bits.dtype}{list(bits.shape)}")
        count = _batch_size(len(bits))
        size = column_bytes(count)
        # Rows that fill the last word and the rows of the check are random: the check then shows nothing of the bits.
        extra = np.unpackbits(np.frombuffer(self._rng.bytes(8 + CHECK_ROWS // 8), np.uint8))
        u = vole.pack(np.concatenate([bits, extra[: 8 * size - count]]))
        own, columns = vole.receiver_columns(vole.leaf_streams(self._trees, size, self.batch))
        corrections = (own ^ u).tobytes()
        challenge = self._challenge(count, corrections)
        hashes = vole.universal_hash(np.concatenate([columns, u[None]]), challenge)
        self._bits, self._rows, self.state = bits.copy(), vole.rows_of(columns, count), State.CHOSEN
        return Choices(self._session, self.batch, count, corrections, hashes[-1].tobytes(), hashes[:-1].tobytes())

    def receive(self, ciphertexts: Ciphertexts) -> NDArray[np.uint8]:
        """The chosen messages, uint8 (n, 16), and the end of the batch."""
        self._require(State.CHOSEN, "receive")
        self._same_session(ciphertexts.session)
        self._same_batch(ciphertexts.batch)
        count = len(self._bits)
        check_body(ciphertexts, count)
        pairs = np.frombuffer(ciphertexts.pairs, np.dtype("<u8")).reshape(count, 2, 2)
        pads = prg.TweakHash(ciphertexts.hash_key)(self._rows, np.arange(count, dtype=np.uint64))
        # Both are read whatever the bit is, so that the access pattern does not tell it.
        masks = np.negative(self._bits.astype(np.uint64))[:, None]
        chosen = pairs[:, 0] ^ (masks & (pairs[:, 0] ^ pairs[:, 1])) ^ pads
        self._bits, self._rows = np.zeros(0, np.uint8), np.zeros((0, 2), np.uint64)
        self.batch += 1
        self.state = State.READY
        return prg.as_bytes(chosen)


def _batch_size(count: int) -> int:
    if not 1 <= count <= MAX_TRANSFERS:
        raise LimitError(f"{count} transfers, 1 to {MAX_TRANSFERS} in a batch", count=count, limit=MAX_TRANSFERS)
    return count


def _setup_transcript(request: SetupRequest, reply: SetupReply) -> bytes:
    return digest(_SETUP_DOMAIN, request.encode(), reply.encode())
