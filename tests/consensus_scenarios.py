"""Draws a network, its faults and its liars from a seed, runs it, and judges what came of it."""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from core.chain import verify
from core.chain.block import Block, BlockKind
from core.chain.messages import Message
from core.chain.rules_validators import is_punished
from core.chain.turns import proposer
from core.chain.vote import Proposal, Vote
from core.errors import InputError
from core.ids import Amount, Height
from core.params import ChainParams, Genesis
from tests.chainkit import GENESIS_MS, Chain, account, key, make_genesis
from tests.consensus_adversary import TRICKS, Accomplices, Answers, Liars, Style, Supply, Trick
from tests.consensus_monitor import RuleMonitor, fingerprint, ranking
from tests.consensus_sim import Link, Sim, SimNode, decoded, remember_signatures, transfers

SIZES = (4, 7, 16)
POWERS = {4: (3, 2, 2, 1), 7: (2, 1, 1, 1, 1, 1, 1)}
CLAIMS: dict[str, dict[str, int]] = {
    "three": {"pool0": 800, "pool1": 900, "pool2": 950},
    "tie": {"pool0": 900, "pool1": 900, "pool2": 900},
    "one": {"pool0": 700},
    "four": {"pool0": 500, "pool1": 510, "pool2": 520, "pool3": 530},
}


def params_for(validators: int) -> ChainParams:
    """The local defaults with windows that this many validators need."""
    base = ChainParams()
    least = base.min_window_ms(validators)
    audit = 2 * -(-validators // base.audit_slots) * base.session_ms
    return replace(
        base, entry_ms=least, commit_ms=4 * least, claim_ms=5 * least, settle_ms=max(least, base.settle_ms), audit_ms=audit,
    ).outlasting_stalls()  # fmt: skip


@functools.cache
def genesis_of(validators: int, is_even: bool = True) -> Genesis:
    genesis = make_genesis(validators, params_for(validators))
    if is_even:
        return genesis
    pairs = zip(genesis.validators, POWERS[validators], strict=True)
    return replace(genesis, validators=tuple(replace(v, power=p) for v, p in pairs))


@functools.cache
def prepared(validators: int, is_even: bool, claims: str) -> tuple[Chain, dict[bytes, list[Block]]]:
    """A chain whose next height is a work height, and two work blocks of each pool."""
    chain = Chain(genesis_of(validators, is_even))
    chain.to_work_height(**CLAIMS[claims])

    def another(parts: dict[str, Any]) -> None:
        first, second, *rest = parts["payouts"]
        parts["payouts"] = (
            replace(first, amount=Amount(first.amount + 1)), replace(second, amount=Amount(second.amount - 1)), *rest
        )  # fmt: skip

    blocks = {
        bytes(account(p)): [chain.work_block(p, after_ms=0), chain.work_block(p, another, after_ms=0)] for p in CLAIMS[claims]
    }
    return chain, blocks


@contextmanager
def cheap_signatures() -> Iterator[None]:
    """remember_signatures outside of pytest."""
    changed: list[tuple[Any, str, Any]] = []

    class Patch:
        def setattr(self, target: Any, name: str, value: Any) -> None:
            changed.append((target, name, getattr(target, name)))
            setattr(target, name, value)

    remember_signatures(Patch())
    try:
        yield
    finally:
        for target, name, value in reversed(changed):
            setattr(target, name, value)


@dataclass
class Run:
    """A drawn network. ``winner``: the pool that must win, where honesty and the design say so."""

    sim: Sim
    monitor: RuleMonitor
    calm_ms: int
    label: str
    winner: bytes | None = None
    work_height: int | None = None

    def play(self) -> dict[str, Any]:
        """Runs it to its end. Raises AssertionError at the first broken rule."""
        sim = self.sim
        rounds = {n.name: 0 for n in sim.nodes.values()}

        def measure() -> None:
            rounds.update({n.name: n.machine.round for n in sim.nodes.values() if n.machine and sim.is_honest(n.name)})

        sim.at(self.calm_ms, measure)
        sim.run(self.calm_ms - sim.start_ms + self._patience())
        self._judge(max(rounds.values()))
        for _ in range(len(sim.names)):
            if not self._missing():
                break
            sim.go_on(60_000)
        assert not self._missing(), f"evidence against {len(self._missing())} validators never came on the chain"
        return {"label": self.label, "took_ms": sim.now - sim.start_ms, "print": fingerprint(sim)}

    def _patience(self) -> int:
        """After the network healed: every claim may take its body's and its audit's time, then some rounds, for each height."""
        params, count = self.sim.state.params, len(self.sim.names)
        claims = self.sim.state.work_claims() or ()
        stall = len(claims) * (params.body_ms + params.audit_ms + params.gossip_ms)
        return stall + 60_000 + 2_000 * count

    def _judge(self, calm_round: int) -> None:
        sim, count = self.sim, len(self.sim.names)
        for at, height, round_ in self.monitor.certificates:
            if at > self.calm_ms:
                # Every validator proposes once, f of them liars; a node a round behind joins with the next one.
                bound = calm_round + 2 * count + 2
                assert round_ <= bound, f"height {height} took until round {round_}; it healed in round {calm_round}"
        if self.winner is not None and self.work_height is not None:
            node = next(n for n in sim.nodes.values() if sim.is_honest(n.name))
            header = node.chain[self.work_height][0].header.decoded()
            won = bytes(header.author_id) if header.kind is BlockKind.WORK else None
            assert won == self.winner, f"the honest top claim of {self.winner.hex()[:8]} lost: {header.kind.name.lower()} block"

    def _missing(self) -> set[bytes]:
        node = next(n for n in self.sim.nodes.values() if self.sim.is_honest(n.name))
        return {bytes(v) for v in self.monitor.evidence if not is_punished(node.state, v)}


def draw(seed: int, validators: int, trace: list[str] | None = None) -> Run:
    """The network of a seed."""
    rng = random.Random(seed * 1_000_003 + validators)
    is_even = validators not in POWERS or rng.random() < 0.75
    is_work = rng.random() < 0.65
    claims = rng.choice(tuple(CLAIMS))
    blocks: dict[bytes, list[Block]] = {}
    if is_work:
        chain, blocks = prepared(validators, is_even, claims)
        certificate, start_ms = chain.certificate(), chain.clock + 50
    else:
        chain = Chain(genesis_of(validators, is_even))
        certificate, start_ms = None, GENESIS_MS + 100
    state, names = chain.state, chain.names
    liars = _liars(rng, chain)
    is_turned = is_work and rng.random() < 0.15
    if is_turned:
        liars = _first_proposer(rng, chain)
    calm_ms = start_ms + (0 if is_turned else rng.choice((0, 3_000, 8_000, 15_000)))
    heights = 2 if is_work else rng.choice((2, 3))
    sim = Sim(
        seed, state, certificate, names, state.height + heights, start_ms, _link(rng, calm_ms), frozenset(liars),
        skew_ms=rng.choice((0, 300, 2_000)), transactions=transfers(state, rng.randint(0, 5)), reports=True, trace=trace,
        audit_delay_ms=rng.choice((50, 300, 1_200)),
    )  # fmt: skip
    sim.cut, sim.lost = _cut(rng, names, start_ms, calm_ms), _lost(rng, seed)
    lies: set[bytes] = set()
    winner, answers = None, rng.choices(("all", "none", "half", "third", "until", "late"), (6, 1, 2, 2, 1, 1))[0]
    if is_work:
        supplies = {pool: _supply(rng, state.params) for pool in blocks}
        if is_turned:
            answers = "all"
            late = state.params.body_ms + rng.randint(50, state.params.gossip_ms // 3)
            supplies[bytes(ranking(state)[0].pool)] = Supply(True, "late", "all", late)
        lies = {pool for pool, supply in supplies.items() if not supply.is_true}
        sim.work_blocks = [b for made in blocks.values() for b in made]
        sim.blobs = Accomplices(sim, supplies, _answers(answers), blocks)
        top = next((bytes(e.pool) for e in ranking(state) if supplies[bytes(e.pool)].is_true), None)
        if top is not None and answers == "all" and (supplies[top].body, supplies[top].work) == ("all", "all"):
            winner = top
    monitor = RuleMonitor(sim, lies, quick=answers == "all")
    sim.monitor = monitor
    if liars:
        sim.adversary = Liars(sim, liars, frozenset(lies))
        sim.forgetful = frozenset(n for n in liars if rng.random() < 0.4)
        for name in sim.forgetful:
            for _ in range(3):
                sim.at(start_ms + rng.randint(200, 15_000), functools.partial(_kill, sim.nodes[name]))
    label = f"{validators} validators, {claims + ' claims' if is_work else 'transactions'}, {len(liars)} liars"
    return Run(sim, monitor, calm_ms, label, winner, int(state.height) + 1 if is_work else None)


def _kill(node: SimNode) -> None:
    if node.is_up and node.machine is not None:
        node.crash()


def _liars(rng: random.Random, chain: Chain) -> dict[str, frozenset[Trick]]:
    """As many as may be, or fewer: less than 1/3 of the power."""
    if rng.random() < 0.15:
        return {}
    powers = {v.node_id: v.power for v in chain.state.validators}
    total, found, spent = sum(powers.values()), dict[str, frozenset[Trick]](), 0
    for name in rng.sample(chain.names, len(chain.names)):
        power = powers[key(name).public_key]  # type: ignore[index]
        if 3 * (spent + power) < total and (not found or rng.random() < 0.9):
            spent += power
            found[name] = frozenset(rng.sample(TRICKS, rng.randint(1, 4)))
    return found


def _first_proposer(rng: random.Random, chain: Chain) -> dict[str, frozenset[Trick]]:
    """The proposer of round 0 passes the best claim over: everybody called it unavailable before it came."""
    state = chain.state
    who = proposer(state.validators, Height(state.height + 1), 0)
    name = next(n for n in chain.names if key(n).public_key == who)
    if 3 * verify.powers(state.validators)[who] >= state.total_power:
        return {}
    return {name: frozenset(("worst", *rng.sample(TRICKS[1:], rng.randint(0, 1))))}


def _link(rng: random.Random, calm_ms: int) -> Link:
    if rng.random() < 0.25:
        return Link(calm_ms=calm_ms)
    return Link(
        drop=rng.choice((0, 0.05, 0.2, 0.4)), duplicate=rng.choice((0, 0.2)), delay_ms=rng.choice((40, 200, 600, 1_500)),
        calm_ms=calm_ms, crash=rng.choice((0, 0, 0.01, 0.04)), crash_locked=rng.choice((0, 0, 0, 0.7)),
    )  # fmt: skip


def _cut(rng: random.Random, names: list[str], start_ms: int, calm_ms: int) -> Any:
    """Partitions before the network heals: two sides for a while, then two others."""
    if calm_ms == start_ms or rng.random() < 0.6:
        return None
    spans = []
    at = start_ms
    while at < calm_ms:
        end = min(calm_ms, at + rng.randint(200, 5_000))
        spans.append((at, end, frozenset(rng.sample(names, rng.randint(1, len(names) // 2)))))
        at = end + rng.randint(0, 1_500)
    return lambda a, b, now: any(first <= now < last and (a in side) != (b in side) for first, last, side in spans)


def _lost(rng: random.Random, seed: int) -> Any:
    """What one node never hears of one vote or proposal, by whatever way and however often it is sent, till calm."""
    share = rng.choice((0, 0, 0.15, 0.35, 0.5))
    if not share:
        return None

    def lost(_: str, receiver: str, message: Message) -> bool:
        try:
            content = decoded(message)
        except InputError:
            return False
        if not isinstance(content, Vote | Proposal):
            return False
        step = content.step if isinstance(content, Vote) else 0
        place = f"{seed}/{receiver}/{content.validator.hex()}/{content.height}/{content.round}/{step}"
        return hashlib.sha256(place.encode()).digest()[0] < 256 * share

    return lost


def _answers(name: str) -> Answers:
    return name  # type: ignore[return-value]


def _supply(rng: random.Random, params: ChainParams) -> Supply:
    styles: tuple[Style, ...] = ("all", "none", "half", "third", "late")
    body = rng.choices(styles, (6, 1, 2, 2, 2))[0]
    work = rng.choices((*styles, "two"), (8, 1, 1, 1, 1, 1))[0]
    late = params.body_ms + rng.randint(-500, params.gossip_ms)
    return Supply(rng.random() < 0.55, body, work, late)


def play(seed: int, validators: int, trace: list[str] | None = None) -> dict[str, Any]:
    """One run. Raises AssertionError with the command that replays it."""
    run = draw(seed, validators, trace)
    try:
        return run.play()
    except AssertionError as error:
        command = f"pofl bench consensus-sim --replay {seed} --validators {validators}"
        raise AssertionError(f"seed {seed}, {run.label}: {error}\nto see it again: {command}") from error
