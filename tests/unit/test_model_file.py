"""core.verification.model_file: a stored model is the same model, or an error."""

from __future__ import annotations

import numpy as np
import pytest

from core.chain.transaction import Activation
from core.errors import MalformedError
from core.verification.model_file import dump_model, load_model
from core.verification.scored_model import ModelShape, ScoredModel


def model(seed: int) -> ScoredModel:
    rng = np.random.default_rng(seed)
    shape = ModelShape((6, 4, 3), Activation.SIGMOID, 10, (5,))
    weights = tuple(rng.integers(-511, 512, size=size) for size in ((6, 4), (4, 3)))
    biases = tuple(rng.integers(-1000, 1001, size=size) for size in (4, 3))
    return ScoredModel(shape, weights, biases)


def test_a_stored_model_scores_the_same(seed: int) -> None:
    original = model(seed)
    stored = load_model(dump_model(original))
    features = np.random.default_rng(seed).integers(-127, 128, size=(50, 6)).astype(np.int8)
    np.testing.assert_array_equal(stored.forward(features)[1], original.forward(features)[1])
    assert dump_model(stored) == dump_model(original)


def test_other_bytes_are_refused(seed: int) -> None:
    data = dump_model(model(seed))
    for bad in (b"", data[:-1], data + b"\0", b"x" + data[1:], data[:-4]):
        with pytest.raises(MalformedError):
            load_model(bad)


def test_a_weight_out_of_range_is_refused(seed: int) -> None:
    data = bytearray(dump_model(model(seed)))
    data[-4:] = (2**31 - 1).to_bytes(4, "big")
    with pytest.raises(MalformedError, match="bias is beyond"):
        load_model(bytes(data))
