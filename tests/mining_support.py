"""Certificates, digits and real miner processes for the mining tests."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from core.crypto.masking import Aggregation
from core.crypto.sealing import suite_of
from pool.flower import health
from pool.flower.children import Child, flower_environment
from pool.flower.engine import JoinTicket, MiningEngine
from pool.flower.keys import new_node_key
from pool.learning.datasets import Dataset, save_npz
from pool.learning.privacy import NO_NOISE, LocalPrivacy

FEATURES, CLASSES = 64, 10
LOADED_S = 150.0
"""Several processes load torch at once, on a machine that may do other things too."""


def write_certificate(folder: Path) -> tuple[Path, Path, Path]:
    """(certificate, key, CA): one self-signed certificate for localhost that is its own CA."""
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    (folder / "cert.pem").write_bytes(pem)
    (folder / "ca.pem").write_bytes(pem)
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem", folder / "ca.pem"


def digits() -> tuple[Dataset, Dataset]:
    """(training rows, practice rows) of scikit-learn's 1,797 embedded digits, pixels scaled to 0..1."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(7).permutation(len(y))
    data = Dataset((x[order] / 16).astype(np.float32), y[order].astype(np.int64))
    rows = np.arange(len(y))
    return data.take(rows[:1200]), data.take(rows[1200:])


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """No guard is taken for hung that has only had no turn on a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(health, "SILENT_SLICES", 40)
        yield


@dataclass
class MinerProcess:
    """One real miner process, registered with an engine."""

    child: Child
    ticket: JoinTicket

    @property
    def key(self) -> bytes:
        return self.ticket.node_public_key

    async def online(self) -> None:
        async with asyncio.timeout(LOADED_S):
            answer = await self.child.read()
        assert answer == {"online": True}, (answer, self.child.end_note())

    async def stop(self) -> None:
        await self.child.stop(30)


async def start_miner(
    engine: MiningEngine, folder: Path, data: Dataset, behaviour: str = "honest", privacy: LocalPrivacy = NO_NOISE
) -> MinerProcess:
    private, public = new_node_key()
    ticket = await engine.register(public)
    await asyncio.to_thread(folder.mkdir, parents=True)
    save_npz(folder / "rows.npz", data)
    settings = {
        "address": ticket.superlink_address,
        "ca": ticket.ca_pem.decode(),
        "pool_key": ticket.hpke_public_key.hex(),
        "public": public.hex(),
        "private": private.hex(),
        "rows": str(folder / "rows.npz"),
        "folder": str(folder),
        "behaviour": behaviour,
        "suite": ticket.suite,
        "aggregation": ticket.aggregation,
        "privacy": [privacy.clip, privacy.noise],
    }
    environment = flower_environment(folder / "home")
    child = await Child.start(sys.executable, "tests.mining_support", environment, folder / "miner.log")
    child.send(settings)
    return MinerProcess(child, ticket)


def _miner_main() -> None:
    from pool.flower.fleet import FleetMiner
    from pool.learning.datasets import load_npz

    settings = json.loads(sys.stdin.readline())
    ticket = JoinTicket(
        settings["address"], settings["ca"].encode(), bytes.fromhex(settings["pool_key"]),
        bytes.fromhex(settings["public"]), suite_of(settings["suite"]), Aggregation(settings["aggregation"]),
    )  # fmt: skip
    rows = load_npz(Path(settings["rows"]))
    miner = FleetMiner(
        ticket, bytes.fromhex(settings["private"]), lambda job_id: (rows.x, rows.y), Path(settings["folder"]),
        privacy=LocalPrivacy(*settings["privacy"]),
    )  # fmt: skip
    if settings["behaviour"] == "die_in_upload":
        from tests import mining_attacks

        mining_attacks.die_in_upload()
    elif settings["behaviour"] != "honest":
        from tests import mining_attacks

        miner._app = getattr(mining_attacks, settings["behaviour"])(ticket, miner._key)
    miner.start()
    miner.wait_online(LOADED_S)
    print(json.dumps({"online": True}), flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        sys.stdin.read()
    miner.stop()


if __name__ == "__main__":
    _miner_main()
