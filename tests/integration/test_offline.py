"""``python -m node.offline``, which ``pofl chain verify|reindex|export|import|prune`` run: exit codes and sentences."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from core.codec import encode
from node.folder import open_chain_folder
from node.offline import main
from node.rows import at
from node.store import ChainStore
from tests.chainkit import key, make_genesis
from tests.stored_chain import GENESIS, NODE, fill, steps

ROOT = Path(__file__).resolve().parent.parent.parent
TIP = len(steps())

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    kv = open_chain_folder(tmp_path / "data", GENESIS, NODE)
    fill(kv)
    kv.close()
    return tmp_path / "data"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(a) for a in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def config(folder: Path, validator: str = "v1") -> Path:
    """A node's configuration, whose data folder does not exist yet."""
    folder.mkdir()
    (folder / "genesis.json").write_text(GENESIS.to_json())
    (folder / "key").write_text(key(validator).seed.hex())
    (folder / "key").chmod(0o600)
    (folder / "config.toml").write_text(
        'name = "node1"\nlisten = "127.0.0.1:0"\ndata_dir = "data"\nkey = "key"\n'
        '[tls]\ninsecure_loopback = true\n[chain]\ngenesis = "genesis.json"\n'
    )
    return folder / "config.toml"


def test_a_whole_chain(run: Run, data_dir: Path) -> None:
    code, out, _ = run("verify", "--data-dir", data_dir)
    assert (code, out.split(":")[0]) == (0, f"height {TIP}")
    assert "hold" in out
    code, out, _ = run("verify", "--data-dir", data_dir, "--json")
    assert json.loads(out)["executed"] == TIP


def test_damage_is_exit_code_4_a_broken_rule_5_a_wrong_place_2_a_running_node_3(
    run: Run, data_dir: Path, tmp_path: Path
) -> None:
    code, _, err = run("verify", "--data-dir", tmp_path / "nothing")
    assert code == 2
    assert "holds no stored data: give the data_dir of a node that ran" in err
    kv = open_chain_folder(data_dir, GENESIS, NODE)
    code, _, err = run("verify", "--data-dir", data_dir)
    assert code == 3
    assert "is in use by another process: stop that process" in err
    certificate, index = kv.get(b"c" + at(4)), kv.get(b"h" + steps()[2].block.block_hash)
    assert certificate is not None
    assert index is not None
    kv.put_batch({b"c" + at(4): kv.get(b"c" + at(5)) or b""}, [b"h" + steps()[2].block.block_hash])
    kv.close()
    code, _, err = run("verify", "--data-dir", data_dir)
    assert code == 4
    assert "height 3 is damaged: the index of blocks does not lead to it. Run `pofl chain reindex`" in err
    code, out, _ = run("reindex", "--data-dir", data_dir)
    assert code == 0
    assert "height 3: indexes and state are built again. What follows is damaged" in out
    kv = open_chain_folder(data_dir, GENESIS, NODE)
    store = ChainStore(kv, GENESIS)
    for step in steps()[3:]:
        store.commit(step.block, step.certificate, step.state, step.transactions, step.work)
    kv.put_batch({b"c" + at(4): kv.get(b"c" + at(5)) or b""})
    kv.close()
    code, _, err = run("verify", "--data-dir", data_dir)
    assert code == 5
    assert "block 4" in err


def test_export_and_import(run: Run, data_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "chain.pofl"
    assert run("export", file, "--data-dir", data_dir)[0] == 0
    code, _, err = run("export", file, "--data-dir", data_dir)
    assert code == 2
    assert "exists: choose another file, or go on with it by --append" in err
    cfg = config(tmp_path / "node1")
    code, out, _ = run("import", file, "--config", cfg)
    assert (code, out) == (0, f"height {TIP}: {TIP} blocks were added, 0 were here already\n")
    # From now on the folder says itself of which chain it is.
    code, out, _ = run("import", file, "--data-dir", tmp_path / "node1" / "data")
    assert (code, out) == (0, f"height {TIP}: 0 blocks were added, {TIP} were here already\n")
    assert run("verify", "--config", cfg)[0] == 0


def test_a_file_grows(run: Run, data_dir: Path, tmp_path: Path) -> None:
    whole, file = tmp_path / "whole", tmp_path / "file"
    run("export", whole, "--data-dir", data_dir)
    data = whole.read_bytes()
    # Cut off anywhere after its head, or whole: afterwards it is what one export makes.
    for size in (len(data), len(data) - 1, len(data) // 2, 900):
        file.write_bytes(data[:size])
        code, _, err = run("export", file, "--append", "--data-dir", data_dir)
        assert (code, file.read_bytes() == data) == (0, True), err
    code, out, _ = run("export", file, "--append", "--data-dir", data_dir)
    assert (code, out) == (0, f"{file} has all blocks up to {TIP} already\n")
    code, _, err = run("export", tmp_path / "none", "--append", "--data-dir", data_dir)
    assert (code, "leave out --append for a new file" in err) == (2, True)
    code, _, err = run("export", tmp_path / "none" / "file", "--data-dir", data_dir)
    assert (code, "No such file or directory" in err) == (2, True)
    file.write_bytes(data[:20])
    code, _, err = run("export", file, "--append", "--data-dir", data_dir)
    assert code == 2
    assert "was cut off in its head" in err
    assert "--append" not in err
    code, _, err = run("export", tmp_path, "--data-dir", data_dir)
    assert (code, err) == (2, f"error: {tmp_path} is a folder: give a file in it\n")


def test_another_chains_file_is_refused(run: Run, data_dir: Path, tmp_path: Path) -> None:
    other = make_genesis(3)
    kv = open_chain_folder(tmp_path / "other", other, NODE)
    kv.put_batch({b"g": encode(other)})
    kv.close()
    file = tmp_path / "chain.pofl"
    run("export", file, "--data-dir", data_dir)
    code, _, err = run("import", file, "--data-dir", tmp_path / "other")
    assert code == 2
    ours, theirs = other.chain_id.hex(), GENESIS.chain_id.hex()
    assert f"is of chain test {theirs}, this node is on chain test {ours}: give a file of this chain" in err


def test_pruning(run: Run, data_dir: Path, tmp_path: Path) -> None:
    code, out, _ = run("prune", "--keep", 3, "--data-dir", data_dir)
    assert (code, out) == (0, f"height {TIP}: the oldest block that is kept whole is {TIP - 2}\n")
    code, out, _ = run("verify", "--data-dir", data_dir)
    assert code == 0
    assert f"3 blocks were executed again, the headers of {TIP - 3} pruned blocks before them" in out
    code, _, err = run("export", tmp_path / "f", "--data-dir", data_dir)
    assert code == 2
    assert f"block 1 was pruned here, the oldest that is kept is {TIP - 2}: ask another node" in err
    assert not (tmp_path / "f").exists()
    assert run("export", tmp_path / "f", "--from", TIP - 2, "--data-dir", data_dir)[0] == 0
    assert run("reindex", "--data-dir", data_dir)[0] == 0
    assert run("verify", "--data-dir", data_dir)[0] == 0


def test_through_pipes_and_the_command_line(data_dir: Path, tmp_path: Path) -> None:
    cfg = config(tmp_path / "node1")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
    pofl = f"{sys.executable} -m services.cli.main chain"
    done = subprocess.run(
        f"set -o pipefail; {pofl} export - --data-dir {data_dir} | gzip | gunzip | {pofl} import - --config {cfg}; "
        f"echo code $?; {pofl} prune --keep 3; echo code $?",
        shell=True, executable="/bin/bash", env=environment, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert f"height {TIP}: {TIP} blocks were added" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-2:] == ["code 0", "code 2"]
    assert "give either --data-dir DIR or --config FILE" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("content", [b"", b"junk", bytes(range(256)) * 64], ids=["empty", "short", "long"])
@pytest.mark.parametrize("command", ["verify", "reindex", "export", "import", "prune"])
def test_a_file_in_place_of_a_folder_is_told_at_once(
    run: Run, tmp_path: Path, data_dir: Path, command: str, content: bytes
) -> None:
    junk = tmp_path / "junk.bin"
    junk.write_bytes(content)
    archive = tmp_path / "chain.pofl"
    if command == "import":
        assert run("export", archive, "--data-dir", data_dir)[0] == 0
    more = {"export": [tmp_path / "out.pofl"], "import": [archive], "prune": ["--keep", 5]}.get(command, [])
    code, out, said = run(command, *more, "--data-dir", junk)
    assert (code, out) == (2, "")
    assert said == f"error: {junk} is a file and no folder: give the data_dir of a node that ran\n"
    assert junk.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"junk", bytes(range(256)) * 64], ids=["empty", "short", "long"])
def test_a_file_that_is_no_export_is_told_at_once(run: Run, tmp_path: Path, data_dir: Path, content: bytes) -> None:
    junk = tmp_path / "junk.bin"
    junk.write_bytes(content)
    code, out, said = run("import", junk, "--data-dir", data_dir)
    assert (code, out) == (2, "")
    assert said.startswith(f"error: {junk} ")
    assert "export" in said
    assert said.count("\n") == 1
