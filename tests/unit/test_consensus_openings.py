"""Her signed "malformed", and the pool's time to open its body: one machine, driven by hand (docs/adr/0088)."""

from __future__ import annotations

from core.chain.messages import (
    AuditClaim,
    AuditDone,
    BlockAvailable,
    BodyHeld,
    Broadcast,
    OpeningAwaited,
    SetTimer,
    Start,
    Timer,
    TimerKind,
)
from core.chain.vote import VerdictKind
from core.chain.work_height import commitment_of
from core.ids import Correct
from tests.unit.test_consensus_machine import at_work, of


def test_a_late_malformed_gives_the_pool_its_time_and_does_not_blame_the_requester() -> None:
    """Before, the audit's timer went on while the opening was awaited: an honest requester who answered "malformed" later than
    audit_ms - open_ms lost her bond for a malicious pool's body."""
    bench, blocks = at_work()
    commitment = commitment_of(of(bench.do(Start()), AuditClaim)[0].claim)
    params = bench.chain.state.params
    bench.do(BlockAvailable(blocks[0]))
    bench.do(BodyHeld(commitment))
    bench.now += params.audit_ms - 1
    assert bench.do(OpeningAwaited(commitment)) == []
    bench.now += 1
    actions = bench.timeout(TimerKind.AUDIT, 0)
    assert of(actions, SetTimer) == [SetTimer(Timer(TimerKind.AUDIT, 0), params.open_ms - 1)]
    assert of(actions, Broadcast) == []
    # No opening came. This node judges in the same moment: the timer may be a little faster, and blames nobody.
    bench.now += params.open_ms - 1
    assert of(bench.timeout(TimerKind.AUDIT, 0), Broadcast) == []
    bench.do(AuditDone(commitment, VerdictKind.POOL_FAULT, Correct(0), "no opening", None))
    assert bench.machine.work.own_kinds(commitment) == {VerdictKind.POOL_FAULT}


def test_the_time_of_an_opening_is_counted_once_and_ends() -> None:
    """A requester who says "malformed" again and again delays nothing; a node that never judges does not halt the height."""
    bench, blocks = at_work()
    commitment = commitment_of(of(bench.do(Start()), AuditClaim)[0].claim)
    params = bench.chain.state.params
    bench.do(BlockAvailable(blocks[0]))
    bench.do(BodyHeld(commitment))
    for _ in range(9):
        bench.do(OpeningAwaited(commitment))
        bench.now += params.audit_ms // 8
    actions = bench.timeout(TimerKind.AUDIT, 0)
    assert of(actions, SetTimer) == [SetTimer(Timer(TimerKind.AUDIT, 0), params.audit_ms)]
    assert len(of(bench.timeout(TimerKind.AUDIT, 0), Broadcast)) == 1
    assert bench.machine.work.own_kinds(commitment) == {VerdictKind.UNAVAILABLE}


def test_malformed_after_the_audits_time_is_too_late() -> None:
    bench, blocks = at_work()
    commitment = commitment_of(of(bench.do(Start()), AuditClaim)[0].claim)
    bench.do(BlockAvailable(blocks[0]))
    bench.do(BodyHeld(commitment))
    bench.timeout(TimerKind.AUDIT, 0)
    bench.do(OpeningAwaited(commitment))
    bench.do(AuditDone(commitment, VerdictKind.POOL_FAULT, Correct(0), "no opening", None))
    assert bench.machine.work.own_kinds(commitment) == {VerdictKind.REQUESTER_FAULT}
