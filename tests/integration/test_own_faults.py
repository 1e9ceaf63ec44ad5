"""A node that fails at its own part of an audit says nothing of the requester: over gRPC, with an honest requester."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

import pytest

from core.crypto.signing import KeyPair
from core.errors import BudgetError, InternalError, LimitError, PoflError, StorageFullError, TransactionError, TurnError
from core.ids import Height
from core.ports import SystemRng
from core.verification.audit_evidence import read_record
from core.verification.audit_node import AuditNode, RequesterFault, Valid
from core.verification.messages import Envelope
from core.verification.receipt import SignedAnswer
from node import auditor as auditor_module
from node.auditor import Auditor
from node.outside import Channels
from node.transcripts import TranscriptStore
from services.rpc import verify_client
from services.rpc.convert_verify import envelope_to_proto
from services.rpc.errors import STATUS
from services.rpc.verify_client import audit, check_stored
from services.runtime.cpu import run_cpu
from services.storage import Memory
from tests.integration.test_requester_client import CLAIM, LONG, WORLD, Line, audit_machine, line, stored_machine
from tests.verification import VALIDATOR

__all__ = ["line"]  # the fixture

TASK = WORLD.task


class Full:
    """``run_cpu`` of a process that has no place for the first ``refusals`` computations."""

    def __init__(self, refusals: int) -> None:
        self.left = refusals
        self.inner = run_cpu

    async def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self.left:
            self.left -= 1
            raise LimitError("64 computations are running or waiting, no place for more: try again later")
        return await self.inner(function, *args, **kwargs)


@pytest.mark.parametrize("refusals", [1, 2, 7])
async def test_a_full_pool_of_workers_only_delays(line: Line, refusals: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, LimitError of our own pool was taken for what the requester sent: RequesterFault, her bond."""
    monkeypatch.setattr(verify_client, "run_cpu", Full(refusals))
    assert isinstance(await audit(line.channel, audit_machine(), LONG), Valid)
    monkeypatch.setattr(verify_client, "run_cpu", Full(refusals))
    await check_stored(line.channel, stored_machine(), LONG)


async def test_workers_that_stay_full_are_our_own_failure(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_client, "run_cpu", Full(1_000_000))
    machine = audit_machine()
    with pytest.raises(InternalError, match="too busy for its own part"):
        await audit(line.channel, machine, 0.5)
    assert machine.finding is None
    with pytest.raises(InternalError, match="too busy"):
        await check_stored(line.channel, stored_machine(), 0.5)


class Broken(AuditNode):
    """A defect that shows when the layers come."""

    failures = 1_000

    def _take_layer(self, message: Any) -> Any:
        if type(self).failures > 0:
            type(self).failures -= 1
            raise ZeroDivisionError("a defect")
        return super()._take_layer(message)


class BrokenAhead(AuditNode):
    def work_ahead(self) -> None:
        raise ValueError("a defect")


class BrokenStart(AuditNode):
    def start(self) -> tuple[Envelope, ...]:
        raise KeyError("a defect")


@pytest.mark.parametrize("kind", [Broken, BrokenAhead, BrokenStart])
async def test_a_defect_of_ours_is_no_finding(line: Line, kind: type[AuditNode], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Broken, "failures", 1_000)
    rng = SystemRng()
    machine = kind(TASK, rng.bytes(32), VALIDATOR, WORLD.pk, WORLD.encrypted, CLAIM, rng)
    with pytest.raises(InternalError, match="a defect"):
        await audit(line.channel, machine, LONG)
    assert machine.finding is None


class OneChannel:
    def __init__(self, line: Line) -> None:
        self._channel = line.channel

    async def get(self, target: str, role: str) -> Any:
        return self._channel


def make_auditor(line: Line, store: TranscriptStore | None = None, key: KeyPair = VALIDATOR) -> Auditor:
    channels = cast(Channels, OneChannel(line))
    return Auditor(key, channels, SystemRng(), store or TranscriptStore(Memory()))


async def find(auditor: Auditor, heard: list[SignedAnswer] | None = None, timeout: float = LONG) -> Any:
    told = heard if heard is not None else []
    finding, _ = await auditor.audit(TASK, WORLD.pk, WORLD.encrypted, CLAIM, timeout, Height(5), heard=told.append)
    return finding


async def test_a_defect_that_passes_is_retried_with_the_next_attempt(
    line: Line, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(auditor_module, "AuditNode", Broken)
    monkeypatch.setattr(Broken, "failures", 2)
    store = TranscriptStore(Memory())
    heard: list[SignedAnswer] = []
    with caplog.at_level(logging.ERROR):
        assert isinstance(await find(make_auditor(line, store), heard), Valid)
    assert store.attempts(TASK.task_id, CLAIM.vm.model_commitment) == 3
    assert len(heard) == 3  # her answer came before the defect
    assert [kept.result for kept in store.listed(Height(5), None)] == [f"Valid: {CLAIM.correct} of {TASK.samples}"]
    assert "ZeroDivisionError" in caplog.text or any(r.exc_info for r in caplog.records)


async def test_a_defect_that_stays_ends_without_a_finding(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditor_module, "AuditNode", Broken)
    monkeypatch.setattr(Broken, "failures", 1_000)
    store = TranscriptStore(Memory())
    with pytest.raises(InternalError, match="a defect"):
        await find(make_auditor(line, store))
    # A former life used everything up: that is ours too. Before, "3 attempts are used up" was the requester's fault.
    with pytest.raises(InternalError, match="in former lives"):
        await find(make_auditor(line, store))


async def test_a_requester_who_says_that_fresh_attempts_are_used_up_is_at_fault(line: Line) -> None:
    """She would else escape every audit with one word. Defence: the node knows which attempts it began."""
    line.requester.refuse = BudgetError("used up")
    finding = await find(make_auditor(line))
    assert isinstance(finding, RequesterFault)
    assert "3 attempts are used up" in finding.reason


@pytest.mark.parametrize("kind", [k for k in STATUS if k is not TransactionError], ids=lambda kind: kind.__name__)
async def test_whatever_a_requester_calls_her_silence_is_her_fault(
    line: Line, kind: type[PoflError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """She would else have an honest pool's claim skipped, and keep her bond: nodes took "internal error" and a dozen other
    words of hers for failures of their own. Defence: verify_client._may_pass."""
    monkeypatch.setattr(auditor_module, "PAUSE_SECONDS", 0.05)
    line.requester.refuse = kind("she says")
    assert isinstance(await find(make_auditor(line), timeout=0.4), RequesterFault)


async def test_a_requester_who_mends_her_failure_in_time_is_audited(line: Line) -> None:
    line.requester.refuse = StorageFullError("no room")
    found = asyncio.create_task(find(make_auditor(line)))
    async with asyncio.timeout(LONG):
        while not line.requester.streams:  # noqa: ASYNC110 - a server's state
            await asyncio.sleep(0.02)
    line.requester.refuse = None
    assert isinstance(await found, Valid)


async def test_an_audit_that_is_cut_short_leaves_its_transcript(line: Line) -> None:
    """The height may be decided while an audit runs, and what the requester said in it is still evidence."""
    store, silent = TranscriptStore(Memory()), asyncio.Event()

    def spoil(reply: Envelope) -> Any:
        if type(reply.message).__name__ == "MaskedProducts":
            silent.set()
            return None
        return envelope_to_proto(reply)

    line.requester.spoil = spoil
    task = asyncio.create_task(find(make_auditor(line, store)))
    async with asyncio.timeout(LONG):
        await silent.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (kept,) = store.listed(Height(5), None)
    record = read_record(store.get(kept.digest))
    assert record.result == "Undecided: the height was decided before this audit was over"
    assert record.answer is not None
    assert record.answer.answer.correct == CLAIM.correct
    assert not record.is_proved


async def test_a_claim_whose_turn_she_does_not_see_yet_costs_no_attempt(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditor_module, "PAUSE_SECONDS", 0.1)
    store = TranscriptStore(Memory())
    asked: list[int] = []

    def higher() -> tuple[Any, ...]:
        asked.append(1)
        line.requester.refuse = TurnError("claim 1 is neither refuted nor skipped") if len(asked) < 4 else None
        return ()

    finding, _ = await make_auditor(line, store).audit(TASK, WORLD.pk, WORLD.encrypted, CLAIM, LONG, Height(5), higher=higher)
    assert isinstance(finding, Valid)
    assert len(asked) == 4
    assert store.attempts(TASK.task_id, CLAIM.vm.model_commitment) == 1


async def test_who_refuses_a_turn_for_ever_is_at_fault(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditor_module, "PAUSE_SECONDS", 0.1)
    line.requester.refuse = TurnError("not yet")
    finding = await find(make_auditor(line), timeout=0.5)
    assert isinstance(finding, RequesterFault)
