"""What LevelDB itself does not notice in its folder: a damaged length at the end of a log, a lost CURRENT.

A record whose length points beyond the end of its file is taken for one that a kill cut off, and it and all after it are
dropped without a word, even with ``paranoid_checks``. If only the length is damaged, the record is still there: for another
length its checksum holds. So a cut tail and a damaged one can be told apart before LevelDB is asked to open the folder;
afterwards the log, and every table that the shortened manifest no longer names, would be deleted.

The format of logs and manifests is LevelDB's own (its ``doc/log_format.md``): blocks of 32 KiB, in them records of a masked
CRC-32C (4 bytes), a length (2), a type (1), and the data; a record never spans blocks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["damaged_tail", "folder_fault"]

BLOCK: Final = 32 * 1024
HEADER: Final = 7
FIRST: Final = "MANIFEST-000001"
MASK_DELTA: Final = 0xA282EAD8


def folder_fault(folder: Path) -> str | None:
    """What is wrong that LevelDB would pass over, or None. Reads the last block of each log."""
    current = folder / "CURRENT"
    if not current.is_file():
        # Of a folder whose making was cut short there is its first manifest at most.
        kept = {p.suffix for p in folder.glob("*")} & {".ldb", ".sst", ".log"}
        later = [p for p in folder.glob("MANIFEST-*") if p.name != FIRST]
        return "CURRENT is missing" if kept or later else None
    named = current.read_bytes()[:64]
    manifest = folder / named.decode("ascii", "replace").strip().replace("/", "_").replace("\0", "_")
    if not named.startswith(b"MANIFEST-") or not named.endswith(b"\n") or not manifest.is_file():
        return "CURRENT names no manifest that is here"
    for path in (manifest, *sorted(folder.glob("*.log"))):
        offset = damaged_tail(path)
        if offset is not None:
            return f"{path.name}: the record at byte {offset} has a wrong length"
    return None


def damaged_tail(path: Path) -> int | None:
    """Where the last block of a log has a record that is whole but for its length; None if it ends as a log may end."""
    with path.open("rb") as file:
        start = file.seek(0, 2) // BLOCK * BLOCK
        file.seek(start)
        block = file.read(BLOCK)
    place = 0
    while len(block) - place >= HEADER:
        length = int.from_bytes(block[place + 4 : place + 6], "little")
        if place + HEADER + length > len(block):
            return start + place if _has_other_length(block[place:]) else None
        place += HEADER + length
    return None


def _has_other_length(record: bytes) -> bool:
    """Whether the record's checksum holds for some length that fits."""
    masked = int.from_bytes(record[:4], "little")
    rotated = (masked - MASK_DELTA) & 0xFFFFFFFF
    wanted = ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF
    crc = 0xFFFFFFFF
    for byte in record[HEADER - 1 :]:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
        if crc ^ 0xFFFFFFFF == wanted:
            return True
    return False


def _table() -> tuple[int, ...]:
    """CRC-32C (Castagnoli), reflected."""
    rows = []
    for number in range(256):
        crc = number
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        rows.append(crc)
    return tuple(rows)


_TABLE: Final = _table()
