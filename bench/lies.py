"""Every kind of lie, many times: how many pass? None may.

Two depths. *Forms*: the algebra of the zero checks on plaintext values, all coins fresh in each try, so that 10^4 tries of a
kind take seconds. *Protocol* (bench.lies_protocol): the same liars behind the real machines and real ciphertexts.

Why the forms decide: a run opens iff the decrypted number equals the verifier's (core.crypto.zero_check; the commitment comes
before the number is shown, so she cannot choose it). The two differ by the value of the form: BFV is exact within its noise
bound, the mask is uniform modulo q, and ``round(t (mask + q v / t) / q) - round(t mask / q) = v`` for an integer ``v``. Where a
ciphertext was planted half way between messages, ``v`` is a rational number and the difference is one of its two neighbours,
as the mask falls; here such a run counts as open if *either* neighbour is zero. So acceptance is never underrated.

The liars know what the requester knows and when she knows it: the public coins ``s, r`` before hints, ``χ`` before ``w``, and
nothing of the verifier's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from bench.lies_kinds import AUDIT_LIES, EVALUATION_LIES, STORED_LIES
from bench.lies_told import Case, Liar, Plant, PlantKind, new_case
from core.crypto.homomorphic.modular import centre
from core.crypto.homomorphic.params import Ints
from core.ports import SystemRng
from core.verification.activations import apply
from core.verification.audit_requester import AUDIT_RUNS, run_coins
from core.verification.evaluation_requester import EVALUATION_RUNS
from core.verification.field import T, dot, matmul, multiply, random_values
from core.verification.forms import AuditCoins, evaluation_const, hint_weights, known_weights
from core.verification.scored_model import count_correct, predict

__all__ = ["Tally", "could_open", "honest_refused", "measure", "run_forms"]

RNG = SystemRng()
CASE_TRIES = 50
"""Tries with one model and test set, then others are drawn."""


@dataclass(frozen=True, slots=True)
class Tally:
    """How often one kind of lie was told and not noticed. ``depth``: forms or protocol."""

    kind: str
    depth: str
    tries: int
    missed: int
    seconds: float


def measure(tries: int, protocol_tries: int, seed: int, kinds: Sequence[str] | None = None) -> dict[str, Any]:
    """Both depths, as one JSON object: every kind with its tries, misses and CPU seconds, and the sums."""
    from bench import lies_protocol

    found = run_forms(tries, seed, kinds) + lies_protocol.run_protocol(protocol_tries, seed, kinds)
    return {
        "seed": seed,
        "kinds": [asdict(tally) for tally in found],
        "tries": sum(tally.tries for tally in found),
        "missed": sum(tally.missed for tally in found),
        "honest_refused": honest_refused(min(tries, 100)) + lies_protocol.honest_refused(min(protocol_tries, 2)),
        "cpu_seconds": round(sum(tally.seconds for tally in found), 3),
    }


def honest_refused(tries: int) -> int:
    """How often the forms refuse an honest requester."""
    rng = np.random.default_rng()
    checks = (audit_accepts, evaluation_accepts, stored_accepts)
    return sum(not accepts(Liar(new_case(rng), rng)) for _ in range(tries) for accepts in checks)


def run_forms(tries: int, seed: int, kinds: Sequence[str] | None = None) -> list[Tally]:
    """``tries`` of each kind, through the forms of audit, evaluation and stored check. ``seed``: of the liars, not of coins."""
    checks: list[tuple[dict[str, type[Liar]], Callable[[Liar], bool]]] = [
        (AUDIT_LIES, audit_accepts), (EVALUATION_LIES, evaluation_accepts), (STORED_LIES, stored_accepts),
    ]  # fmt: skip
    found = []
    for lies, accepts in checks:
        for number, (kind, liar) in enumerate(lies.items()):
            if kinds is None or kind in kinds:
                found.append(_tally(kind, liar, accepts, tries, np.random.default_rng([seed, number])))
    return found


def _tally(kind: str, lie: type[Liar], accepts: Callable[[Liar], bool], tries: int, rng: np.random.Generator) -> Tally:
    start, missed = time.process_time(), 0
    case: Case | None = None
    for number in range(tries):
        if case is None or number % CASE_TRIES == 0:
            case = new_case(rng)
        missed += accepts(lie(case, rng))
    return Tally(kind, "forms", tries, missed, round(time.process_time() - start, 3))


def could_open(value: int, fraction: Fraction) -> bool:
    """A run whose form is ``value + fraction`` opens for some mask."""
    below = fraction.numerator // fraction.denominator
    above = below + (fraction.denominator != 1)
    return (value + below) % T == 0 or (value + above) % T == 0


def audit_accepts(liar: Liar) -> bool:
    """All runs of an audit open. ``Z`` and N* are fixed before any coin is drawn."""
    case = liar.case
    z, correct = liar.answer()
    if any(int(np.abs(layer).max()) > bound for layer, bound in zip(z, case.model.bounds(), strict=True)):
        return False
    if not 0 <= correct <= case.samples:
        return False
    model = case.model
    x = [apply(model.shape.activation, layer, shift) for layer, shift in zip(z, model.shape.shifts, strict=False)]
    chosen = predict(z[-1])
    counted = count_correct(chosen, case.labels)
    for _ in range(AUDIT_RUNS):
        coins = fresh_coins(case)
        mask, t = liar.hint(coins.s, coins.r)
        w = liar.products(coins.s, coins.r, coins.chi, mask, t)
        held, held_t = liar.encrypted_hint(mask, t)
        columns = multiply(w, coins.c2)
        known, const = known_weights(model.shape, coins, z, x, correct)
        on_hint = hint_weights(coins)
        value = dot(columns, matmul(coins.s, liar.encrypted_features())) + dot(known, model.encode()) + coins.c4 * counted
        value += dot(on_hint, np.append(held, held_t)) + const + dot(coins.omega, w)
        extra = _planted(liar.plants, columns, coins.s, coins.c4, chosen, known, on_hint)
        if not could_open(value, extra):
            return False
    return True


def fresh_coins(case: Case) -> AuditCoins:
    """One run's coins, as the node draws them: public ones from a fresh seed, secret ones of their own."""
    dims = case.dims
    s, r = run_coins(RNG.bytes(32), case.samples, dims[1])
    secret = random_values(RNG, dims[0] + 3)
    layers = tuple((random_values(RNG, case.samples), random_values(RNG, width)) for width in dims[2:])
    return AuditCoins(s, r, int(secret[-3]), secret[:-3], int(secret[-2]), int(secret[-1]), layers)


def _planted(
    plants: Sequence[Plant], columns: Ints, samples: Ints, label: int, chosen: Ints, model: Ints, hint: Ints
) -> Fraction:
    """What planted fractions add to a form: each times the integer, not only the residue, that its coefficient meets."""
    total = Fraction(0)
    for plant in plants:
        i, j = plant.place
        match plant.kind:
            case PlantKind.FEATURE:
                weight = _centred(columns[j]) * _centred(samples[i])
            case PlantKind.LABEL:
                weight = _centred(label) if int(chosen[i]) == j else 0
            case PlantKind.MODEL:
                weight = _centred(model[j])
            case PlantKind.HINT:
                weight = _centred(hint[j])
        total += weight * plant.size
    return total


def _centred(value: int | np.int64) -> int:
    return int(centre(np.array([int(value) % T], dtype=np.int64), T)[0])


def evaluation_accepts(liar: Liar) -> bool:
    """All runs of the pool's own check open, after it has decoded N from the labels that she fed."""
    case = liar.case
    z = liar.first_layer()
    if int(np.abs(z).max()) > case.model.bounds()[0]:
        return False
    _, chosen = case.model.forward_from(z)
    decoded = count_correct(chosen, liar.fed_labels(chosen))
    counted = count_correct(chosen, case.labels)
    for _ in range(EVALUATION_RUNS):
        coins = random_values(RNG, case.samples + case.dims[1] + 1)
        s, r, c4 = coins[: case.samples], coins[case.samples : -1], int(coins[-1])
        columns = matmul(case.model.weights[0], r)
        value = dot(columns, matmul(s, liar.encrypted_features())) + c4 * counted
        value += evaluation_const(case.model, z, decoded, coins)
        if not could_open(value, _planted(liar.plants, columns, s, c4, chosen, columns, columns)):
            return False
    return True


def stored_accepts(liar: Liar) -> bool:
    """All runs of the stored check open: ``Σ_i s_i (Σ_c Y[c, i] - 1)``."""
    one_hot = liar.encrypted_labels()
    for _ in range(AUDIT_RUNS):
        s = random_values(RNG, liar.case.samples)
        value = dot(s, one_hot.sum(axis=0)) - int(np.sum(s))
        extra = sum((_centred(s[plant.place[0]]) * plant.size for plant in liar.plants), Fraction(0))
        if not could_open(value, extra):
            return False
    return True
