"""What a manifest says: a network, how long it runs, who lies, and what is done to it.

::

    about = "A node is killed while pools train."
    seed = 1                              # of what is drawn while it runs
    [network]                             # nodes, pools, miners in each pool, providers (0 or 1), reward
    nodes = 4
    [windows]                             # genesis parameters, in milliseconds
    commit_ms = 14000
    [until]
    blocks = 1                            # work blocks
    seconds = 240                         # at most, counted from the first task on
    [[liar]]
    who = "pool1"
    lie = "count"
    times = 1                             # in so many tasks; left out: in all
    [[perturb]]
    act = "kill"
    who = ["node1"]                       # or one name
    at = { task = 1, phase = "training" } # or { seconds = 5 }, or { height = 20 }
    for_seconds = 4

Seconds count from when all nodes answer and every pool has a member: then the first task is published.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from core.params import ChainParams
from services.testnet.layout import PARAMS, Shape, process_names

__all__ = ["PHASES", "Act", "At", "Lie", "Liar", "Manifest", "Perturbation", "WINDOWS", "to_toml"]

PHASES: Final = ("pending", "open", "entry", "training", "evaluation", "work")
"""Of a task, in their order."""
WINDOWS: Final = (
    "entry_ms", "commit_ms", "claim_ms", "pending_ms", "settle_ms", "body_ms", "open_ms", "session_ms", "audit_ms",
    "draw_window_ms", "leak_window_ms", "idle_ms", "tick_ms",
)  # fmt: skip
"""Genesis parameters that a manifest may set."""


COMPUTED_IN: Final = ("entry_ms", "commit_ms", "claim_ms", "body_ms", "open_ms", "session_ms", "audit_ms", "leak_window_ms")


class Act(StrEnum):
    """What is done to a process from outside."""

    KILL = "kill"
    """SIGKILL; started again after ``for_seconds``."""
    RESTART = "restart"
    """SIGTERM; started again once it has ended."""
    OFFLINE = "offline"
    """SIGTERM; started again after ``for_seconds``."""
    PAUSE = "pause"
    """SIGSTOP, and SIGCONT after ``for_seconds``: connections stay, nothing moves."""
    DISCONNECT = "disconnect"
    """Those named reach one another and nobody else, silently, for ``for_seconds``."""
    SLOW = "slow"
    """Every piece that comes to those named or leaves them is ``delay_ms`` late, and no link carries more than ``rate`` bytes
    a second."""
    CLOCK = "clock"
    """The clock is ``shift_ms`` off: started anew with it, and again with the right one after ``for_seconds``."""

    @property
    def takes_seconds(self) -> bool:
        return self is not Act.RESTART

    @property
    def stops(self) -> bool:
        """Whether the process takes no part meanwhile."""
        return self not in (Act.SLOW, Act.CLOCK)


class Lie(StrEnum):
    """What a liar does; in all else it is the product's own program."""

    COUNT = "count"
    """A pool claims that its model has every row of the test set right."""
    LEAK = "leak"
    """A pool's first miner hands out the rows that the pool bought for it; the provider finds and reports them."""
    MALFORMED = "malformed"
    """The requester tells one validator the truth and the others that the pool's model is malformed."""
    VALUES = "values"
    """The requester scores the model of a claim with one number off by one."""

    @property
    def role(self) -> str:
        return "pool" if self in (Lie.COUNT, Lie.LEAK) else "requester"


@dataclass(frozen=True, slots=True)
class At:
    """When: one of seconds, height, or a phase of the task of a number, from 1 on."""

    seconds: float | None = None
    height: int | None = None
    task: int | None = None
    phase: str | None = None

    def __str__(self) -> str:
        if self.seconds is not None:
            return f"{self.seconds:g} s"
        if self.height is not None:
            return f"height {self.height}"
        return f"task {self.task} in {self.phase}"


@dataclass(frozen=True, slots=True)
class Perturbation:
    act: Act
    who: tuple[str, ...]
    at: At
    for_seconds: float = 0.0
    shift_ms: int = 0
    delay_ms: int = 0
    rate: int = 0
    """Bytes a second; 0: as many as come."""

    def __str__(self) -> str:
        lasting = f" for {self.for_seconds:g} s" if self.act.takes_seconds else ""
        return f"{self.act} {', '.join(self.who)}{lasting}"


@dataclass(frozen=True, slots=True)
class Liar:
    who: str
    lie: Lie
    times: int = 0
    """Lies in so many tasks; 0: in all."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """Read by bench.manifest.reader, which checks it."""

    name: str
    about: str = ""
    seed: int = 1
    shape: Shape = field(default_factory=Shape)
    providers: int = 1
    windows: tuple[tuple[str, int], ...] = ()
    blocks: int = 1
    seconds: float = 240.0
    liars: tuple[Liar, ...] = ()
    perturbations: tuple[Perturbation, ...] = ()

    @property
    def processes(self) -> tuple[tuple[str, str], ...]:
        """Name and role of each, in order of start."""
        return tuple((n, r) for n, r, _ in process_names(self.shape) if self.providers or r != "provider")

    def role(self, name: str) -> str:
        return dict(self.processes)[name]

    @property
    def params(self) -> ChainParams:
        """What the genesis document is made with."""
        return replace(PARAMS, **dict(self.windows))

    def slower(self, factor: float) -> Manifest:
        """For a busy machine: the windows that somebody computes in, and the time for all, so many times longer."""
        windows = dict(self.windows) | {name: round(getattr(self.params, name) * factor) for name in COMPUTED_IN}
        return replace(self, windows=tuple(windows.items()), seconds=self.seconds * factor)


def to_toml(manifest: Manifest) -> str:
    """The file; reading it gives the same manifest."""
    shape = manifest.shape
    lines = [f"about = {_text(manifest.about)}", f"seed = {manifest.seed}", "", "[network]"]
    lines += [f"nodes = {shape.nodes}", f"pools = {shape.pools}", f"miners = {shape.miners}"]
    lines += [f"providers = {manifest.providers}", f"reward = {shape.reward}"]
    if manifest.windows:
        lines += ["", "[windows]", *(f"{name} = {value}" for name, value in manifest.windows)]
    lines += ["", "[until]", f"blocks = {manifest.blocks}", f"seconds = {_number(manifest.seconds)}"]
    for liar in manifest.liars:
        lines += ["", "[[liar]]", f"who = {_text(liar.who)}", f"lie = {_text(liar.lie)}"]
        lines += [f"times = {liar.times}"] if liar.times else []
    for p in manifest.perturbations:
        lines += ["", "[[perturb]]", f"act = {_text(p.act)}", f"who = {_names(p.who)}", f"at = {{ {_at(p.at)} }}"]
        lines += [f"for_seconds = {_number(p.for_seconds)}"] if p.act.takes_seconds else []
        lines += [f"{key} = {value}" for key in ("shift_ms", "delay_ms", "rate") if (value := getattr(p, key))]
    return "\n".join(lines) + "\n"


def _at(at: At) -> str:
    if at.seconds is not None:
        return f"seconds = {_number(at.seconds)}"
    if at.height is not None:
        return f"height = {at.height}"
    return f"task = {at.task}, phase = {_text(at.phase or '')}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _names(names: Sequence[str]) -> str:
    return "[" + ", ".join(_text(name) for name in names) + "]"
