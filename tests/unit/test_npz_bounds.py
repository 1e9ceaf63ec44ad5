"""Archives of arrays made to do harm, where the command line and a pool's own state read them (services/runtime/npz.py)."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.lib import format as npy

from core.chain.transaction import Activation
from core.errors import ConfigError, CorruptError, PoflError
from pool.flower import jobs
from pool.flower.jobs import load_weights, save_weights
from pool.learning.model_spec import ModelSpec, initial_weights
from services.cli import models
from services.cli.models import score_model
from tests.models import random_model

SPEC = ModelSpec(4, 3, (5,))
MODEL = random_model((4, 3), Activation.RELU, 1)


def _header(shape: tuple[int, ...], data: bytes = b"") -> bytes:
    out = io.BytesIO()
    npy.write_array_header_1_0(out, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return out.getvalue() + data


def lies_about_shape(path: Path) -> None:
    """8 TB by its header, a few bytes in the file."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("x", "y", "meta", "best"):
            archive.writestr(f"{name}.npy", _header((1_000_000, 1_000_000)))


def unpacks_large(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("x", "y", "meta", "best"):
            archive.writestr(f"{name}.npy", _header((300, 300), bytes(8 * 300 * 300)))


def unknown_compression(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", _header((1, 4), bytes(32)))
    data = bytearray(path.read_bytes())
    where = data.rfind(b"PK\x01\x02")
    data[where + 10 : where + 12] = (77).to_bytes(2, "little")
    path.write_bytes(data)


def encrypted(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", _header((1, 4), bytes(32)))
    data = bytearray(path.read_bytes())
    where = data.rfind(b"PK\x01\x02")
    data[where + 8] |= 1
    data[6] |= 1
    path.write_bytes(data)


def one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


def deep_header(path: Path) -> None:
    text = b"(" * 3000 + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)


BAD = [lies_about_shape, unpacks_large, unknown_compression, encrypted, one_array, deep_header]


@pytest.mark.parametrize("make", BAD)
@pytest.mark.parametrize(
    ("read", "error"),
    [
        (lambda path: score_model(MODEL, path, 1_000_000), ConfigError),
        (lambda path: load_weights(path, SPEC, ("best",)), CorruptError),
    ],
    ids=["score", "state"],
)
def test_one_sentence_and_no_memory(
    make: Callable[[Path], None],
    read: Callable[[Path], object],
    error: type[PoflError],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models, "MAX_DATA", 1 << 20)
    monkeypatch.setattr(jobs, "MAX_STATE", 1 << 20)
    path = tmp_path / "made.npz"
    make(path)
    with pytest.raises(error, match=r"made\.npz"):
        read(path)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.array([["a"] * 4]), np.zeros(1, int)),
        (np.full((1, 4), np.nan), np.zeros(1, int)),
        (np.zeros((1, 4)), np.array([0.5])),
        (np.zeros((1, 4)), np.array([np.inf])),
        (np.zeros((1, 4), complex), np.zeros(1, int)),
    ],
)
def test_a_data_set_of_anything_but_numbers_is_not_scored(x: np.ndarray, y: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "made.npz", x=x, y=y)
    with pytest.raises(ConfigError, match=r"made\.npz: x"):
        score_model(MODEL, tmp_path / "made.npz", 1_000_000)


def test_what_was_saved_is_read(tmp_path: Path) -> None:
    weights = initial_weights(SPEC, 1)
    save_weights(tmp_path / "state.npz", {"best": weights}, {"rounds": 3})
    found, meta = load_weights(tmp_path / "state.npz", SPEC, ("best",))
    assert meta == json.loads('{"rounds": 3}')
    for (W, b), (V, c) in zip(found["best"], weights, strict=True):
        np.testing.assert_array_equal(W, V)
        np.testing.assert_array_equal(b, c)
    with pytest.raises(CorruptError, match="not a saved state of this model"):
        load_weights(tmp_path / "state.npz", ModelSpec(5, 3), ("best",))
