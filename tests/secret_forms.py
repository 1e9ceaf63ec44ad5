"""Every way in which a secret might have come into a text: raw, as hexadecimal, base64, a Python literal, a list, a number."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

__all__ = ["forms", "found_in", "secrets_of"]

SHORTEST = 12
"""Bytes: what is shorter than that is found by chance."""


def forms(secret: bytes) -> frozenset[bytes]:
    """What to look for, of 12 bytes of a secret or more."""
    if len(secret) < SHORTEST:
        raise ValueError(f"{len(secret)} bytes are too few to be looked for")
    made = {
        secret, secret.hex().encode(), secret.hex().upper().encode(), secret.hex(":").encode(), secret.hex(" ").encode(),
        repr(secret)[2:-1].encode(), ", ".join(map(str, secret)).encode(), ",".join(map(str, secret)).encode(),
        str(int.from_bytes(secret, "big")).encode(), str(int.from_bytes(secret, "little")).encode(),
    }  # fmt: skip
    for offset in range(3):
        # In a longer text base64 groups may begin at any byte of the secret; the cut off ends depend on what is around.
        cut = secret[offset : offset + (len(secret) - offset) // 3 * 3]
        made |= {base64.b64encode(cut), base64.urlsafe_b64encode(cut)}
    return frozenset(made)


def found_in(texts: Mapping[str, bytes], secrets: Mapping[str, bytes]) -> list[str]:
    """Which secret is in which text: names only."""
    return [
        f"{what} is in {where}"
        for what, secret in secrets.items()
        for form in forms(secret)
        for where, text in texts.items()
        if form in text
    ]


def secrets_of(folder: Path) -> dict[str, bytes]:
    """Of every process below a testnet's folder: account seeds, TLS keys, the authority's, secret files, seeds of marks."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file():
            continue
        if path.suffix == ".key":
            found.update(_of_key(name, path.read_bytes()))
        elif path.suffix in (".secret", ".seed") or "marks" in path.parts:
            found.update({f"{name} at {place}": part for place, part in _windows(_bytes_of(path.read_bytes()))})
    return found


def _of_key(name: str, data: bytes) -> dict[str, bytes]:
    if data.startswith(b"-----"):
        key = serialization.load_pem_private_key(data, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        lines = [line for line in data.splitlines() if not line.startswith(b"-----")]
        return {
            f"{name} (number)": key.private_numbers().private_value.to_bytes(32, "big"),
            **{f"{name} (line {number})": line for number, line in enumerate(lines) if len(line) >= 40},
        }
    text = data.strip()
    # A sealed key tells nothing; what it was sealed from is looked for by who sealed it.
    return {name: bytes.fromhex(text.decode())} if len(text) == 64 else {}


def _bytes_of(data: bytes) -> bytes:
    """Of a file that holds hexadecimal digits what they stand for."""
    text = data.strip()
    is_hex = len(text) >= 2 * SHORTEST and len(text) % 2 == 0 and not text.strip(b"0123456789abcdef")
    return bytes.fromhex(text.decode()) if is_hex else data


def _windows(data: bytes, size: int = 32, most: int = 64) -> Iterable[tuple[int, bytes]]:
    """Parts of a file that look random enough to be found in no other text by chance."""
    good = [
        (place, part)
        for place in range(0, len(data) - size + 1, size)
        if len(set(part := data[place : place + size])) >= size * 3 // 4
    ]
    return good[:: max(1, len(good) // most)]
