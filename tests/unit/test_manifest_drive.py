"""The driver does what a manifest says when it says so, undoes it whatever happens, and turns every failure into a problem."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest
from grpc import aio
from pofl.chain.v1 import chain_pb2 as pb

from bench.manifest import drive
from bench.manifest.backend import Backend, Healing
from bench.manifest.drive import _Run, _Seen, run_manifest
from bench.manifest.facts import Block, Facts, Model, Node
from bench.manifest.model import Act, At, Liar, Lie, Manifest, Perturbation
from core.errors import UnavailableError


class Recorded:
    """A back end that runs nothing and writes down what it is told."""

    publishes = False

    def __init__(self, folder: Path, failing: str = "") -> None:
        self.folder, self.failing, self.unable = folder, failing, ""
        self.told: list[str] = []
        self.accounts: Mapping[str, bytes] = {}
        self.test_set = folder

    async def start(self) -> None:
        if self.failing:
            raise UnavailableError(self.failing)

    def channel(self, name: str) -> aio.Channel:
        return aio.insecure_channel("127.0.0.1:1")

    async def perturb(self, what: Perturbation) -> Healing:
        if self.unable == "perturb":
            raise UnavailableError(f"cannot {what.act}")
        self.told.append(f"{what.act} {what.who[0]}")

        async def heal() -> None:
            await asyncio.sleep(0)
            if self.unable == "heal":
                raise OSError("cannot heal")
            self.told.append(f"heal {what.who[0]}")

        return heal

    def check(self) -> None: ...

    def task_files(self) -> tuple[Path, Path, Sequence[int]]:
        raise AssertionError

    def has_lied(self, liar: Liar) -> bool:
        return self.failing != liar.who

    async def report_leaks(self) -> None: ...

    async def close(self) -> None:
        self.told.append("closed")


def running(folder: Path, *perturbations: Perturbation) -> tuple[_Run, Recorded]:
    backend = Recorded(folder)
    made: Backend = backend
    run = _Run(Manifest("m", blocks=1, perturbations=perturbations), made, lambda line: None)
    run._zero = run.began
    return run, backend


async def until(run: _Run, backend: Recorded, told: list[str]) -> None:
    async with asyncio.timeout(60):
        while backend.told != told:  # noqa: ASYNC110 - it only writes down
            await asyncio.sleep(0.01)


async def test_what_is_due_at_a_height_or_a_phase_waits_for_it(tmp_path: Path) -> None:
    run, backend = running(
        tmp_path,
        Perturbation(Act.RESTART, ("node0",), At(height=5)),
        Perturbation(Act.RESTART, ("pool0",), At(task=2, phase="training")),
    )
    goal = asyncio.create_task(run._goal())
    await asyncio.sleep(0.3)
    assert backend.told == []
    run._seen.height = 6
    await until(run, backend, ["restart node0", "heal node0"])
    run._seen.tasks = [(b"1", "won"), (b"2", "entry")]
    await asyncio.sleep(0.3)
    assert len(backend.told) == 2
    # Training went by between two looks.
    run._seen.tasks = [(b"1", "won"), (b"2", "evaluation")]
    await until(run, backend, ["restart node0", "heal node0", "restart pool0", "heal pool0"])
    async with asyncio.timeout(60):
        await goal
    assert run.outcome.problems == []


async def test_two_on_one_process_come_one_after_the_other(tmp_path: Path) -> None:
    first = Perturbation(Act.PAUSE, ("node0",), At(height=1), for_seconds=0.2)
    second = Perturbation(Act.KILL, ("node0",), At(height=1), for_seconds=0.0)
    run, backend = running(tmp_path, first, second)
    run._seen.height = 1
    goal = asyncio.create_task(run._goal())
    await until(run, backend, ["pause node0", "heal node0", "kill node0", "heal node0"])
    assert not goal.done()  # the work block is missing
    goal.cancel()
    await asyncio.gather(goal, return_exceptions=True)


async def test_what_is_done_is_undone_when_the_time_is_up(tmp_path: Path) -> None:
    run, backend = running(tmp_path, Perturbation(Act.PAUSE, ("node0",), At(height=1), for_seconds=3600.0))
    run._seen.height = 1
    goal = asyncio.create_task(run._goal())
    await until(run, backend, ["pause node0"])
    goal.cancel()
    with pytest.raises(asyncio.CancelledError):
        await goal
    await until(run, backend, ["pause node0", "heal node0"])


async def test_a_run_goes_on_until_every_liar_has_lied_in_a_task_that_ended(tmp_path: Path) -> None:
    run, backend = running(tmp_path)
    run.manifest = Manifest("m", blocks=1, liars=(Liar("pool1", Lie.COUNT), Liar("requester0", Lie.VALUES, 1)))
    backend.accounts = {"pool1": b"p" * 32}
    backend.failing = "requester0"
    run._seen.tasks = [(b"1", "won")]
    assert not run._all_have_lied()
    backend.failing = ""
    # She lied in the task that is being decided; and that is seen although the pool has not lied yet.
    assert not run._all_have_lied()
    run._seen.full_claims = {b"p" * 32}
    assert not run._all_have_lied()
    run._seen.tasks = [(b"1", "won"), (b"2", "void")]
    assert run._all_have_lied()


def test_only_full_claims_of_ended_tasks_count() -> None:
    def task(phase: pb.TaskPhase.ValueType, correct: int) -> pb.TaskView:
        return pb.TaskView(phase=phase, spec=pb.TaskSpec(samples=400), entries=[pb.Entry(pool=b"p", correct=correct)])

    seen = _Seen()
    seen.look(7, [task(pb.TASK_PHASE_WORK, 400), task(pb.TASK_PHASE_VOID, 399)])
    assert (seen.height, seen.ended, seen.won, seen.full_claims) == (7, 1, 0, set())
    seen.look(8, [task(pb.TASK_PHASE_VOID, 400), task(pb.TASK_PHASE_WON, 399)])
    assert (seen.height, seen.ended, seen.won, seen.full_claims) == (8, 2, 1, {b"p"})


async def test_a_failure_is_a_problem_of_the_outcome_and_everything_is_closed(tmp_path: Path) -> None:
    backend = Recorded(tmp_path, failing="no room")
    outcome = await run_manifest(Manifest("m", seed=9), backend, lambda line: None)
    assert outcome.problems == ["UnavailableError: no room"]
    assert outcome.seed == 9
    assert "PROBLEM: UnavailableError: no room" in outcome.timeline[-1]
    assert backend.told == ["closed"]
    assert outcome.as_json()["folder"] == str(tmp_path)


@pytest.mark.parametrize(("unable", "said"), [("perturb", "UnavailableError: cannot kill"), ("heal", "OSError: cannot heal")])
async def test_a_perturbation_that_fails_is_a_problem_and_the_rest_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unable: str, said: str
) -> None:
    async def ready(run: _Run) -> bool:
        return True

    async def watch(run: _Run) -> None: ...

    async def judged(run: _Run) -> None:
        run.say("judged")

    monkeypatch.setattr(_Run, "_is_ready", ready)
    monkeypatch.setattr(_Run, "_watch", watch)
    monkeypatch.setattr(_Run, "_judge", judged)
    backend = Recorded(tmp_path)
    backend.unable = unable
    kill = Perturbation(Act.KILL, ("node0",), At(seconds=0.0))
    outcome = await run_manifest(Manifest("m", blocks=1, perturbations=(kill,)), backend, lambda line: None)
    assert outcome.problems == [f"perturbation failed: {said}"]
    assert outcome.timeline[-1].endswith("judged")
    assert backend.told[-1] == "closed"


async def test_what_is_undone_too_late_and_fails_is_a_problem_too(tmp_path: Path) -> None:
    run, backend = running(tmp_path, Perturbation(Act.PAUSE, ("node0",), At(height=1), for_seconds=3600.0))
    run._seen.height, backend.unable = 1, "heal"
    goal = asyncio.create_task(run._goal())
    await until(run, backend, ["pause node0"])
    goal.cancel()
    await asyncio.gather(goal, return_exceptions=True)
    assert run.outcome.problems == ["perturbation failed: OSError: cannot heal"]


def block(height: int, kind: str, task_id: bytes = b"") -> Block:
    return Block(height, b"", b"", b"", b"", b"", kind, b"", task_id=task_id)


async def test_nodes_are_judged_up_to_what_the_most_advanced_had_before_any_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that stays behind is a problem, not the new end of the chain; and the models are those of the blocks found."""
    asked: list[list[bytes]] = []

    async def heights(run: _Run) -> list[int]:
        return [3, 5, 5, 5]

    async def fetched(channels: Mapping[str, aio.Channel]) -> Facts:
        def node(name: str, height: int) -> Node:
            blocks = {h: block(h, "work" if h in (2, 6) else "transaction", bytes([h])) for h in range(1, height + 1)}
            return Node(name, height, 0, 0, blocks, {}, {}, {})

        return Facts(0, {}, 0, 0, (node("node0", 3), *(node(name, 6) for name in ("node1", "node2", "node3"))))

    async def models(run: _Run, won: Iterable[bytes]) -> Mapping[bytes, Model]:
        asked.append(list(won))
        return {}

    monkeypatch.setattr(_Run, "_heights", heights)
    monkeypatch.setattr(_Run, "_models", models)
    monkeypatch.setattr(drive, "fetch", fetched)
    monkeypatch.setattr(drive, "AGREE_SECONDS", 0.0)
    run, _ = running(tmp_path)
    run._channels = dict.fromkeys(run._nodes, aio.insecure_channel("127.0.0.1:1"))
    run._seen.height = 2
    run._seen.tasks = [(bytes([2]), "won"), (bytes([6]), "won")]
    await run._judge()
    assert "every block served: node0 is at height 3, others at 5" in run.outcome.problems
    assert not any("node1 is at height" in problem for problem in run.outcome.problems)
    assert asked == [[bytes([2])]]
    assert run.outcome.height == 5
    await run.close()
