"""Draws manifests: legal ones, the same for the same seed and number.

What is done to validators comes in slots, one after the other, and stops at most f of them, n > 3 f; now and then one slot
stops more, and ends within seconds. Everything that is drawn heals.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from bench.manifest.model import Act, At, Liar, Lie, Manifest, Perturbation, to_toml
from bench.manifest.reader import LEAST_FOR_MALFORMED, PROCESSES, Abilities, parse_manifest
from services.testnet.layout import Shape

__all__ = ["draw", "most_faulty"]

TASK_SECONDS: Final = 60.0
"""A task on a quiet machine, with a margin."""
SLACK_SECONDS: Final = 120.0
GAP: Final = 8.0
"""Seconds between two slots: those who were gone come back."""
LONGEST: Final = 12.0
OUTAGE: Final = 8.0
PHASES: Final = ("entry", "training", "evaluation", "work")


def draw(seed: int, number: int, abilities: Abilities = PROCESSES) -> Manifest:
    """Manifest ``number`` of a seed. It is what reading its text gives."""
    rng = random.Random(f"manifest {seed} {number}")
    nodes = rng.choice((1, 2, 4, 4, 4, 5))
    shape = Shape(nodes, pools=rng.choice((1, 1, 2)), miners=rng.choice((1, 1, 2)))
    providers = max(abilities.least_providers, rng.choice((0, 1, 1)))
    blocks = rng.choice((1, 1, 2))
    liars = _liars(rng, shape, providers, abilities)
    drawn = _on_nodes(rng, nodes, abilities)
    if not liars:
        # A liar must come to lie: then only validators are perturbed.
        drawn += _on_others(rng, shape, providers, blocks, abilities)
    lasting = max((p.at.seconds + p.for_seconds for p in drawn if p.at.seconds is not None), default=0.0)
    lies = sum(max(1, liar.times) for liar in liars)
    seconds = SLACK_SECONDS + TASK_SECONDS * (blocks + lies + len(drawn)) + lasting
    made = Manifest(
        name=f"seed{seed}-{number}",
        about=f"Drawn: seed {seed}, number {number}.",
        seed=rng.randrange(1 << 32),
        shape=shape,
        providers=providers,
        blocks=blocks,
        seconds=float(round(seconds)),
        liars=liars,
        perturbations=tuple(drawn),
    )
    return parse_manifest(to_toml(made), f"the manifest drawn with seed {seed}, number {number}", made.name, abilities)


def most_faulty(manifest: Manifest) -> int:
    """How many validators what is due at known seconds stops at once, at most."""
    spans = [
        (p.at.seconds, p.at.seconds + p.for_seconds, set(p.who))
        for p in manifest.perturbations
        if p.at.seconds is not None and p.act.stops
    ]
    validators = {name for name, role in manifest.processes if role == "node"}
    return max((len(set().union(*(w for a, b, w in spans if a <= t <= b)) & validators) for t, _, _ in spans), default=0)


def _on_nodes(rng: random.Random, nodes: int, abilities: Abilities) -> list[Perturbation]:
    names, most = [f"node{i}" for i in range(nodes)], (nodes - 1) // 3
    made: list[Perturbation] = []
    at = rng.uniform(1.0, 10.0)
    for _ in range(rng.randint(1, 3)):
        act = rng.choice([a for a in Act if a in abilities.acts])
        is_outage = act.stops and (not most or rng.random() < 0.2)
        if is_outage and act in (Act.RESTART, Act.DISCONNECT) and nodes == 1:
            act = Act.PAUSE
        count = rng.randint(1, nodes) if is_outage else rng.randint(1, max(1, most))
        if act is Act.DISCONNECT:
            count = min(count, max(1, nodes - 1))
        seconds = round(rng.uniform(0.5, OUTAGE if is_outage else LONGEST), 1) if act.takes_seconds else 0.0
        made.append(_filled(rng, act, sorted(rng.sample(names, count)), At(seconds=round(at, 1)), seconds))
        at += seconds + GAP + rng.uniform(0.0, 10.0)
    return made


def _on_others(rng: random.Random, shape: Shape, providers: int, blocks: int, abilities: Abilities) -> list[Perturbation]:
    pools = [f"pool{i}" for i in range(shape.pools)]
    miners = [f"{pool}-miner{i}" for pool in pools for i in range(shape.miners)]
    others = [*pools, *miners, "requester0", *(["provider0"] if providers else [])]
    made = []
    for _ in range(rng.randint(0, 2)):
        act = rng.choice([a for a in Act if a in abilities.acts and a is not Act.CLOCK])
        at = At(task=rng.randint(1, blocks), phase=rng.choice(PHASES))
        seconds = round(rng.uniform(0.5, LONGEST), 1) if act.takes_seconds else 0.0
        made.append(_filled(rng, act, [rng.choice(others)], at, seconds))
    return made


def _filled(rng: random.Random, act: Act, who: Sequence[str], at: At, seconds: float) -> Perturbation:
    shift = rng.choice((-4000, -1500, 1500, 4000)) if act is Act.CLOCK else 0
    delay = rng.choice((50, 150, 400)) if act is Act.SLOW else 0
    rate = rng.choice((0, 0, 65_536)) if act is Act.SLOW else 0
    return Perturbation(act, tuple(who), at, seconds, shift, delay, rate)


def _liars(rng: random.Random, shape: Shape, providers: int, abilities: Abilities) -> tuple[Liar, ...]:
    made: list[Liar] = []
    can = [lie for lie in Lie if lie in abilities.lies and (providers or lie is not Lie.LEAK)]
    if shape.nodes < LEAST_FOR_MALFORMED and Lie.MALFORMED in can:
        can.remove(Lie.MALFORMED)
    if can and rng.random() < 0.4:
        lie = rng.choice(can)
        who = "requester0" if lie.role == "requester" else f"pool{rng.randrange(shape.pools)}"
        made.append(Liar(who, lie, 0 if lie is Lie.LEAK else 1))
    return tuple(made)
