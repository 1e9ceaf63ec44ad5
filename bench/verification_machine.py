"""What a measurement was taken on and with, and how repeated measurements are put together."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

__all__ = ["Json", "Progress", "machine", "peak_memory", "process_cpu_seconds", "repeated", "spread", "tell"]

Json = dict[str, Any]
Progress = Callable[[str], None]
ROOT: Final = Path(__file__).resolve().parent.parent
AES_BLOCKS: Final = 1 << 12
SLOW_AES_NS: Final = 20.0
"""A block takes 1 to 5 ns with AES instructions, more than 100 ns without."""


def tell(text: str) -> None:
    """Progress, on standard error: standard output carries the result."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def spread(values: Sequence[float], name: str = "seconds") -> Json:
    """Median, least and greatest of measured values, and how many there are."""
    return {
        name: float(statistics.median(values)), f"{name}_min": float(min(values)), f"{name}_max": float(max(values)),
        "runs": len(values),
    }  # fmt: skip


def repeated(runs: int, step: Callable[[], object], longest_s: float = float("inf")) -> Json:
    """``step`` again and again: wall and processor seconds. After ``longest_s`` in all it is not begun again."""
    wall: list[float] = []
    cpu: list[float] = []
    while len(wall) < runs and sum(wall) < longest_s:
        start, own = time.perf_counter(), time.process_time()
        step()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - own)
    return {**spread(wall), "cpu_seconds": float(statistics.median(cpu))}


def process_cpu_seconds(pid: int) -> float:
    """Processor time that a running process has used, all threads (Linux: the clock that clock_getcpuclockid(3) names)."""
    return time.clock_gettime((~pid << 3) | 2)


def peak_memory(pid: int) -> int:
    """Greatest resident size of a running process so far, bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 0


def machine() -> Json:
    """Processor, load, versions, commit; and whether AES runs on the processor's own instructions."""
    # OpenSSL spells it so. An empty value turns AES instructions off and makes garbling some 70 times slower.
    capabilities = os.environ.get("OPENSSL_ia32cap")  # noqa: SIM112
    model, flags = _processor()
    nanoseconds = _aes_ns()
    return {
        "cpu": model, "cores": os.cpu_count(), "cores_usable": len(os.sched_getaffinity(0)),
        "load_average": list(os.getloadavg()),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "aes": {
            "processor_has_instructions": "aes" in flags, "in_use": "aes" in flags and nanoseconds < SLOW_AES_NS,
            "ns_per_block": round(nanoseconds, 2), "OPENSSL_ia32cap": capabilities,
        },
        "versions": {
            "python": platform.python_version(), "system": f"{platform.system()} {platform.release()}",
            **{name: _version(name) for name in ("numpy", "tenseal", "cryptography", "grpcio", "pynacl")},
        },
        "commit": _commit(),
    }  # fmt: skip


def _processor() -> tuple[str, frozenset[str]]:
    model, flags = platform.processor() or platform.machine(), frozenset[str]()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return model, flags
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            model = value.strip()
        elif name.strip() in ("flags", "Features"):
            flags = frozenset(value.split())
    return model, flags


def _aes_ns() -> float:
    """Best of a few, in processor time, on a buffer that stays in the cache."""
    data, out, best = bytes(16 * AES_BLOCKS), bytearray(16 * AES_BLOCKS + 16), float("inf")
    for _ in range(100):
        encryptor = Cipher(algorithms.AES128(bytes(16)), modes.ECB()).encryptor()
        start = time.thread_time()
        encryptor.update_into(data, out)
        best = min(best, time.thread_time() - start)
    return 1e9 * best / AES_BLOCKS


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Of the source tree that is measured; ``+`` after it: with changes that are not committed."""
    try:
        head, changes = (
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return head + ("+" if changes else "")
