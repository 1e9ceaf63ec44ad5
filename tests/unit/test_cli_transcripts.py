"""``pofl chain transcript``: what it says of good files, and its exit code and sentence for every bad one."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.errors import CryptoError, WrongChainError
from core.ids import NodeId
from core.verification.audit_evidence import read_record
from services.cli import transcripts
from services.cli.main import main
from tests.node_world import keys, make_genesis
from tests.unit.test_audit_evidence import DATA, TRUE_N, resigned, stored
from tests.verification import VALIDATOR


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pofl", "chain", "transcript", *arguments])
    try:
        return main()
    except SystemExit as end:
        return int(end.code or 0)


def test_a_good_file_is_told_in_plain_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").write_bytes(DATA)
    (tmp_path / "s").write_bytes(stored().export(VALIDATOR))
    assert run(monkeypatch, str(tmp_path / "a"), str(tmp_path / "s")) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"an audit by validator {VALIDATOR.public_key.hex()[:8]}" in out
    assert f"the requester signed: {TRUE_N} correct" in out
    assert "openings of every run of the zero check over this running hash: it passed" in out
    assert f"the validator's result: Valid: {TRUE_N} of 20" in out
    assert "the check of a task's encrypted labels" in out
    assert "not compared with a network" in out


def test_json_has_every_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").write_bytes(DATA)
    assert run(monkeypatch, str(tmp_path / "a"), "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["validator"] == VALIDATOR.public_key.hex()
    assert shown["head"] == read_record(DATA).head.hex()
    assert shown["is_proved"] is True


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (DATA[:-1] + bytes([DATA[-1] ^ 1]), 5, "signature"),
        (resigned(lambda e: replace(e, session=bytes(32))), 5, "did not sign these openings"),
        (resigned(lambda e: replace(e, result="Valid: 20 of 20")), 2, "signed count"),
        (b"", 2, "no good transcript"),
        (b"not a transcript", 2, "write it again with `pofl explain HEIGHT --transcripts DIR`"),
        (bytes(transcripts.MAX_FILE + 10), 2, ""),
    ],
    ids=["bit", "hash", "result", "empty", "text", "large"],
)
def test_a_bad_file_is_named(
    data: bytes, code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad"
    path.write_bytes(data)
    assert run(monkeypatch, str(path)) == code
    said = "".join(capsys.readouterr().err.split())
    assert "".join(str(path).split()) in said
    assert "".join(words.split()) in said


def test_a_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, str(tmp_path / "none")) == 2
    assert "cannot read" in capsys.readouterr().err


def test_with_a_network_chain_and_signer_are_compared() -> None:
    record = read_record(DATA)
    genesis = make_genesis(keys(4, "others"))
    with pytest.raises(WrongChainError, match="a transcript of chain"):
        transcripts._check_origin(Path("x"), record, genesis)
    ours = SimpleNamespace(chain_id=record.chain_id, validators=genesis.validators)
    with pytest.raises(CryptoError, match="no validator"):
        transcripts._check_origin(Path("x"), record, ours)  # type: ignore[arg-type]
    ours.validators = (SimpleNamespace(node_id=NodeId(VALIDATOR.public_key)),)
    transcripts._check_origin(Path("x"), record, ours)  # type: ignore[arg-type]
