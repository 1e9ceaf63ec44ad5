"""Making an authority, issuing from it, and every wrong file."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography import x509

from core.errors import ConfigError
from services.rpc import tls

ACCOUNT = b"\x07" * 32


@pytest.fixture
def authority(tmp_path: Path) -> tls.Authority:
    return tls.make_authority(tmp_path / "ca")


def test_a_certificate_says_role_name_and_account(authority: tls.Authority) -> None:
    issued = tls.issue(authority, "node", "node-0", ["localhost", "127.0.0.1", "::1"], ACCOUNT)
    assert tls.identity_of(issued.certificate) == tls.Identity("node", "node-0", ACCOUNT)
    names = x509.load_pem_x509_certificate(issued.certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.value.get_values_for_type(x509.DNSName) == [
        "localhost", "node.pofl.internal", "node-0.node.pofl.internal",
    ]  # fmt: skip
    assert [str(ip) for ip in names.value.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    assert tls.identity_of(tls.issue(authority, "user", "me", []).certificate) == tls.Identity("user", "me", None)


def test_private_keys_are_their_owners(authority: tls.Authority, tmp_path: Path) -> None:
    files = tls.issue(authority, "node", "node-0", []).write(tmp_path / "node")
    # A file that others could read is replaced, not written into.
    files.key.chmod(0o644)
    files = tls.issue(authority, "node", "node-0", []).write(tmp_path / "node")
    for key in (files.key, tmp_path / "ca" / "ca.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_an_authority_is_loaded_again_and_never_overwritten(authority: tls.Authority, tmp_path: Path) -> None:
    loaded = tls.load_authority(tmp_path / "ca")
    assert loaded.pem == authority.pem
    with pytest.raises(ConfigError, match="exists: use that authority"):
        tls.make_authority(tmp_path / "ca")
    (tmp_path / "ca" / "ca.key").write_bytes(tls.issue(authority, "node", "node-0", []).key)
    with pytest.raises(ConfigError, match="is not the key of"):
        tls.load_authority(tmp_path / "ca")
    (tmp_path / "ca" / "ca.key").write_text("nothing")
    with pytest.raises(ConfigError, match="does not hold an authority"):
        tls.load_authority(tmp_path / "ca")


@pytest.mark.parametrize("label", ["", "Node", "a/b", "-a", "a-", "a" * 32, "a.b", "ä", "a\n"])
def test_a_role_or_name_that_could_mean_two_things_is_refused(authority: tls.Authority, label: str) -> None:
    with pytest.raises(ConfigError, match="lower-case letters"):
        tls.issue(authority, label, "name", [])
    with pytest.raises(ConfigError, match="lower-case letters"):
        tls.issue(authority, "role", label, [])


def test_other_wrong_requests(authority: tls.Authority) -> None:
    with pytest.raises(ConfigError, match="32 bytes, got 3"):
        tls.issue(authority, "node", "node-0", [], b"abc")
    with pytest.raises(ConfigError, match="neither an address nor a DNS name"):
        tls.issue(authority, "node", "node-0", ["nöde"])
    with pytest.raises(ConfigError, match="names no role"):
        tls.identity_of(authority.pem)
    with pytest.raises(ConfigError, match="names no role"):
        tls.identity_of(b"nothing")


def test_wrong_files_are_found_before_any_connection(authority: tls.Authority, tmp_path: Path) -> None:
    mine = tls.issue(authority, "node", "node-0", []).write(tmp_path / "mine")
    other = tls.issue(tls.make_authority(tmp_path / "other-ca"), "node", "node-0", []).write(tmp_path / "other")
    tls.server_credentials(mine)
    tls.channel_credentials(mine)
    for files, message in (
        (tls.TlsFiles(mine.ca, mine.cert, other.key), "is not the private key of"),
        (tls.TlsFiles(other.ca, mine.cert, mine.key), "was not issued by"),
        (tls.TlsFiles(mine.ca, mine.key, mine.key), "is not a PEM file with a certificate"),
        (tls.TlsFiles(mine.ca, mine.cert, tmp_path / "gone"), "cannot read the private key"),
    ):
        with pytest.raises(ConfigError, match=message):
            tls.server_credentials(files)
        with pytest.raises(ConfigError, match=message):
            tls.channel_credentials(files)


def test_credentials_need_tls_1_3(authority: tls.Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = tls.issue(authority, "node", "node-0", []).write(tmp_path / "mine")
    monkeypatch.setattr("services.TLS_1_3_ONLY", False)
    with pytest.raises(ConfigError, match="import `services` first"):
        tls.server_credentials(files)
