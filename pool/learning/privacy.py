"""Differential privacy at the miner, for the miner: its update is clipped and blurred before anybody else sees it.

The Gaussian mechanism (Dwork and Roth 2014, appendix A) on the whole update: ``min(1, C / |v|) v + N(0, (z C)^2 I)``. The miner
trusts nobody with it: no pool, no other miner, no server-side noise ("local" privacy).

What it guarantees. Two sets of rows of this miner with the same number of rows, however different, give clipped updates at
most 2 C apart, so each answered round is rho-zCDP with ``rho = (2 C)^2 / (2 (z C)^2) = 2 / z^2`` (Bun and Steinke 2016,
proposition 1.6, along the line between the two), rounds add up also when each is chosen after the ones before (lemma 2.3), and
T rounds are (epsilon, delta)-differentially private with ``epsilon = T rho + 2 sqrt(T rho ln(1 / delta))`` for every delta
between 0 and 1 (proposition 1.3).

What it does not. The number of rows is told, for it is what the miner is paid by. How long training took is told by the clock.
The noise is made of floating-point numbers: it is rounded to a grid with the update (below), which closes the gaps between
floats by which Mironov 2012 tells inputs apart, but it is not a proof for arithmetic of finite precision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from core.errors import ConfigError, LimitError
from core.ports import Rng

__all__ = ["NO_NOISE", "LocalPrivacy", "epsilon", "gaussian"]

GRID_BITS: Final = 20
"""Update and noise are multiples of the noise's standard deviation divided by about 2^20."""


@dataclass(frozen=True, slots=True)
class LocalPrivacy:
    """``clip``: C, the longest update in the L2 norm, 0 for no bound. ``noise``: z, its standard deviation in units of C.

    Raises ConfigError for values that are no bounds, and for noise without a bound.
    """

    clip: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("dp_clip", self.clip), ("dp_noise", self.noise)):
            if not (math.isfinite(value) and 0 <= value <= 1e6):
                raise ConfigError(f"{name} = {value}, must be 0 to 1e6")
        if self.noise and not self.clip:
            raise ConfigError(f"dp_noise = {self.noise} needs dp_clip: noise says nothing of an update of any length")

    @property
    def is_on(self) -> bool:
        return self.clip > 0

    def apply(self, update: NDArray[np.floating[Any]], rng: Rng) -> NDArray[np.floating[Any]]:
        """The update as it may leave the miner. ``rng``: coins that nobody can guess. Raises LimitError (not finite)."""
        if not self.is_on:
            return update
        length = float(np.linalg.norm(update))
        if not math.isfinite(length):
            raise LimitError("the update is not finite, so it has no length to clip: training diverged")
        clipped = update.astype(np.float64) * min(1.0, self.clip / length) if length else update
        if not self.noise:
            return clipped
        deviation = self.noise * self.clip
        grid = 2.0 ** (math.floor(math.log2(deviation)) - GRID_BITS)
        # Toward zero, so that what is on the grid is not longer than what was clipped.
        on_grid = np.trunc(clipped / grid)
        return (on_grid + np.rint(deviation / grid * gaussian(update.size, rng))) * grid


NO_NOISE: Final = LocalPrivacy()


def epsilon(privacy: LocalPrivacy, rounds: int, delta: float) -> float:
    """The epsilon of ``rounds`` answered rounds at ``delta``; infinite without noise. Raises LimitError (impossible values)."""
    if rounds < 0 or not 0 < delta < 1:
        raise LimitError(f"{rounds} rounds at delta {delta}: rounds must not be negative, delta between 0 and 1")
    if not privacy.noise:
        return math.inf if rounds else 0.0
    rho = rounds * 2.0 / privacy.noise**2
    return rho + 2.0 * math.sqrt(rho * math.log(1.0 / delta))


def gaussian(count: int, rng: Rng) -> NDArray[np.float64]:
    """``count`` independent standard normal numbers from secret coins, by Box and Muller (1958)."""
    pairs = (count + 1) // 2
    coins = np.frombuffer(rng.bytes(16 * pairs), dtype="<u8").reshape(2, pairs)
    # In (0, 1]: 53 bits and one more half step, never 0, whose logarithm is not finite.
    first, angle = ((coins >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log(first))
    both = np.concatenate([radius * np.cos(2.0 * np.pi * angle), radius * np.sin(2.0 * np.pi * angle)])
    return np.asarray(both[:count], dtype=np.float64)
