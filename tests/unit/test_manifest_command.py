"""`pofl bench manifest`: what it prints and refuses before anything runs, and what containers are told."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.manifest.containers import Containers, override
from bench.manifest.generate import draw
from bench.manifest.model import Manifest, to_toml
from bench.manifest.told import LIES_MOST, LIES_TOLD, may_lie
from core.errors import ConfigError, UnavailableError
from services.cli.main import app
from services.testnet.layout import Shape

PLAIN = Path(__file__).parents[1] / "e2e" / "manifests" / "plain.toml"


def pofl(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["bench", "manifest", *words])
    return done.exit_code, done.output


def test_drawn_manifests_are_printed_as_files_that_can_be_run() -> None:
    code, said = pofl("--seed", "3", "--count", "2", "--print")
    assert code == 0
    first, second = said.split("# seed3-1.toml\n")
    assert first == f"# seed3-0.toml\n{to_toml(draw(3, 0))}\n"
    assert second == to_toml(draw(3, 1))
    assert tomllib.loads(said.split("# seed3-1")[0])["until"]["blocks"] >= 1


def test_a_slower_manifest_has_longer_windows() -> None:
    code, said = pofl(str(PLAIN), "--slack", "2", "--print")
    assert code == 0
    assert tomllib.loads(said)["windows"]["commit_ms"] == 40_000
    assert tomllib.loads(said)["until"]["seconds"] == 480


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "no manifest is named: give files, or --count N"),
        (["--seed", "1"], "--seed is of drawn manifests: say how many with --count"),
        (["none.toml"], "cannot read none.toml: No such file or directory"),
        ([str(PLAIN), "--slack", "2", "--compose"], "--slack makes other windows, and containers have the default ones"),
        ([str(PLAIN), "--folder", str(PLAIN.parent)], "is not an empty folder"),
    ],
)
def test_what_is_wrong_is_a_sentence(words: list[str], sentence: str) -> None:
    code, said = pofl(*words)
    assert code == 2
    assert said.startswith("error: ")
    assert sentence in said


def test_a_liar_remembers_in_which_tasks_it_lied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIES_TOLD, str(tmp_path / "told"))
    monkeypatch.setenv(LIES_MOST, "2")
    first, second, third = (bytes([i]) * 32 for i in range(3))
    assert [may_lie(task) for task in (first, first, second, third, first)] == [True, True, True, False, True]
    monkeypatch.setenv(LIES_MOST, "0")
    assert may_lie(third)


def test_containers_publish_what_is_judged_and_no_port_twice(tmp_path: Path) -> None:
    manifest = Manifest("m", shape=Shape(4, 2, 1))
    text, addresses = override(manifest, "127.8.0.1")
    assert set(addresses) == {"node0", "node1", "node2", "node3", "pool0", "pool1", "requester0"}
    assert len(set(addresses.values())) == 7
    assert f'  node3:\n    ports: ["{addresses["node3"]}:7000"]' in text
    assert "  node0:" not in text
    made = Containers(manifest, tmp_path / "net")
    assert "pool1-miner0:" in (tmp_path / "net" / "compose.yml").read_text()
    with pytest.raises(ConfigError, match="not been started"):
        _ = made.accounts
    with pytest.raises(ConfigError, match="is not empty"):
        Containers(manifest, tmp_path / "net")


async def test_without_an_engine_nothing_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(UnavailableError, match="no containers here: there is no docker command"):
        async with Containers(Manifest("m"), tmp_path / "net"):
            pytest.fail("it began")
