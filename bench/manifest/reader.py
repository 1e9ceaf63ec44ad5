"""Reads manifests, strictly: whatever is wrong is one sentence that names the file, the key, and what to do."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Final, NoReturn

from bench.manifest.model import PHASES, WINDOWS, Act, At, Liar, Lie, Manifest, Perturbation
from core.errors import ConfigError
from core.params import ChainParams
from services.testnet.layout import Shape, fitted

__all__ = ["CONTAINERS", "LEAST_FOR_MALFORMED", "PROCESSES", "Abilities", "parse_manifest", "read_manifest"]

MAX_BYTES: Final = 256 * 1024
MAX_SECONDS: Final = 24 * 3600.0
MOST: Final = {"nodes": 16, "pools": 8, "miners": 8, "providers": 1, "blocks": 1000, "perturb": 1000}
MAX_NUMBER: Final = 10**15
LEAST_FOR_MALFORMED: Final = 3
"""Nodes: a claim that more than a third of the validators call valid is adopted, whatever the others were told."""
SHORTEST_BLOCK: Final = 0.05
"""Seconds: no chain of ours has made a block in less."""


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a back end can do."""

    name: str
    acts: frozenset[Act]
    lies: frozenset[Lie]
    windows: bool
    """Whether genesis parameters can be set."""
    least_providers: int
    instead: str = ""
    """What to do where it cannot."""


PROCESSES: Final = Abilities("processes", frozenset(Act), frozenset(Lie), windows=True, least_providers=0)
CONTAINERS: Final = Abilities(
    "compose", frozenset((Act.KILL, Act.RESTART, Act.OFFLINE, Act.PAUSE, Act.DISCONNECT)), frozenset(), windows=False,
    least_providers=1, instead="run it on processes (without --compose)",
)  # fmt: skip


def read_manifest(path: Path, abilities: Abilities = PROCESSES) -> Manifest:
    """Raises ConfigError."""
    try:
        data = path.read_bytes()
        if len(data) > MAX_BYTES:
            raise ConfigError(f"{path} has {len(data)} bytes, a manifest at most {MAX_BYTES}: is it one?")
        text = data.decode()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a text file in UTF-8") from None
    return parse_manifest(text, str(path), path.stem, abilities)


def parse_manifest(text: str, where: str, name: str, abilities: Abilities = PROCESSES) -> Manifest:
    """``where``: what messages call the file. Raises ConfigError."""
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{where} is not TOML: {error}") from None
    return _Reader(where, abilities).manifest(name, table)


class _Reader:
    def __init__(self, where: str, abilities: Abilities) -> None:
        self._where, self._abilities = where, abilities

    def refuse(self, key: str, what: str) -> NoReturn:
        raise ConfigError(f"{self._where}: {key} {what}", key=key)

    def manifest(self, name: str, table: Mapping[str, Any]) -> Manifest:
        self.known("", table, ("about", "seed", "network", "windows", "until", "liar", "perturb"))
        network, until = self.table("network", table), self.table("until", table)
        self.known("network", network, ("nodes", "pools", "miners", "providers", "reward"))
        self.known("until", until, ("blocks", "seconds"))
        made = Manifest(
            name=name,
            about=self.text("about", table.get("about", "")),
            seed=self.number("seed", table.get("seed", 1), 0, MAX_NUMBER),
            shape=Shape(
                nodes=self.number("network.nodes", network.get("nodes", 4), 1, MOST["nodes"]),
                pools=self.number("network.pools", network.get("pools", 1), 1, MOST["pools"]),
                miners=self.number("network.miners", network.get("miners", 1), 1, MOST["miners"]),
                reward=self.number("network.reward", network.get("reward", 1_000_000), 1, MAX_NUMBER),
            ),
            providers=self.number("network.providers", network.get("providers", 1), 0, MOST["providers"]),
            windows=self.windows(self.table("windows", table)),
            blocks=self.number("until.blocks", until.get("blocks", 1), 0, MOST["blocks"]),
            seconds=self.seconds("until.seconds", until.get("seconds", 240.0)),
        )
        if made.shape.reward > 10_000_000:
            self.refuse("network.reward", f"is {made.shape.reward}: the requester can pay 10000000 for a task")
        if made.providers < self._abilities.least_providers:
            self.refuse("network.providers", f"is 0, and {self._abilities.name} always has one: leave it out, or "
                        f"{self._abilities.instead}")  # fmt: skip
        params = self.check_windows(made)
        liars = tuple(self.liar(number, item, made) for number, item in enumerate(self.list("liar", table), start=1))
        made = replace(made, liars=liars)
        self.check_liars(made)
        listed = self.list("perturb", table)
        if len(listed) > MOST["perturb"]:
            self.refuse("perturb", f"is there {len(listed)} times, at most {MOST['perturb']}")
        acts = tuple(self.perturbation(number, item, made, params) for number, item in enumerate(listed, start=1))
        made = replace(made, perturbations=acts)
        self.check_overlaps(made)
        return made

    # Parts

    def windows(self, table: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
        self.known("windows", table, WINDOWS)
        if table and not self._abilities.windows:
            self.refuse("windows", f"cannot be set in {self._abilities.name}, whose genesis has the default ones: leave the "
                        f"table out, or {self._abilities.instead}")  # fmt: skip
        return tuple((key, self.number(f"windows.{key}", value, 1, 3_600_000)) for key, value in table.items())

    def check_windows(self, made: Manifest) -> ChainParams:
        params = fitted(made.shape, made.params)
        try:
            params.check(made.shape.nodes)
        except ConfigError as error:
            self.refuse("windows", f"cannot be: {error.message}")
        for key, value in made.windows:
            if getattr(params, key) != value:
                self.refuse(f"windows.{key}", f"is {value}, with {made.shape.nodes} nodes at least {getattr(params, key)}")
        if 1000 * made.seconds < params.claim_ms and made.blocks:
            self.refuse("until.seconds", f"is {made.seconds:g}: a task alone takes {params.claim_ms / 1000:g} s until its "
                        "claims close, so no work block can come; say more")  # fmt: skip
        return params

    def liar(self, number: int, item: Mapping[str, Any], made: Manifest) -> Liar:
        key = f"liar {number}"
        self.known(key, item, ("who", "lie", "times"))
        lie = Lie(self.one_of(f"{key}: lie", item.get("lie"), [lie.value for lie in Lie]))
        who = self.process(f"{key}: who", item.get("who"), made)
        if lie not in self._abilities.lies:
            self.refuse(f"{key}: lie", f"is {str(lie)!r}, and containers run the product only: {self._abilities.instead}")
        if made.role(who) != lie.role:
            self.refuse(f"{key}: who", f"is {who!r}, and {str(lie)!r} is told by a {lie.role}")
        if lie is Lie.LEAK and not made.providers:
            self.refuse(f"{key}: lie", "is 'leak', and without a provider there is nothing to leak: network.providers = 1")
        if lie is Lie.MALFORMED and made.shape.nodes < LEAST_FOR_MALFORMED:
            self.refuse(f"{key}: lie", f"is 'malformed', and of {made.shape.nodes} nodes the one that she tells the truth is "
                        f"more than a third, which adopts the claim: at least {LEAST_FOR_MALFORMED} nodes")  # fmt: skip
        times = self.number(f"{key}: times", item.get("times", 0), 0, 1000)
        if lie is Lie.LEAK and times:
            self.refuse(f"{key}: times", "has no meaning for 'leak': leave it out")
        if lie.role == "requester" and not times and made.blocks:
            self.refuse(f"{key}: times", "is not there, so she lies in every task and no work block can come: say how often, "
                        "or until.blocks = 0")  # fmt: skip
        return Liar(who, lie, times)

    def check_liars(self, made: Manifest) -> None:
        names = [liar.who for liar in made.liars]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            self.refuse("liar", f"names {twice} twice: one lie each")
        always = {liar.who for liar in made.liars if liar.lie is Lie.COUNT and not liar.times}
        if made.blocks and len(always) == made.shape.pools:
            self.refuse("liar", "leaves no pool that claims what is true, so no work block can come: add a pool, or say "
                        "`times`, or until.blocks = 0")  # fmt: skip

    def perturbation(self, number: int, item: Mapping[str, Any], made: Manifest, params: ChainParams) -> Perturbation:
        key = f"perturb {number}"
        self.known(key, item, ("act", "who", "at", "for_seconds", "shift_ms", "delay_ms", "rate"))
        act = Act(self.one_of(f"{key}: act", item.get("act"), [act.value for act in Act]))
        if act not in self._abilities.acts:
            can = ", ".join(a for a in Act if a in self._abilities.acts)
            self.refuse(f"{key}: act", f"is {str(act)!r}, which {self._abilities.name} cannot do (it can {can}): "
                        f"{self._abilities.instead}")  # fmt: skip
        who = self.who(f"{key}: who", item.get("who"), made)
        if act is Act.CLOCK and (odd := next((w for w in who if made.role(w) != "node"), None)):
            self.refuse(f"{key}: who", f"is {odd!r}, and only a node's clock can be set wrong")
        if act is Act.DISCONNECT and len(who) == len(made.processes):
            self.refuse(f"{key}: who", "names every process: nobody is left to be cut off from")
        at = self.at(f"{key}: at", item.get("at"), made, params)
        seconds = self.lasting(f"{key}: for_seconds", item, act)
        if at.seconds is not None and at.seconds + seconds >= made.seconds:
            self.refuse(f"{key}: at", f"is {at.seconds:g} s and takes {seconds:g} s, and all ends at until.seconds = "
                        f"{made.seconds:g}: earlier, or a longer run")  # fmt: skip
        if seconds >= made.seconds:
            self.refuse(f"{key}: for_seconds", f"is {seconds:g}, and all ends at until.seconds = {made.seconds:g}")
        shift = self.only(f"{key}: shift_ms", item, "shift_ms", act is Act.CLOCK, -3_600_000, 3_600_000)
        delay = self.only(f"{key}: delay_ms", item, "delay_ms", act is Act.SLOW, 0, 10_000)
        rate = self.only(f"{key}: rate", item, "rate", act is Act.SLOW, 0, 1 << 30)
        if act is Act.CLOCK and not shift:
            self.refuse(f"{key}: shift_ms", "is not there or 0: by how much is the clock wrong?")
        if act is Act.SLOW and not (delay or rate):
            self.refuse(f"{key}: act", "is 'slow': say delay_ms, or rate in bytes a second, or both")
        return Perturbation(act, who, at, seconds, shift, delay, rate)

    def at(self, key: str, value: object, made: Manifest, params: ChainParams) -> At:
        if not isinstance(value, dict):
            self.refuse(key, f'is {value!r}: say {{ seconds = 5 }}, {{ height = 20 }} or {{ task = 1, phase = "training" }}')
        self.known(key, value, ("seconds", "height", "task", "phase"))
        if set(value) == {"seconds"}:
            return At(seconds=self.seconds(f"{key}.seconds", value["seconds"], least=0.0))
        if set(value) == {"height"}:
            height = self.number(f"{key}.height", value["height"], 1, MAX_NUMBER)
            if height * SHORTEST_BLOCK > made.seconds:
                self.refuse(f"{key}.height", f"is {height}: no chain gets there in until.seconds = {made.seconds:g}")
            return At(height=height)
        if set(value) == {"task", "phase"}:
            task = self.number(f"{key}.task", value["task"], 1, 1000)
            phase = self.one_of(f"{key}.phase", value["phase"], PHASES)
            # Every task before it lasts until its claims close, if any pool enters it.
            least = (task - 1) * params.claim_ms / 1000 if task <= made.blocks else 0.0
            if least > made.seconds:
                self.refuse(f"{key}.task", f"is {task}: {task - 1} tasks before it take {least:g} s, and all ends at "
                            f"until.seconds = {made.seconds:g}")  # fmt: skip
            return At(task=task, phase=phase)
        return self.refuse(key, f"has {', '.join(value) or 'nothing'}: say one of seconds, height, or task with phase")

    def lasting(self, key: str, item: Mapping[str, Any], act: Act) -> float:
        given = "for_seconds" in item
        if not act.takes_seconds:
            if given:
                self.refuse(key, f"has no meaning for {str(act)!r}: leave it out; 'offline' is a restart that takes a while")
            return 0.0
        if not given:
            self.refuse(key, f"is not there: for how long is it {str(act)!r}?")
        return self.seconds(key, item["for_seconds"], least=0.0 if act is Act.KILL else 0.1)

    def only(self, key: str, item: Mapping[str, Any], name: str, fits: bool, low: int, high: int) -> int:
        if name not in item:
            return 0
        if not fits:
            self.refuse(key, f"has no meaning for {item['act']!r}: leave it out")
        return self.number(key, item[name], low, high)

    def check_overlaps(self, made: Manifest) -> None:
        """Of perturbations whose times are known. Others that meet on a process wait for one another while it runs."""
        timed = [(n, p) for n, p in enumerate(made.perturbations, start=1) if p.at.seconds is not None]
        for (i, a), (j, b) in combinations(timed, 2):
            both = set(a.who) & set(b.who)
            first, second = sorted((a, b), key=lambda p: p.at.seconds or 0.0)
            assert first.at.seconds is not None
            assert second.at.seconds is not None
            if both and second.at.seconds < first.at.seconds + first.for_seconds:
                end = first.at.seconds + first.for_seconds
                self.refuse(f"perturb {j}: at", f"falls into perturb {i}, which has {sorted(both)[0]} from "
                            f"{first.at.seconds:g} s to {end:g} s: one after the other")  # fmt: skip

    # Values

    def known(self, key: str, table: Mapping[str, Any], names: Sequence[str]) -> None:
        unknown = next((name for name in table if name not in names), None)
        if unknown is not None:
            inside = f" in {key}" if key else ""
            self.refuse(repr(unknown), f"is no key{inside}: remove it; there are {', '.join(names)}")

    def table(self, key: str, table: Mapping[str, Any]) -> Mapping[str, Any]:
        value = table.get(key, {})
        if not isinstance(value, dict):
            self.refuse(key, f"is {value!r}: it must be a table, [{key}]")
        return value

    def list(self, key: str, table: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            self.refuse(key, f"must be tables, each under [[{key}]]")
        return value

    def number(self, key: str, value: object, low: int, high: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.refuse(key, f"is {_shown(value)}: it must be a whole number from {low} to {high}")
        return value

    def seconds(self, key: str, value: object, least: float = 1.0) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= MAX_SECONDS:
            self.refuse(key, f"is {_shown(value)}: it must be seconds from {least:g} to {MAX_SECONDS:g}")
        return float(value)

    def text(self, key: str, value: object) -> str:
        if not isinstance(value, str) or len(value) > 2000:
            self.refuse(key, f"is {_shown(value)}: it must be a text of at most 2000 characters")
        return value

    def one_of(self, key: str, value: object, names: Sequence[str]) -> str:
        if value not in names or not isinstance(value, str):
            self.refuse(key, f"is {_shown(value)}: it must be one of {', '.join(names)}")
        return value

    def process(self, key: str, value: object, made: Manifest) -> str:
        return self.one_of(key, value, [name for name, _ in made.processes])

    def who(self, key: str, value: object, made: Manifest) -> tuple[str, ...]:
        listed = value if isinstance(value, list) else [value]
        if not listed:
            self.refuse(key, "is empty: name a process, or several")
        names = tuple(self.process(key, item, made) for item in listed)
        if len(set(names)) != len(names):
            self.refuse(key, f"is {_shown(value)}: each process once")
        return names


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
