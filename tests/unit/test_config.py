"""The configuration of a role, from every source and with every mistake."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any, ClassVar

import pytest

from core.errors import ConfigError
from pool.manager.config import PoolConfig
from pool.miner.config import MinerConfig
from services.runtime.config import CommonConfig, advertised, dump, load, option, section

MINIMAL = """
name = "node-0"
listen = "127.0.0.1:5000"
data_dir = "data"
[tls]
insecure_loopback = true
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    tick_ms: int = option("Time between blocks, milliseconds.", default=500, low=1, high=60_000)
    share: float = option("A part of one.", default=0.5, low=0, high=1)
    steps: tuple[int, ...] = option("Steps.", default=(1, 2), low=0)
    verbose: bool = option("Say more.", default=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(CommonConfig):
    ROLE: ClassVar[str] = "node"

    timing: Timing = section(Timing, "Times.")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "node.toml"
    path.write_text(MINIMAL)
    return path


def test_file_environment_and_flags_in_that_order(file: Path) -> None:
    file.write_text(MINIMAL + "[timing]\ntick_ms = 1\nshare = 1\n[log]\nlevel = 'warning'")
    env = {"POFL_LOG__LEVEL": "error", "POFL_TIMING__TICK_MS": "2", "POFL_NODE_TIMING__TICK_MS": "3", "HOME": "/"}
    assert load(Config, file, {}).timing == Timing(tick_ms=1, share=1.0)
    cfg = load(Config, file, env)
    assert (cfg.log.level, cfg.timing.tick_ms) == ("error", 3)
    cfg = load(Config, file, env, ["log.level=debug", "timing.steps=[4, 5]", "timing.verbose=true"])
    assert (cfg.log.level, cfg.timing.steps, cfg.timing.verbose) == ("debug", (4, 5), True)
    assert load(Config, file, {"POFL_PEERS__NODES": "a:1, b:2"}).peers.nodes == ("a:1", "b:2")


def test_paths_of_a_file_are_relative_to_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = file.parent / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load(Config, file, {}).data_dir == file.parent / "data"
    assert load(Config, file, {}, ["data_dir=here"]).data_dir == elsewhere / "here"


@pytest.mark.parametrize(
    ("line", "env", "override", "message"),
    [
        ("[log]\nlevle = 'info'", {}, "", r"unknown key 'log.levle' in .*node.toml; did you mean 'log.level'"),
        ("", {"POFL_LISTE": "x"}, "", "unknown key 'liste' in environment variable POFL_LISTE; did you mean 'listen'"),
        ("", {}, "foo=bar", "unknown key 'foo' in --set foo; known are "),
        ("", {}, "tls.cart=x", "unknown key 'tls.cart' in --set tls.cart; did you mean 'tls.cert'"),
        ("", {}, "log.level.deep=x", "log.level has no part 'deep'"),
        ("", {}, "log=x", "log is a table"),
        ("", {}, "log.level", "--set needs KEY=VALUE"),
        ("timing = 3", {}, "", r"timing in .* is a table"),
        ("[timing]\ntick_ms = '5'", {}, "", "timing.tick_ms must be a whole number, got '5'"),
        ("[timing]\ntick_ms = true", {}, "", "timing.tick_ms must be a whole number, got True"),
        ("[timing]\ntick_ms = 0", {}, "", "timing.tick_ms must be at least 1 and at most 60000, got 0"),
        ("[timing]\nshare = nan", {}, "", "timing.share must be at least 0 and at most 1, got nan"),
        ("[timing]\nsteps = [1, -1]", {}, "", "timing.steps must be at least 0, got -1"),
        ("[timing]\nsteps = 3", {}, "", "timing.steps must be a list, each a whole number, got 3"),
        ("", {"POFL_TIMING__TICK_MS": "x"}, "", "got 'x' .from environment variable POFL_TIMING__TICK_MS"),
        ("", {}, "timing.verbose=maybe", "timing.verbose must be true or false, got 'maybe'"),
        ("[log]\nlevel = 'loud'", {}, "", "log.level must be one of debug, info, warning, error, got 'loud'"),
        ("", {}, "listen=nowhere", "listen must be host:port"),
        ("", {}, "listen=::1:80", "an IPv6 host in brackets"),
        ("", {}, "peers.nodes=a:0", "peers.nodes must be host:port"),
        ("", {}, "advertise=0.0.0.0:5000", "0.0.0.0 cannot be dialled"),
        ("", {}, "tls.ca=x", "tls.insecure_loopback and tls.ca exclude one another"),
        ("", {}, "tls.insecure_loopback=false", "tls.ca, tls.cert, tls.key must be set"),
        ("x = [", {}, "", "is not TOML"),
    ],
)
def test_a_mistake_is_named_with_its_place(file: Path, line: str, env: dict[str, str], override: str, message: str) -> None:
    file.write_text(f"{line}\n{MINIMAL}" if line.startswith(("timing =", "x =")) else f"{MINIMAL}\n{line}")
    with pytest.raises(ConfigError, match=message):
        load(Config, file, env, [override] if override else [])


@pytest.mark.parametrize("override", ["tokn=hunter2", "tls.tokn = hunter2", "name.x=hunter2", "tls=hunter2", "token hunter2"])
def test_a_mistyped_key_does_not_show_the_secret(file: Path, override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(Config, file, {}, [override])
    assert "--set" in caught.value.message
    assert "hunter2" not in f"{caught.value.message} {vars(caught.value)}"


def test_what_must_be_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"name is not set in the configuration. Name of .* Give --config FILE, or --set"):
        load(Config, None, {})
    with pytest.raises(ConfigError, match=r"cannot read the configuration file .*gone.toml: No such file"):
        load(Config, tmp_path / "gone.toml", {})


def test_another_roles_variables_are_not_ours(file: Path) -> None:
    assert load(Config, file, {"POFL_MINER_ANYTHING": "1", "POFL_CONFIG": "x"}).name == "node-0"


def test_a_printed_configuration_reads_back(file: Path, tmp_path: Path) -> None:
    cfg = load(Config, file, {}, ['name=a "quoted" \\ näme\t', "timing.share=0.25", "peers.nodes=a:1,b:2"])
    printed = tmp_path / "printed.toml"
    printed.write_text(dump(cfg))
    assert load(Config, printed, {}) == cfg
    assert "# Time between blocks, milliseconds.\ntick_ms = 500" in dump(cfg)


@pytest.mark.parametrize("kind", [MinerConfig, PoolConfig])
def test_a_secret_is_printed_as_set_and_hidden(kind: type[MinerConfig | PoolConfig], tmp_path: Path) -> None:
    key, table = ("token", "") if kind is MinerConfig else ("admission.token", "admission")
    settings = [
        "name=a", "listen=127.0.0.1:0", "data_dir=d", "tls.insecure_loopback=true", "key=k", "chain.genesis=g",
        *(["pool=a:1", "data=d.npz"] if kind is MinerConfig else ["fleet_listen=127.0.0.1:0"]),
    ]  # fmt: skip
    secret = "correct-horse-battery-staple"
    printed = dump(load(kind, None, {}, [*settings, f"{key}={secret}"]))
    assert "# token = (set, not shown)" in printed
    assert secret not in printed
    assert 'token = ""' in dump(load(kind, None, {}, settings))
    # What was printed never reads back as another secret.
    assert "token" not in str(tomllib.loads(printed).get(table, {}))
    file = tmp_path / "c.toml"
    file.write_text("[admission]\ntoken = 12345678901234567\n" if table else "token = 12345678901234567\n")
    with pytest.raises(ConfigError, match="token must be text, and is not") as caught:
        load(kind, file, {}, settings)
    assert "123456" not in caught.value.message


def test_every_key_is_documented() -> None:
    def undocumented(cls: Any) -> list[str]:
        found = []
        for field in dataclasses.fields(cls):
            if not field.metadata.get("doc"):
                found.append(f"{cls.__name__}.{field.name}")
            if field.default_factory is not dataclasses.MISSING:
                found += undocumented(field.default_factory())
        return found

    assert undocumented(Config) == []


def test_a_wildcard_is_never_advertised(file: Path) -> None:
    cfg = load(Config, file, {}, ["listen=0.0.0.0:0"])
    with pytest.raises(ConfigError, match="set advertise"):
        advertised(cfg, "0.0.0.0:4711")
    assert advertised(load(Config, file, {}, ["advertise=node-0:0"]), "0.0.0.0:4711") == "node-0:4711"
    assert advertised(load(Config, file, {}), "127.0.0.1:4711") == "127.0.0.1:4711"


@pytest.mark.parametrize(
    ("set_", "bound"),
    [("advertise=unix:/run/own.sock", "127.0.0.1:1"), ("advertise=a/b:80", "127.0.0.1:1"), ("name=n", "unix:/run/a")],
)
def test_what_the_chain_does_not_take_is_never_advertised(file: Path, set_: str, bound: str) -> None:
    with pytest.raises(ConfigError, match=r"others cannot dial: set advertise to host:port"):
        advertised(load(Config, file, {}, [set_]), bound)
