"""Encrypted account keys, scopes of users, and certificates that change while a server runs."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from core.crypto.signing import KeyPair
from core.errors import AuthError, ConfigError
from core.ports import SystemRng
from services.cli.keys import app
from services.rpc import tls
from services.rpc.auth import ANYONE, Caller, RoleRules
from services.rpc.channel import connect
from services.rpc.role import read_key
from services.rpc.scopes import METHODS, Scope
from services.rpc.server import COMMON_RULES, RpcServer
from services.runtime import key_files
from services.runtime.key_files import open_seed, passphrase, seal_seed

KEY = KeyPair.from_seed(bytes(range(32)))
CHEAP = 1 << 4
MODULES = (
    "node.servicer", "requester.servicer", "provider.servicer", "pool.manager.servicer", "pool.miner.servicer",
)  # fmt: skip


def run(*arguments: object, **env: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments], env=env)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "account.key"
    path.write_text(KEY.seed.hex() + "\n")
    path.chmod(0o600)
    return path


def test_a_key_is_sealed_used_and_opened_again(key_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(key_files.seal_seed, "__defaults__", (CHEAP,))
    before = key_file.read_text()
    code, said = run("encrypt", key_file, POFL_PASSPHRASE="long and secret")
    assert code == 0, said
    sealed = key_file.read_text()
    assert KEY.seed.hex() not in sealed + said
    assert "long and secret" not in sealed + said
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert run("encrypt", key_file, POFL_PASSPHRASE="again")[0] == 2
    assert run("show", key_file)[0] == 2, "without a passphrase"
    word = tmp_path / "word"
    word.write_text("long and secret\n")
    assert "can be read by others" in run("decrypt", key_file, "--passphrase-file", word)[1]
    word.chmod(0o600)
    monkeypatch.setenv("POFL_PASSPHRASE_FILE", str(word))
    assert read_key(key_file) == KEY  # as every role reads it
    assert run("decrypt", key_file)[0] == 0
    assert key_file.read_text() == before


def test_another_passphrase_or_a_changed_file_opens_nothing(tmp_path: Path) -> None:
    text = seal_seed(KEY, b"right", SystemRng(), CHEAP)
    assert open_seed(text, b"right", tmp_path) == KEY
    with pytest.raises(ConfigError, match="another one"):
        open_seed(text, b"wrong", tmp_path)
    whole = json.loads(text)
    changes: list[dict[str, object]] = [
        {"account": "00" * 32}, {"cost": 2 * CHEAP}, {"nonce": "00" * 12}, {"salt": "00" * 16}, {"sealed": "00" * 48},
        {"cost": 1 << 21}, {"cost": 3}, {"cost": True}, {"cost": "16"}, {"block": 1 << 30}, {"lanes": 9}, {"kdf": "none"},
        {"sealed": ""}, {"extra": 1}, {"salt": None},
    ]  # fmt: skip
    for change in changes:
        with pytest.raises(ConfigError):
            open_seed(json.dumps({**whole, **change}), b"right", tmp_path)
    for other in ("{", "[]", "{}", '{"format": 1}', "[" * 900):
        with pytest.raises(ConfigError):
            open_seed(other, b"right", tmp_path)


def test_where_a_passphrase_comes_from(tmp_path: Path) -> None:
    word = tmp_path / "word"
    word.write_bytes(b"from file\r\n")
    word.chmod(0o600)
    assert passphrase({"POFL_PASSPHRASE": "from env"}) == b"from env"
    assert passphrase({"POFL_PASSPHRASE": "from env", "POFL_PASSPHRASE_FILE": str(word)}) == b"from file"
    for env in ({}, {"POFL_PASSPHRASE": ""}, {"POFL_PASSPHRASE_FILE": str(tmp_path / "none")}):
        with pytest.raises(ConfigError):
            passphrase(env)


def rules() -> dict[str, list[str]]:
    """Of every server of every role."""
    found: dict[str, list[str]] = {"pofl.task.v1.PlatformService": [ANYONE], **COMMON_RULES}
    for name in MODULES:
        found |= importlib.import_module(name).RULES
    return {**found, "pofl.blob.v1.BlobService/Stat": ["user"], "pofl.blob.v1.BlobService/Read": ["user"]}


def methods_of(service: str) -> list[str]:
    area = service.split(".")[1]
    if service.startswith("grpc."):
        return [m.partition("/")[2] for m in METHODS if m.startswith(f"{service}/")]
    descriptor = importlib.import_module(f"pofl.{area}.v1.{area}_pb2").DESCRIPTOR
    return [m.name for m in descriptor.services_by_name[service.rpartition(".")[2]].methods]


def test_every_rpc_that_users_may_call_has_a_scope_and_no_other() -> None:
    table = rules()
    allowed = set()
    for service in {key.partition("/")[0] for key in table}:
        for method in methods_of(service):
            roles = table.get(f"{service}/{method}", table.get(service, []))
            if ANYONE in roles or "user" in roles:
                allowed.add(f"{service}/{method}")
    assert allowed == set(METHODS)


def test_a_scope_allows_its_own_methods_only() -> None:
    checked = RoleRules(rules())
    for scope in Scope:
        who = Caller("user", "guest", None, frozenset({scope.value}))
        for method, needed in METHODS.items():
            if needed is scope:
                checked.check(f"/{method}", who)
            else:
                with pytest.raises(AuthError, match=needed.value):
                    checked.check(f"/{method}", who)
    unknown = Caller("user", "guest", None, frozenset({"everything"}))
    with pytest.raises(AuthError):
        checked.check("/pofl.chain.v1.ChainService/GetTip", unknown)
    with pytest.raises(AuthError):
        checked.check("/pofl.task.v1.RequesterService/PublishTask", Caller("node", "n", None, frozenset({"operate"})))
    everything = Caller("user", "user")
    for method in METHODS:
        checked.check(method, everything)


def test_writing_methods_are_not_read() -> None:
    for method, scope in METHODS.items():
        if any(word in method.partition("/")[2] for word in ("Submit", "Publish", "FetchModel", "Write")):
            assert scope is not Scope.READ, method


def test_scopes_are_in_the_certificate(tmp_path: Path) -> None:
    tls.make_authority(tmp_path / "ca")
    for flags, wanted in (([], {"read"}), (["--scope", "submit", "--scope", "operate"], {"submit", "operate"})):
        out = tmp_path / f"user{len(flags)}"
        code, said = run("issue-user", out, "--authority", tmp_path / "ca", "--name", "guest", *flags)
        assert code == 0, said
        assert tls.identity_of((out / "tls.pem").read_bytes()) == tls.Identity("user", "guest", None, frozenset(wanted))
    made = tls.issue(tls.load_authority(tmp_path / "ca"), "user", "user", [])
    assert tls.identity_of(made.certificate).scopes is None


@pytest.fixture
def process(tmp_path: Path) -> Path:
    home = tmp_path / "node0"
    home.mkdir()
    authority = tls.make_authority(tmp_path / "ca")
    tls.issue(authority, "node", "node0", ["127.0.0.1", "a.example.org"], KEY.public_key).write(home / "tls")
    tls.issue(authority, "user", "user", []).write(tmp_path / "user")
    (home / "config.toml").write_text('[tls]\nca = "tls/ca.pem"\ncert = "tls/tls.pem"\nkey = "tls/tls.key"\n')
    return home


async def test_a_running_server_takes_a_new_certificate(process: Path, tmp_path: Path) -> None:
    files = tls.TlsFiles(*(process / "tls" / name for name in ("ca.pem", "tls.pem", "tls.key")))
    before = files.cert.read_bytes()
    server = RpcServer("127.0.0.1:0", files, "127.0.0.1:0", role_rules={})
    await server.start()
    try:
        first = await served(server.address, tmp_path / "user")
        assert first == before
        # Not yet whole: key and certificate do not belong together. The old ones are served on.
        old_key = files.key.read_bytes()
        files.key.write_bytes(tls.issue(tls.load_authority(tmp_path / "ca"), "node", "node0", []).key)
        assert await served(server.address, tmp_path / "user") == before
        files.key.write_bytes(old_key)
        code, said = run_in_thread("rotate-cert", process, "--authority", tmp_path / "ca")
        assert code == 0, said
        after = await served(server.address, tmp_path / "user")
        assert after == files.cert.read_bytes() != before
        assert tls.identity_of(after) == tls.identity_of(before)
        assert tls.hosts_of(after) == tls.hosts_of(before)
    finally:
        await server.stop(0)


def run_in_thread(*arguments: object) -> tuple[int, str]:
    """The command has an event loop of its own."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run, *arguments).result(timeout=240)


async def served(address: str, user: Path) -> bytes:
    """The certificate that a new connection is shown, after one call over gRPC."""
    import asyncio
    import ssl

    files = tls.TlsFiles(user / "ca.pem", user / "tls.pem", user / "tls.key")
    channel = connect(address, files, expect_role="node")
    try:
        answer = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=120, wait_for_ready=True
        )
        assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    except aio.AioRpcError as error:
        pytest.fail(str(error))
    finally:
        await channel.close(None)
    context = ssl.create_default_context(cafile=str(files.ca))
    context.load_cert_chain(files.cert, files.key)
    context.set_alpn_protocols(["h2"])
    host, _, port = address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="node.pofl.internal")
    try:
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    finally:
        writer.close()
    return ssl.DER_cert_to_PEM_cert(shown).encode()


def test_another_authority_is_refused(process: Path, tmp_path: Path) -> None:
    tls.make_authority(tmp_path / "other")
    before = (process / "tls" / "tls.pem").read_bytes()
    code, said = run("rotate-cert", process, "--authority", tmp_path / "other")
    assert code == 2
    assert "is not the authority" in said
    assert (process / "tls" / "tls.pem").read_bytes() == before
