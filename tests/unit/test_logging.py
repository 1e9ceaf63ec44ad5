"""Log lines: fields, context, and what never appears in one."""

from __future__ import annotations

import asyncio
import contextvars
import json
from collections.abc import Generator
from pathlib import Path

import pytest

from core.errors import ConfigError, PoflError, UnavailableError
from services.cli.doctor import _tell
from services.cli.findings import Finding
from services.runtime.config import LogConfig
from services.runtime.logging import claim_id, logger, printable, scope, setup
from services.runtime.metrics import Exporter, counter, render

PEM = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2Vw\n-----END PRIVATE KEY-----"


@pytest.fixture
def file(tmp_path: Path, loggers_as_before: None) -> Path:
    path = tmp_path / "logs" / "node.log"
    setup("node", "node-0", LogConfig(level="info", format="json", file=path))
    return path


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


async def test_fields_come_from_the_call_the_logger_and_the_context(file: Path) -> None:
    log = logger("pofl.test").bind(pool="p-1")

    async def inner() -> None:
        log.info("100 % done", correct=342)

    with scope(height=7, task=b"\xab" * 32):
        await asyncio.create_task(inner())
    log.info("after")
    log.debug("unseen")
    first, second = lines(file)
    assert first == first | {
        "level": "info", "role": "node", "name": "node-0", "logger": "pofl.test", "message": "100 % done",
        "height": 7, "task": "abababab", "pool": "p-1", "correct": 342,
    }  # fmt: skip
    assert "height" not in second


def test_secrets_have_no_way_in(file: Path) -> None:
    log = logger("pofl.test")
    log.info(f"loaded {PEM}", signing_seed="aa" * 32, api_token="tok", blob=b"\x01\x02\x03\x04\x05\x06", text=PEM)
    try:
        raise PoflError(f"cannot parse {PEM}")
    except PoflError as error:
        log.exception("failed", error=error)
    written = file.read_text()
    for secret in ("MC4CAQAwBQYDK2Vw", "aaaaaaaa", 'tok"', "0506"):
        assert secret not in written
    assert '"blob": "01020304"' in written


def test_a_field_does_not_replace_what_identifies_the_line(file: Path) -> None:
    logger("pofl.test").info("x", role="miner", level="fatal")
    (line,) = lines(file)
    assert (line["role"], line["role_"], line["level"]) == ("node", "miner", "info")


def test_lines_for_people_stay_on_one_line(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    setup("node", "node-0", LogConfig(format="console"))
    logger("pofl.test").info("first\nERROR node/node-0 forged", peer="a b\nERROR forged")
    written = capsys.readouterr().err
    assert written.count("\n") == 1
    assert written.rstrip().endswith('INFO    node/node-0 first\\nERROR node/node-0 forged peer="a b\\\\nERROR forged"')


HOSTILE = "\x1b]0;x\x07 \x9b2J \u2028 \u2029 \x85 \x7f \u202e \x00\v Zürich 東京"
SHOWN = r"\x1b]0;x\x07 \x9b2J \u2028 \u2029 \x85 \x7f \u202e \x00\x0b Zürich 東京"


def test_a_peers_text_has_no_power_over_a_terminal(capsys: pytest.CaptureFixture[str], file: Path) -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("\ud800") == r"\ud800"
    setup("node", "node-0", LogConfig(format="console"))
    logger("pofl.test").info(HOSTILE, peer=HOSTILE, short="\x9b2J")
    try:
        raise PoflError(f"{HOSTILE}\n12:00:00.000 ERROR   node/node-0 forged")
    except PoflError:
        logger("pofl.test").exception("failed")
    written = capsys.readouterr().err
    assert written.replace("\n", "").isprintable()
    assert f"node/node-0 {SHOWN} peer=" in written
    assert written.splitlines()[0].endswith(r" short=\x9b2J")
    first, *rest = written.split("\n")[1:-1]
    assert first.endswith("failed")
    assert any("forged" in line for line in rest)
    assert all(line.startswith("  ") for line in rest), "what an error says begins no line of the log"


def test_nor_has_what_the_doctor_hears(capsys: pytest.CaptureFixture[str]) -> None:
    _tell([Finding("bad", "node-0", "peers", HOSTILE, f"ask {HOSTILE}"), Finding("ok", "node-0", "x", "a\nb")], False)
    written = capsys.readouterr().out
    assert written.replace("\n", "").isprintable()
    assert written.count("\n") == 4
    assert written.count(SHOWN) == 2


def test_json_lines_escape_it_too_and_say_the_same(file: Path) -> None:
    logger("pofl.test").info(HOSTILE, peer=HOSTILE + "\U000e0001")
    (written,) = file.read_text().rstrip("\n").split("\n")
    assert written.isprintable()
    assert "Zürich 東京" in written
    line = json.loads(written)
    assert (line["message"], line["peer"]) == (HOSTILE, HOSTILE + "\U000e0001")


def test_wrong_settings(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write the log file"):
        setup("node", "node-0", LogConfig(file=tmp_path / "file" / "node.log"))
    with pytest.raises(ConfigError, match=r"log.level must be"):
        setup("node", "node-0", LogConfig(level="loud"))  # type: ignore[arg-type]


TESTED = counter("tested", "Used by this test only.", ("what",))


def test_metrics_are_served_over_http() -> None:
    import urllib.request

    TESTED.labels("x").inc(3)
    exporter = Exporter("127.0.0.1:0")
    try:
        with urllib.request.urlopen(f"http://{exporter.address}/metrics", timeout=60) as response:
            text = response.read().decode()
        with pytest.raises(UnavailableError, match="cannot serve metrics on"):
            Exporter(exporter.address)
    finally:
        exporter.close()
    assert 'pofl_tested_total{what="x"} 3.0' in text
    assert 'pofl_tested_total{what="x"} 3.0' in render()
    with pytest.raises(ConfigError, match="host:port"):
        Exporter("nowhere")


def test_a_scope_may_be_left_in_another_context() -> None:
    # An abandoned stream is closed by the event loop, outside the context in which it began.
    def stream() -> Generator[None, None, None]:
        with scope(caller="gone"):
            yield

    abandoned = stream()
    contextvars.copy_context().run(next, abandoned)
    abandoned.close()


def test_a_claim_has_one_name_everywhere(file: Path) -> None:
    """docs/operations.md greps for it: task and pool as they stand in every other line."""
    task, pool = bytes.fromhex("41dcdd9f" + "00" * 28), bytes.fromhex("ff8852e5" + "11" * 28)
    with scope(task=task, claim=claim_id(task, pool)):
        logger("pofl.test").info("claimed", pool=pool)
    (line,) = lines(file)
    assert line["claim"] == f"{line['task']}-{line['pool']}" == "41dcdd9f-ff8852e5"
