"""The ClientApp that stock SuperNodes run: the miner's own app (pool/flower/client_app.py) behind a greeting.

A SuperNode starts a process for each message, so what must last from message to message, the node key and the pool's
key, lies in Flower's context, which never leaves the node.

Node configuration (``flower-supernode --node-config 'data="/rows.npz"'``), all optional:

    data       path of this miner's rows, before the run's ``data``
    node-key   file of this miner's P-256 private key (PKCS8 DER, made if missing); otherwise a fresh one a run
    pool-key   the only pool key, in hex, to seal to; otherwise the run's
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from core.codec import decode, encode
from core.crypto.sealing import suite_of
from core.errors import AuthError, ConfigError, NotFoundError, PoflError
from pool.flower import blobs, keys
from pool.flower.client_app import build_client_app
from pool.flower.stock.greeting import Greeting, presence
from pool.learning.datasets import read_npz
from pool.learning.targets import TargetRows, checked_targets

__all__ = ["app"]

STATE = "pofl"
app = ClientApp()


@app.query()
def greet(message: Message, context: Context) -> Message:
    """Answer a Greeting with this miner's Presence."""
    greeting = decode(Greeting, blobs.unpack(message.content))
    private = _node_key(context)
    examples, reason = 0, ""
    try:
        _check_pool_key(context, greeting.pool_key)
        examples = len(_rows(context))
        suite = suite_of(greeting.suite)
        context.state[STATE] = ConfigRecord({"node": private, "pool": greeting.pool_key, "suite": int(suite)})
    except PoflError as error:
        reason = error.message
    metadata = message.metadata
    answer = presence(keys.private_key_of(private), examples, reason, metadata.run_id, metadata.message_id, greeting.pool_key)
    return Message(blobs.pack(encode(answer)), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """The miner's own ClientApp, with the keys of this run's greeting."""
    remembered = context.state.get(STATE)
    if not isinstance(remembered, ConfigRecord):
        raise AuthError("an instruction before the greeting of its run: this SuperNode was started anew")
    node, pool, suite = remembered["node"], remembered["pool"], remembered["suite"]
    assert isinstance(node, bytes)
    assert isinstance(pool, bytes)
    assert isinstance(suite, int)
    private = keys.private_key_of(node)

    def rows(_: bytes) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        data = _rows(context)
        return data.x, data.y

    mining = build_client_app(rows, pool, private, keys.public_bytes_of(private), suite=suite_of(suite))
    return mining(message, context)


def _rows(context: Context) -> TargetRows:
    """Labels too are read as reals here: which of the two a run trains on, its instructions say, and that is checked then."""
    path = str(context.node_config.get("data") or context.run_config.get("data") or "")
    if not path:
        raise NotFoundError("no rows: set data in the node configuration, or in the run configuration")
    named = Path(path).expanduser()
    return checked_targets(*read_npz(named), name=str(named))


def _node_key(context: Context) -> bytes:
    remembered = context.state.get(STATE)
    if isinstance(remembered, ConfigRecord) and isinstance(kept := remembered.get("node"), bytes):
        return kept
    named = str(context.node_config.get("node-key") or "")
    if not named:
        return keys.new_node_key()[0]
    path = Path(named).expanduser()
    if not path.exists():
        _write_once(path, keys.new_node_key()[0])
    return path.read_bytes()


def _write_once(path: Path, secret: bytes) -> None:
    """Whole or not at all, and never over another: two runs may greet at once. Raises ConfigError."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secret)
        with contextlib.suppress(FileExistsError):
            os.link(partial, path)
        partial.unlink()
    except OSError as error:
        raise ConfigError(f"node-key: cannot write {path}: {error.strerror}") from None


def _check_pool_key(context: Context, offered: bytes) -> None:
    pinned = str(context.node_config.get("pool-key") or "").lower()
    if pinned and pinned != offered.hex():
        raise AuthError(f"this run's pool key {offered.hex()[:16]}... is not the pool-key of the node configuration")
