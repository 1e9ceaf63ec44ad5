"""A whole small task for verification tests: keys, encrypted test set, context, all from seeds."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from core.chain.transaction import Activation, TaskSpec, task_id
from core.crypto.homomorphic import PARAMS, PublicKey, SecretKey, generate_keys, public_key
from core.crypto.signing import KeyPair
from core.errors import BudgetError
from core.ids import AccountId, Digest
from core.verification.task import TaskContext, key_context
from core.verification.test_set import EncryptedTestSet, TestSet, encrypt_test_set
from tests.models import random_features, random_labels
from tests.seeded import SeededRng

CHAIN = Digest(b"\x11" * 32)
POOL = AccountId(b"\x22" * 32)


class Marks:
    """One-use marks in memory: the twin of the stored ones."""

    def __init__(self) -> None:
        self.used: set[bytes] = set()

    def mark(self, key: bytes) -> None:
        if key in self.used:
            raise BudgetError(f"already used: {key!r}")
        self.used.add(key)


@dataclass(frozen=True, eq=False)
class World:
    task: TaskContext
    sk: SecretKey
    pk: PublicKey
    signer: KeyPair
    plain: TestSet
    encrypted: EncryptedTestSet
    blobs: tuple[bytes, ...]


def make_world(
    dims: tuple[int, ...] = (8, 4, 3),
    samples: int = 20,
    activation: Activation = Activation.SIGMOID,
    seed: int = 1,
    plain: TestSet | None = None,
    chain: Digest = CHAIN,
) -> World:
    rng = SeededRng(f"world {seed}")
    signer = KeyPair.generate(rng)
    requester = AccountId(signer.public_key)
    task = task_id(chain, requester, rng.bytes(32))
    sk = generate_keys(PARAMS, key_context(chain, task), rng)
    plain = plain or TestSet(random_features(samples, dims[0], seed), random_labels(samples, dims[-1], seed), dims[-1])
    blobs, digests, root = encrypt_test_set(sk, chain, task, plain, rng)
    spec = TaskSpec(
        name="test", features=dims[0], classes=dims[-1], samples=plain.samples, hidden=dims[1:-1], activation=activation,
        weight_bits=10, feature_scale_micro=127_000_000, test_root=root, test_blobs=digests, public_key_blob=Digest(bytes(32)),
        practice_blob=Digest(bytes(32)), endpoint="127.0.0.1:1", leak_bits=1 << 20,
    )  # fmt: skip
    context = TaskContext(chain, task, requester, spec)
    return World(context, sk, public_key(sk), signer, plain, EncryptedTestSet.load(context, blobs), blobs)


@functools.cache
def small_world() -> World:
    """Shared by tests that do not change it: 8-4-3, 20 samples."""
    return make_world()
