"""services.runtime.durable: the old file or the whole new one, and nothing beside it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from services.runtime.durable import replaced, write_private


def test_a_reader_sees_the_old_file_or_the_whole_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with replaced(path) as file:
        file.write(b"new, whole")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new, whole"


@pytest.mark.parametrize("is_synced", [True, False])
def test_what_fails_half_way_leaves_nothing_behind(tmp_path: Path, is_synced: bool) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail() -> None:
        with replaced(path, is_synced=is_synced) as file:
            file.write(b"half")
            raise OSError("no space on the disk")

    with pytest.raises(OSError, match="no space"):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_private_file_is_never_readable_by_others_and_no_planted_part_is_used(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "key", tmp_path / "elsewhere"
    elsewhere.write_bytes(b"")
    (tmp_path / "key.part").symlink_to(elsewhere)
    before = os.umask(0)
    try:
        write_private(path, b"secret")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes() == b"secret"
    assert elsewhere.read_bytes() == b""
