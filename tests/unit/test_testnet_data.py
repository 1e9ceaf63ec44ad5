"""services.testnet.data: the default split is fixed, disjoint and whole."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from core.errors import ConfigError
from core.market import marks, tracing
from services.testnet.data import split_digits


def test_half_of_a_share_of_the_default_testnet_can_be_traced() -> None:
    rng = np.random.default_rng(7)
    rows = len(split_digits(3).provider) // 3
    for _ in range(50):
        trace = rng.integers(0, 2, rows).astype(np.uint8)
        choices = rng.integers(0, 2, marks.mark_count(rows))
        variants = choices[np.arange(rows) % len(choices)] ^ trace
        lean = np.where(variants == 0, 1.0, -1.0)
        lean[rng.permutation(rows)[: rows // 2]] = 0
        assert tracing.look(tracing.Copy(lean, rows, rows), tracing.Share(0, trace)).is_ours


def test_the_parts_are_disjoint_and_together_all_rows() -> None:
    split = split_digits(6)
    parts = [split.test, split.practice, split.provider, *split.miners]
    assert [len(part) for part in parts[:3]] == [400, 200, 520]
    assert sum(len(part) for part in parts) == 1797
    sizes = [len(part) for part in split.miners]
    assert max(sizes) - min(sizes) <= 1
    everything = np.concatenate([part.x for part in parts])
    assert everything.min() == 0.0
    assert everything.max() == 1.0


def test_the_test_set_is_the_same_whatever_the_number_of_miners() -> None:
    digests = {hashlib.sha256(np.round(split_digits(n).test.x * 16).astype(np.uint8).tobytes()).hexdigest() for n in (2, 6, 12)}
    assert digests == {"806c6eb136527cec3c322e6f287a4b88546a825ea9eaa83dbf452aa4ae1f463c"}


def test_too_many_miners_are_refused_with_the_largest_number() -> None:
    with pytest.raises(ConfigError, match="677 rows are left for 100 miners: at most 67"):
        split_digits(100)


def test_files_hold_what_was_split(tmp_path: Path) -> None:
    split = split_digits(2)
    names = {name: tmp_path / f"{name}.npz" for name in ("test", "practice", "provider")}
    split.write(names, [tmp_path / "m0.npz", tmp_path / "m1.npz"])
    with np.load(names["test"]) as stored:
        np.testing.assert_array_equal(stored["x"], split.test.x)
        np.testing.assert_array_equal(stored["y"], split.test.y)
