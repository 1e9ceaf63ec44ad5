"""What a pool must still know after it was killed: its model and seed before the commit, its count before the claim, its
work block before the first offer, and which evaluation batches are used up.

Each is one file, written beside its place, forced to the disk and renamed: a reader sees nothing or the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, TypeVar

from core.chain.block import MAX_MINERS, MAX_VM_BODY, Block, Vm
from core.codec import DIGEST, PUBLIC_KEY, U8, U32, U64, Record, Seq, Var, decode, encode
from core.errors import CorruptError, InputError, StorageError
from core.ids import AccountId, Correct, ModelCommitment
from core.verification.body import ModelOpening
from services.runtime.durable import write_private

__all__ = ["Claimed", "Committed", "Contribution", "TaskFolder", "write_durably"]

T = TypeVar("T")

MAX_FILE: Final = 4 * MAX_VM_BODY


@dataclass(frozen=True, slots=True)
class Contribution:
    """Accepted examples x rounds of one miner."""

    miner: Annotated[AccountId, PUBLIC_KEY]
    amount: Annotated[int, U64]


@dataclass(frozen=True, slots=True)
class Committed:
    """The one model of a task. ``opening`` holds its integer weights and the seed that encrypts them to ``body``."""

    commitment: Annotated[ModelCommitment, DIGEST]
    body: Annotated[bytes, Var(MAX_VM_BODY)]
    opening: Annotated[ModelOpening, Record(ModelOpening)]
    contributions: Annotated[tuple[Contribution, ...], Seq(Record(Contribution), 8 * MAX_MINERS)]


@dataclass(frozen=True, slots=True)
class Claimed:
    """N and what the header needs, from a finished evaluation."""

    correct: Annotated[Correct, U32]
    vm: Annotated[Vm, Record(Vm)]


@dataclass(frozen=True, slots=True)
class _Batches:
    used: Annotated[int, U8]


class TaskFolder:
    """The files of one task. Reading raises CorruptError, writing StorageError, both naming the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make {path}: {error.strerror or error}") from error

    @property
    def practice(self) -> Path:
        return self.path / "practice.npz"

    @property
    def committed(self) -> Committed | None:
        return self._read("committed", Committed)

    def commit(self, committed: Committed) -> None:
        self._write("committed", committed)

    @property
    def claimed(self) -> Claimed | None:
        return self._read("claimed", Claimed)

    def claim(self, claimed: Claimed) -> None:
        self._write("claimed", claimed)

    def work(self, parent: bytes) -> Block | None:
        """The work block that was signed on the block with hash ``parent``."""
        return self._read(_work_file(parent), Block)

    def offer(self, parent: bytes, block: Block) -> None:
        """A second header on the same parent would burn the bond, so this one is kept before anybody sees it.

        Another parent's block stays: a node that lies about the tip must not make this pool forget what it signed.
        """
        self._write(_work_file(parent), block)

    @property
    def batches_used(self) -> int:
        found = self._read("batches", _Batches)
        return 0 if found is None else found.used

    def use_batch(self, batch: int) -> None:
        """From now on batch number ``batch`` counts as used, whatever becomes of it."""
        self._write("batches", _Batches(batch + 1))

    def _read(self, name: str, kind: type[T]) -> T | None:
        path = self.path / f"{name}.bin"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
        try:
            return decode(kind, data, MAX_FILE)
        except InputError as error:
            raise CorruptError(
                f"{path} is damaged ({error.message}): this pool sits the task out; leave the file, for a second work block on "
                "one parent would burn the bond"
            ) from None

    def _write(self, name: str, value: object) -> None:
        write_durably(self.path / f"{name}.bin", encode(value))


def _work_file(parent: bytes) -> str:
    return f"work-{parent.hex()}"


def write_durably(path: Path, data: bytes) -> None:
    """The file is there, whole and on the disk, when this returns; 0600. Raises StorageError."""
    try:
        write_private(path, data)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
