"""Broken inputs for every decoder of bench/decoders.py: each gives a value or an error of our tree, soon, in little memory.

An input is a function of seed, decoder and number, so every finding can be made again.
"""

from __future__ import annotations

import collections
import contextlib
import difflib
import random
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from bench.decoders import INTERESTING, Decoder, registry
from core.errors import ConfigError, PoflError

__all__ = ["Found", "broken", "fuzz", "try_input"]

MAX_SECONDS = 2.0
"""CPU time of one decoding."""
BASE_BYTES = 1 << 20
BYTES_PER_BYTE = 64
MEASURED = 16
"""One input in so many is decoded under a measurement of memory, which is slow."""
KEPT = 20
PART = 2_000
"""Inputs that a process takes at once."""


@dataclass
class Found:
    """What one decoder did."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    cpu_seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


def broken(decoder: Decoder, seed: int, number: int) -> bytes:
    """Input ``number``: a valid one as it is, or with some damage."""
    rng = random.Random(f"{seed}/{decoder.name}/{number}")
    data = bytearray(decoder.make(rng))
    if rng.random() < 0.2:
        return bytes(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        data = _damage(data, rng, decoder)
    return bytes(data)


def _damage(data: bytearray, rng: random.Random, decoder: Decoder) -> bytearray:
    at = rng.randrange(len(data) + 1)
    match rng.randrange(12):
        case 0 if data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        case 1 if data:
            data[at % len(data)] = rng.randrange(256)
        case 2:
            del data[at : at + rng.choice((1, 2, 4, 32, 64))]
        case 3:
            data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 32)))
        case 4:
            data[at:at] = data[at : at + rng.choice((1, 4, 32, 100))]
        case 5:
            del data[at:]
        case 6:
            data += rng.randbytes(rng.choice((1, 4, 100)))
        case 7:
            size = rng.choice((1, 2, 4, 4, 4, 8))
            value = rng.choice((*INTERESTING, len(data), rng.getrandbits(32)))
            data[at : at + size] = (value % (1 << (8 * size))).to_bytes(size, rng.choice(("big", "little")))
        case 8:
            other = decoder.make(rng)
            data[at:] = other[rng.randrange(len(other) + 1) :]
        case 9:
            other = decoder.make(rng)
            start = rng.randrange(len(other) + 1)
            data[at : at + 32] = other[start : start + 32]
        case 10 if data:
            text = rng.choice(
                (b"[" * 3000, b"{" * 3000, b"1e999", b"-1", b"null", b"NaN", b"\xff\xfe", b"9" * 30, b"\x00" * 40)
            )
            data[at : at + rng.choice((0, 1, 5))] = text
        case _:
            value = rng.choice((0, 1, 127, 128, 1 << 14, 1 << 31, (1 << 63) - 1))
            varint = bytearray()
            while value > 127:
                varint.append(value & 127 | 128)
                value >>= 7
            data[at : at + 1] = bytes([*varint, value])
    return data


def try_input(decoder: Decoder, data: bytes, is_measured: bool = False) -> tuple[bool, str | None]:
    """Whether it was accepted, and what is wrong with how it was treated."""
    began = time.process_time()
    if is_measured:
        tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            value = decoder.decode(data)
    except PoflError as error:
        problem = None if str(error) else "an error without a message"
        return False, _cost(decoder, data, began, is_measured) or problem
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        tracemalloc.stop()
        return False, f"{type(error).__name__}: {error}"[:300]
    cost = _cost(decoder, data, began, is_measured)
    return True, cost or _canonical(decoder, data, value)


def _cost(decoder: Decoder, data: bytes, began: float, is_measured: bool) -> str | None:
    if is_measured:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        limit = BASE_BYTES + decoder.allocates + BYTES_PER_BYTE * len(data)
        return f"it took {peak} bytes of memory for {len(data)} bytes, at most {limit}" if peak > limit else None
    spent = time.process_time() - began
    return f"it took {spent:.1f} s of CPU time for {len(data)} bytes" if spent > MAX_SECONDS else None


def _canonical(decoder: Decoder, data: bytes, value: object) -> str | None:
    try:
        if decoder.encode is not None and decoder.encode(value) != data:
            return "what it accepted is not what encoding the value gives"
        if decoder.again is not None and decoder.again(value) != value:
            return "writing and reading the value gives another one"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        return f"a value that it accepted cannot be written: {type(error).__name__}: {error}"[:300]
    return None


def _run(what: tuple[str, int, int, int]) -> tuple[str, Found]:
    name, seed, first, count = what
    began, decoder, found = time.process_time(), registry()[name], Found()
    for number in range(first, first + count):
        data = broken(decoder, seed, number)
        is_accepted, problem = try_input(decoder, data, number % MEASURED == 0)
        found.inputs += 1
        found.accepted += is_accepted
        found.refused += not is_accepted
        if problem is not None and len(found.failures) < KEPT:
            again = f"pofl bench fuzz --only {name} --seed {seed} --number {number}"
            found.failures.append(f"{name}: {problem}\nto see it again: {again}")
    found.cpu_seconds = time.process_time() - began
    return name, found


def fuzz(
    inputs: int,
    seed: int,
    only: Iterable[str] = (),
    jobs: int = 1,
    number: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """``inputs`` in all, split over the decoders so that none takes much more CPU time than the others.

    ``say`` is told how many are done, about every tenth. Raises ConfigError for a decoder that there is not.
    """  # fmt: skip
    known, names = registry(), list(only)
    if unknown := [name for name in names if name not in known]:
        near = difflib.get_close_matches(unknown[0], known, 3, 0.3)
        raise ConfigError(f"--only: no decoder {unknown[0]!r}" + (f", near to it: {', '.join(near)}" if near else ""))
    names = names or list(known)
    if number is not None:
        parts = [(name, seed, number, 1) for name in names]
    else:
        share = _shares(names, seed, inputs)
        parts = [(name, seed, first, min(PART, share[name] - first)) for name in names for first in range(0, share[name], PART)]
    with ProcessPoolExecutor(jobs) if jobs > 1 else contextlib.nullcontext() as pool:
        results = pool.map(_run, parts) if pool else map(_run, parts)
        totals: dict[str, Found] = collections.defaultdict(Found)
        wanted_inputs, done, said = sum(count for *_, count in parts), 0, 0
        for name, found in results:
            mine = totals[name]
            mine.inputs += found.inputs
            mine.accepted += found.accepted
            mine.refused += found.refused
            mine.cpu_seconds += found.cpu_seconds
            mine.failures += found.failures
            done += found.inputs
            if done * 10 // wanted_inputs > said:
                said = done * 10 // wanted_inputs
                say(f"{done} of {wanted_inputs} inputs, {sum(len(f.failures) for f in totals.values())} failures")
    return {
        "inputs": sum(f.inputs for f in totals.values()), "seed": seed, "decoders": len(totals),
        "accepted": sum(f.accepted for f in totals.values()), "refused": sum(f.refused for f in totals.values()),
        "failures": [text for f in totals.values() for text in f.failures],
        "cpu_seconds": round(sum(f.cpu_seconds for f in totals.values()), 3),
        "by_decoder": {name: [f.inputs, f.accepted, f.refused] for name, f in totals.items()},
    }  # fmt: skip


def _shares(names: list[str], seed: int, inputs: int) -> dict[str, int]:
    """More inputs for quick decoders; at least four for each."""
    cost = {}
    for name in names:
        decoder, began = registry()[name], time.process_time()
        for number in range(2):
            try_input(decoder, broken(decoder, seed, number))
        cost[name] = max(time.process_time() - began, 2e-4) / 2
    weight = {name: min(1.0, 5e-4 / cost[name]) for name in names}
    total = sum(weight.values())
    return {name: max(4, round(inputs * weight[name] / total)) for name in names}
