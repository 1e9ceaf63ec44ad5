"""services.testnet.layout: what is written can be read by the roles, and wrong shapes are named."""

from __future__ import annotations

import dataclasses
import stat
from pathlib import Path

import pytest

from core.errors import ConfigError
from services.platform.config import PlatformConfig
from services.rpc import tls
from services.rpc.role import open_role
from services.runtime.config import load
from services.testnet.layout import Shape, free_ports, load_layout, make_layout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("net") / "testnet"
    make_layout(folder, Shape(nodes=7, pools=3, miners=2))
    return folder


def test_a_written_layout_is_read_back_whole(folder: Path) -> None:
    layout = load_layout(folder)
    roles = [m.role for m in layout.members]
    assert {role: roles.count(role) for role in set(roles)} == {
        "node": 7, "pool": 3, "miner": 6, "provider": 1, "platform": 1, "requester": 1,
    }  # fmt: skip
    addresses = [a for m in layout.members for a in (m.listen, m.admin, m.metrics, m.fleet) if a]
    assert len(set(addresses)) == len(addresses) == 3 * 19 + 3
    assert [v.name for v in layout.genesis.validators] == [f"node{i}" for i in range(7)]
    assert layout.name_of(layout.member("pool1").account) == "pool1"


def test_a_role_opens_with_its_files(folder: Path) -> None:
    cfg = load(PlatformConfig, folder / "platform0" / "config.toml", {})
    role = open_role(cfg)
    layout = load_layout(folder)
    assert role.account == layout.member("platform0").account
    assert role.genesis == layout.genesis
    assert len(cfg.peers.nodes) == 7
    assert role.tls is not None
    assert tls.identity_of(role.tls.read()[1]).name == "platform0"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("name=other", "is the certificate of platform platform0, this is platform other"),
        ("tls.cert={net}/node0/tls/tls.pem", "is the certificate of node node0, this is platform platform0"),
        ("tls.cert={net}/genesis.json", "genesis.json: the certificate names no role"),
        ("key={net}/node0/account.key", "is the key of another account"),
    ],
)
def test_a_role_is_the_one_of_its_certificate(folder: Path, change: str, sentence: str) -> None:
    change = change.replace("{net}", str(folder))
    with pytest.raises(ConfigError, match=sentence):
        open_role(load(PlatformConfig, folder / "platform0" / "config.toml", {}, [change]))


def test_windows_fit_the_number_of_validators(folder: Path) -> None:
    layout = load_layout(folder)
    assert layout.genesis.params.entry_ms >= layout.genesis.params.min_window_ms(7)


def test_keys_belong_to_their_owner_only(folder: Path) -> None:
    files = [*folder.glob("*/account.key"), *folder.glob("*/tls/*.key"), folder / "ca" / "ca.key"]
    assert len(files) == 2 * 20 + 1
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_a_folder_in_use_is_left_alone(folder: Path) -> None:
    before = (folder / "genesis.json").read_bytes()
    with pytest.raises(ConfigError, match="is not empty: choose another folder"):
        make_layout(folder, Shape())
    assert (folder / "genesis.json").read_bytes() == before


def test_nobody_else_can_look_into_it(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir(mode=0o755)
    make_layout(folder, Shape(nodes=1, pools=1, miners=1))
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("change", [{"nodes": 0}, {"pools": 17}, {"miners": 33}, {"tasks": -1}])
def test_wrong_shapes_are_named(change: dict[str, int], tmp_path: Path) -> None:
    ((name, value),) = change.items()
    with pytest.raises(ConfigError, match=rf"{name} is {value}, it must be from"):
        make_layout(tmp_path / "x", dataclasses.replace(Shape(), **change))
    assert not (tmp_path / "x").exists()


def test_a_folder_without_a_testnet_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no testnet"):
        load_layout(tmp_path)


def test_a_damaged_file_of_a_testnet_is_named(tmp_path: Path) -> None:
    make_layout(tmp_path / "net", Shape(nodes=1, pools=1, miners=1))
    (tmp_path / "net" / "genesis.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"net/genesis\.json: genesis: not a genesis document"):
        load_layout(tmp_path / "net")
    (tmp_path / "net" / "testnet.json").write_text("{")
    with pytest.raises(ConfigError, match=r"testnet\.json is damaged"):
        load_layout(tmp_path / "net")


def test_a_port_that_is_given_is_not_given_again() -> None:
    """Who was given it may not have bound it yet."""
    given = [port for _ in range(20) for port in free_ports(3)]
    assert len(set(given)) == 60
    assert all(20_000 <= port < 32_000 for port in given)
