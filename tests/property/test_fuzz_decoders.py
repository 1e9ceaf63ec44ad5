"""Broken bytes for everything that decodes what a peer or a user sent. `pofl bench fuzz` runs as many as one likes."""

from __future__ import annotations

import ast
import random
from pathlib import Path

import pytest

from bench.decoders import Decoder, converters, records, registry
from bench.fuzz import broken, fuzz, try_input
from core.errors import ConfigError, MalformedError
from core.params import Genesis

ROOT = Path(__file__).parents[2]
PACKAGES = ("core", "services", "node", "pool", "requester", "provider")


def test_every_decoder_takes_broken_inputs() -> None:
    result = fuzz(1_500, 7)
    assert result["failures"] == []
    assert result["accepted"] > 150
    assert result["refused"] > 150


NAMES = ("pool.flower.wire.vector_from_bytes", "core.chain.vote.Vote")

ANSWERS = ("market.receipt_from_proto", "submit.results_from_proto")
"""Of these only what fits the question is taken, and a random question and a random answer never fit."""


def test_every_decoder_accepts_a_valid_input() -> None:
    """Else its inputs are thrown away at the first check, and nothing behind that is tried."""
    for name, decoder in registry().items():
        tries = (try_input(decoder, decoder.make(random.Random(f"{name}/{n}"))) for n in range(60))
        assert any(is_accepted for is_accepted, _ in tries) or name.endswith(ANSWERS), name


def _called() -> set[str]:
    """Names of records that are decoded, and of converters that are called, anywhere in the product."""
    found = set()
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call):
                    continue
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name == "decode" and node.args and isinstance(node.args[0], ast.Name) and node.args[0].id[:1].isupper():
                    found.add(node.args[0].id)
                if name.endswith("_from_proto") and not name.startswith("_"):
                    found.add(name)
    return found


def test_no_decoder_in_use_is_missing() -> None:
    known = {name.rpartition(".")[2] for name in (*records(), *converters())}
    known.add("message_from_proto")  # Flower's own
    assert _called() - known == set()
    missing = {*records(), *converters()} - set(registry())
    assert {name.rpartition(".")[2] for name in missing} == {"activation_from_proto"}  # of a number: spec_from_proto calls it


def test_two_processes_do_what_one_does_and_say_how_far_they_are() -> None:
    said: list[str] = []
    one, two = (fuzz(300, 5, NAMES, jobs, say=said.append) for jobs in (1, 2))
    assert one["by_decoder"].keys() == two["by_decoder"].keys() == set(NAMES)
    assert one["failures"] == two["failures"] == []
    assert one["cpu_seconds"] > 0 < two["cpu_seconds"]
    assert said[-1] == f"{two['inputs']} of {two['inputs']} inputs, 0 failures"


def test_a_decoder_that_there_is_not_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no decoder 'vector_from_byte', near to it: .*pool.flower.wire.vector_from_bytes"):
        fuzz(10, 1, ["vector_from_byte"])


def test_a_finding_can_be_made_again() -> None:
    decoder = Decoder("broken one", lambda rng: rng.randbytes(8), lambda data: data[100])
    first = broken(decoder, 1, 5)
    assert first == broken(decoder, 1, 5)
    assert try_input(decoder, first) == (False, "IndexError: index out of range")


def test_a_decoder_that_is_not_canonical_is_found() -> None:
    decoder = Decoder("loose one", lambda rng: rng.randbytes(8), lambda data: data.rstrip(b"\x00"), lambda value: bytes(value))
    assert try_input(decoder, b"a\x00") == (True, "what it accepted is not what encoding the value gives")


def test_a_decoder_that_takes_much_memory_is_found() -> None:
    def greedy(data: bytes) -> object:
        room = bytearray(64 << 20)
        raise MalformedError(f"{len(room)}")

    is_accepted, problem = try_input(Decoder("greedy one", lambda rng: b"", greedy), b"abc", is_measured=True)
    assert not is_accepted
    assert problem is not None
    assert "bytes of memory" in problem


@pytest.mark.parametrize("text", ['{"params": {}, "name": "x", "protocol_version": 1e999}', "[" * 100_000])
def test_a_genesis_document_that_json_reads_and_python_cannot(text: str) -> None:
    with pytest.raises(ConfigError):
        Genesis.from_json(text)
