"""pool.learning.privacy: clipping, noise from secret coins, and the epsilon that it is worth."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from core.errors import ConfigError, LimitError
from core.ports import SystemRng
from pool.learning.privacy import NO_NOISE, LocalPrivacy, epsilon, gaussian
from tests.seeded import SeededRng


def test_off_is_off() -> None:
    update = np.array([3.0, -4.0])
    assert NO_NOISE.apply(update, SystemRng()) is update
    assert not NO_NOISE.is_on
    assert epsilon(NO_NOISE, 0, 1e-5) == 0.0
    assert epsilon(NO_NOISE, 1, 1e-5) == math.inf
    assert epsilon(LocalPrivacy(1.0), 1, 1e-5) == math.inf, "a bound alone hides nothing"


def test_an_update_is_clipped_in_length_and_not_in_direction() -> None:
    update = np.array([3.0, -4.0])
    np.testing.assert_allclose(LocalPrivacy(1.0).apply(update, SystemRng()), [0.6, -0.8])
    np.testing.assert_allclose(LocalPrivacy(10.0).apply(update, SystemRng()), update)
    np.testing.assert_array_equal(LocalPrivacy(1.0).apply(np.zeros(3), SystemRng()), np.zeros(3))
    for bad in (np.array([np.nan, 1.0]), np.array([np.inf, 1.0])):
        with pytest.raises(LimitError, match="not finite"):
            LocalPrivacy(1.0, 1.0).apply(bad, SystemRng())


def test_noise_is_normal_with_the_stated_deviation() -> None:
    privacy = LocalPrivacy(2.0, 1.5)
    noise = privacy.apply(np.zeros(200_000), SeededRng("noise"))
    assert np.std(noise) == pytest.approx(3.0, rel=0.01)
    assert abs(np.mean(noise)) < 0.03
    for deviations, share in ((1, 0.6827), (2, 0.9545), (3, 0.9973)):
        assert np.mean(np.abs(noise) < 3.0 * deviations) == pytest.approx(share, abs=0.004)
    sample = gaussian(100_000, SeededRng("tails"))
    assert np.isfinite(sample).all()
    assert 4.0 < np.abs(sample).max() < 7.0
    assert abs(np.mean(sample[:50_000] * sample[50_000:])) < 0.02, "cosine and sine of one pair are independent"


def test_noise_comes_from_the_coins_given_and_is_never_the_same() -> None:
    privacy, update = LocalPrivacy(1.0, 1.0), np.full(64, 0.01)
    same = [privacy.apply(update, SeededRng("coins")) for _ in range(2)]
    np.testing.assert_array_equal(*same)
    assert not np.any(privacy.apply(update, SystemRng()) == privacy.apply(update, SystemRng()))
    assert gaussian(5, SystemRng()).shape == (5,)


def test_update_and_noise_lie_on_one_grid() -> None:
    """Else the lowest bits of a sum of floats tell which float was added to (Mironov 2012)."""
    privacy = LocalPrivacy(0.7, 1.3)
    grid = 2.0 ** (math.floor(math.log2(0.91)) - 20)
    for seed in range(5):
        update = np.random.default_rng(seed).normal(size=1000)
        shown = privacy.apply(update, SeededRng(seed))
        np.testing.assert_array_equal(shown / grid, np.rint(shown / grid))


def test_what_is_blurred_is_never_longer_than_the_bound() -> None:
    """Sensitivity is what epsilon stands on: the update on the grid, before noise, is at most as long as C."""

    class NoCoins:
        def bytes(self, count: int) -> bytes:
            # Radius nearly 0: the largest first coin, and any angle.
            return b"\xff" * (count // 2) + b"\x00" * (count // 2)

    privacy = LocalPrivacy(1.0, 0.5)
    for seed in range(20):
        update = np.random.default_rng(seed).normal(size=500)
        assert np.linalg.norm(privacy.apply(update, NoCoins())) <= 1.0


def test_epsilon_is_that_of_the_formula_and_is_no_bound_when_it_should_not_be() -> None:
    """rho = 2 / z^2 a round; epsilon = T rho + 2 sqrt(T rho ln(1 / delta)). By hand for z = 20, T = 30, delta = 1e-5."""
    rho = 30 * 2 / 400
    assert epsilon(LocalPrivacy(1.0, 20.0), 30, 1e-5) == pytest.approx(rho + 2 * math.sqrt(rho * math.log(1e5)))
    assert epsilon(LocalPrivacy(1.0, 20.0), 30, 1e-5) == pytest.approx(2.778, abs=0.001)
    assert epsilon(LocalPrivacy(5.0, 20.0), 30, 1e-5) == epsilon(LocalPrivacy(1.0, 20.0), 30, 1e-5)
    for rounds, delta in ((-1, 0.1), (1, 0.0), (1, 1.0)):
        with pytest.raises(LimitError):
            epsilon(LocalPrivacy(1.0, 1.0), rounds, delta)


def test_the_exact_privacy_of_one_round_is_within_the_stated() -> None:
    """Balle and Wang 2018, theorem 8, gives the exact delta of the Gaussian mechanism: at the stated epsilon it is smaller."""

    def normal(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2))

    for noise in (2.0, 5.0, 20.0):
        for delta in (1e-3, 1e-6):
            eps, ratio = epsilon(LocalPrivacy(1.0, noise), 1, delta), 2.0 / noise
            exact = normal(ratio / 2 - eps / ratio) - math.exp(eps) * normal(-ratio / 2 - eps / ratio)
            assert exact <= delta


@pytest.mark.parametrize(("clip", "noise"), [(-1.0, 0.0), (math.nan, 0.0), (math.inf, 1.0), (0.0, 1.0), (1.0, -1.0)])
def test_impossible_settings_are_refused(clip: float, noise: float) -> None:
    with pytest.raises(ConfigError, match="dp_"):
        LocalPrivacy(clip, noise)


def test_the_table_of_the_page_is_what_the_formula_gives() -> None:
    page = (Path(__file__).parents[2] / "docs" / "mining.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", page.partition("## Privacy")[2], re.M)
    assert len(rows) == 5
    for noise, *shown in rows:
        for rounds, text in zip((1, 10, 30, 100), shown, strict=True):
            exact = epsilon(LocalPrivacy(1.0, float(noise)), rounds, 1e-5)
            # Rounded up: a smaller epsilon would be a stronger claim.
            assert exact <= float(text) <= 1.02 * exact
