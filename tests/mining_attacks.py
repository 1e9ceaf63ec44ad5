"""Hostile miners: apps put in the place of the honest ClientApp of a real miner process."""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from core.codec import decode, encode
from pool.flower import blobs
from pool.flower.client_app import seal_mod
from pool.flower.jobs import JoinTicket
from pool.flower.wire import Instruction, Update, vector_to_bytes
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
