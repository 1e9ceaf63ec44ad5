"""How much noise each step of the protocol comes to, computed for a task's own sizes and held against its limit.

``worst`` is over every coin: it always holds, and is below q/2t, so that nothing ever decrypts wrongly. ``likely`` is exceeded
with a chance below 2^-128. It is what a zero check goes by: a run whose mask lies within 2^90 of a rounding boundary proves
nothing (core.crypto.zero_check.MARGIN_BITS), so that nobody is blamed while honest noise stays below 2^90.

A form takes ``Σ_ij s_i w_j v_ij`` from the test rows, ``v = e + δ``: e centred binomial, subgaussian with variance proxy
21/2, and ``|δ| <= 1/2`` from the rounding of ``q m / t``, which is no coin. With weights of at most t/2,

    |Σ s w e| <= (t/2)² sqrt(21 ln(2^129) I M)  but for 2^-128,      |Σ s w δ| <= (t/2)² I M / 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt

from core.crypto.homomorphic.params import ERROR_BOUND, PARAMS, HeParams
from core.crypto.zero_check import MARGIN_BITS
from core.errors import LimitError
from core.verification.messages import EXTRA_ROWS

__all__ = ["ROUNDING_CHANCE_BITS", "StepNoise", "check_noise", "noise_of_steps"]

ROUNDING_CHANCE_BITS = 32
"""A share of a masked decryption may be off by one in a whole evaluation with a chance of 2^-32 at most. It ends the batch."""
_TAIL = 90
"""ln(2^129), rounded up."""


@dataclass(frozen=True, slots=True)
class StepNoise:
    """Noise after one step of the protocol, in units of Z_q."""

    step: str
    worst: int
    likely: int
    limit: int
    """For ``likely``: 2^90 where a zero check ends the step, q/2t elsewhere. ``worst`` is always below q/2t."""


def noise_of_steps(dims: tuple[int, ...], parameters: int, samples: int, params: HeParams = PARAMS) -> tuple[StepNoise, ...]:
    """Every step in which a ciphertext of ours is decrypted, for a task of these sizes.

    Args:
        dims: ``M, d_1, …, C``. parameters: weights and biases of a model. samples: I.
    """
    half, fresh, margin = params.plain_modulus // 2, params.noise_fresh, 1 << MARGIN_BITS
    features, classes = dims[0], dims[-1]
    masking = params.noise_rerandomise
    rows = params.noise_after_products(fresh, features) + masking
    products_worst = params.noise_after_products(params.noise_after_products(fresh, features), samples)
    terms = features * samples
    products_likely = half**2 * (isqrt(ERROR_BOUND * _TAIL * terms) + 1 + (terms + 1) // 2)
    # One class of a sample is chosen, with weight one; then c4.
    labels = params.noise_after_products(fresh, samples)
    model = params.noise_after_products(params.noise_fresh_public, parameters)
    hint = params.noise_after_products(fresh, features + 1)
    one_hot = params.noise_after_products(classes * fresh, samples)

    def steps() -> Iterator[tuple[str, int, int, int]]:
        yield "a test row or a hint", fresh, fresh, params.noise_limit
        yield "a model body", params.noise_fresh_public, params.noise_fresh_public, params.noise_limit
        yield "evaluation: masked rows", rows, rows, params.noise_limit
        yield "evaluation: zero check", products_worst + labels + masking, products_likely + labels + masking, margin
        rest = labels + model + hint + masking
        yield "audit: zero check", products_worst + rest, products_likely + rest, margin
        yield "stored check", one_hot + masking, one_hot + masking, margin

    return tuple(StepNoise(*step) for step in steps())


def check_noise(dims: tuple[int, ...], parameters: int, samples: int, params: HeParams = PARAMS) -> None:
    """Raises LimitError naming the step whose noise could pass its limit in a task of these sizes."""
    for step in noise_of_steps(dims, parameters, samples, params):
        if step.likely > step.limit or step.worst > params.noise_limit:
            raise LimitError(
                f"{step.step}: noise of up to 2^{step.worst.bit_length()}, likely below 2^{step.likely.bit_length()}, passes "
                f"2^{step.limit.bit_length() - 1} for {samples} samples and layers {dims}: use fewer samples or features",
                step=step.step,
            )  # fmt: skip
    # A share is off where a mask lies within t noise / q of a rounding boundary: 2 t noise / q for each coefficient.
    coefficients = (dims[1] + EXTRA_ROWS) * samples
    noise = params.noise_after_products(params.noise_fresh, dims[0]) + params.noise_rerandomise
    if (2 * params.plain_modulus * noise * coefficients) << ROUNDING_CHANCE_BITS > params.modulus:
        raise LimitError(
            f"{coefficients} masked coefficients over {dims[0]} features: one of them would be rounded wrongly with a chance "
            f"of more than 2^-{ROUNDING_CHANCE_BITS}; use a narrower first layer",
            coefficients=coefficients,
        )  # fmt: skip
