"""Rows from a file: what is refused, and that the same folder sells under the same root again."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest

from core.errors import ConfigError, CorruptError
from core.market.contract import DEFAULT_RULE
from core.market.rows import Held, Sold, chunk_range, open_chunk
from provider.config import DataConfig, RuleConfig
from provider.goods import load_goods, row_secret
from tests.market_kit import rows_and_labels, write_npz
from tests.seeded import SeededRng

SECRET = b"k" * 32


def config(path: Path, classes: int = 0) -> DataConfig:
    return DataConfig(path=path, name="rows", feature_scale_micro=127_000_000, classes=classes, mark_strength_ppm=0)


def test_all_rows_are_sold_shuffled_and_quantised(tmp_path: Path) -> None:
    x, y = rows_and_labels()
    goods = load_goods(config(write_npz(tmp_path / "d.npz", x, y)), SECRET)
    data = goods.data
    assert (data.rows, data.features, data.classes) == (90, 8, 10)
    sold, held = Sold(0, ((b"0", b"1"),), np.zeros(90, np.uint8)), Held(0, (1,), (b"1",))
    got, labels = open_chunk(data.chunk(0, 90, sold), data.root, 90, 8, 10, 0, 90, held)
    wanted = np.rint(x.astype(np.float64) * 127).astype(np.int8)
    assert not (got == wanted).all()
    assert sorted((*row, label) for row, label in zip(got.tolist(), labels.tolist(), strict=True)) == sorted(
        (*row, label) for row, label in zip(wanted.tolist(), y.tolist(), strict=True)
    )
    assert chunk_range(90, 3, 2, 9)[1] == 90


def test_order_and_root_follow_from_the_secret(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "d.npz", *rows_and_labels())
    assert load_goods(config(path), SECRET).data.root == load_goods(config(path), SECRET).data.root
    assert load_goods(config(path), SECRET).data.root != load_goods(config(path), b"l" * 32).data.root


def test_the_secret_is_made_once_and_kept_private(tmp_path: Path) -> None:
    rng = SeededRng("secret")
    secret = row_secret(tmp_path, rng)
    assert len(secret) == 32
    assert row_secret(tmp_path, rng) == secret
    path = tmp_path / "rows.secret"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        row_secret(tmp_path, rng)
    path.chmod(0o600)
    path.write_text("torn")
    with pytest.raises(CorruptError, match="64 hex digits"):
        row_secret(tmp_path, rng)


def spoiled(row: int, value: float, labels: bool = False) -> tuple[object, object]:
    x, y = (part.astype(np.float64) for part in rows_and_labels())
    if labels:
        y[row] = value
    else:
        x[row, 3] = value
    return x, y


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (*spoiled(7, np.nan), "row 7, feature 3: nan is not a finite"),
        (*spoiled(8, np.inf), "row 8, feature 3: inf is not a finite"),
        (*spoiled(9, 1.5, labels=True), "row 9: label 1.5, labels are whole numbers"),
        (*spoiled(4, -1, labels=True), "row 4: label -1.0, labels are whole numbers from 0 to 255"),
        (*spoiled(5, 256, labels=True), "row 5: label 256"),
        (np.zeros((90, 8)), np.zeros(89), "90 rows of x but 89 labels in y"),
        (np.zeros(90), np.zeros(90), "x must be numbers of shape"),
        (np.zeros((9, 8)), np.zeros(9), "9 rows of 8 features; a data set has 10 to"),
        (np.zeros((90, 0)), np.zeros(90), "0 features"),
        (np.full((90, 2), "a"), np.zeros(90), "x must be numbers"),
        (np.array([[object()]]), np.zeros(1), r"not an \.npz file of plain arrays"),
    ],
)
def test_what_cannot_be_sold_is_one_sentence_with_file_and_row(tmp_path: Path, x: object, y: object, message: str) -> None:
    path = write_npz(tmp_path / "bad.npz", x, y)
    with pytest.raises(ConfigError, match=message) as caught:
        load_goods(config(path), SECRET)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message


def test_files_that_are_no_data_set_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.npz: no such file; it must be an \.npz file with the arrays x and y"):
        load_goods(config(tmp_path / "none.npz"), SECRET)
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ConfigError, match=r"not an \.npz file of plain arrays"):
        load_goods(config(tmp_path / "text.npz"), SECRET)
    np.savez(tmp_path / "other.npz", rows=np.zeros(3))
    with pytest.raises(ConfigError, match=r"no array 'x'; it holds \['rows'\]"):
        load_goods(config(tmp_path / "other.npz"), SECRET)
    x, y = rows_and_labels()
    with pytest.raises(ConfigError, match=r"row \d+: label \d, labels are whole numbers from 0 to 4"):
        load_goods(config(write_npz(tmp_path / "d.npz", x, y), classes=5), SECRET)


def test_the_rule_of_a_configuration() -> None:
    assert RuleConfig().rule() == DEFAULT_RULE
    rule = RuleConfig(alpha=0, bid_least=0, bid_high=9_000).rule()
    assert (rule.alpha, rule.m_min, rule.m_bar, rule.D_bar) == (0, 0, 9_000, DEFAULT_RULE.D_bar)
    with pytest.raises(ConfigError, match="beta eta > 1"):
        RuleConfig(beta_micro=500_000).check()
