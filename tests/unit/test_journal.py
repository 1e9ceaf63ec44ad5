"""services.storage.journal: what was acknowledged is found again; a torn end is cut off; damage is named."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import CorruptError, LimitError, StorageError, StorageFullError
from services.storage import journal as module
from services.storage.journal import Journal, read_journal

ROOT = Path(__file__).resolve().parents[2]


def test_records_are_found_again_in_order(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.log"
    book = Journal(path)
    assert book.found == []
    book.append([b"one", b""])
    book.append([b"three" * 1000])
    assert read_journal(path) == [b"one", b"", b"three" * 1000], "a reader beside the writer"
    book.close()
    book.close()
    with pytest.raises(StorageError, match="closed"):
        book.append([b"x"])
    again = Journal(path)
    assert again.found == [b"one", b"", b"three" * 1000]
    again.append([b"four"])
    assert read_journal(path)[-1] == b"four"
    assert path.stat().st_mode & 0o077 == 0
    assert read_journal(tmp_path / "none.log") == []


def test_whatever_a_kill_leaves_at_the_end_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    book = Journal(path)
    book.append([b"first", b"second"])
    book.close()
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        again = Journal(path)
        assert again.found == [b"first", b"second"][: len(again.found)]
        again.append([b"next"])
        assert read_journal(path) == [*again.found, b"next"]
        again.close()
    for tail in (b"\x00" * 40, b"\xff" * 40):
        path.write_bytes(whole + tail)
        assert read_journal(path) == [b"first", b"second"]


def test_damage_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    book = Journal(path)
    book.append([b"first", b"second"])
    book.close()
    data = bytearray(path.read_bytes())
    data[len(module.MAGIC) + module.HEADER] ^= 1
    path.write_bytes(data)
    for read in (Journal, read_journal):
        with pytest.raises(CorruptError, match="byte 8"):
            read(path)
    path.write_bytes(b"something else entirely")
    with pytest.raises(CorruptError, match="no journal"):
        Journal(path)


def test_any_flipped_bit_is_an_error_unless_it_is_in_the_last_record(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    records = [b"first", b"", b"third " * 4, b"last"]
    book = Journal(path)
    book.append(records)
    book.close()
    whole = path.read_bytes()
    last = len(whole) - len(records[-1]) - module.HEADER
    for bit in range(8 * len(whole)):
        place = bit // 8
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit % 8]) + whole[place + 1 :])
        if place < last:
            with pytest.raises(CorruptError):
                read_journal(path)
        else:
            assert read_journal(path) == records[:-1]


def test_a_kill_in_a_record_that_looks_like_many_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    book = Journal(path)
    # Every four bytes of it are the length of a record that would end where the file was cut.
    hostile = b"".join((50_000 - 4 * i).to_bytes(4, "big") for i in range(12_500))
    book.append([b"first", hostile])
    book.close()
    whole = path.read_bytes()
    for cut in (1, 10, 12, 20_000):
        path.write_bytes(whole[:-cut])
        assert read_journal(path) == [b"first"]


def test_a_full_disk_loses_nothing_that_was_acknowledged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book = Journal(tmp_path / "a.log")
    book.append([b"kept"])
    write = os.write

    def half(descriptor: int, data: bytes) -> int:
        write(descriptor, bytes(data)[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(module.os, "write", half)
        with pytest.raises(StorageFullError, match="free some"):
            book.append([b"lost" * 10])
    book.append([b"after"])
    book.close()
    assert read_journal(tmp_path / "a.log") == [b"kept", b"after"]
    with pytest.raises(LimitError):
        Journal(tmp_path / "a.log").append([bytes(module.MAX_RECORD + 1)])


def test_what_was_acknowledged_survives_kill_nine(tmp_path: Path) -> None:
    code = (
        "import sys, itertools; from pathlib import Path; from services.storage.journal import Journal\n"
        "book = Journal(Path(sys.argv[1]))\n"
        "for number in itertools.count():\n"
        "    book.append([str(number).encode() * 50]); print(number, flush=True)\n"
    )
    path = tmp_path / "a.log"
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, cwd=ROOT)
    assert child.stdout is not None
    seen = [int(child.stdout.readline()) for _ in range(20)]
    os.kill(child.pid, signal.SIGKILL)
    rest = child.stdout.read().split()
    child.stdout.close()
    child.wait()
    acknowledged = int(rest[-1]) if rest else seen[-1]
    found = read_journal(path)
    assert found == [str(n).encode() * 50 for n in range(len(found))]
    assert len(found) > acknowledged
