"""services.data: recipes give the same bits everywhere, are named by a digest, and refuse what contradicts itself."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ConfigError, InputError, LimitError, MalformedError
from requester.data import feature_scale_of, practice_bytes
from requester.data import load_rows as requester_rows
from requester.targets import read_task_rows
from services.data.descriptor import load_projection, read_descriptor, save_projection
from services.data.fitting import fit_projection, fit_standard, to_toml
from services.data.loading import load_rows, rows_of
from services.data.partition import by_key, dirichlet, even, split
from services.data.recipe import Column, Recipe, recipe_from_bytes, recipe_from_table
from services.data.stored import recipe_in, save_rows
from services.data.survey import choose_columns, survey
from services.data.transform import MAX_VALUE, Projection, Transform, resize_numerators
from tests.data_files import descriptor, idx

PIXELS = Recipe(raw="pixels", classes=10, shape=(28, 28), divide=255.0, resize=(16, 16), bound=1.0)
IMAGES = np.random.default_rng(3).integers(0, 256, (40, 28, 28), dtype=np.uint8)


def test_the_digests_of_recipe_and_rows_are_fixed() -> None:
    """Another machine, library or release must find these, or its features are others."""
    transform = Transform(PIXELS)
    transform.features(IMAGES)
    assert PIXELS.digest.hex() == "dec44690fea25aa14a01bbebf3bebc5dc30e2f9e246aadc05b0e5bcb748f778e"
    assert transform.digest.hex() == "30048a52e6123ea3fa788947e1abe2aa93bd4d9569c8f658969ae697e841faaf"


def test_resizing_is_the_exact_area_average() -> None:
    found = Transform(PIXELS).millionths(IMAGES[:1])[0].reshape(16, 16)

    def overlap(old: int, new: int) -> Fraction:
        step = Fraction(28, 16)
        return max(Fraction(0), min(Fraction(old + 1), step * (new + 1)) - max(Fraction(old), step * new))

    for row, column in ((0, 0), (3, 7), (15, 15), (8, 1)):
        total = sum(overlap(i, row) * overlap(j, column) * int(IMAGES[0, i, j]) for i in range(28) for j in range(28))
        assert found[row, column] == int(total / Fraction(49, 16) / 255 * 1_000_000 + Fraction(1, 2))


@given(st.integers(1, 9), st.integers(1, 9), st.data())
@settings(max_examples=40, deadline=None)
def test_resizing_keeps_the_sum(old: int, other: int, data: st.DataObject) -> None:
    new = data.draw(st.integers(1, old)), data.draw(st.integers(1, other))
    rows = np.array(data.draw(st.lists(st.integers(0, 255), min_size=old * other, max_size=old * other)), dtype=np.int64)
    made = resize_numerators(rows.reshape(1, old, other, 1), *new)
    assert int(made.sum()) == int(rows.sum()) * new[0] * new[1]


@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_projection_is_exact_for_the_largest_values(size: int, width: int, seed: int) -> None:
    size = min(size, width)
    rng = np.random.default_rng(seed)
    matrix = rng.integers(-(1 << 20), (1 << 20) + 1, (width, size)).astype(np.int32)
    mean = rng.integers(-MAX_VALUE, MAX_VALUE + 1, width).astype(np.int32)
    values = rng.integers(-MAX_VALUE, MAX_VALUE + 1, (3, width))
    found = Projection(mean, matrix).apply(values)
    for row in range(3):
        for column in range(size):
            exact = sum((int(v) - int(m)) * int(w) for v, m, w in zip(values[row], mean, matrix[:, column], strict=True))
            assert found[row, column] == (exact + 500_000) // 1_000_000


def test_rows_do_not_depend_on_one_another() -> None:
    recipe = replace(PIXELS, mean=(0.25,), std=(0.5,), bound=2.0)
    together = Transform(recipe).millionths(IMAGES)
    for row in range(0, 40, 7):
        np.testing.assert_array_equal(Transform(recipe).millionths(IMAGES[row : row + 1])[0], together[row])


def test_colours_become_grey() -> None:
    recipe = Recipe(raw="pixels", classes=2, shape=(1, 2, 3), divide=255.0, grey=True, bound=1.0)
    assert recipe.features == 2
    found = Transform(recipe).millionths(np.array([[[[255, 0, 0], [255, 255, 255]]]], dtype=np.uint8))
    assert found.tolist() == [[299_000, 1_000_000]]


def test_a_recipe_survives_its_bytes() -> None:
    for recipe in (
        PIXELS,
        replace(PIXELS, classes=2, class_names=("a", "ß")),
        Recipe(raw="numbers", classes=0, real=True, shape=(3,)),
    ):
        assert recipe_from_bytes(recipe.to_bytes(), "here") == recipe
        assert recipe_from_bytes(recipe.to_bytes(), "here").digest == recipe.digest
    assert replace(PIXELS, bound=0.5).digest != PIXELS.digest


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"\xff", b'{"raw":"pixels"}', b"[" * 100_000, PIXELS.to_bytes() + b" ", b'{"raw":NaN}']
)
def test_recipes_of_strangers_are_checked(data: bytes) -> None:
    with pytest.raises(InputError, match="here"):
        recipe_from_bytes(data, "here")


PX = {"raw": "pixels", "classes": 2, "shape": [2, 2]}
TX = {"raw": "text", "classes": 2}
NUMBERS = '\n[recipe]\nraw = "numbers"\nclasses = 2\nshape = [2]'
PICTURES = '\n[recipe]\nraw = "pixels"\nclasses = 2\nshape = [2, 2]'
COLUMNS = '\n[recipe]\nraw = "table"\nclasses = 2\ncolumns = [{name = "a"}]'


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"raw": "pixels", "classes": 2, "shap": [2, 2]}, "unknown key 'shap'; did you mean 'shape'?"),
        ({"raw": "sound", "classes": 2}, "raw must be one of pixels, numbers, table, text, got 'sound'"),
        ({"raw": "pixels", "shape": [2, 2]}, "classes is not set"),
        ({"raw": "pixels", "classes": 1, "shape": [2, 2]}, "classes must be a whole number from 2 to 65535, got 1"),
        ({"raw": "pixels", "classes": 2}, "shape is not set"),
        ({"raw": "pixels", "classes": 2, "shape": [2]}, "shape must be [height, width]"),
        (PX | {"resize": [3, 1]}, "resize must be a height and a width, at most [2, 2]"),
        (PX | {"grey": True}, "grey is for pixels of three colours"),
        ({"raw": "pixels", "classes": 2, "shape": [40000, 40000]}, "a row of 1600000000 values, at most 65536"),
        (PX | {"divide": 0}, "divide must be a number from 1e-12"),
        (PX | {"std": [float("nan")]}, "std must be a number"),
        (PX | {"std": [1, 2]}, "std has 2 numbers, it must be one, or 4"),
        (PX | {"pca": "ab", "pca_size": 1}, "pca is the digest"),
        ({"raw": "pixels", "classes": 3, "shape": [2, 2], "class_names": ["a", "b"]}, "classes is 3, but class_names name 2"),
        ({"raw": "pixels", "shape": [2, 2], "class_names": ["a", "a"]}, "class_names names 'a' twice"),
        ({"raw": "pixels", "shape": [2, 2], "cuts": [2, 1]}, "cuts must rise"),
        ({"raw": "table", "classes": 2, "columns": [{"name": "a"}, {"name": "a"}]}, "a column is named twice"),
        ({"raw": "table", "classes": 2, "columns": [{"name": "a", "scale": 0}]}, "columns[0]: scale must be a number"),
        ({"raw": "table", "classes": 2, "columns": ["a"]}, "columns[0] must be a table"),
        (TX | {"text": {"method": "hashing"}}, "hashing needs size"),
        (TX | {"text": {"method": "tfidf", "words": ["a"]}}, "tfidf needs words and as many idf_milli"),
        (TX | {"shape": [3], "text": {"method": "hashing", "size": 4}}, "shape is for pixels and numbers"),
        ({"raw": "numbers", "classes": 2, "shape": [3], "bound": 1e9}, "bound must be a number from 0 to 500"),
    ],
)  # fmt: skip
def test_contradictions_are_named(table: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        recipe_from_table(table, "here")
    assert sentence in caught.value.message


@pytest.mark.parametrize("number", ["1" + "0" * 5_000, "0x" + "f" * 8_000])
def test_whole_numbers_without_end_are_named(tmp_path: Path, number: str) -> None:
    path = tmp_path / "d.toml"
    path.write_text(f'kind = "csv"\nfiles = ["a.csv"]\ntarget = "t"\n[recipe]\nraw = "table"\nclasses = {number}\n')
    with pytest.raises(ConfigError, match=r"d\.toml"):
        read_descriptor(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("kind = ", "is not TOML"),
        ('kind = "csv"\nfiles = ["a"]', "there is no table [recipe]"),
        ('kind = "parquet"'+ COLUMNS, "kind must be one of npz, idx"),
        ('kind = "csv"'+ PICTURES, "files of kind csv give table, the recipe is for pixels"),
        ('kind = "npz"'+ PICTURES, "files must name 1 to 4096 files, it names 0"),
        ('kind = "idx"\nfiles = ["a"]'+ PICTURES, "labels must name a file for each"),
        ('kind = "csv"\nfiles = ["a"]'+ COLUMNS, "target is not set"),
        ('kind = "npz"\nfiles = ["a"]\ntarget = "b"'+ NUMBERS, "target is of no use"),
        ('kind = "npz"\nfile = ["a"]'+ NUMBERS, "unknown key 'file'; did you mean 'files'?"),
    ],
)  # fmt: skip
def test_wrong_descriptors_are_named(tmp_path: Path, text: str, sentence: str) -> None:
    path = descriptor(tmp_path, text)
    with pytest.raises(InputError) as caught:
        read_descriptor(path)
    assert sentence in caught.value.message
    assert str(path) in caught.value.message


LONG = 1 << 17
HOSTILE = {
    "a key of many parts": ("a" + ".a" * LONG + " = 1", "line 1: a key of more than 8 parts"),
    "in quotes": ("b = 1\n" + '"a"' + " . 'a'" * LONG + " = 1", "line 2: a key of more than 8 parts"),
    "with quotes in the quotes": (r'"\"' + '"' + r'."\""' * LONG + " = 1", "line 1: a key of more than 8 parts"),
    "behind texts of many lines": (
        'a = """\n\n"""""\nb = [\'\'\'\n\'\'\'\', "#", {' + "a" + ".a" * LONG + " = 1}] # '",
        "line 5: a key of more than 8 parts",
    ),
    "a table of many parts": ("[a" + ".a" * LONG + "]", "line 1: a key of more than 8 parts"),
    "tables in one another": ("a = " + "{a=" * 300_000, "300001 keys, a descriptor has at most 262144"),
    "not quite as many": ("\n\na = " + "{a=" * 4_000, "line 3: tables or lists in one another, more than 32 deep"),
    "lists in one another": ("a = " + "[" * 60_000, "line 1: tables or lists in one another"),
    "keys": ("".join(f"a{i}=1\n" for i in range(300_000)), "300000 keys, a descriptor has at most 262144"),
    "tables": ("[[a]]\n" * 40_000, "80000 tables and lists, a descriptor has at most 65536"),
    "values": ("a = [" + "1," * 1_048_577 + "]", "1048577 values, a descriptor has at most 1048576"),
    "a text without end": ('"""\\' * LONG, "is not TOML"),
    "quotes": ("'\"" * LONG, "is not TOML"),
    "a key that is a book": ("a" * LONG + " = 1", "unknown key 'aaaa"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_descriptor_that_costs_minutes_to_parse_is_one_sentence_at_once(tmp_path: Path, name: str) -> None:
    """Before: the square of a key's parts, hours for these; or a sentence as long as the file."""
    text, sentence = HOSTILE[name]
    path = descriptor(tmp_path, text)
    started = time.process_time()
    with pytest.raises(ConfigError) as caught:
        read_descriptor(path)
    assert time.process_time() - started < 30, "of the processor, not of the clock"
    assert sentence in caught.value.message
    assert str(path) in caught.value.message
    assert len(caught.value.message) < 400 + len(str(path))


def test_dots_and_brackets_in_texts_are_no_keys(tmp_path: Path) -> None:
    many = "a.b.c.d.e.f.g.h.i.j.k [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[ {{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{{ \\\\" + '\\"'
    text = 'kind = "npz"\nfiles = ["x.npz"] # ' + many + "\nname = 'a.b.c.d.e.f.g.h.i.j.k'" + NUMBERS
    made = read_descriptor(descriptor(tmp_path, text))
    assert made.name == "a.b.c.d.e.f.g.h.i.j.k"
    with pytest.raises(ConfigError, match="kind must be one of"):
        read_descriptor(descriptor(tmp_path, f'kind = "{many}"' + NUMBERS))
    with pytest.raises(ConfigError, match="kind must be one of"):
        read_descriptor(descriptor(tmp_path, f'kind = """\n{many}""\n"""' + NUMBERS))


def images(folder: Path) -> Path:
    (folder / "x").write_bytes(idx(IMAGES))
    (folder / "y").write_bytes(idx((np.arange(40) % 10).astype(np.uint8)))
    return descriptor(
        folder,
        'kind = "idx"\nfiles = ["x"]\nlabels = ["y"]\n'
        '[recipe]\nraw = "pixels"\nshape = [28, 28]\nresize = [4, 4]\nclasses = 10\n',
    )


def test_a_projection_is_fitted_named_and_carried_by_the_practice_set(tmp_path: Path) -> None:
    path = images(tmp_path)
    plain = read_descriptor(path)
    recipe, projection = fit_projection(plain, 5)
    save_projection(tmp_path / "pca.npz", projection)
    path.write_text(to_toml(replace(plain, recipe=recipe), "pca.npz"))
    rows = load_rows(path)
    assert rows.features == 5
    assert np.abs(rows.x).max() <= recipe.bound
    assert read_descriptor(path).recipe == recipe
    practice = tmp_path / "practice.npz"
    practice.write_bytes(practice_bytes(requester_rows(path)))
    found = recipe_in(practice)
    assert found is not None
    assert found[0].digest == recipe.digest
    assert found[1] is not None
    assert found[1].digest == projection.digest
    # Another matrix under the same name is refused.
    save_projection(tmp_path / "pca.npz", Projection(projection.mean, -projection.matrix))
    with pytest.raises(ConfigError, match="it is another matrix"):
        load_rows(path)


def test_converted_rows_keep_their_recipe_and_read_the_same(tmp_path: Path) -> None:
    path = images(tmp_path)
    rows = load_rows(path)
    save_rows(tmp_path / "made.npz", rows)
    again = load_rows(tmp_path / "made.npz")
    np.testing.assert_array_equal(again.x, rows.x)
    np.testing.assert_array_equal(again.y, rows.y)
    assert again.recipe == rows.recipe
    assert requester_rows(tmp_path / "made.npz").classes == 10
    assert requester_rows(path).classes == 10


def test_a_practice_set_with_a_recipe_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "made.npz"
    np.savez(path, x=np.zeros((2, 3), np.float32), y=np.array([0, 1]), recipe=np.frombuffer(b"{}", np.uint8))
    for read in (load_rows, requester_rows):
        with pytest.raises(MalformedError, match=r"made\.npz: raw is not set"):
            read(path)


def test_hostile_projections_are_refused(tmp_path: Path) -> None:
    good = np.zeros((4, 2), np.int32)
    for mean, matrix in (
        (np.zeros(3, np.int32), good), (np.zeros(4), good), (np.zeros(4, np.int32), good.astype(np.float64)),
        (np.full(4, 2**31 - 1, np.int32), good), (np.zeros(4, np.int32), np.full((4, 2), -(2**31), np.int32)),
        (np.zeros(2, np.int32), np.zeros((2, 4), np.int32)), (np.zeros(0, np.int32), np.zeros((0, 0), np.int32)),
    ):  # fmt: skip
        np.savez(tmp_path / "pca.npz", mean=mean, matrix=matrix)
        with pytest.raises(InputError, match=r"pca\.npz"):
            load_projection(tmp_path / "pca.npz")
    (tmp_path / "pca.npz").write_bytes(b"nothing")
    with pytest.raises(MalformedError, match="file of plain arrays"):
        load_projection(tmp_path / "pca.npz")


def test_standardising_and_guessing_make_descriptors_that_read_back(tmp_path: Path) -> None:
    path = images(tmp_path)
    plain = read_descriptor(path)
    fitted = replace(plain, recipe=fit_standard(plain))
    path.write_text(to_toml(fitted))
    assert read_descriptor(path).recipe == fitted.recipe
    x = load_rows(path).x
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(x.std(axis=0), 1, atol=1e-3)
    (tmp_path / "t.csv").write_text('n,c,id,k,"t\\"""\n1,a,x,5,no\n,b,y,5,yes\n3,?,z,5,no\n5,a,w,5,no\n')
    table = Recipe(raw="table", classes=2, class_names=("no", "yes"), columns=(Column("n"),), missing=("?",), bound=4.0)
    made = replace(
        plain, path=tmp_path / "t.toml", kind="csv", files=(tmp_path / "t.csv",), labels=(), target='t\\"', recipe=table
    )
    found, left_out = choose_columns(survey(made, ("?",)), frozenset({'t\\"'}), 3)
    assert left_out == ("id (4 values, more than --categories 3)", "k (one value)")
    assert [c.name for c in found] == ["n", "c"]
    assert (found[0].center, found[0].fill) == (3.0, 3.0)
    made = replace(made, recipe=replace(table, columns=found))
    made.path.write_text(to_toml(made))
    assert read_descriptor(made.path).recipe == made.recipe
    assert rows_of(read_descriptor(made.path)).x.shape == (4, 3)


def test_by_key_keeps_keys_whole_and_shares_even() -> None:
    keys = np.array([f"s{i}" for i in range(12) for _ in range(1 + 3 * (i % 4))])
    parts = by_key(keys, 4, 1)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(keys)))
    owners = [set(keys[rows].tolist()) for rows in parts]
    assert sum(len(owner) for owner in owners) == 12
    assert max(len(rows) for rows in parts) - min(len(rows) for rows in parts) <= 10
    with pytest.raises(ConfigError, match="12 keys cannot be split into 13 parts"):
        by_key(keys, 13, 1)


def test_rules_are_read_as_they_are_written() -> None:
    labels = np.arange(30) % 3
    for rule, rows in (("even", even(labels, 3, 5)), ("dirichlet:0.5", dirichlet(labels, 3, 0.5, 5))):
        for a, b in zip(split(rule, labels, None, 3, 5), rows, strict=True):
            np.testing.assert_array_equal(a, b)
    for rule, sentence in (
        ("odd", "'odd' is no way to split"), ("dirichlet", "dirichlet needs a number"), ("dirichlet:-1", "must be above 0"),
        ("dirichlet:nan", "must be above 0"), ("key", "the data have no natural key"), ("even:3", "no way to split"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=sentence):
            split(rule, labels, None, 3, 5)
    with pytest.raises(ConfigError, match="real targets have no classes"):
        split("dirichlet:1", labels.astype(float), None, 3, 5)


def test_real_targets_stay_real(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,t\n1,2.5\n2,-7e3\n")
    path = descriptor(
        tmp_path,
        'kind = "csv"\nfiles = ["t.csv"]\ntarget = "t"\n[recipe]\nraw = "table"\nreal = true\ncolumns = [{ name = "a" }]\n',
    )
    rows = load_rows(path)
    assert rows.y.tolist() == [2.5, -7000.0]
    save_rows(tmp_path / "made.npz", rows)
    assert load_rows(tmp_path / "made.npz").y.tolist() == [2.5, -7000.0]
    with pytest.raises(MalformedError, match="its targets are real"):
        requester_rows(path)


def test_only_texts_need_scikit_learn() -> None:
    code = (
        "import sys, services.data.loading, services.data.fitting, requester.data, provider.goods, pool.miner.rows; "
        "sys.exit('sklearn' in sys.modules or 'scipy' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ".:proto"}, cwd=root).returncode == 0


def test_a_task_takes_one_recipe_for_both_sets(tmp_path: Path) -> None:
    path = images(tmp_path)
    other = tmp_path / "other.toml"
    other.write_text(path.read_text().replace("[4, 4]", "[2, 8]"))
    assert read_task_rows(path, path).classes == 10
    with pytest.raises(MalformedError, match="have different recipes"):
        read_task_rows(path, other)


def test_a_regression_publishes_its_recipe(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,t\n" + "".join(f"{i},{i * 1.5}\n" for i in range(40)))
    path = descriptor(
        tmp_path,
        'kind = "csv"\nfiles = ["t.csv"]\ntarget = "t"\n'
        '[recipe]\nraw = "table"\nreal = true\ncolumns = [{ name = "a", scale = 10 }]\n',
    )
    read = read_task_rows(path, path, wanted_buckets=4)
    assert np.bincount(read.practice.y).tolist() == [10, 10, 10, 10]
    assert feature_scale_of(read.practice) == 31_750_000
    (tmp_path / "practice.npz").write_bytes(read.blob)
    found = recipe_in(tmp_path / "practice.npz")
    assert found is not None
    assert found[0].real
    again = read_task_rows(tmp_path / "practice.npz", tmp_path / "practice.npz", wanted_buckets=4)
    assert again.cuts_micro == read.cuts_micro
    assert again.blob == read.blob


def test_a_recipe_that_costs_hours_to_look_at_is_refused_at_once() -> None:
    """It comes with a task, from anybody: the product of so many sizes, or a search for each of so many names."""
    started = time.process_time()
    with pytest.raises(LimitError, match="shape has 20000 sizes"):
        recipe_from_table({"raw": "numbers", "classes": 2, "shape": [65_536] * 20_000}, "task")
    names = [f"{index}" for index in range(40_000)]
    with pytest.raises(ConfigError, match="'39999' twice"):
        recipe_from_table({"raw": "numbers", "shape": [2], "class_names": [*names, names[-1]]}, "task")
    assert time.process_time() - started < 30
