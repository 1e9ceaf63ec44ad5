"""Manifests are read strictly: what is wrong is a sentence with file and key; what is drawn is legal, and the same again."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.manifest.generate import draw, most_faulty
from bench.manifest.model import Act, At, Liar, Lie, Manifest, Perturbation, to_toml
from bench.manifest.reader import CONTAINERS, PROCESSES, Abilities, parse_manifest, read_manifest
from core.errors import ConfigError
from services.testnet.layout import Shape

FIXED = sorted((Path(__file__).parents[1] / "e2e" / "manifests").rglob("*.toml"))

FULL = """
about = "everything"
seed = 7
[network]
nodes = 4
pools = 2
miners = 1
providers = 1
reward = 500000
[windows]
commit_ms = 21000
claim_ms = 27000
[until]
blocks = 2
seconds = 300
[[liar]]
who = "pool1"
lie = "count"
times = 1
[[perturb]]
act = "kill"
who = ["node1", "node2"]
at = { task = 1, phase = "training" }
for_seconds = 2.5
[[perturb]]
act = "clock"
who = "node0"
at = { seconds = 0 }
for_seconds = 20
shift_ms = -4000
[[perturb]]
act = "slow"
who = "node3"
at = { height = 20 }
for_seconds = 10
delay_ms = 100
rate = 65536
[[perturb]]
act = "restart"
who = "pool0"
at = { seconds = 30 }
"""


def read(text: str) -> Manifest:
    return parse_manifest(text, "m.toml", "m")


def test_everything_that_can_be_said_is_read() -> None:
    found = read(FULL)
    assert found == Manifest(
        name="m", about="everything", seed=7, shape=Shape(4, 2, 1, reward=500_000), providers=1,
        windows=(("commit_ms", 21_000), ("claim_ms", 27_000)), blocks=2, seconds=300.0, liars=(Liar("pool1", Lie.COUNT, 1),),
        perturbations=(
            Perturbation(Act.KILL, ("node1", "node2"), At(task=1, phase="training"), 2.5),
            Perturbation(Act.CLOCK, ("node0",), At(seconds=0.0), 20.0, shift_ms=-4000),
            Perturbation(Act.SLOW, ("node3",), At(height=20), 10.0, delay_ms=100, rate=65_536),
            Perturbation(Act.RESTART, ("pool0",), At(seconds=30.0)),
        ),
    )  # fmt: skip
    assert read(to_toml(found)) == found
    assert [str(p) for p in found.perturbations][:2] == ["kill node1, node2 for 2.5 s", "clock node0 for 20 s"]


def test_an_empty_manifest_is_the_defaults() -> None:
    assert read("") == Manifest("m", shape=Shape(4, 1, 1))


KILL = '[[perturb]]\nact = "kill"\nwho = "node1"\nat = { seconds = 5 }\nfor_seconds = 3\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nodes = 4", "m.toml: 'nodes' is no key: remove it; there are about, seed, network"),
        ("[network]\nnode = 4", "'node' is no key in network"),
        ("[network]\nnodes = 0", "network.nodes is 0: it must be a whole number from 1 to 16"),
        ("[network]\nnodes = true", "network.nodes is True"),
        ('[network]\npools = "2"', "network.pools is '2'"),
        ("network = 4", "network is 4: it must be a table, [network]"),
        ("[network]\nproviders = 2", "network.providers is 2: it must be a whole number from 0 to 1"),
        ("[network]\nreward = 20000000", "network.reward is 20000000: the requester can pay"),
        ("[windows]\nfast = 1", "'fast' is no key in windows"),
        ("[windows]\ncommit_ms = 1", "windows.commit_ms is 1, with 4 nodes at least"),
        ("[until]\nseconds = 5", "until.seconds is 5: a task alone takes 25.5 s"),
        ("[until]\nseconds = nan", "until.seconds is nan"),
        ("seed = -1", "seed is -1"),
        ("[[perturb]]\nact = 'break'", "perturb 1: act is 'break': it must be one of kill, restart"),
        (KILL.replace("node1", "node9"), "perturb 1: who is 'node9': it must be one of node0, node1"),
        (KILL.replace('"node1"', "[]"), "perturb 1: who is empty"),
        (KILL.replace('"node1"', '["node1", "node1"]'), "each process once"),
        (KILL.replace("seconds = 5", "seconds = -1"), "perturb 1: at.seconds is -1: it must be seconds from 0"),
        (KILL.replace("seconds = 5", "seconds = 238"), "at is 238 s and takes 3 s, and all ends at until.seconds = 240"),
        (KILL.replace("seconds = 5", "height = 0"), "perturb 1: at.height is 0"),
        (KILL.replace("seconds = 5", "height = 1000000"), "no chain gets there in until.seconds = 240"),
        (KILL.replace("seconds = 5", "seconds = 5, height = 4"), "say one of seconds, height, or task with phase"),
        (KILL.replace("seconds = 5", "task = 1"), "say one of seconds, height, or task with phase"),
        (KILL.replace("seconds = 5", "task = 1, phase = 'won'"), "perturb 1: at.phase is 'won': it must be one of pending"),
        (KILL.replace("at = { seconds = 5 }", "at = 5"), "perturb 1: at is 5: say { seconds = 5 }"),
        (KILL.replace("at = { seconds = 5 }", ""), "perturb 1: at is None"),
        ("[until]\nblocks = 50\n" + KILL.replace("seconds = 5", "task = 12, phase = 'work'"), "11 tasks before it take 280.5"),
        (KILL.replace("for_seconds = 3\n", ""), "perturb 1: for_seconds is not there: for how long is it 'kill'?"),
        (KILL.replace("kill", "restart"), "perturb 1: for_seconds has no meaning for 'restart'"),
        (KILL + "shift_ms = 5", "perturb 1: shift_ms has no meaning for 'kill'"),
        (KILL.replace("kill", "clock"), "perturb 1: shift_ms is not there or 0"),
        (KILL.replace("kill", "clock").replace("node1", "pool0") + "shift_ms = 5", "only a node's clock can be set wrong"),
        (KILL.replace("kill", "slow"), "perturb 1: act is 'slow': say delay_ms, or rate"),
        (KILL + KILL.replace("seconds = 5", "seconds = 7"), "2: at falls into perturb 1, which has node1 from 5 s to 8 s"),
        ("[network]\nnodes = 1\nproviders = 0\n" + KILL.replace("kill", "disconnect").replace(
            '"node1"', '["node0", "pool0", "pool0-miner0", "platform0", "requester0"]'
        ), "names every process"),
        ("[[liar]]\nwho = 'pool0'\nlie = 'count'", "liar leaves no pool that claims what is true"),
        ("[[liar]]\nwho = 'node0'\nlie = 'count'", "liar 1: who is 'node0', and 'count' is told by a pool"),
        ("[[liar]]\nwho = 'requester0'\nlie = 'values'", "liar 1: times is not there, so she lies in every task"),
        ("[network]\nnodes = 2\n[[liar]]\nwho = 'requester0'\nlie = 'malformed'\ntimes = 1", "of 2 nodes the one that she"),
        ("[network]\nproviders = 0\n[[liar]]\nwho = 'pool0'\nlie = 'leak'", "without a provider there is nothing to leak"),
        ("[[liar]]\nwho = 'pool0'\nlie = 'leak'\ntimes = 1", "liar 1: times has no meaning for 'leak'"),
        ("[[liar]]\nwho = 'pool0'\nlie = 'count'\ntimes = 1\n" * 2, "liar names pool0 twice"),
        ("liar = 3", "liar must be tables, each under [[liar]]"),
        ("= 3", "m.toml is not TOML"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence_with_file_and_key(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert said in caught.value.message
    assert caught.value.message.startswith("m.toml")
    assert "\n" not in caught.value.message or "TOML" in caught.value.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (KILL.replace("kill", "slow") + "delay_ms = 5", "1: act is 'slow', which compose cannot do (it can kill, restart"),
        (KILL.replace("kill", "clock") + "shift_ms = 5", "which compose cannot do"),
        ("[windows]\ncommit_ms = 21000", "windows cannot be set in compose"),
        ("[network]\nproviders = 0", "network.providers is 0, and compose always has one"),
        ("[[liar]]\nwho = 'pool0'\nlie = 'count'\ntimes = 1", "containers run the product only: run it on processes"),
    ],
)
def test_what_a_back_end_cannot_do_is_refused_when_it_is_read(text: str, said: str) -> None:
    parse_manifest(text, "m.toml", "m", PROCESSES)
    with pytest.raises(ConfigError) as caught:
        parse_manifest(text, "m.toml", "m", CONTAINERS)
    assert said in caught.value.message


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*none\.toml"):
        read_manifest(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not a text file"):
        read_manifest(tmp_path / "binary.toml")
    (tmp_path / "long.toml").write_bytes(b"#" * 300_000)
    with pytest.raises(ConfigError, match="300000 bytes"):
        read_manifest(tmp_path / "long.toml")


@pytest.mark.parametrize("path", FIXED, ids=lambda path: path.stem)
def test_the_fixed_manifests_can_be_read(path: Path) -> None:
    found = read_manifest(path, CONTAINERS if path.parent.name == "compose" else PROCESSES)
    assert found.about
    assert parse_manifest(to_toml(found), "again", found.name) == found


@pytest.mark.parametrize("abilities", [PROCESSES, CONTAINERS], ids=["processes", "containers"])
def test_drawn_manifests_are_legal_and_the_same_again(abilities: Abilities) -> None:
    found = [draw(5, number, abilities) for number in range(120)]
    assert found[:20] == [draw(5, number, abilities) for number in range(20)]
    assert len({to_toml(each) for each in found}) == len(found)
    assert draw(6, 0) != draw(5, 0)
    assert {p.act for each in found for p in each.perturbations} == abilities.acts
    assert {liar.lie for each in found for liar in each.liars} == abilities.lies
    for each in found:
        assert len(lasting_outages(each)) == 0


def lasting_outages(manifest: Manifest) -> list[Perturbation]:
    """What stops more validators than the rest can do without, for more than a few seconds."""
    most = (manifest.shape.nodes - 1) // 3
    faulty = [p for p in manifest.perturbations if p.act.stops and p.for_seconds > 8]
    return [p for p in faulty if sum(name.startswith("node") for name in p.who) > most]


def test_what_is_done_to_validators_at_once_is_counted() -> None:
    both = KILL + KILL.replace("node1", "node2").replace("seconds = 5", "seconds = 7")
    assert most_faulty(read(both)) == 2
    assert most_faulty(read(both.replace("seconds = 7", "seconds = 9"))) == 1
    assert most_faulty(read(KILL.replace("node1", "pool0"))) == 0
    for number in range(60):
        drawn = draw(9, number)
        assert most_faulty(drawn) <= max((len(p.who) for p in drawn.perturbations if p.act.stops), default=0)
