"""requester.data: wrong files end in one sentence that names file, row and fault."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.errors import InputError, MalformedError
from requester.data import clamped_features, feature_scale_of, load_rows, practice_bytes, scored_test_set
from requester.targets import read_task_rows
from services.data.recipe import Recipe
from services.data.rows import Rows as MadeRows
from services.data.stored import save_rows

X = np.array([[0.0, 0.5], [1.0, -1.0], [0.25, 2.0]])
Y = np.array([0, 1, 1])


def write(folder: Path, **arrays: Any) -> Path:
    path = folder / "rows.npz"
    np.savez(path, allow_pickle=True, **arrays)
    return path


def test_rows_are_read_and_scaled(tmp_path: Path) -> None:
    rows = load_rows(write(tmp_path, x=X.astype(np.float32), y=Y.astype(np.uint8)))
    assert (rows.features, rows.classes) == (2, 2)
    plain = scored_test_set(rows, 2, 127_000_000)
    assert plain.features.tolist() == [[0, 64], [127, -127], [32, 127]]
    assert clamped_features(rows, 127_000_000) == 1
    assert feature_scale_of(rows) == 63_500_000
    assert clamped_features(rows, feature_scale_of(rows)) == 0


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": X}, "no array 'y'; it holds ['x']"),
        ({"x": X[0], "y": Y}, "x must be numbers of shape (rows, features), it is float64 of (2,)"),
        ({"x": X, "y": Y[:2]}, "x has 3 rows, y has 2 labels"),
        ({"x": X[:0], "y": Y[:0]}, "x is empty, its shape is (0, 2)"),
        ({"x": X.astype(str), "y": Y}, "x must be numbers"),
        ({"x": X, "y": Y.reshape(1, 3)}, "labels must be whole numbers, one a row; they are int64 of (1, 3)"),
        ({"x": X * [[1, 1], [1, np.nan], [1, 1]], "y": Y}, "row 1, feature 1: nan is not a finite number"),
        ({"x": X, "y": np.array([0, 1, -1])}, "row 2: label -1, labels are whole numbers from 0 to 65534"),
        ({"x": X, "y": np.array([0, 0.5, 1])}, "row 1: label 0.5, labels are whole numbers"),
        ({"x": X, "y": np.array([{}, {}, {}])}, "plain arrays: y holds Python objects: save labels as whole numbers"),
        ({"x": np.array([{}]), "y": Y}, "x holds Python objects: save rows as numbers"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, arrays: dict[str, Any], sentence: str) -> None:
    path = write(tmp_path, **arrays)
    with pytest.raises(MalformedError) as caught:
        load_rows(path)
    assert str(path) in caught.value.message
    assert sentence in caught.value.message


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    for content in (b"", b"not a zip", b"PK\x03\x04" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(InputError, match="plain arrays"):
            load_rows(path)


def test_a_file_that_was_cut_off_says_so(tmp_path: Path) -> None:
    path = write(tmp_path, x=X, y=Y)
    whole = path.read_bytes()
    for cut in (len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"rows\.npz: .*: damaged or cut off"):
            load_rows(path)
    path.write_bytes(b"x,y\n1,2\n")
    with pytest.raises(InputError, match=r"rows\.npz: .*: no archive"):
        load_rows(path)


def test_a_recipe_is_in_both_sets_or_in_none(tmp_path: Path) -> None:
    recipes = [Recipe(raw="numbers", classes=2, shape=(2,), bound=bound) for bound in (2.0, 4.0)]
    for name, recipe in (("plain", None), ("made", recipes[0]), ("other", recipes[1])):
        save_rows(tmp_path / f"{name}.npz", MadeRows(name, name, X.astype(np.float32), Y.astype(np.int64), 2, recipe=recipe))
    plain, made, other = (tmp_path / f"{name}.npz" for name in ("plain", "made", "other"))
    digest = recipes[0].digest.hex()[:8]
    for test, practice, lacks, has in ((made, plain, "plain", "made"), (plain, made, "plain", "made")):
        with pytest.raises(MalformedError, match=rf"{lacks}\.npz has no recipe, .*{has}\.npz has {digest}\.\.\.: make both"):
            read_task_rows(test, practice)
    with pytest.raises(MalformedError, match="have different recipes, "):
        read_task_rows(made, other)
    with pytest.raises(MalformedError, match="has no recipe"):
        read_task_rows(made, plain, wanted_buckets=2)
    for path in (plain, made):
        assert read_task_rows(path, path).classes == 2


def test_the_practice_set_is_published_without_pickle(tmp_path: Path) -> None:
    rows = load_rows(write(tmp_path, x=X, y=Y))
    with np.load(io.BytesIO(practice_bytes(rows)), allow_pickle=False) as arrays:
        assert arrays["x"].dtype == np.float32
        assert arrays["y"].tolist() == [0, 1, 1]
    assert practice_bytes(rows) == practice_bytes(rows)
