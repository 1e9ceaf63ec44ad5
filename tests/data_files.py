"""Small data files of every kind that services.data reads, good ones and hostile ones."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["cifar_binary", "cifar_pickle", "descriptor", "idx", "packed"]


def descriptor(folder: Path, text: str, name: str = "data.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def idx(array: NDArray[np.uint8]) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def packed(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def cifar_binary(pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> bytes:
    """Pixels (n, 32, 32, 3)."""
    planes = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    return np.concatenate([labels.astype(np.uint8)[:, None], planes], axis=1).tobytes()


def cifar_pickle(pixels: NDArray[np.uint8], labels: NDArray[np.int64]) -> bytes:
    """Opcode for opcode what the published Python batches hold (protocol 2, written by Python 2)."""
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1))

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    def number(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    names = b"".join(text(b"file_%04d.png" % row) for row in range(len(labels)))
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85" + text(b"b") + b"\x87Rq\x09"
        b"(K\x01" + number(len(planes)) + number(planes.shape[1]) + b"\x86cnumpy\ndtype\nq\x0a" + text(b"u1")
        + b"K\x00K\x01\x87Rq\x0b(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + b"T" + struct.pack("<i", planes.size) + planes.tobytes() + b"tb"
    )  # fmt: skip
    return (
        b"\x80\x02}q\x01(" + text(b"batch_label") + b"q\x02" + text(b"training batch 1 of 5") + b"q\x03"
        + text(b"labels") + b"q\x04]q\x05(" + b"".join(number(int(label)) for label in labels) + b"e"
        + text(b"data") + b"q\x06" + array + text(b"filenames") + b"q\x0c]q\x0d(" + names + b"eu."
    )  # fmt: skip
