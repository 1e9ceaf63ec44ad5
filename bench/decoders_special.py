"""Readers of forms that are no record of core.codec: arrays, circuits, sealed boxes, documents, files."""

from __future__ import annotations

import dataclasses
import functools
import io
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.decoders import Decoder, record_value
from core.chain.block import Block, Certificate
from core.chain.state import decode_state, encode_state, genesis_state
from core.chain.transaction import Activation
from core.codec import decode, encode
from core.crypto import sealing
from core.crypto.bristol import load_bristol
from core.crypto.circuits import comparison_circuit
from core.crypto.garbling import GarbledCircuit
from core.crypto.homomorphic.keys import PublicKey, SecretKey, _StoredKey
from core.crypto.homomorphic.params import PARAMS
from core.crypto.homomorphic.wire import pack, unpack
from core.crypto.oblivious_transfer.messages import Choices, Ciphertexts, SetupReply, SetupRequest, column_bytes
from core.crypto.oblivious_transfer.puncture import BLOCKS
from core.crypto.zero_check import ZeroQuery
from core.errors import ConfigError, MalformedError
from core.ids import AccountId, Amount, Digest, Milliseconds, NodeId
from core.market.contract import Offer, decode_offer
from core.market.rows import Chunk, DataSet, Held, Sold, open_chunk
from core.params import Genesis, GenesisAccount, GenesisValidator
from core.verification.body import VmBody, ciphertexts_of, read_body
from core.verification.field import pack_values, unpack_values
from core.verification.model_file import TaskModel, dump_model, dump_task_model, load_model, load_task_model
from core.verification.scored_model import ModelShape, ScoredModel
from node.config import NodeConfig
from pool.flower.wire import vector_from_bytes
from pool.learning.datasets import load_npz
from provider import goods
from requester.data import load_rows
from services.rpc.convert_peer import block_from_bytes, certificate_from_bytes
from services.runtime import settings

NPZ_BYTES = 1 << 20


def special() -> Iterator[Decoder]:
    yield from _arrays()
    yield from _circuits()
    yield from _documents()
    yield from _files()


def _arrays() -> Iterator[Decoder]:
    def residues(rng: random.Random) -> bytes:
        values = [[rng.randrange(p) for _ in range(16)] * (PARAMS.degree // 16) for p in PARAMS.primes]
        return pack(np.array([values], dtype=np.uint64))

    def numbers(rng: random.Random) -> bytes:
        return pack_values(np.array([[rng.randrange(1 << 32) for _ in range(3)] for _ in range(4)], dtype=np.int64))

    yield Decoder("core.crypto.homomorphic.wire.unpack", residues, lambda data: unpack(data, 1), pack, None, 4 << 20)
    yield Decoder("core.verification.field.unpack_values", numbers, lambda data: unpack_values(data, (4, 3)), pack_values)
    yield Decoder(
        "core.crypto.homomorphic.keys.PublicKey", residues, lambda data: PublicKey.from_bytes(data, b"context"),
        lambda key: key.to_bytes(), None, 4 << 20,
    )  # fmt: skip

    def secret(rng: random.Random) -> bytes:
        digits = bytes(rng.choices(range(3), k=16)) * (PARAMS.degree // 16)
        return encode(_StoredKey(b"context", digits, residues(rng)))

    yield Decoder("core.crypto.homomorphic.keys.SecretKey", secret, SecretKey.from_bytes, lambda k: k.to_bytes(), None, 4 << 20)

    def query(rng: random.Random) -> bytes:
        x0 = b"".join(rng.randrange(p).to_bytes(8, "big") for p in PARAMS.primes)
        return x0 + residues(rng)

    yield Decoder(
        "core.crypto.zero_check.ZeroQuery.residues", query, lambda data: ZeroQuery(data[:24], data[24:]).residues(),
        lambda pair: pair[0].astype(">u8").tobytes() + pack(pair[1][None]), None, 4 << 20,
    )  # fmt: skip
    yield Decoder(
        "pool.flower.wire.vector_from_bytes", lambda rng: rng.randbytes(40), lambda data: vector_from_bytes(data, 10), None
    )

    @functools.cache
    def table() -> tuple[DataSet, Digest]:
        rows = DataSet(np.arange(40, dtype=np.int8).reshape(10, 4), (np.arange(10) % 3).astype(np.uint8), 3, bytes(32))
        return rows, rows.root

    def chunk(rng: random.Random) -> bytes:
        return encode(table()[0].chunk(2, 5, Sold(0, ((b"0", b"1"),), np.zeros(10, np.uint8))))

    def opened(data: bytes) -> object:
        return open_chunk(decode(Chunk, data), table()[1], 10, 4, 3, 2, 5, Held(0, (1,), (b"1",)))

    yield Decoder("core.market.rows.open_chunk", chunk, opened)

    yield Decoder("core.verification.model_file.load_model", lambda rng: dump_model(_model(rng)), load_model, dump_model)
    yield Decoder("core.verification.model_file.load_task_model", _task_model, load_task_model, dump_task_model)
    family = _model(random.Random(1)).shape.family()
    yield Decoder("core.verification.body.read_body", _body, lambda data: read_body(data, family), None, None, 16 << 20)


def _task_model(rng: random.Random) -> bytes:
    model = _model(rng)
    cuts = sorted(rng.sample(range(-(1 << 50), 1 << 50), model.shape.dims[-1] - 1)) if rng.random() < 0.5 else []
    return dump_task_model(TaskModel(model, rng.getrandbits(40), tuple(cuts)))


def _model(rng: random.Random) -> ScoredModel:
    draw = np.random.default_rng(rng.getrandbits(32))
    shape = ModelShape((4, 3, 2), Activation.RELU, 8, (4,))
    weights = tuple(draw.integers(-100, 100, size) for size in ((4, 3), (3, 2)))
    return ScoredModel(shape, weights, tuple(draw.integers(-500, 500, n) for n in (3, 2)))


def _body(rng: random.Random) -> bytes:
    """The right shape, as many ciphertexts as it takes, each a cheap one."""
    family = _model(rng).shape.family()
    values = np.array([[[rng.randrange(p)] * PARAMS.degree for p in PARAMS.primes]], dtype=np.uint64)
    return encode(VmBody(_model(rng).shape, rng.randbytes(32), pack(values) * (2 * ciphertexts_of(family))))


def _circuits() -> Iterator[Decoder]:
    circuit = comparison_circuit(2, 1)
    size = GarbledCircuit.encoded_size(circuit)

    def garbled(rng: random.Random) -> bytes:
        data = bytearray(circuit.digest + rng.randbytes(size - 32))
        outputs = len(circuit.outputs)
        for index in range(outputs):
            end = size - 64 * (outputs - index)
            data[end : end + 64] = b"".join(sorted((rng.randbytes(32), rng.randbytes(32))))
        return bytes(data)

    yield Decoder(
        "core.crypto.garbling.GarbledCircuit", garbled, lambda data: GarbledCircuit.decode(circuit, data), lambda g: g.encode()
    )
    yield Decoder("core.crypto.oblivious_transfer.SetupRequest", _record(SetupRequest), SetupRequest.decode, encode)
    yield Decoder("core.crypto.oblivious_transfer.SetupReply", _record(SetupReply), SetupReply.decode, encode)

    def choices(rng: random.Random) -> bytes:
        random_one: Choices = record_value(Choices, rng)
        return encode(replace(random_one, count=128, corrections=rng.randbytes(BLOCKS * column_bytes(128))))

    def ciphertexts(rng: random.Random) -> bytes:
        random_one: Ciphertexts = record_value(Ciphertexts, rng)
        return encode(replace(random_one, count=4, pairs=rng.randbytes(128)))

    yield Decoder("core.crypto.oblivious_transfer.Choices", choices, lambda data: Choices.decode(data, 128), encode)
    yield Decoder("core.crypto.oblivious_transfer.Ciphertexts", ciphertexts, lambda data: Ciphertexts.decode(data, 4), encode)
    box = sealing.SealingKeyPair.from_private(bytes(range(32)))

    def sealed(rng: random.Random) -> bytes:
        return sealing.seal(box.public_key, rng.randbytes(rng.randrange(50)), b"info", b"aad")

    yield Decoder("core.crypto.sealing.open_", sealed, lambda data: sealing.open_(bytes(range(32)), data, b"info", b"aad"))
    text = "5 9\n2 2 1\n1 2\n\n1 1 1 3 EQ\n2 1 0 2 4 XOR\n2 1 4 3 5 AND\n4 2 5 1 2 0 6 7 MAND\n1 1 7 8 INV\n"
    yield Decoder("core.crypto.bristol.load_bristol", lambda _: text.encode(), lambda data: load_bristol(_text(data)))


def _record(kind: type) -> Callable[[random.Random], bytes]:
    return lambda rng: encode(record_value(kind, rng))


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise MalformedError(f"not UTF-8 at byte {error.start}") from None


def _genesis(rng: random.Random) -> Genesis:
    return Genesis(
        "fuzz", 1, Milliseconds(rng.randrange(1 << 40)), (GenesisValidator(NodeId(bytes([1] * 32)), 1, "v0"),),
        (GenesisAccount(AccountId(rng.randbytes(32)), Amount(rng.randrange(10**6)), "a"),),
    )  # fmt: skip


def _documents() -> Iterator[Decoder]:
    known = _genesis(random.Random(0))

    def genesis(data: bytes) -> Genesis:
        found = Genesis.from_json(_text(data))
        assert len(found.chain_id) == 32
        return found

    yield Decoder(
        "core.params.Genesis.from_json", lambda rng: _genesis(rng).to_json().encode(), genesis,
        None, lambda found: Genesis.from_json(found.to_json()), 1 << 22,
    )  # fmt: skip
    yield Decoder(
        "core.chain.state.decode_state", lambda _: encode_state(genesis_state(known)), lambda data: decode_state(data, known),
        encode_state,
    )  # fmt: skip
    yield Decoder("services.rpc.convert_peer.block_from_bytes", _record(Block), block_from_bytes, encode)
    yield Decoder("services.rpc.convert_peer.certificate_from_bytes", _record(Certificate), certificate_from_bytes, encode)
    yield Decoder("core.market.contract.decode_offer", _record(Offer), decode_offer, None)


def _files() -> Iterator[Decoder]:
    folder = Path(tempfile.mkdtemp(prefix="pofl-fuzz-"))

    def on_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
        def decode(data: bytes) -> object:
            path = folder / name
            path.write_bytes(data)
            return read(path)

        return decode

    for name, read in (
        ("pool.learning.datasets.load_npz", load_npz), ("requester.data.load_rows", load_rows),
        ("provider.goods._read", goods._read),
    ):  # fmt: skip
        yield Decoder(name, _npz, on_file(name + ".npz", read), None, None, NPZ_BYTES)

    def config(path: Path) -> object:
        return settings.load(NodeConfig, path, {})

    yield Decoder(
        "services.runtime.settings.load", lambda _: settings.dump(_default(NodeConfig)).encode(), on_file("node.toml", config),
        None, None, 1 << 22,
    )  # fmt: skip


def _default(kind: Any) -> Any:
    """With a value for whatever has no default."""
    given = ["name=fuzz", "listen=127.0.0.1:0", "data_dir=data", "tls.insecure_loopback=true"]
    for field in dataclasses.fields(kind):
        try:
            return settings.load(kind, None, {}, given)
        except ConfigError as error:
            missing = error.message.split(" ", 1)[0]
            given.append(f"{missing}={'127.0.0.1:1' if 'address' in error.message.lower() else field.name}")
    return settings.load(kind, None, {}, given)


def _npz(rng: random.Random) -> bytes:
    """A data set; now and then with a header that lies about shape or kind, or a compression that nobody has."""
    out, n = io.BytesIO(), rng.randrange(10, 14)
    x = np.array([[rng.random() for _ in range(3)] for _ in range(n)], dtype=rng.choice(("f8", "f4", "i1", "c8", "?")))
    y = np.array([rng.randrange(3) for _ in range(n)], dtype=rng.choice(("i8", "u1", "f4")))
    (np.savez_compressed if rng.random() < 0.3 else np.savez)(out, x=x, y=y)
    data = out.getvalue()
    shape = f"({n}, 3)".encode()
    if rng.random() < 0.2 and shape in data:
        huge = rng.choice((b"9" * (len(shape) - 4), b"1" + b"0" * (len(shape) - 5)))
        data = data.replace(shape, b"(" + huge + b",3)"[: len(shape) - len(huge) - 1].ljust(len(shape) - len(huge) - 1), 1)
    return data
