"""A network for containers and hosts: every bundle has what its processes need, and no secret of anybody else."""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path

import pytest
from cryptography import x509
from typer.testing import CliRunner

from core.errors import ConfigError
from node.config import NodeConfig
from pool.manager.config import PoolConfig
from requester.config import RequesterConfig
from services.cli import pid_file
from services.cli.main import app
from services.platform.config import PlatformConfig
from services.rpc import tls
from services.rpc.role import RoleConfig, open_role
from services.runtime.config import advertised, load
from services.testnet.bundles import is_made, make_bundles, read_bundle
from services.testnet.invite import invite
from services.testnet.layout import Layout, Shape, load_layout, make_layout
from services.testnet.places import Host, containers, on_hosts, read_hosts
from services.testnet.supervisor import ProcessSpec, Supervisor

SHAPE = Shape(nodes=2, pools=1, miners=2, tasks=5)
HOSTS = """
[[host]]
name = "alpha"
address = "alpha.example.org"

[[host]]
name = "beta"
address = "192.0.2.7"
first_port = 9000
processes = ["pool0", "pool0-miner0"]
"""


@pytest.fixture(scope="module")
def boxed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Layout]:
    out = tmp_path_factory.mktemp("boxed")
    (out / "node0").mkdir()  # a volume that was mounted and is empty
    return out, make_bundles(out, SHAPE, containers)


@pytest.fixture(scope="module")
def hosted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Layout]:
    out = tmp_path_factory.mktemp("hosted")
    file = out / "hosts.toml"
    file.write_text(HOSTS)
    return out / "net", make_bundles(out / "net", SHAPE, on_hosts(read_hosts(file)))


def test_a_container_holds_its_own_secrets_and_no_others(boxed: tuple[Path, Layout]) -> None:
    out, layout = boxed
    assert {path.name for path in out.iterdir()} == {"operator", "user", *(m.name for m in layout.members)}
    for member in layout.members:
        keys = {path.relative_to(out / member.name) for path in (out / member.name).rglob("*.key")}
        assert keys == {Path(member.name, "account.key"), Path(member.name, "tls/tls.key")}
        rows = {path.name for path in (out / member.name).rglob("*.npz")}
        expected = {"requester": {"test.npz", "practice.npz"}, "provider": {"provider.npz"}, "miner": {f"{member.name}.npz"}}
        assert rows == expected.get(member.role, set())
    assert {path.name for path in (out / "operator").rglob("*.key")} == {"ca.key"}


def test_secrets_belong_to_their_owner_only(boxed: tuple[Path, Layout]) -> None:
    out, layout = boxed
    keys = [*out.rglob("*.key")]
    assert len(keys) == 2 * (len(layout.members) + 1) + 1
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o700}


def test_a_role_opens_in_its_container(boxed: tuple[Path, Layout]) -> None:
    out, layout = boxed
    cfg = load(PlatformConfig, out / "platform0" / "platform0" / "config.toml", {})
    role = open_role(cfg)
    assert role.genesis == layout.genesis
    assert (cfg.listen, advertised(cfg, cfg.listen)) == ("0.0.0.0:7000", "platform0:7000")
    assert (cfg.admin_listen, cfg.metrics_listen) == ("127.0.0.1:7001", "0.0.0.0:7002")
    assert cfg.peers.nodes == ("node0:7000", "node1:7000")


def test_a_certificate_names_where_its_process_is_reached(hosted: tuple[Path, Layout]) -> None:
    out, layout = hosted
    for member in layout.members:
        pem = (out / member.host / member.name / "tls" / "tls.pem").read_bytes()
        certificate = x509.load_pem_x509_certificate(pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        dialled = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
        assert member.listen.rpartition(":")[0] in dialled
        who = tls.identity_of(pem)
        assert (who.role, who.name, who.account) == (member.role, member.name, member.account)


def test_hosts_run_what_is_listed_and_share_the_rest(hosted: tuple[Path, Layout]) -> None:
    out, layout = hosted
    assert [name for name, _ in read_bundle(out / "beta").processes] == ["pool0", "pool0-miner0"]
    assert len(read_bundle(out / "alpha").processes) == len(layout.members) - 2
    config = tomllib.loads((out / "beta" / "pool0" / "config.toml").read_text())
    assert (config["listen"], config["advertise"]) == ("0.0.0.0:9000", "192.0.2.7:9000")
    assert (config["fleet_listen"], config["fleet_advertise"]) == ("0.0.0.0:9003", "192.0.2.7:9003")
    assert tomllib.loads((out / "alpha" / "pool0-miner1" / "config.toml").read_text())["pool"] == "192.0.2.7:9000"
    alpha = [m.listen for m in layout.members if m.host == "alpha"]
    assert alpha[:2] == ["alpha.example.org:7000", "alpha.example.org:7004"]


def test_a_host_has_a_start_script_and_a_unit_for_each_process(hosted: tuple[Path, Layout]) -> None:
    out, _ = hosted
    assert os.access(out / "beta" / "start", os.X_OK)
    assert {path.name for path in (out / "beta" / "systemd").iterdir()} == {"pofl-pool0.service", "pofl-pool0-miner0.service"}
    unit = (out / "beta" / "systemd" / "pofl-pool0.service").read_text()
    assert "ExecStart=/opt/pofl/bin/pofl run pool --config /var/lib/pofl/pool0/config.toml\n" in unit
    assert "User=pofl\n" in unit
    assert "NoNewPrivileges=yes\n" in unit
    for spec in read_bundle(out / "beta").specs():
        assert spec.config.is_file()


def test_users_and_operators_find_the_network(hosted: tuple[Path, Layout]) -> None:
    out, layout = hosted
    user = load_layout(out / "user")
    assert user.members == layout.members
    assert user.user_tls.key.is_file()
    guest = CliRunner().invoke(app, ["testnet", "invite", str(out / "guest"), "--net", str(out / "operator")])
    assert guest.exit_code == 0, guest.output
    assert (out / "guest" / "tls.key").is_file()


@pytest.mark.parametrize(
    ("role", "config"),
    [("node", NodeConfig), ("pool", PoolConfig), ("requester", RequesterConfig), ("platform", PlatformConfig)],
)
def test_an_invitation_is_a_bundle_of_one_process(
    hosted: tuple[Path, Layout], tmp_path: Path, role: str, config: type[RoleConfig]
) -> None:
    out, layout = hosted
    key = invite(load_layout(out / "operator"), tmp_path / "late", "late", role, "192.0.2.9:7000")
    bundle = read_bundle(tmp_path / "late")
    (spec,) = bundle.specs()
    assert (bundle.processes, spec.config) == ((("late", role),), tmp_path / "late" / "config.toml")
    assert os.access(tmp_path / "late" / "start", os.X_OK)
    unit = (tmp_path / "late" / "systemd" / "pofl-late.service").read_text()
    assert f"pofl run {role} --config /var/lib/pofl/config.toml\n" in unit
    opened = open_role(load(config, spec.config, {}))
    assert (opened.genesis, opened.account) == (layout.genesis, key.public_key)
    assert opened.cfg.peers.nodes == tuple(m.listen for m in layout.of("node"))
    assert (opened.cfg.listen, opened.cfg.advertise) == ("192.0.2.9:7000", "")
    assert (opened.cfg.admin_listen, opened.cfg.metrics_listen) == ("127.0.0.1:7001", "127.0.0.1:7002")
    if isinstance(opened.cfg, PoolConfig):
        assert (opened.cfg.fleet_listen, opened.cfg.fleet_advertise) == ("192.0.2.9:7003", "")
        assert opened.cfg.training.seed not in range(1, layout.shape.pools + 1)
    if isinstance(opened.cfg, RequesterConfig):
        assert opened.cfg.peers.platforms == (layout.of("platform")[0].listen,)


def test_an_invited_process_with_a_name_listens_everywhere_and_tells_the_name(
    hosted: tuple[Path, Layout], tmp_path: Path
) -> None:
    invite(load_layout(hosted[0] / "operator"), tmp_path / "late", "late", "pool", "late.example.org:7000")
    cfg = load(PoolConfig, tmp_path / "late" / "config.toml", {})
    assert (cfg.listen, advertised(cfg, cfg.listen)) == ("0.0.0.0:7000", "late.example.org:7000")
    assert (cfg.fleet_listen, cfg.fleet_advertise) == ("0.0.0.0:7003", "late.example.org:7003")
    certificate = x509.load_pem_x509_certificate((tmp_path / "late" / "tls.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "late.example.org" in names.get_values_for_type(x509.DNSName)


def test_only_who_has_the_authority_invites(hosted: tuple[Path, Layout], tmp_path: Path) -> None:
    out, _ = hosted
    with pytest.raises(ConfigError, match=r"user lacks the network's authority \(ca\): .* --net net/operator"):
        invite(load_layout(out / "user"), tmp_path / "late", "late", "pool")
    assert not (tmp_path / "late").exists()


def test_invited_processes_of_this_machine_take_ports_of_nobody(tmp_path: Path) -> None:
    layout = make_layout(tmp_path / "net", SHAPE)
    taken = {a for m in layout.members for a in (m.listen, m.admin, m.metrics, m.fleet)}
    invite(layout, tmp_path / "late", "late", "pool")
    cfg = load(PoolConfig, tmp_path / "late" / "config.toml", {})
    own = {cfg.listen, cfg.admin_listen, cfg.metrics_listen, cfg.fleet_listen}
    assert len(own) == 4
    assert not own & taken


def test_init_makes_a_network_once(boxed: tuple[Path, Layout]) -> None:
    out, layout = boxed
    assert is_made(out)
    with pytest.raises(ConfigError, match="holds a network already"):
        make_bundles(out, SHAPE, containers)
    words = ["testnet", "init", "--compose", "--once", "--out", str(out), "--nodes", "2", "--pools", "1"]
    again = CliRunner().invoke(app, [*words, "--miners", "2"])
    assert again.exit_code == 0
    assert "left as it is" in again.output
    assert load_layout(out / "user").genesis == layout.genesis
    # A compose file of another shape on the same volumes: its further processes would find no files.
    other = CliRunner().invoke(app, [*words, "--miners", "3"])
    assert other.exit_code == 2
    assert "holds a network of --nodes 2 --pools 1 --miners 2, not of --nodes 2 --pools 1 --miners 3" in other.stderr
    assert "docker compose down -v" in other.stderr


def test_an_init_that_was_cut_off_is_done_again_as_a_whole(tmp_path: Path) -> None:
    old = make_bundles(tmp_path, SHAPE, containers)
    (tmp_path / "operator" / "testnet.json").unlink()
    new = make_bundles(tmp_path, SHAPE, containers)
    assert new.genesis != old.genesis
    for member in new.members:
        assert (tmp_path / member.name / "genesis.json").read_text() == new.genesis.to_json()
        pem = (tmp_path / member.name / member.name / "tls" / "tls.pem").read_bytes()
        assert tls.identity_of(pem).account == member.account


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"is not empty \(photos\)"):
        make_bundles(tmp_path, SHAPE, containers)
    assert {path.name for path in tmp_path.iterdir()} == {"photos"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", r"must hold \[\[host\]\] tables"),
        ("x = 1\n" + HOSTS, r"must hold \[\[host\]\] tables and nothing else"),
        ("[[host]]\nname = 'a'", "a host has no address"),
        ("[[host]]\nname = 'a'\naddress = 'b'\nport = 1", "unknown key 'port'"),
        ("[[host]]\nname = 'a'\naddress = '0.0.0.0'", "'0.0.0.0' cannot be dialled"),
        ("[[host]]\nname = 'a'\naddress = '::'", "'::' cannot be dialled"),
        ("[[host]]\nname = 'a'\naddress = 'x y'", "cannot be dialled"),
        ("[[host]]\nname = '../a'\naddress = 'b'", "host name '../a' must be"),
        ("[[host]]\nname = 'operator'\naddress = 'b'", "host name 'operator' must be"),
        ("[[host]]\nname = 'a'\naddress = 'b'\nfirst_port = 0", "first_port is 0"),
        ("[[host]]\nname = 'a'\naddress = 'b'\nfirst_port = true", "first_port of a host is True"),
        ("[[host]]\nname = 'a'\naddress = 'b'\nlisten = 'c'", "must be an address of the host"),
        ("[[host]]\nname = 'a'\naddress = 'b'\n[[host]]\nname = 'a'\naddress = 'c'", "two hosts have the name a"),
    ],
)
def test_a_wrong_file_of_hosts_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "hosts.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        read_hosts(file)


@pytest.mark.parametrize(
    ("hosts", "sentence"),
    [
        ([Host("a", "a", ("node9",))], "this network has no process 'node9'; it has node0"),
        ([Host("a", "a", ("node0",)), Host("b", "b", ("node0",))], "node0 is on two hosts, a and b"),
        ([Host("a", "a", ("node0",))], "no host runs pool0"),
        ([Host("a", "a", ("node0", "pool0")), Host("b", "b")], "nothing is left to run on b"),
        ([Host("a", "a", first_port=65_530)], "no port is left for pool0"),
    ],
)
def test_processes_without_a_place_are_named(hosts: list[Host], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        on_hosts(hosts)([("node0", "node"), ("pool0", "pool")])


def test_an_address_of_version_6_is_bracketed() -> None:
    (place,) = on_hosts([Host("a", "2001:db8::1", listen="::")])([("node0", "node")])
    assert (place.listen, place.bind) == ("[2001:db8::1]:7000", "[::]:7000")


def test_a_folder_that_is_no_bundle_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no bundle of a host"):
        read_bundle(tmp_path)
    (tmp_path / "bundle.json").write_text('{"processes": [{"name": "../../x", "role": "node"}]}')
    with pytest.raises(ConfigError, match="is no name"):
        read_bundle(tmp_path)
    (tmp_path / "bundle.json").write_text('{"processes": [{"name": "x", "role": "king"}]}')
    with pytest.raises(ConfigError, match="'king' is no role"):
        read_bundle(tmp_path)
    (tmp_path / "bundle.json").write_text('{"flat": true, "processes": []}')
    with pytest.raises(ConfigError, match="0 processes in an invitation for one"):
        read_bundle(tmp_path)


def test_a_bundle_runs_once(hosted: tuple[Path, Layout], monkeypatch: pytest.MonkeyPatch) -> None:
    """A second `pofl join` would write into the first one's logs, and end with the first of its ports that is taken."""
    out, _ = hosted
    started: list[str] = []

    async def start(self: object, spec: ProcessSpec) -> None:
        started.append(spec.name)

    monkeypatch.setattr(Supervisor, "start", start)
    with pid_file.held(out / "alpha", ""):
        again = CliRunner().invoke(app, ["join", str(out / "alpha")])
    assert again.exit_code == 2
    assert again.stderr == (
        f"error: the processes of {out / 'alpha'} run already, by `pofl join` in another terminal: end it there by Ctrl-C\n"
    )
    (out / "alpha" / "supervisor.pid").mkdir()  # as where nothing can be written; root can write everywhere
    try:
        again = CliRunner().invoke(app, ["join", str(out / "alpha")])
    finally:
        (out / "alpha" / "supervisor.pid").rmdir()
    assert again.exit_code == 2
    assert again.stderr == f"error: cannot write {out / 'alpha' / 'supervisor.pid'}: Is a directory\n"
    assert not started
