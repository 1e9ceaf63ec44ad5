"""A miner's part in secure aggregation: its ClientApp for pools whose manager shall see sums only.

A miner that joined such a pool answers nothing but the five orders of secure_wire.py: an instruction to send a plain update is
refused. It takes part in one sum at a time and in each round once; what it holds for a sum is let go of when the next begins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from core.codec import decode_as, encode, encode_as
from core.crypto.masking import CLIP
from core.crypto.sealing import Suite
from core.crypto.secure_messages import LEAST
from core.crypto.secure_sum import Participant
from core.errors import CheatingError, InputError, LimitError, MalformedError, NotFoundError, PoflError, SequenceError
from core.ports import SystemRng
from pool.flower import blobs, keys
from pool.flower.client_app import DataSource, round_of, train_on
from pool.flower.secure_wire import (
    MAX_FACTOR,
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
    weigh_by,
)
from pool.flower.wire import Answer, Instruction, Outcome, Precision, Update, context, delta_from, seal_bytes
from pool.learning.privacy import NO_NOISE, LocalPrivacy

__all__ = ["SecureMember", "build_secure_app"]

TASKS_KEPT: Final = 1_024
"""Tasks whose last round is remembered."""

OnUpdate = Callable[[Instruction, Update], None]


def build_secure_app(
    data: DataSource,
    pool_key: bytes,
    node_key: Any,
    node_public: bytes,
    on_update: OnUpdate,
    suite: Suite,
    privacy: LocalPrivacy = NO_NOISE,
    least: int = LEAST,
) -> ClientApp:
    """As client_app.build_client_app, for Aggregation.SECURE. ``least``: with fewer no sum is begun."""
    app = ClientApp()
    member = SecureMember(data, node_key, node_public, on_update, suite, privacy, least)

    @app.train()
    def train(message: Message, _: Context) -> Message:
        metadata = message.metadata
        number = round_of(metadata.group_id)
        try:
            try:
                order = decode_as(ORDER, blobs.unpack(message.content))
            except InputError as error:
                raise MalformedError(f"no order of secure aggregation, and nothing else is answered: {error.message}") from None
            reply = member.obey(order, metadata.run_id, number)
            info = context(metadata.run_id, metadata.message_id, node_public, number)
            answer = seal_bytes(encode_as(REPLY, reply), pool_key, info, node_key, suite)
        except NotFoundError as error:
            answer = Answer(Outcome.NO_DATA, error.message[:400], b"", b"")
        except (PoflError, ValueError, RuntimeError) as error:
            answer = Answer(Outcome.FAILED, str(error)[:400], b"", b"")
        return Message(blobs.pack(encode(answer)), reply_to=message)

    return app


class SecureMember:
    """What a miner remembers between the orders of one sum."""

    def __init__(
        self,
        data: DataSource,
        node_key: Any,
        node_public: bytes,
        on_update: OnUpdate,
        suite: Suite,
        privacy: LocalPrivacy,
        least: int,
    ) -> None:
        self._data, self._key, self._name, self._on_update = data, node_key, node_public, on_update
        self._suite, self._privacy, self._least = suite, privacy, least
        self._last: dict[bytes, int] = {}
        self._part: Participant | None = None
        self._at = (0, 0)
        self._job = b""
        self._examples = 0

    def obey(self, order: Order, run_id: int, number: int) -> Reply:
        """The reply to an order. Raises what Participant raises, NotFoundError without rows, SequenceError out of order."""
        if isinstance(order, Invite):
            return self._accept(order, run_id, number)
        part = self._part
        if part is None or self._at != (run_id, number):
            raise SequenceError(f"this miner takes part in no sum of round {number}")
        if isinstance(order, Roster):
            return part.share(order.adverts)
        if isinstance(order, TrainMasked):
            return self._train(part, order, number)
        if isinstance(order, Agree):
            return part.consent(tuple(order.survivors))
        assert isinstance(order, Disclose)
        self._part = None
        return part.reveal(order.consents)

    def _accept(self, order: Invite, run_id: int, number: int) -> Reply:
        # A second sum of one round, over others, would differ from the first by single updates. A manager started anew has
        # another run, and goes on counting rounds.
        last = self._last.get(order.job_id, 0)
        if number <= last:
            raise SequenceError(f"round {number} of this task is over for this miner, its last was {last}")
        if not 1 <= order.weight_factor <= MAX_FACTOR:
            raise CheatingError(f"a weight factor of {order.weight_factor} could single out an update; at most {MAX_FACTOR}")
        rows = self._data(order.job_id)
        if rows is None:
            raise NotFoundError(f"no rows for task {order.job_id.hex()[:8]}")
        self._last.pop(order.job_id, None)
        self._last[order.job_id] = number
        while len(self._last) > TASKS_KEPT:
            del self._last[next(iter(self._last))]
        self._job, self._examples, self._at = order.job_id, len(rows[1]), (run_id, number)
        self._part = Participant(
            session_of(run_id, number, order.job_id, order.weight_factor), self._name, self._suite,
            weigh_by(order.weight_factor), lambda message: keys.sign(self._key, message), keys.verify, SystemRng(), self._least,
        )  # fmt: skip
        return self._part.advert(self._examples)

    def _train(self, part: Participant, order: TrainMasked, number: int) -> Reply:
        instruction = order.instruction
        if (instruction.job_id, instruction.round) != (self._job, number):
            raise CheatingError(f"an instruction for round {instruction.round} of another task or round than the sum is for")
        if instruction.precision is not Precision.FLOAT32:
            raise LimitError("masked updates travel in fixed point: the precision must be float32")
        update = train_on(instruction, self._data, self._privacy)
        delta = delta_from(update, len(instruction.vector) // 4)
        loss = min(max(update.loss, 0.0), CLIP) if np.isfinite(update.loss) else CLIP
        masked = part.mask(np.append(delta, loss), order.inbox)
        # What counts is what was advertised, also where rows came in between.
        self._on_update(instruction, replace(update, examples=self._examples))
        return MaskedUpdate(masked.vector.astype("<u8").tobytes(), masked.held)
