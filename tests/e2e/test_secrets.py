"""A whole network at its most talkative, and a search of all that it wrote for every secret that it had."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_testnet import COMMAND, ENV, left_over, pofl
from tests.secret_forms import found_in, secrets_of


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    assert left_over(tmp_path) == []


def until_work(network: subprocess.Popen[str], log: Path, seconds: float) -> None:
    """Until a pool's block is on the chain: by then every kind of secret has been used."""
    end = time.monotonic() + seconds
    while not re.search(r"block \d+: work by", log.read_text()):
        assert network.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(1)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_secret_is_in_any_log_or_report_of_a_fault(folder: Path) -> None:
    net, word, out = folder / "net", folder / "word", folder / "up.log"
    assert pofl(folder, "testnet", "init", "--nodes", "1", "--pools", "1", "--miners", "2", "--out", str(net)).returncode == 0
    known = secrets_of(net)
    passphrase = secrets.token_hex(12)
    word.write_text(passphrase)
    word.chmod(0o600)
    secret_env = {**ENV, "POFL_PASSPHRASE_FILE": str(word)}
    seal = [*COMMAND, "keys", "encrypt", str(net / "pool0/account.key")]
    sealed = subprocess.run(seal, cwd=folder, env=secret_env, capture_output=True, timeout=120)
    assert sealed.returncode == 0, sealed.stderr
    env = {**secret_env, "POFL_LOG__LEVEL": "debug", "GRPC_VERBOSITY": os.environ.get("GRPC_VERBOSITY", "NONE")}
    texts: dict[str, bytes] = {}
    with out.open("w") as log, subprocess.Popen(
        [*COMMAND, "testnet", "up", "--dir", str(net)], cwd=folder, env=env, stdout=log, stderr=log, text=True
    ) as network:  # fmt: skip
        try:
            until_work(network, out, 420)
            for name in sorted(home.parent.name for home in net.glob("*/config.toml")):
                report = folder / f"{name}.tar.gz"
                made = pofl(folder, "debug", "dump", "--data-dir", str(net / name), "--out", str(report), timeout=120)
                assert made.returncode == 0, made.stderr
                with tarfile.open(report) as archive:
                    for member in archive.getmembers():
                        part = archive.extractfile(member)
                        assert part is not None
                        texts[f"{report.name}:{member.name}"] = part.read()
                assert b"pofl_build_info" in texts[f"{report.name}:pofl-debug/metrics.txt"]
        finally:
            network.terminate()
    known.update(secrets_of(net))
    known["passphrase"] = passphrase.encode()
    for path in (out, *(net / "logs").iterdir(), *net.glob("*/data/flower/**/*.log")):
        texts[str(path.relative_to(folder))] = path.read_bytes()
    kinds = {name.rpartition("/")[2].partition(" ")[0] for name in known}
    assert {"account.key", "tls.key", "ca.key", "rows.secret", "passphrase"} <= kinds
    assert any(".secret" in name and "requester0" in name for name in known)
    assert any("/marks/" in name for name in known)
    assert "pool0/account.key" in known, "the seed as it was before it was sealed"
    levels = b"".join(text for name, text in texts.items() if name.startswith("net/logs/"))
    assert b" DEBUG " in levels
    assert found_in(texts, known) == []
    # The search itself: a log that has a secret in any form is found.
    assert found_in({"leak": b"x" + known["pool0/account.key"].hex().encode()}, known) != []
