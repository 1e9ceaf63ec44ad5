"""core.crypto.oblivious_transfer between honest parties: results, order of steps, sizes."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from core.crypto import prg
from core.crypto.oblivious_transfer import (
    MAX_TRANSFERS,
    Choices,
    Ciphertexts,
    ExtensionReceiver,
    ExtensionSender,
    SetupReply,
    SetupRequest,
    vole,
)
from core.crypto.oblivious_transfer.base import base_choose, base_finish, base_send
from core.crypto.oblivious_transfer.extension import State
from core.crypto.oblivious_transfer.messages import column_bytes
from core.crypto.oblivious_transfer.puncture import Tree, base_choices, make_trees, open_trees
from core.errors import LimitError, MalformedError, SequenceError
from tests.seeded import SeededRng

SESSION = b"\x07" * 32
Raw = NDArray[np.uint8]


def inputs(count: int, seed: int) -> tuple[Raw, Raw]:
    """Message pairs (n, 2, 16) and choice bits (n,)."""
    rng = SeededRng(f"{seed} inputs")
    messages = np.frombuffer(rng.bytes(32 * count), np.uint8).reshape(count, 2, 16)
    bits: Raw = np.frombuffer(rng.bytes(count), np.uint8) & np.uint8(1)
    return messages, bits


def ready(seed: int) -> tuple[ExtensionSender, ExtensionReceiver]:
    """Both sides after the set-up, as fresh copies: a set-up takes 0.2 s, and many tests start there."""
    return copy.deepcopy(_set_up(seed))


@functools.cache
def _set_up(seed: int) -> tuple[ExtensionSender, ExtensionReceiver]:
    """Every message takes the way over its bytes."""
    sender = ExtensionSender(SESSION, SeededRng(f"{seed} sender"))
    receiver = ExtensionReceiver(SESSION, SeededRng(f"{seed} receiver"))
    reply = receiver.setup(SetupRequest.decode(sender.request().encode()))
    sender.finish(SetupReply.decode(reply.encode()))
    return sender, receiver


def transfer(sender: ExtensionSender, receiver: ExtensionReceiver, messages: Raw, bits: Raw) -> Raw:
    count = len(bits)
    choices = Choices.decode(receiver.choose(bits).encode(), count)
    return receiver.receive(Ciphertexts.decode(sender.send(choices, messages).encode(), count))


def snapshot(machine: ExtensionSender | ExtensionReceiver) -> dict[str, object]:
    """Everything a machine knows, its generator's position included."""
    known = {name: value.tobytes() if isinstance(value, np.ndarray) else value for name, value in vars(machine).items()}
    known["drawn"] = vars(machine._rng)["_counter"]
    return known


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 128, 1000])
def test_the_receiver_gets_what_she_chose_and_not_the_other(count: int, seed: int) -> None:
    messages, bits = inputs(count, seed)
    got = transfer(*ready(seed), messages, bits)
    assert (got == messages[np.arange(count), bits]).all()
    assert not (got == messages[np.arange(count), 1 - bits]).all(axis=1).any()


def test_a_session_makes_many_batches_with_unrelated_pads(seed: int) -> None:
    sender, receiver = ready(seed)
    zeros, bits = np.zeros((50, 2, 16), np.uint8), inputs(50, seed)[1]
    seen: set[bytes] = set()
    for batch in range(3):
        choices = receiver.choose(bits)
        sent = sender.send(choices, zeros)
        assert choices.batch == sent.batch == batch
        assert (receiver.receive(sent) == 0).all()
        seen |= {sent.pairs[start : start + 16] for start in range(0, len(sent.pairs), 16)}
    assert len(seen) == 300


def test_base_transfers_agree_on_one_key_of_two(seed: int) -> None:
    rng = SeededRng(seed)
    choices = (0, 1, 1, 0, 1)
    mine, points = base_choose(SESSION, choices, rng)
    both, answer = base_send(SESSION, 5, points, rng)
    keys = base_finish(SESSION, mine, points, answer)
    for choice, key, pair in zip(choices, keys, both.keys, strict=True):
        assert key == pair[choice] != pair[1 - choice]
    assert len({key for pair in both.keys for key in pair}) == 10
    other_session = base_finish(b"\x08" * 32, mine, points, answer)
    assert not set(other_session) & {key for pair in both.keys for key in pair}


def test_trees_agree_on_all_leaves_but_one(seed: int) -> None:
    rng = SeededRng(seed)
    points = tuple(byte & 3 for byte in rng.bytes(64))
    mine, message = base_choose(SESSION, base_choices(points), rng)
    both, answer = base_send(SESSION, 128, message, rng)
    trees, sums, checks = make_trees(SESSION, both)
    opened = open_trees(SESSION, points, base_finish(SESSION, mine, message, answer), sums, checks)
    for point, whole, part in zip(points, trees, opened, strict=True):
        assert [x for x in range(4) if whole.seeds[x] != part.seeds[x]] == [point]
        assert part.seeds[point] == bytes(16)


def test_the_columns_are_what_the_paper_says(seed: int) -> None:
    """Bit by bit: u_i = Σ r_x, v_i = Σ x·r_x, w_i ⊕ Δ_i·c_i = v_i ⊕ Δ_i·u, and rows q_j = t_j ⊕ u_j·Δ."""
    rng = SeededRng(seed)
    full = tuple(Tree((rng.bytes(16), rng.bytes(16), rng.bytes(16), rng.bytes(16))) for _ in range(64))
    points = tuple(byte & 3 for byte in rng.bytes(64))
    size, count = column_bytes(70), 70
    streams = vole.leaf_streams(full, size, 3)
    bits = np.unpackbits(np.frombuffer(rng.bytes(size), np.uint8))
    u = vole.pack(bits)
    own, v = vole.receiver_columns(streams)
    q = vole.sender_columns(streams, points, own ^ u)

    def bit(column: vole.Columns, row: int) -> int:
        return int(column[row // 64]) >> (row % 64) & 1

    t_rows, q_rows = prg.as_bytes(vole.rows_of(v, count)), prg.as_bytes(vole.rows_of(q, count))
    for row in range(0, count, 7):
        difference = 0
        for tree in range(64):
            r = [bit(streams[tree, x], row) for x in range(4)]
            assert bit(own[tree], row) == r[0] ^ r[1] ^ r[2] ^ r[3]
            v_i = r[1] * 1 ^ r[2] * 2 ^ r[3] * 3
            assert bit(v[2 * tree], row) | bit(v[2 * tree + 1], row) << 1 == v_i
            w_i = v_i ^ points[tree] * int(bits[row])
            assert bit(q[2 * tree], row) | bit(q[2 * tree + 1], row) << 1 == w_i
            difference |= (v_i ^ w_i) << (2 * tree)
        xored = int.from_bytes(t_rows[row].tobytes(), "little") ^ int.from_bytes(q_rows[row].tobytes(), "little")
        assert xored == difference


def test_the_universal_hash_is_a_matrix_product(seed: int) -> None:
    rng = SeededRng(seed)
    columns = np.frombuffer(rng.bytes(3 * 8 * 7), "<u8").reshape(3, 7).astype(np.uint64)
    challenge = rng.bytes(32)
    matrix = np.unpackbits(
        np.frombuffer(prg.stream(challenge, 128 * 5 * 8), np.uint8).reshape(128, 40), axis=1, bitorder="little"
    )
    bits = np.unpackbits(columns.view(np.uint8), axis=1, bitorder="little")
    wanted = (matrix.astype(int) @ bits[:, :320].T.astype(int) + bits[:, 320:].T) % 2
    found = np.unpackbits(vole.universal_hash(columns, challenge), axis=1, bitorder="little")
    assert (found == wanted.T).all()


def test_every_step_out_of_order_is_refused_and_changes_nothing(seed: int) -> None:
    messages, bits = inputs(10, seed)
    sender, receiver = ready(seed)
    choices = receiver.choose(bits)
    sent = sender.send(choices, messages)
    request = ExtensionSender(SESSION, SeededRng(0)).request()
    reply = ExtensionReceiver(SESSION, SeededRng(0)).setup(request)

    def sender_steps(machine: ExtensionSender) -> dict[str, Callable[[], object]]:
        return {
            "request": machine.request,
            "finish": lambda: machine.finish(reply),
            "send": lambda: machine.send(choices, messages),
        }

    def receiver_steps(machine: ExtensionReceiver) -> dict[str, Callable[[], object]]:
        return {
            "setup": lambda: machine.setup(request),
            "choose": lambda: machine.choose(bits),
            "receive": lambda: machine.receive(sent),
        }

    new_sender, new_receiver = ExtensionSender(SESSION, SeededRng(1)), ExtensionReceiver(SESSION, SeededRng(1))
    asked = ExtensionSender(SESSION, SeededRng(2))
    asked.request()
    failed_sender, failed_receiver = ready(seed + 1)
    failed_sender.state = failed_receiver.state = State.FAILED
    ready_sender, ready_receiver = ready(seed + 2)
    cases: list[tuple[ExtensionSender | ExtensionReceiver, dict[str, Callable[[], object]], set[str]]] = [
        (new_sender, sender_steps(new_sender), {"request"}),
        (asked, sender_steps(asked), {"finish"}),
        (ready_sender, sender_steps(ready_sender), {"send"}),
        (failed_sender, sender_steps(failed_sender), set()),
        (new_receiver, receiver_steps(new_receiver), {"setup"}),
        (ready_receiver, receiver_steps(ready_receiver), {"choose"}),
        (receiver, receiver_steps(receiver), {"receive"}),
        (failed_receiver, receiver_steps(failed_receiver), set()),
    ]
    for machine, steps, allowed in cases:
        for name, step in steps.items():
            if name not in allowed:
                before = snapshot(machine)
                with pytest.raises(SequenceError):
                    step()
                assert snapshot(machine) == before
    # the same choices again: the batch is over
    before = snapshot(sender)
    with pytest.raises(SequenceError, match="batch 0, the next is 1"):
        sender.send(choices, messages)
    assert snapshot(sender) == before


def test_wrong_messages_are_refused_and_the_run_goes_on(seed: int) -> None:
    messages, bits = inputs(100, seed)
    other = b"\x09" * 32
    sender = ExtensionSender(SESSION, SeededRng(f"{seed} s"))
    receiver = ExtensionReceiver(SESSION, SeededRng(f"{seed} r"))

    def refused(machine: ExtensionSender | ExtensionReceiver, step: Callable[[], object]) -> None:
        before = snapshot(machine)
        with pytest.raises((MalformedError, LimitError, SequenceError)):
            step()
        assert snapshot(machine) == before

    request = sender.request()
    refused(receiver, lambda: receiver.setup(SetupRequest(other, request.points)))
    reply = receiver.setup(request)
    refused(sender, lambda: sender.finish(SetupReply(other, reply.points, reply.sums, reply.checks)))
    sender.finish(reply)
    for bad in (bits[:0], bits + 2, bits.astype(np.int8), bits.reshape(10, 10)):
        refused(receiver, lambda bad=bad: receiver.choose(bad))  # type: ignore[misc]
    good = receiver.choose(bits)

    def altered(**parts: object) -> Choices:
        fields = {name: getattr(good, name) for name in Choices.__slots__}
        return Choices(**{**fields, **parts})

    for choices in (
        altered(session=other),
        altered(batch=1),
        altered(count=99),
        altered(corrections=good.corrections[:-8]),
        altered(corrections=good.corrections + bytes(8)),
    ):
        refused(sender, lambda choices=choices: sender.send(choices, messages))  # type: ignore[misc]
    for pairs in (messages[:99], messages[:0], messages[:, :1], messages.astype(np.int16), messages[:, :, :8]):
        refused(sender, lambda pairs=pairs: sender.send(good, pairs))  # type: ignore[misc]
    sent = sender.send(good, messages)
    for parts in ((other, 0, 100, sent.pairs), (SESSION, 1, 100, sent.pairs), (SESSION, 0, 99, sent.pairs[:-32]),
                  (SESSION, 0, 100, sent.pairs[:-1]), (SESSION, 0, 100, sent.pairs + b"\0")):  # fmt: skip
        session, batch, count, body = parts
        refused(
            receiver,
            lambda s=session, b=batch, c=count, p=body: receiver.receive(  # type: ignore[misc]
                Ciphertexts(s, b, c, sent.hash_key, p)
            ),
        )
    assert (receiver.receive(sent) == messages[np.arange(100), bits]).all()


def test_truncated_and_oversized_bytes_are_refused(seed: int) -> None:
    messages, bits = inputs(10, seed)
    sender, receiver = ready(seed)
    request = ExtensionSender(SESSION, SeededRng(1)).request()
    reply = ExtensionReceiver(SESSION, SeededRng(1)).setup(request)
    choices = receiver.choose(bits)
    sent = sender.send(choices, messages)
    decoders: list[tuple[bytes, Callable[[bytes], object]]] = [
        (request.encode(), SetupRequest.decode),
        (reply.encode(), SetupReply.decode),
        (choices.encode(), lambda data: Choices.decode(data, 10)),
        (sent.encode(), lambda data: Ciphertexts.decode(data, 10)),
    ]
    for data, decode in decoders:
        assert decode(data)
        for cut in (0, 1, 31, 32, 36, 40, 44, len(data) // 2, len(data) - 1):
            with pytest.raises(MalformedError):
                decode(data[:cut])
        with pytest.raises(LimitError):
            decode(data + b"\0")
    with pytest.raises(MalformedError):
        Choices.decode(choices.encode(), 100)
    with pytest.raises(LimitError):
        Choices.decode(choices.encode(), MAX_TRANSFERS + 1)
    with pytest.raises(LimitError):
        Ciphertexts.decode(sent.encode(), 0)
    assert len(choices.encode()) == Choices.encoded_size(10)
    assert len(sent.encode()) == Ciphertexts.encoded_size(10)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_session_id_has_32_bytes(size: int) -> None:
    with pytest.raises(MalformedError, match="32 bytes"):
        ExtensionSender(bytes(size), SeededRng(0))
