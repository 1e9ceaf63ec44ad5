"""The audit's form over plaintexts: zero for the truth, not zero for any lie, in hundreds of tries.

The ciphertexts of audit_form are replaced by the plaintexts that they hold, so that one try takes a millisecond; the weights,
the constant and the coins are the product's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from core.chain.transaction import Activation
from core.crypto.homomorphic import PARAMS
from core.verification import forms
from core.verification.activations import apply
from core.verification.audit_requester import run_coins
from core.verification.field import T, dot, matmul, multiply, random_values
from core.verification.forms import AuditCoins, audit_form, audit_known
from core.verification.scored_model import count_correct, predict
from core.verification.test_set import TestSet
from tests.models import random_features, random_labels, random_model
from tests.seeded import SeededRng
from tests.verification import make_world

DIMS, ROWS = (6, 5, 4, 3), 15
FEATURES, LABELS = random_features(ROWS, 6, 1), random_labels(ROWS, 3, 1)
WORLD = make_world(DIMS, ROWS, Activation.RELU, seed=21, plain=TestSet(FEATURES, LABELS, 3))
MODEL = random_model(DIMS, Activation.RELU, 2, shift=9)
Z = MODEL.forward(FEATURES)[0]


@dataclass(frozen=True)
class Plain:
    """The number itself where the product has a ciphertext of it."""

    value: int

    def __add__(self, other: Plain) -> Plain:
        return Plain((self.value + other.value) % T)

    def times(self, factor: int) -> Plain:
        return Plain(self.value * factor % T)

    def equals(self, const: int) -> int:
        return (self.value + const) % T


def plain_number(values: Any, _: Any, weights: Any) -> Plain:
    return Plain(dot(np.asarray(values).reshape(-1), weights.reshape(-1)))


@dataclass
class Story:
    """What the requester says; a lie changes one thing."""

    z: list[np.ndarray]
    correct: int
    t_shift: int = 0
    w_shift: int = 0
    m_shift: int = 0
    w_zero: bool = False


def run(story: Story, seed: int, shared: AuditCoins | None = None) -> int:
    """The value of one run's form; 0 is what an honest requester can open."""
    rng = SeededRng(f"form {seed}")
    s, r = run_coins(rng.bytes(32), ROWS, DIMS[1])
    secret = random_values(rng, DIMS[0] + 3)
    layers = tuple((random_values(rng, ROWS), random_values(rng, width)) for width in DIMS[2:])
    coins = shared or AuditCoins(s, r, int(secret[0]), secret[1:7], int(secret[7]), int(secret[8]), layers)
    mask = random_values(rng, DIMS[0])
    u = matmul(coins.s, FEATURES.astype(np.int64))
    w = np.remainder(multiply(matmul(MODEL.weights[0], coins.r), coins.chi) + mask, T)
    w[0] = 0 if story.w_zero else (w[0] + story.w_shift) % T
    hint = np.zeros((1, PARAMS.degree), dtype=np.int64)
    hint[0, : DIMS[0]] = mask
    hint[0, 1] = (hint[0, 1] + story.m_shift) % T
    hint[0, DIMS[0]] = (dot(mask, u) + story.t_shift) % T
    body = np.zeros((1, PARAMS.degree), dtype=np.int64)
    encoded = MODEL.encode()
    body[0, : len(encoded)] = encoded
    x = [apply(Activation.RELU, z, shift) for z, shift in zip(story.z, MODEL.shape.shifts, strict=False)]
    products = Plain(dot(multiply(w, coins.c2), u))
    labels = Plain(int(count_correct(predict(story.z[-1]), LABELS)))
    known_part: Any = audit_known
    made: Any = audit_form
    known = known_part(WORLD.task, MODEL.shape, coins, story.z, x, (body, body), labels, story.correct)
    value: int = made(WORLD.task, coins, w, products, (hint, hint), known)
    return value


def told(kind: str, seed: int) -> Story:
    rng = np.random.default_rng(seed)
    z = [layer.copy() for layer in Z]
    story = Story(z, int(count_correct(predict(Z[-1]), LABELS)))
    if kind.startswith("z"):
        layer = z[int(kind[1]) - 1]
        layer[rng.integers(layer.shape[0]), rng.integers(layer.shape[1])] += rng.choice([-1, 1, 7, -1000])
    elif kind == "rows":
        a, b = rng.choice(ROWS, 2, replace=False)
        for layer in z:
            layer[[a, b]] = layer[[b, a]]
    elif kind == "columns":
        a, b = rng.choice(5, 2, replace=False)
        z[0][:, [a, b]] = z[0][:, [b, a]]
    elif kind == "count":
        story.correct += int(rng.choice([-1, 1, 2]))
    elif kind == "T":
        story.t_shift = int(rng.integers(1, T))
    elif kind == "w":
        story.w_shift = int(rng.integers(1, T))
    elif kind == "m":
        story.m_shift = int(rng.integers(1, T))
    elif kind == "w zero":
        story.w_zero = True
    elif kind == "w and T":
        story.w_shift, story.t_shift = (int(v) for v in rng.integers(1, T, 2))
    if kind not in ("count",):
        story.correct = int(count_correct(predict(z[-1]), LABELS))
    return story


@pytest.fixture(autouse=True)
def _plaintexts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "number", plain_number)


def test_the_truth_is_zero() -> None:
    assert all(run(told("truth", seed), seed) == 0 for seed in range(50))


@pytest.mark.parametrize("kind", ["z1", "z2", "z3", "rows", "columns", "count", "T", "w", "m", "w zero", "w and T"])
def test_a_lie_is_not_zero(kind: str) -> None:
    """Attack 5, 50 tries of each kind, none missed. Defence: audit_form. Seen to fail without its c2 part (z1, rows, T), its
    ω part (m), its layer part (z2, z3), its c4 part (count)."""
    assert all(run(told(kind, seed), seed) != 0 for seed in range(50))


def test_the_pools_claim_plays_no_part() -> None:
    """Only the requester's own count is in the form: neither part of it has a parameter for a claim."""
    assert "claim" not in audit_form.__code__.co_varnames
    assert "claim" not in audit_known.__code__.co_varnames


def test_a_lie_that_fits_one_runs_coins_fails_the_others() -> None:
    """Attack 5, shared coins: a z_1 made to satisfy the public (s, r) of one run is caught by a run with its own."""
    for seed in range(30):
        rng = SeededRng(f"shared {seed}")
        s, r = run_coins(rng.bytes(32), ROWS, DIMS[1])
        z = [layer.copy() for layer in Z]
        z[0][0, 0] += int(s[1])  # s_0 r_0 s_1 - s_1 r_0 s_0 = 0: invisible in this run's first part
        z[0][1, 0] -= int(s[0])
        story = Story(z, int(count_correct(predict(z[-1]), LABELS)))
        silent = tuple((np.zeros(ROWS, np.int64), np.ones(width, np.int64)) for width in DIMS[2:])
        first = AuditCoins(s, r, 3, random_values(rng, 6), 5, 7, silent)
        assert run(story, seed, first) == 0
        own = AuditCoins(*run_coins(rng.bytes(32), ROWS, DIMS[1]), 3, random_values(rng, 6), 5, 7, silent)
        assert run(story, seed, own) != 0
