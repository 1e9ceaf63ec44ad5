"""The miner's ClientApp: train on an instruction, seal the update. Flower runs it; no code of the pool does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable, Mod
from numpy.typing import NDArray

from core.codec import decode, encode
from core.crypto.sealing import Suite
from core.errors import NotFoundError, PoflError
from core.ports import SystemRng
from pool.flower import blobs
from pool.flower.wire import (
    Answer,
    Instruction,
    Outcome,
    Update,
    context,
    delta_to_bytes,
    seal_update,
    vector_from_bytes,
)
from pool.learning import datasets
from pool.learning.model_spec import ModelSpec, flatten, unflatten
from pool.learning.privacy import NO_NOISE, LocalPrivacy
from pool.learning.targets import TargetRows, Targets, checked_targets

__all__ = ["DataSource", "build_client_app", "round_of", "seal_mod", "train_on"]

DataSource: TypeAlias = Callable[[bytes], tuple[NDArray[np.float32], NDArray[np.int64] | NDArray[np.float64]] | None]
"""Rows (x, y) to train on for a job id, y labels or real targets; None when this miner has none."""


def build_client_app(
    data: DataSource,
    pool_key: bytes,
    node_key: Any,
    node_public: bytes,
    on_update: Callable[[Instruction, Update], None] = lambda _, __: None,
    suite: Suite = Suite.X25519,
    privacy: LocalPrivacy = NO_NOISE,
) -> ClientApp:
    """``pool_key``: the pool's HPKE public key. ``node_key``: this miner's private key object. ``on_update`` is told what this
    miner answers, before the pool can know it."""
    app = ClientApp(mods=[seal_mod(pool_key, node_key, node_public, suite)])

    @app.train()
    def train(message: Message, _: Context) -> Message:
        instruction = decode(Instruction, blobs.unpack(message.content))
        update = train_on(instruction, data, privacy)
        on_update(instruction, update)
        return Message(blobs.pack(encode(update)), reply_to=message)

    return app


def seal_mod(pool_key: bytes, node_key: Any, node_public: bytes, suite: Suite = Suite.X25519) -> Mod:
    """Replaces the plain update by an Answer sealed to the pool; an error becomes an Answer that says why."""

    def mod(message: Message, app_context: Context, call_next: ClientAppCallable) -> Message:
        try:
            update = decode(Update, blobs.unpack(call_next(message, app_context).content))
            metadata = message.metadata
            info = context(metadata.run_id, metadata.message_id, node_public, round_of(metadata.group_id))
            answer = seal_update(update, pool_key, info, node_key, suite)
        except NotFoundError as error:
            answer = Answer(Outcome.NO_DATA, error.message[:400], b"", b"")
        except (PoflError, ValueError, RuntimeError) as error:
            answer = Answer(Outcome.FAILED, str(error)[:400], b"", b"")
        return Message(blobs.pack(encode(answer)), reply_to=message)

    return mod


def train_on(instruction: Instruction, data: DataSource, privacy: LocalPrivacy = NO_NOISE) -> Update:
    """The update of this miner's rows, as far as ``privacy`` lets it out; with it the loss, which is of the rows, is told as 0.

    Raises NotFoundError without rows for the job, MalformedError for bad rows or weights."""
    # Torch takes seconds to import: only a process that trains pays for it.
    from pool.learning.training import TrainingPlan, train_locally

    started = time.monotonic()
    # Nothing is made for an impossible model: spec, vector and plan are checked before rows are even looked at.
    spec = ModelSpec(
        instruction.features, instruction.classes, instruction.hidden, instruction.activation, instruction.kind
    )  # fmt: skip
    weights = unflatten(spec, vector_from_bytes(instruction.vector, spec.parameters))
    plan = TrainingPlan(
        instruction.optimizer, instruction.local_epochs, instruction.learning_rate, instruction.batch,
        instruction.seed, instruction.budget_s,
    )  # fmt: skip
    targets = Targets(instruction.shift, instruction.scale)
    rows = data(instruction.job_id)
    if rows is None:
        raise NotFoundError(f"no rows for task {instruction.job_id.hex()[:8]}")
    dataset: datasets.Dataset | TargetRows
    if spec.kind == "regression":
        dataset = checked_targets(*rows, name="own rows", features=spec.features)
    else:
        dataset = datasets.checked(*rows, name="own rows", features=spec.features, classes=spec.classes)
    result = train_locally(spec, weights, dataset, plan, targets)
    milliseconds = int(1000 * (time.monotonic() - started))
    delta = privacy.apply(flatten(result.delta), SystemRng())
    vector = delta_to_bytes(delta, instruction.precision)
    loss = 0.0 if privacy.is_on else result.loss
    return Update(result.examples, loss, result.steps, milliseconds, instruction.precision, vector)


def round_of(group_id: str) -> int:
    """The round that a Flower message says it is of; 0 for what is no number."""
    return int(group_id) if group_id.isdigit() and len(group_id) < 10 else 0
