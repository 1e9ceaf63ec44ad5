"""``pofl data`` and ``pofl run miner``: what a member types, and what a mistake says."""

from __future__ import annotations

import json
import sys
from ipaddress import ip_address
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509

from core.errors import ConfigError, MalformedError, NotFoundError
from core.ids import TaskId
from node.config import NodeConfig
from pool.learning.targets import TargetRows
from pool.miner.rows import TrainingRows
from services.cli.main import main
from services.cli.run import miner_settings
from services.data.loading import load_rows
from services.data.stored import recipe_digest_in
from services.rpc.role import read_key
from services.runtime.settings import load
from services.testnet.data import OwnData, split_own
from services.testnet.invite import invite
from services.testnet.layout import Shape, load_layout, make_layout
from tests.data_files import idx

VISITS = "who,age,sex,note,out\n" + "".join(
    f"p{i % 6},{20 + i},{'mf'[i % 2]},n{i},{['no', 'yes'][i % 3 == 0]}\n" for i in range(300)
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "visits.csv").write_text(VISITS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pofl(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pofl", *arguments])
    try:
        return main()
    except SystemExit as end:
        return int(end.code or 0)


def test_from_a_table_to_shares(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert pofl(monkeypatch, "data", "describe", "visits.csv", "--target", "out", "--key", "who", "--out", "visits.toml") == 0
    capsys.readouterr()
    assert pofl(monkeypatch, "data", "inspect", "visits.csv", "--json") == 0
    seen = json.loads(capsys.readouterr().out)
    assert (seen["rows"], seen["features"], seen["keys"]) == (300, 3, 6)
    assert seen["class_counts"] == {"no": 200, "yes": 100}
    assert pofl(monkeypatch, "data", "inspect", "visits.csv") == 0
    assert "recipe" in capsys.readouterr().out
    assert (
        pofl(monkeypatch, "data", "partition", "visits.toml", "--parts", "3", "--by", "key", "--out", "shares", "--json") == 0
    )
    shares = json.loads(capsys.readouterr().out)
    assert [share["keys"] for share in shares] == [2, 2, 2]
    found = [load_rows(folder / "shares" / share["file"]) for share in shares]
    assert sum(len(rows) for rows in found) == 300
    assert {rows.recipe.digest.hex() for rows in found if rows.recipe} == {seen["recipe"]}
    assert pofl(monkeypatch, "data", "convert", "visits.toml", "--rows", "30", "--out", "some.npz") == 0
    assert len(load_rows(folder / "some.npz")) == 30
    capsys.readouterr()
    assert pofl(monkeypatch, "data", "recipe", "some.npz", "--json") == 0
    assert json.loads(capsys.readouterr().out)["digest"] == seen["recipe"]
    assert pofl(monkeypatch, "data", "recipe", "visits.toml") == 0
    assert "[recipe]" in capsys.readouterr().out


def test_images_are_described(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(1).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    (folder / "images-ubyte").write_bytes(idx(images))
    (folder / "labels-ubyte").write_bytes(idx((np.arange(30) % 3).astype(np.uint8)))
    arguments = ("images-ubyte", "labels-ubyte", "--resize", "4x4", "--pca", "5", "--out", "i.toml")
    assert pofl(monkeypatch, "data", "describe", *arguments) == 0
    rows = load_rows(folder / "i.toml")
    assert (rows.features, rows.classes) == (5, 3)
    np.savez(folder / "n.npz", x=images, y=np.arange(30) % 3)
    assert pofl(monkeypatch, "data", "describe", "n.npz", "--standardise", "--out", "n.toml") == 0
    assert load_rows(folder / "n.npz").features == 64


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("describe", "visits.csv", "--out", "visits.csv"), "visits.csv exists"),
        (("describe", "visits.csv", "--out", "a.toml"), "--target must be one of the columns who, age, sex, note, out"),
        (("describe", "visits.csv", "--target", "note", "--out", "a.toml"), "note has 300 different values"),
        (("describe", "visits.csv", "--target", "out", "--without", "x", "--out", "a.toml"), "--without names 'x'"),
        (("describe", "visits.xls", "--out", "a.toml"), "its name does not say what it is"),
        (("describe", "none.csv", "--target", "out", "--out", "a.toml"), "none.csv: no such file"),
        (("inspect", "visits.csv"), "no descriptor beside it"),
        (("partition", "bad.npz", "--parts", "2", "--out", "s"), "bad.npz: row 1, feature 0: nan is not a finite number"),
        (("partition", "good.npz", "--parts", "2", "--by", "key", "--out", "s"), "the data have no natural key"),
        (("partition", "good.npz", "--parts", "9", "--out", "s"), "2 rows cannot be split into 9 parts"),
        (("recipe", "good.npz"), "good.npz carries no recipe"),
        (("convert", "good.npz", "--rows", "3", "--out", "c.npz"), "--rows is 3, good.npz has 2"),
    ],
)
def test_a_mistake_is_one_sentence(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    sentence: str,
) -> None:
    np.savez(folder / "bad.npz", x=np.array([[1.0], [np.nan]]), y=np.array([0, 1]))
    np.savez(folder / "good.npz", x=np.array([[1.0], [2.0]]), y=np.array([0, 1]))
    assert pofl(monkeypatch, "data", *arguments) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert "Traceback" not in err


# A miner's settings


def test_an_invitation_a_pool_and_data_are_all_that_a_miner_needs(folder: Path) -> None:
    layout = make_layout(folder / "net", Shape(1, 1, 1), start_ms=1)
    invite(layout, folder / "guest", "guest0")
    assert (folder / "guest" / "account.key").stat().st_mode & 0o077 == 0
    found = miner_settings("10.0.0.7:1", Path("rows.npz"), None, folder / "guest", True, (), {})
    settings = dict(item.split("=", 1) for item in found)
    assert settings["name"] == "guest0"
    assert settings["pool"] == "10.0.0.7:1"
    assert settings["data"] == "rows.npz"
    assert set(settings) == {
        "pool", "data", "name", "listen", "data_dir", "key", "tls.ca", "tls.cert", "tls.key", "chain.genesis",
    }  # fmt: skip
    # What is said elsewhere is left alone.
    env = {"POFL_MINER_LISTEN": "127.0.0.1:5", "POFL_POOL": "a:1"}
    less = miner_settings(None, Path("rows.npz"), None, folder / "guest", True, ["key=other.key"], env)
    assert not {item.split("=")[0] for item in less} & {"listen", "pool", "key"}


def test_an_invited_node_has_a_configuration_that_is_complete(folder: Path) -> None:
    layout = make_layout(folder / "net", Shape(2, 1, 1), start_ms=1)
    key = invite(layout, folder / "late", "late", "node", "10.0.0.9:7001")
    config = folder / "late" / "config.toml"
    settings = load(NodeConfig, config, {})
    assert (settings.name, settings.listen) == ("late", "10.0.0.9:7001")
    assert list(settings.peers.nodes) == [m.listen for m in layout.of("node")]
    assert read_key(folder / "late" / settings.key).public_key == key.public_key
    certificate = x509.load_pem_x509_certificate((folder / "late" / "tls.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "node.pofl.internal" in names.get_values_for_type(x509.DNSName)
    assert ip_address("10.0.0.9") in names.get_values_for_type(x509.IPAddress)
    with pytest.raises(ConfigError, match=r"--listen is '10\.0\.0\.9': it must be HOST:PORT"):
        invite(layout, folder / "other", "other", "node", "10.0.0.9")
    with pytest.raises(ConfigError, match="--role is 'provider': it must be one of miner, node, pool, requester, platform"):
        invite(layout, folder / "other", "other", "provider")
    with pytest.raises(ConfigError, match="a miner listens nowhere"):
        invite(layout, folder / "other", "other", "miner", "10.0.0.9:1")
    with pytest.raises(ConfigError, match="takes four ports from there on, up to 65535"):
        invite(layout, folder / "other", "other", "node", "10.0.0.9:65533")
    with pytest.raises(ConfigError, match="cannot be dialled"):
        invite(layout, folder / "other", "other", "node", "0.0.0.0:7000")
    assert not (folder / "other").exists()


def test_all_that_is_missing_is_said_at_once(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"a miner needs --pool \(the pool's address, host:port\) and --data \("):
        miner_settings(None, None, None, None, True, (), {})
    with pytest.raises(ConfigError, match=r"miner lacks ca\.pem, tls\.pem, tls\.key, genesis\.json: whoever runs the network"):
        miner_settings("a:1", Path("d"), None, None, True, (), {})
    layout = make_layout(folder / "net", Shape(1, 1, 1), start_ms=1)
    invite(layout, folder / "guest", "guest0")
    for certificate in ("tls.pem", "tls.key", "ca.pem"):
        (folder / "guest" / certificate).write_bytes((folder / "net" / "node0" / "tls" / certificate).read_bytes())
    with pytest.raises(ConfigError, match="is the certificate of a node, node0: a miner needs one of its own"):
        miner_settings("a:1", Path("d"), None, folder / "guest", True, (), {})
    with pytest.raises(ConfigError, match="not empty"):
        invite(layout, folder / "guest", "guest1")
    with pytest.raises(ConfigError, match="pool0-miner0 is a process of this testnet already"):
        invite(layout, folder / "other", "pool0-miner0")


def test_flags_of_a_miner_are_for_no_other_role(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pofl(monkeypatch, "run", "node", "--pool", "a:1") == 2
    assert "--pool is for `pofl run miner`, not for node" in capsys.readouterr().err


def test_a_miner_reads_what_is_described_and_names_what_is_wrong(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pofl(monkeypatch, "data", "describe", "visits.csv", "--target", "out", "--key", "who", "--out", "visits.toml") == 0
    rows = TrainingRows.load(folder / "visits.csv")
    assert (rows.own, rows.features, rows.kind) == (300, 3, "classes 0 to 1")
    assert pofl(monkeypatch, "data", "convert", "visits.toml", "--out", "practice.npz") == 0
    recipe = recipe_digest_in(folder / "practice.npz")
    made = TrainingRows.load(folder / "practice.npz")
    plain = TrainingRows(TargetRows(np.ones((2, 3), np.float32), np.zeros(2)))
    for subject in (rows, made, plain):
        subject.expect(TaskId(b"t" * 32), recipe)
        assert subject.source(b"t" * 32) is not None
    plain.expect(TaskId(b"u" * 32), b"r" * 32)
    for subject in (rows, made):
        with pytest.raises(MalformedError, match=f"made by recipe {recipe.hex()[:16]}, the task's by {b'r'.hex() * 8}"):
            subject.expect(TaskId(b"u" * 32), b"r" * 32)
        with pytest.raises(MalformedError, match="would only look like bad rows"):
            subject.source(b"u" * 32)
        subject.expect(TaskId(b"v" * 32), b"")
        assert subject.source(b"v" * 32) is not None, "a task that says nothing of a recipe"
    (folder / "visits.csv").write_text(VISITS.replace(",no\n", ",perhaps\n", 1))
    with pytest.raises(MalformedError, match=r"visits\.csv: line 3, column 'out': 'perhaps' is none of the classes no, yes"):
        TrainingRows.load(folder / "visits.toml")
    (folder / "visits.csv").write_text(VISITS.splitlines(keepends=True)[0])
    with pytest.raises(MalformedError, match="no rows: an empty data set teaches nothing"):
        TrainingRows.load(folder / "visits.csv", folder / "visits.toml")
    with pytest.raises(NotFoundError, match="no such file"):
        TrainingRows.load(folder / "absent")


# A testnet's own data


def test_a_testnet_of_own_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pofl(monkeypatch, "data", "describe", "visits.csv", "--target", "out", "--key", "who", "--out", "visits.toml") == 0
    own = OwnData(folder / "visits.toml", by="key", hidden=(8,))
    layout = make_layout(folder / "net", Shape(1, 1, 3), start_ms=1, data=own)
    assert load_layout(folder / "net").subject == layout.subject
    subject = layout.subject
    assert (subject.name, subject.features, subject.classes, subject.hidden) == ("visits", 3, 2, (8,))
    assert subject.feature_scale_micro == 31_750_000
    files = ["test", "practice", "provider", *(m.name for m in layout.of("miner"))]
    assert sum(len(load_rows(layout.data(name))) for name in files) == 300
    keys = [set(load_rows(layout.data(m.name)).keys.tolist()) for m in layout.of("miner")]  # type: ignore[union-attr]
    assert sum(len(k) for k in keys) == len(set.union(*keys))


def test_data_that_no_testnet_can_learn_leave_nothing_behind(folder: Path) -> None:
    np.savez(folder / "wide.npz", x=np.ones((200, 511), np.float32), y=np.arange(200) % 2)
    np.savez(folder / "few.npz", x=np.ones((50, 5), np.float32), y=np.arange(50) % 2)
    for name, sentence in (("wide", "511 features and 2 classes: a task has at most 512"), ("few", "50 rows are too few")):
        with pytest.raises(ConfigError, match=sentence):
            make_layout(folder / "net", Shape(1, 1, 1), data=OwnData(folder / f"{name}.npz"))
        assert not (folder / "net").exists()
    for hidden, sentence in (((0,), "widths are 1 to"), ((16,) * 40, "a model has 1 to"), ((4096, 4096), "hidden layers")):
        np.savez(folder / "some.npz", x=np.ones((200, 300), np.float32), y=np.arange(200) % 2)
        with pytest.raises(ConfigError, match=sentence):
            split_own(OwnData(folder / "some.npz", hidden=hidden), 1)
    np.savez(folder / "größe 1.npz", x=np.tile(np.eye(5, dtype=np.float32), (30, 1)) * 4, y=np.arange(150) % 2)
    split = split_own(OwnData(folder / "größe 1.npz", rows=140), 2)
    assert sum(len(rows) for rows in (split.test, split.practice, split.provider, *split.miners)) == 140
    assert split.subject.name == "gr-e-1"
