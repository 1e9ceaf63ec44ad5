"""Account keys on disk: 64 hex digits, or the same sealed under a passphrase.

A sealed file is one JSON object. The passphrase goes through scrypt (RFC 7914), the seed through ChaCha20-Poly1305 with
everything else in the file as associated data (docs/adr/0124). The passphrase comes from a file or the environment, never
from the command line, where every user of the machine can read it.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from core.crypto.signing import SEED_SIZE, KeyPair
from core.errors import ConfigError
from core.ports import Rng

__all__ = ["MAX_KEY_FILE", "PASSPHRASE", "PASSPHRASE_FILE", "is_sealed", "open_seed", "passphrase", "seal_seed"]

PASSPHRASE: Final = "POFL_PASSPHRASE"  # noqa: S105 - names of variables
PASSPHRASE_FILE: Final = "POFL_PASSPHRASE_FILE"  # noqa: S105
MAX_KEY_FILE: Final = 1024
MAX_PASSPHRASE: Final = 1024
FORMAT: Final = "pofl-key-1"
COST, BLOCK, LANES = 1 << 17, 8, 1
"""Of scrypt: 128 MiB and some tenths of a second for each guess."""
MAX_COST: Final = 1 << 20
_FIELDS: Final = {"format", "account", "kdf", "cost", "block", "lanes", "salt", "cipher", "nonce", "sealed"}


def seal_seed(key: KeyPair, secret: bytes, rng: Rng, cost: int = COST) -> str:
    """The text of a sealed file. Raises ConfigError: the passphrase is empty."""
    if not secret:
        raise ConfigError("the passphrase is empty")
    head: dict[str, object] = {
        "format": FORMAT, "account": key.public_key.hex(), "kdf": "scrypt", "cost": cost, "block": BLOCK, "lanes": LANES,
        "salt": rng.bytes(16).hex(), "cipher": "chacha20-poly1305", "nonce": rng.bytes(12).hex(),
    }  # fmt: skip
    sealed = _cipher(head, secret).encrypt(bytes.fromhex(str(head["nonce"])), key.seed, _bound(head))
    return json.dumps({**head, "sealed": sealed.hex()}, sort_keys=True) + "\n"


def open_seed(text: str, secret: bytes, path: Path) -> KeyPair:
    """The key of a sealed file. Raises ConfigError: no such file, or another passphrase."""
    try:
        found = json.loads(text)
        if set(found) != _FIELDS or (found["format"], found["kdf"], found["cipher"]) != (FORMAT, "scrypt", "chacha20-poly1305"):
            raise ValueError("it has another form")
        cost = found["cost"]
        if (
            type(cost) is not int
            or not 2 <= cost <= MAX_COST
            or cost & (cost - 1)
            or (found["block"], found["lanes"]) != (BLOCK, LANES)
        ):
            raise ValueError(f"scrypt's cost {cost!r} is none that this release takes")
        nonce, salt, sealed = (bytes.fromhex(found[name]) for name in ("nonce", "salt", "sealed"))
        if (len(nonce), len(salt), len(sealed)) != (12, 16, SEED_SIZE + 16):
            raise ValueError("a field has another length")
        head = {name: value for name, value in found.items() if name != "sealed"}
        seed = _cipher(head, secret).decrypt(nonce, sealed, _bound(head))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no key that was encrypted by `pofl keys encrypt`: {error}") from None
    except InvalidTag:
        raise ConfigError(f"{path}: the passphrase is another one, or the file is damaged") from None
    key = KeyPair.from_seed(seed)
    if key.public_key.hex() != found["account"]:
        raise ConfigError(f"{path} names account {found['account']}, its key is of {key.public_key.hex()}")
    return key


def is_sealed(text: str) -> bool:
    return text.lstrip().startswith("{")


def passphrase(env: Mapping[str, str], file: Path | None = None) -> bytes:
    """From ``file``, else from POFL_PASSPHRASE_FILE, else from POFL_PASSPHRASE; a file's last line end is not part of it.

    Raises ConfigError: there is none, or others can read its file.
    """
    if file is None and PASSPHRASE_FILE in env:
        file = Path(env[PASSPHRASE_FILE])
    if file is None:
        if not env.get(PASSPHRASE):
            raise ConfigError(
                f"a passphrase is needed: set {PASSPHRASE_FILE} to a file that only you can read, or set {PASSPHRASE}"
            )
        return env[PASSPHRASE].encode()
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            data = opened.read(MAX_PASSPHRASE + 2)
    except OSError as error:
        raise ConfigError(f"cannot read the passphrase's file {file}: {error.strerror or error}") from None
    # A secret that a service manager hands in may be a pipe or a file of its own user.
    if stat.S_ISREG(mode) and mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{file} can be read by others (mode {stat.S_IMODE(mode):04o}): run `chmod 600 {file}`")
    secret = data.removesuffix(b"\n").removesuffix(b"\r")
    if not secret or len(secret) > MAX_PASSPHRASE:
        raise ConfigError(f"the passphrase in {file} must have 1 to {MAX_PASSPHRASE} bytes")
    return secret


def _cipher(head: Mapping[str, object], secret: bytes) -> ChaCha20Poly1305:
    cost = head["cost"]
    assert isinstance(cost, int)
    salt = bytes.fromhex(str(head["salt"]))
    return ChaCha20Poly1305(Scrypt(salt=salt, length=32, n=cost, r=BLOCK, p=LANES).derive(secret))


def _bound(head: Mapping[str, object]) -> bytes:
    return json.dumps(head, sort_keys=True, separators=(",", ":")).encode()
