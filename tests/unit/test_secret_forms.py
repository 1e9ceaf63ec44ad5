"""The search that the tests of logs rely on finds what it must."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from services.rpc import tls
from tests.secret_forms import found_in, secrets_of

SECRET = bytes(range(100, 132))


@pytest.mark.parametrize(
    "text",
    [
        SECRET, SECRET.hex().encode(), SECRET.hex().upper().encode(), str(SECRET).encode(), str(list(SECRET)).encode(),
        json.dumps(list(SECRET), separators=(",", ":")).encode(), str(int.from_bytes(SECRET, "big")).encode(),
        base64.b64encode(SECRET), base64.b64encode(b"1" + SECRET + b"22"), base64.b64encode(b"12" + SECRET),
        base64.urlsafe_b64encode(SECRET + b"tail"),
    ],
)  # fmt: skip
def test_each_form_is_found(text: bytes) -> None:
    assert found_in({"log": b"before " + text + b" after"}, {"key": SECRET})
    assert not found_in({"log": b"before " + text[:8] + b" after"}, {"key": SECRET})


def test_the_keys_of_a_process_are_what_is_looked_for(tmp_path: Path) -> None:
    authority = tls.make_authority(tmp_path / "ca")
    tls.issue(authority, "node", "node0", []).write(tmp_path / "node0/tls")
    (tmp_path / "node0/account.key").write_text(SECRET.hex() + "\n")
    (tmp_path / "node0/rows.secret").write_bytes(bytes(1_000) + SECRET)
    (tmp_path / "node0/digits.secret").write_text(SECRET[::-1].hex())
    found = secrets_of(tmp_path)
    assert found["node0/digits.secret at 0"] == SECRET[::-1]
    assert found["node0/account.key"] == SECRET
    assert {name.partition(" ")[0] for name in found} == {
        "ca/ca.key", "node0/tls/tls.key", "node0/account.key", "node0/rows.secret",
        "node0/digits.secret",
    }  # fmt: skip
    line = (tmp_path / "node0/tls/tls.key").read_bytes().splitlines()[1]
    assert found_in({"log": b'{"message": "' + line + b'"}'}, found)
