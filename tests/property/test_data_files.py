"""Data files with random damage: rows, or one typed error that names the file; never anything else, and never much memory."""

from __future__ import annotations

import gzip
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import InputError
from services.data.descriptor import load_projection
from services.data.loading import load_rows
from services.data.recipe import Recipe, recipe_from_bytes
from services.data.rows import Rows
from services.data.transform import Projection
from tests.data_files import cifar_binary, cifar_pickle, idx

T = TypeVar("T")
RNG = np.random.default_rng(11)
PIXELS = RNG.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
IMAGES = RNG.integers(0, 256, (4, 3, 3), dtype=np.uint8)


def npz(**arrays: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.savez_compressed(out, allow_pickle=False, **arrays)
    return out.getvalue()


CIFAR = 'kind = "cifar10"\nfiles = ["rows"]\n[recipe]\nraw = "pixels"\nshape = [32, 32, 3]\nclasses = 10\n'
TABLE = (
    'kind = "csv"\nfiles = ["rows"]\ntarget = "t"\nkey = "k"\n[recipe]\nraw = "table"\nclasses = 2\n'
    'columns = [{ name = "a", fill = 0.0 }, { name = "b", values = ["x", "y"] }]\n'
)
RECIPE = Recipe(raw="numbers", classes=3, shape=(3,), mean=(0.5,), std=(2.0,), bound=1.0)
CASES: dict[str, tuple[str, bytes]] = {
    "idx": (
        'kind = "idx"\nfiles = ["rows"]\nlabels = ["labels"]\n[recipe]\nraw = "pixels"\nshape = [3, 3]\nclasses = 4\n',
        idx(IMAGES),
    ),
    "idx.gz": (
        'kind = "idx"\nfiles = ["rows.gz"]\nlabels = ["labels"]\n[recipe]\nraw = "pixels"\nshape = [3, 3]\nclasses = 4\n',
        gzip.compress(idx(IMAGES), mtime=0),
    ),
    "cifar, binary": (CIFAR, cifar_binary(PIXELS, np.array([3, 7]))),
    "cifar, pickle": (CIFAR, cifar_pickle(PIXELS, np.array([3, 7]))),
    "table": (TABLE, b'k,a,b,t\np1,1.5,x,0\n"p,2",,y,1\n'),
    "table.gz": (TABLE.replace('"rows"', '"rows.gz"'), gzip.compress(b"k,a,b,t\np1,1.5,x,0\np2,,y,1\n", mtime=0)),
    "npz": (
        'kind = "npz"\nfiles = ["rows"]\n[recipe]\nraw = "numbers"\nshape = [3]\nclasses = 3\n',
        npz(x=np.ones((5, 3)), y=np.arange(5) % 3),
    ),
    "features": ("", npz(x=np.ones((5, 3)), y=np.arange(5) % 3, recipe=np.frombuffer(RECIPE.to_bytes(), np.uint8))),
    "descriptor": ("", TABLE.encode()),
}
FILES = {"features": "rows.npz", "descriptor": "data.toml", "idx.gz": "rows.gz", "table.gz": "rows.gz"}


def damaged(data: st.DataObject, content: bytes) -> bytes:
    """Some bytes replaced, cut out or put in."""
    out = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(out) - 1)) | st.integers(0, min(400, max(0, len(out) - 1))))
        change = data.draw(st.sampled_from(["flip", "cut", "insert", "end"]))
        if change == "flip" and out:
            out[at] = data.draw(st.integers(0, 255))
        elif change == "cut":
            del out[at : at + data.draw(st.integers(1, 40))]
        elif change == "insert":
            out[at:at] = data.draw(st.binary(min_size=1, max_size=12))
        elif change == "end":
            del out[at:]
    return bytes(out)


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_an_error_of_the_tree(name: str, data: st.DataObject) -> None:
    descriptor, content = CASES[name]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "labels").write_bytes(idx(np.array([0, 1, 2, 3], dtype=np.uint8)))
        (folder / "rows").write_bytes(b"k,a,b,t\np1,1.5,x,0\n")
        (folder / "data.toml").write_text(descriptor)
        file = folder / FILES.get(name, "rows")
        file.write_bytes(damaged(data, content))
        found = outcome(lambda: load_rows(file if name == "features" else folder / "data.toml"))
        if isinstance(found, Rows):
            check(found)
        else:
            assert made in found or "recipe" in found
            assert len(found) < 1000


def check(rows: Rows) -> None:
    assert len(rows)
    assert len(rows) == len(rows.y) == len(rows.x)
    assert np.isfinite(rows.x).all()
    assert 0 <= rows.y.min() <= rows.y.max() < rows.classes


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_recipes_and_projections_with_damage(data: st.DataObject) -> None:
    found = outcome(lambda: recipe_from_bytes(damaged(data, RECIPE.to_bytes()), "here"))
    assert isinstance(found, Recipe) or "here" in found
    content = npz(mean=np.zeros(3, np.int32), matrix=np.eye(3, 2, dtype=np.int32))
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "pca.npz"
        path.write_bytes(damaged(data, content))
        read = outcome(lambda: load_projection(path))
        assert isinstance(read, Projection) or str(path) in read


def outcome(call: Callable[[], T]) -> T | str:
    """What a call gives, or the sentence of its error."""
    try:
        return call()
    except InputError as error:
        return error.message
