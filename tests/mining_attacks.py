"""Hostile miners: apps put in the place of the honest ClientApp of a real miner process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from core.codec import decode, encode
from pool.flower import blobs
from pool.flower.client_app import seal_mod, train_on
from pool.flower.jobs import JoinTicket
from pool.flower.wire import Instruction, Update, vector_from_bytes, vector_to_bytes
from pool.learning.datasets import Dataset
from pool.learning.model_spec import ModelSpec


def _sealed(ticket: JoinTicket, key: Any, value: float, examples: int) -> ClientApp:
    app = ClientApp(mods=[seal_mod(ticket.hpke_public_key, key, ticket.node_public_key)])

    @app.train()
    def train(message: Message, _: Context) -> Message:
        order = decode(Instruction, blobs.unpack(message.content))
        spec = ModelSpec(order.features, order.classes, order.hidden, order.activation)
        update = Update(examples, 1.0, 1, 1, 1, vector_to_bytes(np.full(spec.parameters, value)))
        return Message(blobs.pack(encode(update)), reply_to=message)

    return app


def not_a_number(ticket: JoinTicket, key: Any) -> ClientApp:
    """A well-sealed, well-signed update full of NaN."""
    return _sealed(ticket, key, float("nan"), 100)


def exaggerating(ticket: JoinTicket, key: Any) -> ClientApp:
    """Claims a billion examples."""
    return _sealed(ticket, key, 0.0, 1_000_000_000)


def another_pools_key(ticket: JoinTicket, key: Any) -> ClientApp:
    """Seals to a key that is not this pool's."""
    other = JoinTicket(ticket.superlink_address, ticket.ca_pem, bytes([9]) + bytes(31), ticket.node_public_key)
    return _sealed(other, key, 0.0, 100)


# Those below train first, on rows of their own, as an honest miner does.

Change = Callable[[np.ndarray], np.ndarray]


def _changed(ticket: JoinTicket, key: Any, rows: Dataset, change: Change) -> ClientApp:
    app = ClientApp(mods=[seal_mod(ticket.hpke_public_key, key, ticket.node_public_key)])

    @app.train()
    def train(message: Message, _: Context) -> Message:
        order = decode(Instruction, blobs.unpack(message.content))
        update = train_on(order, lambda _: (rows.x, rows.y))
        vector = change(vector_from_bytes(update.vector, len(update.vector) // 4))
        return Message(blobs.pack(encode(replace(update, vector=vector_to_bytes(vector)))), reply_to=message)

    return app


def reversed_within_bounds(ticket: JoinTicket, key: Any, rows: Dataset) -> ClientApp:
    """Nine times its own step, backwards: no check of one update alone finds anything."""
    return _changed(ticket, key, rows, lambda vector: -9.0 * vector)


def enormous(ticket: JoinTicket, key: Any, rows: Dataset) -> ClientApp:
    return _changed(ticket, key, rows, lambda vector: np.full_like(vector, 1e9))


def a_hundred_times(ticket: JoinTicket, key: Any, rows: Dataset) -> ClientApp:
    return _changed(ticket, key, rows, lambda vector: 100.0 * vector)


def misshapen(ticket: JoinTicket, key: Any, rows: Dataset) -> ClientApp:
    return _changed(ticket, key, rows, lambda vector: vector[:-1])


def replaying(ticket: JoinTicket, key: Any, rows: Dataset) -> ClientApp:
    """Answers every round with its ciphertext of the first one."""
    honest, app, first = _changed(ticket, key, rows, lambda vector: vector), ClientApp(), []

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if not first:
            first.append(blobs.unpack(honest(message, context).content))
        return Message(blobs.pack(first[0]), reply_to=message)

    return app


SEEN: dict[int, bytes] = {}
"""Round -> what the miner ``overheard`` sealed, for the miner ``stealing``."""


def overheard(ticket: JoinTicket, key: Any, rows: Dataset) -> ClientApp:
    """Honest; somebody copies its ciphertexts."""
    honest, app = _changed(ticket, key, rows, lambda vector: vector), ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        SEEN[int(message.metadata.group_id)] = blobs.unpack(reply.content)
        return reply

    return app


def stealing(ticket: JoinTicket, key: Any, rows: Dataset) -> ClientApp:
    """Sends another miner's ciphertext of the same round as its own."""
    app = ClientApp()

    @app.train()
    def train(message: Message, _: Context) -> Message:
        number, end = int(message.metadata.group_id), time.monotonic() + 80
        while number not in SEEN and time.monotonic() < end:
            time.sleep(0.01)
        return Message(blobs.pack(SEEN[number]), reply_to=message)

    return app


def die_in_upload() -> None:
    """This process: send the list of an answer's parts, then end as kill -9 does, before the parts."""
    from flwr.supernode.fleet_http_client import FleetHttpClient

    def never(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    FleetHttpClient.PushObject = never
